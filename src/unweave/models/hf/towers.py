"""How a model of transformers is called so that it maps images alone to one vector for each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unweave.models.hf.mapping import mapped
from unweave.models.output import FIELDS

FEATURES = ("get_image_features", "get_video_features")
"""What transformers calls the methods that make of pixels what a model of images and text reads of them."""


@dataclass(frozen=True)
class Layout:
    """How a model takes one image.

    Attributes:
        shape: Of its pixels; None for the image as it is, for which it has an axis more, of images.
        places: For each of its pixels its place in the image, numbered row by row and channel by channel, or -1 for one
            that is filled up with zero; None where they lie as in the image.
        constants: What it is told beside the pixels: sizes, grids, masks.
        argument: What it calls the pixels.
    """

    shape: tuple[int, ...] | None = None
    places: Tensor | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    argument: str = "pixel_values"

    @property
    def plain(self) -> bool:
        """Whether images are given as they are, and nothing beside them."""
        return self.shape is None and not self.constants

    @property
    def together(self) -> bool:
        """Whether it can be given several images at a time."""
        return self.shape is None and not any(isinstance(value, Tensor) for value in self.constants.values())

    def pixels(self, image: Tensor) -> Tensor:
        """The pixels of one image, `[channel, height, width]`, as the model takes them."""
        if self.shape is None:
            return image[None]
        if self.places is None:
            return image.reshape(self.shape)
        places = self.places.to(image.device)
        values = image.flatten()[places.clamp_min(0)]
        if bool((self.places < 0).any()):
            values = torch.where(places < 0, torch.zeros_like(values), values)
        return values.reshape(self.shape)

    def image(self, pixels: Tensor, size: tuple[int, ...]) -> Tensor:
        """The image whose pixels these are."""
        if self.places is None:
            return pixels.reshape(size)
        flat, places = torch.zeros(int(torch.tensor(size).prod())), self.places
        flat[places[places >= 0]] = pixels.flatten().float()[places >= 0]
        return flat.reshape(size)


class Tower(nn.Module):
    """A model of transformers as a module that takes images alone.

    It returns what the model calls its representation, or else a mean over tokens or places, as `pooler_output`; and
    the fields of the model's own output beside it, those of `unweave.models.output.FIELDS`, and the `tokens` or the
    `map` that the mean was taken over.

    Args:
        model: A model of transformers.
        method: The method of it that is called.
        part: The submodule that is called; empty for the model itself.
        layout: How it takes an image.
        pools: Whether `pooler_output` is filled in, by a mean where the model does not say.
        each: Whether it is called for each image alone.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        method: str = "forward",
        part: str = "",
        layout: Layout | None = None,
        pools: bool = True,
        each: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.method, self.part = model, method, part
        self.layout, self.pools, self.each = layout or Layout(), pools, each

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images `[image, channel, height, width]` to fields, each with an axis of images in front."""
        if self.each:
            return mapped(self.single, images)
        return self._fields(self._called(images))

    def single(self, image: Tensor) -> dict[str, Tensor]:
        """The same of one image `[channel, height, width]`, with no axis of images."""
        found = self._fields(self._called(self.layout.pixels(image)))
        return {name: value[0] for name, value in found.items()}

    def _called(self, pixels: Tensor) -> object:
        owner = self.model.get_submodule(self.part)
        call = owner if self.method == "forward" else getattr(owner, self.method)
        given = {
            name: value.to(pixels.device) if isinstance(value, Tensor) else value
            for name, value in self.layout.constants.items()
        }
        return call(**{self.layout.argument: pixels}, **given)

    def _fields(self, output: object) -> dict[str, Tensor]:
        fields = {name: value for name in FIELDS if isinstance(value := _get(output, name), Tensor)}
        if not self.pools:
            return {name: _joined(value, packed=self.each) for name, value in fields.items()}
        described = _get(output, "pooler_output") if self.method in FEATURES else None
        value = described if described is not None else next(_representations(output, fields))
        tokens = _joined(value, packed=self.each)
        places = {} if tokens.ndim < 3 else {"tokens" if tokens.ndim == 3 else "map": tokens}
        return {**fields, "pooler_output": pooled(tokens), **places}


def _get(output: object, name: str) -> object:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _representations(output: object, fields: Mapping[str, Tensor]) -> Any:
    """What may be the representation in an output, the likeliest first."""
    yield from (fields[name] for name in FIELDS if name in fields)
    for name in ("feature_maps", "vision_embeds"):
        value = _get(output, name)
        if isinstance(value, (list, tuple)) and value:
            yield value[-1]
    if isinstance(output, (list, tuple)) and output:
        yield output[-1]
    if isinstance(output, Tensor):
        yield output
    raise ValueError(f"its output of {type(output).__name__} holds no tensor of images")


def _joined(value: object, *, packed: bool) -> Tensor:
    """What was made of the images as one tensor, with an axis of images in front.

    Args:
        value: A tensor, or a list of one for each image.
        packed: Whether it is of one image, so that what has no axis of images gets one.
    """
    while isinstance(value, (list, tuple)):
        value = value[0] if len(value) == 1 or not packed else torch.cat([own.flatten(0, -2) for own in value])
    assert isinstance(value, Tensor)
    if packed and value.ndim == 2 and value.shape[0] > 1:
        return value[None]
    if packed and value.ndim == 3 and value.shape[0] > 1:
        return value.flatten(0, 1)[None]
    return value


def pooled(value: Tensor) -> Tensor:
    """The mean over tokens `[image, token, dim]` or over places `[image, dim, ...]`; a vector for each image stays."""
    if value.ndim == 3:
        return value.mean(1)
    return value.flatten(2).mean(2) if value.ndim > 3 else value


def takes(function: Any, name: str) -> bool:
    """Whether a function has a parameter of a name."""
    return name in inspect.signature(function).parameters
