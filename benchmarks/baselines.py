"""What a user would write instead of a plan: forward hooks on a plain ViT, and pushing every component forward.

Both compute the same contributions as `plan.run` at head level, with norm statistics and gates held at their values,
the usual way: with full token tensors for everything that might be read. Both are as fast as that way allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from unweave.decomposition.walk import Site, Walk
from unweave.errors import UnweaveError
from unweave.graph.graph import arguments, extents_of, operation
from unweave.operations.table import find

Values: TypeAlias = Mapping[fx.Node, Any]
Weighted: TypeAlias = dict[fx.Node, Tensor]


class HookedViT:
    """Heads and MLPs of a plain ViT by forward hooks, for the class token behind the final norm.

    Args:
        vit: A module with timm's names: `blocks.N.attn.proj`, `blocks.N.mlp`, `norm`, and `ls1`, `ls2` for LayerScale.
    """

    def __init__(self, vit: nn.Module) -> None:
        self.vit = vit
        self.blocks: list[Any] = list(vit.get_submodule("blocks").children())
        self.norm: Any = vit.get_submodule("norm")
        self.seen: dict[nn.Module, Tensor] = {}

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is built of timm's plain ViT blocks and read at its class token."""
        blocks = getattr(module, "blocks", None)
        plain = isinstance(blocks, nn.Sequential) and all(
            isinstance(getattr(getattr(block, "attn", None), "proj", None), nn.Linear) for block in blocks
        )
        return plain and getattr(module, "global_pool", None) == "token"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Heads `[image, layer * head, dim]`; the MLPs are computed as well and follow after them."""
        hooks = [hook for block in self.blocks for hook in self._hooks(block)]
        hooks.append(self.norm.register_forward_pre_hook(lambda module, args: self._see(module, args[0])))
        try:
            self.vit(images)
        finally:
            for hook in hooks:
                hook.remove()
        entering = self.seen[self.norm][:, 0]
        scale = (entering.var(-1, correction=0, keepdim=True) + self.norm.eps).rsqrt() * self.norm.weight
        heads, mlps = [], []
        for block in self.blocks:
            count, weight = block.attn.num_heads, block.attn.proj.weight
            merged = self.seen[block.attn.proj][:, 0].unflatten(-1, (count, -1))
            heads.append(torch.einsum("bhd,khd->bhk", merged, weight.unflatten(-1, (count, -1))) * _gamma(block, "ls1"))
            mlps.append(self.seen[block.mlp][:, 0] * _gamma(block, "ls2"))
        self.seen.clear()
        pieces = torch.cat([*heads, torch.stack(mlps, 1)], 1)
        return (pieces - pieces.mean(-1, keepdim=True)) * scale[:, None]

    def _hooks(self, block: Any) -> Iterator[Any]:
        yield block.attn.proj.register_forward_pre_hook(lambda module, args: self._see(module, args[0]))
        yield block.mlp.register_forward_hook(lambda module, args, result: self._see(module, result))

    def _see(self, module: nn.Module, value: Tensor) -> None:
        self.seen[module] = value


def _gamma(block: Any, name: str) -> Tensor | float:
    return getattr(getattr(block, name, None), "gamma", 1.0)


@dataclass
class _Stack:
    """A value of the trunk as a sum: `parts`, `[component, *value]`, with the kind of each, and what biases put in."""

    parts: list[tuple[str, Tensor]]
    bias: Tensor


@dataclass(frozen=True)
class Pushed:
    """What pushing returns.

    Attributes:
        values: `[component, image, dim]`; the biases are the last component.
        kinds: `head`, `source`, `embed`, ... or `bias`, one for each component.
        representation: `[image, dim]`, as the model computes it.
    """

    values: Tensor
    kinds: tuple[str, ...]
    representation: Tensor

    @property
    def heads(self) -> Tensor:
        """The heads alone, in execution order."""
        return self.values[[place for place, kind in enumerate(self.kinds) if kind == "head"]]

    @property
    def error(self) -> float:
        """The largest relative error of the sum."""
        missed = (self.values.sum(0) - self.representation).norm(dim=-1)
        return float((missed / self.representation.norm(dim=-1)).max())


class Pushing:
    """Every component of any model as a full tensor, pushed forward through the rest of the residual path.

    The model's own operations are run over its graph. Where a branch ends, its heads (or its MLP's output) become
    components; each later operation of the trunk is applied to all of them, with every norm at the statistic of the
    value itself. Residual additions append to the list of components and copy nothing, and a tensor is freed at its
    last use.

    Args:
        found: The trunk and branches of the model.
        tokens: Whether to split heads further by the token that they read.
        last: Only the heads of so many last attention layers, and what comes after; the rest is one component.
    """

    def __init__(self, found: Walk, *, tokens: bool = False, last: int | None = None) -> None:
        self.graph, self.tokens = found.graph, tokens
        order = self.graph.order
        branches = [branch for branch in found.branches if branch.residual is not None]
        residuals = {branch.residual.node for branch in branches if branch.residual}
        self.path = residuals | {node for node, _ in found.fired}
        self.starts: dict[fx.Node, str] = {}
        since = -1
        if last is not None:
            attentive = [branch for branch in branches if any(site.role == "attention" for site in branch.sites)]
            first = sorted(attentive, key=lambda branch: order[branch.residual.node])[-last].residual  # type: ignore[union-attr]
            assert first is not None
            since, self.starts[first.trunk] = order[first.node], "rest"
        for branch in found.branches:
            if since < 0 or (branch.residual is not None and order[branch.residual.node] >= since):
                for site in branch.sites:
                    self._start(site)
        self.projections = {self._projection(node): node for node, kind in self.starts.items() if kind == "head"}
        reads = [(source, node) for node in self.graph.nodes for source in node.all_input_nodes]
        self.last_use = {source: node for source, node in reads}
        self.last_push = {source: node for source, node in reads if node in self.path}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Pushed:
        """Contributions of a batch."""
        values: dict[fx.Node, Any] = {**self.graph.tensors, self.graph.input: images}
        stacks: dict[fx.Node, _Stack] = {}
        weighted: Weighted = {}
        for node in self.graph.nodes:
            values[node] = _run(node, values)
            if node in self.starts:
                stacks[node] = self._started(node, values, weighted)
            elif node in self.path and any(source in stacks for source in node.all_input_nodes):
                stacks[node] = self._pushed(node, values, stacks, weighted)
            for source in node.all_input_nodes:
                if self.last_use[source] is node and source not in self.graph.tensors:
                    del values[source]
                if self.last_push.get(source) is node:
                    stacks.pop(source, None)
        stack = stacks[self.graph.output]
        kinds = [kind for kind, part in stack.parts for _ in range(len(part))]
        pieces = torch.cat([*(part for _, part in stack.parts), stack.bias[None]])
        return Pushed(pieces, (*kinds, "bias"), values[self.graph.output])

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's heads, split by token, for one image."""
        projection, attention = next(iter(self.projections.items()))
        components = attention.meta["val"].shape[-3] * arguments(attention)["value"].meta["val"].shape[-2]
        size = prod(extent.size for extent in extents_of(projection))
        return int(components * size * projection.meta["val"].element_size())

    def _start(self, site: Site) -> None:
        if site.role == "read":
            raise self._stuck(site.via, "a branch that is linear in the trunk")
        if site.role not in ("bias", "tokens") and isinstance(site.source, fx.Node):
            self.starts[site.source] = "head" if site.role == "attention" else site.role

    def _projection(self, attention: fx.Node) -> fx.Node:
        """The linear layer that reads the heads of an attention."""
        node = attention
        while node is attention or ((rule := find(node)) is not None and rule.relayout):
            node = next(user for user in node.users if user in self.path)
        if operation(node) != "aten.linear":
            raise self._stuck(node, operation(node))
        return node

    def _stuck(self, node: fx.Node, what: str) -> UnweaveError:
        return UnweaveError(f"This baseline cannot push through {what}.", where=self.graph.module(node))

    def _started(self, node: fx.Node, values: Values, weighted: Weighted) -> _Stack:
        value, kind = values[node], self.starts[node]
        if kind == "head":  # they become components where the projection takes them apart
            if self.tokens:
                weighted[node] = _weighted(node, values)
            return _Stack([], torch.zeros_like(value))
        return _Stack([(kind, value[None])], torch.zeros_like(value))

    def _pushed(self, node: fx.Node, values: Values, stacks: Mapping[fx.Node, _Stack], weighted: Weighted) -> _Stack:
        sources = sorted(
            (source for source in node.all_input_nodes if source in stacks), key=self.graph.order.__getitem__
        )
        moving = [stacks[source] for source in sources]
        if operation(node) == "aten.add" and len(node.args) == 2 and not node.kwargs:
            fixed = [values[source] for source in node.all_input_nodes if source not in stacks]
            if any(self.graph.image_dependent(source) for source in node.all_input_nodes if source not in stacks):
                raise self._stuck(node, "an addition of something without components")
            parts = [part for stack in moving for part in stack.parts]
            return _Stack(parts, sum([stack.bias for stack in moving[1:]] + fixed, moving[0].bias))
        if len(sources) != 1:
            raise self._stuck(node, operation(node))
        source, stack = sources[0], moving[0]
        step = _step(node, source, values)
        if node in self.projections:
            attention = self.projections[node]
            heads = int(attention.meta["val"].shape[-3])
            weight = values[arguments(node)["weight"]].unflatten(-1, (heads, -1)).permute(1, 2, 0)
            own = weighted.pop(attention, None)
            if own is None:
                own = values[source].unflatten(-1, (heads, -1)).movedim(-2, 0).unsqueeze(1)
            made = own.flatten(1, -2) @ weight
            part = made.reshape(prod(own.shape[:2]), *values[node].shape)
            return _Stack([("head", part)], step(stack.bias[None], True)[0])
        bias = step(stack.bias[None], True)[0]
        waiting = stack.parts if self.last_push[source] is node else list(stack.parts)
        parts = []
        while waiting:  # one at a time, so that what has been pushed is freed
            kind, part = waiting.pop(0)
            parts.append((kind, step(part, False)))
            del part
        return _Stack(parts, bias)


