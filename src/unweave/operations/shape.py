"""Operations that move numbers without changing them: views, permutations, slices, concatenation, rolls, padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from torch import fx

from unweave.adjoint.operand import Axis, Constant, Irregular, Operand
from unweave.adjoint.term import Term
from unweave.graph.graph import Extent, extents_of
from unweave.operations.affine import number_of
from unweave.operations.table import Reads, Step, rule


@rule(
    "aten.clone",
    "aten.contiguous",
    "aten.detach",
    "aten.alias",
    "aten.to",
    "aten._to_copy",
    "aten.lift_fresh_copy",
    "aten.dropout",
    "aten.feature_dropout",
    "aten.positive",
    kind="linear",
    entries="same",
)
@rule("aten.type_as", kind="linear", entries="same", like="other")
def same(step: Step, term: Term) -> Reads:
    """Nothing changes (dropout is off in evaluation)."""
    yield step["input"], term


@rule(
    "aten.view",
    "aten.reshape",
    "aten._unsafe_view",
    "aten._reshape_copy",
    "aten.flatten",
    "aten.unflatten",
    "aten.squeeze",
    "aten.unsqueeze",
    kind="linear",
    entries="rearranged",
)
@rule("aten.view_as", "aten.reshape_as", kind="linear", entries="rearranged", like="other")
def view(step: Step, term: Term) -> Reads:
    """The same entries in row-major order, grouped otherwise."""
    yield step["input"], term.regrouped(step.extents("input"))


def _permuted(step: Step, term: Term, order: Sequence[int]) -> Reads:
    axes = [Axis()] * len(order)
    for place, origin in enumerate(order):
        axes[origin % len(order)] = term.axes[place]
    yield step["input"], term.read(axes)


@rule("aten.permute", kind="linear", entries="rearranged")
def permute(step: Step, term: Term) -> Reads:
    """Axes in another order."""
    yield from _permuted(step, term, step["dims"])


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims", kind="linear", entries="rearranged")
def transpose(step: Step, term: Term) -> Reads:
    """Two axes exchanged."""
    order = list(range(len(term.axes)))
    names = ("dim0", "dim1") if "dim0" in step.given else ("axis0", "axis1")
    first, second = (int(step[name]) % len(order) for name in names)
    order[first], order[second] = order[second], order[first]
    yield from _permuted(step, term, order)


@rule(
    "aten.t", "aten.numpy_T", "aten.matrix_H", "aten.mT", "aten.adjoint", "aten.mH", kind="linear", entries="rearranged"
)
def reverse(step: Step, term: Term) -> Reads:
    """The last two axes exchanged (all of them, for numpy_T)."""
    order = list(range(len(term.axes)))
    yield from _permuted(step, term, order[::-1] if len(order) < 3 else [*order[:-2], order[-1], order[-2]])


@rule("aten.movedim", kind="linear", entries="rearranged")
def movedim(step: Step, term: Term) -> Reads:
    """Some axes moved to other places."""
    rank = len(term.axes)
    origins, places = (
        [int(dim) % rank for dim in (step[name] if isinstance(step[name], (list, tuple)) else [step[name]])]
        for name in ("source", "destination")
    )
    rest = iter(dim for dim in range(rank) if dim not in origins)
    moved = dict(zip(places, origins, strict=True))
    yield from _permuted(step, term, [moved[place] if place in moved else next(rest) for place in range(rank)])


@rule("aten.expand", "aten.broadcast_to", kind="linear", entries="picked")
@rule("aten.expand_as", kind="linear", entries="picked", like="other")
def expand(step: Step, term: Term) -> Reads:
    """One entry shared by many: the map is summed over them (never over images)."""
    yield step["input"], term.broadcast(step.extents("input"))


@rule("aten.repeat", "aten.tile", kind="linear", entries="picked")
def repeat(step: Step, term: Term) -> Reads:
    """An axis laid out several times."""
    own = step.extents("input")
    padded = (Extent(1),) * (len(step.output) - len(own)) + own
    split: list[Extent] = []
    for inner, outer in zip(padded, step.output, strict=True):
        times = Extent(outer.size // inner.size, outer.batch and not inner.batch)
        split += [times, inner]
    pairs = term.regrouped(split)
    yield step["input"], pairs.read(pairs.axes[1::2][len(padded) - len(own) :])


@rule("aten.select", kind="linear", entries="picked")
def select(step: Step, term: Term) -> Reads:
    """One position of an axis, as the class token is read."""
    extents = step.extents("input")
    dim = int(step["dim"]) % len(extents)
    length = extents[dim].size
    if extents[dim].batch:
        raise Irregular("an image is selected from the batch")
    axes = [*term.axes[:dim], Axis((), (int(step["index"]) % length,), length), *term.axes[dim:]]
    if length == 1:
        axes[dim] = Axis()
    yield step["input"], term.read(axes)


def _taken(source: fx.Node, term: Term, dim: int, places: Sequence[int | None]) -> tuple[fx.Node, Term | None]:
    return source, term.taken(dim, places, extents_of(source)[dim].size)


@rule("aten.slice", "aten.slice_copy", "aten.narrow", kind="linear", entries="picked")
def slices(step: Step, term: Term) -> Reads:
    """A range of an axis."""
    dim = step.dim()
    extent = step.extents("input")[dim]
    start = step["start"]
    if extent == step.output[dim]:
        yield step["input"], term
    elif isinstance(start, fx.Node) or extent.batch:
        raise Irregular("a range of the images is taken")
    else:
        first = min(max(int(start or 0) + (extent.size if (start or 0) < 0 else 0), 0), extent.size)
        stride = int(step.given.get("step") or 1)
        yield _taken(step["input"], term, dim, range(first, first + stride * step.output[dim].size, stride))


@rule("aten.copy", kind="linear", entries="picked", like="input")
def copy(step: Step, term: Term) -> Reads:
    """One tensor written over another."""
    yield step["src"], term.broadcast(step.extents("src"))


@rule("aten.select_scatter", "aten.slice_scatter", kind="linear", entries="picked")
def scatter(step: Step, term: Term) -> Reads:
    """A position or range of an axis written over, as `x[:, 0] = y` does."""
    dim, length = step.dim(), step.output[step.dim()].size
    if step.output[dim].batch:
        if step.extents("src") != step.output:
            raise Irregular("some of the images are written over")
        yield step["src"], term
        return
    if "index" in step.given:
        inside = [int(step["index"]) % length]
    else:
        inside = list(range(length))[slice(step["start"], step["end"], step["step"])]
    yield from _written(step, term, dim, inside, step["src"], squeezed="index" in step.given)


@rule("aten.index_put", kind="linear", entries="picked")
def index_put(step: Step, term: Term) -> Reads:
    """Positions of one axis, named by a constant, written over."""
    used = [dim for dim, chosen in enumerate(step["indices"]) if chosen is not None]
    if len(used) != 1 or step["accumulate"] or len(extents_of(step["indices"][used[0]])) != 1:
        raise Irregular("several axes are written at once, or added to")
    inside = _places(step, step["indices"][used[0]], step.output[used[0]])
    yield from _written(step, term, used[0], inside, step["values"])


@rule("aten.index_add", kind="linear")
def index_add(step: Step, term: Term) -> Reads:
    """Positions of an axis, named by a constant, added to."""
    dim, alpha = step.dim(), float(step["alpha"])
    inside = _places(step, step["index"], step.output[dim])
    if len(set(inside)) < len(inside):
        raise Irregular("a position is added to twice")
    yield step["input"], term
    entries = {place: entry for entry, place in enumerate(inside)}
    yield _taken(step["source"], term.times(scale=alpha), dim, list(map(entries.get, range(step.output[dim].size))))


def _written(
    step: Step, term: Term, dim: int, inside: Sequence[int], values: fx.Node, *, squeezed: bool = False
) -> Reads:
    """Reads of a tensor of which some positions of an axis are written over."""
    length = step.output[dim].size
    yield _taken(step["input"], term, dim, [None if place in inside else place for place in range(length)])
    last = {place: entry for entry, place in enumerate(inside)}
    new = term.taken(dim, [last.get(place) for place in range(length)], len(inside))
    if new is not None:
        moved = new.read([*new.axes[:dim], *new.axes[dim + 1 :]]) if squeezed else new
        yield values, moved.broadcast(extents_of(values))


@rule("aten.repeat_interleave", kind="linear", entries="picked")
def repeat_interleave(step: Step, term: Term) -> Reads:
    """Each position of an axis repeated, as grouped queries share their keys and values."""
    if step.given.get("dim") is None or not isinstance(step["repeats"], int):
        raise Irregular("positions are repeated by numbers of their own, or along no axis")
    dim = step.dim()
    if step.output[dim].batch:
        raise Irregular("images are repeated")
    yield _taken(step["input"], term, dim, [place // step["repeats"] for place in range(step.output[dim].size)])


@rule("aten.unfold", kind="linear", entries="picked")
def unfold(step: Step, term: Term) -> Reads:
    """Windows of an axis, each laid out along a new last one."""
    dim = int(step["dimension"]) % len(step.extents("input"))
    starts, size = step.output[dim], int(step["size"])
    places = [start * int(step["step"]) + offset for start in range(starts.size) for offset in range(size)]
    order = list(range(len(step.output) - 1))
    order.insert(dim + 1, len(step.output) - 1)
    windows = term.read([term.axes[place] for place in order])
    flat = [step.output[place] for place in order]
    joined = windows.regrouped([*flat[:dim], Extent(starts.size * size), *flat[dim + 2 :]])
    yield _taken(step["input"], joined, dim, places)


@rule("aten.flip", kind="linear", entries="rearranged")
def flip(step: Step, term: Term) -> Reads:
    """Axes reversed."""
    moved: Term | None = term
    for dim in step["dims"]:
        length = step.output[dim].size
        moved = moved and moved.taken(int(dim) % len(step.output), range(length - 1, -1, -1), length)
    yield step["input"], moved


@rule("aten.roll", kind="linear", entries="rearranged")
def roll(step: Step, term: Term) -> Reads:
    """Axes shifted in a circle, as between Swin's windows."""
    if not step["dims"]:
        raise Irregular("a roll over the flattened tensor")
    moved: Term | None = term
    for shift, dim in zip(step["shifts"], step["dims"], strict=True):
        length = step.output[dim].size
        places = [(place - int(shift)) % length for place in range(length)]
        moved = moved and moved.taken(int(dim) % len(step.output), places, length)
    yield step["input"], moved


