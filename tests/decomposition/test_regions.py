"""Regions, held against networks that pool by hand, in float64, and against what a plan of the whole image says."""

from __future__ import annotations

from types import MethodType

import pytest
import timm
import torch
from torch import Tensor, nn

import trunks
import unweave
from random_networks import Network, images_of, network_of
from replay import truth
from unweave import regions
from unweave.errors import ArgumentError, CaptureError, ConservationError
from verdicts import held_against

LEAST, CHUNK = 15, 30

NORMED_FIRST = (
    "norm, class token",
    "norm, mean",
    "norm, mean of the map",
    "norm, mean of the patches",
    "two class tokens averaged",
    "class token plus mean",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d, flatten",
    "learned weights of tokens",
    "mean of the tokens of a mask",
)
POOLED_FIRST = ("class token, LayerNorm", "mean, LayerNorm", "mean, LayerNorm of the map")
BARE = ("no norm, class token", "no norm, mean")


def by_hand(network: Network, weights: Tensor) -> bool:
    """Makes a network pool by weights of its tokens, `[image, token]`, where it is known how it reads them."""
    (name,) = [chosen for category, chosen, _ in network.drawn if category == "readout"]
    assert name in trunks.READOUTS
    readout = network.readout

    def pooled(x: Tensor) -> Tensor:
        rows = x.flatten(2).mT if x.dim() == 4 else x
        copies = weights.repeat(len(x) // len(weights), 1)
        return torch.einsum("bt,btd->bd", copies, rows)

    def normed_first(self: nn.Module, x: Tensor) -> Tensor:
        return pooled(self.norm(x))

    def pooled_first(self: nn.Module, x: Tensor) -> Tensor:
        return self.norm(pooled(x))

    def bare(self: nn.Module, x: Tensor) -> Tensor:
        return pooled(x)

    for names, forward in ((NORMED_FIRST, normed_first), (POOLED_FIRST, pooled_first), (BARE, bare)):
        if name in names:
            readout.forward = MethodType(forward, readout)
            return True
    return False


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.sweep) for first in range(CHUNK, 600, CHUNK))]
)
def test_every_piece_of_random_networks_of_a_region(first: int) -> None:
    """What each component writes into a region is what the network says that pools this region by hand."""
    judged, wrong = 0, []
    for seed in range(first, first + CHUNK):
        network = network_of(seed)
        images = images_of(network)
        plan = unweave.plan(network, images, regions=True)
        weights = torch.rand(len(images), 2, plan.tokens.count, dtype=torch.float64).softmax(-1)
        again = network_of(seed)
        if plan.tokens.weights is None or not by_hand(again, weights[:, 1]):
            continue
        found, planned = plan.run(images, weights), plan.of(2)
        values, representation = found.values[:, 1], found.representation[:, 1]
        verdict = held_against(again, planned, planned.report(), values, representation, truth(again, images))
        judged += 1
        if verdict.kind not in ("match", "said"):
            wrong.append(f"seed {seed}: {verdict}")
    assert not wrong, "\n".join(wrong)
    assert judged >= LEAST


@pytest.mark.parametrize("level", ["layer", "head", "token", "neuron"])
@pytest.mark.parametrize("name", ["deit", "clip", "dinov2", "swin", "maxvit"])
def test_the_model_s_own_pooling_gives_its_own_contributions(name: str, level: str) -> None:
    model = unweave.load_model(f"pocket/{name}", dtype=torch.float64)
    images = model.example(2)
    whole = unweave.plan(model, level=level)
    plan = unweave.plan(model, level=level, regions=True)
    last = torch.eye(plan.tokens.count)[-1]
    found = plan.run(images, torch.stack([plan.tokens.weights, last]).double())
    expected = whole.run(images)
    assert (found.representation[:, 0] - expected.representation).abs().max() < 1e-9
    values = summed(found.values, plan.components)
    own = summed(expected.values[:, None], whole.components)
    assert values.keys() == own.keys()
    assert all((values[key][:, 0] - own[key][:, 0]).abs().max() < 1e-9 for key in own)
    assert any((values[key][:, 1] - own[key][:, 0]).abs().max() > 1e-3 for key in own)
    assert found.error.max() < 1e-12


def summed(values: Tensor, components: tuple[unweave.Component, ...]) -> dict[tuple[object, ...], Tensor]:
    """Contributions by module, head and neuron: an MLP at one pooled token is an MLP at many tokens of a region."""
    sums: dict[tuple[object, ...], Tensor] = {}
    for number, component in enumerate(components):
        token = component.token if component.head is not None else None
        key = (component.path, component.kind, component.head, component.neuron, token)
        sums[key] = sums.get(key, 0) + values[:, :, number]
    return sums


