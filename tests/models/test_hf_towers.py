"""Towers of models of images and text: what the language model is given of an image, and nothing else of the model."""

import json

import pytest
import torch
from PIL import Image

import unweave
from hf_folders import FAMILIES, SIGLIP2, SWIN, TEXT, VIT, WIDE, reconfigured, saved
from unweave.models import load_model
from unweave.models.hf import load
from unweave.models.library import Request

transformers = pytest.importorskip("transformers")


def features(module, **given):
    """The mean over the tokens that a model makes of one image."""
    found = module.model.get_image_features(**given).pooler_output
    found = torch.cat([own.flatten(0, -2) for own in found]) if isinstance(found, (list, tuple)) else found
    return found.flatten(0, -2).mean(0)


def decomposed(model, images=None, **options):
    """The largest distance of a plan's sum from the representation, against its norm."""
    images = model.example(2) if images is None else images
    with torch.no_grad():
        wanted = model.readout(images)
    found = unweave.plan(model, **options).run(images)
    return float((found.values.sum(1) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_representation_is_the_mean_of_what_the_language_model_is_given(family, tmp_path):
    module = saved(tmp_path, *FAMILIES[family])
    model = load_model(f"hf/{tmp_path}")
    assert not any("language_model" in name or "lm_head" in name for name, _ in model.module.named_parameters())
    _, height, width = model.input_size
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.numpy())
    image = model.preprocess(picture)
    assert image.shape == model.input_size
    given = {"pixel_values": image[None]}
    if family.startswith("Qwen"):
        processor = transformers.Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2)
        given = dict(processor(images=picture, do_resize=False, return_tensors="pt"))
        given = {"pixel_values": given["pixel_values"], "image_grid_thw": given["image_grid_thw"]}
    if family in ("Idefics2", "Idefics3", "SmolVLM", "PerceptionLM"):
        given = {"pixel_values": image[None, None]}
    if family in ("LLaVA with Pixtral", "Mistral 3"):
        given["image_sizes"] = torch.tensor([[height, width]])
    if family in ("LLaVA-NeXT", "LLaVA-OneVision"):  # the one tile is the picture itself, and so is its thumbnail
        module.model.config.image_grid_pinpoints = [[height, width]]
        given = {"pixel_values": image[None, None].expand(1, 2, -1, -1, -1), "image_sizes": torch.tensor([[32, 32]])}
    with torch.no_grad():
        wanted = features(module, **given)
        torch.testing.assert_close(model.readout(image[None])[0], wanted, rtol=1e-4, atol=1e-5)
        beside = model.readout(torch.stack([model.example(1)[0], image]))[1]
    torch.testing.assert_close(beside, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["PaliGemma", "Idefics3", "Mistral 3", "Qwen3-VL"])
def test_towers_decompose_exactly(family, tmp_path):
    saved(tmp_path, *FAMILIES[family])
    assert decomposed(load_model(f"hf/{tmp_path}")) < 1e-5


