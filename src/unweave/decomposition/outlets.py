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

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, fx

from unweave.components import Component
from unweave.decomposition.merge import merged
from unweave.decomposition.pending import BATCH, Axis, Index, Operand, Runtime, Term, fresh, size_of
from unweave.decomposition.pieces import Piece, Reading, pieces_of
from unweave.decomposition.walk import Branch, Site, Walk
from unweave.graph.capture import Extent, Graph, arguments, extents_of, operation
from unweave.rules import shape
from unweave.rules.registry import TABLE, Step, find

Average = Literal["readout", "tokens"]

_AFFINE = {
    "aten.linear": ("input", "weight", "bias"),
    "aten.addmm": ("mat1", "mat2", "input"),
    **dict.fromkeys(
        (f"aten.{name}" for name in ("conv1d", "conv2d", "convolution", "layer_norm", "group_norm", "batch_norm")),
        ("input", "weight", "bias"),
    ),
}
"""Affine operations, and what their input, weight and bias are called."""

_MIXING = frozenset(("aten.linear", "aten.addmm", "aten.conv1d", "aten.conv2d", "aten.convolution"))
"""Those with a matrix, whose input channels can be taken apart."""

_LIKE = frozenset(f"aten.{name}" for name in ("view_as", "reshape_as", "expand_as", "type_as"))
"""Operations whose second tensor only says what the first is to be like."""

_CASTS = frozenset(("aten.to", "aten._to_copy", "aten.type_as"))
_IMAGES = 2
"""Images that numbers are sent through for; any number would do, but one would hide which axes are theirs."""


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
            if operation(node) not in _AFFINE or not any(self.graph.depends(node, own) for own in sources):
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
        moved, readers = _sent(graph, attention, numbers[0] + 1, scaled=True)
        if len(readers) != 1:
            where = " and ".join(f"{operation(node)} in {graph.module(node)}" for node in readers)
            raise _Inexpressible(f"its output is read in {len(readers)} places ({where})")
        (node,) = readers
        if operation(node) not in _MIXING:
            raise _Inexpressible(
                f"its output goes through {operation(node)} in {graph.module(node) or 'the model'} before any linear "
                "layer, where heads are no longer apart"
            )
        source = arguments(node)[_AFFINE[operation(node)][0]]
        if source not in moved:
            raise _Inexpressible(f"{graph.module(node)} reads it as a weight")
        self._ungated(node, branch)
        channel = 1 if "conv" in operation(node) else moved[source].dim() - 1
        by_channel = moved[source].movedim(channel, 0).flatten(1)
        if not bool((by_channel == by_channel[:, :1]).all()):
            raise _Inexpressible(f"heads are mixed among the channels of {graph.module(node)}")
        own = torch.isin(by_channel[:, 0] - 1, torch.tensor(sorted(heads)))
        if "conv" in operation(node) and not _pointwise(node):
            raise _Inexpressible(f"{graph.module(node)} is a convolution over several positions")
        return self._made(node, own, branch, components)

    def _ungated(self, node: fx.Node, branch: Branch) -> None:
        """Refuses what is multiplied, behind an operation, by something else that depends on the image."""
        region, paths = self._region(branch), self.walk.paths
        for own in _reached([node], lambda one: [user for user in _users(one) if user in region]) - {node}:
            if not paths.traits(own).product or paths.varying(own) < 2:
                continue
            held = [source for source in paths.inputs(own) if source is not paths.live(own)]
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
        names = _AFFINE[operation(node)]
        module = graph.module(node)
        if given.get("transposed") or given.get("beta", 1) != 1 or given.get("alpha", 1) != 1:
            raise _Inexpressible(f"{module} is a transposed convolution or a scaled product")
        if len(given.get("normalized_shape", [1])) != 1:
            raise _Inexpressible(f"{module} normalises over several axes")
        weight, bias = (
            self._weight(given[name], node, kind) for name, kind in zip(names[1:], ("weight", "bias"), strict=True)
        )
        if operation(node) == "aten.addmm":
            weight = replace(weight, entries=weight.entries.T)
        last = operation(node) in ("aten.linear", "aten.addmm", "aten.layer_norm")
        channel = len(extents_of(node)) - 1 if last else 1
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
        while origin not in self.graph.tensors and _moves(origin) and len(origin.all_input_nodes) == 1:
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
                moved, others = _sent(self.graph, own, torch.arange(1, tensor.numel() + 1).reshape(tensor.shape))
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
    return node.all_input_nodes[:1] if node.op == "call_function" and operation(node) in _LIKE else node.all_input_nodes


