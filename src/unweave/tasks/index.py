"""An index: what some components say of each image, as rows of length one, and exact search among them.

    index = Index.build(store, places)                  # before alignment: for images
    index = Index.build(seen, places)                   # aligned: for texts
    index.search(space.encode(["something red"]), 10)

Contributions have a large part that is the same for every image, and cosines with it are all near one. So the mean of
the images is subtracted first (`centred`); without that, an index is what was published.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.alignment import Aligner
from unweave.components import Component
from unweave.errors import ArgumentError, DataError, StoreError
from unweave.files.fields import typed
from unweave.files.pair import Kind, PairWriter, read_pair
from unweave.progress import OnProgress, silent
from unweave.saving import components_of
from unweave.view import View

KIND = Kind("index", "unweave index", 1, "name a folder that `Index.save` wrote")
TENSORS, CARD = "index.safetensors", "index.json"

_BYTES = 2**27
"""Of contributions, in memory at a time."""

_AT_ONCE, _QUERIES = 2**16, 64
"""Rows that are compared at a time, and with how many queries."""

_ONCE_MORE = 2**12
"""Rows that are compared once more at a time."""


@dataclass(frozen=True, eq=False)
class Hits:
    """What a search found, best first; images that are equally near in the order of the index.

    Attributes:
        rows: Of the index.
        similarity: Cosines.
    """

    rows: Int[np.ndarray, "query hit"]
    similarity: Float[np.ndarray, "query hit"]


@dataclass(frozen=True, eq=False)
class Index:
    """Rows of length one, and whose they are.

    Attributes:
        rows: What is compared; zero for an image about which the components say what they say of all.
        mean: What was subtracted from every image; zeros if the index is not centred.
        ids: The images.
        identity: What the rows are of: `model`, `weights_hash`, `preprocessing`, `level`, `components` (None for the
            representation itself), `aligner` (None before alignment; else `space`, `space_hash`, and a hash of the
            maps), `centred`, and fingerprints of the images (`data`).
    """

    rows: Float[Tensor, "image dim"]
    mean: Float[Tensor, " dim"]
    ids: tuple[str, ...]
    identity: Mapping[str, Any]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.ids)

    @property
    def components(self) -> tuple[Component, ...] | None:
        """What was summed; None for the representation itself."""
        known = self.identity["components"]
        return None if known is None else tuple(Component(**fields) for fields in known)

    @cached_property
    def places(self) -> dict[str, int]:
        """The row of each image."""
        return {name: row for row, name in enumerate(self.ids)}

    @classmethod
    def build(
        cls,
        view: View,
        *,
        representation: bool = False,
        centred: bool = True,
        path: str | PathLike[str] | None = None,
        on_progress: OnProgress = silent,
    ) -> Index:
        """Sum the components of a view for every image, once for the mean and once for the rows.

        Memory: a view's budget of contributions, and the rows (`image x dim` float32), unless there is a path.

        Args:
            view: The images and components; before alignment for images, through an aligner for texts.
            representation: Whether the whole representation is compared, rather than the sum of the components.
            centred: Whether the mean of these images is subtracted.
            path: A folder to write to, as `save` does, while the rows come; they stay on disk.
            on_progress: Called as images are summed, in either pass.

        Raises:
            DataError: There are fewer than two images.
            StoreError: The place cannot be written.
        """
        if len(view) < 2:
            raise DataError(
                "There is one image only." if len(view) else "There are no images to choose from.",
                where=str(view.source),
                cure="search in two images at least",
            )

        def pieces(done: int) -> Iterator[Float[Tensor, "image dim"]]:
            for part in view.batches(max(1, _BYTES // (4 * max(view.dim, view.source.dim)))):
                yield part.representation if representation else part.sum()
                done += len(part)
                on_progress("summing components", done, (1 + centred) * len(view))

        mean = torch.zeros(view.dim)
        if centred:
            total = torch.zeros(view.dim, dtype=torch.float64)
            for piece in pieces(0):
                total += piece.sum(0, dtype=torch.float64)
            mean = (total / len(view)).float()
        components = None if representation else [asdict(component) for component in view.components]
        identity = _identity(view) | {"components": components, "centred": centred}
        rows = (_unit(piece - mean, piece) for piece in pieces(len(view) * centred))
        if path is not None:
            _write(Path(path), view.ids, identity, mean, rows)
            return cls.load(path)
        return cls(torch.cat(list(rows)), mean, view.ids, identity)

    def query(self, values: Float[Tensor, "query dim"]) -> Float[Tensor, "query dim"]:
        """What the index would hold of these images: less its mean, and of length one."""
        return _unit(values.float() - self.mean, values)

    def search(self, queries: Float[Tensor, "query dim"], count: int) -> Hits:
        """The nearest images of each query, by cosine, compared with every one.

        Rows are compared in float32, and those that could be among the nearest once more in float64, where equal
        rows come out equal: so neither the order of work nor the machine decides between them.

        Memory: some 65,536 x 64 similarities, whatever the size of the index.

        Args:
            queries: Of any length. Images come from `query`, texts from `TextSpace.encode`: a text has no mean.
            count: How many; all that there are, if there are fewer.

        Raises:
            StoreError: The count is not positive, or the queries have another width.
        """
        self._check(queries, count)
        asked = _unit(queries.float(), queries)
        parts = [self._nearest(part, count) for part in asked.split(_QUERIES)]
        rows, similarity = (np.concatenate(one) for one in zip(*parts, strict=True))
        return Hits(rows, similarity)

    def _check(self, queries: Float[Tensor, "query dim"], count: int) -> None:
        if count < 1:
            raise ArgumentError(f"{count} images cannot be asked for.", cure="ask for one at least")
        if queries.shape[1] != self.rows.shape[1]:
            raise ArgumentError(
                f"The queries have {queries.shape[1]} numbers and the rows {self.rows.shape[1]}.",
                cure="search for texts in an aligned index, and for images in one of the model's own space",
            )

    def _nearest(self, queries: Float[Tensor, "query dim"], count: int) -> tuple[np.ndarray, np.ndarray]:
        count = min(count, len(self.rows))
        best = [_Best(query, count) for query in queries.double()]
        slack = self.rows.shape[1] * torch.finfo(torch.float32).eps  # of a float32 product of two such rows, at most
        for start in range(0, len(self.rows), _AT_ONCE):
            rows = self.rows[start : start + _AT_ONCE]
            for own, near in zip(best, (rows @ queries.T).T.contiguous(), strict=True):
                places = (near >= own.floor - 2 * slack).nonzero()[:, 0]
                if len(places) > count:
                    found = near[places]
                    places = places[found >= found.topk(count).values[-1] - 2 * slack]
                for some in places.split(_ONCE_MORE):
                    own.add(start + some.numpy(), rows[some])
        return np.stack([own.rows for own in best]), np.stack([own.similarity for own in best])

    def faiss(self, factory: str = "Flat") -> Faiss:
        """The same rows in an index of faiss, for more images than can be compared one by one.

        Args:
            factory: In faiss' own words: `Flat` finds what `search` finds; `IVF4096,Flat` and its like are quicker,
                and miss some.

        Raises:
            ArgumentError: The package faiss is not installed, or refuses these words.
        """
        try:
            import faiss
        except ImportError as error:
            raise ArgumentError("faiss is not installed.", cure="pip install 'unweave[search]'") from error
        values = self.rows.contiguous().numpy()
        try:
            found = faiss.index_factory(values.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            found.train(values)
        except RuntimeError as error:
            raise ArgumentError(
                f"faiss makes no index of {len(self)} images with {factory!r}.", cure="use `Flat`, or see its wiki"
            ) from error
        for start in range(0, len(values), _AT_ONCE):
            found.add(values[start : start + _AT_ONCE])
        return Faiss(self, found)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the rows and a card into a folder; returns the rows' file.

        Raises:
            UnweaveError: They cannot be written.
        """
        return _write(Path(path), self.ids, self.identity, self.mean, self.rows.split(_AT_ONCE))

    @classmethod
    def load(cls, path: str | PathLike[str], view: View | None = None) -> Index:
        """Read what `save` wrote; rows are mapped from the file, and read when they are used.

        Args:
            path: The folder.
            view: The contributions that the index has to belong to; None if that does not matter.

        Raises:
            StoreError: A file is missing, damaged, of a newer version, or does not belong to the other or to the
                contributions; the message names the field.
        """
        folder = Path(path)
        known, tensors = read_pair(folder / TENSORS, folder / CARD, KIND)
        with KIND.reading(folder):
            ids, rows, mean = typed(tuple[str, ...], known.pop("ids"), "ids"), tensors["rows"], tensors["mean"]
            if rows.shape != (len(ids), *mean.shape) or mean.dim() != 1:
                raise ValueError(f"{len(ids)} images have rows of the shape {list(rows.shape)}")
            components_of(known["components"] or ())
            typed(str, known["level"], "level")
        index = cls(rows, mean, ids, known)
        if view is not None:
            index.agree(view, where=str(folder))
        return index

    def agree(self, view: View, *, where: str = "the index") -> None:
        """Refuse contributions, or an aligner, that the rows are not of.

        Raises:
            StoreError: A field differs; the message names it and both values.
        """
        for name, value in _identity(view).items():
            if self.identity.get(name) != value:
                raise StoreError(
                    f"The index is of another {name.replace('_', ' ')}: {self.identity.get(name)!s:.80}, "
                    f"not {value!s:.80}.",
                    where=f"{where}, field `{name}`",
                    cure="build it again",
                )


