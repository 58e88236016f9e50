"""An exported program tidied, so that every node is one operation on tensors.

Seven tidyings, none of which knows any model: in-place operations become functional ones, sub-graphs of context
managers (autocast, no_grad) are inlined, operations with several outputs become one node per output, tensors that are
made like another (`zeros_like`) no longer depend on its values, an einsum of one tensor is a sum, a product with a
turned matrix of weights is a linear layer, and dead nodes go.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from unweave.errors import CaptureError
from unweave.graph.graph import Condition, Extent, Graph, arguments, extents_of, operation

aten = torch.ops.aten

Rewrite: TypeAlias = "Callable[[fx.Graph, dict[str, Any], int, fx.Node], fx.Node | None]"
WRAPPED = "module"
"""The name of the model in the wrapper that is exported."""


def tidied(program: torch.export.ExportedProgram, prefix: str, conditions: tuple[Condition, ...] = ()) -> Graph:
    """An exported program as a graph.

    Args:
        program: It is rewritten. Of a module in a wrapper, which calls it `WRAPPED`.
        prefix: The module path that all its operations share.
        conditions: What was decided by the number of images.

    Raises:
        CaptureError: The program does not return one tensor `[image, dim]`.
    """
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    graph = program.graph_module.graph
    _inline(program.graph_module)
    given = [node for node in graph.nodes if node.op == "placeholder"]
    tensors: dict[fx.Node, Tensor] = {node: held[named[node.name]] for node in given if node.name in named}
    images = next((node for node in given if node not in tensors and node.name in signature.user_inputs), None)
    for node in graph.nodes:
        _within(node)
        if node.op == "get_attr":
            value = getattr(program.graph_module, str(node.target))
            if isinstance(value, Tensor):
                tensors[node] = value
                node.meta.setdefault("val", value)
    for node in [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]:
        name = operation(node)
        if name in _SINGLE:
            _single(graph, node)
        elif name == "aten.einsum":
            _summed(graph, node)
        elif name == "aten.hstack":
            _exchange(graph, node, aten.cat.default, arguments(node)["tensors"], int(node.meta["val"].dim() > 1))
        elif name == "aten.matmul":
            _layered(graph, node, tensors)
        elif name in _FILLED and images is not None:
            _filled(graph, node, images)
    results = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    outputs = [
        result
        for result, spec in zip(results, signature.output_specs, strict=True)
        if spec.kind == torch.export.graph_signature.OutputKind.USER_OUTPUT and isinstance(result, fx.Node)
    ]
    if images is None or len(outputs) != 1 or outputs[0].meta["val"].dim() != 2:
        shapes = [tuple(output.meta["val"].shape) for output in outputs]
        raise CaptureError(
            f"The representation should be one tensor [image, dim]; the module returns {shapes or 'nothing'}.",
            cure="name the output that is the representation (`representation=...`)",
        )
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and node is not outputs[0]:
            graph.erase_node(node)
    names = {node: named[node.name].removeprefix(f"{WRAPPED}.") for node in tensors if node.name in named}
    return Graph(graph, images, outputs[0], tensors, names, prefix, conditions)


def _exchange(graph: fx.Graph, node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Puts another operation in the place of one."""
    with graph.inserting_before(node):
        replacement = graph.call_function(target, args, kwargs)
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    graph.erase_node(node)
    return replacement


def _within(node: fx.Node) -> None:
    """Names the modules around an operation as the model does, without the wrapper."""
    stack = node.meta.get("nn_module_stack") or {}
    node.meta["nn_module_stack"] = {
        key: (path.removeprefix(WRAPPED).removeprefix("."), kind) for key, (path, kind) in stack.items() if path
    }


def without_mutation(graph: fx.Graph) -> bool:
    """Writes in-place operations as their functional twins; says whether all of them could be."""
    return all(_functional(graph, node) for node in list(graph.nodes) if _mutates(node))


