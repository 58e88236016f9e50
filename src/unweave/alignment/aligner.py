"""An aligner: what takes each component's contributions into a text space, kept as safetensors beside a JSON card."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from unweave.alignment.objective import defect
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import AlignmentError
from unweave.figures import Curve, curves_figure
from unweave.files.fields import record, typed
from unweave.files.pair import Kind
from unweave.loading import Loading
from unweave.results import Result, rich_table
from unweave.source import Origin
from unweave.text import TextSpace
from unweave.text.behaviour import Behaviour, recorded

IDENTITY = ("model", "weights_hash", "preprocessing", "level", "space", "space_hash", "space_loading")
"""What the card says of what an aligner belongs to, at least."""

CARD = "aligner.json"

_GIVEN = "Aligner.load(FOLDER, space=TextSpace.from_functions(...))"

_CURVES = {"held-out images": "held_out", "images that were fitted": "train"}

_PATH = pa.schema(
    [("step", pa.string()), *((name, pa.float64()) for name in ("seconds", "train", "held_out", "penalty"))]
)


@dataclass(frozen=True, eq=False, repr=False)
class Aligner(Result):
    """One linear map for each component, and a bias that they share.

    Attributes:
        maps: `[component, width, dim]`.
        bias: `[dim]`.
        components: Whose maps these are.
        identity: The model and space that they are of (`IDENTITY`), and fingerprints of the images (`data`).
        measured: How good they are, ready for JSON.
        space: The text space that they lead to, where it was made of functions: it is not saved with the maps, and has
            to be given when they are loaded.
    """

    name = "aligner"

    maps: Float[Tensor, "component width dim"]
    bias: Float[Tensor, " dim"]
    components: tuple[Component, ...]
    identity: Mapping[str, Any]
    measured: Mapping[str, Any] = field(default_factory=dict)
    space: TextSpace | None = field(default=None, kw_only=True, metadata={"saved": False})

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

    def check(self, space: TextSpace) -> None:
        """Refuse a text space that is not the one that the maps lead to.

        A space of a library is known by its weights, one of functions by the vectors that it makes of the texts and
        images that it was asked for when the maps were fitted.

        Raises:
            AlignmentError: It is another.
        """
        another = f"The aligner leads to another text space ({self.identity.get('space', 'unnamed')})"
        if self.of_functions:
            difference = space.difference(record(Behaviour, self.identity["space_loading"]))
            if difference is not None:
                raise AlignmentError(
                    f"{another} than {space.id}: {difference}.",
                    where="field `space_loading` of the aligner",
                    cure="give the functions and the preprocessing that it was fitted with, or align again",
                )
        elif space.weights_hash != self.identity.get("space_hash", space.weights_hash):
            raise AlignmentError(
                f"{another}: {space.id} has other weights.",
                where="field `space_hash` of the aligner",
                cure="use the space that it was fitted to, or align again",
            )

    def defects(self) -> Float[Tensor, " component"]:
        """How far each map is from an isometry: the Frobenius norm of its defect, over that of the identity."""
        found = torch.stack([torch.linalg.matrix_norm(defect(own[None])[0]) for own in self.maps])
        return found / min(self.maps.shape[1:]) ** 0.5

    def as_code(self) -> str:
        """The Python that loads it again, where it came from a folder."""
        folder = getattr(self, "_folder", None)
        given = ", space=space" if self.of_functions else ""
        return f"unweave.Aligner.load({folder!r}{given})" if folder else "aligner"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that name it; a word to fill in where its text space has to be given."""
        return ["--space", "SPACE" if self.of_functions else str(getattr(self, "_folder", "ALIGNER"))]

    def about(self) -> dict[str, Any]:
        """The card, what the maps belong to, and how good they are."""
        return {**self.card, **self.identity, "measured": dict(self.measured)}

    def table(self) -> pa.Table:
        """Where the solver stood after each step: both terms of the objective, on either side."""
        return pa.Table.from_pylist(list(self.measured.get("path", ())), _PATH)

    def figure(self) -> Figure:
        """The first term of the objective after each step, beside what the controls reach.

        Raises:
            ArgumentError: The model is the space's own image encoder, so nothing was fitted.
        """
        path = self.measured.get("path", ())
        steps = {what: [float(point[name]) for point in path] for what, name in _CURVES.items()}
        controls = self.measured.get("controls", {})
        flat = {f"control: {name}": value for name, value in controls.items() if isinstance(value, float)}
        curves = [Curve(what, values) for what, values in steps.items()]
        curves += [Curve(what, [value] * len(path), faint=True) for what, value in flat.items()]
        title = f"{self.identity['model']} in {self.identity['space']}"
        return curves_figure({"": curves if path else []}, title=title, across="steps", up="1 - cosine")

    def told(self) -> list[RenderableType]:
        """How good the fit is, beside its controls."""
        rows: list[list[str | Text]] = list(_measured(self.measured)) if self.measured else []
        return [
            rich_table(f"{self.identity['model']} in {self.identity['space']}", {"": "left", " ": "right"}, rows),
            Text(f"\n{len(self.components):,} maps"),
            *([Text(f"the text space is made of functions, and has to be given: {_GIVEN}")] if self.incomplete else []),
        ]

    @property
    def of_functions(self) -> bool:
        """Whether the text space was made of functions, so that nothing can load it again."""
        return recorded(self.identity.get("space_loading", {}))

    @property
    def incomplete(self) -> bool:
        """Whether the text space was made of functions and has not been given, so that there are no words."""
        return self.space is None and self.of_functions

    @classmethod
    def load(cls, folder: str | os.PathLike[str], space: TextSpace | None = None) -> Aligner:
        """Read what `save` wrote.

        Args:
            folder: Where it was saved.
            space: The text space that the maps lead to. It has to be given if it was made of functions
                (`TextSpace.from_functions`) and words are asked for; any other is loaded by its id.

        Raises:
            AlignmentError: A file is missing, damaged, of a newer version, or does not belong to the other; or the text
                space is another than the one that the maps were fitted to.
        """
        aligner = super().load(folder)
        object.__setattr__(aligner, "_folder", os.fspath(folder))
        with cls._kind().reading(Path(folder) / CARD):
            for name in IDENTITY:
                typed(
                    dict[str, Any] if name in ("preprocessing", "space_loading") else str, aligner.identity[name], name
                )
            maps, bias, count = aligner.maps, aligner.bias, len(aligner.components)
            if maps.dim() != 3 or len(maps) != count or bias.shape != maps.shape[2:]:
                raise ValueError(f"{count} maps and a bias have shapes {maps.shape}, {bias.shape}")
            typed(dict[str, Any], dict(aligner.measured), "measured")
            known = aligner.identity["space_loading"]
            if aligner.of_functions:
                record(Behaviour, known, "space_loading.")
            else:
                record(Loading, {"id": aligner.identity["space"], **known}, "space_loading.")
        if space is not None:
            aligner.check(space)
            object.__setattr__(aligner, "space", space)
        return aligner

    @classmethod
    def _kind(cls) -> Kind:
        return Kind("aligner", "unweave aligner", 1, "name a folder that `align` wrote", AlignmentError)

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
            self._write(Path(folder))
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


