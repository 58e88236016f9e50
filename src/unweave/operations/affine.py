"""Sums and products: addition, scaling, linear layers, and every contraction that einsum can write.

All products are one rule. With one operand constant it is a linear layer; with both depending on the image one of
them is frozen at its value (attention probabilities, a gate) and the other is followed; which one is decided from the
graph before any rule runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase as _LETTERS

import torch
from torch import Tensor, fx

from unweave.adjoint.operand import Axis, Constant, Irregular, Operand, Runtime, fresh
from unweave.adjoint.term import Term
from unweave.graph.graph import Extent, extents_of, operation
from unweave.operations.table import Reads, Step, row, rule


def number_of(value: float) -> Constant:
    """A number as a constant."""
    return Constant((), (), lambda: torch.tensor(value, dtype=torch.float64), ("number", value))


_HELD: dict[str, Callable[[Tensor], Tensor]] = {
    "value": lambda value: value,
    "inverse": torch.reciprocal,
    "rest": lambda value: 1 - value,
}


def frozen(node: fx.Node, step: Step, kind: str = "value") -> Constant | Runtime:
    """An operand held at its value, at one over it (`inverse`), or at one less it (`rest`)."""
    make = _HELD[kind]
    if step.moves(node):
        return Runtime(kind, node, (node,), lambda value, _: make(value))
    plain = Constant.of(node)
    return plain if kind == "value" else Constant(plain.shape, (node,), make, (kind, node))


@dataclass(frozen=True)
class Factor:
    """An operand of a product.

    Attributes:
        node: The operand, or what it is held as.
        letters: One for each of its axes; an axis of length one is broadcast.
        extents: Its shape.
    """

    node: fx.Node | Constant | Runtime
    letters: str
    extents: tuple[Extent, ...]


def contraction(term: Term, out: str, live: Factor, held: Sequence[Factor]) -> Term:
    """The pending map of the live operand of `einsum("live,held,...->out")`, the others held.

    Args:
        term: The pending map of the output.
        out: One letter for each axis of the output.
        live, held: The operands.
    """
    axes = dict(zip(out, term.axes, strict=True))
    summed: dict[str, Axis] = {}
    held = [
        replace(factor, extents=tuple(Extent(extent.size) for extent in factor.extents))
        if isinstance(factor.node, Constant)  # the same for every image
        else factor
        for factor in held
    ]
    for factor in (live, *held):
        for letter, extent in zip(factor.letters, factor.extents, strict=True):
            if letter not in axes or (letter in summed and extent.size > 1):
                if extent.batch:
                    raise Irregular("a contraction runs over the images")
                axes[letter] = summed[letter] = summed.get(letter) or Axis(fresh(extent.size))

    def read(factor: Factor) -> tuple[Axis, ...]:
        return tuple(
            Axis() if extent == Extent(1) and axes[letter].extent != Extent(1) else axes[letter]
            for letter, extent in zip(factor.letters, factor.extents, strict=True)
        )

    moved = term.times(*(Operand(factor.node, read(factor)) for factor in held)).read(read(live))
    new = {index for letter, axis in summed.items() if letter in live.letters for index in axis.indices}
    if all(isinstance(factor.node, Constant) for factor in held):
        return moved.through(tuple(new)) if new else moved
    # channels attending to channels: what is contracted with a channel axis is a channel axis
    letters = {letter for factor in held for letter in factor.letters if letter in out}
    mixed = {index for letter in letters for index in axes[letter].indices} & term.channel
    only = {index for letter in letters if letter not in live.letters for index in axes[letter].indices}
    channel = term.channel - only | new if mixed & only else term.channel
    return Term(moved.axes, moved.factors, moved.out, moved.scale, frozenset(channel), moved.kept)


def product(step: Step, term: Term, out: str, operands: Sequence[tuple[fx.Node, str]]) -> Reads:
    """Reads of `einsum("a,b,...->out")` for the operand that is followed; each comes with its letters."""
    varying = [node for node, _ in operands if step.moves(node)]
    live = varying[0] if len(varying) == 1 else step.live if varying else operands[0][0]
    place = next((place for place, (node, _) in enumerate(operands) if node is live), None)
    if place is None or sum(node is live for node in varying) > 1:
        raise Irregular("a product of values that all vary; none is a gate")
    factors = [
        Factor(node if at == place else frozen(node, step), letters, extents_of(node))
        for at, (node, letters) in enumerate(operands)
    ]
    yield operands[place][0], contraction(term, out, factors[place], factors[:place] + factors[place + 1 :])


@rule("aten.add", "aten.sub", "aten.rsub", kind="linear")
def add(step: Step, term: Term) -> Reads:
    """A sum, or a difference in either direction: both operands have the output's map."""
    alpha = float(step.given.get("alpha", 1))
    signs = {"aten.add": (1.0, alpha), "aten.sub": (1.0, -alpha), "aten.rsub": (-alpha, 1.0)}
    for name, sign in zip(("input", "other"), signs[operation(step.node)], strict=True):
        operand = step[name]
        if isinstance(operand, fx.Node):
            moved = term.broadcast(extents_of(operand)) if "val" in operand.meta else term
            yield operand, moved if sign == 1 else moved.times(scale=sign)
        elif operand:
            yield number_of(float(operand)), term.times(scale=sign).broadcast(())


