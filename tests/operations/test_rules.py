"""Every rule has a slow, obvious twin: the same operation run again on one summand of its input, in float64.

The models here are `x + first(x) -> operation -> readout`, several operations side by side because capturing a model
costs more than all runs of it. What lies between the branch and the representation is affine once the statistics,
gates, probabilities and winners are held, so a contribution is that path applied to the contribution's own vector,
minus the path applied to zero. For a linear operation the path is the operation itself; for one that needs something
held, `held(p, x, at)` is written out by hand, with everything held computed from `at`. Nothing here knows the rules.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unweave
from unweave.operations import TABLE

aten = torch.ops.aten
TOLERANCE = 1e-10
TOGETHER = 12
"""Operations in one model."""


@dataclass(frozen=True, eq=False)
class Case:
    """One operation behind a residual block.

    Attributes:
        name: What is tested.
        shape: The trunk's shape before the operation, without the images.
        run: The operation, of its parameters and the trunk.
        held: The operation with everything held that depends on `at`; None where it is linear as it is.
        given: Its parameters: shapes of random weights, or tensors.
        fires: Operations whose rules this case is the twin of.
        enters: Whether its constants may enter the stream (a class token, positions) instead of being biases.
    """

    name: str
    shape: tuple[int, ...]
    run: Callable[[nn.Module, Tensor], Tensor]
    held: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    given: dict[str, object] = field(default_factory=dict)
    fires: tuple[str, ...] = ()
    enters: bool = False


CASES: list[Case] = []


def case(
    name: str,
    shape: tuple[int, ...],
    run: Callable[..., Tensor],
    held: Callable[..., Tensor] | None = None,
    *,
    fires: str = "",
    enters: bool = False,
    **given: object,
) -> None:
    names = tuple(f"aten.{own}" for own in (fires or name.partition(":")[0]).split())
    CASES.append(Case(name, shape, run, held, given, names, enters))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int = 3) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def hidden(self, x: Tensor) -> Tensor:
        return F.gelu(self.enter(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.hidden(x))


class Operation(nn.Module):
    """The operation, and its output read in three ways: every entry with its own weight, the mean, one position."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        for name, value in case.given.items():
            tensor = value if isinstance(value, Tensor) else torch.randn(value)
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor.double()))
            else:
                self.register_buffer(name, tensor)
        example = case.run(self, torch.randn(2, *case.shape).double())
        self.every = nn.Linear(example[0].numel(), 3).double()
        self.dims = tuple(range(1, example.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.case.run(self, x))

    def held(self, x: Tensor, at: Tensor) -> Tensor:
        """The same, with everything held that depends on `at`."""
        x = x.contiguous()
        return self(x) if self.case.held is None else self.read(self.case.held(self, x, at))

    def read(self, x: Tensor) -> Tensor:
        read = [self.every(x.flatten(1))]
        if self.dims:
            read.append(x.mean(self.dims))
            one = x.select(1, -1)
            read.append(one.flatten(1) if one.dim() > 2 else one)
        return torch.cat(read, 1)


class Trunk(nn.Module):
    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.shape = cases[0].shape
        self.entry, self.first = nn.Linear(self.shape[-1], self.shape[-1]).double(), Mlp(self.shape[-1]).double()
        self.operations = nn.ModuleList(Operation(own) for own in cases)

    def enter(self, images: Tensor) -> Tensor:
        return self.entry(images.reshape(images.shape[0], *self.shape))

    def forward(self, images: Tensor) -> Tensor:
        x = self.enter(images)
        x = x + self.first(x)
        return torch.cat([operation(x) for operation in self.operations], 1)


# -- shape ------------------------------------------------------------------------------------------------------------

TOKENS, MAP = (6, 4), (4, 6, 6)

case("clone", TOKENS, lambda p, x: x.clone())
case("contiguous", TOKENS, lambda p, x: x.transpose(1, 2).contiguous())
case("alias", TOKENS, lambda p, x: aten.alias(x))
case("detach", TOKENS, lambda p, x: aten.detach(x))
case("to", TOKENS, lambda p, x: aten.to.dtype(x, torch.float64, False, True))
case("_to_copy", TOKENS, lambda p, x: aten._to_copy(x, dtype=torch.float64))
case("type_as", TOKENS, lambda p, x: x.type_as(p.a), a=(1,))
case("lift_fresh_copy", TOKENS, lambda p, x: aten.lift_fresh_copy(x))
case("dropout", TOKENS, lambda p, x: F.dropout(x, 0.5, p.training))
case("feature_dropout", TOKENS, lambda p, x: aten.feature_dropout(x, 0.5, False))
case("positive", TOKENS, lambda p, x: +x)
case("view", TOKENS, lambda p, x: x.view(-1, 4, 6))
case("view: images merged with windows", (2, 6, 4), lambda p, x: x.view(-1, 6, 4).roll(1, 1).view(-1, 2, 6, 4))
case("reshape", TOKENS, lambda p, x: x.transpose(1, 2).reshape(-1, 8, 3))
case("_unsafe_view", TOKENS, lambda p, x: aten._unsafe_view(x, [x.shape[0], 3, 8]))
case("_reshape_copy", TOKENS, lambda p, x: aten._reshape_copy(x, [x.shape[0], 3, 8]))
case("flatten", MAP, lambda p, x: x.flatten(2).transpose(1, 2))
case("unflatten", TOKENS, lambda p, x: x.unflatten(1, (2, 3)).flip(1))
case("squeeze", (6, 1, 4), lambda p, x: x.squeeze(2))
case("squeeze: every axis of one entry", (1, 6, 1, 4), lambda p, x: aten.squeeze.dims(x, [1, 3]))
case("unsqueeze", TOKENS, lambda p, x: x.unsqueeze(-2))
case("view_as", TOKENS, lambda p, x: x.view_as(x.new_zeros(x.shape[0], 3, 8)))
case("reshape_as", TOKENS, lambda p, x: x.reshape_as(x.new_zeros(x.shape[0], 3, 8)))
case("view: groupings that do not refine each other", (4, 6), lambda p, x: x.view(-1, 3, 8).flip(1).view(-1, 2, 12))
case("permute", MAP, lambda p, x: x.permute(0, 2, -1, 1))
case("transpose", MAP, lambda p, x: x.transpose(1, -1))
case("swapaxes", MAP, lambda p, x: aten.swapaxes(x, 1, -1))
case("swapdims", MAP, lambda p, x: aten.swapdims(x, 2, -1))
case("t", (4,), lambda p, x: (p.a @ aten.t(x)).t(), a=(5, 4))
case("numpy_T", (4,), lambda p, x: (p.a @ aten.numpy_T(x)).t(), a=(5, 4))
case("mT", TOKENS, lambda p, x: aten.mT(x))
case("matrix_H", (4,), lambda p, x: (p.a @ aten.matrix_H(x)).t(), a=(5, 4))
case("mH", TOKENS, lambda p, x: aten.mH(x))
case("mH: two axes before", MAP, lambda p, x: x.mH * p.a, a=(4, 6, 6))
case("adjoint", TOKENS, lambda p, x: torch.adjoint(x))
case("movedim", MAP, lambda p, x: aten.movedim.intlist(x, [1, 2], [-1, 1]))
case("movedim: one", MAP, lambda p, x: aten.movedim.int(x, 3, 1))
case("expand", (1, 4), lambda p, x: x.expand(-1, 5, -1) * p.a, a=(5, 4))
case("expand: a new axis", (4,), lambda p, x: x[:, None].expand(-1, 5, 4) * p.a, a=(5, 4))
case("expand_as", (1, 4), lambda p, x: x.expand_as(x.new_zeros(x.shape[0], 5, 4)) * p.a, a=(5, 4))
case("broadcast_to", (1, 4), lambda p, x: torch.broadcast_to(x, (x.shape[0], 5, 4)) * p.a, a=(5, 4))
case("repeat", TOKENS, lambda p, x: x.repeat(1, 2, 3) * p.a, a=(12, 12))
case("repeat: a new axis", TOKENS, lambda p, x: x[:, None].repeat(1, 3, 1, 2) * p.a, a=(3, 6, 8))
case("tile", TOKENS, lambda p, x: torch.tile(x, (2, 1)) * p.a, a=(12, 4))
case("select", TOKENS, lambda p, x: x.select(1, -2))
case("select: twice, behind views", (2, 3, 8), lambda p, x: x.view(-1, 6, 8)[:, 4].view(-1, 2, 4)[..., -1])
case("slice", TOKENS, lambda p, x: x[:, -4:-1])
case("slice: with a step", (9, 4), lambda p, x: x[:, 1::3, ::2].flip(1))
case("slice: beyond the end", TOKENS, lambda p, x: x[:, 2:1000])
case("slice_copy", TOKENS, lambda p, x: aten.slice_copy(x, 1, 1, 5, 2))
case("narrow", TOKENS, lambda p, x: aten.narrow(x, 1, 2, 3))
case("slice: split and chunk", (7, 4), lambda p, x: torch.cat([x.split([2, 5], 1)[1], x.chunk(2, 1)[0]], 1))
case("unfold: overlapping", TOKENS, lambda p, x: x.unfold(1, 3, 2) * p.a, a=(2, 4, 3))
case("unfold: overlapping by all but one", TOKENS, lambda p, x: x.unfold(1, 3, 1) * p.a, a=(4, 4, 3))
case("unfold: tiles", TOKENS, lambda p, x: x.unfold(1, 2, 2).flatten(2), fires="unfold flatten")
case("unfold: gaps", MAP, lambda p, x: x.unfold(-2, 2, 3) * p.a, a=(4, 2, 6, 2))
case("unfold: the last axis", TOKENS, lambda p, x: x.unfold(-1, 2, 1) * p.a, a=(6, 3, 2))
case("unfold: two axes, as patches", MAP, lambda p, x: x.unfold(2, 2, 2).unfold(3, 3, 3) * p.a, a=(4, 3, 2, 2, 3))
case("repeat_interleave", TOKENS, lambda p, x: x.repeat_interleave(2, 1) * p.a, a=(12, 4))
case("repeat_interleave: the last axis", TOKENS, lambda p, x: x.repeat_interleave(3, -1) * p.a, a=(6, 12))
case("repeat_interleave: one entry", (1, 4), lambda p, x: x.repeat_interleave(3, 1) * p.a, a=(3, 4))
case("select: unbind", TOKENS, lambda p, x: x.unbind(1)[2] + 2 * x.unbind(1)[-1])
case("flip", MAP, lambda p, x: x.flip(-1, 1) * p.a, a=MAP)
case("roll", MAP, lambda p, x: x.roll((2, -1), (2, 3)) * p.a, a=MAP)
case("pad: zeros", MAP, lambda p, x: F.pad(x, (1, 2, 0, 3)) * p.a, a=(4, 9, 9), fires="pad")
case("pad: cropped", MAP, lambda p, x: F.pad(x, (-1, 2, 1, -2)) * p.a, a=(4, 5, 7), fires="pad")
case("pad: a number", MAP, lambda p, x: F.pad(x, (1, 2, 0, 3), value=0.3) * p.a, a=(4, 9, 9), fires="pad")
case("pad: a number, on one side, and cropped", TOKENS, lambda p, x: F.pad(x, (0, 0, 1, -1), value=0.3), fires="pad")
case("constant_pad_nd: a number", MAP, lambda p, x: aten.constant_pad_nd(x, [1, 0], 0.3))
case("constant_pad_nd", MAP, lambda p, x: aten.constant_pad_nd(x, [1, 0, 2, 1]))
for mode in ("reflect", "replicate", "circular"):
    case(f"pad: {mode}", MAP, lambda p, x, mode=mode: F.pad(x, (1, 2, 3, 0), mode=mode) * p.a, a=(4, 9, 9))
case(
    "cat",
    TOKENS,
    lambda p, x: torch.cat([p.a.expand(x.shape[0], -1, -1), x, x[:, :2]], 1),
    enters=True,
    a=(1, 1, 4),
)
case("cat: four strided slices, as patches are merged", (4, 6, 3), lambda p, x: _merged(x) @ p.a, a=(12, 5))
case("concat", TOKENS, lambda p, x: aten.concat([x, x.flip(1)], -1) * p.a, a=(6, 8))
case("concatenate", TOKENS, lambda p, x: aten.concatenate([x * p.a, x], 1), a=(6, 4))
case("stack", TOKENS, lambda p, x: torch.stack([x, x.flip(1), x * p.a], 2), a=(6, 4))
case("stack: at the end", TOKENS, lambda p, x: torch.stack([x, x * p.a], -1), a=(6, 4))
case("index_select", TOKENS, lambda p, x: x.index_select(1, p.i), i=torch.tensor([5, 0, 0, 3]))
case("index", TOKENS, lambda p, x: x[:, p.i] * p.a, i=torch.tensor([[5, -1, 0], [3, 3, 2]]), a=(2, 3, 4))
case("index: by a mask", TOKENS, lambda p, x: x[:, :, p.i], i=torch.tensor([2, 0]))
case("pixel_shuffle", (8, 2, 3), lambda p, x: F.pixel_shuffle(x, 2) * p.a, a=(2, 4, 6))
case("pixel_unshuffle", (2, 4, 6), lambda p, x: F.pixel_unshuffle(x, 2) * p.a, a=(8, 2, 3))
case("copy", TOKENS, lambda p, x: aten.copy(x.new_zeros(x.shape), x) * p.a, a=(6, 4))
case("copy: broadcast", (1, 4), lambda p, x: aten.copy(x.new_zeros(x.shape[0], 5, 4), x) * p.a, a=(5, 4))
case("copy: over what varies", TOKENS, lambda p, x: aten.copy(x.sigmoid(), x.flip(1)))
case(
    "zero: under a token",
    TOKENS,
    lambda p, x: torch.slice_scatter(aten.zero(x), x[:, :1], 1, 2, 3),
    fires="zero slice_scatter",
)
case("index_add", TOKENS, lambda p, x: x.index_add(1, p.i, x[:, 1:3].flip(1), alpha=0.3), i=torch.tensor([4, 0]))
case(
    "index_add: a weight",
    TOKENS,
    lambda p, x: x.index_add(2, p.i, p.a.expand(x.shape[0], -1, -1)),
    i=torch.tensor([3, 0]),
    a=(6, 2),
    enters=True,
)
case("select_scatter", TOKENS, lambda p, x: torch.select_scatter(x, x[:, 0] * p.a, 1, -2), a=(4,))
case(
    "select_scatter: the last axis, by a weight",
    TOKENS,
    lambda p, x: torch.select_scatter(x, p.a.expand(x.shape[0], -1), -1, 1),
    a=(1, 6),
    enters=True,
)
case("slice_scatter", TOKENS, lambda p, x: torch.slice_scatter(x, x[:, :2] * p.a, 1, -3, -1), a=(4,))
case("slice_scatter: with a step", TOKENS, lambda p, x: torch.slice_scatter(x, x[:, 3:] * p.a, 1, 0, None, 2), a=(3, 4))
case("index_put", TOKENS, lambda p, x: aten.index_put(x, [None, p.i], x[:, :2] * p.a), i=torch.tensor([4, -6]), a=(4,))


def _merged(x: Tensor) -> Tensor:
    return torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)


