"""Residual sums, blocks, stems, transitions between stages, and readouts as people write them; see `parts`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attentions import ATTENTIONS, heads_first
from branches import CONVS, LINEARS, MLPS
from parts import LayerNorm, MapBatchNorm, MapLayerNorm, Option, Part, Setting, Table, act, norm, option, parameter
from replay import Recorder

FORMS: Table = {}
PARALLELS: Table = {}
BLOCKS: Table = {}

Form = Callable[["Block", int, Tensor, "Reader"], Tensor]


class Reader:
    """A branch as a residual sum sees it: its norm and its operation, of one block."""

    def __init__(self, block: Block, number: int) -> None:
        self.op, self.norm, self.block = block.ops[number], block.norms[number], block

    def __call__(self, x: Tensor) -> Tensor:
        """`f(norm(x))`."""
        x = self._read(x)
        return self.op(x) if self.norm is None else self.op(self.norm(x))

    def bare(self, x: Tensor) -> Tensor:
        """`f(x)`."""
        return self.op(self._read(x))

    def _read(self, x: Tensor) -> Tensor:
        inner = getattr(self.op, "inner", self.op)
        return self.block.recorder.source(x, inner, inner.kind) if getattr(inner, "linear", False) else x


def _form(name: str, **rest: object) -> Callable[[Form], Form]:
    rest.setdefault("setup", lambda block, number, s: None)
    return option(FORMS, name, **rest)


def _param(what: str, *shape: str) -> Callable[[Block, int, Setting], None]:
    def setup(block: Block, number: int, s: Setting) -> None:
        channel = (s.width, 1, 1) if s.layout == "map" else (s.width,)
        setattr(block, f"{what}{number}", parameter(*(channel if shape == ("c",) else (1,))))

    return setup


def _get(block: Block, what: str, number: int) -> Tensor:
    return getattr(block, f"{what}{number}")


@_form("x + f(n(x))")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + f(x)


@_form("f(n(x)) + x")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return f(x) + x


@_form("x = x + f; shortcut first")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    shortcut = x
    x = f(x)
    x = shortcut + x
    return x


@_form("x += f")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    x += f(x)
    return x


@_form("f += x")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    out = f(x)
    out += x
    return out


@_form("x.add(f)")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x.add(f(x))


@_form("torch.add(x, f, alpha=0.7)")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.add(x, f(x), alpha=0.7)


@_form("torch.add(f, x, alpha=0.7)", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.add(f(x), x, alpha=0.7)


@_form("x - (-f)")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x - (-f(x))


@_form("f - (-x)", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return f(x).sub(x.neg())


@_form("torch.rsub", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.rsub(torch.neg(f(x)), x)


@_form("LayerScale", setup=_param("gamma", "c"))
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + _get(block, "gamma", i) * f(x)


@_form("LayerScale in place", setup=_param("gamma", "c"))
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + f(x).mul_(_get(block, "gamma", i))


@_form("ReZero", setup=_param("scale", "1"))
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + f(x) * _get(block, "scale", i)


@_form("addcmul(x, gamma, f)", setup=_param("gamma", "c"))
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.addcmul(x, _get(block, "gamma", i), f(x))


@_form("x.addcmul(f, gamma, value=0.5)", setup=_param("gamma", "c"), exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x.addcmul(f(x), _get(block, "gamma", i), value=0.5)


@_form("lerp(x, f, 0.4)")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.lerp(x, f(x), 0.4)


@_form("lerp(x, f, w)", setup=_param("scale", "c"))
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.lerp(x, f(x), 0.4 * _get(block, "scale", i))


@_form("x.lerp(f, sigmoid(w))", setup=_param("scale", "c"), exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x.lerp(f(x), torch.sigmoid(_get(block, "scale", i)).expand_as(x))


@_form("x*(1-g) + f*g", setup=_param("scale", "c"))
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    gate = torch.sigmoid(_get(block, "scale", i))
    return x * (1 - gate) + f(x) * gate


@_form("(1-a)*x + a*f")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return 0.7 * x + 0.3 * f(x)


def _gate(block: Block, i: int, s: Setting) -> None:
    setattr(block, f"gate{i}", nn.Conv2d(s.width, s.width, 1) if s.layout == "map" else nn.Linear(s.width, s.width))


@_form("highway", setup=_gate, exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    gate = block.recorder.hold(torch.sigmoid(_get(block, "gate", i)(x)))
    return x * (1 - gate) + f(x) * gate


@_form("highway, f first", setup=_gate, exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    gate = block.recorder.hold(_get(block, "gate", i)(x).sigmoid())
    return gate * f(x) + (1.0 - gate) * x


@_form("highway by lerp", setup=_gate, exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.lerp(x, f(x), block.recorder.hold(torch.sigmoid(_get(block, "gate", i)(x))))


@_form("stack([x, f]).mean(0)")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.stack([x, f(x)]).mean(0)


@_form("stack([x, f]).sum(0)")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.stack([x, f(x)], 0).sum(dim=0)


@_form("stack([x, f], -1).sum(-1)")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.stack((x, f(x)), dim=-1).sum(-1)


def _pair(block: Block, i: int, s: Setting) -> None:
    setattr(block, f"scale{i}", parameter(2))


@_form("stack([x, f], -1) @ w", setup=_pair, exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.stack([x, f(x)], -1) @ _get(block, "scale", i)


@_form("einsum over a stack", setup=_pair, exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.einsum("s...,s->...", torch.stack([x, f(x)]), _get(block, "scale", i))


@_form("w[0]*x + w[1]*f, w a softmax", setup=_pair, exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    w = _get(block, "scale", i).softmax(0)
    return w[0] * x + w[1] * f(x)


def _wide(block: Block, i: int, s: Setting) -> None:
    setattr(
        block, f"fuse{i}", nn.Conv2d(2 * s.width, s.width, 1) if s.layout == "map" else nn.Linear(2 * s.width, s.width)
    )


@_form("Linear(cat([x, f]))", setup=_wide)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return _get(block, "fuse", i)(torch.cat([x, f(x)], block.channel))


@_form("Linear(cat([f, x]))", setup=_wide)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return _get(block, "fuse", i)(torch.cat((f(x), x), dim=block.channel))


@_form("sum([x, f])")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return sum([x, f(x)])


@_form("reduce(add, [x, f])", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return reduce(operator.add, [x, f(x)])


@_form("n(x + f(x))")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return f.norm(x + f.bare(x)) if f.norm is not None else x + f.bare(x)


@_form("x + n(f(x))")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + f.norm(f.bare(x)) if f.norm is not None else x + f.bare(x)


def _second_norm(block: Block, i: int, s: Setting) -> None:
    setattr(block, f"post{i}", norm(s, s.width))


@_form("sandwich", setup=_second_norm)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + _get(block, "post", i)(f(x))


@_form("n2(x + f(n(x)))", setup=_second_norm)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return _get(block, "post", i)(x + f(x))


@_form("DeepNorm")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return f.norm(1.3 * x + f.bare(x)) if f.norm is not None else 1.3 * x + f.bare(x)


@_form("alpha*x + f")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x * 1.3 + f(x)


@_form("(x + f)/sqrt(2)")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return (x + f(x)) / math.sqrt(2)


def _projection(block: Block, i: int, s: Setting) -> None:
    setattr(block, f"skip{i}", nn.Conv2d(s.width, s.width, 1) if s.layout == "map" else nn.Linear(s.width, s.width))


@_form("P(x) + f", setup=_projection)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return _get(block, "skip", i)(x) + f(x)


@_form("f + P(x)", setup=_projection)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return f(x) + _get(block, "skip", i)(x)


@_form("P(y) + f(y), y = n(x)", setup=_projection)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    x = block.recorder.entry(f.norm(x), block) if f.norm is not None else x
    return _get(block, "skip", i)(x) + f.bare(x)


def _mask(block: Block, i: int, s: Setting) -> None:
    shape = (s.height, s.breadth) if s.layout == "map" else (s.tokens, 1)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6
    mask.view(-1)[0] = True
    block.register_buffer(f"fixed{i}", mask)


@_form("where(mask, x + f, x)", setup=_mask)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.where(_get(block, "fixed", i), x + f(x), x)


@_form("x + where(mask, f, 0)", setup=_mask, exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + torch.where(_get(block, "fixed", i), f(x), 0.0)


@_form("x + f*mask", setup=_mask)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + f(x) * _get(block, "fixed", i)


@_form("x + f.masked_fill(~mask, 0)", setup=_mask, exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + f(x).masked_fill(~_get(block, "fixed", i), 0.0)


@_form("x[:, 0] = x[:, 0] + f[:, 0]", needs="tokens", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    out = x.clone()
    out[:, 0] = x[:, 0] + f(x)[:, 0]
    return out


@_form("x[:, 0] += f[:, 0]", needs="tokens", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    out = f(x)
    x = x.clone()
    x[:, 0] += out[:, 0]
    return x


@_form("x[:, 1:] += f[:, 1:]", needs="tokens grid", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    out = x.clone()
    out[:, 1:] += f(x)[:, 1:]
    return out


@_form("cat of a part that is added to and one that is left", needs="tokens")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.cat([x[:, :2] + f(x)[:, :2], x[:, 2:]], dim=1)


@_form("index_add", needs="tokens", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    places = torch.arange(0, x.shape[1], 2)
    return x.index_add(1, places, f(x)[:, ::2])


@_form("addmm with the last projection", setup=_projection, needs="tokens", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    layer = _get(block, "skip", i)
    return torch.addmm(x.flatten(0, 1), f(x).flatten(0, 1), layer.weight.t()).view_as(x) + layer.bias


@_form("baddbmm with the last projection", setup=_projection, needs="tokens", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    weight = _get(block, "skip", i).weight.t().expand(x.shape[0], -1, -1)
    return torch.baddbmm(x, f(x), weight, beta=0.9, alpha=1.1)


@_form("detour by einsum", needs="tokens", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    out = torch.einsum("bnd->bdn", x) + torch.einsum("bnd->bdn", f(x))
    return torch.einsum("bdn->bnd", out)


@_form("detour by unsqueeze")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return (x.unsqueeze(1) + f(x)[:, None]).squeeze(1)


@_form("detour by mT", needs="tokens")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return (x.mT + f(x).mT).mT


@_form("detour by swapdims", needs="tokens")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x.swapdims(1, 2).add(f(x).transpose(1, 2)).swapdims(1, 2)


@_form("detour by movedim")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return torch.movedim(torch.movedim(x, 1, -1) + f(x).movedim(1, -1), -1, 1)


@_form("x + pad(f(x)[:, :-1])", needs="tokens", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x + F.pad(f(x)[:, :-1], (0, 0, 0, 1))


@_form("x.mul(a).add(f, alpha=b)", exotic=True)
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    return x.mul(0.8).add(f(x), alpha=0.6)


@_form("stochastic depth in evaluation")
def _(block: Block, i: int, x: Tensor, f: Reader) -> Tensor:
    out = f(x)
    if block.training:
        out = out * (torch.rand(x.shape[0], *[1] * (x.ndim - 1)) < 0.9)
    return x + out


PLAIN_FORMS: Table = {
    name: FORMS[name]
    for name in (
        "x + f(n(x))",
        "f(n(x)) + x",
        "x += f",
        "torch.add(x, f, alpha=0.7)",
        "LayerScale",
        "ReZero",
        "x - (-f)",
        "sum([x, f])",
    )
}


class Adapted(nn.Module):
    """An operation on maps inside a block of tokens, or the other way round."""

    def __init__(self, s: Setting, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.sides, self.layout = inner, (s.height, s.breadth), s.layout
        self.spelled = s.value("adapter", ["transpose", "permute", "reshape"])

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "map":  # tokens inside
            b, c, h, w = x.shape
            if self.spelled == "transpose":
                return self.inner(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (h, w))
            if self.spelled == "permute":
                return self.inner(x.permute(0, 2, 3, 1).reshape(b, h * w, c)).view(b, h, w, c).permute(0, 3, 1, 2)
            return self.inner(x.view(b, c, -1).mT).mT.reshape(b, c, h, w)
        if self.spelled == "transpose":
            return self.inner(x.transpose(1, 2).unflatten(2, self.sides)).flatten(2).transpose(1, 2)
        if self.spelled == "permute":
            x = x.view(x.shape[0], *self.sides, -1).permute(0, 3, 1, 2)
            return self.inner(x).permute(0, 2, 3, 1).flatten(1, 2)
        b, _, c = x.shape
        return self.inner(x.mT.reshape(b, c, *self.sides)).reshape(b, c, -1).mT


def _operation(s: Setting, kind: str) -> nn.Module:
    """A branch's operation for the setting's layout."""
    tables = {"attn": ATTENTIONS, "mlp": MLPS, "conv": CONVS, "linear": LINEARS}
    native = "map" if kind == "conv" else "tokens"
    inner_setting = s if kind in ("conv", "linear") else replace(s, layout="tokens")
    made = inner_setting.pick(kind, tables[kind]).make(inner_setting)
    native = getattr(made, "layout", "tokens")
    return made if native == s.layout else Adapted(s, made)


for _name, _entry in CONVS.items():
    if _entry.make.layout == "map":
        CONVS[_name] = replace(_entry, needs=_entry.needs | {"grid"})


class Block(Part):
    """Some branches, one after the other or side by side."""

    branches: tuple[str, ...] = ()

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.channel = 1 if s.layout == "map" else -1
        self.names: list[tuple[str | None, str]] = []
        self.forms: list[Option] = []
        kinds = self.branches
        for number, kind in enumerate(kinds):
            part = replace(s, at=f"{s.at}.{number}")
            name = kind if kinds.count(kind) == 1 else f"{kind}{1 + kinds[:number].count(kind)}"
            self.add_branch(part, number, kind, name)

    def add_branch(self, s: Setting, number: int, kind: str, name: str) -> None:
        """A norm, an operation and a residual sum."""
        normed = f"norm{number + 1}"
        setattr(self, normed, norm(s, s.width))
        setattr(self, name, _operation(s, kind))
        form = s.pick("form", PLAIN_FORMS if kind == "linear" else FORMS)
        form.setup(self, number, s)
        self.names.append((normed, name))
        self.forms.append(form)

    @property
    def ops(self) -> list[nn.Module]:
        """The operations."""
        return [getattr(self, name) for _, name in self.names]

    @property
    def norms(self) -> list[nn.Module | None]:
        """Their norms; None where there is none."""
        return [getattr(self, name) if name else None for name, _ in self.names]

    def forward(self, x: Tensor) -> Tensor:
        for number, form in enumerate(self.forms):
            x = form.make(self, number, x, Reader(self, number))
        return x


def _block(name: str, branches: str, **rest: object) -> None:
    made = type("Block", (Block,), {"branches": tuple(branches.split())})
    option(BLOCKS, name, **rest)(made)


_block("attention, MLP", "attn mlp", weight=5)
_block("MLP alone", "mlp", weight=2)
_block("attention alone", "attn", weight=3)
_block("convolution, MLP", "conv mlp", needs="grid")
_block("convolution, attention, MLP", "conv attn mlp", needs="grid")
_block("convolution alone", "conv", needs="grid")
_block("MLP, attention", "mlp attn")
_block("two MLPs", "mlp mlp")
_block("linear, attention, MLP", "linear attn mlp")
_block("attention, MLP, linear", "attn mlp linear", exotic=True)
_block("linear, MLP", "linear mlp", exotic=True)


class ParallelBlock(Block):
    """Branches that all read the same stream."""

    branches = ("attn", "mlp")

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.parallel = s.pick("parallel", PARALLELS)
        self.shared = s.value("parallel norm", ["apart", "shared"]) == "shared"
        self.parallel.setup(self, s)

    def add_branch(self, s: Setting, number: int, kind: str, name: str) -> None:
        normed = f"norm{number + 1}"
        setattr(self, normed, norm(s, s.width))
        setattr(self, name, _operation(s, kind))
        self.names.append((normed, name))

    def forward(self, x: Tensor) -> Tensor:
        readers = [Reader(self, number) for number in range(len(self.names))]
        if self.shared:
            normed = self.norm1(x)
            return self.parallel.make(self, x, [lambda _, branch=branch: branch.bare(normed) for branch in readers])
        return self.parallel.make(self, x, readers)


class ParallelThings(ParallelBlock):
    """Two attentions side by side, then two MLPs side by side."""

    branches = ("attn", "attn", "mlp", "mlp")

    def forward(self, x: Tensor) -> Tensor:
        readers = [Reader(self, number) for number in range(4)]
        x = self.parallel.make(self, x, readers[:2])
        return self.parallel.make(self, x, readers[2:])


class ParallelConv(ParallelBlock):
    branches = ("attn", "conv")


class ParallelMlps(ParallelBlock):
    branches = ("mlp", "mlp")


class ParallelThree(ParallelBlock):
    branches = ("attn", "mlp", "conv")


class ParallelAttentions(ParallelBlock):
    branches = ("attn", "attn")


option(BLOCKS, "parallel attention and MLP")(ParallelBlock)
option(BLOCKS, "parallel attentions, parallel MLPs")(ParallelThings)
option(BLOCKS, "parallel attention and convolution", needs="grid")(ParallelConv)
option(BLOCKS, "parallel MLPs", exotic=True)(ParallelMlps)
option(BLOCKS, "parallel attentions", exotic=True)(ParallelAttentions)
option(BLOCKS, "parallel attention, MLP and convolution", needs="grid", exotic=True)(ParallelThree)

Readers = "list[Reader]"


def _parallel(name: str, **rest: object) -> Callable[..., object]:
    rest.setdefault("setup", lambda block, s: None)
    return option(PARALLELS, name, **rest)


@_parallel("x + a + m")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    out = x
    for branch in f:
        out = out + branch(x)
    return out


@_parallel("x + (a + m)")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    return x + sum([branch(x) for branch in f[1:]], start=f[0](x))


@_parallel("x + m + a")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    *first, last = [branch(x) for branch in f]
    out = x + last
    for value in first:
        out = out + value
    return out


@_parallel("a + m + x")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    out = f[0](x)
    for branch in f[1:]:
        out = out + branch(x)
    return out + x


@_parallel("sum([x, a, m])")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    return sum([x, *(branch(x) for branch in f)])


@_parallel("stack([x, a, m]).sum(0)")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    return torch.stack([x, *(branch(x) for branch in f)]).sum(0)


@_parallel("x + stack([a, m]).sum(0)")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    return x + torch.stack([branch(x) for branch in f]).sum(0)


@_parallel("x += a; x += m")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    outs = [branch(x) for branch in f]
    x = x.clone()
    for value in outs:
        x += value
    return x


@_parallel("x + 0.5*(a + m)")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    return x + 0.5 * sum(branch(x) for branch in f)


@_parallel("x + torch.add(a, m, alpha=0.5)")
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    out = f[0](x)
    for branch in f[1:]:
        out = torch.add(out, branch(x), alpha=0.5)
    return x + out


def _gammas(block: Block, s: Setting) -> None:
    channel = (s.width, 1, 1) if s.layout == "map" else (s.width,)
    block.gammas = nn.ParameterList([parameter(*channel) for _ in block.names])
    for number in range(len(block.names)):
        setattr(block, f"gamma{number}", parameter(*channel))
    del block.gammas


@_parallel("x + gamma1*a + gamma2*m", setup=_gammas)
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    out = x
    for number, branch in enumerate(f):
        out = out + getattr(block, f"gamma{number}") * branch(x)
    return out


@_parallel("addcmul, twice", setup=_gammas, exotic=True)
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    out = x
    for number, branch in enumerate(f):
        out = torch.addcmul(out, getattr(block, f"gamma{number}"), branch(x))
    return out


def _fuse(block: Block, s: Setting) -> None:
    layer = nn.Conv2d if s.layout == "map" else nn.Linear
    options = {"kernel_size": 1} if s.layout == "map" else {}
    pairs = 2 if isinstance(block, ParallelThings) else len(block.names)
    block.fuse = layer(pairs * s.width, s.width, **options)


@_parallel("x + Linear(cat([a, m]))", setup=_fuse, exotic=True)
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    return x + block.fuse(torch.cat([branch(x) for branch in f], block.channel))


@_parallel("stack([x, a, m]).mean(0)", exotic=True)
def _(block: Block, x: Tensor, f: Readers) -> Tensor:
    return torch.stack([x, *(branch(x) for branch in f)]).mean(0)


@option(BLOCKS, "Residual(PreNorm(f)) in a Sequential")
class WrappedBlock(nn.Sequential):
    """The modules of lucidrains' repositories."""

    def __init__(self, s: Setting) -> None:
        parts = []
        for number, kind in enumerate(("attn", "mlp")):
            part = replace(s, at=f"{s.at}.{number}")
            parts.append(ResidualModule(PreNorm(norm(part, s.width), _operation(part, kind))))
        super().__init__(*parts)


