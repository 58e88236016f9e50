"""A captured graph beside the module that it was captured from: do they compute the same?"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from unweave.errors import CaptureError
from unweave.graph.finite import check_buffers
from unweave.graph.graph import Graph, extents_of
from unweave.graph.interpret import interpret
from unweave.graph.precision import exact

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest relative error of a representation, by the dtype that the model computes in."""


def difference(graph: Graph, module: nn.Module, images: Tensor) -> float:
    """How far the graph's representation is from the module's own, relative to its norm; the larger of all images.

    Args:
        graph: Captured from the module.
        module: Images to representation; it is run once, and left as it is.
        images: `[image, channel, height, width]`.

    Raises:
        CaptureError: The module does not run.
        NonFiniteError: The representation is not finite, for a buffer is not.
    """
    with exact(images.device):
        try:
            output = output_of(module, images)
        except Exception as error:
            what = f"exports, but does not run on {len(images)} images: {type(error).__name__}: {error}"
            raise CaptureError(f"{type(module).__name__} {what}") from error
        expected = next(value for value in tree_leaves(output) if isinstance(value, Tensor))
        check_buffers(module, expected)
        computed = interpret(graph.nodes, {**graph.tensors, graph.input: images})[graph.output]
    if computed.shape != expected.shape or computed.dim() != 2 or len(computed) != len(images):
        return inf
    wide = torch.promote_types(computed.dtype, torch.float32)
    computed, expected = computed.to(wide), expected.to(wide)
    equal = torch.isclose(computed, expected, 0, 0, equal_nan=True)
    apart = (computed - expected).masked_fill(equal, 0).norm(dim=-1)
    return float((apart / expected.norm(dim=-1).clamp_min(torch.finfo(wide).tiny)).nan_to_num(inf, inf).max())


def output_of(module: nn.Module, images: Tensor) -> Any:
    """What a module returns of images; random state, batch statistics and attributes are afterwards as they were."""
    attributes = [(vars(part), dict(vars(part))) for part in module.modules()]
    with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
        try:
            if any(part.training for part in module.modules()):
                copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
                return functional_call(module, copies, images)
            return module(images)
        finally:
            for now, before in attributes:
                now.clear()
                now.update(before)


def twins(first: Graph, second: Graph) -> dict[fx.Node, fx.Node] | None:
    """For each node of a graph its counterpart in another, if both are the same operations on tensors of the same names
    and shapes, whatever their values; else None.
    """
    pairs = dict(zip(first.graph.nodes, second.graph.nodes, strict=False))
    if len(first.graph.nodes) != len(second.graph.nodes):
        return None
    for node, twin in pairs.items():
        mapped = fx.map_arg((node.args, dict(node.kwargs)), pairs.__getitem__)
        same = node.op == twin.op and mapped == (twin.args, dict(twin.kwargs))
        same &= node.target == twin.target or node.op != "call_function"
        same &= first.names.get(node) == second.names.get(twin)
        if same and isinstance(node.meta.get("val"), Tensor):
            same = extents_of(node) == extents_of(twin) and node.meta["val"].dtype == twin.meta["val"].dtype
        if not same:
            return None
    return pairs


def varied(example: Tensor) -> Tensor:
    """Two images like those of an example that are not constant and not the same: its first two, or drawn ones."""
    images = torch.cat([example, example])[:2] if len(example) < 2 else example[:2]
    if all(bool((image != image.flatten()[0]).any()) for image in images) and not torch.equal(images[0], images[1]):
        return images
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    if not images.is_floating_point():
        drawn = (drawn * 64 + 128).clamp(0, 255)
    return torch.empty_like(images).copy_(drawn)
