"""RepDecompose: a model's representation as an exact sum of named components, from its computational graph alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

from jaxtyping import Float
from torch import Tensor, nn

import unweave.operations  # noqa: F401  (registers the rules)
from unweave.components import Level, Selection
from unweave.decomposition.explanation import Explanation
from unweave.decomposition.planning import Plan, Planner
from unweave.decomposition.regions import Regional, RegionPlan, region_plan
from unweave.errors import ArgumentError
from unweave.graph.following import graph_of
from unweave.graph.precision import exact
from unweave.results import verb

if TYPE_CHECKING:
    from unweave.models import Model

__all__ = ["Explanation", "Plan", "RegionPlan", "Regional", "explain", "plan"]


class Options(TypedDict, total=False):
    """The options of `plan` that decide which components there are."""

    level: Level
    select: Selection
    attention: Literal["through", "stop"]
    nonlinear: Literal["stop", "freeze"]
    strict: bool


@overload
def plan(
    model: Model | nn.Module | str,
    example: Float[Tensor, "image ..."] | None = None,
    *,
    regions: Literal[True],
    **options: Unpack[Options],
) -> RegionPlan: ...


@overload
def plan(
    model: Model | nn.Module | str,
    example: Float[Tensor, "image ..."] | None = None,
    **options: Unpack[Options],
) -> Plan: ...


def plan(
    model: Model | nn.Module | str,
    example: Float[Tensor, "image ..."] | None = None,
    *,
    level: Level = "head",
    select: Selection = None,
    attention: Literal["through", "stop"] = "through",
    nonlinear: Literal["stop", "freeze"] = "stop",
    strict: bool = False,
    regions: bool = False,
) -> Plan | RegionPlan:
    """How to decompose a model's representation; costs seconds and touches no data.

    Args:
        model: A `Model`, or the id of one, which is loaded; or any module that maps images to their representation
            `[image, dim]`.
        example: Images of the size to plan for; not needed for a `Model`, which knows its own.
        level: `layer` whole branches; `head` heads, MLPs, convolution branches, embedding and biases; `token` heads
            by the token they read, and MLPs by token; `neuron` MLPs by hidden neuron.
        select: Which components to compute (see `unweave.components.Selection`); the others are returned as one `rest`.
        attention: `through`: where a layer reads another stream only by attention (class attention, attention
            pooling), that attention's probabilities are frozen and the blocks of the other stream are resolved;
            `stop`: its heads are components and end there.
        nonlinear: `stop`: what lies below a nonlinearity on the trunk is one component; `freeze`: pass it as `x *
            (f(x)/x)`, the quotient held.
        strict: Whether an operation that cannot be followed is an error.
        regions: Whether what is explained is any region of an image (a token, a box, a mask), in place of the whole.

    Returns:
        A `Plan`; with `regions` a `RegionPlan`.

    Raises:
        CaptureError: The module does not export; or, of regions, it cannot be told where in the image its tokens lie.
        RuleError: Under `strict`, an operation on the path cannot be followed.
        ArgumentError: The selection matches nothing, or what is given is no model.
        ModelError: There is no model of this id.
    """
    from unweave.models import Model, load_model
    from unweave.models.forward import check_supported, unwrapped
    from unweave.models.model import example_for
    from unweave.models.readout import whole

    if isinstance(model, str):
        model = load_model(model)
    if not isinstance(model, (Model, nn.Module)):
        raise ArgumentError(
            f"A {type(model).__name__} is no model.",
            cure="give a model's id, what `unweave.load_model` returns, or a torch.nn.Module",
        )
    if isinstance(model, Model):
        name, body, notes = model.id, model.readout, model.notes
        example = model.example() if example is None else example
    else:
        inner = unwrapped(model)
        check_supported(inner)
        example = example_for(inner, (3, 224, 224), 2) if example is None else example
        read = whole(inner, example)
        name, body, notes = type(inner).__name__, read.body, read.notes
    planner = Planner(name, attention == "through", nonlinear == "freeze", strict, notes)
    with exact(example.device):
        graph = graph_of(body, example)
    if regions:
        return region_plan(graph, planner, (example.shape[-2], example.shape[-1]), level, select)
    return planner(graph, level, select)


@verb
def explain(
    model: Model | nn.Module | str,
    *,
    level: Level = "head",
    select: Selection = None,
    attention: Literal["through", "stop"] = "through",
    nonlinear: Literal["stop", "freeze"] = "stop",
    strict: bool = False,
) -> Explanation:
    """What a model is decomposed into: components, operations and rules, coverage, memory; and what more
    `nonlinear="freeze"` would resolve, where something is lumped that it passes.

    Args:
        model, level, select, attention, nonlinear, strict: As for `plan`.
    """
    from unweave.models import load_model

    if isinstance(model, str):
        model = load_model(model)
    made, frozen = (
        plan(model, level=level, select=select, attention=attention, nonlinear=nonlinear, strict=strict),
        None,
    )
    if nonlinear == "stop" and any(lump.freezable for lump in made.lumps):
        frozen = plan(model, level=level, select=select, attention=attention, nonlinear="freeze", strict=strict)
    return made.explanation(frozen)