class PreNorm(nn.Module):
    def __init__(self, norm: nn.Module, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = norm, fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class ResidualModule(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


@option(BLOCKS, "nested: x + f(x + g(x))", exotic=True)
class NestedBlock(Block):
    """The inner sum lies below an activation; only the outer branch is a piece."""

    branches = ("attn", "mlp")

    def forward(self, x: Tensor) -> Tensor:
        attention, mlp = Reader(self, 0), Reader(self, 1)
        inner = self.forms[0].make(self, 0, x, attention)
        return x + mlp(inner)


@option(BLOCKS, "nested: x + (y + g(y)), y = f(x)", exotic=True)
class ChainedBlock(Block):
    """The branch is a small residual stream of its own."""

    branches = ("attn", "mlp")

    def forward(self, x: Tensor) -> Tensor:
        y = Reader(self, 0)(x)
        return x + (y + Reader(self, 1)(y))


@option(BLOCKS, "reversible", exotic=True)
class ReversibleBlock(Part):
    """Two halves of the channels that are added to in turn."""

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.axis = 1 if s.layout == "map" else -1
        half = replace(s, width=s.width // 2, heads=2)
        for number, kind in enumerate(("attn", "mlp")):
            part = replace(half, at=f"{s.at}.{number}")
            setattr(self, f"norm{number + 1}", norm(part, half.width))
            setattr(self, kind, _operation(part, kind))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, self.axis)
        a = a + self.attn(self.norm1(b))
        b = b + self.mlp(self.norm2(a))
        return torch.cat([a, b], self.axis)


def function_block(x: Tensor, weights: nn.ParameterDict, owner: nn.Module, heads: int) -> Tensor:
    """A whole block as a function of its weights."""
    recorder: Recorder = owner.recorder

    def normed(x: Tensor, gamma: Tensor, bias: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).square().mean(-1, keepdim=True)
        return (x - mean) / recorder.hold((var + 1e-6).sqrt()) * gamma + bias

    q, k, v = (
        heads_first(part, heads)
        for part in F.linear(normed(x, weights["gamma1"], weights["bias1"]), weights["qkv"]).chunk(3, -1)
    )
    recorder.attention()
    o = recorder.source(F.scaled_dot_product_attention(q, k, v), owner, "head", heads=heads, axis=1)
    x = x + F.linear(o.transpose(1, 2).flatten(2), weights["out"], weights["bias_out"])
    hidden = F.gelu(F.linear(normed(x, weights["gamma2"], weights["bias2"]), weights["up"], weights["bias_up"]))
    return x + F.linear(recorder.source(hidden, owner, "mlp"), weights["down"], weights["bias_down"])


@option(BLOCKS, "a plain function", needs="tokens")
class FunctionBlock(Part):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        c, h, self.heads = s.width, 6, s.heads
        shapes = {
            "gamma1": (c,),
            "bias1": (c,),
            "qkv": (3 * c, c),
            "out": (c, c),
            "bias_out": (c,),
            "gamma2": (c,),
            "bias2": (c,),
            "up": (h, c),
            "bias_up": (h,),
            "down": (c, h),
            "bias_down": (c,),
        }
        self.weights = nn.ParameterDict({name: parameter(*shape) for name, shape in shapes.items()})

    def forward(self, x: Tensor) -> Tensor:
        return function_block(x, self.weights, self, self.heads)


@option(BLOCKS, "values of the first layer again", needs="tokens", exotic=True)
class ValueResidualBlock(Part):
    """Two attention layers, of which the second adds the values of the first to its own."""

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.heads = s.heads
        self.norm1, self.norm2 = norm(s, s.width), norm(s, s.width)
        self.qkv1, self.qkv2 = nn.Linear(s.width, 3 * s.width), nn.Linear(s.width, 3 * s.width)
        self.proj1, self.proj2 = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)
        self.attn1, self.attn2 = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(part, self.heads) for part in self.qkv1(self.norm1(x)).chunk(3, -1))
        first = v
        self.recorder.attention()
        o = F.scaled_dot_product_attention(q, k, v)
        o = self.recorder.source(o, self, "head", heads=self.heads, axis=1)
        x = x + self.proj1(o.transpose(1, 2).flatten(2))
        q, k, v = (heads_first(part, self.heads) for part in self.qkv2(self.norm2(x)).chunk(3, -1))
        self.recorder.attention()
        o = F.scaled_dot_product_attention(q, k, 0.6 * v + 0.4 * first)
        o = self.recorder.source(o, self, "head", heads=self.heads, axis=1)
        return x + self.proj2(o.transpose(1, 2).flatten(2))


