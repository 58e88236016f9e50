"""Other ways to say where in an image a model looks, for comparison: raw attention, attention rollout (Abnar and
Zuidema, 2020), GradCAM (Selvaraju et al., 2017; by the package `grad-cam`) and transformer attribution (Chefer, Gur and
Wolf, CVPR 2021).

All work on the captured graph, but for GradCAM, whose package needs a module; which one, and how its tokens lie, is
read off the graph. A method that has no meaning for a model says why.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from unweave.components import Grid
from unweave.errors import ModelError
from unweave.graph.graph import arguments
from unweave.graph.interpret import applied
from unweave.operations.attention import probabilities
from unweave.operations.table import row
from unweave.tasks.attention import Attention, Layer, Trace

_TINY = 1e-9


class Unfit(ModelError):
    """A method has no meaning for a model; the message says why."""


@runtime_checkable
class Method(Protocol):
    """One way to make maps."""

    def __call__(
        self, images: Float[Tensor, "image channel height width"], directions: Float[Tensor, "image dim"]
    ) -> Float[Tensor, "image row column"]:
        """One map for each image, of what speaks for its direction."""


class RawAttention:
    """How much the last layer's attention reads each token, over all heads and over the queries that the representation
    depends on: the class token's, or all.

    Raises:
        Unfit: The model has no attention, or its tokens do not lie on a known grid.
    """

    def __init__(self, attention: Attention) -> None:
        self.attention, self.layer = attention, _last(attention)
        self.keys = _known(self.layer.keys, self.layer)

    def __call__(
        self, images: Float[Tensor, "image channel height width"], directions: Float[Tensor, "image dim"]
    ) -> Float[Tensor, "image row column"]:
        """Maps of a batch (see `Method`)."""
        trace = self.attention.trace(images, lambda z: (z * directions).sum(-1))
        rows = _rows(trace)
        read = torch.einsum("bwhqk,bwq->bwk", trace.probabilities[-1], rows) / trace.probabilities[-1].shape[2]
        return laid_out(read.flatten(1), self.keys)


class _OverLayers:
    """What multiplies the layers' attention over one sequence of tokens."""

    def __init__(self, attention: Attention) -> None:
        self.attention, self.layer = attention, _last(attention)
        self.keys = _known(self.layer.keys, self.layer)
        _one_sequence(attention)


class Rollout(_OverLayers):
    """The product over all layers of the heads' mean attention, half of it replaced by the identity.

    Raises:
        Unfit: The layers do not share one sequence of tokens.
    """

    def __call__(
        self, images: Float[Tensor, "image channel height width"], directions: Float[Tensor, "image dim"]
    ) -> Float[Tensor, "image row column"]:
        """Maps of a batch (see `Method`)."""
        trace = self.attention.trace(images, lambda z: (z * directions).sum(-1))
        mixed = [0.5 * own[:, 0].mean(1) + 0.5 * _identity(own) for own in trace.probabilities]
        return laid_out(_rolled(mixed, _rows(trace)[:, 0]), self.keys)