def _windows(p: nn.Module, x: Tensor) -> Tensor:
    """Windows of 7 with a position each, over patches that are merged by 2 afterwards."""
    count, size, width = x.shape[0], 14, x.shape[-1]
    windows = x.view(count, 2, 7, 2, 7, width).transpose(2, 3).reshape(-1, 49, width)
    windows = windows * p.a + p.b
    x = windows.view(count, 2, 2, 7, 7, width).transpose(2, 3).reshape(count, size, size, width)
    return _merged(x) @ p.c


def _shifted(p: nn.Module, x: Tensor) -> Tensor:
    """5 x 5 patches, padded to windows of 3, shifted by 1, and back."""
    count, width = x.shape[0], x.shape[-1]
    x = F.pad(x, (0, 0, 0, 1, 0, 1)).roll((-1, -1), (1, 2))
    windows = x.view(count, 2, 3, 2, 3, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, width)
    windows = windows * p.a + p.b
    x = windows.view(count, 2, 2, 3, 3, width).permute(0, 1, 3, 2, 4, 5).reshape(count, 6, 6, width)
    return x.roll((1, 1), (1, 2))[:, :5, :5]


case(
    "view: windows of 7 over merges of 2",
    (14, 14, 2),
    _windows,
    fires="view",
    enters=True,
    a=(49, 2),
    b=(49, 2),
    c=(8, 3),
)
case("roll: rolled and padded windows", (5, 5, 2), _shifted, fires="roll pad slice", enters=True, a=(9, 2), b=(9, 2))