def _run(node: fx.Node, values: Values) -> Any:
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _step(node: fx.Node, source: fx.Node, values: Values) -> Callable[[Tensor, bool], Tensor]:
    """What an operation does to components `[component, *value]`, with its bias or without."""
    name = operation(node)
    if name in ("aten.dropout", "aten.to", "aten.detach", "aten.alias"):
        return lambda part, _: part
    if name in ("aten.contiguous", "aten.clone"):
        return lambda part, _: part.contiguous()
    given = {key: fx.map_arg(value, values.__getitem__) for key, value in arguments(node).items()}
    if name == "aten.layer_norm" and len(given["normalized_shape"]) == 1:
        scale = (values[source].var(-1, correction=0, keepdim=True) + given["eps"]).rsqrt()
        if given["weight"] is not None:
            scale = scale * given["weight"]

        def normalise(part: Tensor, biased: bool) -> Tensor:
            result = (part - part.mean(-1, keepdim=True)).mul_(scale)
            return result.add_(given["bias"]) if biased and given["bias"] is not None else result

        return normalise
    rule = find(node)
    if rule is None or (rule.kind != "linear" and rule.product is None) or name == "aten.batch_norm":
        raise UnweaveError(f"This baseline cannot push through {name}.", where=name)
    bias = arguments(node).get("bias")

    def apply(part: Tensor, biased: bool) -> Tensor:
        def one(value: Tensor) -> Tensor:
            def look(own: fx.Node) -> Any:
                return value if own is source else None if own is bias and not biased else values[own]

            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), look)
            return node.target(*args, **kwargs)  # type: ignore[operator]

        if name in ("aten.conv2d", "aten.avg_pool2d", "aten.adaptive_avg_pool2d"):  # as one large batch
            return one(part.flatten(0, 1)).unflatten(0, part.shape[:2])
        return torch.vmap(one)(part)

    return apply


def _weighted(node: fx.Node, values: Values) -> Tensor:
    """Every head's output split by the token read, `[head, token, image, query, channel]`."""
    if operation(node) != "aten.scaled_dot_product_attention":
        raise UnweaveError(f"This baseline cannot split {operation(node)} by token.", where=operation(node))
    given = {key: fx.map_arg(value, values.__getitem__) for key, value in arguments(node).items()}
    scale = given["scale"] or given["query"].shape[-1] ** -0.5
    logits = given["query"] @ given["key"].transpose(-2, -1) * scale
    if given["attn_mask"] is not None:
        logits = logits + given["attn_mask"]
    return torch.einsum("bhqt,bhtd->htbqd", logits.softmax(-1), given["value"])