# Stems --------------------------------------------------------------------------------------------------------------

STEMS: Table = {}


class Stem(nn.Module):
    """Images to a map `[b, c, h, w]`, or to tokens.

    Attributes:
        maps: Whether it gives a map.
    """

    maps = True

    def __init__(self, s: Setting, patch: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.sides = patch, (size[0] // patch, size[1] // patch)
        self.build(s.width, patch, s)


@option(STEMS, "patch convolution")
class PatchConv(Stem):
    def build(self, c: int, p: int, s: Setting) -> None:
        self.proj = nn.Conv2d(3, c, p, p)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


@option(STEMS, "patch convolution, norm")
class NormedPatchConv(PatchConv):
    def build(self, c: int, p: int, s: Setting) -> None:
        super().build(c, p, s)
        self.norm = MapLayerNorm(s, c)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images))


@option(STEMS, "overlapping convolution")
class OverlappingConv(PatchConv):
    def build(self, c: int, p: int, s: Setting) -> None:
        self.proj = nn.Conv2d(3, c, p + 2, p, padding=1)


@option(STEMS, "reshape, Linear (p p c)")
class ReshapeLinear(Stem):
    maps = False

    def build(self, c: int, p: int, s: Setting) -> None:
        self.proj = nn.Linear(3 * p * p, c)

    def forward(self, images: Tensor) -> Tensor:
        b, p, (h, w) = images.shape[0], self.patch, self.sides
        x = images.reshape(b, 3, h, p, w, p).permute(0, 2, 4, 3, 5, 1)
        return self.proj(x.reshape(b, h * w, p * p * 3))