# -- what is written in place -----------------------------------------------------------------------------------------

WRITTEN = (7, 4)
"""A shape of its own: torch.export traces a model that writes in place twice."""


def _set(
    place: object, value: Callable[[nn.Module, Tensor], Tensor | float], *, added: bool = False
) -> Callable[[nn.Module, Tensor], Tensor]:
    """`x[place] = value`, or `x[place] += value`."""

    def run(p: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        if added:
            y[place] += value(p, x)
        else:
            y[place] = value(p, x)
        return y * p.w

    return run


EVERY = slice(None)
for name, fires, run in (
    ("a token by another", "select_scatter", _set((EVERY, 0), lambda p, x: x[:, 3] * p.a)),
    ("a token by a weight", "select_scatter copy", _set((EVERY, 0), lambda p, x: p.a)),
    ("a token by a number", "select_scatter fill", _set((EVERY, 2), lambda p, x: 0.3)),
    ("a token by nothing", "select_scatter fill", _set((EVERY, 2), lambda p, x: 0)),
    ("a channel", "select_scatter", _set((..., -1), lambda p, x: x[..., 0])),
    ("a range added to", "slice_scatter", _set((EVERY, slice(1, 3)), lambda p, x: x[:, 4:6], added=True)),
    ("a range by a weight", "slice_scatter copy", _set((EVERY, slice(1, 3)), lambda p, x: p.a)),
    ("every other", "slice_scatter", _set((EVERY, slice(0, None, 2)), lambda p, x: x[:, :4] * p.a)),
    ("a block", "slice_scatter", _set((EVERY, slice(1, 3), slice(2, None)), lambda p, x: x[:, :2, :2])),
    ("all", "copy", _set((...,), lambda p, x: x.flip(1))),
    ("tokens by a list", "index_put", _set((EVERY, [0, 2]), lambda p, x: x[:, 3:5] * p.a)),
    ("tokens by a list, one for both", "index_put", _set((EVERY, [5, -1]), lambda p, x: x[:, 3:4] * p.a)),
    ("tokens by a list, added to", "index_put", _set((EVERY, [0, 2]), lambda p, x: x[:, 3:5], added=True)),
    ("tokens by a list, by a number", "index_put", _set((EVERY, [0, 2]), lambda p, x: 0.3)),
):
    case(f"written: {name}", WRITTEN, run, fires=fires, enters=True, a=(4,), w=(7, 4))
case(
    "written: tokens by a mask",
    WRITTEN,
    _set((EVERY, torch.arange(7) < 2), lambda p, x: x[:, 3:5] * p.a),
    fires="index_put",
    a=(4,),
    w=(7, 4),
)

# -- affine -----------------------------------------------------------------------------------------------------------

case("add", TOKENS, lambda p, x: torch.add(x, p.a, alpha=0.3), a=(4,))
case("add: a number", TOKENS, lambda p, x: 0.1 + x)
case("add: a position embedding", TOKENS, lambda p, x: x + p.a, enters=True, a=(1, 6, 4))
case("add: a linear function of itself", TOKENS, lambda p, x: x + x.mean(1, keepdim=True))
case("sub", TOKENS, lambda p, x: torch.sub(x, p.a, alpha=0.3), enters=True, a=(6, 1))
case("sub: a mean", TOKENS, lambda p, x: x - x.mean(1, keepdim=True))
case("sub: from a weight", TOKENS, lambda p, x: p.a - x, a=(4,))
case("rsub", TOKENS, lambda p, x: aten.rsub(x, 0.7))
case("rsub: a tensor", TOKENS, lambda p, x: aten.rsub(x, p.a, alpha=0.3), a=(4,))
case("neg", TOKENS, lambda p, x: -x)
case("mul", TOKENS, lambda p, x: p.a * x * 0.7, a=(4,))
case("mul: broadcast up", (1, 4), lambda p, x: x * p.a, a=(5, 1))
case("div", TOKENS, lambda p, x: x / p.a / 0.7, a=(6, 1))

SOME, COLUMN = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.5, torch.arange(6)[:, None] < 2
for name, mask in (("", SOME), (": a mask of tokens", COLUMN), (": a mask of channels", SOME[0])):
    case(f"where{name}", TOKENS, lambda p, x: torch.where(p.m, x, x.flip(1)) * p.w, m=mask, w=(6, 4))
    case(f"masked_fill{name}", TOKENS, lambda p, x: x.masked_fill(p.m, 0) * p.w, m=mask, w=(6, 4))
case("where: a weight", TOKENS, lambda p, x: torch.where(p.m, x, p.a), m=SOME, a=(1, 6, 4), enters=True)
case("where: a weight for every channel", TOKENS, lambda p, x: torch.where(p.m, p.a, x), m=COLUMN, a=(4,), enters=True)
case("where: a number", TOKENS, lambda p, x: torch.where(p.m, x, 0.3), m=COLUMN)
case("where: a number first", TOKENS, lambda p, x: torch.where(p.m, 0.3, x), m=SOME)
case("where: zero", TOKENS, lambda p, x: torch.where(p.m, x, 0.0), m=SOME[0])
case("where: broadcast up", (1, 4), lambda p, x: torch.where(p.m, x, 2 * x) * p.w, m=SOME, w=(6, 4))
case("where: a mask with an axis for the images", TOKENS, lambda p, x: torch.where(p.m, x, 2 * x), m=SOME[None])
case("masked_fill: a number", TOKENS, lambda p, x: x.masked_fill(p.m, 0.3) * p.w, m=COLUMN, w=(6, 4))
case("masked_fill: a weight", TOKENS, lambda p, x: x.masked_fill(p.m, p.a), m=SOME, a=())
case("masked_fill: broadcast up", (1, 4), lambda p, x: x.masked_fill(p.m, 0.3) * p.w, m=SOME, w=(6, 4))
case("lerp", TOKENS, lambda p, x: torch.lerp(x, x.flip(1), 0.3))
case("lerp: to a weight", TOKENS, lambda p, x: torch.lerp(x, p.a, 0.3), a=(4,))
case("lerp: by a weight", TOKENS, lambda p, x: torch.lerp(x, x.flip(1), p.a), a=(6, 1))
case("lerp: from a weight, by a weight", TOKENS, lambda p, x: torch.lerp(p.a, x, p.b), a=(1, 6, 4), b=(4,), enters=True)


def _mixed(p: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    return torch.lerp(x, x.flip(1), torch.sigmoid(at.mean(1, keepdim=True) * p.a))


case("lerp: by a gate", TOKENS, lambda p, x: _mixed(p, x, x), _mixed, a=(4,))


def _excited(p: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    pooled = at.mean((2, 3), keepdim=True)
    return x * torch.sigmoid(F.conv2d(F.relu(F.conv2d(pooled, p.a, p.b)), p.c, p.d))


def _normalised(p: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    return x / at.square().sum(-1, keepdim=True).sqrt()


case(
    "mul: squeeze-excite",
    MAP,
    lambda p, x: _excited(p, x, x),
    _excited,
    a=(2, 4, 1, 1),
    b=(2,),
    c=(4, 2, 1, 1),
    d=(4,),
)
case(
    "mul: a gate by global response",
    TOKENS,
    lambda p, x: x * (x.norm(dim=1, keepdim=True) / x.norm(dim=1, keepdim=True).mean(-1, keepdim=True)) * p.a,
    lambda p, x, at: x * (at.norm(dim=1, keepdim=True) / at.norm(dim=1, keepdim=True).mean(-1, keepdim=True)) * p.a,
    a=(4,),
)
case("div: by its own length", TOKENS, lambda p, x: _normalised(p, x, x), _normalised)
case(
    "div: F.normalize",
    TOKENS,
    lambda p, x: F.normalize(x, dim=-1),
    lambda p, x, at: x / at.norm(dim=-1, keepdim=True),
)
case(
    "div: a norm written out",
    TOKENS,
    lambda p, x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5) * p.a + p.b,
    lambda p, x, at: (
        (x - x.mean(-1, keepdim=True)) / torch.sqrt(at.var(-1, keepdim=True, correction=0) + 1e-5) * p.a + p.b
    ),
    a=(4,),
    b=(4,),
)
case(
    "div: a norm written out, centred twice",
    TOKENS,
    lambda p, x: (
        (x - x.mean(-1, keepdim=True)) / torch.sqrt((x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + 1e-5)
    ),
    lambda p, x, at: (x - x.mean(-1, keepdim=True)) / torch.sqrt(at.var(-1, keepdim=True, correction=0) + 1e-5),
)
case(
    "mul: an RMS norm written out",
    TOKENS,
    lambda p, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * p.a,
    lambda p, x, at: x * torch.rsqrt(at.pow(2).mean(-1, keepdim=True) + 1e-6) * p.a,
    a=(4,),
)
case("linear", TOKENS, lambda p, x: F.linear(x, p.a, p.b), a=(5, 4), b=(5,))
case("linear: a vector", (4,), lambda p, x: F.linear(x, p.a), a=(5, 4))
case("addmm", (4,), lambda p, x: torch.addmm(p.b, x, p.a, beta=0.3, alpha=0.7), a=(4, 5), b=(5,))
case("addmm: the sum is live", (4,), lambda p, x: aten.addmm(x, x.flip(1), p.a), a=(4, 4))
case("addcmul", TOKENS, lambda p, x: torch.addcmul(p.b, x, p.a, value=0.5), a=(4,), b=(6, 1))
case("addcmul: the sum is live", TOKENS, lambda p, x: torch.addcmul(x, p.a, x.flip(1)), a=(6, 1))
case("baddbmm", TOKENS, lambda p, x: torch.baddbmm(p.b, x, p.a.expand(x.shape[0], -1, -1)), a=(4, 5), b=(1, 6, 5))
case(
    "baddbmm: the sum is live",
    TOKENS,
    lambda p, x: torch.baddbmm(x, x.flip(1), p.a.expand(x.shape[0], -1, -1), beta=0.3, alpha=0.7),
    a=(4, 4),
)


def _added(p: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    return torch.addcmul(p.b, x, torch.sigmoid(at.mean(1, keepdim=True) * p.a), value=0.5)


case("addcmul: a gate", TOKENS, lambda p, x: _added(p, x, x), _added, a=(4,), b=(4,))
case("matmul", TOKENS, lambda p, x: x @ p.a + (p.b @ x) @ p.a, a=(4, 5), b=(6, 6))
case("matmul: by a vector", TOKENS, lambda p, x: x @ p.a, a=(4,))
case("matmul: batched weights", (3, 6, 4), lambda p, x: x @ p.a, a=(3, 4, 5))
case("mm", (4,), lambda p, x: torch.mm(x, p.a), a=(4, 5))
case("bmm", TOKENS, lambda p, x: torch.bmm(p.b.expand(x.shape[0], -1, -1), x), b=(5, 6))
case("einsum", (3, 6, 4), lambda p, x: torch.einsum("b h t c, h c o -> b t o", x, p.a), a=(3, 4, 5))
case("einsum: the weight first", TOKENS, lambda p, x: torch.einsum("st,btc->bsc", p.a, x), a=(5, 6))
case("einsum: three operands", TOKENS, lambda p, x: torch.einsum("btc,cd,td->btd", x, p.a, p.b), a=(4, 5), b=(6, 5))
case("einsum: an ellipsis", (3, 6, 4), lambda p, x: torch.einsum("...tc,cd->...dt", x, p.a), a=(4, 5))
case("einsum: two ellipses", (3, 6, 4), lambda p, x: torch.einsum("...tc,...cd->...td", x, p.a), a=(3, 4, 5))
case("einsum: no output", TOKENS, lambda p, x: torch.einsum("btc,ca", x, p.a).transpose(0, 1), a=(4, 5))
case("einsum: no output, an ellipsis", TOKENS, lambda p, x: torch.einsum("...c,ca", x, p.a), a=(4, 5))
case("einsum: the diagonal of a weight", TOKENS, lambda p, x: torch.einsum("btc,cc->btc", x, p.a), a=(4, 4))
case("einsum: the trace of a weight", TOKENS, lambda p, x: torch.einsum("btc,dd->btc", x, p.a), a=(4, 4))
case("einsum: a summed weight", TOKENS, lambda p, x: torch.einsum("btc,td->btc", x, p.a), a=(6, 5))
case("einsum: a diagonal", (6, 4, 4), lambda p, x: torch.einsum("btcc->btc", x) * p.a, a=(6, 4))
case("einsum: a diagonal by a weight", (6, 4, 4), lambda p, x: torch.einsum("btcc,cd->btd", x, p.a), a=(4, 5))
case("einsum: a trace", (6, 4, 4), lambda p, x: torch.einsum("btcc->bt", x) * p.a, a=(6,))
case("einsum: one operand", (6, 4, 4), lambda p, x: torch.einsum("btcd->bdt", x) * p.a, a=(4, 6), fires="sum permute")
case("einsum: one operand, no output", TOKENS, lambda p, x: torch.einsum("acb", x) * p.a, a=(4, 6))
case("einsum: one operand, an ellipsis", (6, 4, 4), lambda p, x: torch.einsum("...cd->...dc", x) * p.a, a=(6, 4, 4))


def _weights(p: nn.Module, at: Tensor) -> Tensor:
    """Attention of two learned queries to all tokens, `[image, query, token]`."""
    return torch.softmax(p.q @ (at @ p.k).transpose(1, 2), -1)


POOL = {"q": (2, 3), "k": (4, 3), "v": (4, 5)}
case(
    "matmul: attention pooling",
    TOKENS,
    lambda p, x: _weights(p, x) @ (x @ p.v),
    lambda p, x, at: _weights(p, at) @ (x @ p.v),
    **POOL,
)
case(
    "bmm: attention pooling",
    TOKENS,
    lambda p, x: torch.bmm(_weights(p, x), x @ p.v),
    lambda p, x, at: _weights(p, at) @ (x @ p.v),
    **POOL,
)
case(
    "einsum: attention pooling",
    TOKENS,
    lambda p, x: torch.einsum("bqt,btc->bqc", _weights(p, x), x @ p.v),
    lambda p, x, at: _weights(p, at) @ (x @ p.v),
    **POOL,
)


def _pooled(p: nn.Module, x: Tensor) -> Tensor:
    """Attention pooling by a probe in two heads, as the kernel computes it."""
    query = p.q.expand(x.shape[0], -1, -1).unflatten(-1, (2, 2)).transpose(1, 2)
    key, value = ((x @ weight).unflatten(-1, (2, 2)).transpose(1, 2) for weight in (p.k, p.v))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2) @ p.o


def _pooled_held(p: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    query = p.q.unflatten(-1, (2, 2)).transpose(0, 1)
    key, value = ((own @ weight).unflatten(-1, (2, 2)).transpose(1, 2) for own, weight in ((at, p.k), (x, p.v)))
    weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(2), -1)
    return (weights @ value).transpose(1, 2).flatten(2) @ p.o


case(
    "scaled_dot_product_attention",
    TOKENS,
    _pooled,
    _pooled_held,
    q=(3, 4),
    k=(4, 4),
    v=(4, 4),
    o=(4, 4),
)


def _split(p: nn.Module, query: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of self-attention by head, `[image, head, token, 2]`."""
    parts = (query @ p.q, query @ p.k, value @ p.v)
    return tuple(part.unflatten(-1, (-1, 2)).transpose(1, 2) for part in parts)


def _kernel(p: nn.Module, x: Tensor, **options: object) -> Tensor:
    return F.scaled_dot_product_attention(*_split(p, x, x), **options).transpose(1, 2).flatten(2) @ p.o


def _written_out(p: nn.Module, x: Tensor, at: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """The same with the probabilities of `at`; each key and value head serves as many query heads as there are."""
    query, key, value = _split(p, at, x)
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    logits = query @ key.transpose(-1, -2) * (scale or 1 / math.sqrt(2)) + bias
    return (torch.softmax(logits, -1) @ value).transpose(1, 2).flatten(2) @ p.o


SELF = {"q": (4, 4), "k": (4, 4), "v": (4, 4), "o": (4, 4)}
_SEEN = torch.tensor(
    [[True, False, True, False, True, True], [True] * 6, *([[False, True, True, True, False, True]] * 4)]
)
_HIDDEN = torch.zeros(6, 6).double().masked_fill(~_SEEN, -math.inf)
for name, options, bias in (
    ("boolean mask", lambda p: {"attn_mask": p.m}, lambda p: _HIDDEN),
    ("additive mask by head", lambda p: {"attn_mask": p.a}, lambda p: p.a),
    ("additive mask, the same for every row", lambda p: {"attn_mask": p.r}, lambda p: p.r),
    ("causal", lambda p: {"is_causal": True}, lambda p: torch.full((6, 6), -math.inf).triu(1)),
):
    case(
        f"scaled_dot_product_attention: {name}",
        TOKENS,
        lambda p, x, options=options: _kernel(p, x, **options(p)),
        lambda p, x, at, bias=bias: _written_out(p, x, at, bias(p)),
        m=_SEEN,
        a=(2, 6, 6),
        r=(1, 1, 1, 6),
        **SELF,
    )
case(
    "scaled_dot_product_attention: own scale",
    TOKENS,
    lambda p, x: _kernel(p, x, scale=0.3),
    lambda p, x, at: _written_out(p, x, at, torch.zeros(6, 6), 0.3),
    **SELF,
)
case(
    "scaled_dot_product_attention: several query heads for one value head",
    TOKENS,
    lambda p, x: _kernel(p, x, enable_gqa=True, attn_mask=p.m),
    lambda p, x, at: _written_out(p, x, at, _HIDDEN),
    m=_SEEN,
    **SELF | {"q": (4, 8), "o": (8, 4)},
)

# -- convolution ------------------------------------------------------------------------------------------------------

case(
    "conv1d: tokens as channels, one bias for the whole width",
    TOKENS,
    lambda p, x: F.conv1d(x, p.a, p.b),
    a=(1, 6, 1),
    b=(1,),
)

for name, given, weight in (
    ("tiles", {"stride": 2}, (5, 4, 2, 2)),
    ("pointwise", {}, (5, 4, 1, 1)),
    ("pointwise, strided", {"stride": 2}, (5, 4, 1, 1)),
    ("pointwise, padded", {"padding": 1}, (5, 4, 1, 1)),
    ("overlapping, padded", {"padding": 1}, (5, 4, 3, 3)),
    ("strided, overlapping", {"stride": (2, 3), "padding": (1, 2)}, (5, 4, 3, 4)),
    ("dilated", {"dilation": 2, "padding": 2}, (5, 4, 3, 3)),
    ("grouped", {"groups": 2, "padding": 1}, (6, 2, 3, 3)),
    ("depthwise", {"groups": 4, "padding": 1}, (4, 1, 3, 3)),
    ("depthwise, more channels", {"groups": 4, "stride": 2}, (8, 1, 3, 2)),
    ("the whole map", {}, (5, 4, 6, 6)),
    ("gaps", {"stride": 4}, (5, 4, 2, 2)),
):
    case(
        f"conv2d: {name}",
        MAP,
        lambda p, x, given=given: F.conv2d(x, p.a, p.b, **given),
        a=weight,
        b=(weight[0],),
    )
case("conv2d: same", MAP, lambda p, x: F.conv2d(x, p.a, padding="same", dilation=2), a=(3, 4, 3, 5), fires="conv2d")
case("conv1d", TOKENS, lambda p, x: F.conv1d(x, p.a, p.b, stride=2, padding=1), a=(5, 6, 2), b=(5,))
SOLID = (2, 3, 4, 5)
case(
    "conv3d", SOLID, lambda p, x: F.conv3d(x, p.a, p.b, stride=(1, 2, 1), padding=(1, 0, 1)), a=(3, 2, 2, 2, 3), b=(3,)
)
case("conv3d: tiles, grouped", SOLID, lambda p, x: F.conv3d(x, p.a, stride=(3, 2, 5), groups=2), a=(4, 1, 3, 2, 5))
case(
    "im2col",
    MAP,
    lambda p, x: F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)) * p.a,
    a=(24, 12),
)
case("im2col: tiles", MAP, lambda p, x: F.unfold(x, 2, stride=2).transpose(1, 2))
case("col2im", (12, 9), lambda p, x: F.fold(x, (5, 4), (2, 2), padding=(1, 0), stride=(2, 1)) * p.a, a=(3, 5, 4))
case(
    "convolution",
    MAP,
    lambda p, x: aten.convolution(x, p.a, p.b, [1, 2], [1, 0], [1, 1], False, [0, 0], 2),
    a=(6, 2, 3, 2),
    b=(6,),
)

# -- norms ------------------------------------------------------------------------------------------------------------


def _norm(x: Tensor, at: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / torch.sqrt(at.var(dims, keepdim=True, correction=0) + eps)


def _grouped(x: Tensor, at: Tensor, groups: int) -> Tensor:
    own, held = (part.reshape(len(part), groups, -1) for part in (x, at))
    return _norm(own, held, (-1,), 1e-5).reshape(x.shape)


case(
    "layer_norm",
    TOKENS,
    lambda p, x: F.layer_norm(x, (4,), p.a, p.b, 1e-3),
    lambda p, x, at: _norm(x, at, (-1,), 1e-3) * p.a + p.b,
    a=(4,),
    b=(4,),
)
case(
    "layer_norm: without weights",
    TOKENS,
    lambda p, x: F.layer_norm(x, (4,)),
    lambda p, x, at: _norm(x, at, (-1,), 1e-5),
)
case(
    "layer_norm: over two axes",
    (3, 6, 4),
    lambda p, x: F.layer_norm(x, (6, 4), p.a, p.b),
    lambda p, x, at: _norm(x, at, (-2, -1), 1e-5) * p.a + p.b,
    a=(6, 4),
    b=(6, 4),
)
case(
    "layer_norm: of channels that come first",
    MAP,
    lambda p, x: F.layer_norm(x.permute(0, 2, 3, 1), (4,), p.a, p.b).permute(0, 3, 1, 2),
    lambda p, x, at: _norm(x, at, (1,), 1e-5) * p.a[:, None, None] + p.b[:, None, None],
    a=(4,),
    b=(4,),
)
case(
    "rms_norm",
    TOKENS,
    lambda p, x: F.rms_norm(x, (4,), p.a, 1e-3),
    lambda p, x, at: x / torch.sqrt(at.square().mean(-1, keepdim=True) + 1e-3) * p.a,
    a=(4,),
)
case(
    "rms_norm: over two axes",
    (3, 6, 4),
    lambda p, x: F.rms_norm(x, (6, 4), p.a),
    lambda p, x, at: x / torch.sqrt(at.square().mean((-2, -1), keepdim=True) + torch.finfo(torch.float64).eps) * p.a,
    a=(6, 4),
)
for groups in (1, 2, 4):
    case(
        f"group_norm: {groups}",
        MAP,
        lambda p, x, groups=groups: F.group_norm(x, groups, p.a, p.b),
        lambda p, x, at, groups=groups: _grouped(x, at, groups) * p.a[:, None, None] + p.b[:, None, None],
        a=(4,),
        b=(4,),
    )
case("group_norm: tokens", (4, 6), lambda p, x: F.group_norm(x, 2), lambda p, x, at: _grouped(x, at, 2))
case(
    "instance_norm",
    MAP,
    lambda p, x: F.instance_norm(x, None, None, p.a, p.b),
    lambda p, x, at: _norm(x, at, (2, 3), 1e-5) * p.a[:, None, None] + p.b[:, None, None],
    a=(4,),
    b=(4,),
)
case(
    "batch_norm",
    MAP,
    lambda p, x: F.batch_norm(x, p.m, p.v, p.a, p.b, False, 0.1, 1e-3),
    a=(4,),
    b=(4,),
    m=(4,),
    v=torch.rand(4) + 0.5,
)
case("batch_norm: without weights", (4,), lambda p, x: F.batch_norm(x, p.m, p.v), m=(4,), v=torch.rand(4) + 0.5)

# -- pooling ----------------------------------------------------------------------------------------------------------

case("mean", MAP, lambda p, x: x.mean((-1, 2), keepdim=True))
case("mean: one axis", MAP, lambda p, x: x.mean(2) * p.a, a=(4, 6))
case("sum", MAP, lambda p, x: x.sum(-1) * p.a, a=(4, 6))
case("cumsum", TOKENS, lambda p, x: x.cumsum(1) * p.a, a=(6, 4))
case("cumsum: the last axis", TOKENS, lambda p, x: x.cumsum(-1) * p.a, a=(6, 4))
case("cumsum: one entry", (1, 4), lambda p, x: x.cumsum(1) * p.a, a=(4,))
case(
    "amax",
    MAP,
    lambda p, x: x.amax(2),
    lambda p, x, at: x.gather(2, at.argmax(2, keepdim=True)).squeeze(2),
)
case(
    "amax: kept",
    TOKENS,
    lambda p, x: x.amax(1, keepdim=True) * p.a,
    lambda p, x, at: x.gather(1, at.argmax(1, keepdim=True)) * p.a,
    a=(5, 4),
)


def _largest(p: nn.Module, x: Tensor, at: Tensor) -> Tensor:
    return x.flatten(2).gather(2, at.flatten(2).argmax(2, keepdim=True))[..., 0]


case("amax: over several axes", MAP, lambda p, x: x.amax((3, 2)), _largest)
case(
    "amax: over axes that lie apart, kept",
    SOLID,
    lambda p, x: x.amax((2, 4), keepdim=True) * p.a,
    lambda p, x, at: (
        _largest(p, x.transpose(2, 3).flatten(1, 2), at.transpose(2, 3).flatten(1, 2)).view(-1, 2, 1, 4, 1) * p.a
    ),
    a=(2, 1, 4, 1),
)
case("amax: max of an axis", MAP, lambda p, x: x.flatten(2).max(2).values, _largest, fires="amax")
case("amax: adaptive max pooling", MAP, lambda p, x: F.adaptive_max_pool2d(x, 1).flatten(1), _largest, fires="amax")
case(
    "amax: adaptive, of tokens",
    TOKENS,
    lambda p, x: F.adaptive_max_pool1d(x.transpose(1, 2), 1)[..., 0],
    lambda p, x, at: _largest(p, x.transpose(1, 2), at.transpose(1, 2)),
    fires="amax",
)
case("amax: adaptive, of a solid", SOLID, lambda p, x: F.adaptive_max_pool3d(x, 1).flatten(1), _largest, fires="amax")
for name, options in (
    ("tiles", {"kernel_size": 2}),
    ("tiles of 3", {"kernel_size": 3}),
    ("one axis", {"kernel_size": (1, 3)}),
    ("padding counted", {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("padding not counted", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    ("rounded up", {"kernel_size": 4, "stride": 3, "padding": (1, 0), "ceil_mode": True}),
):
    case(f"avg_pool2d: {name}", MAP, lambda p, x, options=options: F.avg_pool2d(x, **options))
for name, options in (
    ("tiles", {"kernel_size": 2}),
    ("padded", {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("padding not counted", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
):
    case(f"avg_pool1d: {name}", TOKENS, lambda p, x, options=options: F.avg_pool1d(x, **options))
    case(f"avg_pool3d: {name}", SOLID, lambda p, x, options=options: F.avg_pool3d(x, **options))
case("adaptive_avg_pool2d", MAP, lambda p, x: F.adaptive_avg_pool2d(x, (1, 1)))
case("adaptive_avg_pool2d: uneven", MAP, lambda p, x: F.adaptive_avg_pool2d(x, (4, 5)))
case("adaptive_avg_pool1d", (4, 7), lambda p, x: F.adaptive_avg_pool1d(x, 3))


def _maxima(kernel: int, stride: int, padding: int, dilation: int = 1) -> Callable[..., Tensor]:
    def held(p: nn.Module, x: Tensor, at: Tensor) -> Tensor:
        maxima, places = F.max_pool2d(at, kernel, stride, padding, dilation, return_indices=True)
        return x.flatten(2).gather(2, places.flatten(2)).view(maxima.shape)

    return held


for name, window in (
    ("tiles", (2, 2, 0)),
    ("overlapping", (3, 1, 0)),
    ("overlapping, padded", (3, 2, 1)),
    ("dilated", (2, 1, 0, 2)),
):
    case(
        f"max_pool2d: {name}",
        MAP,
        lambda p, x, window=window: F.max_pool2d(x, *window),
        _maxima(*window),
    )
for mode, options in (
    ("nearest", {}),
    ("nearest-exact", {}),
    ("bilinear", {"align_corners": False}),
    ("bilinear", {"align_corners": True}),
    ("bicubic", {"align_corners": False}),
    ("bilinear", {"antialias": True}),
    ("bicubic", {"antialias": True}),
):
    own = "_" * ("antialias" in options or "exact" in mode) + f"upsample_{mode.replace('-', '_')}2d"
    for size in ({"size": (9, 5)}, {"scale_factor": (0.7, 1.3)}):
        detail = " ".join(f"{key}={value}" for key, value in (options | size).items())
        case(
            f"{own}{'_aa' * ('antialias' in options)}: {detail}",
            (2, 5, 7),
            lambda p, x, mode=mode, given=(options | size): F.interpolate(x, mode=mode, **given),
        )


# -- the twins --------------------------------------------------------------------------------------------------------


def groups() -> dict[Case, tuple[tuple[Case, ...], int]]:
    """Which operations share a model, and the place of each."""
    by_shape: dict[tuple[int, ...], list[Case]] = defaultdict(list)
    for own in CASES:
        by_shape[own.shape].append(own)
    found = {}
    for cases in by_shape.values():
        for start in range(0, len(cases), TOGETHER):
            together = tuple(cases[start : start + TOGETHER])
            found |= {own: (together, place) for place, own in enumerate(together)}
    return found


@cache
@torch.no_grad()
def decomposed(cases: tuple[Case, ...]) -> tuple[Trunk, Tensor, unweave.Plan, unweave.Contributions]:
    """A model of some operations, images, and what the plan makes of them."""
    torch.manual_seed(7)
    model = Trunk(list(cases)).eval().requires_grad_(False)
    shape = cases[0].shape
    images = torch.randn(3, 1, math.prod(shape[:-1]), shape[-1]).double()  # a view brings them to the trunk's shape
    plan = unweave.plan(model, images)
    return model, images, plan, plan.run(images, tolerance=math.inf)


def expected(model: Trunk, place: int, images: Tensor) -> dict[str, Tensor]:
    """The contributions through one operation, by running it on each of them alone."""
    operation = model.operations[place]
    entered = model.enter(images)
    inside = model.first.hidden(entered) @ model.first.leave.weight.T
    at = entered + inside + model.first.leave.bias
    torch.testing.assert_close(operation.held(at, at), operation(at), rtol=1e-12, atol=1e-12)
    nothing = operation.held(torch.zeros_like(at), at)
    found = {
        "embed": operation.held(entered, at) - nothing,
        "first": operation.held(inside, at) - nothing,
        "first.bias": operation.held(model.first.leave.bias.expand_as(at), at) - nothing,
        "trunk": nothing,
    }
    return found


def summed(result: unweave.Contributions, columns: slice) -> dict[str, Tensor]:
    """Contributions by the same names; biases of the operation and of the readout together."""
    found: dict[str, Tensor] = {}
    for column, part in enumerate(result.components):
        name = str(part) if part.path in ("first", "embed") else "trunk" if part.kind == "bias" else str(part)
        value = result.values[:, column, columns]
        if name in ("first", "embed", "first.bias", "trunk") or value.any():
            found[name] = found.get(name, 0) + value
    return found


GROUPS = groups()


def marked(case: Case) -> object:
    together, _ = GROUPS[case]
    mark = pytest.mark.xdist_group(f"rules {together[0].name}")
    return pytest.param(case, id=case.name.replace(" ", "_"), marks=mark)


@pytest.mark.parametrize("case", [marked(own) for own in CASES])
def test_contributions_are_what_the_operation_makes_of_each(case: Case) -> None:
    cases, place = GROUPS[case]
    model, images, plan, result = decomposed(cases)
    assert not [lump for lump in plan.lumps if f"{lump.module}.".startswith(f"operations.{place}.")]
    fired = {
        rule.operation for node, rule in plan._walk.fired if plan._walk.graph.module(node) == f"operations.{place}"
    }
    assert fired >= set(case.fires)
    with torch.no_grad():
        widths = [operation(model.enter(images)).shape[1] for operation in model.operations]
        theirs = expected(model, place, images)
    ours = summed(result, slice(sum(widths[:place]), sum(widths[: place + 1])))
    size = sum(theirs.values()).norm()
    assert set(ours) == set(theirs)
    if case.enters:
        ours["embed"], theirs["embed"] = ours["embed"] + ours.pop("trunk"), theirs["embed"] + theirs.pop("trunk")
    for name, value in theirs.items():
        error = float((ours[name] - value).norm() / size)
        assert error < TOLERANCE, f"{name}: {error:.1e}"


def test_every_rule_has_a_twin() -> None:
    known = {name for case in CASES for name in case.fires}
    shipped = {name for name, rule in TABLE.items() if rule.kind != "source" and name.startswith("aten.")}
    assert shipped == known