@rule("aten.neg", kind="linear")
def neg(step: Step, term: Term) -> Reads:
    """The opposite."""
    yield step["input"], term.times(scale=-1.0)


@rule("aten.mul", kind="frozen", product=("input", "other"))
def mul(step: Step, term: Term) -> Reads:
    """A scale: by a number, a weight (LayerScale), or a gate held at its value."""
    yield from _scaled(step, term, "input", "other")


@rule("aten.div", kind="frozen", product=("input", "other"), divides="other")
def div(step: Step, term: Term) -> Reads:
    """A scale by one over a number, a weight, or a value held; only the numerator is followed."""
    if step.given.get("rounding_mode"):
        raise Irregular("a rounded division")
    if step.moves(step["other"]) and step.live is not step["input"]:
        raise Irregular("a value is divided by the image's own")
    node, other = step["input"], step["other"]
    if not isinstance(other, fx.Node):
        yield node, term.times(scale=1 / float(other))
    else:
        yield node, _gated(term, node, other, frozen(other, step, "inverse"))


def _scaled(step: Step, term: Term, *names: str) -> Reads:
    """Reads of an elementwise product of tensors, one of which may be a number."""
    first, second = (step[name] for name in names)
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        node, number = (first, second) if isinstance(first, fx.Node) else (second, first)
        yield node, term.times(scale=float(number)).broadcast(extents_of(node))
    else:
        yield from product(
            step, term, _LETTERS[: len(term.axes)], [(node, _right(term, node)) for node in (first, second)]
        )


def _gated(term: Term, value: fx.Node | Constant, other: fx.Node, factor: Constant | Runtime) -> Term:
    """The map of a value (or of a number) that is multiplied by a factor of the shape of another, elementwise."""
    held = Factor(factor, _right(term, other), extents_of(other))
    number = Factor(value, "", ())
    live = number if isinstance(value, Constant) else Factor(value, _right(term, value), extents_of(value))
    return contraction(term, _LETTERS[: len(term.axes)], live, [held])


def _right(term: Term, node: fx.Node) -> str:
    """The letters of a tensor that is broadcast to the output, aligned to the right."""
    return _LETTERS[len(term.axes) - len(extents_of(node)) : len(term.axes)]


@rule("aten.lerp", kind="frozen", held=("weight",))
def lerp(step: Step, term: Term) -> Reads:
    """`input + weight * (end - input)`, the weight held."""
    start, end, weight = step["input"], step["end"], step["weight"]
    if not isinstance(weight, fx.Node):
        yield start, term.times(scale=1 - float(weight)).broadcast(extents_of(start))
        yield end, term.times(scale=float(weight)).broadcast(extents_of(end))
        return
    yield start, _gated(term, start, weight, frozen(weight, step, "rest"))
    yield end, _gated(term, end, weight, frozen(weight, step))


@rule("aten.where", kind="linear", entries="picked", fixed=("condition",))
def where(step: Step, term: Term) -> Reads:
    """Entries of one tensor or of another, as a mask that is the same for every image says."""
    condition = step["condition"]
    for name, kind in (("input", "value"), ("other", "rest")):
        if isinstance(step[name], fx.Node) or step[name]:
            source = step[name] if isinstance(step[name], fx.Node) else number_of(float(step[name]))
            yield source, _gated(term, source, condition, frozen(condition, step, kind))