@rule("aten.constant_pad_nd", "aten.pad", kind="linear", entries="picked")
def pad(step: Step, term: Term) -> Reads:
    """A border of a number (what is read there is constant), or of repeated, mirrored or wrapped entries."""
    mode = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}.get(step.given.get("mode") or "constant")
    value = float(step.given.get("value") or 0)
    moved: Term | None = term
    middle = np.ones((1,) * len(step.output))
    borders = list(step["pad"])
    for number, (before, after) in enumerate(zip(borders[::2], borders[1::2], strict=True)):
        dim = len(step.output) - 1 - number
        length = step.extents("input")[dim].size
        if before == after == 0:
            continue
        inside = np.arange(max(0, -before), length - max(0, -after))
        around = (max(0, before), max(0, after))
        places: list[int | None]
        if mode:
            places = np.pad(inside, around, mode=mode).tolist()  # type: ignore[call-overload]
        else:
            places = [None] * around[0] + inside.tolist() + [None] * around[1]
            kept = np.array([place is not None for place in places])
            middle = middle * kept.reshape([-1 if axis == dim else 1 for axis in range(middle.ndim)])
        moved = moved and moved.taken(dim, places, length)
    yield step["input"], moved
    if value and not middle.all():
        dims = [dim for dim in range(middle.ndim) if middle.shape[dim] > 1]
        border = Constant.array(1 - middle.squeeze(tuple(set(range(middle.ndim)) - set(dims))))
        filled = Operand(border, tuple(term.axes[dim] for dim in dims))
        yield number_of(value), term.times(filled).broadcast(())


