"""Sums and products: addition, scaling, linear layers, and every contraction that einsum can write.

All products are one rule. With one operand constant it is a linear layer; with both depending on the image one of
them is frozen at its value (attention probabilities, a gate) and the other is followed; which one is decided from the
graph before any rule runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from unweave.adjoint.pending import Axis, Constant, Irregular, Operand, Runtime, Source, Term, fresh
from unweave.graph.capture import Extent, extents_of
from unweave.operations.table import Reads, Step, rule


def _number(value: float) -> Constant:
    return Constant((), (), lambda: torch.tensor(value, dtype=torch.float64), ("number", value))


def _value(value: Tensor, _: Sequence[object]) -> Tensor:
    return value


def _inverse(value: Tensor, _: Sequence[object]) -> Tensor:
    return value.reciprocal()


def frozen(node: fx.Node, step: Step, *, inverse: bool = False) -> Source:
    """An operand held at its value."""
    if step.moves(node):
        return Runtime("inverse" if inverse else "value", node, (node,), _inverse if inverse else _value)
    return (
        Constant(Constant.of(node).shape, (node,), torch.reciprocal, ("inverse", node))
        if inverse
        else Constant.of(node)
    )


def contraction(
    term: Term,
    out: str,
    live: str,
    held: str,
    factor: Source,
    live_extents: Sequence[Extent],
    held_extents: Sequence[Extent],
) -> Term:
    """The pending map of the live operand of `einsum("live,held->out")`.

    Args:
        term: The pending map of the output.
        out, live, held: One letter for each axis; an axis of length one is broadcast.
        factor: The other operand.
        live_extents, held_extents: Their shapes.
    """
    axes = dict(zip(out, term.axes, strict=True))
    summed: dict[str, Axis] = {}
    if isinstance(factor, Constant):  # a constant is the same for every image
        held_extents = [Extent(extent.size) for extent in held_extents]
    for letters, extents in ((live, live_extents), (held, held_extents)):
        for letter, extent in zip(letters, extents, strict=True):
            if letter not in axes or (letter in summed and extent.size > 1):
                if extent.batch:
                    raise Irregular("a contraction runs over the images")
                axes[letter] = summed[letter] = summed.get(letter) or Axis(fresh(extent.size))

    def axes_of(letters: str, extents: Sequence[Extent]) -> list[Axis]:
        return [
            Axis() if extent == Extent(1) and axes[letter].extent != Extent(1) else axes[letter]
            for letter, extent in zip(letters, extents, strict=True)
        ]

    moved = term.times(Operand(factor, tuple(axes_of(held, held_extents)))).read(axes_of(live, live_extents))
    new = {index for letter, axis in summed.items() if letter in live for index in axis.indices}
    if isinstance(factor, Constant):
        return moved.through(tuple(new)) if new else moved
    # channels attending to channels: what is contracted with a channel axis is a channel axis
    mixed = {index for letter in held if letter in out for index in axes[letter].indices} & term.channel
    only = {index for letter in held if letter in out and letter not in live for index in axes[letter].indices}
    channel = term.channel - only | new if mixed & only else term.channel
    return Term(moved.axes, moved.factors, moved.out, moved.scale, frozenset(channel), moved.kept)


def _operands(step: Step, first: str, second: str, spec: tuple[str, str, str], term: Term) -> Reads:
    """Reads of `einsum("a,b->out")` for whichever operand is followed."""
    left, right, out = spec
    pairs = {first: (left, second, right), second: (right, first, left)}
    for name, (own, other, held) in pairs.items():
        node, partner = step[name], step[other]
        follow = step.moves(node) and (step.live is node or not step.moves(partner))
        if follow or (not step.moves(node) and not step.moves(partner) and name == first):
            yield (
                node,
                contraction(term, out, own, held, frozen(partner, step), extents_of(node), extents_of(partner)),
            )
            return
    raise Irregular("a product of two values that both vary; neither is a gate")


@rule("aten.add", kind="linear")
def add(step: Step, term: Term) -> Reads:
    """A sum: both operands have the output's map."""
    yield from _sum(step, term, "input", "other", 1.0, float(step.given.get("alpha", 1)))


@rule("aten.sub", kind="linear")
def sub(step: Step, term: Term) -> Reads:
    """A difference."""
    yield from _sum(step, term, "input", "other", 1.0, -float(step.given.get("alpha", 1)))


@rule("aten.rsub", kind="linear")
def rsub(step: Step, term: Term) -> Reads:
    """A difference, the other way round."""
    yield from _sum(step, term, "input", "other", -float(step.given.get("alpha", 1)), 1.0)


def _sum(step: Step, term: Term, first: str, second: str, one: float, two: float) -> Reads:
    for name, sign in ((first, one), (second, two)):
        operand = step[name]
        if isinstance(operand, fx.Node):
            moved = term.broadcast(extents_of(operand)) if "val" in operand.meta else term
            yield operand, moved if sign == 1 else moved.times(scale=sign)
        elif operand:
            yield _number(float(operand)), term.times(scale=sign).broadcast(())


@rule("aten.neg", kind="linear")
def neg(step: Step, term: Term) -> Reads:
    """The opposite."""
    yield step["input"], term.times(scale=-1.0)


@rule("aten.mul", kind="frozen", product=("input", "other"))
def mul(step: Step, term: Term) -> Reads:
    """A scale: by a number, a weight (LayerScale), or a gate held at its value."""
    yield from _elementwise(step, term, inverse=False)


