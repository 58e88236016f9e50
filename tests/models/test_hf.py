"""transformers: output objects are recognised by their fields, folders load as they were saved."""

import pytest
import torch
from PIL import Image

from hf_folders import SWIN, VIT
from unweave.errors import ModelError
from unweave.models import Model, load_model
from unweave.models.weights import randomise

transformers = pytest.importorskip("transformers")


def build(name, config, **options):
    torch.manual_seed(0)
    return randomise(getattr(transformers, name)(getattr(transformers, config)(**options))).eval()


def first_token(output):
    return output.last_hidden_state[:, 0]


@pytest.mark.parametrize(
    ("name", "config", "options", "representation"),
    [
        ("Dinov2Model", "Dinov2Config", VIT, first_token),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VIT, first_token),
        ("ViTModel", "ViTConfig", VIT, first_token),
        ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VIT, "projection_dim": 24}, lambda o: o.image_embeds),
        ("CLIPVisionModel", "CLIPVisionConfig", VIT, lambda output: output.pooler_output),
        ("SiglipVisionModel", "SiglipVisionConfig", VIT, lambda output: output.pooler_output),
        ("SwinModel", "SwinConfig", SWIN, lambda output: output.pooler_output),
    ],
)
def test_the_representation_is_recognised_by_the_fields_of_the_output(name, config, options, representation):
    module = build(name, config, **options)
    model = Model.from_module(module, input_size=(3, 32, 32))
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), representation(module(images)))
    assert model.classifier is None


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("ViTForImageClassification", "ViTConfig", VIT),
        ("Dinov2ForImageClassification", "Dinov2Config", VIT),
        ("SwinForImageClassification", "SwinConfig", SWIN),
    ],
)
def test_classifiers_are_split_from_what_they_classify(name, config, options):
    module = build(name, config, num_labels=5, **options)
    model = Model.from_module(module, input_size=(3, 32, 32))
    images = model.example(2)
    with torch.no_grad():
        logits = model.classifier(model.readout(images))
        torch.testing.assert_close(logits, module(images).logits, rtol=1e-5, atol=1e-5)


def test_a_saved_folder_loads_with_its_own_preprocessing(tmp_path):
    module = build("Dinov2Model", "Dinov2Config", **VIT)
    module.save_pretrained(tmp_path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(tmp_path)
    model = load_model(f"hf/{tmp_path}")
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), module(images).pooler_output)
    assert model.input_size == (3, 32, 32)
    assert model.preprocessing["resize"] == 40
    assert model.preprocessing["crop"] == [32, 32]
    assert model.preprocessing["mean"] == [0.5] * 3
    white = model.preprocess(Image.new("RGB", (50, 70), "white"))
    torch.testing.assert_close(white, torch.full((3, 32, 32), 2.0))


def test_a_folder_without_preprocessing_gets_the_default(tmp_path):
    build("ViTModel", "ViTConfig", **VIT).save_pretrained(tmp_path)
    model = load_model(f"hf/{tmp_path}", random_weights=True, seed=3)
    assert model.preprocessing["interpolation"] == "bicubic"
    assert model.preprocess(Image.new("RGB", (50, 70))).shape == (3, 32, 32)
    larger = load_model(f"hf/{tmp_path}", random_weights=True, image_size=48)
    assert larger.input_size == (3, 48, 48)
    resampled = load_model(f"hf/{tmp_path}", image_size=48)
    images = resampled.example(2)
    with torch.no_grad():
        expected = resampled.module(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        torch.testing.assert_close(resampled.readout(images), expected)


def test_of_a_model_of_images_and_text_the_image_tower_is_loaded(tmp_path):
    vision = {**VIT, "projection_dim": 24}
    text = {**VIT, "vocab_size": 50, "max_position_embeddings": 8}
    del text["image_size"], text["patch_size"]
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    module = randomise(transformers.CLIPModel(config)).eval()
    module.save_pretrained(tmp_path)
    model = load_model(f"hf/{tmp_path}")
    assert not any(name.startswith("text_model") for name, _ in model.module.named_parameters())
    assert any("side of images alone" in note for note in model.notes)
    images = model.example(2)
    with torch.no_grad():
        pooled = module.vision_model(pixel_values=images).pooler_output
        torch.testing.assert_close(model.readout(images), module.visual_projection(pooled))


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"(?s)transformers.*config\.json"):
        load_model(f"hf/{tmp_path}")
