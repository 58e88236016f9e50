"""Norms: the statistic is frozen at its value on this image; what remains is affine, and centring stays in
(method.md, section 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, fx

from unweave.adjoint.operand import Axis, Constant, Irregular, Operand, Runtime, fresh
from unweave.adjoint.term import Term
from unweave.graph.graph import Extent
from unweave.operations.table import Reads, Step, rule


def _centred(size: int, weight: fx.Node | None) -> Constant:
    """`diag(weight) (I - 1/n)`, `[size, size]`: a norm's scale after its centring."""

    def make(*weights: Tensor) -> Tensor:
        like = weights[0] if weights else torch.zeros((), dtype=torch.float64)
        matrix = torch.eye(size, dtype=like.dtype, device=like.device) - 1 / size
        return matrix * weights[0].reshape(-1, 1) if weights else matrix

    return Constant((size, size), (weight,) if weight is not None else (), make, ("centred", size, weight))


def normalised(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, **_: object
) -> tuple[Tensor, Tensor]:
    """A layer norm, and its `rstd`."""
    output, _mean, rstd = torch.ops.aten.native_layer_norm.default(input, normalized_shape, weight, bias, eps)
    return output, rstd.reshape(rstd.shape[: -len(normalized_shape)])


@rule(
    "aten.layer_norm",
    kind="frozen",
    mixes="last",
    norm=True,
    statistic=normalised,
    affine=("input", "weight", "bias"),
)
def layer_norm(step: Step, term: Term) -> Reads:
    """`(x - mean) * rstd * weight + bias` over the last axes, with `rstd` held."""
    shape = [int(length) for length in step["normalized_shape"]]
    count, eps = len(shape), float(step["eps"])
    # over several axes at once it is as over the one axis that they make
    flat = term.regrouped([*step.output[:-count], Extent(prod(shape))]) if count > 1 else term

    def rstd(value: Tensor, _: Sequence[object]) -> Tensor:
        dims = tuple(range(-count, 0))
        return (value.var(dims, correction=0) + eps).rsqrt()

    statistic = Operand(Runtime("rstd", step.node, (step["input"],), rstd), flat.axes[:-1])
    weight = step["weight"]
    centred = fresh(prod(shape))
    matrix = Operand(_centred(prod(shape), weight), (flat.axes[-1], Axis(centred)))
    moved = flat.times(statistic, matrix).read([*flat.axes[:-1], Axis(centred)]).through(centred)
    yield step["input"], moved.regrouped(step.extents("input")) if count > 1 else moved
    if step["bias"] is not None:
        yield step["bias"], flat.read([flat.axes[-1]]).regrouped(step.extents("bias"))


@rule("aten.rms_norm", kind="frozen", mixes="last", norm=True)
def rms_norm(step: Step, term: Term) -> Reads:
    """`x * rstd * weight` over the last axes, with `rstd` held."""
    count = len(step["normalized_shape"])
    given = step["eps"]

    def rstd(value: Tensor, _: Sequence[object]) -> Tensor:
        eps = torch.finfo(value.dtype).eps if given is None else float(given)
        return (value.square().mean(tuple(range(-count, 0))) + eps).rsqrt()

    factors = [Operand(Runtime("rstd", step.node, (step["input"],), rstd), term.axes[:-count])]
    if step["weight"] is not None:
        factors.append(Operand(Constant.of(step["weight"]), term.axes[-count:]))
    yield step["input"], term.times(*factors)


@rule("aten.group_norm", kind="frozen", mixes="axes", norm=True, affine=("input", "weight", "bias"))
def group_norm(step: Step, term: Term) -> Reads:
    """`(x - mean) * rstd * weight + bias` over the channels of a group and all positions, with `rstd` held."""
    image, channels, *positions = step.output
    groups = int(step["num_groups"])
    inner = channels.size // groups
    eps = float(step["eps"])
    split = term.regrouped([image, Extent(groups), Extent(inner), *positions])
    if step["bias"] is not None:
        yield step["bias"], term.read([term.axes[1]])

    def rstd(value: Tensor, _: Sequence[object]) -> Tensor:
        return (value.reshape(len(value), groups, -1).var(-1, correction=0) + eps).rsqrt()

    factors = [Operand(Runtime("rstd", step.node, (step["input"],), rstd), split.axes[:2])]
    if step["weight"] is not None:
        grouped = Constant(
            (groups, inner),
            (step["weight"],),
            lambda weight: weight.reshape(groups, inner),
            ("grouped", groups, step["weight"]),
        )
        factors.append(Operand(grouped, split.axes[1:3]))
    scaled = split.times(*factors)
    yield step["input"], scaled.regrouped(step.output)
    members = [Axis(fresh(extent.size)) for extent in (Extent(inner), *positions)]
    mean = scaled.times(scale=-1 / (inner * prod(extent.size for extent in positions)))
    yield step["input"], mean.read([*split.axes[:2], *members]).regrouped(step.output)


@rule("aten.instance_norm", kind="frozen", mixes="axes", norm=True)
def instance_norm(step: Step, term: Term) -> Reads:
    """A group norm with one channel to a group."""
    if not step["use_input_stats"]:
        raise Irregular("an instance norm with running statistics")
    given = {**step.given, "num_groups": step.output[1].size}
    yield from group_norm(Step(step.node, step.graph, step.live, given), term)


@rule("aten.batch_norm", kind="linear", norm=True, affine=("input", "weight", "bias"))
def batch_norm(step: Step, term: Term) -> Reads:
    """In evaluation its statistics are weights: a scale and a shift for each channel."""
    if step["training"]:
        raise Irregular("a batch norm in training mode")
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (step[name] for name in names)
    inputs = tuple(node for node in (mean, variance, weight, bias) if node is not None)
    eps = float(step["eps"])

    def values(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        supply = iter(tensors)
        means, variances = next(supply), next(supply)
        scale = (variances + eps).rsqrt()
        if weight is not None:
            scale = scale * next(supply)
        return scale, (next(supply) if bias is not None else torch.zeros_like(means)) - means * scale

    size = step.output[1].size
    scale = Constant((size,), inputs, lambda *tensors: values(*tensors)[0], ("bn scale", step.node))
    shift = Constant((size,), inputs, lambda *tensors: values(*tensors)[1], ("bn shift", step.node))
    yield step["input"], term.times(Operand(scale, (term.axes[1],)))
    yield shift, term.read([term.axes[1]])
