"""The rule table: how one operation hands a pending map on to its inputs.

A rule says what an operation does *backwards*: given the pending map (`Term`) of its output, it yields, for every
input that the output depends on linearly, the pending map of that input. It knows its operation and nothing of any
model. The set of kinds is closed:

* `linear`: linear in its tensor inputs, weights being constants (views, sums, linear layers, convolutions, pooling by
  mean);
* `frozen`: linear once a statistic of the image is held (norms, attention, gates, winners of a maximum);
* `source`: not linear; the walk stops at its output.

An operation that is not in the table is treated like a source, and reported with the rule to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import fx

from unweave.decomposition.pending import Constant, Term
from unweave.errors import RuleError
from unweave.graph.capture import Extent, Graph, arguments, extents_of, operation

Kind = Literal["linear", "frozen", "source"]
Reads: TypeAlias = "Iterator[tuple[fx.Node | Constant, Term]]"


@dataclass(frozen=True)
class Step:
    """One operation as a rule sees it.

    Attributes:
        node: The operation's node.
        graph: The graph it belongs to.
        live: Of the two image-dependent operands of a product, the one to follow; the other is frozen at its value.
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
class Rule:
    """One row of the table.

    Attributes:
        operation: `aten.linear`.
        kind: See `Kind`.
        reads: The pending maps of the inputs; None for a source.
        movement: Whether the output holds the input's own numbers in another layout.
        product: The names of the two tensor arguments, if the operation multiplies them.
        normalises: Whether its output is a set of attention weights.
    """

    operation: str
    kind: Kind
    reads: Reader | None = None
    movement: bool = False
    product: tuple[str, str] | None = None
    normalises: bool = False


TABLE: dict[str, Rule] = {}


def rule(
    *operations: str, kind: Kind, movement: bool = False, product: tuple[str, str] | None = None
) -> Callable[[Reader], Reader]:
    """Registers a rule for operations (`aten.linear`).

    Raises:
        RuleError: One of them has a rule already.
    """

    def register(reads: Reader) -> Reader:
        for name in operations:
            _add(Rule(name, kind, reads, movement, product))
        return reads

    return register


def source(*operations: str, normalises: bool = False) -> None:
    """Registers operations at which the walk stops because they are not linear.

    Raises:
        RuleError: One of them has a rule already.
    """
    for name in operations:
        _add(Rule(name, "source", normalises=normalises))


def _add(row: Rule) -> None:
    if row.operation in TABLE:
        raise RuleError(
            f"{row.operation} already has a rule.",
            where=getattr(TABLE[row.operation].reads, "__module__", "unweave.rules"),
            cure="change that rule instead of adding a second one",
        )
    TABLE[row.operation] = row


def find(node: fx.Node) -> Rule | None:
    """The rule of a node's operation, if there is one."""
    return TABLE.get(operation(node))


def missing(node: fx.Node) -> str:
    """What to write for an operation that has no rule."""
    name = operation(node)
    tensors = ", ".join(key for key, value in arguments(node).items() if isinstance(value, fx.Node))
    return (
        f'@rule("{name}", kind="linear")\n'
        f"def {name.rpartition('.')[2]}(step: Step, term: Term) -> Reads:  # tensor arguments: {tensors}\n"
        f'    yield step["input"], ...  # the pending map of the input, from that of the output'
    )
