"""RepDecompose: a model's representation as an exact sum of named components, from its computational graph alone."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

import unweave.operations  # noqa: F401  (registers the rules)
from unweave.components import Level, Selection
from unweave.contributions import Contributions, Scores
from unweave.decomposition.planning import Plan, make_plan
from unweave.errors import ArgumentError

if TYPE_CHECKING:
    from unweave.images import Batches, ImageSet
    from unweave.models import Model

Images: TypeAlias = "Float[Tensor, 'image channel height width'] | ImageSet | str | PathLike[str]"
"""A batch of preprocessed images, or pictures that are preprocessed when their turn comes."""

__all__ = ["Plan", "decompose", "explain", "plan", "score"]


def plan(
    model: Model | nn.Module | str,
    example: Float[Tensor, "image channel height width"] | None = None,
    *,
    level: Level = "head",
    select: Selection = None,
    attention: Literal["through", "stop"] = "through",
    nonlinear: Literal["stop", "freeze"] = "stop",
    strict: bool = False,
) -> Plan:
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

    Raises:
        CaptureError: The module does not export.
        RuleError: Under `strict`, an operation on the path cannot be followed.
        ArgumentError: The selection matches nothing, or what is given is no model.
        ModelError: There is no model of this id.
    """
    model = _loaded(model)
    options: dict[str, Any] = {
        "level": level,
        "selection": select,
        "passing": attention == "through",
        "freeze": nonlinear == "freeze",
        "strict": strict,
    }
    from unweave.models import Model

    if isinstance(model, Model):
        return make_plan(model.readout, model.example() if example is None else example, name=model.id, **options)
    if example is None:
        first = next(model.parameters(), torch.zeros(()))
        example = torch.zeros(2, 3, 224, 224, dtype=first.dtype, device=first.device)
    return make_plan(model, example, name=type(model).__name__, **options)


def decompose(
    model: Model | nn.Module | str,
    images: Images,
    *,
    level: Level = "head",
    select: Selection = None,
) -> Contributions:
    """Every component's contribution to the representation of these images, `[image, component, dim]`; plans anew
    (see `plan`).

    Args:
        model: As for `plan`.
        images: A batch of preprocessed images; or a set of images, or the name of one (see `unweave.open_images`),
            which the model's own preprocessing is applied to. The contributions of all of them are held in memory;
            `unweave.extract` writes them to disk.
        level, select: As for `plan`.

    Raises:
        DataError: An image cannot be read, or there are no such images.
        ArgumentError, CaptureError, ModelError: As for `plan` and `Plan.run`.
    """
    model = _loaded(model)
    if isinstance(images, Tensor):
        return plan(model, images, level=level, select=select).run(images)
    like, loader = _loader(model, images)
    made = plan(model, level=level, select=select)
    parts = [made.run(batch.to(like), ids) for ids, batch in loader]
    return replace(
        parts[0],
        values=torch.cat([part.values for part in parts]),
        ids=tuple(name for part in parts for name in part.ids),
        representation=torch.cat([part.representation for part in parts]),
        error=torch.cat([part.error for part in parts]),
    )


def score(
    model: Model | nn.Module | str,
    images: Float[Tensor, "image channel height width"],
    directions: Float[Tensor, "direction dim"],
    *,
    level: Level = "head",
    select: Selection = None,
) -> Scores:
    """Inner products of every contribution with directions, `[image, component, direction]`; plans anew (see
    `plan`).
    """
    return plan(model, images, level=level, select=select).score(images, directions)


def explain(model: Model | nn.Module | str, *, level: Level = "head") -> dict[str, Any]:
    """What a plan consists of, as data: components, operations and rules, coverage, memory."""
    return plan(model, level=level).report()


def _loaded(model: Model | nn.Module | str) -> Model | nn.Module:
    """What is given, or what is meant by its id."""
    from unweave.models import Model, load_model

    if isinstance(model, str):
        return load_model(model)
    if not isinstance(model, (Model, nn.Module)):
        raise ArgumentError(
            f"A {type(model).__name__} is no model.",
            cure="give a model's id, what `unweave.load_model` returns, or a torch.nn.Module",
        )
    return model


def _loader(model: Model | nn.Module, images: Any) -> tuple[Tensor, Batches]:
    """A tensor of the model's own kind, and images to be made into its input; what cannot be read is an error."""
    from unweave.images import ImageSet, batches, open_images
    from unweave.models import Model

    if isinstance(images, (str, PathLike)):
        images = open_images(images)
    if not isinstance(images, ImageSet):
        raise ArgumentError(
            f"A {type(images).__name__} is no batch of images.",
            cure="give a tensor [image, channel, height, width], or what `unweave.open_images` returns or takes",
        )
    if not isinstance(model, Model):
        raise ArgumentError(
            f"How images become the input of a {type(model).__name__} is not known.",
            cure="give unweave.Model.from_module(module), which says it",
        )
    return model.example(1), batches(model, images, 8, on_error="raise")
