"""Ids as timm and OpenCLIP write them, on folders of random weights; and sizes that are no squares."""

import json

import pytest
import timm
import torch
from PIL import Image

import unweave
from unweave import Loading
from unweave.errors import ArgumentError, ModelError
from unweave.files.fields import record
from unweave.models import load_model
from unweave.models.library import Request, nearest
from unweave.models.weights import randomise

VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 1, "layers": 1}
CLIP = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
POOLED = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
DECODER = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 1, "layers": 1}
COCA = {
    "embed_dim": 24,
    "vision_cfg": POOLED,
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": DECODER,
    "custom_text": True,
}
OF_HUB = {**CLIP, "text_cfg": {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}}
GREY = {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("unweave.hub.reachable", lambda url: False)


# --- timm


@pytest.fixture
def in_timm(tmp_path):
    module = randomise(timm.create_model("test_vit", num_classes=7, img_size=96)).eval()
    timm.models.save_for_hf(module, tmp_path / "timm", model_args={"img_size": 96, "num_classes": 7})
    return tmp_path / "timm", module


def test_a_folder_of_timm_has_its_classes_and_its_size(in_timm):
    folder, module = in_timm
    model = load_model(f"timm/local-dir:{folder}")
    assert model.input_size == (3, 96, 96) and model.preprocess(Image.new("RGB", (90, 70))).shape == (3, 96, 96)
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(model.readout(images)), module(images))
    drawn = load_model(f"timm/local-dir:{folder}", random_weights=True)
    assert drawn.module.num_classes == 7 and drawn.weights_hash != model.weights_hash


def test_transformers_reads_the_folder_that_timm_wrote_at_the_size_it_was_built_for(in_timm):
    pytest.importorskip("transformers")
    folder, module = in_timm
    model = load_model(f"hf/{folder}")
    assert model.input_size == (3, 96, 96) and model.preprocess(Image.new("RGB", (90, 70))).shape == (3, 96, 96)
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(model.readout(images)), module(images))


def test_a_folder_of_timm_whose_weights_are_of_another_size_says_both(in_timm):
    pytest.importorskip("transformers")
    folder, _ = in_timm
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["img_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"pos_embed \(\[1, 37, 64\] in the file, \[1, 17, 64\] here\)"):
        load_model(f"hf/{folder}")


@pytest.mark.parametrize(
    ("id", "hint"),
    [
        ("facebook/dinov2-base", "`hf/facebook/dinov2-base`"),
        ("hf-hub:timm/some", "`timm/hf-hub:timm/some` or `open_clip/hf-hub:timm/some`"),
        ("tim/resnet18", "`timm/resnet18`"),
        ("resnet18", "`timm/resnet18`"),
        ("", "timm/vit_base_patch16_224.dino"),
    ],
)
def test_an_id_without_a_library_is_told_which(id, hint):
    with pytest.raises(ModelError, match=f"an id such as {hint}$"):
        load_model(id)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf-hub:ORG/NAME", "(?s)hub cannot be reached.*timm/local-dir:FOLDER"),
        ("hf_hub:ORG/NAME", "(?s)hub cannot be reached.*timm/local-dir:FOLDER"),
        ("local-dir:/no/such/folder", "no folder '/no/such/folder'"),
        ("ORG/NAME", "(?s)try: `timm/hf-hub:ORG/NAME`"),
        ("hub:ORG/NAME", "(?s)try: `timm/hf-hub:ORG/NAME`"),
        ("hf-hub:", "(?s)try: `timm/hf-hub:ORG/NAME`"),
    ],
)
@pytest.mark.parametrize("drawn", [False, True])
def test_what_timm_cannot_load_says_what_to_type(name, says, drawn):
    with pytest.raises(ModelError, match=says):
        load_model(f"timm/{name}", random_weights=drawn)


def test_a_folder_that_is_none_of_timm_says_so(tmp_path, in_timm):
    with pytest.raises(ModelError, match=r"(?s)Config file not found.*save_for_hf"):
        load_model(f"timm/local-dir:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "model_args": {}}))
    with pytest.raises(ModelError, match=r"(?s)unexpected keyword argument.*save_for_hf"):
        load_model(f"timm/local-dir:{tmp_path}")
    next(path for path in in_timm[0].iterdir() if path.suffix != ".json").unlink()
    with pytest.raises(ModelError, match=r"(?s)No suitable checkpoints.*save_for_hf"):
        load_model(f"timm/local-dir:{in_timm[0]}")


# --- OpenCLIP


def in_open_clip(folder, config, preprocess=GREY, state=None):
    open_clip = pytest.importorskip("open_clip")
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    module = None
    if state is None:
        module = randomise(open_clip.create_model(f"local-dir:{folder}", load_weights=False), 3).eval()
        state = module.state_dict()
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    return f"open_clip/local-dir:{folder}", module


def embeds(model, module):
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), module.encode_image(images, normalize=False))


def test_a_folder_of_open_clip_has_its_own_preprocessing(tmp_path):
    id, module = in_open_clip(tmp_path / "clip", CLIP)
    model = load_model(id)
    embeds(model, module)
    assert model.preprocessing["std"] == GREY["std"]
    wide = load_model(id, image_size=(32, 48))
    assert wide.input_size == (3, 32, 48) and wide.readout(wide.example()).shape == (2, 24)
    with pytest.raises(ModelError, match=r"(?s)2 x 8 patches.*another number of patches"):
        load_model(id, image_size=(16, 64))
    assert load_model(id, image_size=(16, 64), random_weights=True).input_size == (3, 16, 64)


def test_coca_is_read_at_what_encode_image_takes(tmp_path):
    id, module = in_open_clip(tmp_path / "coca", COCA)
    model = load_model(id)
    embeds(model, module)
    assert unweave.plan(model).components


