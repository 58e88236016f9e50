"""Convolutions: a linear layer over channels and window offsets; the windows are structure, not weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unweave.adjoint.operand import Axis, Constant, Irregular, Operand, fresh, reading
from unweave.adjoint.term import Term
from unweave.graph.graph import Extent
from unweave.operations.table import Reads, Step, rule


def windows(step: Step, term: Term, kernel: Sequence[int]) -> tuple[Term, list[Axis]]:
    """The map of an input whose axes from the third on were read in windows, and the axes of the offsets within these.

    Args:
        step: The operation, with its `stride`, `padding` and `dilation`.
        term: The map whose axes run over the windows.
        kernel: The size of the windows.
    """
    stride = spread(step["stride"] or kernel, len(kernel))
    padding, dilation = _padding(step, kernel), spread(step["dilation"], len(kernel))
    offsets = []
    for number, size in enumerate(kernel):
        length = step.extents("input")[number + 2].size
        term, offset = _windows(term, number + 2, length, size, stride[number], padding[number], dilation[number])
        offsets.append(offset)
    return term, offsets


def _windows(
    term: Term, dim: int, length: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[Term, Axis]:
    """The same along one axis, of an input of this length."""
    axis = term.axes[dim]
    offsets = Axis(fresh(kernel))
    axes = list(term.axes)
    if (
        kernel == stride
        and padding == 0
        and dilation == 1
        and axis.extent.size * kernel == length
        and axis.take is None
    ):
        axes[dim] = Axis(axis.indices + offsets.indices)  # windows that tile the axis: a view
        return term.read(axes), offsets
    starts = axis.positions() * stride - padding
    if kernel == 1 and padding == 0:
        axes[dim] = reading(axis.indices, starts.tolist(), length)
        return term.read(axes), offsets
    places = starts[:, None] + np.arange(kernel) * dilation
    inside = (places >= 0) & (places < length)
    read, position = np.unique(places[inside], return_inverse=True)
    axes[dim] = reading(fresh(len(read)), read.tolist(), length)
    one_hot = np.zeros((*places.shape, len(read)))
    one_hot[(*np.nonzero(inside), position)] = 1
    own = Axis(axis.indices)
    shape = [len(starts)] * bool(own.indices) + [kernel] * bool(offsets.indices) + [len(read)] * (len(read) > 1)
    sides = [side for side in (own, offsets, Axis(axes[dim].indices)) if side.indices]
    return term.times(Operand(Constant.array(one_hot.reshape(shape)), tuple(sides))).read(axes), offsets


@rule("aten.im2col", kind="linear", entries="picked")
def unfold(step: Step, term: Term) -> Reads:
    """Windows laid out as channels: `[b, c, h, w] -> [b, c*kh*kw, windows]`."""
    image, channels, *positions = step.extents("input")
    tilings = [_tiling(step, number, extent.size) for number, extent in enumerate(positions)]
    shape = [Extent(size) for tiling in tilings for size in tiling.shape]
    split = term.regrouped([image, channels, shape[1], shape[4], shape[0], shape[3]])
    axes = list(split.axes[:2])
    for number, tiling in enumerate(tilings):
        offset, start = split.axes[2 + number], split.axes[4 + number]
        pixels = Axis(fresh(positions[number].size))
        split = split.times(Operand(Constant.array(tiling), (start, offset, pixels)))
        axes.append(pixels)
    yield step["input"], split.read(axes)


@rule("aten.col2im", kind="linear", mixes="axes")
def fold(step: Step, term: Term) -> Reads:
    """Windows laid back over each other and summed: `[b, c*kh*kw, windows] -> [b, c, h, w]`."""
    _image, _channels, *positions = step.output
    tilings = [_tiling(step, number, extent.size) for number, extent in enumerate(positions)]
    moved, starts, offsets = term, [], []
    for number, tiling in enumerate(tilings):
        start, offset = Axis(fresh(tiling.shape[0])), Axis(fresh(tiling.shape[1]))
        moved = moved.times(Operand(Constant.array(tiling), (start, offset, term.axes[2 + number])))
        starts.append(start)
        offsets.append(offset)
    yield step["input"], moved.read([*term.axes[:2], *offsets, *starts]).regrouped(step.extents("input"))


def _tiling(step: Step, number: int, length: int) -> np.ndarray:
    """Which pixel each window reads, `[window, offset, pixel]`, along one axis."""
    kernel, stride, padding, dilation = (
        step[name][number] for name in ("kernel_size", "stride", "padding", "dilation")
    )
    count = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    pixels = (np.arange(count) * stride - padding)[:, None] + np.arange(kernel) * dilation
    return (pixels[..., None] == np.arange(length)).astype(float)


@rule(
    "aten.conv1d",
    "aten.conv2d",
    "aten.conv3d",
    "aten.convolution",
    kind="linear",
    mixes="window",
    contracts=True,
    affine=("input", "weight", "bias"),
)
def convolution(step: Step, term: Term) -> Reads:
    """`y[b, o, p] = sum_{c, k} w[o, c, k] x[b, c, p * stride + k] + bias[o]`, in groups."""
    if step.given.get("transposed") or step.moves(step["weight"]):
        raise Irregular("a transposed convolution, or one whose weight depends on the image")
    image, channels, *positions = step.output
    kernel = [extent.size for extent in step.extents("weight")[2:]]
    groups = int(step["groups"])
    moved = term
    if groups > 1:
        moved = moved.regrouped([image, Extent(groups), Extent(channels.size // groups), *positions])
        own, lead = _flat(moved.axes[1], moved.axes[2]), moved.axes[1]
        moved = moved.read([moved.axes[0], own, *moved.axes[3:]])
    else:
        own, lead = moved.axes[1], Axis()
    inner = Axis(fresh(step.extents("weight")[1].size))
    moved, offsets = windows(step, moved, kernel)
    weight = Operand(Constant.of(step["weight"]), (own, inner, *offsets))
    contracted = _flat(lead, inner)
    yield (
        step["input"],
        moved.times(weight).read([moved.axes[0], contracted, *moved.axes[2:]]).through(contracted.indices),
    )
    if step["bias"] is not None:
        yield step["bias"], term.read([term.axes[1]])


def _flat(outer: Axis, inner: Axis) -> Axis:
    """Two axes as the one that they make."""
    places = outer.positions()[:, None] * inner.extent.size + inner.positions()
    return reading(outer.indices + inner.indices, places.ravel().tolist(), outer.extent.size * inner.extent.size)


def _padding(step: Step, kernel: Sequence[int]) -> list[int]:
    if step["padding"] == "valid":
        return [0] * len(kernel)
    if step["padding"] != "same":
        return spread(step["padding"], len(kernel))
    totals = [gap * (size - 1) for gap, size in zip(spread(step["dilation"], len(kernel)), kernel, strict=True)]
    if any(total % 2 for total in totals):
        raise Irregular("'same' padding that is not symmetric")
    return [total // 2 for total in totals]


def spread(value: int | Sequence[int], count: int) -> list[int]:
    """One whole number for each of so many axes."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values
