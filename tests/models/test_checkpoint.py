"""Checkpoints as trainers write them: the weights are found, the head is built, and what was done is said."""

import argparse
import collections
import os
import pathlib
import types
from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import unweave
from unweave import Loading, Model
from unweave.errors import ArgumentError, ModelError
from unweave.models import load_model
from unweave.models import timm as timm_models
from unweave.models.checkpoint import load_checkpoint
from unweave.models.weights import randomise

ID = "timm/test_vit"


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(1)
    return randomise(timm.create_model("test_vit"), 4).eval()


@pytest.fixture(scope="module")
def state(source):
    return dict(source.state_dict())


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def backbone(state):
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def other(state):
    """Weights as another step of the training has them."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def saved(content, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def same(model: Model, source: nn.Module) -> None:
    """It computes the representation, and where it has a classifier the logits, of the source."""
    images = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = source.forward_head(source.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.readout(images), features)
        if model.classifier is not None:
            torch.testing.assert_close(model.classifier(model.readout(images)), source(images))


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("module.", False),
        ("_orig_mod.", True),
        ("_orig_mod.module.", False),
        ("module._orig_mod.", True),
        ("module._orig_mod.module._orig_mod.", False),
        ("model.", True),
        ("net.", True),
        ("backbone.", False),
        ("module.encoder.backbone.vit.", True),
        ("0.", False),
    ],
)
def test_any_prefix_is_taken_off(tmp_path, source, state, prefix, beside):
    extra = {"criterion.weight": torch.ones(5), "criterion.head.bias": torch.ones(3)} if beside else {}
    model = load_model(ID, checkpoint=saved({**under(prefix, state), **extra}, tmp_path / "weights.safetensors"))
    same(model, source)
    assert model.classifier is not None
    # what torch itself puts into names is no prefix
    kept = prefix.replace("_orig_mod.", "").rstrip(".")
    assert not kept or any(f"`{kept}`" in note for note in model.notes)
    assert beside == any("criterion (2 tensors)" in note for note in model.notes)
    assert "criterion" in repr(model) or not beside


def test_what_torch_puts_into_the_middle_of_names_is_taken_out(tmp_path, source, state):
    wrapped = {
        name.replace("blocks.0.", "blocks.0._orig_mod._fsdp_wrapped_module."): own for name, own in state.items()
    }
    same(load_model(ID, checkpoint=saved(wrapped, tmp_path / "weights.pth")), source)


@pytest.mark.parametrize(
    ("table", "prefix"),
    [
        ("state_dict", "model."),
        ("model", ""),
        ("model_state_dict", "net."),
        ("weights", ""),
        ("run.state_dict", ""),
    ],
)
def test_tables_are_found_in_tables(tmp_path, source, state, table, prefix):
    content = under(prefix, state)
    for name in reversed(table.split(".")):
        content = {"epoch": 3, name: content}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    model = load_model(ID, checkpoint=saved({"optimizer": optimizer, **content}, tmp_path / "run.ckpt"))
    same(model, source)
    assert any(f"`{f'{table}.{prefix}'.rstrip('.')}`" in note for note in model.notes)
    assert not any("optimizer" in note for note in model.notes)


def test_a_state_dict_may_lie_in_a_list_and_hold_other_things_as_well(tmp_path, source, state):
    content = collections.OrderedDict(state) | {"epoch": 7, "name": "run"}
    same(load_model(ID, checkpoint=saved([content, {"lr": 0.1}], tmp_path / "weights.pth")), source)


@pytest.mark.parametrize(
    ("plain", "averaged", "flat", "first"),
    [
        ("state_dict", "state_dict_ema", False, 0),
        ("model", "model_ema", False, 1),
        ("model", "ema", True, 1),
        ("net", "ema_state_dict", True, 0),
        ("model", "swa_model", False, 0),
        ("teacher", "student", False, 1),
        ("base_encoder", "momentum_encoder", True, 0),
    ],
)
def test_of_several_the_plain_ones_are_taken_and_others_by_name(tmp_path, source, state, plain, averaged, flat, first):
    kinds = [(plain, state), (averaged, other(state))]
    tables = {name: under("module.backbone.", own) for name, own in (kinds[first], kinds[1 - first])}
    content = {k: v for name, own in tables.items() for k, v in under(f"{name}.", own).items()} if flat else tables
    path = saved(content, tmp_path / "weights.pth")
    model = load_model(ID, checkpoint=path)
    same(model, source)
    (note,) = [note for note in model.notes if f"under `{plain}.module.backbone`" in note]
    assert f"`{averaged}.module.backbone`" in note
    asked = load_model(Loading(ID, path, checkpoint_key=averaged))
    assert torch.equal(asked.module.pos_embed, other(state)["pos_embed"])
    assert any(f"`{averaged}.module.backbone`" in note for note in asked.notes)
    again = eval(asked.as_code(), {"unweave": unweave})
    assert again.loading == asked.loading and again.weights_hash == asked.weights_hash
    with pytest.raises(ArgumentError, match=f"(?s)called 'teachers'.*{plain}.module.backbone"):
        load_model(Loading(ID, path, checkpoint_key="teachers"))


def test_the_head_of_self_supervised_training_is_left_out(tmp_path, source, state):
    head = {"mlp.0.weight": torch.ones(8, 64), "last_layer.weight_g": torch.ones(9, 1)}
    teacher = under("backbone.", backbone(state)) | under("head.", head)
    content = {
        "student": under("module.", other(teacher)),
        "teacher": teacher,
        "dino_loss": {"center": torch.ones(1, 9)},
    }
    model = load_model(ID, checkpoint=saved(content, tmp_path / "checkpoint.pth"))
    same(model, source)
    assert model.classifier is None
    told = "; ".join(model.notes)
    assert "`teacher.backbone`" in told and "`student.module.backbone`" in told
    assert "head (2 tensors)" in told and "no classifier" in told


@pytest.mark.parametrize(
    ("id", "classes"), [(ID, 1), (ID, 2000), ("timm/test_resnet", 10), ("torchvision/resnet18", 10)]
)
def test_the_head_has_as_many_classes_as_the_file(tmp_path, id, classes):
    if id.startswith("timm"):
        module = timm.create_model(id.removeprefix("timm/"), num_classes=classes)
    else:
        from torchvision.models import resnet18

        module = resnet18(num_classes=classes)
    randomise(module).eval()
    path = saved(under("model.", module.state_dict()), tmp_path / "weights.safetensors")
    model = load_model(Loading(id, path, image_size=64))
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(model.readout(images)), module(images))
    assert any(f"{classes:,} classes" in note for note in model.notes)


def test_a_head_is_put_where_the_id_has_none(tmp_path):
    build = partial(timm.create_model, "vit_small_patch14_dinov2", img_size=28, depth=1, embed_dim=24, num_heads=2)
    module, headless = build(num_classes=7), build()
    assert isinstance(headless.head, nn.Identity)
    path = saved(module.state_dict(), tmp_path / "w.safetensors")
    loaded = load_checkpoint(headless, path, convert=timm_models.convert)
    torch.testing.assert_close(headless.state_dict(), module.state_dict())
    assert any("7 classes" in note for note in loaded.notes)


def test_distilled_heads_are_both_built(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    module = randomise(timm.create_model(name, num_classes=7, img_size=32)).eval()
    model = load_model(f"timm/{name}", checkpoint=saved(module.state_dict(), tmp_path / "w.safetensors"), image_size=32)
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), module(images))


def test_without_a_head_there_is_no_classifier(tmp_path, source, state):
    model = load_model(ID, checkpoint=saved(backbone(state), tmp_path / "weights.safetensors"))
    same(model, source)
    assert model.classifier is None and any("no classifier" in note for note in model.notes)


def test_a_decoder_and_a_mask_are_left_out(tmp_path, source, state):
    extra = {
        "mask_token": torch.zeros(1, 1, 64),
        "decoder_embed.weight": torch.zeros(8, 64),
        "logit_scale": torch.ones(()),
    }
    model = load_model(ID, checkpoint=saved({"model": {**backbone(state), **extra}}, tmp_path / "weights.pth"))
    same(model, source)
    assert any("decoder_embed" in note for note in model.notes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("norm.weight"), "(?s)1 missing: norm.weight.*try: save all"),
        (lambda state: state.update({"blocks.9.norm1.weight": torch.ones(64)}), "1 unexpected: blocks.9.norm1.weight"),
        (lambda state: state.update({"blocks.0.ls9.gamma": torch.ones(64)}), "1 unexpected: blocks.0.ls9.gamma"),
        (lambda state: state.update({"fc_norm.weight": torch.ones(64)}), "1 unexpected: fc_norm.weight"),
        (lambda state: state.update({"reg_token": torch.ones(1, 4, 64)}), "1 unexpected: reg_token"),
        (
            lambda state: state.update({"blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 64)}),
            "(?s)1 unexpected: blocks.0.attn.qkv.lora_A.weight.*merge the adapters",
        ),
        (
            lambda state: state.update({"norm.weight": torch.ones(32)}),
            r"(?s)1 differently shaped: norm.weight \[32\] for \[64\].*model id",
        ),
        (
            lambda state: state.update({"patch_embed.proj.weight": torch.ones(64, 3, 8, 8)}),
            r"1 differently shaped: patch_embed.proj.weight \[64, 3, 8, 8\] for \[64, 3, 16, 16\]",
        ),
    ],
)
def test_what_differs_below_the_representation_is_an_error(tmp_path, state, change, says):
    changed = dict(state)
    change(changed)
    path = saved(under("model.backbone.", changed), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=f"{says}"):
        load_model(ID, checkpoint=path)


def test_another_model_is_refused(tmp_path):
    path = saved(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"(?s)(missing|None of the file's tensors).*try: "):
        load_model(ID, checkpoint=path)


# --- another image size


@pytest.mark.parametrize(("of_file", "size"), [(160, 224), (224, None), (160, (64, 96))])
def test_positions_are_resampled_as_timm_does(tmp_path, of_file, size):
    module = randomise(timm.create_model("test_vit", img_size=of_file))
    path = saved(under("model.", module.state_dict()), tmp_path / "weights.safetensors")
    model = load_model(ID, checkpoint=path, image_size=size)
    (note,) = [note for note in model.notes if "resampled" in note]
    assert "pos_embed" in note
    overlay = {"state_dict": dict(module.state_dict()), "num_classes": module.num_classes}
    options = {} if size is None else {"img_size": size}
    wanted = timm.create_model("test_vit", pretrained=True, pretrained_cfg_overlay=overlay, **options)
    torch.testing.assert_close(model.module.state_dict(), wanted.state_dict())
    assert model.input_size[1:] == (size if isinstance(size, tuple) else (size or 160,) * 2)


@pytest.mark.parametrize(
    ("name", "table"),
    [("beit_base_patch16_224", "relative_position_bias_table"), ("eva02_tiny_patch14_224", "pos_embed")],
)
def test_tables_of_positions_are_resampled(tmp_path, name, table):
    build = partial(timm.create_model, name, depth=2, embed_dim=48, num_heads=3)
    module, larger = build(img_size=64 if "16" in name else 56), build(img_size=96 if "16" in name else 84)
    loaded = load_checkpoint(larger, saved(module.state_dict(), tmp_path / "w.pth"), convert=timm_models.convert)
    assert any("resampled" in note and table in note for note in loaded.notes) and not loaded.missing


def test_as_many_patches_in_another_shape_are_taken_as_they_are_and_said(tmp_path):
    module = randomise(timm.create_model("test_vit", img_size=(64, 256)))
    path = saved(module.state_dict(), tmp_path / "weights.safetensors")
    model = load_model(ID, checkpoint=path, image_size=(64, 256))
    torch.testing.assert_close(model.module.state_dict(), module.state_dict())
    assert any("64 x 256 pixels" in note for note in model.notes)


def test_positions_are_resampled_as_torchvision_does(tmp_path):
    from torchvision.models import vit_b_32
    from torchvision.models.vision_transformer import interpolate_embeddings

    module = randomise(vit_b_32(image_size=64))
    path = saved(module.state_dict(), tmp_path / "weights.safetensors")
    model = load_model("torchvision/vit_b_32", checkpoint=path, image_size=96)
    wanted = interpolate_embeddings(96, 32, module.state_dict())["encoder.pos_embedding"]
    torch.testing.assert_close(model.module.encoder.pos_embedding.data, wanted)
    assert any("resampled" in note for note in model.notes)


@pytest.mark.parametrize(
    ("name", "config"),
    [("ViTForImageClassification", "ViTConfig"), ("CLIPVisionModelWithProjection", "CLIPVisionConfig")],
)
def test_checkpoints_fit_models_of_transformers(tmp_path, name, config):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    build = getattr(transformers, name)
    options = partial(getattr(transformers, config), **sizes, image_size=32, patch_size=8)
    build(options()).save_pretrained(tmp_path / "folder")
    module = randomise(build(options(num_labels=9))).eval()
    path = saved({"state_dict": under("model.net.", module.state_dict())}, tmp_path / "last.ckpt")
    for size in (32, 48):
        model = load_model(f"hf/{tmp_path / 'folder'}", checkpoint=path, image_size=size)
        images = model.example(2)
        with torch.no_grad():
            given = model.readout(images)
            given = given if model.classifier is None else model.classifier(given)
            output = module(images, interpolate_pos_encoding=True)
            torch.testing.assert_close(given, output.logits if "logits" in output else output.image_embeds)
        assert (size == 48) == any("resampled" in note for note in model.notes)


# --- what lies beside the weights


def test_what_trainers_keep_beside_weights_is_read(tmp_path, source, state):
    settings = argparse.Namespace(lr=0.1, output=pathlib.Path("runs"), more=types.SimpleNamespace(amp=True))
    numbers = {
        "metric": np.float64(3),
        "best": np.float32(2),
        "step": np.int64(4),
        "done": np.bool_(True),
        "curve": np.arange(3.0),
        "names": np.array(["a"]),
        "numpy": np.random.get_state(),
    }
    content = {"state_dict": state, "args": settings, "arch": "test_vit", **numbers}
    same(load_model(ID, checkpoint=saved(content, tmp_path / "checkpoint-3.pth.tar")), source)


class Surprise:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda module, path: torch.save(module, path), r"is a whole module.*timm\..*torch.save\(model.state_dict"),
        (lambda module, path: torch.save({"model": module}, path), "is a whole module.*nothing is run"),
        (lambda module, path: torch.save({"s": module.state_dict(), "x": Surprise()}, path), r"posix\.mkdir|nt\.mkdir"),
        (
            lambda module, path: torch.jit.trace(module, torch.zeros(1, 3, 64, 64)).save(path),
            r"TorchScript program.*torch.jit.load\(FILE\).state_dict",
        ),
        (
            lambda module, path: torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 64, 64),)), path),
            r"torch.export.*torch.export.load\(FILE\).state_dict",
        ),
        (lambda module, path: np.savez(path.open("wb"), weight=np.zeros(2)), "archive of NumPy"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_holds_code_is_refused_and_never_run(tmp_path, monkeypatch, make, says):
    monkeypatch.chdir(tmp_path)
    module = timm.create_model("test_resnet").eval()
    make(module, tmp_path / "model.pt2")
    with pytest.raises(ModelError, match=f"(?s){says}"):
        load_model("timm/test_resnet", checkpoint=tmp_path / "model.pt2")
    assert not pathlib.Path("executed").exists()


@pytest.mark.filterwarnings("ignore")
def test_the_cure_for_programs_works(tmp_path):
    module = randomise(timm.create_model("test_resnet")).eval()
    torch.jit.trace(module, torch.zeros(1, 3, 64, 64)).save(tmp_path / "a.pt")
    torch.save(torch.jit.load(tmp_path / "a.pt").state_dict(), tmp_path / "b.pt")
    same(load_model("timm/test_resnet", checkpoint=tmp_path / "b.pt"), module)
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 64, 64),)), tmp_path / "a.pt2")
    torch.save(dict(torch.export.load(tmp_path / "a.pt2").state_dict), tmp_path / "c.pt")
    same(load_model("timm/test_resnet", checkpoint=tmp_path / "c.pt"), module)


def test_a_key_without_a_checkpoint_is_an_error():
    with pytest.raises(ArgumentError, match="give `checkpoint`"):
        Loading(ID, checkpoint_key="teacher")


def test_a_module_without_a_tower_needs_all_its_tensors(tmp_path):
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    state = module.state_dict()
    loaded = load_checkpoint(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), saved(state, tmp_path / "w.safetensors"))
    assert loaded.notes == () and not loaded.missing
    with pytest.raises(ModelError, match=r"2 missing: 1\.bias, 1\.weight"):
        load_checkpoint(module, saved({k: v for k, v in state.items() if k[0] == "0"}, tmp_path / "w.safetensors"))
