"""Outlets: the affine operations by which components are written into the residual stream.

To change what a component writes by changing weights, one has to know which weights it goes through, and through
which of them nothing else goes. Both are read off the graph:

* A *head* goes through some input channels of the first linear layer behind its attention. Every entry of the
  attention's output is given the number of its head, the numbers are sent through the model's own operations (views,
  transposes, windows, concatenations), and where they come out as channels that belong to one head each, that layer is
  the outlet. Nothing is assumed about layouts.
* An *MLP or convolution*, and an attention of which all heads are meant, goes through the last affine operation (linear
  layer, convolution, or norm with weight and bias) that sees nothing else of the image and that nothing of it bypasses.

What has no such operation is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor, fx

from unweave.adjoint.operand import BATCH, Index, size_of
from unweave.adjoint.term import Term
from unweave.components import Component
from unweave.decomposition.branches import Branch, Site, Walk
from unweave.decomposition.pieces import Piece, pieces_of
from unweave.graph.graph import Extent, arguments, extents_of, operation
from unweave.operations.table import row
from unweave.structure.labels import sent

_IMAGES = 2
"""Images that head numbers are sent through for; any number would do, but one would hide which axes are theirs."""


@dataclass(frozen=True)
class Weight:
    """A tensor of an operation, as entries of a tensor of the model's state.

    Attributes:
        name: In the state dict.
        entries: For each entry of what the operation is given, its place in the model's tensor, flattened.
    """

    name: str
    entries: Tensor


@dataclass(frozen=True, eq=False)
class Outlet:
    """Where components are written into the residual stream.

    Attributes:
        node: The affine operation.
        module: The path of its module.
        components: What is written there.
        inputs: The input channels that are the components'; None where the whole output is.
        input: What the operation reads.
        channel: The axis of its channels, in its output.
        groups: Of a grouped convolution.
        weight, bias: Its parameters; the weight has the output's channels first.
        branch: The residual branch it lies in.
    """

    node: fx.Node
    module: str
    components: tuple[Component, ...]
    inputs: Bool[Tensor, " channel"] | None
    input: fx.Node
    channel: int
    groups: int
    weight: Weight
    bias: Weight
    branch: Branch

    @property
    def width(self) -> int:
        """How many channels are averaged: the input's, or the output's where all of it is the components'."""
        return len(self.inputs) if self.inputs is not None else self.bias.entries.numel()


@dataclass(frozen=True)
class Refused:
    """A component that no weight alone can change.

    Attributes:
        component: Which.
        module: Where it was looked for.
        reason: Why.
    """

    component: Component
    module: str
    reason: str


class _Inexpressible(Exception):
    """Why an operation is not an outlet."""


def outlets(
    walk: Walk, components: Iterable[Component], names_of: Callable[[Tensor], Sequence[str]]
) -> tuple[tuple[Outlet, ...], tuple[Refused, ...]]:
    """Where components are written, one outlet for each operation.

    Args:
        walk: Of the model.
        components: Of the levels `layer` and `head`.
        names_of: The names that a tensor of the graph has in the model's state.

    Returns:
        The outlets in execution order, and the components that have none.
    """
    return _Finder(walk, names_of).run(tuple(dict.fromkeys(components)))


def known(walk: Walk) -> tuple[Component, ...]:
    """Every component that can be asked for: those of level `head`, and whole attention branches."""
    heads, layers = pieces_of(walk, "head")[0], pieces_of(walk, "layer")[0]
    return tuple(dict.fromkeys(component for piece in (*heads, *layers) for component in piece.components))


