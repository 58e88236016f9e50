"""What a plan promises of any model: selections, scores, inputs, refusals, and that the module stays as it was."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unweave
from tiny import HEADS, WIDTH, Attention, Block, Mlp, Vit, pictures, ready
from unweave.errors import (
    ArgumentError,
    CaptureError,
    ConservationError,
    NonFiniteError,
    RuleError,
    UnweaveError,
)
from unweave.operations import TABLE, rule, source

pytestmark = pytest.mark.xdist_group("tiny plan")


@cache
def vit() -> nn.Module:
    return ready(Vit())


@cache
def plan_of(level: str = "head") -> unweave.Plan:
    return unweave.plan(vit(), pictures(2)) if level == "head" else plan_of().at(level=level)


@cache
def result_of(level: str = "head") -> unweave.Contributions:
    return plan_of(level).run(pictures())


def adds_up(result: unweave.Contributions, bound: float = 1e-10) -> None:
    total = result.values.sum(1).to(result.representation.dtype)
    assert (total - result.representation).norm() <= bound * result.representation.norm()


def named(result: unweave.Contributions) -> dict[str, Tensor]:
    return {str(part): result.values[:, column] for column, part in enumerate(result.components)}


# -- selections -------------------------------------------------------------------------------------------------------

SELECTIONS = {
    "a head": "blocks.0.attn.head.2",
    "heads of a layer": ["blocks.1.attn.head.0", "blocks.1.attn.head.3"],
    "heads in another order": ["blocks.1.attn.head.3", "blocks.0.attn.head.1"],
    "a layer": "blocks.0",
    "an MLP": "blocks.1.mlp",
    "the last layer": "last:1",
    "the last two": "last:2",
    "heads": "kind:head",
    "MLPs and biases": "kind:mlp,kind:bias",
    "the embedding": "embed",
    "all but a head": "!blocks.1.attn.head.1",
    "all but a layer": "kind:head,!blocks.0",
    "a predicate": lambda part: part.head == 2 or part.kind == "bias",
}
SPLIT = {
    "token": ["*.token.3", "*.head.1.token.*", "blocks.1.attn.head.2.token.4", "blocks.0", "kind:head,!*.token.0"],
    "neuron": ["*.neuron.2", "blocks.0.mlp", "blocks.1.mlp.neuron.1,blocks.1.mlp.neuron.5"],
    "layer": ["blocks.0.attn", "last:1", "kind:attn"],
}
CHOICES = [("head", name, selection) for name, selection in SELECTIONS.items()]
CHOICES += [(level, own, own) for level, several in SPLIT.items() for own in several]


@pytest.mark.parametrize(
    ("level", "selection"), [(level, own) for level, _, own in CHOICES], ids=[c[1] for c in CHOICES]
)
def test_selected_columns_are_those_of_the_full_plan(level: str, selection: unweave.components.Selection) -> None:
    full = result_of(level)
    plan = plan_of(level).at(select=selection)
    result = plan.run(pictures())
    adds_up(result)
    *chosen, rest = result.components
    assert str(rest) == "rest" and rest.kind == "rest"
    assert chosen == [part for part in full.components if part in set(chosen)] and chosen
    expected = [full.values[:, full.components.index(part)] for part in chosen]
    assert (result.values[:, :-1] - torch.stack(expected, 1)).abs().max() < 1e-12


def test_selecting_everything_leaves_no_rest() -> None:
    parts = [part for part in plan_of().components if part.kind != "bias"]
    plan = plan_of().at(select=[*parts, "kind:bias"])
    assert plan.components == plan_of().components


def test_a_selection_of_nothing_names_what_there_is() -> None:
    with pytest.raises(ArgumentError, match=r"blocks\.0"):
        plan_of().at(select="blocks.7")
    with pytest.raises((ArgumentError, TypeError), match="heads"):  # where signatures are checked, that speaks first
        plan_of().at(level="heads")


def test_another_level_is_not_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()

    def refuse(*_: object) -> None:
        raise AssertionError("captured again")

    monkeypatch.setattr("unweave.graph.following.capture", refuse)
    assert plan.at(level="layer").level == "layer"
    assert plan.at().components == plan.components


def test_levels_refine_each_other() -> None:
    heads, tokens, layers = named(result_of()), named(result_of("token")), named(result_of("layer"))
    for block in ("blocks.0", "blocks.1"):
        total: Tensor | float = 0.0
        for head in range(HEADS):
            name = f"{block}.attn.head.{head}"
            parts = [value for own, value in tokens.items() if own.startswith(f"{name}.token.")]
            assert len(parts) == 5
            assert (sum(parts) - heads[name]).abs().max() < 1e-12
            total = total + heads[name]
        assert (total - layers[f"{block}.attn"]).abs().max() < 1e-12
        neurons = [value for own, value in named(result_of("neuron")).items() if own.startswith(f"{block}.mlp.neuron.")]
        assert len(neurons) == 6
        assert (sum(neurons) - heads[f"{block}.mlp"]).abs().max() < 1e-12


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["layer", "head", "token", "neuron"])
def test_scores_are_inner_products_with_the_contributions(level: str) -> None:
    torch.manual_seed(0)
    for directions in (torch.randn(1, WIDTH), torch.randn(3, WIDTH), torch.randn(3, WIDTH), torch.eye(WIDTH)):
        directions = directions.double()
        scores = plan_of(level).project(pictures(), directions, ids=list("abc"))
        assert scores.components == plan_of(level).components and scores.ids == ("a", "b", "c")
        assert (scores.values - result_of(level).values @ directions.T).abs().max() < 1e-12
        assert scores.error.max() < 1e-12


def test_scores_of_a_selection_keep_the_rest() -> None:
    directions = torch.randn(2, WIDTH).double()
    plan = plan_of("token").at(select="*.token.3")
    assert (
        plan.project(pictures(), directions).values - plan.run(pictures()).values @ directions.T
    ).abs().max() < 1e-12


def test_directions_that_change_in_place_are_noticed() -> None:
    directions = torch.randn(2, WIDTH).double()
    before = plan_of().project(pictures(), directions).values
    directions.mul_(2)
    assert (plan_of().project(pictures(), directions).values - 2 * before).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(WIDTH,), (2, WIDTH + 1), (0, WIDTH)])
def test_directions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises((UnweaveError, TypeError), match=r"directions|Directions"):
        plan_of().project(pictures(), torch.zeros(shape).double())


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_any_number_of_images() -> None:
    whole = plan_of().run(pictures(5))
    for start, stop in ((0, 1), (1, 5)):
        part = plan_of().run(pictures(5)[start:stop])
        assert part.values.shape == (stop - start, len(plan_of().components), WIDTH)
        assert part.ids == tuple(str(row) for row in range(stop - start))
        assert torch.allclose(part.values, whole.values[start:stop], rtol=0, atol=1e-12)
        adds_up(part)


def test_no_images_at_all() -> None:
    result = plan_of().run(pictures()[:0])
    assert result.values.shape == (0, len(plan_of().components), WIDTH) and result.ids == ()


def test_a_plan_made_with_one_image_runs_with_more() -> None:
    plan = unweave.plan(vit(), pictures(1))
    assert torch.equal(plan.run(pictures()).values, result_of().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    module = ready(Vit(), dtype)
    result = unweave.plan(module, pictures(2, dtype)).run(pictures(3, dtype))
    assert result.representation.dtype == dtype and result.values.dtype == torch.float32
    assert torch.equal(result.representation, module(pictures(3, dtype)))
    assert result.error.max() <= result.tolerance == {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    reference = result_of().values.norm()
    assert (result.values.double() - result_of().values).norm() < 10 * result.tolerance * reference


def test_ids_are_kept_and_counted() -> None:
    assert plan_of().run(pictures(2), ids=["left", "right"]).ids == ("left", "right")
    with pytest.raises(UnweaveError, match="1 ids for 2 images"):
        plan_of().run(pictures(2), ids=["left"])


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (torch.zeros(2, 3, 16, 24).double(), r"\[3, 16, 16\]"),
        (torch.zeros(2, 1, 16, 16).double(), r"\[3, 16, 16\]"),
        (torch.zeros(2, 3, 16, 16), "float32"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.float64, device="meta"), "meta"),
    ],
    ids=["size", "channels", "dtype", "device"],
)
def test_images_the_plan_is_not_for_are_refused(images: Tensor, what: str) -> None:
    with pytest.raises(UnweaveError, match=what):
        plan_of().run(images)
    with pytest.raises(UnweaveError, match=what):
        plan_of().project(images, torch.zeros(1, WIDTH).double())


# -- the module -------------------------------------------------------------------------------------------------------


def test_the_module_stays_as_it_was() -> None:
    module = ready(Vit(trunk=nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5))))
    module.blocks[0].mlp.requires_grad_(False)
    module.blocks[1].attn.register_forward_hook(lambda *_: None)
    tensors = {name: (own, own.clone(), own.requires_grad) for name, own in module.state_dict(keep_vars=True).items()}
    state = [
        (own.training, len(own._forward_hooks), len(own._forward_pre_hooks), set(vars(own))) for own in module.modules()
    ]
    plan = unweave.plan(module, pictures(2), level="token")
    plan.run(pictures())
    plan.project(pictures(), torch.ones(1, WIDTH).double())
    for name, own in module.state_dict(keep_vars=True).items():
        was, value, requires = tensors[name]
        assert own is was and torch.equal(own, value) and own.requires_grad == requires and own.grad is None
    assert state == [
        (own.training, len(own._forward_hooks), len(own._forward_pre_hooks), set(vars(own))) for own in module.modules()
    ]
    assert torch.is_grad_enabled()


def test_results_carry_no_gradients() -> None:
    result = result_of()
    assert not result.values.requires_grad and not result.representation.requires_grad


def test_a_step_of_fine_tuning_is_respected() -> None:
    module = ready(Vit())
    plan = unweave.plan(module, pictures(2))
    plan.run(pictures())
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    module(pictures()).square().sum().backward()
    optimiser.step()
    after = plan.run(pictures())
    assert torch.equal(after.representation, module(pictures()))
    assert torch.allclose(after.values, unweave.plan(module, pictures(2)).run(pictures()).values, rtol=0, atol=1e-10)
    module.load_state_dict(vit().state_dict())
    assert torch.allclose(plan.run(pictures()).values, result_of().values, rtol=0, atol=1e-12)


def test_a_plan_that_is_dropped_leaves_nothing_behind() -> None:
    module = ready(Vit())
    plan = unweave.plan(module, pictures(2))
    plan.run(pictures())
    kept = [weakref.ref(thing) for thing in (module, plan, plan._walk.paths, plan._walk.graph)]
    del module, plan
    gc.collect()
    assert not [thing() for thing in kept if thing() is not None]


def test_two_plans_give_the_same_bits() -> None:
    first, second = (unweave.plan(vit(), pictures(2)).run(pictures()) for _ in range(2))
    assert torch.equal(first.values, second.values) and first.components == second.components
    plan = unweave.plan(vit(), pictures(2))
    plan.run(pictures())
    plan.drop()
    assert torch.equal(plan.run(pictures()).values, first.values)


def test_a_copy_of_the_model_has_the_same_contributions() -> None:
    assert torch.equal(unweave.plan(deepcopy(vit()), pictures(2)).run(pictures()).values, result_of().values)


class Readout(nn.Module):
    """A module whose parts have names that mean something elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.readout = Vit(), nn.Linear(WIDTH, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.readout(self.model(images))


def test_a_module_may_call_its_parts_what_it_likes() -> None:
    module = ready(Readout())
    result = unweave.plan(module, pictures(2)).run(pictures())
    assert torch.equal(result.representation, module(pictures()))


# -- what cannot be followed ------------------------------------------------------------------------------------------


class Spectrum(nn.Module):
    """Linear, but without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(x, dim=1) * 0.5, dim=1).real


@torch.library.custom_op("unweave_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """An operation that nobody knows."""
    return x * 2


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return doubled(x)


class Cubed(nn.Module):
    """A nonlinearity on the trunk."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@pytest.mark.parametrize(("trunk", "operation"), [(Spectrum, "fft"), (Doubled, "unweave_tests.doubled")])
def test_an_operation_without_a_rule_is_one_component(trunk: type[nn.Module], operation: str) -> None:
    module = ready(Vit(trunk=trunk()))
    plan = unweave.plan(module, pictures(2))
    result = plan.run(pictures())
    adds_up(result)
    (lump,) = plan.lumps
    lumped = [part for part in plan.components if part.kind == "lumped"]
    assert len(lumped) == 1 and lumped[0].path == "trunk"
    assert not [part for part in plan.components if part.path.startswith("blocks.0")]
    assert plan.coverage.resolved == 1 and "blocks.0.attn" in plan.coverage.unresolved[0]
    text = str(plan)
    assert lump.operation in text and lump.module == "trunk" and "test_plan.py" in lump.line and lump.line in text
    if operation.startswith("unweave"):
        assert lump.operation == operation and f'@rule("{operation}"' in lump.rule
    with pytest.raises(RuleError, match="cannot be followed") as caught:
        unweave.plan(module, pictures(2), strict=True)
    for part in (lump.operation, lump.module, lump.line, "@rule("):
        assert part in str(caught.value)


def test_a_rule_makes_an_operation_known(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ready(Vit(trunk=Doubled()))
    for name in list(TABLE):
        monkeypatch.setitem(TABLE, name, TABLE[name])  # whatever is registered below goes again

    monkeypatch.setitem(TABLE, "unweave_tests.doubled", TABLE["aten.neg"])
    monkeypatch.delitem(TABLE, "unweave_tests.doubled")

    @rule("unweave_tests.doubled", kind="linear")
    def twice(step, term):
        yield step["x"], term.times(scale=2.0)

    plan = unweave.plan(module, pictures(2), strict=True)
    adds_up(plan.run(pictures()))
    assert plan.coverage.resolved == 2 and not plan.lumps


def test_a_second_rule_for_an_operation_is_refused() -> None:
    before = TABLE["aten.linear"]
    with pytest.raises(RuleError, match=r"aten\.linear already has a rule"):
        rule("aten.linear", kind="linear")(lambda step, term: iter(()))
    with pytest.raises(RuleError, match=r"aten\.gelu already has a rule"):
        source("aten.gelu")
    assert TABLE["aten.linear"] is before


def test_a_wrong_rule_breaks_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TABLE["aten.layer_norm"].reads

    def wrong(step, term):
        for node, own in honest(step, term):
            yield node, own.times(scale=1.01)

    monkeypatch.setitem(TABLE, "aten.layer_norm", replace(TABLE["aten.layer_norm"], reads=wrong))
    plan = unweave.plan(vit(), pictures(2))
    with pytest.raises(ConservationError, match="image second miss"):
        plan.run(pictures(2) * torch.tensor([1.0, 1.0]).double()[:, None, None, None], ids=["second", "second"])
    with pytest.raises(ConservationError):
        plan.project(pictures(), torch.ones(1, WIDTH).double())


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(48, 6), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(images[:, :, ::4, ::4].flatten(1))))


