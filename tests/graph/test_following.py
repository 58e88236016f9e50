"""A plan after something has happened to the module: it follows, or it says what has happened."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import unweave
from tiny import HEADS, SIZE, WIDTH, Mlp, Vit, pictures, ready
from unweave.errors import CaptureError
from unweave.tasks.attention import Attention


def other(seed: int = 1, **options: object) -> dict[str, Tensor]:
    """Weights of another model."""
    torch.manual_seed(seed)
    return {name: torch.randn_like(tensor) for name, tensor in ready(Vit(**options)).state_dict().items()}


def replaced(module: nn.Module, name: str, factor: float = -2.0) -> None:
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, nn.Parameter(module.get_parameter(name).detach() * factor))


def in_numpy(module: nn.Module) -> None:
    module.get_parameter("blocks.1.attn.proj.weight").detach().numpy()[:] *= 3


def in_data(module: nn.Module) -> None:
    module.get_parameter("blocks.0.mlp.fc2.weight").data.mul_(-1)


def into_data(module: nn.Module) -> None:
    weight = module.get_parameter("blocks.0.attn.v.weight")
    weight.data = weight.data * 3


FOLLOWED: dict[str, Callable[[nn.Module], object]] = {
    "assigned": lambda m: m.load_state_dict(other(), assign=True),
    "loaded": lambda m: m.load_state_dict(other()),
    "a weight of a head": lambda m: replaced(m, "blocks.0.attn.v.weight"),
    "a weight of a norm": lambda m: replaced(m, "norm.weight"),
    "a bias": lambda m: replaced(m, "blocks.1.mlp.fc2.bias"),
    "a token": lambda m: replaced(m, "token"),
    ".data": in_data,
    "into .data": into_data,
    "numpy": in_numpy,
    "submodule of the same kind": lambda m: setattr(m.blocks[0], "mlp", ready(Mlp())),
}


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("made", ["module", "Model"])
def test_other_weights_are_followed(name: str, made: str) -> None:
    module = ready(Vit()).requires_grad_(False)
    if made == "Model":
        plan = unweave.plan(unweave.Model.from_module(module, input_size=(3, SIZE, SIZE)))
    else:
        plan = unweave.plan(module, pictures(2))
    plans = [plan, plan.at(level="token"), plan.at(select="blocks.0"), plan.split("kind:head"), plan.at(level="layer")]
    directions = torch.eye(WIDTH).double()
    for own in plans[:-1]:  # the last has not run yet
        own.run(pictures())
        own.project(pictures(), directions)
    FOLLOWED[name](module)
    fresh = unweave.plan(copy.deepcopy(module), pictures(2))
    expected = [fresh, fresh.at(level="token"), fresh.at(select="blocks.0"), fresh.split("kind:head")]
    expected.append(fresh.at(level="layer"))
    for own, new in zip(plans, expected, strict=True):
        assert (new.run(pictures()).representation - module(pictures())).abs().max() < 1e-12
        assert (
            own.project(pictures(), directions).values - new.project(pictures(), directions).values
        ).abs().max() < 1e-10
        assert (own.run(pictures()).values - new.run(pictures()).values).abs().max() < 1e-10


def test_weights_are_followed_again_and_again() -> None:
    module = ready(Vit()).requires_grad_(False)
    plan = unweave.plan(module, pictures(2))
    for seed in range(4):
        module.load_state_dict(other(seed), assign=True)
        in_data(module)
        assert (plan.run(pictures()).representation - module(pictures())).abs().max() < 1e-12
        in_data(module)
        assert plan.run(pictures()).error.max() < 1e-10


def tied(module: nn.Module) -> None:
    module.blocks[1].mlp.fc1.weight = module.blocks[0].mlp.fc1.weight


def doubling(*given: object) -> Tensor:
    return 2 * given[-1]


def parametrized(module: nn.Module) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    parametrize.register_parametrization(module.blocks[0].mlp.fc1, "weight", Doubled())


REFUSED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "hook": (lambda m: m.blocks[0].attn.register_forward_hook(doubling), "a forward hook of blocks.0.attn, added"),
    "pre-hook": (
        lambda m: m.norm.register_forward_pre_hook(lambda _, given: (given[0] * 2,)),
        "a forward pre-hook of norm, added",
    ),
    "forward": (lambda m: setattr(m.blocks[1].mlp, "forward", lambda x: 0 * x), "the forward of blocks.1.mlp"),
    "submodule": (lambda m: setattr(m, "trunk", nn.Tanh()), "trunk (submodule, replaced)"),
    "activation": (lambda m: setattr(m.blocks[0].mlp, "act", nn.ReLU()), "blocks.0.mlp.act (submodule, replaced)"),
    "mode of the stream": (lambda m: setattr(m, "kind", "pool"), "kind (attribute, replaced)"),
    "epsilon": (lambda m: setattr(m.norm, "eps", 0.1), "norm.eps (attribute, replaced)"),
    "parametrization": (parametrized, "blocks.0.mlp.fc1"),
    "bias gone": (lambda m: setattr(m.blocks[0].mlp.fc1, "bias", None), "blocks.0.mlp.fc1.bias (weight, removed)"),
}


def pooling() -> nn.Module:
    """A model that could pool, but reads its class token."""
    module = ready(Vit(readout="pool")).requires_grad_(False)
    module.kind = "class"
    return module


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_another_program_is_refused_by_name(name: str) -> None:
    module = pooling() if "stream" in name else ready(Vit()).requires_grad_(False)
    plan = unweave.plan(module, pictures(2))
    plan.run(pictures())
    change, words = REFUSED[name]
    change(module)
    for _ in range(2):
        with pytest.raises(CaptureError, match="has changed since it was planned") as caught:
            plan.at(level="layer").run(pictures())
        assert words in str(caught.value) and caught.value.cure == "plan again"
    fresh = unweave.plan(module, pictures(2))
    assert (fresh.run(pictures()).representation - module(pictures())).abs().max() < 1e-12


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_another_program_is_refused_of_a_model(name: str) -> None:
    module = pooling() if "stream" in name else ready(Vit()).requires_grad_(False)
    model = unweave.Model.from_module(module, input_size=(3, SIZE, SIZE))
    plan = unweave.plan(model)
    plan.run(pictures())
    change, words = REFUSED[name]
    change(module)
    for call in (lambda: plan.run(pictures()), lambda: unweave.plan(model)):
        with pytest.raises(CaptureError, match=r"since (it was planned|its Model was made)") as caught:
            call()
        assert words in str(caught.value) and "make the Model again" in caught.value.cure
    fresh = unweave.plan(unweave.Model.from_module(module, input_size=(3, SIZE, SIZE)))
    assert (fresh.run(pictures()).representation - module(pictures())).abs().max() < 1e-12


def test_weights_that_are_shared() -> None:
    module = ready(Vit()).requires_grad_(False)
    tied(module)
    plan = unweave.plan(module, pictures(2))
    plan.run(pictures())
    replaced(module, "blocks.1.mlp.fc1.weight")
    with pytest.raises(CaptureError, match="has changed since it was planned"):
        plan.run(pictures())  # they are shared no more
    replaced(module, "blocks.0.mlp.fc1.weight", -3.0)
    tied(module)
    assert (plan.run(pictures()).representation - module(pictures())).abs().max() < 1e-12


def test_training_is_refused_where_it_matters() -> None:
    module = ready(Vit(trunk=nn.Dropout(0.01)))
    plan = unweave.plan(module, pictures(2))
    before = plan.run(pictures()).values
    module.train()
    with pytest.raises(CaptureError, match=r"training[\s\S]+aten\.dropout") as caught:
        plan.run(pictures())
    assert ".eval()" in caught.value.cure
    module.eval()
    assert torch.equal(plan.run(pictures()).values, before)
    harmless = ready(Vit())
    plan = unweave.plan(harmless, pictures(2))
    harmless.train()
    assert torch.equal(plan.run(pictures()).values, before)


def test_batch_statistics_are_not_touched_by_looking() -> None:
    module = ready(Vit(trunk=nn.BatchNorm1d(5)))
    plan = unweave.plan(module, pictures(2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.train()
    with pytest.raises(CaptureError, match="training"):
        plan.run(pictures())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_hooks_that_only_look_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready(Vit()).requires_grad_(False)
    plan = unweave.plan(module, pictures(2))
    before = plan.run(pictures()).values
    seen: list[object] = []

    def hook(*given: object) -> None:
        seen.append(given[-1])

    handle = module.norm.register_forward_hook(hook)
    module.calls = 1
    assert torch.equal(plan.run(pictures()).values, before)

    def never(*_: object) -> None:
        raise AssertionError("captured again")

    monkeypatch.setattr("unweave.graph.following.capture", never)
    handle.remove()
    module.calls = 2
    assert torch.equal(plan.run(pictures()).values, before)
    module.norm.register_forward_hook(hook)
    module.last = pictures()
    assert torch.equal(plan.run(pictures()).values, before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.float(), "cast to torch.float32"),
        (lambda m: m.to("meta"), "moved to meta"),
        (lambda m: setattr(m.norm, "bias", nn.Parameter(torch.ones(1).double())), r"norm\.bias was planned as \[8\]"),
        (lambda m: setattr(m.norm, "bias", nn.Parameter(torch.ones(WIDTH))), "float32"),
    ],
    ids=["cast", "moved", "shape", "dtype"],
)
def test_weights_of_another_kind_are_refused(change: Callable[[nn.Module], object], words: str) -> None:
    module = ready(Vit())
    plan = unweave.plan(module, pictures(2))
    plan.run(pictures())
    change(module)
    with pytest.raises(CaptureError, match=words) as caught:
        plan.run(pictures())
    assert caught.value.cure == "plan again"


class Picking(nn.Module):
    """Which token is read is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.embed, self.norm = nn.ModuleList([Mlp()]), nn.Linear(64 * 3, WIDTH), nn.LayerNorm(WIDTH)
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]))

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3).transpose(1, 2).flatten(2)
        x = self.embed(patches)
        return self.norm(x + self.blocks[0](x))[:, self.order][:, 0]