@rule("aten.div", kind="frozen", product=("input", "other"))
def div(step: Step, term: Term) -> Reads:
    """A scale by one over a number, a weight, or a value held; only the numerator is followed."""
    if step.given.get("rounding_mode"):
        raise Irregular("a rounded division")
    yield from _elementwise(step, term, inverse=True)


def _elementwise(step: Step, term: Term, *, inverse: bool) -> Reads:
    names = [("input", "other")] if inverse else [("input", "other"), ("other", "input")]
    for own, partner in names:
        node, other = step[own], step[partner]
        if not isinstance(node, fx.Node) or (isinstance(other, fx.Node) and step.live is other):
            continue
        if not step.moves(node) and step.moves(other):
            continue
        if not isinstance(other, fx.Node):
            yield node, term.times(scale=1 / float(other) if inverse else float(other))
            return
        letters = "abcdefghijklmnop"[: len(term.axes)]
        mine, held = (letters[len(letters) - len(extents_of(part)) :] for part in (node, other))
        moved = (
            term.broadcast(extents_of(node))
            if not held
            else contraction(
                term, letters, mine, held, frozen(other, step, inverse=inverse), extents_of(node), extents_of(other)
            )
        )
        if not held:
            moved = term.times(Operand(frozen(other, step, inverse=inverse), ()))
        yield node, moved
        return
    if inverse and step.moves(step["other"]):
        raise Irregular("a value is divided by the image's own")


@rule("aten.linear", kind="linear", mixes="last", contracts=True, affine=("input", "weight", "bias"))
def linear(step: Step, term: Term) -> Reads:
    """`y = x W^T + b`."""
    letters = "abcdefghijklmnop"[: len(term.axes) - 1]
    if not step.moves(step["input"]) or step.moves(step["weight"]):
        raise Irregular("a linear layer whose weight depends on the image")
    yield (
        step["input"],
        contraction(
            term,
            letters + "y",
            letters + "x",
            "yx",
            Constant.of(step["weight"]),
            step.extents("input"),
            step.extents("weight"),
        ),
    )
    if step["bias"] is not None:
        yield step["bias"], term.broadcast(step.extents("bias"))


@rule("aten.addmm", kind="frozen", mixes="last", contracts=True, affine=("mat1", "mat2", "input"))
@rule("aten.baddbmm", kind="frozen", mixes="axes", contracts=True)
def addmm(step: Step, term: Term) -> Reads:
    """`beta * bias + alpha * (a @ b)`."""
    first, second = ("mat1", "mat2") if "mat1" in step.given else ("batch1", "batch2")
    batch = "n" if first == "batch1" else ""
    scaled = term.times(scale=float(step.given.get("alpha", 1)))
    yield from _operands(step, first, second, (batch + "ik", batch + "kj", batch + "ij"), scaled)
    beta = float(step.given.get("beta", 1))
    if beta:
        yield step["input"], term.times(scale=beta).broadcast(step.extents("input"))


@rule("aten.addcmul", kind="frozen")
def addcmul(step: Step, term: Term) -> Reads:
    """`input + value * tensor1 * tensor2`, one of the two a weight."""
    letters = "abcdefghijklmnop"[: len(term.axes)]
    one, two = (letters[len(letters) - len(step.extents(name)) :] for name in ("tensor1", "tensor2"))
    if step.moves(step["tensor1"]) and step.moves(step["tensor2"]):
        raise Irregular("a product of two values that both vary")
    scaled = term.times(scale=float(step.given.get("value", 1)))
    yield from _operands(step, "tensor1", "tensor2", (one, two, letters), scaled)
    yield step["input"], term.broadcast(step.extents("input"))


@rule("aten.matmul", kind="frozen", product=("input", "other"), mixes="axes", contracts=True)
def matmul(step: Step, term: Term) -> Reads:
    """A matrix product, with any batch axes."""
    left, right = len(step.extents("input")), len(step.extents("other"))
    batch = "abcdefgh"[: max(left, right, 2) - 2]
    one = batch[len(batch) - max(left - 2, 0) :] + ("ik" if left > 1 else "k")
    two = batch[len(batch) - max(right - 2, 0) :] + ("kj" if right > 1 else "k")
    out = batch + ("i" if left > 1 else "") + ("j" if right > 1 else "")
    yield from _operands(step, "input", "other", (one, two, out), term)


@rule("aten.mm", kind="frozen", product=("input", "mat2"), mixes="last", contracts=True)
@rule("aten.bmm", kind="frozen", product=("input", "mat2"), mixes="axes", contracts=True)
def mm(step: Step, term: Term) -> Reads:
    """A matrix product, batched or not."""
    batch = "n" if len(term.axes) == 3 else ""
    yield from _operands(step, "input", "mat2", (batch + "ik", batch + "kj", batch + "ij"), term)


@rule("aten.einsum", kind="frozen", product=("tensors", "tensors"), mixes="axes", contracts=True)
def einsum(step: Step, term: Term) -> Reads:
    """Any contraction of two operands."""
    equation = step["equation"].replace(" ", "")
    if len(step["tensors"]) != 2 or "." in equation or "->" not in equation:
        raise Irregular(f"the contraction {equation!r} of {len(step['tensors'])} operands")
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    pair = Step(step.node, step.graph, step.live, dict(zip("lr", step["tensors"], strict=True)))
    yield from _operands(pair, "l", "r", (left, right, out), term)
