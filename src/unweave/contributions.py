"""What a plan returns for one batch: every component's contribution, beside what they add up to.

They are kept on disk as a pair of files, tensors beside a readable card (see `unweave.saving`):

    contributions.save("out")                    # out/contributions.safetensors and out/contributions.json
    contributions = Contributions.load("out")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.components import Component, Selection, select
from unweave.errors import ArgumentError


@dataclass(frozen=True)
class Origin:
    """Where contributions come from: what has to agree before two sets of them may be compared.

    Attributes:
        model: The model's id.
        weights_hash: The hash of its weights.
        preprocessing: How pictures became inputs, ready for JSON.
        level: How finely the branches were split.
        selection: The components asked for, as text; None for all.
        computed_in: The numbers that the model computed in.
        skipped: Images that were left out, each as (id, reason).
    """

    model: str
    weights_hash: str
    preprocessing: Mapping[str, object]
    level: str
    selection: str | None = None
    computed_in: str = "float32"
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Contributions:
    """The representation of a batch of images as a sum over components (method: RepDecompose, z = sum_i c_i).

    Attributes:
        values: What each component adds to the representation, `[image, component, dim]`.
        components: One `Component` for each column of `values`, in execution order.
        ids: One name per image, in row order.
        representation: What the model itself computed, `[image, dim]`.
        error: The relative error of the sum for each image, `|sum_i c_i - z| / |z|`, `[image]`.
        tolerance: The largest error that was allowed.
        origin: The model and settings they come from, where known.
    """

    values: Float[Tensor, "image component dim"]
    components: tuple[Component, ...]
    ids: tuple[str, ...]
    representation: Float[Tensor, "image dim"]
    error: Float[Tensor, " image"]
    tolerance: float = field(default=1e-5)
    origin: Origin | None = None

    def __getitem__(self, selection: Selection) -> Contributions:
        """The same batch with only the chosen components (they no longer add up to the representation).

        Raises:
            ArgumentError: The selection matches nothing, or is a number.
        """
        if isinstance(selection, (int, slice)):
            raise ArgumentError(
                "Components are chosen by their names, not by numbers.",
                cure=f"contributions[contributions.components[{_shown(selection)}]] for components by their place, "
                f"contributions.values[{_shown(selection)}] for images",
            )
        keep = select(self.components, selection)
        return replace(self, values=self.values[:, keep], components=tuple(self.components[index] for index in keep))

    def share(self) -> Float[Tensor, " component"]:
        """Each component's share of the representation, averaged over images: `<c_i, z> / |z|^2`.

        The shares sum to one. A share may be negative: such a component writes against the representation.
        """
        # Half precision has too few digits to add up thousands of products.
        precise = torch.promote_types(self.values.dtype, torch.float32)
        z = self.representation.to(self.values.device, precise)
        squared = z.square().sum(-1).clamp_min(1e-30)
        products = torch.einsum("ncd,nd->nc", self.values.to(precise), z)
        return (products / squared[:, None]).mean(0)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write them as tensors and a card (see `unweave.saving`), replacing what is there.

        Args:
            path: A folder, or a file name ending in `.safetensors`.

        Returns:
            The tensors' file; the card lies beside it, ending in `.json`.

        Raises:
            UnweaveError: The place cannot be written, or lacks the room.
        """
        from unweave import saving

        return saving.save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Contributions:
        """Read what `save` or a `ContributionsWriter` wrote; values stay on disk until they are used.

        Args:
            path: The folder, the tensors' file or the card.

        Raises:
            UnweaveError: A file is missing, damaged, of an unknown version, or does not belong to the other.
        """
        from unweave import saving

        return saving.load(path)

    def __repr__(self) -> str:
        """One line: shape, memory, type, error and mean length of a contribution."""
        images, components, dim = self.values.shape
        size = self.values.numel() * self.values.element_size() / 2**20
        worst = float(self.error.max()) if self.error.numel() else 0.0
        return (
            f"Contributions[{images} images, {components} components, {dim} dim] {size:.1f} MiB "
            f"{str(self.values.dtype).removeprefix('torch.')} error<={worst:.1e} "
            f"norm={float(self.values.norm(dim=-1).mean()):.3g}"
        )


def _shown(place: int | slice) -> str:
    if isinstance(place, int):
        return str(place)
    parts = [place.start, place.stop] if place.step is None else [place.start, place.stop, place.step]
    return ":".join("" if part is None else str(part) for part in parts)


@dataclass(frozen=True, eq=False)
class Scores:
    """Inner products of every component's contribution with given directions, without the vectors.

    Attributes:
        values: `<c_i, u_k>`, `[image, component, direction]`.
        components: One `Component` for each column.
        ids: One name per image.
        representation: `[image, dim]`.
        error: `|sum_i <c_i, u> - <z, u>| / (|z| |u|)`, the largest over directions, `[image]`.
        tolerance: The largest error that was allowed.
    """

    values: Float[Tensor, "image component direction"]
    components: tuple[Component, ...]
    ids: Sequence[str]
    representation: Float[Tensor, "image dim"]
    error: Float[Tensor, " image"]
    tolerance: float = field(default=1e-5)
