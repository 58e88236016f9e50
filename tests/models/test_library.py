"""Ids: every library loads by its own names, and every way of getting one wrong says what to type instead."""

import json
import sys
import time

import pytest
import torch
from PIL import Image

import unweave
from unweave import Loading, hub
from unweave.errors import ModelError
from unweave.models import Model, available, load_model, opened


@pytest.mark.parametrize(
    ("id", "says"),
    [
        ("tim/vit_base_patch16_224", "(?s)does not begin with a library.*`timm/vit_base_patch16_224`"),
        ("vit_base_patch16_224", "(?s)does not begin with a library.*`timm/vit_base_patch16_224`"),
        ("", "does not begin with a library"),
        ("timm/", "names no model"),
        ("timm/vit_bas_patch16_224", "(?s)no timm model.*nearest.*vit_base_patch16_224"),
        ("timm/vit_base_patch16_224.dinoo", "(?s)no pretrained tag.*nearest.*dino"),
        ("torchvision/swinb", "(?s)no torchvision.*nearest.*swin_b"),
        ("torchvision/fasterrcnn_resnet50_fpn", "no torchvision classification model"),
        ("open_clip/ViT-B16/openai", "(?s)no OpenCLIP architecture.*nearest.*ViT-B-16"),
        ("open_clip/ViT-B-16/laion2b_s34b_b88", "(?s)no tag of ViT-B-16.*nearest.*laion2b_s34b_b88k"),
        ("open_clip/ViT-B-16", "(?s)names no pretrained weights.*open_clip/ViT-B-16/openai"),
    ],
)
def test_a_wrong_id_is_answered_with_the_nearest_right_ones(id, says, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda url: False)
    with pytest.raises(ModelError, match=says):
        load_model(id)


@pytest.mark.parametrize(
    ("id", "package", "says"),
    [
        ("open_clip/ViT-B-16/openai", "open_clip", r"(?s)open_clip_torch is not installed.*unweave\[open-clip\]"),
        ("hf/facebook/dinov2-base", "transformers", r"(?s)transformers is not installed.*unweave\[hf\]"),
    ],
)
def test_a_library_that_is_not_installed_says_how_to_install_it(id, package, says, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=says):
        load_model(id)
    (entry,) = [entry for entry in available() if entry["prefix"] == id.split("/")[0]]
    assert entry["version"] is None


@pytest.mark.parametrize(
    "id",
    [
        "timm/vit_tiny_patch16_224.augreg_in21k",
        "open_clip/RN50/openai",
        "open_clip/ViT-B-32/laion2b_s34b_b79k",
        "hf/facebook/dinov2-base",
        "torchvision/squeezenet1_1",
    ],
)
@pytest.mark.parametrize("way", ["told", "found"])
def test_a_hub_out_of_reach_fails_at_once_and_offers_a_way_on(id, way, monkeypatch, tmp_path):
    from huggingface_hub import constants

    if way == "told":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(hub, "reachable", lambda url: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    before = constants.HF_HUB_OFFLINE
    started = time.monotonic()
    cure = "config.json" if id.startswith("hf/") else "--checkpoint FILE.*--random-weights"
    with pytest.raises(ModelError, match=f"(?s)cannot be reached.*{id}.*{cure}"):
        load_model(id)
    assert time.monotonic() - started < 20
    assert constants.HF_HUB_OFFLINE is before


def test_nobody_answers_at_a_closed_port():
    assert not hub.reachable("http://127.0.0.1:9")


def test_mistakes_of_our_own_are_not_blamed_on_the_hub():
    with pytest.raises(ZeroDivisionError), hub.fetching("timm/x", allowed=False):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("id", "size", "dim"),
    [("timm/test_vit", 32, 64), ("timm/test_resnet", 64, None), ("torchvision/resnet18", 64, 512)],
)
def test_an_image_size_is_passed_on_where_the_model_takes_it(id, size, dim):
    model = load_model(id, random_weights=True, image_size=size)
    assert model.input_size == (3, size, size)
    assert model.preprocess(Image.new("RGB", (90, 70))).shape == (3, size, size)
    assert dim is None or model.readout(model.example()).shape == (2, dim)


@pytest.mark.parametrize("id", ["timm/test_vit", "torchvision/vit_b_32"])
def test_an_image_size_that_does_not_fit_is_refused(id):
    with pytest.raises(ModelError, match=r"(?s)images of .*33.*size"):
        load_model(id, random_weights=True, image_size=33)


def test_an_open_clip_model_is_read_at_encode_image(tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    tower = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    (tmp_path / "tiny.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": tower, "text_cfg": text}))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path / "tiny.json")
    model = load_model("open_clip/tiny", random_weights=True, image_size=64)
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), model.module.encode_image(images))
    assert model.readout.state_dict().keys() == model.module.visual.state_dict().keys()
    assert model.classifier is None
    assert model.preprocess(Image.new("RGB", (90, 70))).shape == model.input_size
    assert model.preprocessing["crop"] == [64, 64]


def test_what_is_known_of_a_model_is_ready_for_json():
    model = load_model("timm/test_vit", random_weights=True)
    described = json.loads(json.dumps(model.preprocessing))
    assert described["crop"] == [160, 160]
    assert described["interpolation"] == "bicubic"
    assert repr(model).startswith("Model('timm/test_vit', VisionTransformer, 3 x 160 x 160")
    assert not model.module.training


def test_dtype_and_device_are_what_was_asked_for():
    model = opened(Loading("timm/test_vit", random_weights=True), dtype="float64")
    assert model.dtype == torch.float64
    assert model.device.type == "cpu"
    assert model.readout(model.example()).dtype == torch.float64
    half = opened(Loading("timm/test_vit", random_weights=True), dtype="bfloat16")
    assert half.classifier is not None


def test_the_default_preprocessing_resizes_crops_and_normalises():
    model = Model.from_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4)), input_size=(3, 4, 4))
    white = model.preprocess(Image.new("RGB", (8, 12), "white"))
    mean, std = (torch.tensor(model.preprocessing[key]) for key in ("mean", "std"))
    torch.testing.assert_close(white, ((1 - mean) / std)[:, None, None].expand(3, 4, 4))
    own = Model.from_module(model.module, input_size=(3, 4, 4), preprocess=lambda image: torch.zeros(3, 4, 4))
    assert "lambda" in own.preprocessing["custom"]


def test_the_libraries_are_listed_with_what_their_ids_mean():
    entries = {entry["prefix"]: entry for entry in available()}
    assert set(entries) == {"timm", "open_clip", "hf", "torchvision", "pocket"}
    assert entries["timm"]["version"]
    assert all(entry["example"].startswith(f"{prefix}/") for prefix, entry in entries.items())


def test_the_package_hands_out_its_names_lazily():
    assert unweave.load_model is load_model
    assert unweave.Model is Model
    assert set(unweave.__all__) <= set(dir(unweave))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = unweave.no_such_name
