"""Every single contribution is right: the plan against the oracle that takes pieces away, family by family.

The sum cannot see a wrong attribution, so nothing here looks at sums of the plan's own values.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from families import FAMILIES, Family
from oracle import Name, Oracle
from plans import plan_of

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
dtypes = pytest.mark.parametrize(
    "family, dtype",
    [
        pytest.param(
            family,
            dtype,
            id=f"{family.name}-{str(dtype).removeprefix('torch.')}",
            # the twin is exact: single precision asks the same of all families, and takes as long
            marks=[pytest.mark.sweep] if dtype == torch.float32 and number % 6 else [],
        )
        for number, family in enumerate(FAMILIES)
        for dtype in BOUNDS
    ],
)


@cache
def oracle_of(family: Family) -> Oracle:
    return Oracle(family, family.make(), family.images(2))


@cache
def expected_of(family: Family) -> dict[Name, Tensor]:
    return oracle_of(family).contributions()


def disagreement(family: Family, ours: Tensor, theirs: Tensor | float) -> float:
    """How far apart two contributions are, relative to the representation, on the worst image."""
    size = oracle_of(family).representation.norm(dim=-1)
    return float(((ours.double() - theirs).norm(dim=-1) / size).max())


def check(family: Family, ours: dict[Name, Tensor], theirs: dict[Name, Tensor], bound: float) -> None:
    """The same names, and the same values under each; the message lists every name that is off."""
    faults = [f"not known to the oracle: {name}" for name in ours.keys() - theirs.keys()]
    for name, value in theirs.items():
        error = disagreement(family, ours.get(name, torch.zeros_like(value)), value)
        if error > bound:
            faults.append(f"{'off' if name in ours else 'missing'} by {error:.1e}: {name}")
    assert not faults, "\n".join(sorted(faults))


@families
def test_the_oracle_itself_accounts_for_everything(family: Family) -> None:
    """All removals together take away the representation, and no piece is so small that a fault would not show."""
    found = expected_of(family)
    assert disagreement(family, sum(found.values()), oracle_of(family).representation) < 1e-12
    assert min(disagreement(family, value, 0.0) for value in found.values()) > 1e-3


@cache
def tokens_of(family: Family) -> dict[Name, Tensor]:
    return oracle_of(family).tokens()


@families
def test_the_oracles_tokens_account_for_their_heads(family: Family) -> None:
    parts = tokens_of(family)
    whole = {reading.module for reading in family.readings}  # their heads read the class token alone
    for name, value in expected_of(family).items():
        if name[1] in ("head", "mlp") and name[0] not in whole:
            total = sum(part for other, part in parts.items() if other[:3] == name[:3])
            assert disagreement(family, value, total) < 1e-12, name


@families
def test_components_are_the_models_branches_in_order(family: Family) -> None:
    plan = plan_of(family)
    found = [(part.path, part.kind, part.head) for part in plan.components if part.kind != "bias"]
    # A head of class attention is a component too: what it reads from the class token itself.
    heads = {reading.module: reading.heads for reading in family.readings if reading.own}
    heads |= {branch.path: branch.heads for branch in family.branches if branch.heads}
    expected = {(path, "head", head) for path, count in heads.items() for head in range(count)}
    expected |= {(branch.path, branch.kind, None) for branch in family.branches if not branch.heads}
    assert len(found) == len(set(found))
    assert set(found) == expected | {("embed", "embed", None)}
    order = [branch.path for branch in family.branches]
    assert [path for path in dict.fromkeys(path for path, _, _ in found) if path in order] == order


@families
def test_every_attention_layer_is_resolved_into_heads(family: Family) -> None:
    coverage = plan_of(family).coverage
    assert coverage.attention_layers == sum(bool(branch.heads) for branch in family.branches) + len(family.readings)
    assert coverage.resolved == coverage.attention_layers
    assert not coverage.unresolved


@dtypes
def test_each_contribution_is_what_removing_it_takes_away(family: Family, dtype: torch.dtype) -> None:
    result = plan_of(family, dtype).run(family.images(2, dtype))
    ours = {
        (part.path, part.kind, part.head, None): result.values[:, column]
        for column, part in enumerate(result.components)
    }
    check(family, ours, expected_of(family), BOUNDS[dtype])


@dtypes
def test_each_token_of_a_head_is_what_removing_it_takes_away(family: Family, dtype: torch.dtype) -> None:
    plan = plan_of(family, dtype, level="token")
    result = plan.run(family.images(2, dtype))
    whole = {reading.module for reading in family.readings}
    ours, theirs = (
        {},
        tokens_of(family)
        | {name: value for name, value in expected_of(family).items() if name[0] in whole and name[1] == "head"},
    )
    for column, part in enumerate(result.components):
        if part.kind not in ("head", "mlp"):
            continue
        if part.path in whole:
            ours[part.path, part.kind, part.head, None] = result.values[:, column]
            continue
        if part.token is None:
            # An MLP of which the readout takes one token only has nothing to split.
            mine = {name: value for name, value in theirs.items() if name[:2] == (part.path, part.kind)}
            read = [name for name, value in mine.items() if disagreement(family, value, 0.0) > 1e-10]
            assert part.kind == "mlp" and len(read) == 1, str(part)
            ours[read[0]] = result.values[:, column]
            continue
        grid = plan.grids[part.path]
        cell = part.token
        if part.row is not None:
            raster = part.row * grid.width + part.column
            if family.tokens.cells is None:
                assert raster == part.token - grid.prefix
            else:
                cell = raster
        elif family.tokens.cells is not None and part.kind == "head":
            # What pads a window holds the bias of the values; the twin takes all of it at once.
            padding = (part.path, part.kind, part.head, -1)
            ours[padding] = ours.get(padding, 0) + result.values[:, column]
            continue
        ours[part.path, part.kind, part.head, cell] = result.values[:, column]
    check(family, ours, theirs, BOUNDS[dtype])


@pytest.mark.parametrize("name", ["timm/deit", "timm/swin", "timm/dinov2_swiglu", "hf/siglip"])
def test_each_neuron_is_what_removing_it_takes_away(name: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    result = plan_of(family, level="neuron").run(family.images(2))
    ours = {
        (part.path, part.kind, None, part.neuron): result.values[:, column]
        for column, part in enumerate(result.components)
        if part.neuron is not None and part.kind == "mlp"
    }
    check(family, ours, oracle_of(family).neurons(), BOUNDS[torch.float64])