def tiny(**options: object) -> unweave.Model:
    return unweave.load_model("pocket/dinov2", **options)


def test_shapes_names_and_rows() -> None:
    model = tiny()
    plan = unweave.plan(model, regions=True)
    images = model.example(3)
    found = plan.run(images, [regions.token(0, 3), regions.box(0, 0, 16, 16), regions.prefix(0)], ids=["a", "b", "c"])
    assert found.values.shape == (3, 3, len(plan.components), plan.dim)
    assert found.representation.shape == (3, 3, plan.dim) and found.error.shape == (3, 3)
    again = plan.run(images, ["token 0,3", "box 0,0,16,16", "prefix 0"], ids=["a", "b", "c"])
    assert again.names == found.names and torch.equal(again.values, found.values)
    assert found.rows.ids[:4] == ("a token 0,3", "a box 0,0,16,16", "a prefix 0", "b token 0,3")
    assert found.rows.view().where(region="prefix 0").ids == ("a prefix 0", "b prefix 0", "c prefix 0")
    with torch.no_grad():
        assert torch.allclose(found.representation[:, 2], model.readout(images), atol=1e-5)
    assert torch.allclose(found.values.sum(2), found.representation, atol=1e-4)


def test_inner_products_are_those_of_the_vectors() -> None:
    model = tiny(dtype=torch.float64)
    plan = unweave.plan(model, regions=True)
    images = model.example(2)
    directions = torch.randn(3, plan.dim, dtype=torch.float64)
    found = plan.project(images, directions)
    cells = plan.grid.height * plan.grid.width
    assert found.values.shape == (2, cells, len(plan.components), 3)
    assert torch.allclose(found.values, plan.run(images).values @ directions.T, atol=1e-10)
    apart = torch.randn(len(plan.of(1).wholes), 2, plan.dim, dtype=torch.float64)
    each = plan.project(images, apart, regions.token(1, 1)).values
    expected = torch.einsum("ircd,ckd->irck", plan.run(images, regions.token(1, 1)).values, apart)
    assert torch.allclose(each, expected, atol=1e-10)


def test_every_image_may_have_its_own_regions() -> None:
    model = tiny()
    plan = unweave.plan(model, regions=True)
    images = model.example(2)
    both = plan.run(images, [[regions.token(0, 0)], [regions.token(5, 2)]])
    assert both.names == (("token 0,0",), ("token 5,2",))
    for row, region in enumerate((regions.token(0, 0), regions.token(5, 2))):
        alone = plan.run(images[row : row + 1], region)
        assert torch.allclose(alone.values[0], both.values[row], atol=1e-5)


def test_a_token_of_a_vit_is_what_timm_says() -> None:
    """timm's own tokens, by its own functions."""
    module = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval().double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plan = unweave.plan(module, images, regions=True)
    found = plan.run(images, [regions.token(2, 1), regions.box(16, 0, 48, 32)])
    with torch.no_grad():
        tokens = module.forward_features(images)[:, 1:].unflatten(1, (4, 4))
    assert torch.allclose(found.representation[:, 0], tokens[:, 2, 1], atol=1e-10)
    assert torch.allclose(found.representation[:, 1], tokens[:, 0:2, 1:3].mean((1, 2)), atol=1e-10)


def test_weights_that_change_are_followed() -> None:
    model = unweave.load_model("pocket/dinov2", seed=1)  # not the one that all tests share
    plan = unweave.plan(model, regions=True)
    images = model.example(2)
    before = plan.run(images, regions.token(0, 0)).representation
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.1)
    after = plan.run(images, regions.token(0, 0)).representation
    again = unweave.plan(model, regions=True).run(images, regions.token(0, 0)).representation
    assert (after - before).abs().max() > 1e-2
    assert torch.allclose(after, again, atol=1e-5)


def test_memory_is_known_before() -> None:
    plan = unweave.plan(tiny(), regions=True)
    columns = len(plan.components)
    assert plan.memory_per_image(64) > plan.memory_per_image(1) >= columns * plan.dim * 4
    assert plan.memory_per_image(64, 1) < plan.memory_per_image(64) / 10


