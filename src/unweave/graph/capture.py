"""A model as an operation graph: torch.export with a dynamic batch, tidied so that every node is one operation on
tensors.

The graph is the model's own computation in high-level ATen operations (linear, layer_norm,
scaled_dot_product_attention). Four tidyings, none of which knows any model: in-place operations become functional ones,
sub-graphs of context managers (autocast, no_grad) are inlined, operations with several outputs become one node per
output, and dead nodes go.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from unweave.errors import CaptureError, NonFiniteError

aten = torch.ops.aten


@dataclass(frozen=True)
class Extent:
    """The length of one axis: `size`, times the number of images if `batch`."""

    size: int
    batch: bool = False

    def __mul__(self, other: Extent) -> Extent:
        return Extent(self.size * other.size, self.batch or other.batch)

    def __repr__(self) -> str:
        return f"{self.size}*b" if self.batch else str(self.size)


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured model.

    Attributes:
        graph: The operations, in execution order.
        input: The node of the images.
        output: The node of the representation, `[image, dim]`.
        tensors: The value of every parameter, buffer and constant node; they share the model's memory.
        prefix: The module path that every operation of the model shares (a wrapper's), left out of names.
    """

    graph: fx.Graph
    input: fx.Node
    output: fx.Node
    tensors: dict[fx.Node, Tensor]
    prefix: str = ""

    @cached_property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The operations that the representation depends on, in execution order."""
        return tuple(node for node in self.graph.nodes if node.op == "call_function")

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        """The place of every node in execution order."""
        return {node: place for place, node in enumerate(self.graph.nodes)}

    @cached_property
    def _positions(self) -> dict[fx.Node, int]:
        return {node: place for place, node in enumerate(self.nodes)}

    def position(self, node: fx.Node) -> int:
        """The place among `nodes` of a node, or of the first operation if it is none."""
        return self._positions.get(node, 0)

    @cached_property
    def ancestors(self) -> dict[fx.Node, int]:
        """For every node, the set of nodes it is computed from (itself included), as a bit mask over `order`."""
        masks: dict[fx.Node, int] = {}
        for node, place in self.order.items():
            mask = 1 << place
            # a length is no value: what is shaped like the batch is not computed from the images
            if not isinstance(node.meta.get("val"), (int, torch.SymInt)):
                for source in node.all_input_nodes:
                    mask |= masks[source]
            masks[node] = mask
        return masks

    def depends(self, node: fx.Node, on: fx.Node) -> bool:
        """Whether `node` is computed from `on` (or is it)."""
        return bool(self.ancestors[node] >> self.order[on] & 1)

    def image_dependent(self, node: fx.Node) -> bool:
        """Whether the node's value is computed from the images (a shape that follows their number is not)."""
        return self.depends(node, self.input)

    def value(self, node: fx.Node) -> Tensor:
        """The value of an image-independent node. An axis that is as long as the batch comes out with length one.

        Raises:
            CaptureError: The value differs from image to image.
        """
        known = self._values.get(node)
        if known is None:
            known = self._values[node] = self._evaluated(node)
        return known

    @cached_property
    def _values(self) -> dict[fx.Node, Tensor]:
        return {}

    def _evaluated(self, node: fx.Node) -> Tensor:
        if node in self.tensors:
            return self.tensors[node]
        images = self.input.meta["val"]
        environment: dict[fx.Node, Any] = {}
        example = torch.empty((2, *images.shape[1:]), dtype=images.dtype, device="meta")
        environment[self.input] = example
        with torch.no_grad():
            for own in self._needed(node):
                if own in self.tensors:
                    environment[own] = self.tensors[own]
                elif own is not self.input:
                    given = fx.map_arg((own.args, own.kwargs), lambda name: environment[name])
                    environment[own] = own.target(*given[0], **given[1])  # type: ignore[operator]
        value = environment[node]
        for dim, extent in enumerate(extents_of(node)):
            if extent.batch:
                if extent.size != 1 or not torch.equal(value.select(dim, 0), value.select(dim, 1)):
                    raise CaptureError("A constant differs from image to image.", where=line_of(node))
                value = value.narrow(dim, 0, 1)
        return value

    def _needed(self, node: fx.Node) -> list[fx.Node]:
        needed, stack = set(), [node]
        while stack:
            own = stack.pop()
            if own not in needed:
                needed.add(own)
                stack += own.all_input_nodes
        return sorted(needed, key=self.order.__getitem__)

    def module(self, node: fx.Node) -> str:
        """The path of the module that ran this operation, as the model names it."""
        stack = module_stack(node)
        path = stack[-1] if stack else ""
        return path.removeprefix(self.prefix).removeprefix(".") if self.prefix else path


