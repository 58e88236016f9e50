"""A target: what a score is for. A text, or a class of the model's own classifier, as directions to measure along.

    toward_texts(model, space, ["a dog"], aligner)      # through an aligner; without one for a CLIP in its own space
    toward_classes(model, ["dog"])                      # the weights of the model's own classifier

A target says of the whole representation `sum_i <c_i, direction_i> + constant`: with an aligner every component has a
direction of its own, what its map makes of the text's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from unweave.alignment import Aligner, Space, aligner_of, space_of
from unweave.components import Component
from unweave.errors import AlignmentError, ArgumentError, ModelError
from unweave.models import Model
from unweave.source import Origin
from unweave.tasks.classifier import class_names
from unweave.text import TextSpace, text_space


@dataclass(frozen=True, eq=False)
class Target:
    """Directions to measure along, and what they are called.

    Attributes:
        names: One for each direction.
        directions: In the space that is read: that of the texts, or the model's own.
        constants: What is added to every score: the aligner's bias along the direction, or the classifier's.
        space: What the directions are of: `classifier`, or the id of a text space.
        places: The aligner's row for each component.
        aligner: What takes components to the directions' space; None where they are there.
        aliases: Other names of directions, such as ImageNet's `n02123045`.
    """

    names: tuple[str, ...]
    directions: Float[Tensor, "target dim"]
    constants: Float[Tensor, " target"]
    space: str
    places: Mapping[Component, int] | None = None
    aligner: Aligner | None = None
    aliases: Mapping[str, int] = field(default_factory=dict)
    _known: dict[tuple[Component, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def along(
        self, components: Sequence[Component]
    ) -> Float[Tensor, "target dim"] | Float[Tensor, "component target dim"]:
        """The directions in the model's own space: the same for all components, or some for each.

        Kept once made, as every map is read for it.

        Raises:
            AlignmentError: The aligner has no map for a component.
        """
        if self.aligner is None or self.places is None:
            return self.directions
        asked = tuple(components)
        if asked in self._known:
            return self._known[asked]
        unknown = next((name for name in asked if name not in self.places), None)
        if unknown is not None:
            raise AlignmentError(
                f"The aligner has no map for the component {unknown}.", cure="align with the options of this plan"
            )
        maps, directions = self.aligner.maps, self.directions.to(self.aligner.maps.dtype)
        made = torch.stack([directions @ maps[self.places[component]].T for component in asked])
        self._known[asked] = made
        return made

    def take(self, places: Sequence[int]) -> Target:
        """Only some, by their places."""
        rows = list(places)
        names = tuple(self.names[row] for row in rows)
        return replace(self, names=names, directions=self.directions[rows], constants=self.constants[rows], aliases={})

    def against(self, others: Target) -> Target:
        """Each less the mean of others: what speaks for it rather than for them."""
        names = tuple(f"{name} rather than the others" for name in self.names)
        directions = self.directions - others.directions.mean(0)
        return replace(self, names=names, directions=directions, constants=self.constants - others.constants.mean())

    def place(self, name: str) -> int:
        """Which direction has a name.

        Raises:
            ArgumentError: None has.
        """
        names = [*self.aliases.items(), *((own, place) for place, own in reversed([*enumerate(self.names)]))]
        found = {own.casefold().replace("_", " "): place for own, place in names}.get(name.casefold().replace("_", " "))
        if found is None:
            some = ", ".join(self.names[:6])
            raise ArgumentError(f"{name!r} is none of the {len(self.names)} classes.", cure=f"use one of {some}, ...")
        return found


def toward(model: Model, texts: Sequence[str] | str, classes: Sequence[str] | str, space: Space = None) -> Target:
    """What speaks for texts, or for classes of the model's own classifier.

    Args:
        model: The model.
        texts: The texts, or none.
        classes: The classes, where there are no texts.
        space: What brings components into the text space of the texts (see `unweave.alignment.Space`).

    Raises:
        ArgumentError: Nothing leads to a text space, or there is no such class.
        AlignmentError: The aligner, the space and the model do not belong together.
        ModelError: The model has no linear classifier.
    """
    if not texts:
        return toward_classes(model, [classes] if isinstance(classes, str) else classes)
    if space is None:
        raise ArgumentError(
            "Texts need a text space.",
            where=model.id,
            cure="name the folder of an aligner; or, if the model is a CLIP itself, its text space",
        )
    aligner = aligner_of(space)
    words = space if isinstance(space, TextSpace) else space_of(aligner) if aligner else text_space(str(space))
    return toward_texts(model, words, [texts] if isinstance(texts, str) else texts, aligner)


def toward_texts(
    model: Model,
    space: TextSpace,
    texts: Mapping[str, Sequence[str]] | Sequence[str],
    aligner: Aligner | None = None,
) -> Target:
    """What speaks for texts.

    Args:
        model: The model.
        space: The text space.
        texts: Phrases, or names, each with several whose directions are averaged.
        aligner: Of the model to the space; not needed for the space's own image encoder.

    Raises:
        ArgumentError: There are no texts, or one cannot be encoded.
        StoreError: The aligner is of another model, space or level, or there is none and one is needed.
    """
    named = dict(texts) if isinstance(texts, Mapping) else {text: (text,) for text in texts}
    if not named:
        raise ArgumentError("There are no texts.", cure="name one at least")
    directions = torch.stack([normalize(space.encode(list(own)).mean(0), dim=0) for own in named.values()])
    if aligner is None:
        if model.weights_hash != space.images.weights_hash:
            raise AlignmentError(
                f"The model is not the image encoder of {space.id}, so its components are not in that space.",
                where=model.id,
                cure="name an aligner, which `unweave align` makes",
            )
        return Target(tuple(named), directions, torch.zeros(len(named)), space.id)
    origin = Origin(model.id, model.weights_hash, model.preprocessing, "head")
    places = aligner.places(aligner.components, origin)
    aligner.check(space)
    rows = dict(zip(aligner.components, places, strict=True))
    return Target(tuple(named), directions, directions @ aligner.bias.float(), space.id, rows, aligner)


def toward_classes(model: Model, classes: Sequence[str] | None = None) -> Target:
    """What speaks for classes of the model's own classifier; the score is the logit.

    Args:
        model: The model.
        classes: Their names, or their numbers; all if not given.

    Raises:
        ModelError: The model has no classifier, or it is not linear.
        ArgumentError: There is no such class.
    """
    weight, bias = affine(model)
    called = class_names(model, len(weight))
    names = tuple(own[0] for own in called)
    aliases = {name: place for place, own in reversed([*enumerate(called)]) for name in own[1:]}
    every = Target(names, weight, bias, "classifier", aliases=aliases)
    if classes is None:
        return every
    if not classes:
        raise ArgumentError("There are no classes.", cure="name one at least")
    numbered = {str(number): number for number in range(len(names))}
    return every.take([numbered[own] if own in numbered else every.place(own) for own in classes])


@torch.no_grad()
def affine(model: Model) -> tuple[Float[Tensor, "class dim"], Float[Tensor, " class"]]:
    """The weights and biases of a model's classifier, whatever modules it is made of.

    Raises:
        ModelError: The model has no classifier, or it is not linear.
    """
    own: Any = model.classifier
    if own is None:
        raise ModelError("The model has no classifier.", where=model.id, cure="name a text, and an aligner")
    dim = int(model.readout(model.example(1)).shape[1])
    kind: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    own = own.eval()
    bias = own(torch.zeros(1, dim, **kind))[0]
    weight = (own(torch.eye(dim, **kind)) - bias).T
    probe = torch.randn(4, dim, generator=torch.Generator().manual_seed(0)).to(**kind)
    found, wanted = probe @ weight.T + bias, own(probe)
    if (found - wanted).norm() > max(1e-4, 8 * torch.finfo(model.dtype).eps) * wanted.norm():
        raise ModelError("The model's classifier is not linear.", where=model.id, cure="name a text, and an aligner")
    precise = torch.promote_types(model.dtype, torch.float32)
    return weight.to("cpu", precise).contiguous(), bias.to("cpu", precise)