@option(STEMS, "reshape, Linear (c p p), norms")
class NormedReshapeLinear(ReshapeLinear):
    def build(self, c: int, p: int, s: Setting) -> None:
        super().build(c, p, s)
        self.norm1, self.norm2 = LayerNorm(s, 3 * p * p), LayerNorm(s, c)

    def forward(self, images: Tensor) -> Tensor:
        p = self.patch
        x = images.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.norm2(self.proj(self.norm1(x)))


@option(STEMS, "einsum over reshaped patches", exotic=True)
class EinsumPatches(ReshapeLinear):
    def forward(self, images: Tensor) -> Tensor:
        p, (h, w) = self.patch, self.sides
        x = torch.einsum("bchpwq->bhwpqc", images.view(images.shape[0], 3, h, p, w, p)).flatten(3).flatten(1, 2)
        return self.proj(x)


@option(STEMS, "F.unfold, Linear")
class UnfoldLinear(ReshapeLinear):
    def forward(self, images: Tensor) -> Tensor:
        return self.proj(F.unfold(images, self.patch, stride=self.patch).transpose(1, 2))


@option(STEMS, "Tensor.unfold, Linear", exotic=True)
class TensorUnfoldLinear(ReshapeLinear):
    def forward(self, images: Tensor) -> Tensor:
        p = self.patch
        x = images.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5)
        return self.proj(x.flatten(3).flatten(1, 2))


