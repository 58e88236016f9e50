"""The table of operations: how one operation hands a pending map on to its inputs, and every fact about it.

A rule says what an operation does *backwards*: given the pending map (`Term`) of its output, it yields, for every
input that the output depends on linearly, the pending map of that input. It knows its operation and nothing of any
model. The set of kinds is closed:

* `linear`: linear in its tensor inputs, weights being constants (views, sums, linear layers, convolutions, pooling by
  mean);
* `frozen`: linear once a statistic of the image is held (norms, attention, gates, winners of a maximum);
* `source`: not linear; the walk stops at its output.

A row also states what others need to know of the operation without running its rule: whether it moves entries, which
entries it mixes, whether it contracts, and so on. All of them ask the row; there is no second list of operations
anywhere. An operation that is not in the table is treated like a source, and reported with the rule to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor, fx

from unweave.adjoint.operand import Constant
from unweave.adjoint.term import Term
from unweave.errors import RuleError
from unweave.graph.graph import Extent, Graph, arguments, extents_of, operation

Kind = Literal["linear", "frozen", "source"]
Entries = Literal["made", "same", "rearranged", "picked"]
Mixing = Literal["", "last", "window", "grid", "axes"]
Reads: TypeAlias = "Iterator[tuple[fx.Node | Constant, Term | None]]"
"""What a rule yields: inputs, and their pending maps; None where nothing of an input is read."""


@dataclass(frozen=True)
class Step:
    """One operation as a rule sees it.

    Attributes:
        node: The operation's node.
        graph: The graph it belongs to.
        live: Of the two image-dependent operands of a product, the one to follow; the other is frozen at its value.
        given: The operation's arguments by name.
    """

    node: fx.Node
    graph: Graph
    live: fx.Node | None = None
    given: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    def extents(self, name: str) -> tuple[Extent, ...]:
        """The shape of a tensor argument."""
        return extents_of(self.given[name])

    @property
    def output(self) -> tuple[Extent, ...]:
        """The shape of the output."""
        return extents_of(self.node)

    def moves(self, node: object) -> bool:
        """Whether an argument depends on the image."""
        return isinstance(node, fx.Node) and self.graph.image_dependent(node)

    def dim(self, name: str = "dim") -> int:
        """An axis argument, counted from the front."""
        return int(self.given[name]) % max(1, len(self.output))


Reader: TypeAlias = Callable[[Step, Term], Reads]


@dataclass(frozen=True)
class Row:
    """All that is known of one operation.

    Attributes:
        operation: `aten.linear`.
        kind: See `Kind`.
        reads: The pending maps of the inputs; None for a source.
        entries: Where the entries of the output come from: `made` new numbers; `same` the input's, in the same places;
            `rearranged` the input's, each once; `picked` the inputs', some left out, repeated, joined or filled in.
        mixes: Of operations that make entries, what one of them is made of: nothing beside what is at its own place
            (elementwise, axes of length one repeated); the `last` axis; a `window` of places; places of another `grid`
            (resampling); other `axes`.
        product: The names of the tensor arguments that it multiplies, if it does.
        divides: Of these, the one that it divides by.
        held: The names of arguments that are held at their values, whatever they are computed from.
        fixed: The names of arguments that must be the same for every image; where one is not, it is a source.
        pools: Whether it is linear, its winners held, only over positions: over channels it is an activation.
        contracts: Whether it sums products over an axis, so that one operand can be a matrix of weights.
        affine: The names of its input, weight and bias, where those are the operation's own parameters.
        inputs_first: Whether that weight has the input's channels first.
        norm: Whether it divides by a statistic of its input, or of what it was trained on.
        statistic: What gives, of a norm's arguments, its output and its statistic (its runtime factor `rstd`) at once;
            None where nothing does.
        softmax: Whether its output is a set of attention weights.
        attends: The names of its queries, keys and values, where it is a whole attention.
        like: The tensor argument that only lends its shape or type.
    """

    operation: str
    kind: Kind
    reads: Reader | None = None
    entries: Entries = "made"
    mixes: Mixing = ""
    product: tuple[str, ...] = ()
    divides: str = ""
    contracts: bool = False
    affine: tuple[str, str, str] | None = None
    inputs_first: bool = False
    norm: bool = False
    statistic: Callable[..., tuple[Tensor, Tensor]] | None = None
    softmax: bool = False
    attends: tuple[str, str, str] | None = None
    like: str = ""
    held: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    pools: bool = False

    @property
    def linear(self) -> bool:
        """Whether a pending map passes through it."""
        return self.kind != "source"

    @property
    def moves(self) -> bool:
        """Whether it only moves entries."""
        return self.entries != "made"

    @property
    def relayout(self) -> bool:
        """Whether its output holds each of the input's entries once."""
        return self.entries in ("same", "rearranged")

    @property
    def elementwise(self) -> bool:
        """Whether each entry is made of what is at its own place."""
        return self.entries == "made" and not self.mixes

    @property
    def adds(self) -> bool:
        """Whether it only adds its inputs up, each with a sign and a number."""
        return self.kind == "linear" and self.elementwise and not self.norm


