"""Random weights that leave no path dead, checkpoints that fit or say why not, and the hash of what was loaded."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from unweave.errors import ArgumentError, ModelError
from unweave.models import Model, load_model
from unweave.models.weights import fingerprint, randomise

TINY = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", {**TINY, "init_values": 1e-5, "qk_norm": True}, 32),
    "cait": ("cait_xxs24_224", TINY, 32),
    "beit": ("beit_base_patch16_224", TINY, 32),
    "swinv2": ("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 4, "embed_dim": 24}, 64),
    "coatnet": ("test_coatnet", {"img_size": 64}, 64),
    "resnet": ("test_resnet", {"zero_init_last": True}, 64),
    "nfnet": ("test_nfnet", {}, 64),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_path_is_dead_under_random_weights(family):
    name, options, size = FAMILIES[family]
    module = randomise(timm.create_model(name, **options)).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    output = module(images)
    (output * torch.linspace(-1, 1, output.shape[1])).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.numel() == 1 or bool(parameter.max() > parameter.min()), f"{name} is constant"
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, f"{name} is dead"
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            assert 0.5 <= float(buffer.min()) <= float(buffer.max()) <= 1.5


@pytest.mark.parametrize(("name", "size"), [("cait_m36_384", 32), ("beit_large_patch16_224", 32)])
def test_deep_models_stay_of_order_one(name, size):
    depth = timm.create_model(name, embed_dim=32, num_heads=2, img_size=size)
    module = randomise(depth).eval()
    with torch.no_grad():
        features = module.forward_features(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))
    assert 0.1 < float(features.std()) < 10


@torch.no_grad()
def test_the_parts_get_the_scales_that_are_promised():
    module = timm.create_model("vit_tiny_patch16_224", **{**TINY, "embed_dim": 64}, init_values=1e-6)
    randomise(module)
    scale = module.blocks[0].ls1.gamma
    assert 0.1 <= float(scale.min()) < float(scale.max()) <= 1
    assert 0.005 < float(module.blocks[0].mlp.fc1.bias.std()) < 0.05
    assert 0.05 < float(module.blocks[0].norm1.weight.std()) < 0.2
    assert 0.5 < float(module.blocks[0].norm1.weight.mean()) < 1.5


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_model("timm/test_vit", random_weights=True, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = load_model("timm/test_vit", random_weights=True, seed=1)
    other = load_model("timm/test_vit", random_weights=True, seed=2)
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert len(first.weights_hash) == 64


def test_the_hash_knows_names_types_shapes_and_values():
    module = nn.Linear(2, 3)
    first = fingerprint(module)
    assert fingerprint(nn.Sequential(module)) != first
    assert fingerprint(nn.Linear(2, 3).double()) != first
    with torch.no_grad():
        module.weight.view(-1)[0] += 1
    assert fingerprint(module) != first
    assert fingerprint(module.bfloat16()) != fingerprint(module.float())
    assert fingerprint(nn.BatchNorm1d(2))  # holds a count, a tensor without axes


def test_the_classifier_is_no_part_of_the_hash():
    module = timm.create_model("test_vit").eval()
    first = Model.from_module(module, input_size=(3, 160, 160)).weights_hash
    with torch.no_grad():
        module.head.bias += 1
    assert Model.from_module(module, input_size=(3, 160, 160)).weights_hash == first


@pytest.mark.parametrize("wrap", ["plain", "safetensors", "state_dict", "model", "module."])
def test_checkpoints_load_from_every_usual_form(tmp_path, wrap):
    source = load_model("timm/test_vit", random_weights=True, seed=4)
    state = source.module.state_dict()
    path = tmp_path / ("weights.safetensors" if wrap == "safetensors" else "weights.pth")
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "module.":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state if wrap == "plain" else {wrap: state, "epoch": 3}, path)
    model = load_model("timm/test_vit", checkpoint=path)
    assert model.weights_hash == source.weights_hash


def test_a_checkpoint_that_does_not_fit_says_which_keys(tmp_path):
    state = load_model("timm/test_vit", random_weights=True).module.state_dict()
    del state["norm.weight"], state["norm.bias"]
    state["blocks.0.extra.weight"] = torch.zeros(1)
    state["pos_embed"] = torch.zeros(1, 101, 32)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model("timm/test_vit", checkpoint=tmp_path / "weights.safetensors")
    message = str(caught.value)
    assert "2 missing: norm.bias, norm.weight" in message
    assert "1 unexpected: blocks.0.extra.weight" in message
    assert "1 differently shaped: pos_embed [1, 101, 32] for [1, 101, 64]" in message
    assert "weights.safetensors" in message


class Surprise:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.pth", None, "no such checkpoint"),
        ("text.pth", b"not weights", "neither safetensors nor a torch file"),
        ("text.safetensors", b"not weights", "neither safetensors nor a torch file"),
        ("code.pth", Surprise(), "holds more than weights.*nothing is run"),
        ("list.pth", [torch.zeros(1)], "holds no state dict"),
        ("empty.pth", {}, "holds no state dict"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, capsys, name, content, says):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=f"(?s){says}.*{name}"):
        load_model("timm/test_vit", checkpoint=path)
    assert "executed" not in capsys.readouterr().out


def test_weights_are_either_random_or_from_a_checkpoint(tmp_path):
    with pytest.raises(ArgumentError, match="give one of the two"):
        load_model("timm/test_vit", checkpoint=tmp_path / "x.pth", random_weights=True)