@rule("aten.cat", "aten.concat", "aten.concatenate", kind="linear", entries="picked")
def cat(step: Step, term: Term) -> Reads:
    """Tensors one after the other along an axis."""
    dim = step.dim()
    parts = [part for part in step["tensors"] if part.meta["val"].numel() != 0]
    ends = list(accumulate(extents_of(part)[dim].size for part in parts))
    for part, end in zip(parts, ends, strict=True):
        length = extents_of(part)[dim].size
        places = [at - (end - length) if end - length <= at < end else None for at in range(ends[-1])]
        yield _taken(part, term, dim, places)


@rule("aten.stack", kind="linear", entries="picked")
def stack(step: Step, term: Term) -> Reads:
    """Tensors side by side along a new axis."""
    dim = step.dim()
    for place, part in enumerate(step["tensors"]):
        moved = term.taken(dim, [0 if at == place else None for at in range(len(step["tensors"]))], 1)
        if moved is not None:
            yield part, moved.read([*moved.axes[:dim], *moved.axes[dim + 1 :]])


@rule("aten.index_select", kind="linear", entries="picked")
def index_select(step: Step, term: Term) -> Reads:
    """Positions named by a constant."""
    yield _taken(step["input"], term, step.dim(), _places(step, step["index"], step.extents("input")[step.dim()]))


