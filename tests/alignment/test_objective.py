"""The objective against numpy, image by image and map by map; and what is free beside a component's range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unweave.alignment.objective import defect, objective, penalties
from unweave.alignment.ranges import completed, free, least, ranges

torch.manual_seed(0)


def naive(contributions, maps, bias, target, weight, form):
    """The equation, in loops."""
    cosines = []
    for image in range(len(contributions)):
        total = bias.copy()
        for component in range(len(maps)):
            total = total + contributions[image, component] @ maps[component]
        cosines.append(total @ target[image] / (np.linalg.norm(total) * np.linalg.norm(target[image])))
    cost = 0.0
    for map_ in maps:
        gram = map_ @ map_.T if map_.shape[0] <= map_.shape[1] else map_.T @ map_
        off = gram - np.eye(len(gram))
        cost += (off**2).mean() if form == "mean-squared" else np.sqrt((off**2).sum())
    return 1 - np.mean(cosines), weight * cost


@pytest.mark.parametrize("form", ["mean-squared", "frobenius"])
@pytest.mark.parametrize(("width", "dim"), [(6, 6), (4, 7), (7, 4)])
def test_the_objective_is_the_equation(form, width, dim):
    generator = torch.Generator().manual_seed(1)
    shapes = ((9, 3, width), (3, width, dim), (dim,), (9, dim))
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    ours = objective(*given, weight=0.3, form=form)
    theirs = naive(*(tensor.numpy() for tensor in given), 0.3, form)
    assert [float(tensor) for tensor in ours] == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("width", "dim"), [(6, 6), (4, 7), (7, 4)])
def test_an_isometry_costs_nothing(width, dim):
    left, _, right = torch.linalg.svd(torch.randn(width, dim, dtype=torch.float64), full_matrices=False)
    assert defect((left @ right)[None]).abs().max() < 1e-12
    assert float(penalties((left @ right)[None], "mean-squared")) < 1e-24


# --- ranges


def low_rank(images=40, width=7, ranks=(7, 3, 1, 0)):
    generator = torch.Generator().manual_seed(2)
    parts = [
        torch.randn(images, rank, generator=generator) @ torch.randn(rank, width, generator=generator) for rank in ranks
    ]
    return torch.stack(parts, 1)


def test_the_range_holds_every_contribution():
    values = low_rank()
    spans = ranges(values.split(16))
    assert spans.ranks == [7, 3, 1, 0]
    for number, basis in enumerate(spans.bases):
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5)
        assert torch.allclose(values[:, number] @ basis @ basis.T, values[:, number], atol=1e-4)
    maps = torch.randn(4, 7, 5)
    aligned = spans.within(values) @ spans.restricted(maps)
    assert torch.allclose(aligned, torch.einsum("ncw,cwd->nd", values, maps), atol=1e-4)


@pytest.mark.parametrize(
    ("width", "rank", "dim"),
    [(7, 3, 7), (7, 3, 9), (7, 7, 9), (9, 3, 5), (9, 7, 5), (9, 9, 5), (9, 4, 5), (6, 0, 6), (6, 0, 4)],
)
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_what_is_best_beside_the_range(width, rank, dim, scale):
    """The completed map acts as it should, has the least defect that is promised, and descent finds no smaller one."""
    generator = torch.Generator().manual_seed(width + rank)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q[:, :rank]
    small = scale * torch.randn(rank, dim, generator=generator, dtype=torch.float64) / max(rank, dim) ** 0.5
    whole = completed(basis, small)
    assert torch.allclose(basis.T @ whole, small, atol=1e-10)
    promised = float(least(small, width))
    assert float(defect(whole[None]).square().sum()) == pytest.approx(promised, abs=1e-9)
    complement = torch.linalg.qr(basis, mode="complete").Q[:, rank:] if rank else torch.eye(width).double()
    beside = torch.randn(width - rank, dim, generator=generator, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.LBFGS([beside], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        map_ = basis @ small + complement @ beside
        loss = defect(map_[None]).square().sum()
        loss.backward()
        return loss

    if width > rank:
        optimiser.step(closure)
        assert closure().item() > promised - 1e-9


def test_only_a_narrower_space_leaves_room():
    assert free(7, 7, 3) == free(7, 9, 3) == 0
    assert free(9, 5, 3) == 4 and free(9, 5, 7) == 2 and free(9, 5, 9) == 0


def test_the_least_defect_has_the_slope_of_its_value():
    for width, rank, dim in ((7, 3, 7), (9, 4, 5), (9, 7, 5)):
        small = torch.randn(rank, dim, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda matrix, width=width: least(matrix, width), (small,))


def test_half_precision_does_not_blur_the_range():
    values = low_rank(images=400)
    spans = ranges(values.half().float().split(100), torch.float16)
    assert spans.ranks == [7, 3, 1, 0]