def module_stack(node: fx.Node) -> list[str]:
    """Paths of the modules around an operation, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if not path.startswith("_empty")]


def line_of(node: fx.Node) -> str:
    """The source line of an operation: `file.py:123 in forward: code`, or an empty text."""
    trace = (node.meta.get("stack_trace") or "").strip().splitlines()
    if len(trace) < 2:
        return ""
    place = trace[-2].strip().removeprefix("File ").replace('", line ', ":").replace('"', "").replace(", in ", " in ")
    return f"{place}: {trace[-1].strip()}"


def arguments(node: fx.Node) -> dict[str, Any]:
    """An operation's arguments by the names of its schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return {("input" if name == "self" else name): value for name, value in bound.items()}


def operation(node: fx.Node) -> str:
    """The operation's name without its overload: `aten.linear`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).replace("::", ".")
    name = getattr(target, "__name__", str(target))
    return operation(node.args[0]) if name == "getitem" and isinstance(node.args[0], fx.Node) else name


def extents_of(node: fx.Node) -> tuple[Extent, ...]:
    """The shape of a node, as multiples of the number of images where it depends on it.

    Raises:
        CaptureError: A length is neither fixed nor a multiple of the number of images.
    """
    extents = node.meta.get("extents")
    if extents is None:
        extents = node.meta["extents"] = tuple(_extent(length, node) for length in node.meta["val"].shape)
    return extents


def _extent(length: int | torch.SymInt, node: fx.Node) -> Extent:
    if isinstance(length, int):
        return Extent(length)
    expression = length.node.expr
    if expression.is_Integer:
        return Extent(int(expression))
    symbols = sorted(expression.free_symbols, key=str)
    if len(symbols) == 1:
        two, six, ten = (expression.subs(symbols[0], value) for value in (2, 6, 10))
        if two.is_Integer and 3 * two == six and 5 * two == ten and int(two) % 2 == 0:
            return Extent(int(two) // 2, True)
    raise CaptureError(
        f"The shape of {operation(node)} depends on the images in a way other than their number ({expression}).",
        where=line_of(node),
        cure="make the module's shapes depend on the image size only",
    )


def capture(module: nn.Module, example: Tensor) -> Graph:
    """Captures `module(images) -> representation` as a graph that runs at any batch size.

    Args:
        module: In evaluation mode; it is not modified.
        example: Images, `[image, channel, height, width]`; their number does not matter.

    Raises:
        CaptureError: The module does not export; the message holds the line that stopped it.
        NonFiniteError: A parameter is NaN or infinite.
    """
    parameters = dict(module.named_parameters())
    for name, tensor in [*parameters.items(), *module.named_buffers()]:
        # an infinite buffer may be a bound that is never reached; an infinite weight is an accident
        bad = ~torch.isfinite(tensor) if name in parameters else torch.isnan(tensor)
        if tensor.is_floating_point() and bool(bad.any()):
            raise NonFiniteError(f"The weight {name} is not finite.", where=name, cure="check the checkpoint")
    if example.shape[0] < 2:
        example = torch.cat([example, example])
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
            if not all(_functional(program.graph, node) for node in list(program.graph.nodes) if _mutates(node)):
                program = program.run_decompositions({})  # costs as much again; only where memory is really shared
        except Exception as error:  # torch.export raises whatever the module's own code raises
            raise CaptureError(
                f"torch.export could not capture {type(module).__name__}: {_first_line(error)}",
                where=_user_line(error),
                cure="rewrite that line without data-dependent control flow, or wrap the part that exports",
            ) from error
    return _tidied(program, _wrapper(module))


def _wrapper(module: nn.Module) -> str:
    """The path of the model inside wrappers that hold nothing else."""
    path: list[str] = []
    while len(children := list(module.named_children())) == 1 and not list(module.parameters(recurse=False)):
        name, module = children[0]
        if name.isdigit():
            break
        path.append(name)
    return ".".join(path)


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
    with graph.inserting_before(node):
        replacement = graph.call_function(overload, node.args, node.kwargs)
    replacement.meta = dict(node.meta)
    later = [user for user in written.users if place.get(user, -1) > place[node]]
    for user in later:
        user.replace_input_with(written, replacement)
    node.replace_all_uses_with(replacement)
    graph.erase_node(node)
    return True


def _views(node: fx.Node) -> bool:
    """Whether an operation returns (or may return) its first argument's own memory."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    schema = node.target._schema
    maybe = "dropout" in schema.name  # in evaluation it returns its input, though its schema does not say so
    return not schema.is_mutable and (maybe or any(result.alias_info is not None for result in schema.returns))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _user_line(error: BaseException) -> str | None:
    """The innermost line of the traceback that is not torch's own."""
    frames = []
    current: BaseException | None = error
    while current is not None:
        traceback = current.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            frames.append((code.co_filename, traceback.tb_lineno, code.co_name))
            traceback = traceback.tb_next
        current = current.__cause__
    own = [frame for frame in frames if "/torch/" not in frame[0] and not frame[0].endswith("graph/capture.py")]
    return f"{own[-1][0]}:{own[-1][1]} in {own[-1][2]}" if own else None