@option(STEMS, "Conv3d")
class VideoConv(Stem):
    maps = False

    def build(self, c: int, p: int, s: Setting) -> None:
        self.proj = nn.Conv3d(3, c, (1, p, p), (1, p, p))

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images.unsqueeze(2)).flatten(2).transpose(1, 2)


@option(STEMS, "Conv3d over a frame that is doubled", exotic=True)
class DoubledVideoConv(Stem):
    maps = False

    def build(self, c: int, p: int, s: Setting) -> None:
        self.c = c
        self.proj = nn.Conv3d(3, c, (2, p, p), (2, p, p), bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.stack([images, images], 2)
        return self.proj(x).view(images.shape[0], self.c, -1).permute(0, 2, 1)


@option(STEMS, "pixel_unshuffle, 1x1 convolution", exotic=True)
class Unshuffled(Stem):
    def build(self, c: int, p: int, s: Setting) -> None:
        self.proj = nn.Conv2d(3 * p * p, c, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(F.pixel_unshuffle(images, self.patch))


@option(STEMS, "focus by slices", exotic=True)
class Focus(Stem):
    def build(self, c: int, p: int, s: Setting) -> None:
        self.proj = nn.Conv2d(12, c, p // 2, p // 2)

    def forward(self, x: Tensor) -> Tensor:
        slices = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.proj(torch.cat(slices, 1))


class ConvStem(Stem):
    activation: Callable[[], nn.Module] = nn.GELU

    def between(self, s: Setting, c: int) -> nn.Module:
        return MapBatchNorm(s, c)

    def build(self, c: int, p: int, s: Setting) -> None:
        self.conv1, self.norm = nn.Conv2d(3, 4, 3, 2, 1, bias=False), self.between(s, 4)
        self.act, self.conv2 = type(self).activation(), nn.Conv2d(4, c, p // 2, p // 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv2(self.act(self.norm(self.conv1(images))))


for _name, _activation in {
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "SiLU": nn.SiLU,
}.items():
    option(STEMS, f"convolutions with {_name}")(type("ConvStem", (ConvStem,), {"activation": _activation}))


@option(STEMS, "convolutions with GELU and LayerNorm2d", exotic=True)
class NormedConvStem(ConvStem):
    def between(self, s: Setting, c: int) -> nn.Module:
        return MapLayerNorm(s, c)


@option(STEMS, "convolution, BatchNorm, ReLU, max pool", exotic=True)
class PooledStem(Stem):
    def build(self, c: int, p: int, s: Setting) -> None:
        self.conv, self.bn, self.pool = nn.Conv2d(3, c, p // 2, p // 2), MapBatchNorm(s, c), nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(F.relu(self.bn(self.conv(images))))


@option(STEMS, "two scales, added", exotic=True)
class TwoScales(Stem):
    def build(self, c: int, p: int, s: Setting) -> None:
        self.fine, self.coarse = nn.Conv2d(3, c, p, p), nn.Conv2d(3, c, p + 2, p, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.fine(images) + self.coarse(images)


FLATTENS: Table = {}


@option(FLATTENS, "flatten(2).transpose(1, 2)")
def _(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@option(FLATTENS, "reshape, permute")
def _(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)


@option(FLATTENS, "permute, flatten(1, 2)")
def _(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)


@option(FLATTENS, "flatten(2).mT")
def _(x: Tensor) -> Tensor:
    return x.flatten(2).mT


@option(FLATTENS, "flatten(2).swapdims(1, 2)")
def _(x: Tensor) -> Tensor:
    return x.flatten(2).swapdims(1, 2)


@option(FLATTENS, "movedim, view", exotic=True)
def _(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().view(x.shape[0], -1, x.shape[1])


@option(FLATTENS, "flatten(2).adjoint()", exotic=True)
def _(x: Tensor) -> Tensor:
    return x.flatten(2).adjoint()


@option(FLATTENS, "einsum", exotic=True)
def _(x: Tensor) -> Tensor:
    return torch.einsum("bchw->bhwc", x).reshape(x.shape[0], -1, x.shape[1])


@option(FLATTENS, "cat of rows", exotic=True)
def _(x: Tensor) -> Tensor:
    return torch.cat([row.mT for row in x.unbind(2)], 1)


PREFIXES: Table = {}


class Prefix(nn.Module):
    """Class and register tokens.

    Attributes:
        count: How many.
    """

    count = 0

    def __init__(self, width: int) -> None:
        super().__init__()
        if self.count:
            self.token_cls = parameter(1, 1, width)
        if self.count > 1:
            self.register_tokens = parameter(1, self.count - 1, width)

    def forward(self, x: Tensor) -> Tensor:
        return x


@option(PREFIXES, "class token, cat")
class ClassToken(Prefix):
    count = 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token_cls.expand(x.shape[0], -1, -1), x], dim=1)


option(PREFIXES, "none")(Prefix)


@option(PREFIXES, "class token, repeat, concat")
class RepeatedToken(ClassToken):
    def forward(self, x: Tensor) -> Tensor:
        return torch.concat((self.token_cls.repeat(x.shape[0], 1, 1), x), 1)


@option(PREFIXES, "class token plus zeros (CLIP)")
class ZerosToken(ClassToken):
    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
        return torch.cat([self.token_cls + zeros, x], 1)


@option(PREFIXES, "class token written by index", exotic=True)
class WrittenToken(ClassToken):
    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], x.shape[1] + 1, x.shape[2])
        out[:, 1:] = x
        out[:, 0] = self.token_cls[0, 0]
        return out


@option(PREFIXES, "class token on a padded row", exotic=True)
class PaddedToken(ClassToken):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, 0)) + F.pad(self.token_cls, (0, 0, 0, x.shape[1]))


@option(PREFIXES, "class token and registers")
class Registers(Prefix):
    count = 3

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        return torch.cat([self.token_cls.expand(b, -1, -1), self.register_tokens.expand(b, -1, -1), x], 1)


@option(PREFIXES, "two class tokens")
class TwoTokens(Prefix):
    count = 2

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token_cls, self.register_tokens], 1)
        return torch.cat((tokens.expand(x.size(0), -1, -1), x), dim=1)


