"""Regions of images: tokens, boxes and masks, as weights of a model's tokens.

A region says how much each token counts; its weights add up to one, as those of a mean do. So what a model makes of a
region is in the same units as what it makes of the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unweave.components import Grid
from unweave.errors import ArgumentError

Weigh = Callable[[Grid, tuple[int, int]], Float[Tensor, " token"]]


@dataclass(frozen=True)
class Region:
    """A part of an image.

    Attributes:
        name: What it is called in tables, such as `token 3,4`.
        weigh: The weight of each token, from the tokens' grid and the height and width of the model's images in pixels.
    """

    name: str
    weigh: Weigh


def token(row: int, column: int) -> Region:
    """One token of the grid, by its row and column, from 0."""

    def weigh(grid: Grid, size: tuple[int, int]) -> Tensor:
        if not (row in range(grid.height) and column in range(grid.width)):
            raise ArgumentError(
                f"There is no token in row {row}, column {column}.",
                cure=f"use rows 0 to {grid.height - 1} and columns 0 to {grid.width - 1}",
            )
        return _over_cells(grid, torch.eye(grid.height * grid.width)[int(row * grid.width + column)])

    return Region(f"token {row},{column}", weigh)


def prefix(number: int = 0) -> Region:
    """A token that lies nowhere in the image: the class token, or a register."""

    def weigh(grid: Grid, size: tuple[int, int]) -> Tensor:
        if not 0 <= number < grid.prefix:
            raise ArgumentError(
                f"There is no token {number} before the grid.",
                cure=f"use a number below {grid.prefix}" if grid.prefix else "use tokens of the grid",
            )
        return torch.tensor([float(cell == -1 - number) for cell in grid.cells])

    return Region(f"prefix {number}", weigh)


def box(left: float | int, top: float | int, right: float | int, bottom: float | int) -> Region:
    """A rectangle, in pixels of the image as the model gets it; a token counts by how much of it lies inside."""

    def weigh(grid: Grid, size: tuple[int, int]) -> Tensor:
        if not (0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]):
            raise ArgumentError(
                f"There is no box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}).",
                cure=f"give left < right up to {size[1]} and top < bottom up to {size[0]}, in pixels",
            )
        down = _overlap(top, bottom, size[0], grid.height)
        across = _overlap(left, right, size[1], grid.width)
        return _over_cells(grid, torch.outer(down, across).flatten())

    return Region(f"box {left:g},{top:g},{right:g},{bottom:g}", weigh)


def mask(inside: np.ndarray | Tensor, name: str = "mask") -> Region:
    """What a mask says is inside.

    Args:
        inside: `[height, width]`, true (or how much, from 0 to 1) where a pixel is inside; of the image as the model
            gets it, at any resolution.
        name: What to call it.
    """
    try:
        values = torch.as_tensor(np.asarray(inside), dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"A {type(inside).__name__} is no mask.", cure="give an array [height, width] from 0 to 1"
        ) from error

    def weigh(grid: Grid, size: tuple[int, int]) -> Tensor:
        if values.dim() != 2:
            raise ArgumentError(
                f"A mask is [height, width], not {list(values.shape)}.", cure="give one mask for each region"
            )
        if not bool(torch.isfinite(values).all()) or float(values.min()) < 0:
            raise ArgumentError(
                "A mask has values that are below zero or not finite.",
                where=name,
                cure="give true and false, or how much from 0 to 1",
            )
        if not float(values.max()) > 0:
            raise ArgumentError("Nothing is inside the mask.", where=name, cure="leave this region out")
        rows = torch.stack([_overlap(row, row + 1, values.shape[0], grid.height) for row in range(values.shape[0])])
        columns = torch.stack([_overlap(row, row + 1, values.shape[1], grid.width) for row in range(values.shape[1])])
        return _over_cells(grid, (rows.T @ values @ columns).flatten())

    return Region(name, weigh)


def named(text: str) -> Region:
    """The region of a name: `token 3,4`, `prefix 0` or `box 10,20,60,80`, as tables write them.

    Raises:
        ArgumentError: It names none.
    """
    kind, _, given = text.strip().partition(" ")
    kinds: dict[str, Callable[..., Region]] = {"token": token, "prefix": prefix, "box": box}
    number = float if kind == "box" else int
    try:
        return kinds[kind](*(number(part) for part in given.split(",")))
    except (KeyError, ValueError, TypeError) as error:
        raise ArgumentError(
            f"There is no region {text!r}.",
            cure="write 'token ROW,COLUMN', 'prefix NUMBER' or 'box LEFT,TOP,RIGHT,BOTTOM'; of photographs 'mask FILE'",
        ) from error


def check(names: Sequence[str]) -> tuple[str, ...]:
    """Names of regions of photographs, which may also be `mask FILE`.

    Raises:
        ArgumentError: There are none, one comes twice, or it names none.
    """
    listed = [name.strip() for name in names]
    twice = next((name for name in listed if listed.count(name) > 1), None) if len(set(listed)) < len(listed) else None
    if not listed or twice is not None:
        raise ArgumentError(
            "There are no regions." if twice is None else f"The region {twice!r} comes twice.",
            cure="give each of them once, such as 'token 3,4'",
        )
    for name in listed:
        if not (name.startswith("mask ") and name.removeprefix("mask ").strip()):
            named(name)
    return tuple(listed)


def tokens(grid: Grid) -> list[Region]:
    """Every token of a grid, row by row."""
    return [token(row, column) for row in range(grid.height) for column in range(grid.width)]


def _overlap(start: float | int, end: float | int, length: int, cells: int) -> Float[Tensor, " cell"]:
    """How much of each cell of a line of this length lies between two places."""
    edges = torch.linspace(0, length, cells + 1, dtype=torch.float64)
    return (torch.clamp(edges[1:], max=end) - torch.clamp(edges[:-1], min=start)).clamp_min(0).float()


def _over_cells(grid: Grid, cells: Float[Tensor, " cell"]) -> Float[Tensor, " token"]:
    """Weights of cells as weights of tokens, which add up to one."""
    padded = torch.cat([cells, torch.zeros(1)])
    weights = padded[torch.tensor([cell if cell >= 0 else len(cells) for cell in grid.cells])]
    return weights / weights.sum()


def weights_of(
    regions: str | Region | Sequence[Region | str] | Sequence[Sequence[Region | str]],
    grid: Grid,
    size: tuple[int, int],
    images: int,
) -> tuple[Float[Tensor, "image region token"], tuple[tuple[str, ...], ...]]:
    """The weights of regions, and their names, for each image.

    Args:
        regions: The same for all images, or as many for each image (see `Region`).
        grid: Where tokens lie.
        size: Height and width of the model's images, in pixels.
        images: How many there are.

    Raises:
        ArgumentError: A region lies outside of the image, there are none, or images have different numbers of them.
    """
    if not isinstance(regions, (str, Region, Sequence)):
        raise ArgumentError(
            f"A {type(regions).__name__} is no region.",
            cure="give regions such as unweave.regions.token(3, 4), or weights of tokens as a torch tensor",
        )
    listed = [regions] if isinstance(regions, (str, Region)) else list(regions)
    if not listed:
        raise ArgumentError("There are no regions.", cure="give at least one, such as unweave.regions.token(3, 4)")
    same = [region for region in listed if isinstance(region, (str, Region))]
    several = [same] if same else [list(own) for own in listed if not isinstance(own, (str, Region))]
    odd = next((region for own in several for region in own if not isinstance(region, (str, Region))), None)
    if odd is not None:
        raise ArgumentError(
            f"A {type(odd).__name__} is no region.",
            cure="give regions such as unweave.regions.token(3, 4), or their names",
        )
    each = [[named(region) if isinstance(region, str) else region for region in own] for own in several]
    if len(each) not in (1, images) or len({len(own) for own in each}) > 1 or not each[0]:
        raise ArgumentError(
            f"Regions are given for {len(each)} images, {[len(own) for own in each][:8]} of them, not for {images}.",
            cure="give the same number of regions for each image, or one list for all",
        )
    weights = torch.stack([torch.stack([region.weigh(grid, size) for region in own]) for own in each])
    names = tuple(tuple(region.name for region in own) for own in each)
    return weights.expand(images, -1, -1), names * (images if len(each) == 1 else 1)