def _tidied(program: torch.export.ExportedProgram, prefix: str) -> Graph:
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    graph = program.graph_module.graph
    _inline(program.graph_module)
    tensors: dict[fx.Node, Tensor] = {}
    images: fx.Node | None = None
    for node in list(graph.nodes):
        if node.op == "placeholder":
            if node.name in named:
                tensors[node] = held[named[node.name]]
            elif node.name in signature.user_inputs and images is None:
                images = node
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = getattr(program.graph_module, str(node.target))
            if isinstance(value, Tensor):
                tensors[node] = value
                node.meta.setdefault("val", value)
    for node in list(graph.nodes):
        _single(graph, node)
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
    return Graph(graph, images, outputs[0], tensors, prefix)


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
            if (
                user.target is not getattr
                and user.op == "call_function"
                and getattr(user.target, "__name__", "") == "getitem"
            ):
                user.replace_all_uses_with(returned[user.args[1]])
                graph.erase_node(user)
        if node.users:
            node.replace_all_uses_with(returned[0])
        graph.erase_node(node)


def _single(graph: fx.Graph, node: fx.Node) -> None:
    """Rewrites an operation with several outputs as one operation for each output that is used."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    items = [user for user in list(node.users) if getattr(user.target, "__name__", "") == "getitem"]
    rewrite = _REWRITES.get(operation(node))
    if not items or rewrite is None:
        return
    bound = arguments(node)
    for item in items:
        with graph.inserting_before(item):
            replacement = next(iter(rewrite(graph, bound, int(item.args[1]), item)), None)  # type: ignore[arg-type]
        if replacement is None:
            return
        replacement.meta = {**node.meta, "val": item.meta["val"]}
        item.replace_all_uses_with(replacement)
        graph.erase_node(item)
    if not node.users:
        graph.erase_node(node)


def _unbind(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> Iterator[fx.Node]:
    yield graph.call_function(aten.select.int, (given["input"], given["dim"], place))


def _split(graph: fx.Graph, given: dict[str, Any], place: int, item: fx.Node) -> Iterator[fx.Node]:
    dim = given["dim"]
    parts = item.args[0].meta["val"]  # type: ignore[union-attr]
    sizes = [part.shape[dim] for part in parts]
    if all(isinstance(size, int) for size in sizes):
        start = sum(sizes[:place])
        yield graph.call_function(aten.slice.Tensor, (given["input"], dim, start, start + sizes[place]))


def _batch_norm(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> Iterator[fx.Node]:
    if place == 0 and not given.get("training", False):
        names = ("input", "weight", "bias", "running_mean", "running_var")
        yield graph.call_function(
            aten.batch_norm.default, (*(given[name] for name in names), False, given["momentum"], given["eps"], False)
        )


def _layer_norm(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> Iterator[fx.Node]:
    if place == 0:
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        yield graph.call_function(aten.layer_norm.default, (*(given[name] for name in names), False))


def _max(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> Iterator[fx.Node]:
    if place == 0 and "dim" in given:
        yield graph.call_function(aten.amax.default, (given["input"], [given["dim"]], given["keepdim"]))


def _max_pool(graph: fx.Graph, given: dict[str, Any], place: int, _: fx.Node) -> Iterator[fx.Node]:
    if place == 0:
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        yield graph.call_function(aten.max_pool2d.default, tuple(given[name] for name in names))


_REWRITES = {
    "aten.unbind": _unbind,
    "aten.split": _split,
    "aten.split_with_sizes": _split,
    "aten.chunk": _split,
    "aten.native_batch_norm": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    "aten._native_batch_norm_legit": _batch_norm,
    "aten.native_layer_norm": _layer_norm,
    "aten.max": _max,
    "aten.max_pool2d_with_indices": _max_pool,
}