def test_a_model_without_a_residual_stream_is_one_component() -> None:
    plan = unweave.plan(ready(Plain()), pictures(2))
    result = plan.run(pictures())
    adds_up(result)
    assert [str(part) for part in plan.components] == ["output"]
    assert "no residual stream" in str(plan)


class Unexportable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        total = images.mean((2, 3))
        if total.sum() > 0:  # depends on the data
            total = total + 1
        return total


class Two(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean((2, 3)), images


def test_a_module_that_does_not_export_is_told_the_line() -> None:
    with pytest.raises(CaptureError, match=r"test_plan\.py:\d+ in forward"):
        unweave.plan(Unexportable(), pictures(2))
    assert "it returns `1` as well" in str(unweave.plan(Two(), pictures(2)).notes)


def test_a_weight_that_is_not_finite_is_named() -> None:
    module = ready(Vit())
    plan = unweave.plan(module, pictures(2))
    with torch.no_grad():
        module.blocks[1].mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        unweave.plan(module, pictures(2))
    with pytest.raises(NonFiniteError, match="image 0"):
        plan.run(pictures())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_named(bad: float) -> None:
    images = pictures()
    images[1, 0, 3, 3] = bad
    with pytest.raises(NonFiniteError, match="image middle"):
        plan_of().run(images, ids=["first", "middle", "last"])
    with pytest.raises(NonFiniteError, match="image 1"):
        plan_of().project(images, torch.ones(1, WIDTH).double())


def test_a_nonlinearity_on_the_trunk_stops_or_is_frozen() -> None:
    module = ready(Vit(trunk=Cubed()))
    stopped = unweave.plan(module, pictures(2))
    (lump,) = stopped.lumps
    assert (lump.operation, lump.module) == ("aten.tanh", "trunk") and "not linear" in lump.reason
    adds_up(stopped.run(pictures()))
    frozen = unweave.plan(module, pictures(2), nonlinear="freeze")
    adds_up(frozen.run(pictures()))
    assert frozen.coverage.resolved == 2 and not [part for part in frozen.components if part.kind == "lumped"]
    assert "approximation" in frozen.lumps[0].reason and "approximation" in str(frozen)
    ours, theirs = named(frozen.run(pictures())), named(stopped.run(pictures()))
    behind = [name for name in theirs if name.startswith("blocks.1")]
    assert behind and all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-12) for name in behind)