NOTHING = Row("", "source", mixes="axes")
"""What is known of an operation that is not in the table: nothing."""

TABLE: dict[str, Row] = {}


def rule(*operations: str, kind: Kind, **facts: Any) -> Callable[[Reader], Reader]:
    """Registers a rule for operations (`aten.linear`), with the facts of its row (see `Row`).

    Raises:
        RuleError: One of them has a rule already.
    """

    def register(reads: Reader) -> Reader:
        for name in operations:
            _add(Row(name, kind, reads, **facts))
        return reads

    return register


def source(*operations: str, **facts: Any) -> None:
    """Registers operations at which the walk stops because they are not linear.

    Raises:
        RuleError: One of them has a rule already.
    """
    for name in operations:
        _add(Row(name, "source", **facts))


def _add(row: Row) -> None:
    if row.operation in TABLE:
        raise RuleError(
            f"{row.operation} already has a rule.",
            where=getattr(TABLE[row.operation].reads, "__module__", "unweave.operations"),
            cure="change that rule instead of adding a second one",
        )
    TABLE[row.operation] = row


def find(node: fx.Node) -> Row | None:
    """The row of a node's operation, if there is one. Of an operation with several outputs, one of these has the row if
    the walk stops there in any case.
    """
    known = TABLE.get(operation(node))
    return known if known and (hasattr(node.target, "_schema") or known.kind == "source") else None


def row(node: fx.Node) -> Row:
    """The row of a node's operation; `NOTHING` where it has none."""
    return find(node) or NOTHING


def missing(node: fx.Node) -> str:
    """What to write for an operation that has no rule."""
    name = operation(node)
    tensors = [key for key, value in arguments(node).items() if isinstance(value, fx.Node)]
    first = tensors[0] if tensors else "input"
    return (
        f'@rule("{name}", kind="linear")\n'
        f"def {name.rpartition('.')[2]}(step: Step, term: Term) -> Reads:  # tensor arguments: {', '.join(tensors)}\n"
        f'    yield step["{first}"], ...  # the pending map of the input, from that of the output'
    )


def handed(
    node: fx.Node, graph: Graph, live: fx.Node | None, terms: Iterable[Term]
) -> Iterator[tuple[fx.Node | Constant, Term]]:
    """The pending maps of a node's inputs, from those of its output, by its rule.

    An earlier layout of the same numbers (a term's anchor) stands for them only through operations that keep every
    entry.

    Args:
        node: An operation that has a rule.
        graph: The graph it belongs to.
        live: See `Step`.
        terms: The pending map of its output.

    Raises:
        Irregular: The map cannot follow the operation.
    """
    known, step = row(node), Step(node, graph, live, arguments(node))
    reader = known.reads or (lambda step, term: iter(()))
    for term in terms:
        for source, read in reader(step, term):
            if read is not None:
                yield source, read if known.relayout else read.unanchored()