def maps_images(graph: fx.Graph) -> bool:
    """Whether a program was written for one image and is mapped over all of them (`torch.vmap`)."""
    return any(getattr(node.target, "__name__", "") == "_add_batch_dim" for node in graph.nodes)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _functional(graph: fx.Graph, node: fx.Node) -> bool:
    """Writes an in-place operation as its functional twin, if nothing else reads the memory that it overwrites; says
    whether it did.
    """
    target = node.target
    name = target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    twin = getattr(aten, name.removesuffix("_"), None)
    overload = getattr(twin, target._overloadname, None) if name.endswith("_") else None  # type: ignore[union-attr]
    written = node.args[0] if node.args else None
    if overload is None or not isinstance(written, fx.Node):
        return False
    place = {own: number for number, own in enumerate(graph.nodes)}
    base = written
    while _views(base):
        base = base.args[0]  # type: ignore[assignment]
    if base.op != "call_function":
        return False
    aliases, pending = set(), [base]
    while pending:
        own = pending.pop()
        aliases.add(own)
        pending += [user for user in own.users if _views(user) and user not in aliases and user.args[0] is own]
    for alias in aliases - {written}:
        if any(place[user] > place[node] for user in alias.users):
            return False
    later = [user for user in written.users if place[user] > place[node]]
    replacement = _exchange(graph, node, overload, *node.args, **node.kwargs)
    for user in later:
        user.replace_input_with(written, replacement)
    return True


def _views(node: fx.Node) -> bool:
    """Whether an operation returns (or may return) its first argument's own memory."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    schema = node.target._schema
    maybe = "dropout" in schema.name  # in evaluation it returns its input, though its schema does not say so
    return not schema.is_mutable and (maybe or any(result.alias_info is not None for result in schema.returns))


def _inline(module: fx.GraphModule) -> None:
    """Replaces the sub-graphs of context managers by their operations."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        inner = next(
            (argument for argument in node.args if isinstance(argument, fx.Node) and argument.op == "get_attr"), None
        )
        if inner is None or not isinstance(getattr(module, str(inner.target), None), fx.GraphModule):
            continue
        body = getattr(module, str(inner.target))
        _inline(body)
        given = node.args[node.args.index(inner) + 1 :]
        with graph.inserting_before(node):
            places = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), given, strict=True))
            returned = graph.graph_copy(body.graph, places)
        returned = returned if isinstance(returned, (tuple, list)) else (returned,)
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(returned[user.args[1]])
                graph.erase_node(user)
        if node.users:
            node.replace_all_uses_with(returned[0])
        graph.erase_node(node)


def _single(graph: fx.Graph, node: fx.Node) -> None:
    """Rewrites an operation with several outputs as one operation for each output that is used."""
    for item in [user for user in node.users if user.target is operator.getitem]:
        with graph.inserting_before(item):
            one = _SINGLE[operation(node)](graph, arguments(node), int(item.args[1]), item)  # type: ignore[arg-type]
        if one is None:
            return
        one.meta = {**node.meta, "val": item.meta["val"]}
        item.replace_all_uses_with(one)
        graph.erase_node(item)
    if not node.users:
        graph.erase_node(node)


def _layered(graph: fx.Graph, node: fx.Node, tensors: dict[fx.Node, Tensor]) -> None:
    """Rewrites `x @ weight.t()` as a linear layer, which it was before its images were mapped (`maps_images`)."""
    value, turned = node.args
    if isinstance(turned, fx.Node) and operation(turned) == "aten.t":
        weight: Any = turned.args[0]
        if weight in tensors and tensors[weight].dim() == 2:
            _exchange(graph, node, aten.linear.default, value, weight)


def _summed(graph: fx.Graph, node: fx.Node) -> None:
    """Rewrites an einsum of one tensor as a sum and a permutation of its axes."""
    given = arguments(node)
    axes, arrow, out = given["equation"].replace(" ", "").partition("->")
    if len(given["tensors"]) != 1 or not arrow or "." in axes or len(set(axes)) < len(axes):
        return
    value, (tensor,) = node.meta["val"], given["tensors"]
    kept = [letter for letter in axes if letter in out]
    if len(kept) < len(axes):
        dims = [place for place, letter in enumerate(axes) if letter not in out]
        with graph.inserting_before(node):
            tensor = graph.call_function(aten.sum.dim_IntList, (tensor, dims))
        tensor.meta = {**node.meta, "val": value.permute([out.index(letter) for letter in kept])}
    _exchange(graph, node, aten.permute.default, tensor, [kept.index(letter) for letter in out])


_FILLED = {f"aten.{form}" for name in ("zeros", "ones", "full", "empty") for form in (f"{name}_like", f"new_{name}")}


