"""A planner: what decides the components of a captured graph, beside the level and the selection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unweave.components import Level, Selection
from unweave.decomposition.branches import Walk
from unweave.decomposition.planning import Plan, planned
from unweave.decomposition.walk import walk
from unweave.errors import RuleError
from unweave.graph.graph import Graph
from unweave.graph.precision import exact


@dataclass(frozen=True)
class Planner:
    """Plans of captured graphs, made in one way.

    Attributes:
        name: What the plan is of.
        passing: Whether attention that pools another stream is passed through.
        freeze: Whether nonlinearities on the trunk are passed with their slope held.
        strict: Whether an operation that cannot be followed is an error.
        notes: What was assumed or left out on the way to the graph.
    """

    name: str = "module"
    passing: bool = True
    freeze: bool = False
    strict: bool = False
    notes: tuple[str, ...] = ()

    def __call__(self, graph: Graph, level: Level = "head", selection: Selection = None) -> Plan:
        """Walks back from the graph's output, and decides what to compute.

        Raises:
            RuleError: Under `strict`, an operation on the path has no rule; or the selection matches nothing.
        """
        with exact(graph.input.meta["val"].device):
            walked = walk(graph, passing=self.passing, freeze=self.freeze)
        if self.strict:
            _refuse_lumps(walked)
        return replace(planned(self.name, walked, level, selection), notes=self.notes)


def _refuse_lumps(found: Walk) -> None:
    """Refuses a model that cannot be followed to the end.

    Raises:
        RuleError: Names the operation, and the rule to write.
    """
    for lump in found.lumps:
        raise RuleError(
            f"{lump.operation} cannot be followed: {lump.reason}.",
            where=f"{lump.module} ({lump.line})",
            cure=f"write its rule:\n{lump.rule}"
            if lump.rule
            else "decompose without `strict`; what lies below is one component",
        )