def _measured(measured: Mapping[str, Any]) -> Iterator[list[str | Text]]:
    """What is worth a look of what was measured."""
    if "identity" in measured:
        yield ["the model is the space's own image encoder:", "nothing had to be aligned"]
    else:
        objective = measured["objective"]
        yield ["1 - cosine, held-out images", f"{objective['held out']:.4f}"]
        yield ["1 - cosine, images that were fitted", f"{objective['train']:.4f}"]
        yield ["penalty", f"{objective['penalty']:.4f}"]
    for name, value in measured.get("controls", {}).items():
        if not isinstance(value, dict):
            yield [f"control: {name}", f"{value:.4f}"]
        elif "left out" in value:
            yield [f"control: {name}", str(value["left out"]).splitlines()[0]]
        else:
            few = f"on {value['images']} images"
            yield [f"control: {name}, {few}", f"{value['random weights']:.4f}"]
            yield [f"this model, {few}", f"{value['this model']:.4f}"]
    if "cosine percentiles" in measured:
        quantiles = measured["cosine percentiles"]
        yield [
            "cosine, 5th, 50th and 95th percentile",
            " ".join(f"{quantiles[share]:.3f}" for share in ("5", "50", "95")),
        ]
    for name, value in measured.get("zero-shot", {}).items():
        if "left out" in value:
            yield [f"zero-shot {name}", str(value["left out"]).splitlines()[0]]
        else:
            text = f"{value['aligned']:.3f}, the space's own encoder {value['space']:.3f}"
            yield [f"zero-shot {name}, {value['classes']} classes", text]