class _Finder:
    def __init__(self, walk: Walk, names_of: Callable[[Tensor], Sequence[str]]) -> None:
        self.walk, self.graph, self.names_of = walk, walk.graph, names_of
        self.pieces = {
            component: piece
            for level in ("layer", "head")  # a name that both levels have is the head level's
            for piece in pieces_of(walk, level)[0]
            for component in piece.components
        }

    def run(self, components: tuple[Component, ...]) -> tuple[tuple[Outlet, ...], tuple[Refused, ...]]:
        found: dict[fx.Node, Outlet] = {}
        refused: list[Refused] = []
        together: dict[tuple[fx.Node | None, int], list[Component]] = {}
        for component in components:
            piece = self.pieces[component]
            attention = self._attention(component, piece)
            together.setdefault((attention, 0 if attention else id(piece)), []).append(component)
        for (attention, _), own in together.items():
            try:
                outlet = self._outlet(attention, own)
            except _Inexpressible as reason:
                module = self.graph.module(attention) if attention else own[0].path
                refused += [Refused(component, module, str(reason)) for component in own]
                continue
            before = found.get(outlet.node)
            found[outlet.node] = _united(before, outlet) if before else outlet
        order = {component: place for place, component in enumerate(components)}
        return (
            tuple(sorted(found.values(), key=lambda outlet: self.graph.order[outlet.node])),
            tuple(sorted(refused, key=lambda one: order[one.component])),
        )

    # -- which operation -------------------------------------------------------------------------------------------

    def _outlet(self, attention: fx.Node | None, components: Sequence[Component]) -> Outlet:
        """The outlet of an attention's heads, or of one other component."""
        first = components[0]
        piece = self.pieces[first]
        branches = first.kind in ("head", "attn", "mlp", "conv", "linear")
        if not branches or (piece.branch.residual is None and attention is None):
            raise _Inexpressible(_NO_BRANCH.get(first.kind, "it is not written by a branch of its own"))
        if attention is None and first.kind == "head":
            raise _Inexpressible("its attention carries another stream as well, and the weights behind it serve both")
        site = next(
            (site for site in piece.branch.sites if site.role == "attention" and site.source is attention), None
        )
        heads = {component.head for component in components}
        if attention is None or site is None or None in heads or len(heads) == _count(site):
            try:
                return self._whole(piece, components)
            except _Inexpressible:
                if site is None:
                    raise
        assert attention is not None
        numbers = set(range(_count(site))) if None in heads else {head for head in heads if head is not None}
        return self._slice(attention, site, numbers, piece.branch, components)

    def _attention(self, component: Component, piece: Piece) -> fx.Node | None:
        """The attention that a component is heads of."""
        if component.kind not in ("head", "attn"):
            return None
        found = {site.attention for site in self._sites(piece) if site.role == "attention"}
        return found.pop() if len(found) == 1 else None

    def _sites(self, piece: Piece) -> list[Site]:
        """Where a piece is read: at its own sites, or at all of its branch (level `layer`)."""
        own = [site for site in piece.branch.sites if site.role not in ("tokens", "bias")]
        read = [reading.operands[0] for reading in piece.readings]
        at = [site for site in own if any(term.operand(site.source) in read for term in site.terms)]
        return at or own

    def _whole(self, piece: Piece, components: Sequence[Component]) -> Outlet:
        """The last affine operation whose output is made of a piece and of nothing else."""
        branch = piece.branch
        if branch.residual is None:
            raise _Inexpressible("it lies on the residual stream, not in a branch")
        read = branch.residual.read
        region = self._region(branch)
        sources = {site.source for site in self._sites(piece) if isinstance(site.source, fx.Node)}
        starts = [user for own in sources for user in _users(own) if own is not read or user in region]
        reasons: list[str] = []
        for node in sorted(region, key=self.graph.order.__getitem__, reverse=True):
            if not row(node).affine or not any(self.graph.depends(node, own) for own in sources):
                continue
            if node in sources or self.graph.output in _reached(starts, _users, {node}):
                continue
            if self.graph.input in _reached([node], _inputs, sources):
                reasons.append(f"{self.graph.module(node)} reads other parts of the image's stream as well")
                continue
            try:
                self._ungated(node, branch)
                return self._made(node, None, branch, components)
            except _Inexpressible as reason:
                reasons.append(str(reason))
        raise _Inexpressible(
            reasons[0] if reasons else "no affine operation lies between its last nonlinearity and the residual stream"
        )

    def _slice(
        self, attention: fx.Node, site: Site, heads: set[int], branch: Branch, components: Sequence[Component]
    ) -> Outlet:
        """The input channels of the layer behind an attention that belong to some of its heads."""
        graph = self.graph
        numbers = [_numbers(term, own) for term, own in zip(site.terms, site.heads, strict=True)]
        if any(not torch.equal(own, numbers[0]) for own in numbers):
            raise _Inexpressible("its heads are read in more than one layout")
        moved, readers = sent(graph, attention, numbers[0] + 1, _IMAGES, scaled=True)
        if len(readers) != 1:
            where = " and ".join(f"{operation(node)} in {graph.module(node)}" for node in readers)
            raise _Inexpressible(f"its output is read in {len(readers)} places ({where})")
        (node,) = readers
        if not (row(node).affine and row(node).contracts):
            raise _Inexpressible(
                f"its output goes through {operation(node)} in {graph.module(node) or 'the model'} before any linear "
                "layer, where heads are no longer apart"
            )
        source = arguments(node)[_affine(node)[0]]
        if source not in moved:
            raise _Inexpressible(f"{graph.module(node)} reads it as a weight")
        self._ungated(node, branch)
        channel = 1 if row(node).mixes == "window" else moved[source].dim() - 1
        by_channel = moved[source].movedim(channel, 0).flatten(1)
        if not bool((by_channel == by_channel[:, :1]).all()):
            raise _Inexpressible(f"heads are mixed among the channels of {graph.module(node)}")
        own = torch.isin(by_channel[:, 0] - 1, torch.tensor(sorted(heads)))
        if row(node).mixes == "window" and not _pointwise(node):
            raise _Inexpressible(f"{graph.module(node)} is a convolution over several positions")
        return self._made(node, own, branch, components)

    def _ungated(self, node: fx.Node, branch: Branch) -> None:
        """Refuses what is multiplied, behind an operation, by something else that depends on the image."""
        region, paths = self._region(branch), self.walk.paths
        for own in _reached([node], lambda one: [user for user in _users(one) if user in region]) - {node}:
            if len(paths.factors(own)) < 2:
                continue
            held = [source for source in paths.graph.varying(own) if source is not paths.live(own)]
            if self.graph.input in _reached(held, _inputs, {node}):
                raise _Inexpressible(f"what it writes is multiplied by a gate in {self.graph.module(own)}")

    def _region(self, branch: Branch) -> set[fx.Node]:
        """The operations of a branch."""
        if branch.residual is None:
            return set(self.graph.nodes)
        return {*self.walk.paths.between(branch.residual.read, branch.residual.branch)}

    # -- its parameters --------------------------------------------------------------------------------------------

    def _made(self, node: fx.Node, inputs: Tensor | None, branch: Branch, components: Sequence[Component]) -> Outlet:
        given, graph = arguments(node), self.graph
        names = _affine(node)
        module = graph.module(node)
        if given.get("transposed") or given.get("beta", 1) != 1 or given.get("alpha", 1) != 1:
            raise _Inexpressible(f"{module} is a transposed convolution or a scaled product")
        if len(given.get("normalized_shape", [1])) != 1:
            raise _Inexpressible(f"{module} normalises over several axes")
        weight, bias = (
            self._weight(given[name], node, kind) for name, kind in zip(names[1:], ("weight", "bias"), strict=True)
        )
        if row(node).inputs_first:
            weight = replace(weight, entries=weight.entries.T)
        channel = len(extents_of(node)) - 1 if row(node).mixes == "last" else 1
        return Outlet(
            node,
            module,
            tuple(components),
            inputs,
            given[names[0]],
            channel,
            int(given.get("groups", 1)),
            weight,
            bias,
            branch,
        )

    def _weight(self, given: fx.Node | None, node: fx.Node, kind: str) -> Weight:
        """Where what an operation is given lies in the model's state."""
        module = self.graph.module(node)
        if given is None:
            raise _Inexpressible(f"{module} has no {kind}")
        origin = given
        while origin not in self.graph.tensors and row(origin).moves and len(origin.all_input_nodes) == 1:
            origin = origin.all_input_nodes[0]
        if origin not in self.graph.tensors:
            raise _Inexpressible(f"the {kind} of {module} is computed from other weights by {operation(origin)}")
        tensor = self.graph.tensors[origin]
        names = self.names_of(tensor)
        if len(names) != 1:
            also = f"is shared by {', '.join(names)}" if names else "is not in the model's state"
            raise _Inexpressible(f"the {kind} of {module} {also}")
        readers: list[fx.Node] = []
        places = torch.zeros(0, dtype=torch.long)
        for own, held in self.graph.tensors.items():
            if held.data_ptr() == tensor.data_ptr():
                moved, others = sent(
                    self.graph, own, torch.arange(1, tensor.numel() + 1).reshape(tensor.shape), _IMAGES
                )
                readers += others
                places = moved.get(given, places)
        if readers != [node]:
            raise _Inexpressible(f"the {kind} of {module} is used in {len(readers)} places")
        if len(places.unique()) != places.numel() or not bool(places.all()):
            raise _Inexpressible(f"the {kind} of {module} does not hold each of its entries once")
        return Weight(names[0], places - 1)


