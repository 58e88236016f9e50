"""Where the representation is: before any nonlinear head, and read without touching the module."""

import copy

import pytest
import timm
import torch
from torch import nn

from unweave.errors import ModelError, NonFiniteError
from unweave.models import Model, load_model
from unweave.models.readout import twin
from unweave.models.weights import randomise

TINY = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
MAXVIT = {"img_size": 64, "embed_dim": (32, 32, 64, 64), "depths": (1, 1, 1, 1)}

CLASSIFIERS = {
    "vit": ("vit_tiny_patch16_224", TINY, 32),
    "deit3": ("deit3_small_patch16_224", TINY, 32),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 32),
    "maxvit": ("maxvit_tiny_tf_224", {**MAXVIT, "head_hidden_size": 24}, 64),
    "coatnet": ("test_coatnet", {"img_size": 64}, 64),
    "levit": ("levit_128s", {"img_size": 64}, 64),
    "resnet": ("test_resnet", {}, 64),
    "convnext": ("test_convnext", {}, 64),
    "bit": ("resnetv2_18", {}, 64),
    "sequencer": ("sequencer2d_s", {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 32, 32)}, 224),
    "efficientvit": ("efficientvit_m0", {}, 64),
}


def timm_model(name, **options):
    return randomise(timm.create_model(name, **options)).eval()


def tiny_vit(**options):
    return timm_model("vit_tiny_patch16_224", **{**TINY, "patch_size": 8, **options})


class Network(nn.Module):
    """Not of any library: a trunk, and whatever comes after it."""

    def __init__(self, head, answer=lambda features, head: head(features)):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.head = head
        self.answer = answer

    def forward(self, images):
        features = self.norm(self.stem(images).flatten(2).mean(2))
        return self.answer(features, self.head)


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_the_classifier_makes_the_models_own_logits_of_the_representation(family):
    name, options, size = CLASSIFIERS[family]
    module = timm_model(name, **options)
    model = Model.from_module(module, input_size=(3, size, size))
    images = model.example(2)
    with torch.no_grad():
        representation, logits = model.readout(images), module(images)
        assert representation.shape == (2, representation.shape[1])
        torch.testing.assert_close(model.classifier(representation), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "head"),
    [
        ("resnet18", 64, ["Linear"]),
        ("swin_t", 64, ["Linear"]),
        ("mobilenet_v3_small", 64, ["Linear", "Hardswish", "Dropout", "Linear"]),
        ("maxvit_t", 224, ["Linear", "Tanh", "Linear"]),
    ],
)
def test_torchvision_models_are_read_before_their_nonlinear_heads(name, size, head):
    model = load_model(f"torchvision/{name}", random_weights=True, image_size=size)
    parts = [part for part in model.classifier.modules() if not isinstance(part, nn.Sequential)]
    assert [type(part).__name__ for part in parts] == head
    images = model.example(1)
    with torch.no_grad():
        torch.testing.assert_close(model.classifier(model.readout(images)), model.module(images), rtol=1e-5, atol=1e-5)


def test_a_hidden_head_layer_of_timm_belongs_to_the_classifier():
    module = timm_model("maxvit_tiny_tf_224", **MAXVIT, head_hidden_size=24)
    model = Model.from_module(module, input_size=(3, 64, 64))
    images = model.example(2)
    with torch.no_grad():
        representation = model.readout(images)
        before = module.forward_features(images).mean((2, 3), keepdim=True)
        torch.testing.assert_close(representation, module.head.norm(before).flatten(1))
        torch.testing.assert_close(model.classifier(representation), module(images), rtol=1e-5, atol=1e-5)


def test_distilled_models_are_read_at_the_mean_of_both_tokens_which_determines_no_logits():
    module = timm_model("deit_tiny_distilled_patch16_224", **TINY)
    model = Model.from_module(module, input_size=(3, 32, 32))
    images = model.example(2)
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.readout(images), expected)
    assert model.classifier is None


def test_heads_of_different_widths_are_left_to_timm():
    module = timm_model("crossvit_tiny_240")
    model = Model.from_module(module, input_size=(3, 240, 240))
    images = model.example(1)
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.readout(images), expected)
    assert model.classifier is None


def test_a_headless_timm_model_is_its_own_readout():
    module = tiny_vit(num_classes=0)
    model = Model.from_module(module, input_size=(3, 32, 32))
    images = model.example(2)
    with torch.no_grad():
        torch.testing.assert_close(model.readout(images), module(images))
    assert model.classifier is None


def test_submodules_keep_their_names():
    model = Model.from_module(tiny_vit(), input_size=(3, 32, 32))
    named = dict(model.readout.named_modules())
    assert "blocks.1.attn.proj" in named
    assert dict(model.readout.named_parameters()).keys() < dict(model.module.named_parameters()).keys()