@option(PREFIXES, "class token, hstack", exotic=True)
class StackedToken(ClassToken):
    def forward(self, x: Tensor) -> Tensor:
        return torch.hstack([self.token_cls.expand(x.shape[0], 1, x.shape[-1]), x])


POSITIONS: Table = {}


class Positions(nn.Module):
    """Positions of all tokens, or of a map."""

    def __init__(self, s: Setting) -> None:
        super().__init__()
        self.build(s, (1, s.width, s.height, s.breadth) if s.layout == "map" else (1, s.tokens, s.width))

    def build(self, s: Setting, shape: tuple[int, ...]) -> None:
        self.position = parameter(*shape)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position


option(POSITIONS, "a parameter, added")(Positions)


@option(POSITIONS, "none")
class NoPositions(Positions):
    def build(self, s: Setting, shape: tuple[int, ...]) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x


@option(POSITIONS, "in place")
class PositionsInPlace(Positions):
    def forward(self, x: Tensor) -> Tensor:
        x += self.position
        return x


@option(POSITIONS, "a buffer")
class PositionBuffer(Positions):
    def build(self, s: Setting, shape: tuple[int, ...]) -> None:
        self.register_buffer("position", torch.zeros(shape))


@option(POSITIONS, "nn.Embedding(arange)", needs="tokens")
class PositionEmbedding(Positions):
    def build(self, s: Setting, shape: tuple[int, ...]) -> None:
        self.table = nn.Embedding(s.tokens, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.shape[1], device=x.device))


@option(POSITIONS, "rows plus columns", needs="tokens grid")
class FactoredPositions(Positions):
    def build(self, s: Setting, shape: tuple[int, ...]) -> None:
        self.position_row, self.position_column = parameter(s.height, 1, s.width), parameter(1, s.breadth, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.position_row + self.position_column).flatten(0, 1)


@option(POSITIONS, "of the patches alone", needs="tokens prefix")
class PatchPositions(Positions):
    def build(self, s: Setting, shape: tuple[int, ...]) -> None:
        self.position = parameter(1, s.tokens - s.prefix, s.width)
        self.prefix = s.prefix

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.prefix], x[:, self.prefix :] + self.position], 1)


@option(POSITIONS, "resized from another grid", needs="tokens grid", exotic=True)
class ResizedPositions(Positions):
    def build(self, s: Setting, shape: tuple[int, ...]) -> None:
        self.position, self.sides = parameter(1, s.width, 3, 3), (s.height, s.breadth)

    def forward(self, x: Tensor) -> Tensor:
        table = F.interpolate(self.position, self.sides, mode="bicubic", antialias=False)
        return x + table.flatten(2).transpose(1, 2)


# Between blocks -----------------------------------------------------------------------------------------------------

TRANSITIONS: Table = {}


class Transition(Part):
    """Something on the trunk between two blocks; `after` is the setting behind it."""

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.sides = (s.height, s.breadth)
        self.after = s
        self.build(s)

    def build(self, s: Setting) -> None:
        pass

    def halved(self, s: Setting) -> Setting:
        return replace(s, height=s.height // 2, breadth=s.breadth // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


option(TRANSITIONS, "none", weight=4)(Transition)


@option(TRANSITIONS, "reshape, Linear", needs="tokens grid pairs")
class ReshapeMerging(Transition):
    def build(self, s: Setting) -> None:
        self.reduction, self.after = nn.Linear(4 * s.width, s.width), self.halved(s)

    def forward(self, x: Tensor) -> Tensor:
        h, w = self.sides
        x = x.view(x.shape[0], h // 2, 2, w // 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return self.reduction(x.flatten(3).flatten(1, 2))


@option(TRANSITIONS, "slices, norm, Linear (Swin)", needs="tokens grid pairs")
class SliceMerging(ReshapeMerging):
    def build(self, s: Setting) -> None:
        super().build(s)
        self.norm = LayerNorm(s, 4 * s.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, self.sides)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x)).flatten(1, 2)


@option(TRANSITIONS, "strided convolution", needs="grid pairs")
class ConvMerging(Transition):
    def build(self, s: Setting) -> None:
        self.conv, self.after, self.maps = nn.Conv2d(s.width, s.width, 2, 2), self.halved(s), s.layout == "map"

    def reduce(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.maps:
            return self.reduce(x)
        return self.reduce(x.transpose(1, 2).unflatten(2, self.sides)).flatten(2).transpose(1, 2)


@option(TRANSITIONS, "norm, overlapping strided convolution", needs="map pairs")
class NormedConvMerging(ConvMerging):
    def build(self, s: Setting) -> None:
        super().build(s)
        self.conv, self.norm = nn.Conv2d(s.width, s.width, 3, 2, 1), MapLayerNorm(s, s.width)

    def reduce(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


@option(TRANSITIONS, "average pool", needs="grid pairs")
class PoolMerging(ConvMerging):
    def build(self, s: Setting) -> None:
        self.after, self.maps = self.halved(s), s.layout == "map"

    def reduce(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


@option(TRANSITIONS, "max pool", needs="grid pairs")
class MaxPoolMerging(PoolMerging):
    def reduce(self, x: Tensor) -> Tensor:
        if not self.recorder.works:
            return F.max_pool2d(x, 2)
        cells = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4)
        return won(self.recorder, cells, 4)


@option(TRANSITIONS, "pixel_unshuffle, 1x1 convolution", needs="map pairs", exotic=True)
class UnshuffleMerging(Transition):
    def build(self, s: Setting) -> None:
        self.conv, self.after = nn.Conv2d(4 * s.width, s.width, 1), self.halved(s)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pixel_unshuffle(x, 2))


@option(TRANSITIONS, "a norm on the trunk")
class TrunkNorm(Transition):
    def build(self, s: Setting) -> None:
        self.norm = norm(s, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


@option(TRANSITIONS, "a Linear on the trunk")
class TrunkLinear(Transition):
    def build(self, s: Setting) -> None:
        self.fc = nn.Conv2d(s.width, s.width, 1) if s.layout == "map" else nn.Linear(s.width, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@option(TRANSITIONS, "positions again", exotic=True)
class PositionsAgain(Transition):
    def build(self, s: Setting) -> None:
        self.position = parameter(*((1, s.width, s.height, s.breadth) if s.layout == "map" else (1, s.tokens, s.width)))

    def forward(self, x: Tensor) -> Tensor:
        position = self.position
        if self.recorder.works:
            position = self.recorder.source(position.expand_as(x), self, "embed")
        return x + position


@option(TRANSITIONS, "an activation on the trunk", exotic=True)
class TrunkActivation(Transition):
    def build(self, s: Setting) -> None:
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.recorder.source(self.act(x), self, "lumped")


@option(TRANSITIONS, "every other token is dropped", needs="tokens prefix", exotic=True)
class DroppedTokens(Transition):
    def build(self, s: Setting) -> None:
        patches = s.height * s.breadth
        self.prefix, self.after = s.prefix, replace(s, height=1, breadth=(patches + 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.prefix], x[:, self.prefix :: 2]], 1)


@option(TRANSITIONS, "tokens to a map and back", needs="tokens grid")
class ThereAndBack(Transition):
    def build(self, s: Setting) -> None:
        self.conv = nn.Conv2d(s.width, s.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mT.unflatten(-1, self.sides)).flatten(2).mT


@option(TRANSITIONS, "flip and roll", needs="tokens", exotic=True)
class FlipRoll(Transition):
    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x.flip(1), 1, 1)


# Readouts -----------------------------------------------------------------------------------------------------------

READOUTS: Table = {}
TAILS: Table = {}


def won(recorder: Recorder, x: Tensor, axis: int) -> Tensor:
    """The largest entries along an axis, the winners held."""
    return x.gather(axis, recorder.hold(x.argmax(axis, keepdim=True))).squeeze(axis)


class Readout(Part):
    """From tokens or a map to one vector; `width` is its length."""

    normed = True

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.prefix, self.width = s.prefix, s.width
        if self.normed:
            self.norm = norm(s, s.width, "final norm")
        self.build(s)

    def build(self, s: Setting) -> None:
        pass


@option(READOUTS, "norm, class token", needs="prefix")
class NormClass(Readout):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)[:, 0]


