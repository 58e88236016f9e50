"""Random views of images: what a scene may look like without being another scene.

Everything is done to a whole batch of tensors at once, on whatever device it lies, with torch's own random state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from unweave.models.preprocessing import MEAN, STD


@dataclass(frozen=True)
class View:
    """How much a view may differ from its image.

    Attributes:
        zoom: The smallest and the largest part of the image's side that is seen, uniformly drawn.
        light: Brightness and contrast change by up to this.
        colour: Saturation changes by up to this, and the channels' gains by a third of it.
        grey: The share of images without colour.
        blur: The share of images that are blurred.
    """

    zoom: tuple[float, float] = (0.85, 1.1)
    light: float = 0.15
    colour: float = 0.0
    grey: float = 0.0
    blur: float = 0.0


def view(images: UInt8[Tensor, "image height width 3"], how: View) -> Float[Tensor, "image 3 height width"]:
    """One random view of each image: mirrored or not, cropped, lit, normalised as networks expect it."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, 1, device=images.device).uniform_(low, high)

    def some(share: float) -> Tensor:
        return uniform(0.0, 1.0) < share

    pixels = _crop(images.permute(0, 3, 1, 2).float() / 255, how.zoom)
    if how.blur:
        kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16
        padded = functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
        blurred = functional.conv2d(padded, torch.outer(kernel, kernel).expand(3, 1, 5, 5), groups=3)
        pixels = torch.where(some(how.blur), blurred, pixels)
    if how.colour:
        grey = pixels.mean(1, keepdim=True)
        pixels = grey + (pixels - grey) * uniform(1 - how.colour, 1 + how.colour)
        pixels = pixels * torch.empty(count, 3, 1, 1, device=images.device).uniform_(-1, 1).mul(how.colour / 3).add(1)
    if how.grey:
        pixels = torch.where(some(how.grey), pixels.mean(1, keepdim=True), pixels)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (uniform(1 - how.light, 1 + how.light) for _ in range(2))
    pixels = (mean + (pixels - mean) * contrast) * brightness
    return normalised(pixels.clamp(0, 1))


def normalised(pixels: Float[Tensor, "image 3 height width"]) -> Float[Tensor, "image 3 height width"]:
    """Colours of 0 ... 1, with the mean taken off and divided by the deviation that the zoo's preprocessing has."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def whole(images: UInt8[Tensor, "image height width 3"]) -> Float[Tensor, "image 3 height width"]:
    """The images as they are, normalised."""
    return normalised(images.permute(0, 3, 1, 2).float() / 255)


def _crop(pixels: Tensor, zoom: tuple[float, float]) -> Tensor:
    """A part of each image, mirrored or not, resized to all of it; what lies outside of an image mirrors its inside."""
    count = len(pixels)
    size = torch.empty(count, device=pixels.device).uniform_(*zoom)
    mirror = torch.randint(0, 2, (count,), device=pixels.device) * 2 - 1
    shift = torch.empty(2, count, device=pixels.device).uniform_(-1, 1) * (1 - size).abs()
    nothing = torch.zeros_like(size)
    affine = torch.stack([size * mirror, nothing, shift[0], nothing, size, shift[1]], 1).view(count, 2, 3)
    grid = functional.affine_grid(affine, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