def test_the_module_is_bit_identical_afterwards_and_has_no_hooks():
    module = tiny_vit().train()
    state = copy.deepcopy(module.state_dict())
    tree = [(name, id(part), type(part), part.training, sorted(vars(part))) for name, part in module.named_modules()]
    tensors = {name: (id(tensor), tensor._version, tensor.requires_grad) for name, tensor in module.named_parameters()}
    before = torch.get_rng_state()

    model = Model.from_module(module, input_size=(3, 32, 32))
    model.readout(model.example())

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert tree == [
        (name, id(part), type(part), part.training, sorted(vars(part))) for name, part in module.named_modules()
    ]
    assert tensors == {
        name: (id(tensor), tensor._version, tensor.requires_grad) for name, tensor in module.named_parameters()
    }
    for part in (*module.modules(), *model.readout.modules()):
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert not part._backward_hooks
    assert model.module is module
    assert not model.readout.training


def test_the_readout_shares_every_weight():
    module = tiny_vit()
    model = Model.from_module(module, input_size=(3, 32, 32))
    own = dict(module.named_parameters())
    assert all(parameter is own[name] for name, parameter in model.readout.named_parameters())
    assert model.classifier.weight is module.head.weight


def test_a_deep_copy_of_a_readout_calls_itself():
    model = Model.from_module(timm_model("deit_tiny_distilled_patch16_224", **TINY), input_size=(3, 32, 32))
    double = copy.deepcopy(model.readout).double()
    images = model.example(2)
    with torch.no_grad():
        assert double(images.double()).dtype == torch.float64
        torch.testing.assert_close(double(images.double()).float(), model.readout(images))


def test_a_readout_exports():
    model = Model.from_module(timm_model("deit_tiny_distilled_patch16_224", **TINY), input_size=(3, 32, 32))
    images = model.example(2)
    program = torch.export.export(model.readout, (images,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model.readout(images))


def test_the_output_of_any_other_module_is_the_representation():
    module = Network(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)))
    model = Model.from_module(module, input_size=(3, 16, 16))
    images = model.example(2)
    torch.testing.assert_close(model.readout(images), module(images))
    assert model.classifier is None


def test_a_named_classifier_is_taken_off_as_it_is():
    module = Network(nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 5)))
    whole = Model.from_module(module, input_size=(3, 16, 16), classifier="head")
    last = Model.from_module(module, input_size=(3, 16, 16), classifier="head.2")
    images = whole.example(2)
    assert whole.readout(images).shape == (2, 8)
    assert last.readout(images).shape == (2, 6)
    representation = whole.readout(images)
    kept = representation.clone()
    torch.testing.assert_close(whole.classifier(representation), module(images))
    assert torch.equal(representation, kept)
    torch.testing.assert_close(last.classifier(last.readout(images)), module(images))


def test_an_output_is_chosen_by_field_or_index():
    both = Network(nn.Linear(8, 6), lambda features, head: {"features": features, "logits": head(features)})
    pair = Network(nn.Linear(8, 6), lambda features, head: (head(features), features))
    images = torch.zeros(2, 3, 16, 16)
    by_field = Model.from_module(both, input_size=(3, 16, 16), representation="features")
    assert torch.equal(by_field.readout(images), both(images)["features"])
    by_index = Model.from_module(pair, input_size=(3, 16, 16), representation=1)
    assert torch.equal(by_index.readout(images), pair(images)[1])
    split = Model.from_module(both, input_size=(3, 16, 16))
    assert torch.equal(split.readout(images), both(images)["features"])
    torch.testing.assert_close(split.classifier(split.readout(images)), both(images)["logits"])


@pytest.mark.parametrize(
    ("module", "options", "says"),
    [
        (tiny_vit, {"input_size": (3, 48, 48)}, "does not run on images of 3 x 48 x 48"),
        (tiny_vit, {"input_size": (3, 32, 32), "classifier": "haed"}, "no submodule 'haed'.*head"),
        (tiny_vit, {"input_size": (3, 32, 32), "representation": "pooled"}, "holds no tensor 'pooled'"),
        (lambda: nn.Conv2d(3, 4, 3), {"input_size": (3, 8, 8)}, r"returns is \[1, 4, 6, 6\].*representation="),
        (lambda: Network(nn.Identity(), lambda features, head: {"x": features[0]}), {}, "holds no tensor.*`x`"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_way_on(module, options, says):
    with pytest.raises(ModelError, match=f"(?s){says}"):
        Model.from_module(module(), **options)


def test_a_module_that_cannot_be_copied_is_refused():
    module = Network(nn.Identity())
    module.lines = (line for line in ())
    with pytest.raises(ModelError, match=r"(?s)cannot be copied.*out of the module"):
        Model.from_module(module)


def test_tensors_that_are_no_parameters_are_shared_as_well():
    module = Network(nn.Identity())
    module.scale = torch.ones(1, requires_grad=True) * 2  # a non-leaf, which Python's own copy refuses
    assert twin(module).scale is module.scale


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    module = tiny_vit()
    with torch.no_grad():
        module.blocks[1].mlp.fc1.weight[0, 0] = value
    with pytest.raises(NonFiniteError, match=r"(?s)1 of the.*blocks\.1\.mlp\.fc1\.weight"):
        Model.from_module(module, input_size=(3, 32, 32))


def test_a_batch_statistic_that_is_not_finite_is_named():
    module = timm_model("test_resnet")
    with torch.no_grad():
        module.bn1.running_var[0] = float("nan")
    with pytest.raises(NonFiniteError, match="running_var"):
        Model.from_module(module, input_size=(3, 64, 64))
