"""Names of branches: the model's own module paths, the pass of a module that runs again, the ordinal of the block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import takewhile

from torch import fx

from unweave.components import Kind
from unweave.decomposition.branches import Branch, Site, Walk
from unweave.decomposition.walk import convolves
from unweave.graph.graph import passes_of
from unweave.structure.residual import Residual


class Names:
    """Where the branches of a walk lie in the model.

    Args:
        walk: A finished walk.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk, self.graph = walk, walk.graph
        self.branches = [branch for branch in walk.branches if branch.residual]

    @cached_property
    def paths(self) -> dict[Branch, str]:
        """The module path of every branch: what its source and its last projection share, with the kind where that
        names a whole block, and the pass where the module runs again.
        """
        base = {branch: self._base(branch) for branch in self.branches}
        paths: dict[Branch, str] = {}
        for branch, path in sorted(base.items(), key=lambda item: not attentive(item[0])):
            others = [other for same, other in base.items() if same is not branch]
            parent, _, last = path.rpartition(".")
            if last.isdigit() and parent and not any(inside(other, parent) for other in others):
                path = parent  # a numbered place in a container that holds this branch alone
            kind = "attn" if attentive(branch) else self.kind(branch)
            if not path or path.rpartition(".")[2].isdigit() or any(other.startswith(f"{path}.") for other in others):
                path = f"{path}.{kind}".lstrip(".")
            path += self.again(branch)
            if path in paths.values() and not path.endswith(kind):
                path = f"{path}.{kind}"
            paths[branch] = unique(path, paths.values())
        return paths

    @cached_property
    def layers(self) -> dict[Branch, int]:
        """The ordinal of each branch's block, in execution order: the innermost numbered module around the place where
        it is added, and its pass.
        """
        blocks: dict[tuple[str, int], int] = {}
        layers: dict[Branch, int] = {}
        for branch in sorted(self.branches, key=lambda branch: self.graph.order[added(branch).node]):
            node = added(branch).node
            parts = self.graph.module(node).split(".")
            while parts and not re.search(r"\d$", parts[-1]):
                parts.pop()
            block = ".".join(parts) or self.graph.module(node)
            again = max((number for path, number in passes_of(node).items() if inside(path, block)), default=0)
            layers[branch] = blocks.setdefault((block, again), len(blocks))
        return layers

    def source(self, site: Site) -> str:
        """The path of one of several nonlinear ends of a branch: the innermost module around it that has weights."""
        assert isinstance(site.source, fx.Node)
        path = self.graph.module(site.source)
        while path and path not in self._weighted:
            path = path.rpartition(".")[0]
        return path

    def kind(self, branch: Branch, sites: Sequence[Site] | None = None) -> Kind:
        """What a branch, or the part of it that these sites are, is made of."""
        of = branch.sites if sites is None else sites
        if (branch.convolves and sites is None) or any(self._convolved(branch, site, sites is not None) for site in of):
            return "conv"
        return "mlp" if any(site.role == "source" for site in of) else "linear"

    @cached_property
    def _weighted(self) -> set[str]:
        """The modules that contract something with weights, and all around them."""
        paths: set[str] = set()
        for node in self.graph.nodes:
            if self.walk.paths.row(node).contracts:
                parts = self.graph.module(node).split(".")
                paths.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))
        return paths

    def _convolved(self, branch: Branch, site: Site, behind: bool) -> bool:
        """Whether a source is computed by a spatial convolution inside its branch (or passes one behind it)."""
        if site.role not in ("source", "read") or branch.residual is None or not isinstance(site.source, fx.Node):
            return False
        nodes = self.walk.paths.between(branch.residual.read, site.source) if site.role == "source" else []
        nodes += self.walk.paths.between(site.source, branch.residual.branch) if behind else []
        return any(convolves(node) for node in nodes)

    def _base(self, branch: Branch) -> str:
        residual = added(branch)
        nodes = [branch.attention] if branch.attention else []
        nodes += [site.attention or site.via for site in branch.sites if site.role == "attention"]
        nodes = nodes or [site.via for site in branch.sites if site.role in ("source", "read")][:1]
        nodes = [node for node in nodes if node is not residual.read]
        behind = [branch.projection] if branch.projection else []
        if behind and nodes:  # of several projections the one right behind
            between = self.walk.paths.between(max(nodes, key=self.graph.order.__getitem__), residual.branch)
            behind = [node for node in between if self.walk.paths.row(node).contracts][:1]
        nodes += behind
        modules = [self.graph.module(node) for node in nodes if self.graph.module(node)]
        return _shared(modules) if modules else self.graph.module(residual.branch)

    def again(self, branch: Branch) -> str:
        """What a branch's paths end in where its modules have run before: `@1` the first time that they run again."""
        ends = [site.source for site in branch.sites if site.role in ("attention", "source")]
        node = next((end for end in ends if isinstance(end, fx.Node)), branch.projection or added(branch).branch)
        number = max(passes_of(node).values(), default=0)
        return f"@{number}" if number else ""


def added(branch: Branch) -> Residual:
    """Where a branch that is not the trunk is added."""
    assert branch.residual is not None
    return branch.residual


def attentive(branch: Branch) -> bool:
    """Whether a branch holds attention."""
    return branch.passed or any(site.attention for site in branch.sites)


def inside(path: str, module: str) -> bool:
    """Whether a path is a module's, or lies in it."""
    return path == module or path.startswith(f"{module}.")


def unique(path: str, taken: Iterable[str]) -> str:
    """A path that is not taken yet: numbered from one where it is."""
    names, number, free = set(taken), 0, path
    while free in names:
        number += 1
        free = f"{path}.{number}"
    return free


def _shared(modules: Sequence[str]) -> str:
    levels = zip(*(module.split(".") for module in modules), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))