class MapReadout(nn.Module):
    """An MLP on tokens, and a readout of the whole map."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.norm, self.mlp, self.read = nn.Conv2d(3, WIDTH, 4, 4), nn.LayerNorm(WIDTH), Mlp(), read

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        return self.read(x + self.mlp(self.norm(x)))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.norm(dim=1),
        lambda x: nn.functional.glu(x).mean(1),
        lambda x: x.topk(3, 1).values.mean(1),
        lambda x: x.sort(1).values[:, :4].mean(1),
    ],
    ids=["norm", "glu", "topk", "sort"],
)
def test_what_is_no_gate_stops_under_freeze_too(read: Callable[[Tensor], Tensor]) -> None:
    plan = unweave.plan(ready(MapReadout(read)), pictures(2), nonlinear="freeze")
    adds_up(plan.run(pictures()))
    (lump,) = plan.lumps
    assert lump.reason == "it is not linear", "freeze is no cure here, and is not offered as one"


@pytest.mark.parametrize("read", [lambda x: x.min(1).values, lambda x: x.max(1).values], ids=["min", "max"])
def test_the_winner_of_a_readout_is_held(read: Callable[[Tensor], Tensor]) -> None:
    plan = unweave.plan(ready(MapReadout(read)), pictures(2))
    adds_up(plan.run(pictures()))
    assert not plan.lumps and [part.kind for part in plan.components] == ["embed", "mlp", "bias"]


class Recurrent(nn.Module):
    """A recurrent layer as the branch of a block (Sequencer)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rnn = nn.Conv2d(3, WIDTH, 4, 4), nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        return (x + self.rnn(x)[0]).mean(1)