@pytest.mark.parametrize("through", ["in place", "data"])
def test_positions_that_have_changed_are_refused(through: str) -> None:
    module = ready(Picking())
    plan = unweave.plan(module, pictures(2))
    plan.run(pictures())
    (module.order if through == "in place" else module.order.data).copy_(torch.tensor([1, 0, 2, 3]))
    with pytest.raises(CaptureError, match="values of order have changed"):
        plan.run(pictures())


def test_a_wrong_weight_product_is_no_rule_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are read anew once, and only where there are products of older ones."""
    runs: list[int] = []
    honest = unweave.decomposition.program.Program.run

    def counting(self, *given: object) -> object:
        runs.append(1)
        return honest(self, *given)

    monkeypatch.setattr(unweave.decomposition.program.Program, "run", counting)
    module = ready(Vit())
    plan = unweave.plan(module, pictures(2))
    for expected in (1, 2):
        with pytest.raises(unweave.errors.ConservationError):
            plan.run(pictures(), tolerance=0.0)
        assert len(runs) == expected
        runs.clear()


def test_copies_are_modules_of_their_own() -> None:
    module = ready(Vit()).requires_grad_(False)
    model = unweave.Model.from_module(module, input_size=(3, SIZE, SIZE))
    alone, whole = copy.deepcopy(model.readout), copy.deepcopy(model)
    plans = [unweave.plan(alone, pictures(2)), unweave.plan(whole)]
    before = [plan.run(pictures()).values for plan in plans]
    replaced(module, "norm.weight")
    for plan, values in zip(plans, before, strict=True):
        assert torch.equal(plan.run(pictures()).values, values)
    replaced(whole.module, "norm.weight")
    assert torch.equal(plans[1].run(pictures()).representation, whole.module(pictures()))
    assert torch.equal(plans[0].run(pictures()).values, before[0])


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = ready(Vit())


def test_a_tower_that_is_replaced_is_followed() -> None:
    outer = Tower().requires_grad_(False)
    inner = unweave.Model.from_module(outer.visual, input_size=(3, SIZE, SIZE))
    model = unweave.Model("outer", outer, inner.readout, None, inner.preprocess, inner.preprocessing, inner.input_size)
    plan = unweave.plan(model)
    plan.run(pictures())
    outer.visual = ready(Vit()).requires_grad_(False)
    for seed in (1, 2):
        outer.visual.load_state_dict(other(seed), assign=True)
        assert (plan.run(pictures()).representation - outer.visual(pictures())).abs().max() < 1e-12
    outer.visual = ready(Vit(act=nn.Tanh()))
    with pytest.raises(CaptureError, match=r"visual \(submodule, replaced\)"):
        plan.run(pictures())


def test_the_classifier_follows_too() -> None:
    class Classifying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Vit(), nn.Linear(WIDTH, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images))

    module = ready(Classifying()).requires_grad_(False)
    model = unweave.Model.from_module(module, input_size=(3, SIZE, SIZE), classifier="head")
    plan = unweave.plan(model)
    replaced(module, "head.weight")
    replaced(module, "body.norm.weight")
    assert torch.allclose(model.classifier(plan.run(pictures()).representation), module(pictures()))


def test_attention_maps_follow() -> None:
    module = ready(Vit()).requires_grad_(False)
    attention = Attention(module, pictures(2))
    attention.trace(pictures(), lambda z: z.sum(1))
    replaced(module, "blocks.1.attn.k.weight")
    after = attention.trace(pictures(), lambda z: z.sum(1))
    assert (after.representation - module(pictures())).abs().max() < 1e-12
    assert len(after.probabilities) == 2 and after.probabilities[0].shape[2] == HEADS


def test_threads_that_score_along_different_directions() -> None:
    plan = unweave.plan(ready(Vit()), pictures(2))
    torch.manual_seed(0)
    directions = [torch.randn(2, WIDTH).double() for _ in range(2)]
    expected = [plan.project(pictures(), own).values for own in directions]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(40):
            if not torch.equal(plan.project(pictures(), directions[number]).values, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_model_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready(Vit()).requires_grad_(False)
    model = unweave.Model.from_module(module, input_size=(3, SIZE, SIZE))
    before = unweave.plan(model).run(pictures()).values
    exports: list[object] = []
    honest = torch.export.export

    def counting(*given: object, **options: object) -> object:
        exports.append(given[0])
        return honest(*given, **options)

    monkeypatch.setattr(torch.export, "export", counting)
    for plan in (unweave.plan(model), unweave.plan(model, attention="stop"), unweave.plan(model, level="token")):
        assert plan.run(pictures()).error.max() < 1e-12
    assert torch.equal(unweave.decompose(model, pictures()).values, before) and not exports
    replaced(module, "norm.weight")
    assert torch.equal(unweave.decompose(model, pictures()).representation, module(pictures())) and not exports
    wider = torch.randn(2, 3, 2 * SIZE, SIZE).double()
    with pytest.raises(CaptureError):
        unweave.plan(model, wider)
    assert len(exports) == 1
    module.norm.weight.data[0] = torch.nan
    with pytest.raises(unweave.errors.NonFiniteError, match=r"norm\.weight"):
        unweave.plan(model)
    module.norm.weight.data[0] = 1.0
    module.blocks[0].mlp.act = nn.ReLU()
    with pytest.raises(CaptureError, match="make the Model again"):
        unweave.plan(model)
    module.blocks[0].mlp.act = nn.GELU()
    assert torch.allclose(unweave.plan(model).run(pictures()).representation, module(pictures()))