class TransformerAttribution(_OverLayers):
    """Chefer, Gur and Wolf (CVPR 2021): relevance is propagated from the score down to every layer's attention (their
    equations 4 to 10), multiplied with the attention's gradient, and rolled out (equations 13 and 14).

    As in their implementation, norms and nonlinearities pass relevance on as it is, and so does softmax.

    Raises:
        Unfit: The layers do not share one sequence of tokens.
    """

    def __call__(
        self, images: Float[Tensor, "image channel height width"], directions: Float[Tensor, "image dim"]
    ) -> Float[Tensor, "image row column"]:
        """Maps of a batch (see `Method`)."""
        trace = self.attention.trace(images, lambda z: (z * directions).sum(-1))
        relevance = self.relevance(trace, directions)
        mixed = [
            _identity(own) + (gradient * own)[:, 0].clamp_min(0).mean(1)
            for gradient, own in zip(trace.gradients, relevance, strict=True)
        ]
        return laid_out(_rolled(mixed, _rows(trace)[:, 0]), self.keys)

    def relevance(
        self, trace: Trace, directions: Float[Tensor, "image dim"]
    ) -> list[Float[Tensor, "image _window _head _query _key"]]:
        """Of every layer's attention probabilities; that of the whole score is 1."""
        graph = self.attention.graph
        z = trace.representation
        share = (z * directions).clamp_min(0)  # equation 4 for the last layer, whose weights are the direction
        held: dict[fx.Node, Tensor] = {graph.output: share / share.sum(-1, keepdim=True).clamp_min(_TINY)}
        layers = {layer.node: place for place, layer in enumerate(self.attention.layers)}
        found = [torch.zeros_like(own) for own in trace.probabilities]
        left = set(layers)
        for node in reversed(graph.nodes):
            if not left:
                break
            if node not in held:
                left.discard(node)
                continue
            own = held.pop(node)
            if node in layers:
                left.discard(node)
                weights, reads = self._attended(node, own, trace.values)
                found[layers[node]] = weights.reshape(found[layers[node]].shape)
            else:
                reads = self._handed_on(node, own, trace.values)
            for source, value in reads:
                if graph.image_dependent(source):
                    held[source] = held[source] + value if source in held else value
        return found

    def _attended(self, node: fx.Node, own: Tensor, values: Any) -> tuple[Tensor, list[tuple[fx.Node, Tensor]]]:
        """The relevance of an attention's weights; and that of what they are made of and of the values."""
        live = self.attention.paths.live(node)
        assert live is not None
        if not row(node).attends:
            weighs = next(one for one in self.attention.paths.graph.varying(node) if one is not live)
            first, second = _halves(torch.matmul, values[weighs], values[live], own)
            return first, [(weighs, first), (live, second)]
        given = arguments(node)
        query, key, value = (given[name] for name in ("query", "key", "value"))
        tensors = {name: values[one] if isinstance(one, fx.Node) else one for name, one in given.items()}
        weights, heads = probabilities(**tensors), tensors["value"]
        first, second = _halves(torch.matmul, weights, heads, own)
        to_query, to_key = _halves(lambda q, k: q @ k.transpose(-2, -1), tensors["query"], tensors["key"], first)
        return first, [(query, to_query), (key, to_key), (value, second)]

    def _handed_on(self, node: fx.Node, own: Tensor, values: Any) -> list[tuple[fx.Node, Tensor]]:
        """The relevance of an operation's inputs."""
        inputs = self.attention.paths.graph.varying(node)
        known = row(node)
        if known.affine and known.contracts and known.mixes == "last" and len(inputs) == 1:
            weight = values[arguments(node)[known.affine[1]]]
            return [(inputs[0], _positive(values[inputs[0]], weight.T if known.inputs_first else weight, own))]
        if known.adds and len(inputs) == 2:
            first, second = (values[one].expand(own.shape) for one in inputs)
            parts = _normalised(first * _over(own, values[node]), second * _over(own, values[node]), own)
            return [(one, _summed(part, values[one])) for one, part in zip(inputs, parts, strict=True)]
        same = len(inputs) == 1 and values[inputs[0]].shape == own.shape
        if same and not known.relayout and (not known.linear or known.norm or known.adds):
            return [(inputs[0], own)]
        given = own if known.relayout else _over(own, values[node])
        pulled = _pulled(node, inputs, values, given)
        return [
            (one, back if known.relayout else values[one] * back / (1 if len(inputs) == 1 else len(inputs)))
            for one, back in zip(inputs, pulled, strict=True)
        ]


class GradCam:
    """GradCAM at the norm that the last attention reads, as its package advises for transformers.

    Raises:
        Unfit: There is no such norm, or it is no module of its own, or its tokens do not lie on a known grid.
        ModelError: The package is missing.
    """

    def __init__(self, attention: Attention, module: nn.Module) -> None:
        self.cam = _package()
        layer, node = _last(attention), attention.normed()
        if node is None:
            raise Unfit("No norm lies below the last attention.", where=layer.path)
        self.grid = _known(attention.grid(node), layer)
        self.module = copy.deepcopy(module).requires_grad_(False)
        try:
            self.layer = self.module.get_submodule(attention.module(node))
        except AttributeError as error:
            raise Unfit("The norm below the last attention is no module.", where=layer.path) from error

    def __call__(
        self, images: Float[Tensor, "image channel height width"], directions: Float[Tensor, "image dim"]
    ) -> Float[Tensor, "image row column"]:
        """Maps of a batch (see `Method`)."""
        scored = _Scored(self.module, directions)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            with self.cam(scored, [self.layer], reshape_transform=self._laid_out) as cam:
                found = cam(images.detach().clone().requires_grad_(), targets=[_Alone()] * len(images))
        return torch.from_numpy(found)

    def _laid_out(self, tokens: Tensor) -> Tensor:
        """`[image, channel, row, column]`."""
        flat = tokens.flatten(1, -2).transpose(1, 2)
        return laid_out(flat, self.grid)


class _Scored(nn.Module):
    """A module whose output is each image's own score."""

    def __init__(self, module: nn.Module, directions: Tensor) -> None:
        super().__init__()
        self.module, self.directions = module, directions

    def forward(self, images: Tensor) -> Tensor:
        return (self.module(images) * self.directions).sum(-1, keepdim=True)


class _Alone:
    """What GradCAM is to explain: the one score there is."""

    def __call__(self, output: Tensor) -> Tensor:
        return output[0]