@rule("aten.index", kind="linear", entries="picked")
def index(step: Step, term: Term) -> Reads:
    """Positions of one axis named by a constant."""
    used = [dim for dim, chosen in enumerate(step["indices"]) if chosen is not None]
    if len(used) != 1:
        raise Irregular("several axes are indexed at once")
    dim = used[0]
    chosen = step["indices"][dim]
    places, behind = _places(step, chosen, step.extents("input")[dim]), dim + len(extents_of(chosen))
    merged = term.regrouped([*step.output[:dim], Extent(len(places)), *step.output[behind:]])
    yield _taken(step["input"], merged, dim, places)


def _places(step: Step, chosen: fx.Node, extent: Extent) -> list[int]:
    if step.moves(chosen) or extent.batch:
        raise Irregular("positions are chosen by the image")
    values = step.graph.value(chosen).flatten()
    if values.dtype.is_floating_point or values.dtype.is_complex:
        raise Irregular("positions are not whole numbers")
    if str(values.dtype) == "torch.bool":
        return [place for place, taken in enumerate(values.tolist()) if taken]
    return [int(place) % extent.size for place in values.tolist()]


@rule("aten.pixel_unshuffle", kind="linear", entries="rearranged")
def pixel_unshuffle(step: Step, term: Term) -> Reads:
    """Blocks of pixels become channels: `[b, c, h*r, w*r] -> [b, c*r*r, h, w]`."""
    image, channels, height, width = step.extents("input")
    r = Extent(int(step["downscale_factor"]))
    h, w = Extent(height.size // r.size), Extent(width.size // r.size)
    split = term.regrouped([image, channels, r, r, h, w])
    b, c, down, across, row, column = split.axes
    yield step["input"], split.read([b, c, row, down, column, across]).regrouped(step.extents("input"))


@rule("aten.pixel_shuffle", kind="linear", entries="rearranged")
def pixel_shuffle(step: Step, term: Term) -> Reads:
    """Channels become blocks of pixels: `[b, c*r*r, h, w] -> [b, c, h*r, w*r]`."""
    image, _, h, w = step.extents("input")
    r = Extent(int(step["upscale_factor"]))
    split = term.regrouped([image, step.output[1], h, r, w, r])
    b, c, row, down, column, across = split.axes
    yield step["input"], split.read([b, c, down, across, row, column]).regrouped(step.extents("input"))
