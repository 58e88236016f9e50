"""What the walk finds: branches off the trunk, and the places where their contributions are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import fx

from unweave.adjoint.operand import Constant, Indices
from unweave.adjoint.term import Term
from unweave.graph.graph import Graph
from unweave.operations.table import Row
from unweave.structure.residual import Paths, Residual

Role = Literal["attention", "tokens", "source", "read", "embed", "lumped", "bias"]


@dataclass(frozen=True)
class Site:
    """A place where contributions are read: `sum over terms` of the pending map, applied to a value.

    Attributes:
        role: `attention` (the attention's output, one piece for each head), `tokens` (the same attention, at its
            values), `source` (the end of an MLP or convolution), `read` (where a branch without any nonlinearity
            reads the trunk), `embed`, `lumped`, `bias`.
        source: The value: a node, or a constant.
        terms: The pending map there.
        via: The operation by which the walk came here.
        attention: The attention layer of the site, if it belongs to one.
        heads: For each term, the indices of that attention's heads.
        keys: What tells these heads from those of another attention.
        merged: Whether its heads could not be told apart.
    """

    role: Role
    source: fx.Node | Constant
    terms: tuple[Term, ...]
    via: fx.Node
    attention: fx.Node | None = None
    heads: tuple[Indices, ...] = ()
    keys: tuple[object, ...] = ()
    merged: bool = False


@dataclass(eq=False)
class Branch:
    """What one residual addition adds; the root (`residual` None) is the trunk itself.

    Attributes:
        residual: The addition.
        parent: The branch that this one lies in.
        entry: The pending map of the branch's output.
        trunk: The pending map of the trunk's operand beside it.
        sites: Where its contributions are read, in the order of the walk.
        projection: The last operation of the branch with a weight matrix.
        passed: Whether the walk went on to another stream through an attention of this branch.
        attention: That attention.
        convolves: Whether a spatial convolution was passed on the way.
    """

    residual: Residual | None
    parent: Branch | None
    entry: tuple[Term, ...] = ()
    trunk: tuple[Term, ...] = ()
    sites: list[Site] = field(default_factory=list)
    projection: fx.Node | None = None
    passed: bool = False
    attention: fx.Node | None = None
    convolves: bool = False

    @property
    def reads(self) -> tuple[fx.Node, ...]:
        """What it is computed from, and what each branch that it lies in is; none for the trunk."""
        outside = self.parent.reads if self.parent else ()
        return (self.residual.read, *outside) if self.residual else outside


FREEZE = "`nonlinear='freeze'` passes it as a gate held at its value"
"""How the reason ends where there is a way on."""


@dataclass(frozen=True)
class Lump:
    """Why what lies below an operation is one component.

    Attributes:
        operation, module, line: Where.
        reason: Why.
        rule: The rule to write, where that is what is missing.
        inside: Whether it lies on the trunk, or inside a branch.
    """

    operation: str
    module: str
    line: str
    reason: str
    rule: str = ""
    inside: Literal["trunk", "branch"] = "trunk"

    @property
    def freezable(self) -> bool:
        """Whether a plan with `nonlinear="freeze"` goes on here."""
        return self.reason.endswith(FREEZE)


@dataclass(frozen=True)
class Walk:
    """What the walk found.

    Attributes:
        graph, paths: The model.
        branches: The root first, then every branch, in the order of the walk.
        lumps: Operations that could not be followed.
        fired: Each operation that was passed, with its rule, in the order of the walk.
    """

    graph: Graph
    paths: Paths
    branches: tuple[Branch, ...]
    lumps: tuple[Lump, ...]
    fired: tuple[tuple[fx.Node, Row], ...]
