"""What can be captured, for which numbers of images, by how many threads at once; and what a refusal says."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import unweave
from tiny import HEADS, SIZE, WIDTH, Vit, pictures, ready
from unweave.errors import CaptureError


class Tail(nn.Module):
    """A model, and something done with what it returns (and with the images)."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.last = Vit(), nn.Linear(WIDTH, WIDTH)


class Len(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.model(x)).view(len(x), -1)


class Int(Tail):
    def forward(self, x: Tensor) -> Tensor:
        count = int(x.shape[0])
        halves = self.model(x).reshape(count * 2, -1) * 2
        return self.last(halves.reshape(count, -1) + torch.zeros(count, 1))


class Assert(Tail):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] == 2
        return self.model(x)


class Range(Tail):
    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for row in range(x.shape[0]):
            parts.append(self.model(x[row : row + 1]))
        return torch.cat(parts)


class Iterate(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.model(image[None]) for image in x])


class Unbind(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        parts = z.unbind(0)
        return self.last(torch.stack(parts))


class Root(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / math.sqrt(x.shape[0])


class If(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        if z.sum() > 0:
            z = self.last(z)
        return z


class Float(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x).detach()
        return z * float(z.mean())


class Index(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        largest = int(z.sum(0).argmax())
        return z[:, largest:]


class Numpy(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z * torch.from_numpy(z.detach().numpy())


class Made(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z * torch.tensor([z.mean(), 1.0]).sum()


class Raises(Tail):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("it is Monday")


@pytest.mark.parametrize("kind", [Len, Int])
def test_a_python_number_of_the_batch_size_is_no_matter(kind: type[nn.Module]) -> None:
    module = ready(kind())
    plan = unweave.plan(module, pictures(2))
    assert sum(part.kind == "head" for part in plan.components) == 2 * HEADS and not plan.lumps
    for count in (1, 2, 3, 4, 7):
        result = plan.run(pictures(count))
        assert (result.representation - module(pictures(count))).abs().sum() < 1e-12
        assert result.error.sum() < 1e-12


@pytest.mark.parametrize(
    ("kind", "line", "cure"),
    [
        (Assert, "assert x.shape[0] == 2", "leave that assertion out"),
        (Range, "for row in range(x.shape[0]):", "without a loop"),
        (Iterate, "for image in x", "without a loop"),
        (Unbind, "z.unbind(0)", "without taking them apart"),
        (Root, "math.sqrt(x.shape[0])", "without making a Python number of it"),
    ],
)
def test_another_program_for_each_batch_size_is_refused(kind: type[nn.Module], line: str, cure: str) -> None:
    with pytest.raises(CaptureError, match="another program for each number of images") as caught:
        unweave.plan(ready(kind()), pictures(2))
    assert "test_export.py:" in caught.value.where and line in caught.value.where and cure in caught.value.cure


@pytest.mark.parametrize(
    ("kind", "line", "cure"),
    [
        (If, "if z.sum() > 0:", "torch.where"),
        (Float, "float(z.mean())", "a tensor of one entry"),
        (Index, "int(z.sum(0).argmax())", "index_select"),
        (Numpy, "z.detach().numpy()", "torch's operations"),
        (Made, "torch.tensor([z.mean(), 1.0])", "torch.stack"),
        (Raises, "raise ValueError", "tensor operations"),
    ],
)
def test_what_does_not_export_says_where_and_what_to_do(kind: type[nn.Module], line: str, cure: str) -> None:
    with pytest.raises(CaptureError, match=f"could not capture {kind.__name__}") as caught:
        unweave.plan(ready(kind()), pictures(2))
    assert "test_export.py:" in caught.value.where and line in caught.value.where and cure in caught.value.cure


class Item(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z * z[0, 0].item() + torch.tensor(2.0)


def test_an_item_that_only_multiplies_is_captured() -> None:
    module = ready(Item()).requires_grad_(False)
    for count in (1, 2, 5):
        result = unweave.plan(module, pictures(2)).run(pictures(count))
        assert (result.representation - module(pictures(count))).abs().max() < 1e-12


class Large(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        if x.shape[0] > 4:
            z = self.last(z)
        return z


def test_a_decision_by_the_batch_size_holds_for_those_it_was_made_for() -> None:
    module = ready(Large())
    plan = unweave.plan(module, pictures(2))
    for count in (0, 1, 4):
        assert torch.allclose(plan.run(pictures(count)).representation, module(pictures(count)))
    for call in (plan.run, lambda images: plan.project(images, torch.ones(1, WIDTH).double())):
        with pytest.raises(CaptureError, match=r"Of 5 images") as caught:
            call(pictures(5))
        assert "if x.shape[0] > 4:" in caught.value.where and caught.value.cure == "give it 4 images at a time"


class Squeezed(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.model(x)[:, None].squeeze())


class Single(Tail):
    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return self.last(z) if x.shape[0] == 1 else z


@pytest.mark.parametrize("kind", [Squeezed, Single])
def test_a_single_image_that_is_a_special_case_is_refused(kind: type[nn.Module]) -> None:
    """Torch takes it that no forward asks whether there is one image, and says nothing of it."""
    module = ready(kind()).requires_grad_(False)
    plan = unweave.plan(module, pictures(1))
    assert torch.allclose(plan.run(pictures(3)).representation, module(pictures(3)))
    with pytest.raises(CaptureError, match="Of 1 image the model computes something else") as caught:
        plan.run(pictures(1))
    assert caught.value.cure == "give it 2 images at a time"


class Pairs(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).view(-1, 2, WIDTH).roll(1, 1).reshape(-1, WIDTH)


def test_a_model_of_pairs_of_images_is_refused() -> None:
    with pytest.raises(CaptureError, match="in a way other than their number") as caught:
        unweave.plan(ready(Pairs()), pictures(2))
    assert "view(-1, 2, WIDTH)" in caught.value.where


def test_threads_that_plan_at_once() -> None:
    modules = [ready(Vit(act=act)) for act in (nn.GELU(), nn.ReLU(), nn.SiLU(), nn.Tanh())]
    expected = [unweave.plan(module, pictures(2)).run(pictures()) for module in modules]
    results: dict[int, object] = {}
    gate = threading.Barrier(len(modules))

    def work(number: int) -> None:
        gate.wait()
        try:
            results[number] = unweave.plan(modules[number], pictures(2)).run(pictures())
        except BaseException as error:
            results[number] = error

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(modules))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for number, result in enumerate(expected):
        got = results[number]
        assert isinstance(got, unweave.Contributions), got
        assert torch.equal(got.values, result.values) and got.components == result.components


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes_of_gradients_around_it_all(mode: Callable[[], torch.autograd.grad_mode.no_grad]) -> None:
    module = ready(Vit())
    expected = unweave.plan(module, pictures(2)).run(pictures())
    directions = torch.ones(2, WIDTH).double()
    with mode():
        plan = unweave.plan(module, pictures(2))
        inside = [plan.run(pictures()).values, plan.project(pictures(), directions).values]
        alone = unweave.decompose(module, pictures()).values
    outside = [plan.run(pictures()).values, plan.project(pictures(), directions).values]
    for one, other in pairwise([inside[0], outside[0], alone, expected.values]):
        assert torch.equal(one, other) and not one.requires_grad
    assert torch.equal(inside[1], outside[1])
    before = expected.representation.clone()
    with mode(), torch.no_grad():
        module.norm.weight.mul_(2)
        after = plan.run(pictures()).representation
    assert not torch.allclose(before, after) and torch.allclose(after, module(pictures()).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_around_it_all_changes_nothing(dtype: torch.dtype) -> None:
    module, images = ready(Vit(), dtype), pictures(3, dtype)
    directions = torch.ones(2, WIDTH)
    expected = unweave.plan(module, images[:2]).run(images)
    with torch.autocast("cpu", torch.bfloat16):
        plan = unweave.plan(module, images[:2])
        results = [plan.run(images), unweave.decompose(module, images)]
        scores = plan.project(images, directions)
    for result in results:
        assert torch.equal(result.values, expected.values)
        assert torch.equal(result.representation, expected.representation)
    assert torch.equal(scores.values, plan.project(images, directions).values)


def test_an_example_says_the_size_only() -> None:
    module = ready(Vit())
    expected = unweave.plan(module, pictures(2)).run(pictures()).values
    for example in (torch.zeros(1, 3, SIZE, SIZE), torch.ones(5, 3, SIZE, SIZE), torch.zeros(2, 3, SIZE, SIZE)):
        assert torch.equal(unweave.plan(module, example.double()).run(pictures()).values, expected)