@dataclass(frozen=True, eq=False)
class Faiss:
    """An index in the hands of faiss.

    Attributes:
        index: Ours.
        found: Theirs; its own settings, such as `nprobe`, can be set.
    """

    index: Index
    found: Any

    def search(self, queries: Float[Tensor, "query dim"], count: int) -> Hits:
        """As `Index.search`; where faiss finds fewer images, the row is -1 and the similarity -1.

        Of images that are equally near, faiss chooses those that stay, if not all of them can.
        """
        self.index._check(queries, count)
        count = min(count, len(self.index))
        asked = _unit(queries.float(), queries)
        _, rows = self.found.search(asked.numpy(), min(2 * count, len(self.index)))  # what rounding may have swapped
        hits = Hits(np.full((len(rows), count), -1, np.int64), np.full((len(rows), count), -1.0))
        for number, (query, own) in enumerate(zip(asked.double(), rows, strict=True)):
            best, there = _Best(query, count), np.sort(own[own >= 0])
            best.add(there, self.index.rows[torch.from_numpy(there)])
            hits.rows[number, : len(best.rows)] = best.rows
            hits.similarity[number, : len(best.rows)] = best.similarity
        return hits


class _Best:
    """The nearest rows so far, compared in float64."""

    def __init__(self, query: Float[Tensor, " dim"], count: int) -> None:
        self.query, self.count = query, count
        self.rows, self.similarity = np.empty(0, np.int64), np.empty(0)

    @property
    def floor(self) -> float:
        """What a row has to reach."""
        return -2.0 if len(self.rows) < self.count else float(self.similarity[-1])

    def add(self, numbers: np.ndarray, rows: Float[Tensor, "row dim"]) -> None:
        """Compare more rows."""
        near = (rows.double() * self.query).sum(1).numpy()  # row by row, so that equal rows are equal
        numbers, near = np.concatenate([self.rows, numbers]), np.concatenate([self.similarity, near])
        order = np.lexsort((numbers, -near))[: self.count]
        self.rows, self.similarity = numbers[order], near[order]


