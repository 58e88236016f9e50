"""Pooling: means and resampling are linear; a maximum is linear once its winners are held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unweave.adjoint.operand import Axis, Constant, Irregular, Operand, Runtime, fresh
from unweave.adjoint.term import Term
from unweave.operations.convolution import spread, windows
from unweave.operations.table import Reads, Step, rule


def _reduced(step: Step, term: Term) -> tuple[list[int], list[Axis]]:
    """The axes that were reduced, and all axes of the input: of those a fresh one each."""
    extents = step.extents("input")
    given = step.given.get("dim")
    dims = [given] if isinstance(given, int) else list(given or [])
    reduced = sorted(dim % len(extents) for dim in dims) or list(range(len(extents)))
    if any(extents[dim].batch for dim in reduced):
        raise Irregular("a reduction runs over the images")
    axes = list(term.axes)
    for dim in reduced:
        new = Axis(fresh(extents[dim].size))
        axes[dim:dim] = [new]
        if step.given.get("keepdim"):
            del axes[dim + 1]
    return reduced, axes


@rule("aten.mean", kind="linear", mixes="axes")
def mean(step: Step, term: Term) -> Reads:
    """A mean over axes, as tokens are pooled."""
    reduced, axes = _reduced(step, term)
    count = prod(step.extents("input")[dim].size for dim in reduced)
    yield step["input"], term.times(scale=1 / count).read(axes)


@rule("aten.sum", kind="linear", mixes="axes")
def total(step: Step, term: Term) -> Reads:
    """A sum over axes."""
    yield step["input"], term.read(_reduced(step, term)[1])


@rule("aten.amax", kind="frozen", mixes="axes", pools=True)
def amax(step: Step, term: Term) -> Reads:
    """A maximum over axes: the winners are held."""
    reduced, axes = _reduced(step, term)
    yield step["input"], term.times(_winners(step, reduced, axes)).read(axes)


def _winners(step: Step, dims: Sequence[int], axes: Sequence[Axis]) -> Operand:
    """One where an entry is the (first) largest along some axes, else zero."""

    def winners(value: Tensor, _: Sequence[object]) -> Tensor:
        last = value.movedim(list(dims), list(range(-len(dims), 0)))
        flat = last.flatten(-len(dims))
        mask = torch.zeros_like(flat).scatter_(-1, flat.argmax(-1, keepdim=True), 1.0)
        return mask.reshape(last.shape).movedim(list(range(-len(dims), 0)), list(dims))

    return Operand(Runtime("winners", step.node, (step["input"],), winners), tuple(axes))


@rule("aten.cumsum", kind="linear", mixes="axes")
def cumsum(step: Step, term: Term) -> Reads:
    """Sums of all positions so far."""
    dim = step.dim()
    if step.output[dim].batch:
        raise Irregular("a sum runs over the images")
    yield step["input"], mixed(term, dim, np.tril(np.ones((step.output[dim].size, step.output[dim].size))))


@rule("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d", kind="linear", mixes="window")
def avg_pool(step: Step, term: Term) -> Reads:
    """A mean over windows."""
    rank = int(step.node.target.__name__.partition(".")[0][-2])  # type: ignore[union-attr]
    kernel, padding = spread(step["kernel_size"], rank), spread(step["padding"], rank)
    stride = spread(step["stride"] or kernel, rank)
    if step.given.get("divisor_override") is not None:
        raise Irregular("a pooling with a divisor of its own")
    moved = term
    for number, dim in enumerate(range(len(term.axes) - rank, len(term.axes))):
        size, length, border = kernel[number], step.extents("input")[dim].size, padding[number]
        matrix = np.zeros((step.output[dim].size, length))
        for place in range(len(matrix)):
            start = place * stride[number] - border
            end = min(start + size, length + border)
            count = end - start if step["count_include_pad"] else min(end, length) - max(start, 0)
            matrix[place, max(start, 0) : min(end, length)] = 1 / count
        moved = mixed(moved, dim, matrix)
    yield step["input"], moved


@rule("aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool1d", kind="linear", mixes="grid")
def adaptive_avg_pool(step: Step, term: Term) -> Reads:
    """A mean over regions that divide the axis evenly."""
    moved = term
    count = 2 if step.node.target.__name__.startswith("adaptive_avg_pool2d") else 1  # type: ignore[union-attr]
    for dim in range(len(term.axes) - count, len(term.axes)):
        out, length = step.output[dim].size, step.extents("input")[dim].size
        matrix = np.zeros((out, length))
        for place in range(out):
            start, end = place * length // out, -((-(place + 1) * length) // out)
            matrix[place, start:end] = 1 / (end - start)
        moved = mixed(moved, dim, matrix)
    yield step["input"], moved


def mixed(term: Term, dim: int, matrix: np.ndarray) -> Term:
    """The map of an input whose axis `dim` was multiplied by `matrix`, `[output, input]`."""
    out, length = matrix.shape
    size = length // out
    axes = list(term.axes)
    blocks = np.kron(np.eye(out), np.ones((1, size)) / size) if size * out == length else None
    if blocks is not None and np.array_equal(matrix, blocks) and axes[dim].take is None:
        axes[dim] = Axis(axes[dim].indices + fresh(size))
        return term.times(scale=1 / size).read(axes)
    new = fresh(length)
    axes[dim] = Axis(new)
    if length == 1:
        return term.times(Operand(_precise(matrix[:, 0]), (term.axes[dim],))).read(axes)
    return term.times(Operand(_precise(matrix), (term.axes[dim], Axis(new)))).read(axes)


def _precise(matrix: np.ndarray) -> Constant:
    """A matrix of fractions, which single precision would round."""
    tensor = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float64))
    return Constant(matrix.shape, (), lambda: tensor, ("matrix", matrix.shape, matrix.tobytes()))


@rule(
    "aten.upsample_nearest2d",
    "aten.upsample_bilinear2d",
    "aten.upsample_bicubic2d",
    "aten._upsample_bilinear2d_aa",
    "aten._upsample_bicubic2d_aa",
    "aten._upsample_nearest_exact2d",
    kind="linear",
    mixes="grid",
)
def upsample(step: Step, term: Term) -> Reads:
    """Resampling: one fixed matrix for each axis, read off the operation itself."""
    operation: Callable[..., Tensor] = step.node.target  # type: ignore[assignment]
    moved = term
    for dim in (2, 3):
        length, out = step.extents("input")[dim].size, step.output[dim].size
        # Two columns, not one: torch's antialiased kernels leave an image of one column as it is.
        unit = torch.eye(length, dtype=torch.float64)[None, :, :, None].repeat(1, 1, 1, 2)
        given = dict(step.given)
        if given.get("scale_factors"):  # a factor is not the quotient of the lengths
            given["scale_factors"] = [given["scale_factors"][dim - 2], 1.0]
        else:
            given |= {"output_size": [out, 2]}
        if "scales_h" in given:
            given |= {"scales_h": given["scales_h" if dim == 2 else "scales_w"], "scales_w": None}
        arguments = [unit if name == "input" else value for name, value in given.items()]
        moved = mixed(moved, dim, operation(*arguments)[0, :, :, 0].T.numpy())
    yield step["input"], moved


@rule("aten.max_pool2d", kind="frozen", mixes="window")
def max_pool2d(step: Step, term: Term) -> Reads:
    """A maximum over windows: the winners are held."""
    kernel, padding, dilation = (spread(step[name], 2) for name in ("kernel_size", "padding", "dilation"))
    stride = spread(step["stride"] or kernel, 2)
    if step["ceil_mode"]:
        raise Irregular("max pooling that rounds up")

    def winners(value: Tensor, _: Sequence[object]) -> Tensor:
        border = (padding[1], padding[1], padding[0], padding[0])
        padded = functional.pad(value, border, value=float("-inf"))
        spans = [(size - 1) * gap + 1 for size, gap in zip(kernel, dilation, strict=True)]
        patches = padded.unfold(2, spans[0], stride[0]).unfold(3, spans[1], stride[1])
        patches = patches[..., :: dilation[0], :: dilation[1]]
        flat = patches.flatten(4)
        mask = torch.zeros_like(flat).scatter_(4, flat.argmax(4, keepdim=True), 1.0)
        return mask.view(patches.shape)

    moved, inner = windows(step, term, kernel)
    factor = Operand(Runtime("winners", step.node, (step["input"],), winners), (*term.axes, *inner))
    yield step["input"], moved.times(factor).read(moved.axes)