def test_a_recurrent_layer_is_the_nonlinearity_of_its_branch() -> None:
    plan = unweave.plan(ready(Recurrent()), pictures(2))
    adds_up(plan.run(pictures()))
    assert not plan.lumps and "mlp" in [part.kind for part in plan.components]


class ClassMlp(nn.Module):
    """An MLP of the class token alone, laid beside the other tokens before both are added (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.mlp = nn.Conv2d(3, WIDTH, 4, 4), nn.LayerNorm(WIDTH), Mlp()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.attn = Block()

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        x = self.norm(self.attn(torch.cat([self.token.expand(len(x), -1, -1), x], 1)))
        x = x + torch.cat([self.mlp(x[:, :1]), x[:, 1:]], 1)
        return x[:, 0]


def test_an_mlp_of_one_token_is_a_branch_though_the_others_are_laid_beside_it() -> None:
    module = ready(ClassMlp())
    plan = unweave.plan(module, pictures(2))
    result = plan.run(pictures())
    adds_up(result)
    assert not plan.lumps and plan.coverage.resolved == plan.coverage.attention_layers == 1
    x = module.stem(pictures()).flatten(2).transpose(1, 2)
    x = module.norm(module.attn(torch.cat([module.token.expand(len(x), -1, -1), x], 1)))
    alone = module.mlp(x[:, 0]) - module.mlp.fc2.bias
    assert (named(result)["mlp"] - alone).abs().max() < 1e-12


@pytest.mark.parametrize("readout", ["late", "pool"])
def test_attention_to_another_stream_is_passed_or_ends_there(readout: str) -> None:
    module = ready(Vit(readout=readout))
    layer = {"late": "last.attn", "pool": "pool"}[readout]
    passed = unweave.plan(module, pictures(2), attention="through")
    stopped = unweave.plan(module, pictures(2), attention="stop")
    for plan in (passed, stopped):
        adds_up(plan.run(pictures()))
        assert not plan.lumps
    assert passed.coverage.passed == (layer,) and passed.coverage.resolved == 3
    heads = {part.path for part in passed.components if part.kind == "head"}
    assert {"blocks.0.attn", "blocks.1.attn"} <= heads
    assert [part.head for part in stopped.components if part.path == layer and part.kind == "head"] == list(
        range(HEADS)
    )
    assert not [part for part in stopped.components if part.path.startswith("blocks.")]


# -- products that are no gates ---------------------------------------------------------------------------------------


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.7 * x)


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class SwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("act", [QuickGelu, SwiGlu, Squared])
def test_a_product_of_one_value_with_itself_is_where_an_mlp_ends(act: type[nn.Module]) -> None:
    """The neurons are the product's entries; taking its factors apart would make more of them, or follow the trunk."""
    module = Vit(act() if act is not SwiGlu else None)
    if act is SwiGlu:
        for block in module.blocks:
            block.mlp = SwiGlu()
    ready(module)
    plan = unweave.plan(module, pictures(2), level="neuron")
    adds_up(plan.run(pictures()))
    assert not plan.lumps
    entered: list[Tensor] = []
    last = module.blocks[1].mlp.down if act is SwiGlu else module.blocks[1].mlp.fc2
    handle = last.register_forward_hook(lambda _, given, __: entered.append(given[0][:, 0]))
    with torch.no_grad():
        module(pictures())
        at = {}
        pre = module.norm.register_forward_hook(lambda _, given, __: at.update(x=given[0][:, 0]))
        module(pictures())
        handle.remove()
        pre.remove()
        scale = (at["x"].var(-1, correction=0) + module.norm.eps).rsqrt()[:, None]
        ours = named(plan.run(pictures()))
        for neuron in range(6):
            written = entered[0][:, neuron, None] * last.weight[:, neuron]
            expected = (written - written.mean(-1, keepdim=True)) * scale * module.norm.weight
            assert (ours[f"blocks.1.mlp.neuron.{neuron}"] - expected).abs().max() < 1e-12