@option(READOUTS, "norm, mean", needs="tokens")
class NormMean(Readout):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean(1)


@option(READOUTS, "norm, mean of the map", needs="map")
class NormMapMean(Readout):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean((2, 3))


@option(READOUTS, "class token, LayerNorm", needs="prefix")
class ClassNorm(Readout):
    normed = False

    def build(self, s: Setting) -> None:
        self.norm = LayerNorm(s, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[:, 0])


@option(READOUTS, "mean, LayerNorm", needs="tokens")
class MeanNorm(ClassNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[:, self.prefix :].mean(dim=1))


@option(READOUTS, "norm, mean of the patches", needs="prefix")
class NormPatchMean(Readout):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)[:, self.prefix :].mean(1)


@option(READOUTS, "no norm, class token", needs="prefix")
class BareClass(Readout):
    normed = False

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, :]


@option(READOUTS, "no norm, mean", needs="tokens")
class BareMean(Readout):
    normed = False

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) / x.shape[1]


@option(READOUTS, "two class tokens averaged", needs="prefix")
class TwoClasses(Readout):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return (x[:, 0] + x[:, 1]) / 2


@option(READOUTS, "class token beside the mean", needs="prefix")
class ClassMean(Readout):
    def build(self, s: Setting) -> None:
        self.width = 2 * s.width

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return torch.cat([x[:, 0], x[:, self.prefix :].mean(1)], -1)


@option(READOUTS, "class token plus mean", needs="prefix", exotic=True)
class ClassPlusMean(Readout):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return 0.5 * x[:, 0] + 0.5 * x[:, 1:].mean(1)


@option(READOUTS, "AdaptiveAvgPool1d", needs="tokens")
class Pool1d(Readout):
    def build(self, s: Setting) -> None:
        self.pool = nn.AdaptiveAvgPool1d(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.norm(x).transpose(1, 2)), 1)


@option(READOUTS, "norm, max over tokens", needs="tokens", exotic=True)
class MaxTokens(Readout):
    def build(self, s: Setting) -> None:
        self.spelled = s.value("max", ["amax", "max", "topk"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.recorder.works:
            return won(self.recorder, x, 1)
        if self.spelled == "amax":
            return x.amax(1)
        return x.max(dim=1).values if self.spelled == "max" else x.topk(1, dim=1)[0].squeeze(1)


@option(READOUTS, "AdaptiveMaxPool1d", needs="tokens", exotic=True)
class MaxPool1d(Readout):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).transpose(1, 2)
        return won(self.recorder, x, 2) if self.recorder.works else F.adaptive_max_pool1d(x, 1).squeeze(-1)


@option(READOUTS, "GeM", needs="tokens", exotic=True)
class GeM(Readout):
    def forward(self, x: Tensor) -> Tensor:
        pooled = self.norm(x).clamp(min=1e-6).pow(3).mean(1).pow(1 / 3)
        return self.recorder.source(pooled, self, "lumped")


@option(READOUTS, "logsumexp", needs="tokens", exotic=True)
class LogSumExp(Readout):
    def forward(self, x: Tensor) -> Tensor:
        return self.recorder.source(self.norm(x).logsumexp(1), self, "lumped")


@option(READOUTS, "second moments", needs="tokens", exotic=True)
class SecondMoments(Readout):
    normed = False

    def build(self, s: Setting) -> None:
        self.down, self.width = nn.Linear(s.width, 4), 16

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.recorder.source((x.mT @ x).flatten(1), self, "lumped")


@option(READOUTS, "flatten, Linear", needs="tokens")
class Flatten(Readout):
    def build(self, s: Setting) -> None:
        self.head = nn.Linear(s.width * s.tokens, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).flatten(1))


@option(READOUTS, "einsum('bnd->bd')", needs="tokens", exotic=True)
class EinsumSum(Readout):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bnd->bd", self.norm(x))


@option(READOUTS, "learned weights of tokens", needs="tokens")
class WeighedTokens(Readout):
    def build(self, s: Setting) -> None:
        self.scale = parameter(s.tokens)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bnd,n->bd", self.norm(x), self.scale.softmax(0))


@option(READOUTS, "mean of the tokens of a mask", needs="tokens", exotic=True)
class MaskedMean(Readout):
    def build(self, s: Setting) -> None:
        self.register_buffer("fixed_mask", (torch.arange(s.tokens) % 3 > 0).double()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * self.fixed_mask).sum(1) / self.fixed_mask.sum()