@rule("aten.masked_fill", kind="linear", entries="picked", fixed=("mask", "value"))
def masked_fill(step: Step, term: Term) -> Reads:
    """Entries replaced by a number where a mask that is the same for every image says so."""
    mask, value = step["mask"], step["value"]
    yield step["input"], _gated(term, step["input"], mask, frozen(mask, step, "rest"))
    if isinstance(value, fx.Node) or value:
        number = Constant.of(value) if isinstance(value, fx.Node) else number_of(float(value))
        yield number, _gated(term, number, mask, Constant.of(mask))


@rule("aten.fill", "aten.zero", kind="linear", entries="picked", like="input")
def fill(step: Step, term: Term) -> Reads:
    """A number written over every entry, as `x[:, 0] = 0` does."""
    value = step.given.get("value", 0)
    if isinstance(value, fx.Node) or value:
        yield value if isinstance(value, fx.Node) else number_of(float(value)), term.broadcast(())


@rule("aten.linear", kind="linear", mixes="last", contracts=True, affine=("input", "weight", "bias"))
def linear(step: Step, term: Term) -> Reads:
    """`y = x W^T + b`."""
    if not step.moves(step["input"]) or step.moves(step["weight"]):
        raise Irregular("a linear layer whose weight depends on the image")
    letters = _LETTERS[: len(term.axes) - 1]
    yield from product(step, term, letters + "y", [(step["input"], letters + "x"), (step["weight"], "yx")])
    if step["bias"] is not None:
        yield step["bias"], term.broadcast(step.extents("bias"))


@rule(
    "aten.addmm",
    kind="frozen",
    product=("mat1", "mat2"),
    mixes="last",
    contracts=True,
    affine=("mat1", "mat2", "input"),
    inputs_first=True,
)
@rule("aten.baddbmm", kind="frozen", product=("batch1", "batch2"), mixes="axes", contracts=True)
def addmm(step: Step, term: Term) -> Reads:
    """`beta * bias + alpha * (a @ b)`."""
    yield from matmul(step, term.times(scale=float(step.given.get("alpha", 1))))
    beta = float(step.given.get("beta", 1))
    if beta:
        yield step["input"], term.times(scale=beta).broadcast(step.extents("input"))


@rule("aten.addcmul", kind="frozen", product=("tensor1", "tensor2"))
def addcmul(step: Step, term: Term) -> Reads:
    """`input + value * tensor1 * tensor2`."""
    yield from _scaled(step, term.times(scale=float(step.given.get("value", 1))), "tensor1", "tensor2")
    yield step["input"], term.broadcast(step.extents("input"))


@rule("aten.matmul", kind="frozen", product=("input", "other"), mixes="axes", contracts=True)
@rule("aten.mm", kind="frozen", product=("input", "mat2"), mixes="last", contracts=True)
@rule("aten.bmm", kind="frozen", product=("input", "mat2"), mixes="axes", contracts=True)
def matmul(step: Step, term: Term) -> Reads:
    """A matrix product, with any batch axes."""
    first, second = (step[name] for name in row(step.node).product)
    left, right = len(extents_of(first)), len(extents_of(second))
    batch = "abcdefgh"[: max(left, right, 2) - 2]
    one = batch[len(batch) - max(left - 2, 0) :] + ("ik" if left > 1 else "k")
    two = batch[len(batch) - max(right - 2, 0) :] + ("kj" if right > 1 else "k")
    out = batch + ("i" if left > 1 else "") + ("j" if right > 1 else "")
    yield from product(step, term, out, [(first, one), (second, two)])


@rule("aten.einsum", kind="frozen", product=("tensors",), mixes="axes", contracts=True)
def einsum(step: Step, term: Term) -> Reads:
    """Any contraction of any number of operands, all but one of them held."""
    operands, out = _equation(step["equation"], [len(extents_of(tensor)) for tensor in step["tensors"]])
    yield from product(step, term, out, list(zip(step["tensors"], operands, strict=True)))


def _equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand of an einsum and of its output, with ellipses and an output left out spelled out."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if not arrow:
        plain = left.replace(",", "").replace("...", "")
        out = "..." * ("..." in left) + "".join(sorted(letter for letter in set(plain) if plain.count(letter) == 1))
    free = [letter for letter in _LETTERS + _LETTERS.upper() if letter not in equation]
    counts = [rank - len(letters.replace("...", "")) for letters, rank in zip(operands, ranks, strict=True)]
    widest = "".join(free[: max(counts)])
    operands = [
        letters.replace("...", widest[len(widest) - count :]) for letters, count in zip(operands, counts, strict=True)
    ]
    return operands, out.replace("...", widest)