def _identity(view: View) -> dict[str, Any]:
    """What a view says of itself, as it is after JSON."""
    origin, aligner = view.origin, None
    if isinstance(view.aligner, Aligner):
        of, digest = view.aligner.identity, hashlib.sha256(view.aligner.maps.contiguous().numpy().tobytes())
        aligner = {"space": of["space"], "space_hash": of["space_hash"], "maps": digest.hexdigest()}
    about = {
        "model": view.model,
        "weights_hash": origin.weights_hash if origin else "",
        "preprocessing": origin.preprocessing if origin else {},
        "level": origin.level if origin else "",
        "aligner": aligner,
        "data": [listing.fingerprint for listing in origin.images] if origin else [],
    }
    return json.loads(json.dumps(about))


def _unit(values: Float[Tensor, "image dim"], whole: Float[Tensor, "image dim"]) -> Float[Tensor, "image dim"]:
    """Of length one; zero where nothing is left of the whole but its rounding."""
    length = values.norm(dim=1, keepdim=True)
    varies = length > 1e-6 * whole.norm(dim=1, keepdim=True)
    return torch.where(varies, values / length.clamp_min(1e-30), 0.0)


def _write(
    folder: Path, ids: Sequence[str], identity: Mapping[str, Any], mean: Tensor, pieces: Iterable[Tensor]
) -> Path:
    """The pair of files; rows come one piece after the other."""
    layout = {"mean": (torch.float32, (len(mean),)), "rows": (torch.float32, (len(ids), len(mean)))}
    with PairWriter(folder / TENSORS, folder / CARD, KIND, layout) as files:
        files.append("mean", mean)
        for piece in pieces:
            files.append("rows", piece)
        return files.finish({**identity, "ids": list(ids)})
