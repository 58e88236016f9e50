"""Verification: whether a store still is what was written, and whether that is what the model says of the images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from unweave.components import Component
from unweave.errors import StoreError
from unweave.extraction.extractor import Extractor
from unweave.extraction.inputs import Input
from unweave.images import ImageSet
from unweave.models import Model
from unweave.results import Shown
from unweave.store import Store, writer
from unweave.store.blocks import ALTERED

APART = {"float16": 2e-3, "float32": 1e-4}
"""How far a stored contribution may lie from one that is computed anew, relative to the largest of its image."""


@dataclass(repr=False)
class Verification(Shown):
    """What was found.

    Attributes:
        chunks: How many chunks were read and compared with their checksums.
        rows: How many rows were computed anew.
        equal: How many of these are equal to the last bit.
        apart: The largest distance between a stored and a new contribution, relative to the largest of its image.
        faults: What is wrong, each with the file and the component it is in.
    """

    chunks: int = 0
    rows: int = 0
    equal: int = 0
    apart: float = 0.0
    faults: list[str] = field(default_factory=list)

    def about(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return asdict(self)

    def told(self) -> list[RenderableType]:
        """The faults, and how much was compared."""
        return [
            *(Text(f"fault: {fault}", "red") for fault in self.faults),
            Text(
                f"{self.chunks:,} chunks compared with their checksums, {self.rows:,} rows computed anew: "
                f"{self.equal:,} equal to the last bit, the farthest {self.apart:.1e} away. "
                f"{len(self.faults) or 'No'} faults."
            ),
        ]


def verify(
    store: Store,
    *,
    rows: int = 32,
    seed: int = 0,
    device: str = "auto",
    model: Model | None = None,
    images: dict[int, ImageSet] | None = None,
    repair: bool = False,
) -> Verification:
    """Compare every chunk with its checksum, and some rows with what the model says of their images now.

    Args:
        store: What to verify.
        rows: How many rows are computed anew, at least: whole batches as they were, at random; 0 for none.
        seed: Which.
        device: Where to compute.
        model: The model, where the store cannot load it.
        images: The images of each listing, where the store cannot open them.
        repair: Whether damaged blocks lose their records, so that the same extraction makes them anew.

    Raises:
        UnweaveError: The model or the images cannot be loaded, or are not those of the store.
    """
    verification = Verification()
    store = Store(store.place, partial=True, check=True)
    there = writer.done(store.place)
    missing = [block for block in range(store.manifest.blocks) if block not in there]
    verification.faults += [f"block {block} is missing: run the same `unweave extract` again" for block in missing]
    sound = []
    for block in sorted(there & set(range(store.manifest.blocks))):
        faults = _damage(store, block, verification)
        verification.faults += faults
        if not faults:
            sound.append(block)
        elif repair:
            writer.forget(store.place, block)
    if not verification.chunks:
        verification.faults.append("nothing was compared: the store has no block")
    if rows and sound:
        extractor = Extractor(store.place, store.manifest, device=device, on_error="skip", model=model, images=images)
        _compare(store, extractor, sound, rows, np.random.default_rng(seed), verification)
    return verification


def _damage(store: Store, block: int, verification: Verification) -> list[str]:
    """Components of a block whose bytes are not those that were written, each in a sentence with its cure."""
    faults = []
    for name, array in store.blocks.items():
        for column in range(array.shape[0] if len(array.shape) > 1 else 1):
            what = f", component {_component(store, name, column)}" if len(array.shape) > 1 else ""
            try:
                array.read(block, [column])
            except StoreError as error:
                faults.append(f"{name}, block {block}{what}: {error.what} At {error.where}; {error.cure}.")
                if error.what != ALTERED:  # then so it is for the other components
                    break
            verification.chunks += 1
    return faults


def _component(store: Store, name: str, column: int) -> Component:
    return store.components(name.removeprefix(f"{writer.CONTRIBUTIONS}/"))[column]


def _compare(
    store: Store,
    extractor: Extractor,
    blocks: list[int],
    rows: int,
    rng: np.random.Generator,
    verification: Verification,
) -> None:
    batch = store.manifest.batch
    drawn = rng.permutation([(block, part) for block in blocks for part in range(-(-store.manifest.rows // batch))])
    kept = store.table["row"].to_numpy()
    for block, part in drawn.tolist():
        if verification.rows >= rows:
            return
        chosen = np.flatnonzero((store.table["block"].to_numpy() == block) & (kept // batch == part))
        if not len(chosen):
            continue
        ids = [store.ids[row] for row in chosen]
        inputs: list[Input] = []
        for image, read in extractor.decoded(extractor.listed(block, set(ids))):
            if isinstance(read, Input):
                inputs.append(read)
            else:
                verification.faults.append(f"image {image.id}: {read.what}")
        if sum(len(one.ids) for one in inputs) < len(ids):
            continue
        most = max(len(one.ids) for one in inputs)
        distances = [
            _apart(values, store.view(level).rows(chosen).values().numpy())
            for level, values in extractor.computed(inputs, most)["values"].items()
        ]
        apart = np.max(distances, axis=0)
        verification.rows += len(ids)
        verification.equal += int((apart == 0).sum())
        verification.apart = max(verification.apart, float(apart.max()))
        for name, distance in zip(ids, apart, strict=True):
            if not distance <= APART[store.manifest.dtype]:
                verification.faults.append(
                    f"image {name}: what the model says now is {distance:.1e} away from what is stored"
                )


def _apart(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The largest distance of each image's contributions, relative to the largest of them."""
    a, b = new.astype(np.float32), old.astype(np.float32)
    return np.abs(a - b).max((1, 2)) / np.abs(a).max((1, 2)).clip(np.finfo(np.float32).tiny)