@pytest.fixture
def poisoned():
    """Memory that nobody wrote to holds NaN, and not what it happened to."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what is uninitialised
    yield
    torch.use_deterministic_algorithms(False)


DUAL = ("CLIPModel", "CLIPConfig", {"vision_config": VIT, "text_config": TEXT, "projection_dim": 32})


@pytest.mark.parametrize("family", [DUAL, FAMILIES["LLaVA"], FAMILIES["Idefics2"], FAMILIES["Qwen3-VL"]])
def test_random_weights_are_the_same_each_time(family, tmp_path, poisoned):
    """transformers leaves some weights of a model without a file as the memory happened to be."""
    saved(tmp_path, *family)
    first, second = (load_model(f"hf/{tmp_path}", random_weights=True, seed=1) for _ in range(2))
    assert first.weights_hash == second.weights_hash
    assert load_model(f"hf/{tmp_path}", random_weights=True, seed=2).weights_hash != first.weights_hash
    with torch.no_grad():
        made = first.readout(first.example(2))
        assert torch.equal(made, second.readout(second.example(2))) and made.isfinite().all()


def test_the_shards_of_the_language_model_are_not_opened(tmp_path):
    module = saved(tmp_path, *FAMILIES["LLaVA"], max_shard_size="20KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    of_images = {file for name, file in files.items() if "vision_tower" in name or "projector" in name}
    others = set(files.values()) - of_images
    assert others
    for file in others:
        (tmp_path / file).unlink()
    model = load_model(f"hf/{tmp_path}")
    images = model.example(1)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images)[0], features(module, pixel_values=images))


def test_a_vision_layer_too_many_is_refused(tmp_path):
    saved(tmp_path, *FAMILIES["PaliGemma"])
    config = json.loads((tmp_path / "config.json").read_text())
    reconfigured(tmp_path, vision_config=config["vision_config"] | {"num_hidden_layers": 1})
    with pytest.raises(unweave.errors.ModelError, match="no place for"):
        load_model(f"hf/{tmp_path}")


def test_random_weights_build_the_tower_alone(tmp_path):
    saved(tmp_path, *FAMILIES["PaliGemma"])
    (tmp_path / "model.safetensors").unlink()
    model = load_model(f"hf/{tmp_path}", random_weights=True)
    assert not any("language_model" in name for name, _ in model.module.named_parameters())
    assert decomposed(model) < 1e-5


def test_tokens_of_patches_made_in_advance_have_their_row_and_column(tmp_path):
    saved(
        tmp_path, "Siglip2VisionModel", "Siglip2VisionConfig", {n: v for n, v in SIGLIP2.items() if n != "model_type"}
    )
    model = load_model(f"hf/{tmp_path}")
    assert model.input_size == (3, 32, 32)
    plan = unweave.plan(model, level="token")
    assert {(grid.height, grid.width) for grid in plan.grids.values()} == {(4, 4)}
    saved(tmp_path, *FAMILIES["Qwen2-VL"])
    model = load_model(f"hf/{tmp_path}", image_size=16)
    plan = unweave.plan(model, level="token", nonlinear="freeze")
    grid = plan.grids["visual.blocks.1.attn"]
    assert (grid.height, grid.width) == (4, 4)
    assert grid.cells == (0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)  # two by two, as they are merged


def test_a_tower_of_patches_made_in_advance_may_stand_alone(tmp_path):
    options = {**WIDE, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    module = saved(tmp_path, "Qwen3VLVisionModel", "Qwen3VLVisionConfig", options)
    model = load_model(f"hf/{tmp_path}", image_size=16)
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    processor = transformers.Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2)
    given = processor(images=picture, do_resize=False, return_tensors="pt")
    with torch.no_grad():
        wanted = module(given["pixel_values"], grid_thw=given["image_grid_thw"]).pooler_output.mean(0)
        torch.testing.assert_close(model.readout(model.preprocess(picture)[None])[0], wanted, rtol=1e-4, atol=1e-5)
    assert "normalised as Qwen2VLImageProcessor does" in " ".join(model.notes)
    assert decomposed(model) < 1e-5


def test_a_processor_that_makes_one_size_is_used_as_it_is(tmp_path):
    module = saved(tmp_path, *FAMILIES["LLaVA"])
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    model = load_model(f"hf/{tmp_path}")
    picture = Image.effect_noise((60, 50), 80).convert("RGB")
    pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.preprocess(picture), pixels[0])
    with torch.no_grad():
        torch.testing.assert_close(model.readout(pixels)[0], features(module, pixel_values=pixels))


def test_a_processor_that_keeps_shapes_is_used_at_one_size(tmp_path):
    module = saved(tmp_path, *FAMILIES["Qwen2.5-VL"])
    processor = transformers.Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2)
    processor.save_pretrained(tmp_path)
    model = load_model(f"hf/{tmp_path}", image_size=32)
    assert model.input_size == (3, 32, 32)
    picture = Image.effect_noise((60, 50), 80).convert("RGB")
    given = processor(images=picture.resize((32, 32), Image.Resampling.BICUBIC), do_resize=False, return_tensors="pt")
    with torch.no_grad():
        wanted = features(module, pixel_values=given["pixel_values"], image_grid_thw=given["image_grid_thw"])
        torch.testing.assert_close(model.readout(model.preprocess(picture)[None])[0], wanted, rtol=1e-4, atol=1e-5)
    assert "resized to 32 x 32" in " ".join(load(Request("hf/x", str(tmp_path), True, 32)).notes)


@pytest.mark.parametrize(
    ("name", "config", "options", "representation"),
    [
        (
            "CLIPModel",
            "CLIPConfig",
            {"text_config": TEXT, "vision_config": VIT, "projection_dim": 24},
            lambda module, images: module.get_image_features(images).pooler_output,
        ),
        (
            "Owlv2ForObjectDetection",
            "Owlv2Config",
            {"text_config": TEXT, "vision_config": VIT},
            lambda module, images: module.owlv2.get_image_features(images).pooler_output,
        ),
        (
            "CLIPSegForImageSegmentation",
            "CLIPSegConfig",
            {"text_config": TEXT, "vision_config": VIT, "extract_layers": [0, 1], "reduce_dim": 16},
            lambda module, images: module.clip.get_image_features(images).pooler_output,
        ),
        (
            "Blip2Model",
            "Blip2Config",
            {
                "vision_config": VIT,
                "qformer_config": {**TEXT, "encoder_hidden_size": 32},
                "text_config": {
                    "model_type": "opt",
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "ffn_dim": 64,
                    "vocab_size": 100,
                    "word_embed_proj_dim": 32,
                },
            },
            lambda module, images: module.vision_model(images).pooler_output,
        ),
        (
            "DepthAnythingForDepthEstimation",
            "DepthAnythingConfig",
            {
                "backbone_config": {
                    "model_type": "dinov2",
                    "out_indices": [1, 2],
                    "reshape_hidden_states": False,
                    **VIT,
                },
                "neck_hidden_sizes": [16, 16],
                "reassemble_factors": [2, 1],
                "reassemble_hidden_size": 32,
                "fusion_hidden_size": 16,
                "head_in_index": -1,
                "head_hidden_size": 8,
                "patch_size": 8,
            },
            lambda module, images: module.backbone(images).feature_maps[-1].mean(1),
        ),
        (
            "SwinBackbone",
            "SwinConfig",
            {**SWIN, "out_features": ["stage2"]},
            lambda module, images: module(images).feature_maps[-1].mean((2, 3)),
        ),
        (
            "VitDetModel",
            "VitDetConfig",
            {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 32,
                "pretrain_image_size": 32,
                "patch_size": 8,
            },
            lambda module, images: module(images).last_hidden_state.mean((2, 3)),
        ),
        (
            "DetrForObjectDetection",
            "DetrConfig",
            {
                "backbone_config": {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [3]},
                **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 4},
                **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2},
                **{"decoder_attention_heads": 2},
            },
            lambda module, images: module.model.backbone.model(images)[-1].mean((2, 3)),
        ),
        (
            "RTDetrForObjectDetection",
            "RTDetrConfig",
            {
                "backbone_config": {
                    "model_type": "rt_detr_resnet",
                    "embedding_size": 8,
                    "hidden_sizes": [8, 8, 16, 16],
                    "depths": [1, 1, 1, 1],
                    "layer_type": "basic",
                    "out_features": ["stage2", "stage3", "stage4"],
                },
                **{"encoder_in_channels": [8, 16, 16], "encoder_hidden_dim": 16, "d_model": 16, "num_queries": 4},
                **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_layers": 1, "encoder_attention_heads": 2},
                **{"decoder_attention_heads": 2, "decoder_in_channels": [16, 16, 16]},
            },
            lambda module, images: module.model.backbone.model(images).feature_maps[-1].mean((2, 3)),
        ),
    ],
)
def test_the_tower_of_a_dual_encoder_a_detector_or_a_segmenter(name, config, options, representation, tmp_path):
    module = saved(tmp_path, name, config, options)
    model = load_model(f"hf/{tmp_path}")
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), representation(module, images), rtol=1e-5, atol=1e-5)
    assert decomposed(model, images) < 1e-5


def test_what_is_left_out_and_pooled_is_said(tmp_path):
    saved(tmp_path, *FAMILIES["LLaVA"])
    source = load(Request("hf/x", str(tmp_path), True))
    said = " ".join(source.notes + source.pooling)
    assert "Of LlavaForConditionalGeneration (as LlavaModel) the side of images alone is loaded" in said
    assert "mean over 16 tokens" in said


def test_a_model_that_needs_more_than_images_is_refused_with_what_it_needs(tmp_path):
    options = {
        **VIT,
        "image_size": [64, 32],
        "pretrain_image_size": 32,
        "decoder_hidden_size": 8,
        "intermediate_hidden_state_indices": [1],
        "merge_index": 0,
        "mlp_ratio": 2,
    }
    saved(tmp_path, "SegGptForImageSegmentation", "SegGptConfig", options)
    with pytest.raises(unweave.errors.ModelError, match=r"(?s)prompt_pixel_values.*Model\.from_module"):
        load_model(f"hf/{tmp_path}")


def test_a_model_that_has_not_all_of_its_side_of_images_gives_its_tower(tmp_path):
    module = saved(tmp_path, "BlipForConditionalGeneration", "BlipConfig", {"vision_config": VIT, "text_config": TEXT})
    model = load_model(f"hf/{tmp_path}")
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), module.vision_model(images).pooler_output)
    assert any("the image tower alone" in note for note in model.notes)


def test_a_side_of_images_that_reads_text_gives_its_tower(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    former = {**sizes, "intermediate_size": 32, "encoder_hidden_size": 32}
    text = {"model_type": "opt", **sizes, "ffn_dim": 32, "word_embed_proj_dim": 32}
    options = {"vision_config": VIT, "qformer_config": former, "text_config": text, "num_query_tokens": 4}
    module = saved(tmp_path, "InstructBlipForConditionalGeneration", "InstructBlipConfig", options)
    model = load_model(f"hf/{tmp_path}")
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), module.vision_model(images).pooler_output)


def test_clips_meet_texts_as_images_do(tmp_path):
    mit = {"mit_hidden_size": 32, "mit_intermediate_size": 32, "mit_num_hidden_layers": 1, "mit_num_attention_heads": 2}
    options = {"vision_config": {**VIT, "num_frames": 2, **mit}, "text_config": TEXT, "projection_dim": 32}
    module = saved(tmp_path, "XCLIPModel", "XCLIPConfig", options)
    model = load_model(f"hf/{tmp_path}")
    clips = model.example(2)
    assert clips.shape == (2, 2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(clips), module.get_video_features(clips).pooler_output)


def test_a_vector_is_not_said_to_be_a_mean(tmp_path):
    saved(tmp_path, "SiglipModel", "SiglipConfig", {"vision_config": VIT, "text_config": TEXT})
    assert not any("mean" in note for note in load_model(f"hf/{tmp_path}").notes)


@pytest.mark.parametrize(
    ("name", "config", "prefix"), [("VideoMAEModel", "VideoMAEConfig", 0), ("VivitModel", "VivitConfig", 1)]
)
def test_tokens_of_clips_have_time_row_and_column(name, config, prefix, tmp_path):
    tubelet = 2 if name.startswith("VideoMAE") else [2, 8, 8]
    saved(tmp_path, name, config, {**VIT, "num_frames": 4, "tubelet_size": tubelet})
    plan = unweave.plan(load_model(f"hf/{tmp_path}"), level="token")
    first = next(part.path for part in plan.components if part.head == 0)
    tokens = [part for part in plan.components if part.head == 0 and part.path == first]
    places = [(part.time, part.row, part.column) for part in tokens]
    assert places[:prefix] == [(None, None, None)] * prefix
    assert places[prefix:] == [(time, row, column) for time in range(2) for row in range(4) for column in range(4)]
    assert tokens[-1].whole.time is None


def test_what_is_said_of_the_representation_holds_of_the_one_that_is_asked_for(tmp_path):
    saved(tmp_path, *FAMILIES["LLaVA"])
    projected, tower = load_model(f"hf/{tmp_path}"), load_model(f"hf/{tmp_path}", representation="last_hidden_state")
    said = [[note for note in model.notes if "representation" in note] for model in (projected, tower)]
    assert said[0] == ["The representation is the mean over 16 tokens."]
    assert len(said[1]) == 1 and "`last_hidden_state`" in said[1][0]
    coverage = unweave.plan(tower).coverage
    assert coverage.resolved == coverage.attention_layers == 2