def _filled(graph: fx.Graph, node: fx.Node, images: fx.Node) -> None:
    """Rewrites a tensor of one number that is made like another as one of its shape."""
    value, number = node.meta["val"], arguments(node).get("fill_value", float("ones" in operation(node)))
    with graph.inserting_before(node):
        sizes = [_size(graph, images, extent, value.shape[dim]) for dim, extent in enumerate(extents_of(node))]
    _exchange(graph, node, aten.full.default, sizes, number, dtype=value.dtype, device=value.device)


def _size(graph: fx.Graph, images: fx.Node, extent: Extent, length: Any) -> int | fx.Node:
    """The length of an axis: a number, or a node where it follows the images."""
    if not extent.batch:
        return extent.size
    size = graph.call_function(aten.sym_size.int, (images, 0))
    size.meta["val"] = images.meta["val"].shape[0]
    if extent.size > 1:
        size = graph.call_function(operator.mul, (size, extent.size))
        size.meta["val"] = length
    return size


def _unbind(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> fx.Node | None:
    return graph.call_function(aten.select.int, (given["input"], given["dim"], place))


def _split(graph: fx.Graph, given: dict[str, Any], place: int, item: fx.Node) -> fx.Node | None:
    dim = given["dim"]
    sizes = [part.shape[dim] for part in item.args[0].meta["val"]]  # type: ignore[union-attr]
    if not all(isinstance(size, int) for size in sizes):
        return None
    start = sum(sizes[:place])
    return graph.call_function(aten.slice.Tensor, (given["input"], dim, start, start + sizes[place]))


def _batch_norm(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> fx.Node | None:
    if place or given.get("training", False):
        return None
    names = ("input", "weight", "bias", "running_mean", "running_var")
    arguments = (*map(given.__getitem__, names), False, given["momentum"], given["eps"], False)
    return graph.call_function(aten.batch_norm.default, arguments)


def _layer_norm(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> fx.Node | None:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    arguments = (*map(given.__getitem__, names), False)
    return None if place else graph.call_function(aten.layer_norm.default, arguments)


def _max(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> fx.Node | None:
    if place or "dim" not in given:
        return None
    return graph.call_function(aten.amax.default, (given["input"], [given["dim"]], given["keepdim"]))


def _min(graph: fx.Graph, given: dict[str, Any], place: int, item: fx.Node) -> fx.Node | None:
    if place or "dim" not in given:
        return None
    negative = graph.call_function(aten.neg.default, (given["input"],))
    negative.meta = dict(given["input"].meta)
    largest = graph.call_function(aten.amax.default, (negative, [given["dim"]], given["keepdim"]))
    largest.meta = dict(item.meta)
    return graph.call_function(aten.neg.default, (largest,))


def _moments(graph: fx.Graph, given: dict[str, Any], place: int, item: fx.Node) -> fx.Node | None:
    if place:
        return graph.call_function(aten.mean.dim, (given["input"], given.get("dim"), given.get("keepdim", False)))
    node: Any = item.args[0]
    spread = aten.std if operation(node) == "aten.std_mean" else aten.var
    return graph.call_function(getattr(spread, node.target._overloadname), node.args, node.kwargs)


def _adaptive_max(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> fx.Node | None:
    sizes = given["output_size"]
    if place or any(size != 1 for size in sizes):
        return None
    return graph.call_function(aten.amax.default, (given["input"], list(range(-len(sizes), 0)), True))


def _max_pool(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> fx.Node | None:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return None if place else graph.call_function(aten.max_pool2d.default, tuple(map(given.__getitem__, names)))


_SPLITS = "split split_with_sizes chunk tensor_split unsafe_split unsafe_split_with_sizes unsafe_chunk"
_BATCH_NORMS = "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"

_SINGLE: dict[str, Rewrite] = {
    "aten.unbind": _unbind,
    **{f"aten.{name}": _split for name in _SPLITS.split()},
    **{f"aten.{name}": _batch_norm for name in _BATCH_NORMS.split()},
    "aten.native_layer_norm": _layer_norm,
    "aten.max": _max,
    "aten.min": _min,
    "aten.var_mean": _moments,
    "aten.std_mean": _moments,
    **{f"aten.adaptive_max_pool{rank}d": _adaptive_max for rank in (1, 2, 3)},
    "aten.max_pool2d_with_indices": _max_pool,
}
"""Operations with several outputs, and what gives one of these; None where nothing does."""