_NO_BRANCH = {
    "bias": "it is the same for every image already",
    "embed": "it is what enters the residual stream, not what a branch writes into it",
    "lumped": "it is a part of the model that could not be told apart",
}


def _affine(node: fx.Node) -> tuple[str, str, str]:
    """What the input, weight and bias of an affine operation are called."""
    names = row(node).affine
    assert names is not None
    return names


def _united(first: Outlet, second: Outlet) -> Outlet:
    """Two outlets at one operation."""
    inputs = None if first.inputs is None or second.inputs is None else first.inputs | second.inputs
    return replace(first, components=(*first.components, *second.components), inputs=inputs)


def _reached(
    starts: Iterable[fx.Node], steps: Callable[[fx.Node], Iterable[fx.Node]], ends: Collection[fx.Node] = ()
) -> set[fx.Node]:
    """All values that are reached from some, not going beyond the ends."""
    found: set[fx.Node] = set()
    pending = list(starts)
    while pending:
        own = pending.pop()
        if own not in found and isinstance(own.meta.get("val"), Tensor):  # a length is no value
            found.add(own)
            pending += () if own in ends else steps(own)
    return found


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values a node is made of."""
    like = arguments(node)[row(node).like] if row(node).like else None
    return [source for source in node.all_input_nodes if source is not like]


def _users(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values are made of a node's."""
    return [user for user in node.users if node in _inputs(user)]


