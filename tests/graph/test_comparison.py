"""A plan is made only of a graph that computes what the module does."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unweave
from tiny import WIDTH, Vit, pictures, ready
from unweave.errors import CaptureError, NonFiniteError
from unweave.graph.comparison import difference, varied
from unweave.graph.export import capture


class Around(nn.Module):
    """A model whose forward does something more."""

    def __init__(self, more: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.more, self.calls, self.seen = Vit(), more, 0, None

    def forward(self, images: Tensor) -> Tensor:
        return self.more(self, self.model(images))


def counting(self: Around, z: Tensor) -> Tensor:
    self.calls += 1
    return z * self.calls


def elsewhere(calls: list[int]) -> Callable[[nn.Module, Tensor], Tensor]:
    def more(_: nn.Module, z: Tensor) -> Tensor:
        calls.append(1)
        return z * len(calls)

    return more


def casting(self: Around, z: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return z @ torch.eye(WIDTH) * 1.01


@pytest.mark.parametrize(
    "more", [elsewhere([]), casting, lambda _, z: z * random.random()], ids=["state", "autocast", "random"]
)
def test_a_graph_that_computes_something_else_is_refused(more: Callable[[nn.Module, Tensor], Tensor]) -> None:
    module = ready(Around(more), torch.float32)
    with pytest.raises(CaptureError, match=r"differ by .+ of their norm, more than 1e-05") as caught:
        unweave.plan(module, pictures(2, torch.float32))
    for cause in ("autocast", "state", "random"):
        assert cause in str(caught.value)


def test_the_comparison_leaves_the_module_as_it_was() -> None:
    """A call of the module may count calls, keep what it saw, and write batch statistics; this one must not."""

    def keeping(self: Around, z: Tensor) -> Tensor:
        self.calls, self.seen = self.calls + 1, z
        return z

    module = ready(Around(keeping))
    module.model.trunk = nn.BatchNorm1d(5).double()
    module.train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    drawn = torch.random.get_rng_state()
    unweave.plan(module, pictures(2))
    assert module.seen is None and module.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_a_module_that_only_exports_is_refused() -> None:
    def picky(_: nn.Module, z: Tensor) -> Tensor:
        if type(z) is Tensor:
            raise ValueError("not today")
        return z

    with pytest.raises(CaptureError, match="does not run on 2 images: ValueError: not today"):
        unweave.plan(ready(Around(picky)), pictures(2))


def test_the_difference_is_relative_and_sees_what_is_not_finite() -> None:
    module, images = ready(Vit()), pictures(2)
    graph = capture(module, images)
    assert difference(graph, module, images) < 1e-15
    for factor in (1.5, float("nan"), float("inf")):
        changed = ready(Around(lambda _, z, factor=factor: z * factor))
        changed.model = module
        if factor == 1.5:
            assert difference(graph, changed, images) == pytest.approx(1 / 3)
        else:
            with pytest.raises(NonFiniteError, match="NaN or infinite"):
                difference(graph, changed, images)
    overflowing = ready(Around(lambda _, z: z / 0))
    assert difference(capture(overflowing, images), overflowing, images) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_to_compare_on_are_not_constant_and_not_the_same(dtype: torch.dtype, count: int) -> None:
    for example in (torch.zeros(count, 3, 8, 8), torch.rand(1, 3, 8, 8).expand(count, -1, -1, -1) * 200):
        images = varied(example.to(dtype))
        assert images.shape == (2, 3, 8, 8) and images.dtype == dtype
        assert not torch.equal(images[0], images[1])
        assert all(image.float().std() > 0 for image in images)
    good = torch.randint(0, 200, (3, 3, 8, 8)).to(dtype)
    assert torch.equal(varied(good), good[:2])


def test_a_constant_example_hides_nothing() -> None:
    """Of an image of zeros, half of it is the same as the whole."""
    calls: list[int] = []
    module = ready(Around(elsewhere(calls)))
    module.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, WIDTH, bias=False)).double()
    with pytest.raises(CaptureError, match="differ"):
        unweave.plan(module, torch.zeros(2, 3, 16, 16).double())