def _users(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values are made of a node's."""
    return [user for user in node.users if node in _inputs(user)]


def _pointwise(node: fx.Node) -> bool:
    """Whether a convolution sees each position alone."""
    given = arguments(node)
    ones = [*(extent.size for extent in extents_of(given["weight"])[2:]), *given["stride"]]
    return all(one == 1 for one in ones) and given["padding"] in ("valid", "same", [0], [0, 0])


# -- numbers sent through the graph ------------------------------------------------------------------------------------


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


def _sent(
    graph: Graph, start: fx.Node, numbers: Tensor, *, scaled: bool = False
) -> tuple[dict[fx.Node, Tensor], list[fx.Node]]:
    """Sends numbers from a node through all that merely moves its entries.

    Args:
        graph: The captured model.
        start: Where they begin.
        numbers: For each of its entries, one above zero, for `_IMAGES` images; zero comes to mean any other entry.
        scaled: Whether to go on where entries are multiplied by weights.

    Returns:
        The numbers wherever they come, and the operations that read them and do not merely move.
    """
    moved, readers = {start: numbers}, []
    for node in graph.nodes:
        sources = [source for source in _inputs(node) if source in moved]
        if not sources or not isinstance(node.meta.get("val"), Tensor):
            continue
        if _moves(node):
            try:
                moved[node] = _applied(graph, node, moved)
            except (RuntimeError, TypeError, IndexError):  # an operation that does not take whole numbers
                readers.append(node)
        elif (
            scaled
            and operation(node) in ("aten.mul", "aten.div")
            and not graph.image_dependent(_other(node, sources[0]))
        ):
            moved[node] = moved[sources[0]].expand(_lengths(node)).contiguous()
        else:
            readers.append(node)
    return moved, readers


def _other(node: fx.Node, first: fx.Node) -> fx.Node:
    """The other operand of a product; the same, where a number is."""
    return next((source for source in node.all_input_nodes if source is not first), first)


def _moves(node: fx.Node) -> bool:
    """Whether an operation only moves entries: whether its rule is one of those."""
    rule = find(node) if node.op == "call_function" else None
    return rule is not None and rule.reads is not None and rule.reads.__module__ == shape.__name__


def _applied(graph: Graph, node: fx.Node, moved: Mapping[fx.Node, Tensor]) -> Tensor:
    """An operation on numbers."""

    def given(source: fx.Node) -> Any:
        value = source.meta.get("val")
        if source in moved:
            return moved[source]
        if not isinstance(value, Tensor):
            return _length(value)
        if not graph.image_dependent(source) and not value.is_floating_point():
            return graph.value(source).cpu()
        return torch.zeros(_lengths(source), dtype=torch.long)

    mapped: Any = fx.map_arg((node.args, dict(node.kwargs)), given)
    args, kwargs = mapped
    if operation(node) in _CASTS:
        return args[0]
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _lengths(node: fx.Node) -> list[int]:
    return [extent.size * (_IMAGES if extent.batch else 1) for extent in extents_of(node)]


def _length(value: Any) -> Any:
    if not isinstance(value, torch.SymInt):
        return value
    expression = value.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, _IMAGES)))


# -- means -------------------------------------------------------------------------------------------------------------


def readings(walk: Walk, outlet: Outlet, average: Average) -> tuple[tuple[Reading, ...], tuple[Reading, ...]]:
    """How to average what is written at an outlet over its tokens.

    Args:
        walk: Of the model.
        outlet: The outlet.
        average: `readout`: a token counts as much as the representation reads of it, directly, on each image: the
            factors of the pending map that differ from token to token (which are read, how a pooling weighs them, their
            1/std in norms, attention that is passed through), without the matrices that are the same for all. `tokens`:
            all tokens of the residual stream count alike.

    Returns:
        Readings of the weighted sum, with the outlet's channels kept, and of the weights' sum.
    """
    values, shares = [], []
    for term in _terms_at(walk, outlet, average):
        channels = fresh(outlet.width)
        axes = list(term.axes)
        positions = {index for place, axis in enumerate(axes) if place != outlet.channel for index in axis.indices}
        factors = _weighing(term, {*axes[outlet.channel].indices}, positions)
        if average == "tokens":
            factors = tuple(factor for factor in factors if factor.constant)
        axes[outlet.channel] = Axis(channels)
        source = outlet.node if outlet.inputs is None else outlet.input
        values.append(Reading((Operand(source, tuple(axes)), *factors), channels, (), abs(term.scale)))
        unread = positions - {BATCH} - {index for factor in factors for index in factor.indices}
        shares.append(Reading(factors, (), (), abs(term.scale) * size_of(tuple(unread))))
    return tuple(values), tuple(shares)


def _terms_at(walk: Walk, outlet: Outlet, average: Average) -> tuple[Term, ...]:
    """The pending map of an outlet's output: of the representation, or of the residual stream."""
    graph, branch = walk.graph, outlet.branch
    start = branch.residual.branch if branch.residual else graph.output
    if average == "readout" and branch.residual:
        terms = list(branch.entry)
    else:
        axes = tuple(Axis(((BATCH,) if extent.batch else ()) + fresh(extent.size)) for extent in extents_of(start))
        terms = [Term(axes, (), axes[-1].indices)]
    pending: dict[fx.Node, list[Term]] = {start: terms}
    while pending:
        node = max(pending, key=graph.order.__getitem__)
        here = merged(pending.pop(node))
        if node is outlet.node:
            return tuple(here)
        step = Step(node, graph, walk.paths.live(node), arguments(node))
        rule = TABLE.get(operation(node))
        for term in here if rule is not None and rule.reads is not None else ():
            assert rule is not None and rule.reads is not None
            for source, read in rule.reads(step, term):
                if isinstance(source, fx.Node) and graph.depends(source, outlet.node):
                    pending.setdefault(source, []).append(read.unanchored())
    return ()


def _weighing(term: Term, channels: set[Index], positions: set[Index]) -> tuple[Operand, ...]:
    """The factors that weigh tokens: those that no chain of matrices ties to the channels or to the representation."""
    matrix = {*term.out, *channels}
    held = positions | {
        index for factor in term.factors if isinstance(factor.source, Runtime) for index in factor.indices
    }
    grown = True
    while grown:
        tied = (
            {index for factor in term.factors if matrix & {*factor.indices} for index in factor.indices}
            - held
            - {BATCH}
        )
        grown = not tied <= matrix
        matrix |= tied
    return tuple(factor for factor in term.factors if not matrix & {*factor.indices})