def _pointwise(node: fx.Node) -> bool:
    """Whether a convolution sees each position alone."""
    given = arguments(node)
    ones = [*(extent.size for extent in extents_of(given["weight"])[2:]), *given["stride"]]
    return all(one == 1 for one in ones) and given["padding"] in ("valid", "same", [0], [0, 0])


# -- the heads of an attention -----------------------------------------------------------------------------------------


def _count(site: Site) -> int:
    """How many heads an attention has."""
    return size_of(site.heads[0])


def _numbers(term: Term, heads: Sequence[Index]) -> Tensor:
    """For each entry of an attention's output, the number of its head."""
    numbers = torch.zeros(
        [extent.size * (_IMAGES if extent.batch else 1) for extent in _extents(term)], dtype=torch.long
    )
    for place, axis in enumerate(term.axes):
        shape = [_IMAGES if index is BATCH else index.size for index in axis.indices]
        own = torch.zeros(shape, dtype=torch.long)
        for number, index in enumerate(axis.indices):
            if index in heads:
                step = size_of(tuple(heads[heads.index(index) + 1 :]))
                digits = torch.arange(index.size) * step
                own += digits.reshape([-1 if at == number else 1 for at in range(len(shape))])
        if set(axis.indices) & set(heads):
            if axis.take is not None:
                raise _Inexpressible("only some of its heads are read")
            numbers += own.reshape([-1 if at == place else 1 for at in range(numbers.dim())])
    return numbers


def _extents(term: Term) -> list[Extent]:
    return [axis.extent for axis in term.axes]