@option(READOUTS, "tokens weighed by a softmax of scores", needs="tokens", exotic=True)
class ScoredTokens(Readout):
    """Sequence pooling (CCT): attention without heads, by which alone the tokens are read."""

    def build(self, s: Setting) -> None:
        self.score = nn.Linear(s.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        self.recorder.attention(0, 1)
        weights = self.recorder.hold(self.score(x).softmax(1))
        return (weights.transpose(-1, -2) @ x).squeeze(-2)


@option(READOUTS, "attention pooling")
class AttentionPool(Readout):
    """A learned query reads all tokens; held and passed through."""

    def build(self, s: Setting) -> None:
        self.heads = s.heads
        self.query = parameter(1, 1, s.width)
        self.q, self.kv, self.proj = (
            nn.Linear(s.width, s.width),
            nn.Linear(s.width, 2 * s.width),
            nn.Linear(s.width, s.width),
        )
        self.maps = s.layout == "map"

    def pooled(self, x: Tensor) -> Tensor:
        if self.maps:
            x = x.flatten(2).transpose(1, 2)
        q = heads_first(self.q(self.query.expand(x.shape[0], -1, -1)), self.heads)
        k, v = (heads_first(part, self.heads) for part in self.kv(x).chunk(2, -1))
        self.recorder.passes(self)
        if self.recorder.works:
            o = self.recorder.hold((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)) @ v
        else:
            o = F.scaled_dot_product_attention(q, k, v)
        return self.proj(o.transpose(1, 2).flatten(2))[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(self.norm(x))


@option(READOUTS, "attention pooling and an MLP", exotic=True)
class AttentionPoolMlp(AttentionPool):
    """SigLIP."""

    def build(self, s: Setting) -> None:
        super().build(s)
        self.pool_norm, self.fc1, self.fc2 = LayerNorm(s, s.width), nn.Linear(s.width, 5), nn.Linear(5, s.width)
        self.mlp = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pooled(self.norm(x))
        hidden = self.recorder.source(F.gelu(self.fc1(self.pool_norm(x))), self, "mlp")
        return x + self.fc2(hidden)


@option(READOUTS, "attention pooling by the mean", needs="tokens", exotic=True)
class MeanQueryPool(AttentionPool):
    """The mean of all tokens asks; it is no part of the sum."""

    def pooled(self, x: Tensor) -> Tensor:
        q = heads_first(self.q(x.mean(1, keepdim=True)), self.heads)
        k, v = (heads_first(part, self.heads) for part in self.kv(x).chunk(2, -1))
        self.recorder.passes(self)
        attn = self.recorder.hold((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
        return self.proj((attn @ v).transpose(1, 2).flatten(2))[:, 0]


@option(READOUTS, "nn.MultiheadAttention pooling", needs="tokens", exotic=True)
class MultiheadPool(Readout):
    def build(self, s: Setting) -> None:
        self.query, self.mha = parameter(1, 1, s.width), nn.MultiheadAttention(s.width, s.heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        query = self.query.expand(x.shape[0], -1, -1)
        if not self.recorder.works:
            return self.mha(query, x, x, need_weights=False)[0].squeeze(1)
        m = self.mha
        parts = zip((query, x, x), m.in_proj_weight.chunk(3), m.in_proj_bias.chunk(3), strict=True)
        q, k, v = (heads_first(F.linear(*part), m.num_heads) for part in parts)
        self.recorder.passes(self)
        attn = self.recorder.hold((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
        return m.out_proj((attn @ v).transpose(1, 2).flatten(2)).squeeze(1)


@option(READOUTS, "class attention", needs="tokens grid", exotic=True)
class ClassAttention(Readout):
    """CaiT: a class token enters late and reads itself and all patches.

    What it reads of itself is its own heads', without biases; what it reads of the patches is passed on to them.
    """

    def build(self, s: Setting) -> None:
        self.heads, self.token_cls = s.heads, parameter(1, 1, s.width)
        self.norm1, self.norm2 = LayerNorm(s, s.width), LayerNorm(s, s.width)
        self.q, self.k, self.v, self.proj = (nn.Linear(s.width, s.width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(s.width, 5), nn.Linear(5, s.width)

    def forward(self, x: Tensor) -> Tensor:
        token = self.recorder.source(self.token_cls.expand(x.shape[0], -1, -1), self, "embed")
        u = self.norm1(torch.cat([token, x], 1))
        q, k, v = (heads_first(part, self.heads) for part in (self.q(u[:, :1]), self.k(u), self.v(u)))
        self.recorder.passes(self)
        if self.recorder.works:
            attn = self.recorder.hold((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))
            shift = self.v(self.norm1.bias).unflatten(-1, (self.heads, 1, -1)).expand_as(v[:, :, :1])
            o = self.recorder.source(attn[..., :1] @ (v[:, :, :1] - shift), self, "head", heads=self.heads)
            o = o + attn @ torch.cat([shift, v[:, :, 1:]], 2)
        else:
            o = F.scaled_dot_product_attention(q, k, v)
        token = token + self.proj(o.transpose(1, 2).flatten(2))
        hidden = self.recorder.source(F.gelu(self.fc1(self.norm2(token))), self, "mlp")
        return self.norm(token + self.fc2(hidden))[:, 0]


@option(READOUTS, "mean, LayerNorm of the map", needs="map")
class MapMeanNorm(ClassNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.adaptive_avg_pool2d(x, 1).flatten(1))


@option(READOUTS, "AdaptiveAvgPool2d, flatten", needs="map")
class MapPool(Readout):
    def build(self, s: Setting) -> None:
        self.pool = nn.AdaptiveAvgPool2d((1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.norm(x)), 1)


@option(READOUTS, "max of the map", needs="map", exotic=True)
class MapMax(Readout):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return won(self.recorder, x.flatten(2), 2) if self.recorder.works else x.amax((-2, -1))


@option(READOUTS, "adaptive_max_pool2d", needs="map", exotic=True)
class MapMaxPool(Readout):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return won(self.recorder, x.flatten(2), 2) if self.recorder.works else F.adaptive_max_pool2d(x, 1)[..., 0, 0]


@option(READOUTS, "1x1 convolution, activation, mean", needs="map", exotic=True)
class ConvHead(Readout):
    """EfficientNet: a nonlinearity on the trunk behind the last block."""

    def build(self, s: Setting) -> None:
        self.conv, self.act = nn.Conv2d(s.width, s.width, 1), nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.recorder.source(self.act(self.conv(self.norm(x))), self, "lumped").mean((2, 3))


class Tail(Part):
    """What comes behind the pool."""

    def __init__(self, s: Setting, width: int) -> None:
        super().__init__(s)
        self.build(s, width)

    def build(self, s: Setting, width: int) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x


option(TAILS, "none")(Tail)


@option(TAILS, "Linear")
class LinearTail(Tail):
    def build(self, s: Setting, width: int) -> None:
        self.proj = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


@option(TAILS, "x @ projection")
class MatmulTail(Tail):
    def build(self, s: Setting, width: int) -> None:
        self.matrix = parameter(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


@option(TAILS, "BatchNorm1d", exotic=True)
class BatchNormTail(Tail):
    def build(self, s: Setting, width: int) -> None:
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)


@option(TAILS, "LayerNorm, dropout, Linear")
class NormTail(Tail):
    def build(self, s: Setting, width: int) -> None:
        self.norm, self.drop, self.proj = LayerNorm(s, width), nn.Dropout(0.5), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.drop(self.norm(x)))


@option(TAILS, "unit length", exotic=True)
class UnitTail(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return x / self.recorder.hold(x.norm(dim=-1, keepdim=True))


@option(TAILS, "tanh", exotic=True)
class TanhTail(Tail):
    def forward(self, x: Tensor) -> Tensor:
        return self.recorder.source(torch.tanh(x), self, "lumped")


@option(TAILS, "Linear, tanh, Linear", exotic=True)
class PoolerTail(Tail):
    def build(self, s: Setting, width: int) -> None:
        self.dense, self.proj = nn.Linear(width, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.recorder.source(torch.tanh(self.dense(x)), self, "lumped"))


@option(TAILS, "a residual MLP", exotic=True)
class MlpTail(Tail):
    def build(self, s: Setting, width: int) -> None:
        self.norm, self.fc1, self.act, self.fc2 = LayerNorm(s, width), nn.Linear(width, 5), act(s), nn.Linear(5, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.recorder.source(self.act(self.fc1(self.norm(x))), self, "mlp"))
