"""An aligner: what takes each component's contributions into a text space, kept as safetensors beside a JSON card."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.alignment.objective import defect
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import AlignmentError
from unweave.files.fields import typed
from unweave.files.pair import Kind, read_pair, write_pair
from unweave.saving import components_of
from unweave.view import Origin

KIND = Kind("aligner", "unweave aligner", 1, "name a folder that `align` wrote", AlignmentError)
IDENTITY = ("model", "weights_hash", "preprocessing", "level", "space", "space_hash", "space_loading")
"""What the card says of what an aligner belongs to, at least."""

TENSORS, CARD = "aligner.safetensors", "aligner.json"


@dataclass(frozen=True, eq=False)
class Aligner:
    """One linear map for each component, and a bias that they share.

    Attributes:
        maps: `[component, width, dim]`.
        bias: `[dim]`.
        components: Whose maps these are.
        identity: The model and space that they are of (`IDENTITY`), and fingerprints of the images (`data`).
        measured: How good they are, ready for JSON.
    """

    maps: Float[Tensor, "component width dim"]
    bias: Float[Tensor, " dim"]
    components: tuple[Component, ...]
    identity: Mapping[str, Any]
    measured: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, contributions: Contributions) -> Float[Tensor, "image component dim"]:
        """Contributions in the text space; their sum and `bias` are the aligned representation.

        Raises:
            StoreError: They are of another model, level or preprocessing, or of a component without a map.
        """
        rows = self.rows(contributions)
        values = contributions.values.to(self.maps.dtype)
        return torch.einsum("ncw,cwd->ncd", values, self.maps[rows])

    def representation(self, contributions: Contributions) -> Float[Tensor, "image dim"]:
        """The aligned representation: the sum of all aligned contributions, and the bias.

        Raises:
            AlignmentError: As for a call, or components are missing.
        """
        rows = self.rows(contributions)
        if len(rows) < len(self.components):
            raise AlignmentError("The sum needs all components.", cure="read them without a selection")
        return torch.einsum("ncw,cwd->nd", contributions.values.to(self.maps.dtype), self.maps[rows]) + self.bias

    def rows(self, contributions: Contributions) -> list[int]:
        """Which map each component has.

        Raises:
            StoreError: As for a call.
        """
        return self.places(contributions.components, contributions.origin)

    def places(self, components: Sequence[Component], origin: Origin | None) -> list[int]:
        """Which map each of these components has; raises as `rows` does."""
        if origin is not None:
            own = {name: getattr(origin, name) for name in ("model", "weights_hash", "preprocessing", "level")}
            for name, value in json.loads(json.dumps(own)).items():
                if name in self.identity and value != self.identity[name]:
                    raise AlignmentError(
                        f"The aligner is of another {name.replace('_', ' ')}: {self.identity[name]!s:.80}, "
                        f"not {value!s:.80}.",
                        where=f"field `{name}`",
                        cure="align this model",
                    )
        place = {component: row for row, component in enumerate(self.components)}
        unknown = next((one for one in components if one not in place), None)
        if unknown is not None:
            raise AlignmentError(
                f"The aligner has no map for the component {unknown}.", cure="use the selection that it was fitted to"
            )
        return [place[component] for component in components]

    def defects(self) -> Float[Tensor, " component"]:
        """How far each map is from an isometry: the Frobenius norm of its defect, over that of the identity."""
        found = torch.stack([torch.linalg.matrix_norm(defect(own[None])[0]) for own in self.maps])
        return found / min(self.maps.shape[1:]) ** 0.5

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write both files into a folder; returns the tensors' file.

        Raises:
            AlignmentError: They cannot be written.
        """
        folder = Path(path)
        components = [asdict(component) for component in self.components]
        known = {**self.identity, "measured": self.measured, "components": components}
        return write_pair(folder / TENSORS, folder / CARD, KIND, {"maps": self.maps, "bias": self.bias}, known)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Aligner:
        """Read what `save` wrote.

        Raises:
            AlignmentError: A file is missing, damaged, of a newer version, or does not belong to the other.
        """
        folder = Path(path)
        known, tensors = read_pair(folder / TENSORS, folder / CARD, KIND)
        with KIND.reading(folder / CARD):
            for name in IDENTITY:
                typed(dict[str, Any] if name in ("preprocessing", "space_loading") else str, known[name], name)
            components, maps, bias = components_of(known.pop("components")), tensors["maps"], tensors["bias"]
            if maps.dim() != 3 or len(maps) != len(components) or bias.shape != maps.shape[2:]:
                raise ValueError(f"{len(components)} maps and a bias have shapes {maps.shape}, {bias.shape}")
            measured = typed(dict[str, Any], known.pop("measured"), "measured")
            return cls(maps, bias, components, known, measured)

    def push(self, repository: str, **options: Any) -> str:
        """Upload both files to the Hugging Face hub.

        Args:
            repository: `ORG/NAME`; made where there is none.
            options: Of `huggingface_hub.HfApi.upload_folder`.

        Returns:
            The address.

        Raises:
            AlignmentError: The hub refuses it, or does not answer.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            try:
                api = HfApi()
                api.create_repo(repository, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder, **options))
            except (OSError, ValueError, HfHubHTTPError) as error:
                raise AlignmentError(
                    f"The aligner cannot be uploaded: {error}.",
                    where=repository,
                    cure="log in with `hf auth login`, and name it ORG/NAME",
                ) from error