def test_a_text_tower_that_lies_on_the_hub_is_not_needed(tmp_path):
    _, module = in_open_clip(tmp_path / "clip", CLIP)
    state = {name: own for name, own in module.state_dict().items() if name.startswith("visual.")}
    id, _ = in_open_clip(tmp_path / "roberta", OF_HUB, state={**state, "text.transformer.weight": torch.ones(3)})
    model = load_model(id)
    embeds(model, module)
    assert any("roberta-base" in note for note in model.notes)
    embeds(load_model(id, checkpoint=tmp_path / "roberta" / "open_clip_pytorch_model.bin"), module)
    assert load_model(id, random_weights=True).readout(model.example()).shape == (2, 24)
    with pytest.raises(ModelError, match="no text tower"):
        unweave.text_space(id, random_weights=True)


def test_the_image_tower_alone_is_enough_and_has_no_texts(tmp_path):
    id, module = in_open_clip(tmp_path / "clip", CLIP)
    for state in (module.visual.state_dict(), {f"visual.{k}": v for k, v in module.visual.state_dict().items()}):
        torch.save(state, tmp_path / "visual.pt")
        model = load_model(id, checkpoint=tmp_path / "visual.pt")
        embeds(model, module)
        assert any("image tower alone" in note for note in model.notes)
        with pytest.raises(ModelError, match="no text tower"):
            unweave.text_space(id, checkpoint=tmp_path / "visual.pt")


def test_a_training_file_of_open_clip_loads_at_another_size(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    id, module = in_open_clip(tmp_path / "clip", CLIP)
    state = {f"module.{name}": own for name, own in module.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state, "optimizer": {}}, tmp_path / "epoch_1.pt")
    embeds(load_model(id, checkpoint=tmp_path / "epoch_1.pt"), module)
    model = load_model(id, checkpoint=tmp_path / "epoch_1.pt", image_size=64)
    wanted = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}", force_image_size=64).eval()
    embeds(model, wanted)
    assert any("resampled" in note for note in model.notes)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf-hub:ORG/NAME", "(?s)hub cannot be reached.*open_clip/local-dir:FOLDER"),
        ("local-dir:/no/such/folder", "no folder '/no/such/folder'"),
        ("robert-ViT-B-32", "(?s)the nearest: roberta-ViT-B-32,"),
    ],
)
def test_what_open_clip_cannot_load_says_what_to_type(name, says):
    pytest.importorskip("open_clip")
    with pytest.raises(ModelError, match=says):
        load_model(f"open_clip/{name}", random_weights=True)


# --- names and sizes


def test_the_nearest_names_are_nearest_by_their_letters():
    names = ["a", "zebra", "vit_base", "vit_large", "ViT-B-16", "my_vit_bas_x"]
    assert nearest("vit_bas", names, 2) == ["vit_base", "my_vit_bas_x"]  # those that hold it come first
    assert nearest("vitlarge", names, 1) == ["vit_large"]
    assert nearest("vit-b16", names, 1) == ["ViT-B-16"]
    assert nearest("qqqqqq", names, 1)


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_tokens_are_pooled_as_asked(pool):
    model = load_model("timm/test_vit", random_weights=True, image_size=(64, 96), pool=pool)
    images = model.example(2)
    with torch.no_grad():
        tokens = model.module.forward_features(images)
        wanted = tokens[:, 1:].mean(1) if pool == "mean" else tokens[:, 0]
        torch.testing.assert_close(model.readout(images), wanted)
    assert model.classifier is None and any("token" in note for note in model.notes)


def test_a_size_may_be_a_rectangle_everywhere():
    loading = Loading("timm/test_vit", random_weights=True, image_size=(64, 96), pool="mean", representation=0)
    assert loading.image_size == (64, 96)
    assert "image_size=(64, 96)" in loading.as_code()
    assert loading.as_options("model")[1:] == [
        "--random-weights", "--image-size", "64x96", "--representation", "0", "--pool", "mean", "--seed", "0",
    ]  # fmt: skip
    assert Loading("timm/test_vit", image_size=(64, 64)).image_size == 64
    card = json.loads(json.dumps(vars(loading)))
    assert record(Loading, card) == loading
    model = load_model("timm/test_vit", random_weights=True, image_size=(64, 96))
    assert model.preprocess(Image.new("RGB", (300, 100))).shape == (3, 64, 96)
    again = eval(model.as_code(), {"unweave": unweave})
    assert again.weights_hash == model.weights_hash and again.input_size == model.input_size


@pytest.mark.parametrize("size", [(64,), (64, 96, 3), "64x96", (64.0, 96.0)])
def test_what_is_no_size_in_a_file_is_refused(size):
    with pytest.raises(ValueError, match="image_size"):
        record(Loading, {"id": "timm/test_vit", "image_size": list(size) if isinstance(size, tuple) else size})


@pytest.mark.parametrize("size", [0, 5000, (64, 0), True])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ArgumentError, match=r"try: "):
        Loading("timm/test_vit", image_size=size)


def test_what_takes_squares_alone_says_so():
    with pytest.raises(ModelError, match=r"(?s)64 x 96 pixels.*square.*one number"):
        load_model("torchvision/vit_b_32", random_weights=True, image_size=(64, 96))
    assert load_model("torchvision/resnet18", random_weights=True, image_size=(64, 96)).input_size == (3, 64, 96)


def test_random_weights_are_of_the_size_that_the_published_ones_are_of():
    from unweave.models import torchvision

    with torch.device("meta"):  # it is large
        source = torchvision.load(Request("torchvision/vit_h_14", "vit_h_14", False, None))
    assert source.input_size == (3, 518, 518)
    assert source.module.image_size == 518
