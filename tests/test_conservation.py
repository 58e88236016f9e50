"""The contributions add up to the representation, for every family, dtype and batch size; a broken sum is fatal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import unweave
from families import FAMILIES, Family
from plans import plan_of
from unweave.decomposition.program import Program
from unweave.errors import ConservationError

BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=lambda dtype: str(dtype).removeprefix("torch."))


@dtypes
@families
def test_contributions_add_up_for_every_batch_size_on_one_plan(family: Family, dtype: torch.dtype) -> None:
    module, plan = family.make(dtype), plan_of(family, dtype)
    for count in (1, 2, 5):
        images = family.images(count, dtype, seed=count)
        representation = module(images)
        result = plan.run(images)
        size = representation.norm(dim=-1)
        total = result.values.double().sum(1)
        assert result.values.shape == (count, len(plan.components), representation.shape[1])
        assert (result.representation - representation).norm() <= BOUNDS[dtype] * size.norm()
        assert ((total - representation).norm(dim=-1) / size).max() <= BOUNDS[dtype]
        assert result.error.max() <= BOUNDS[dtype]


@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if family.name in ("timm/deit", "timm/swin")],
    ids=lambda family: family.name,
)
@pytest.mark.parametrize("level", ["layer", "head", "token", "neuron"])
def test_contributions_add_up_at_every_level(family: Family, level: str) -> None:
    images = family.images(3)
    result = plan_of(family, level=level).run(images)
    size = result.representation.norm(dim=-1)
    assert ((result.values.sum(1) - result.representation).norm(dim=-1) / size).max() <= BOUNDS[torch.float64]


def test_a_broken_sum_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One contribution of one image is a millionth too large: the error names the image; a wide tolerance passes."""
    honest = Program.run

    def boastful(self: Program, *given: Tensor) -> tuple[Tensor, Tensor]:
        values, representation = honest(self, *given)
        values = values.clone()
        values[1, 1] *= 1 + 1e-6
        return values, representation

    family = next(family for family in FAMILIES if family.name == "timm/deit")
    images = family.images(3)
    plan = plan_of(family)
    monkeypatch.setattr(Program, "run", boastful)
    with pytest.raises(ConservationError, match="image second"):
        plan.run(images, ids=["first", "second", "third"])
    error = plan.run(images, tolerance=1e-5).error
    assert error[1] > 1e-8
    assert error[[0, 2]].max() < 1e-12


def test_weights_that_change_between_runs_are_noticed() -> None:
    """A plan keeps products of weights; they must not outlive the weights."""
    family = next(family for family in FAMILIES if family.name == "timm/deit")
    module, images = family.make(), family.images(2)
    plan = unweave.plan(module, images)
    before = plan.run(images)
    module.get_parameter("blocks.0.attn.proj.weight").mul_(1.5)
    after = plan.run(images)
    assert (after.representation - module(images)).abs().max() < 1e-12
    assert not torch.allclose(before.values, after.values)