class Gated(nn.Module):
    """Squeeze-excite inside an MLP: the gate is held, the neurons are what is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(x)
        return x * torch.sigmoid(self.gate(x.mean(1, keepdim=True)))


def test_a_gate_from_the_mean_is_passed() -> None:
    plan = unweave.plan(ready(Vit(Gated())), pictures(2), level="neuron")
    adds_up(plan.run(pictures()))
    assert sum(part.neuron is not None for part in plan.components) == 12


def test_a_square_on_the_trunk_is_no_gate() -> None:
    plan = unweave.plan(ready(Vit(trunk=Squared())), pictures(2))
    adds_up(plan.run(pictures()))
    assert [part.path for part in plan.components if part.kind == "lumped"] == ["trunk"]


class Shared(nn.Module):
    """One block run twice: two layers with one set of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn, self.mlp = nn.Conv2d(3, WIDTH, 8, 8), Attention(), Mlp()

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        for _ in range(2):
            x = x + self.attn(x)
            x = x + self.mlp(x)
        return x.mean(1)


def test_a_block_that_runs_twice_is_two_layers() -> None:
    plan = unweave.plan(ready(Shared()), pictures(2))
    adds_up(plan.run(pictures()))
    assert plan.coverage.resolved == plan.coverage.attention_layers == 2
    names = [str(part) for part in plan.components]
    assert len(names) == len(set(names)) and sum(part.kind == "head" for part in plan.components) == 2 * HEADS