class Attended(nn.Module):
    """Tokens that a learned query pools."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, global_pool="map")

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images)


def test_what_is_not_pooled_alike_is_read_at_the_tokens() -> None:
    module = Attended().eval().double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plan = unweave.plan(module, images, regions=True)
    assert plan.tokens.weights is None and "does not weigh tokens alike" in plan.readout
    found = plan.run(images, regions.token(2, 1))
    with torch.no_grad():
        tokens = module.vit.forward_features(images)
    row = 2 * 4 + 1 + tokens.shape[1] - 16
    assert torch.allclose(found.representation[:, 0], module.vit.norm(tokens)[:, row], atol=1e-10) or torch.allclose(
        found.representation[:, 0], tokens[:, row], atol=1e-10
    )


# -- weights of regions ------------------------------------------------------------------------------------------------


def test_a_box_over_one_cell_is_its_token_and_parts_count_by_their_area() -> None:
    grid = unweave.plan(tiny(), regions=True).grid
    size = (64, 64)
    assert torch.equal(regions.box(16, 8, 24, 16).weigh(grid, size), regions.token(1, 2).weigh(grid, size))
    weights = regions.box(4, 0, 16, 8).weigh(grid, size)
    assert torch.allclose(weights.sum(), torch.tensor(1.0))
    first, second = (grid.cells.index(cell) for cell in (0, 1))
    assert weights[first] == pytest.approx(1 / 3) and weights[second] == pytest.approx(2 / 3)


def test_a_mask_of_any_resolution() -> None:
    grid = unweave.plan(tiny(), regions=True).grid
    inside = torch.zeros(32, 32)
    inside[8:16, 4:8] = 1
    assert torch.allclose(regions.mask(inside).weigh(grid, (64, 64)), regions.box(8, 16, 16, 32).weigh(grid, (64, 64)))
    coarse = torch.zeros(5, 3)
    coarse[0, 0] = 1
    weights = regions.mask(coarse.numpy()).weigh(grid, (64, 64))
    assert weights.sum() == pytest.approx(1) and int((weights > 0).sum()) == 2 * 3


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (lambda: regions.token(8, 0), "no token in row 8"),
        (lambda: regions.token(-1, 0), "no token in row -1"),
        (lambda: regions.prefix(5), "no token 5 before"),
        (lambda: regions.box(0, 0, 0, 10), "no box"),
        (lambda: regions.box(0, 0, 65, 10), "no box"),
        (lambda: regions.mask(torch.zeros(4, 4)), "Nothing is inside"),
        (lambda: regions.mask(torch.ones(4)), "A mask is"),
        (lambda: regions.mask(torch.full((4, 4), float("nan"))), "A mask has values"),
        (lambda: [], "no regions"),
        (lambda: "cells", "no region 'cells'"),
        (lambda: "token 3", "no region 'token 3'"),
        (lambda: ["box 0,0,x,4"], "no region 'box"),
        (lambda: [[regions.token(0, 0)], [regions.token(0, 0)] * 2], "for 2 images"),
        (lambda: torch.ones(2, 9), "should be"),
    ],
)
def test_regions_that_cannot_be(region, says: str) -> None:
    model = tiny()
    with pytest.raises(ArgumentError, match=says):
        unweave.plan(model, regions=True).run(model.example(2), region())


def test_a_sum_that_does_not_hold_names_image_and_region() -> None:
    model = tiny()
    plan = unweave.plan(model, regions=True)
    with pytest.raises(ConservationError, match=r"image [bc] token 0,0"):
        plan.run(model.example(2), regions.token(0, 0), ids=["b", "c"], tolerance=0.0)


def test_a_model_without_tokens_says_so() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(3 * 8 * 8, 16), nn.Linear(16, 16)

        def forward(self, images: Tensor) -> Tensor:
            x = self.down(images.flatten(1))
            return x + self.up(x.relu())

    with pytest.raises(CaptureError, match="no tokens"):
        unweave.plan(Flat().eval(), torch.randn(2, 3, 8, 8), regions=True)


class Projected(nn.Module):
    """A tower whose tokens are multiplied by a matrix, and given the type of others of another grid."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.matrix = nn.Parameter(torch.randn(8, 6))

    def forward(self, images: Tensor) -> Tensor:
        fine = self.patches(images)
        coarse = nn.functional.avg_pool2d(fine, 2).flatten(2).transpose(1, 2)
        return (coarse @ self.matrix).type_as(fine.flatten(2).transpose(1, 2)).mean(1)


def test_places_pass_a_matrix_of_weights_and_what_only_lends_its_type() -> None:
    plan = unweave.plan(Projected().eval(), torch.randn(2, 3, 16, 16), regions=True)
    assert (plan.grid.height, plan.grid.width) == (2, 2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (regions.mask(-torch.ones(4, 4)), "below zero"),
        (regions.mask(torch.ones(3, 4, 4)), r"not \[3, 4, 4\]"),
    ],
)
def test_what_is_no_mask_is_refused(given: regions.Region, says: str) -> None:
    images = torch.randn(2, 3, 16, 16)
    plan = unweave.plan(Projected().eval(), images, regions=True)
    with pytest.raises(ArgumentError, match=says):
        plan.run(images, given)