def _package() -> Any:
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise ModelError(
            "GradCAM needs a library.", where="pytorch_grad_cam", cure="pip install 'unweave[gradcam]'"
        ) from error
    return GradCAM


# -- grids and rows ----------------------------------------------------------------------------------------------------


def laid_out(tokens: Float[Tensor, "*lead token"], grid: Grid) -> Float[Tensor, "*lead row column"]:
    """Numbers of tokens on their grid; tokens without a cell are left out."""
    cells = torch.tensor(grid.cells)
    kept = (cells >= 0).nonzero()[:, 0].to(tokens.device)
    flat = tokens.new_zeros(*tokens.shape[:-1], grid.height * grid.width)
    flat = flat.index_add(-1, cells[kept.cpu()].to(tokens.device), tokens[..., kept])
    return flat.unflatten(-1, (grid.height, grid.width))


def _last(attention: Attention) -> Layer:
    if not attention.layers:
        raise Unfit("The model has no attention.")
    return attention.layers[-1]


def _known(grid: Grid | None, layer: Layer) -> Grid:
    if grid is None:
        raise Unfit("Where the tokens of the last attention lie is not known.", where=layer.path)
    return grid


def _one_sequence(attention: Attention) -> None:
    layers = attention.layers
    windowed = next((layer for layer in layers if layer.windows > 1), None)
    if windowed is not None:
        raise Unfit("Attention in windows is no matrix over one sequence of tokens.", where=windowed.path)
    sizes = {layer.keys.cells if layer.keys else None for layer in layers}
    sizes |= {layer.queries.cells if layer.queries else None for layer in layers}
    if len(sizes) > 1 or None in sizes:
        raise Unfit("The layers' tokens are not the same, so their attention cannot be multiplied.")


def _rows(trace: Trace) -> Float[Tensor, "image _window _query"]:
    """The queries of the last layer that the representation depends on; in all they weigh 1."""
    read = trace.read[-1].to(trace.probabilities[-1].dtype)
    return read / read.sum((1, 2), keepdim=True).clamp_min(1)


def _identity(weights: Tensor) -> Tensor:
    return torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)


def _rolled(
    mixed: Sequence[Float[Tensor, "image query key"]], rows: Float[Tensor, "image query"]
) -> Float[Tensor, "image key"]:
    """The rows of the product of all layers, last layer first."""
    found = rows[:, None]
    for own in reversed(mixed):
        found = found @ own
    return found[:, 0]


# -- relevance ---------------------------------------------------------------------------------------------------------


def _over(own: Tensor, value: Tensor) -> Tensor:
    """`own / value`, 0 where that is 0."""
    return torch.where(value.abs() > _TINY, own / torch.where(value.abs() > _TINY, value, 1.0), 0.0)


def _positive(value: Tensor, weight: Tensor, own: Tensor) -> Tensor:
    """A linear layer, over the products of input and weight that are positive (equation 4)."""
    up, down = weight.clamp_min(0), weight.clamp_max(0)
    above, below = value.clamp_min(0), value.clamp_max(0)
    share = _over(own, above @ up.T + below @ down.T)
    return above * (share @ up) + below * (share @ down)


def _normalised(first: Tensor, second: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Two shares of relevance, scaled so that they add up to it (equation 10)."""

    def total(tensor: Tensor) -> Tensor:
        return tensor.flatten(1).sum(1).view(-1, *(1,) * (tensor.dim() - 1))

    sizes = [total(one).abs() for one in (first, second)]
    whole = sizes[0] + sizes[1]
    found = [
        one * _over(size, whole) * _over(total(own), total(one))
        for one, size in zip((first, second), sizes, strict=True)
    ]
    return found[0], found[1]


def _halves(
    product: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor, own: Tensor
) -> tuple[Tensor, Tensor]:
    """A product of two values that depend on the image: each has the whole relevance, so half (equations 3 and 10)."""
    with torch.enable_grad():
        one, two = first.detach().requires_grad_(), second.detach().requires_grad_()
        out = product(one, two)
        back = torch.autograd.grad(out, (one, two), _over(own, out.detach()))
    return first * back[0] / 2, second * back[1] / 2


def _pulled(node: fx.Node, inputs: Sequence[fx.Node], values: Any, given: Tensor) -> list[Tensor]:
    """What an operation's adjoint makes of numbers at its output."""
    with torch.enable_grad():
        leaves = {source: values[source].detach().requires_grad_() for source in inputs}
        out = applied(node, lambda source: leaves[source] if source in leaves else values[source])
        return list(torch.autograd.grad(out, list(leaves.values()), given))


def _summed(part: Tensor, like: Tensor) -> Tensor:
    """Summed over the axes along which a value was repeated."""
    return part.sum_to_size(like.shape)