class Modulated(nn.Module):
    """Heads whose output is scaled by a weight, and multiplied by what else is made of the tokens (iFormer)."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.embed, self.attn, self.gate = nn.Conv2d(3, WIDTH, 8, 8), Attention(), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.zeros(WIDTH)) if scaled else None

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens, and the heads' outputs beside the gate."""
        x = self.embed(images).flatten(2).transpose(1, 2)
        q, k, v = (own(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for own in (self.attn.q, self.attn.k, self.attn.v))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x, (seen if self.scale is None else seen * self.scale) * self.gate(x)

    def forward(self, images: Tensor) -> Tensor:
        x, heads = self.heads(images)
        return (x + self.attn.proj(heads)).mean(1)


@pytest.mark.parametrize("scaled", [False, True])
def test_heads_beside_a_gate_are_followed_and_the_gate_is_held(scaled: bool) -> None:
    module = ready(Modulated(scaled))
    result = unweave.plan(module, pictures(2)).run(pictures())
    adds_up(result)
    ours = {part.head: result.values[:, column] for column, part in enumerate(result.components)}
    wide, (_, heads) = WIDTH // HEADS, module.heads(pictures())
    for head in range(HEADS):
        own = slice(head * wide, (head + 1) * wide)
        expected = (heads[..., own] @ module.attn.proj.weight[:, own].T).mean(1)
        assert (ours[head] - expected).abs().max() < 1e-12


class Aggregated(nn.Module):
    """Tokens summed by a convolution over them: its bias is one number for every channel (CoaT)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.sum = nn.Conv2d(3, WIDTH, 8, 8), Mlp(), nn.Conv1d(4, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        return self.sum(x + self.mlp(x)).squeeze(1)


def test_a_bias_of_one_number_is_that_number_in_every_channel() -> None:
    module = ready(Aggregated())
    result = unweave.plan(module, pictures(2)).run(pictures())
    adds_up(result)
    assert torch.equal(named(result)["sum.bias"], module.sum.bias.expand(len(pictures()), WIDTH))


def test_the_report_is_the_plan() -> None:
    report, plan = plan_of().report(), plan_of()
    assert report["dim"] == plan.dim == WIDTH
    assert [part["name"] for part in report["components"]] == [str(part) for part in plan.components]
    assert report["coverage"]["resolved"] == report["coverage"]["attention_layers"] == 2
    assert f"{len(plan.components)} components" in str(plan)
