"""A graph kept up with the module it was captured from.

Between two batches anything may have happened to the module. Where another tensor of the same kind took the place of
one, the graph takes it. Where anything else is different (a hook, a forward, a submodule, the mode), the module is
captured again: if that gives the same graph, the change does not matter; if not, the graph is of a module that is no
more, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx, nn

from unweave.errors import CaptureError, UnweaveError
from unweave.graph.comparison import twins
from unweave.graph.export import EXPORTING, capture, versions_of
from unweave.graph.finite import check_weights
from unweave.graph.graph import Graph, Origin
from unweave.graph.original import Original
from unweave.graph.watch import Change, told


def graph_of(module: nn.Module, example: Tensor) -> Graph:
    """A module's graph (see `capture`); that of a Model's readout is captured once for each size, type and device.

    Raises:
        CaptureError, NonFiniteError: As for `capture`.
    """
    original = Original.of(module)
    if original is None:
        return capture(module, example)
    key = (tuple(example.shape[1:]), example.dtype, example.device)
    graph = original.graphs.get(key)
    if graph is not None:
        try:
            follow(graph)
        except CaptureError:
            graph = None
        else:
            check_weights(module)
    if graph is None:
        graph = original.graphs[key] = capture(module, example)
    return graph


def follow(graph: Graph) -> int:
    """Takes over the module's present tensors; costs a fraction of a millisecond where nothing has changed.

    Returns:
        The graph's generation, which grows when a tensor has changed.

    Raises:
        CaptureError: The module is no longer what was captured.
    """
    origin = graph.origin
    if origin is not None:
        original = Original.of(origin.module)
        if not origin.watch.unchanged or (original is not None and not original.unchanged):
            with EXPORTING:
                _catch_up(graph, origin, original)
    versions = versions_of(graph)
    if versions != graph.versions:
        _check(graph, graph.tensors)
        graph.forget()
        graph.versions = versions
    return graph.generation


def _catch_up(graph: Graph, origin: Origin, original: Original | None) -> None:
    elsewhere = original.caught_up() if original is not None else []
    changes = origin.watch.changes()
    nodes = {name: node for node, name in graph.names.items()}
    tensors = {nodes[change.full]: change.new for change in changes if change.tensor and change.full in nodes}
    held: dict[int, set[str]] = {}
    for node, tensor in graph.tensors.items():
        held.setdefault(id(tensor), set()).add(graph.names.get(node, ""))
    # a tensor that the graph knows under another name too was shared, and may be so no more
    others = [c for c in changes if not c.tensor or held.get(id(c.old), set()) - {c.full}]
    if others or elsewhere:
        tensors = _captured_again(graph, origin, [*others, *elsewhere])
    _check(graph, tensors)
    graph.tensors.update(tensors)
    origin.watch.tensors = tuple(graph.tensors.values())
    origin.watch.accept(changes)


def _captured_again(graph: Graph, origin: Origin, changes: Sequence[Change]) -> dict[fx.Node, Tensor]:
    """The tensors of the module as it is now, if it still is what was captured."""
    what = f"The module has changed since it was planned: {told(changes)}."
    where = changes[0].path or None
    try:
        present = capture(origin.module, origin.images)
    except UnweaveError as error:
        what = f"{what} As it is now, it cannot be planned: {error.what}"
        raise CaptureError(what, where=where, cure=error.cure) from error
    counterparts = twins(graph, present)
    if counterparts is None:
        raise CaptureError(what, where=where, cure="plan again")
    return {node: present.tensors[counterparts[node]] for node in graph.tensors}


def _check(graph: Graph, tensors: dict[fx.Node, Tensor]) -> None:
    """Refuses tensors that are not of the kind that was captured."""
    for node, tensor in tensors.items():
        was = node.meta["val"]
        name = graph.names.get(node, node.name)
        if tensor.device != was.device:
            what = f"The model was moved to {tensor.device} since it was planned on {was.device}."
        elif tensor.dtype != was.dtype:
            what = f"The model was cast to {tensor.dtype} since it was planned in {was.dtype}."
        elif tensor.shape != was.shape:
            what = f"{name} was planned as {list(was.shape)}, and is {list(tensor.shape)} now."
        else:
            continue
        raise CaptureError(what, where=name, cure="plan again")
