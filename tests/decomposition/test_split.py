"""Plans of which some components are split by token, and scores along directions that each component has of its own."""

import pytest
import torch

import unweave
from families import FAMILIES
from plans import plan_of
from tiny import Vit, pictures, ready
from unweave.components import Component
from unweave.errors import ArgumentError, UnweaveError

NAMES = ("timm/dinov2_reg", "timm/cait", "timm/siglip", "timm/swin_padded", "timm/maxvit", "timm/pvtv2", "hf/swin")
SOME = [family for family in FAMILIES if family.name in NAMES]


def gathered(plan, values):
    """What the tokens of each component add up to, `[image, whole, direction]`."""
    place = {whole: number for number, whole in enumerate(plan.wholes)}
    total = torch.zeros(values.shape[0], len(place), values.shape[2], dtype=values.dtype)
    return total.index_add_(1, torch.tensor([place[part.whole] for part in plan.components]), values)


@pytest.mark.parametrize("family", SOME, ids=lambda family: family.name)
def test_tokens_of_a_component_add_up_to_it_along_directions_of_its_own(family):
    plan = plan_of(family)
    split = plan.split("kind:head" if any(part.kind == "head" for part in plan.components) else None)
    assert set(split.wholes) == set(plan.components) and len(split.wholes) == len(plan.components)
    images = family.images(2, torch.float64)
    directions = torch.randn(len(split.wholes), 3, plan.dim, dtype=torch.float64)
    vectors = plan.run(images).values[:, [plan.components.index(whole) for whole in split.wholes]]
    found = split.project(images, directions)
    wanted = torch.einsum("ncd,ckd->nck", vectors, directions)
    assert torch.allclose(gathered(split, found.values), wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))
    assert float(found.error.max()) < 1e-10


def test_what_is_not_chosen_stays_whole():
    plan = unweave.plan(ready(Vit()), pictures(2))
    split = plan.split("blocks.1.attn.head.2")
    assert [part for part in split.components if part.token is None] == [
        part for part in plan.components if str(part) != "blocks.1.attn.head.2"
    ]
    tokens = [part for part in split.components if part.token is not None]
    assert [(part.row, part.column) for part in tokens] == [(None, None), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert {part.whole for part in tokens} == {Component("blocks.1.attn", "head", 1, 2)}
    assert float(split.run(pictures(3)).error.max()) < 1e-10


def test_tokens_measure_what_the_same_tokens_do_where_all_are_split():
    plan = unweave.plan(ready(Vit()), pictures(2), level="token")
    direction = torch.randn(1, plan.dim, dtype=torch.float64)
    every = dict(zip(plan.components, plan.project(pictures(3), direction).values.unbind(1), strict=True))
    split = plan.split("blocks.0.attn.head.1, blocks.1.attn.head.3")
    found = split.project(pictures(3), direction)
    for part, value in zip(split.components, found.values.unbind(1), strict=True):
        assert part.token is None or torch.allclose(value, every[part], atol=1e-12)


def test_other_directions_are_taken_the_next_time():
    plan = unweave.plan(ready(Vit()), pictures(2)).split("kind:head")
    first, second = torch.randn(2, len(plan.wholes), 1, plan.dim, dtype=torch.float64)
    before = plan.project(pictures(2), first).values
    assert not torch.allclose(plan.project(pictures(2), second).values, before)
    assert torch.equal(plan.project(pictures(2), first).values, before)


def test_the_sum_is_checked_though_components_have_directions_of_their_own(monkeypatch):
    plan = unweave.plan(ready(Vit()), pictures(2))
    program = plan._program(2, True)
    object.__setattr__(program.emissions[3], "scale", 1.1 * program.emissions[3].scale)
    with pytest.raises(UnweaveError, match="miss the representation"):
        plan.project(pictures(2), torch.randn(len(plan.wholes), 1, plan.dim, dtype=torch.float64))


def test_directions_that_do_not_fit_are_refused():
    plan = unweave.plan(ready(Vit()), pictures(2))
    with pytest.raises(UnweaveError, match="Directions should be"):
        plan.project(pictures(2), torch.randn(3, 1, plan.dim, dtype=torch.float64))
    with pytest.raises(UnweaveError, match="What was not selected"):
        some = plan.at(select="last:1")
        some.project(pictures(2), torch.randn(len(some.wholes), 1, plan.dim, dtype=torch.float64))
    with pytest.raises(ArgumentError):
        plan.split("nothing")
