"""CompAlign: from a store and a text space to an aligner.

aligner = unweave.align.align(store, unweave.text_space("pocket/clip"))
aligner(store.read("blocks.5.*"))          # [image, component, dim], in the text space
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from unweave.align.aligner import Aligner, identity_of
from unweave.align.rows import Rows, held_out, rows_of
from unweave.align.solvers import SOLVERS, OnPoint, Recipe, Solution, Solver
from unweave.errors import StoreError
from unweave.images import ImageSet, open_images
from unweave.images.batches import decoded
from unweave.store import Store
from unweave.text import TextSpace, cache

_AT_ONCE = 32
"""Images that the space's encoder reads at a time."""


def embeddings(store: Store, space: TextSpace, images: dict[int, ImageSet] | None = None) -> Float[Tensor, "image dim"]:
    """What the space's own image encoder makes of the images of a store, row by row; computed once, then kept on disk.

    Args:
        store: Whose images.
        space: The text space.
        images: The images of each listing, where the store cannot open them.

    Raises:
        StoreError: An image is no longer there, or can no longer be read.
    """
    known = [space.weights_hash, space.images.preprocessing, [own.fingerprint for own in store.manifest.listings]]
    key = hashlib.sha256(json.dumps([*known, store.ids], default=str).encode()).hexdigest()
    return cache.kept(key, lambda: torch.cat(list(_embedded(store, space, images or {}))))


def _embedded(store: Store, space: TextSpace, images: dict[int, ImageSet]) -> Iterator[Tensor]:
    found = {}
    for number, own in enumerate(store.manifest.listings):
        pictures = images.get(number) or open_images(own.data, split=own.split)
        found.update({picture.id: picture for picture in pictures})
    missing = next((name for name in store.ids if name not in found), None)
    if missing is not None:
        raise StoreError("An image of the store is no longer there.", where=missing, cure="put it back")
    example = space.images.example(1)
    waiting: list[Tensor] = []
    for count, (picture, tensor) in enumerate(
        decoded(space.images, (found[name] for name in store.ids), ahead=2 * _AT_ONCE), 1
    ):
        if not isinstance(tensor, Tensor):
            raise StoreError(f"An image can no longer be read: {tensor.what}", where=picture.id)
        waiting.append(tensor)
        if len(waiting) == _AT_ONCE or count == len(store):
            with torch.inference_mode():
                yield space.images.readout(torch.stack(waiting).to(example.device, example.dtype)).float().cpu()
            waiting = []


def align(
    store: Store,
    space: TextSpace,
    *,
    solver: Solver = "ranged",
    recipe: Recipe = Recipe(),  # noqa: B008  # it cannot be changed
    share: float = 0.1,
    level: str | None = None,
    images: dict[int, ImageSet] | None = None,
    on_point: OnPoint = lambda point: None,
) -> Aligner:
    """Fit one linear map for each component (method: CompAlign).

    A model whose weights are the space's own image encoder gets the identity.

    Args:
        store: The contributions.
        space: Where to.
        solver: `ranged`, or `adam` as published.
        recipe: Its settings.
        share: How many images are held out, of one; which ones follows from their ids and the seed.
        level: Of the store; its first one if not given.
        images: As for `embeddings`.
        on_point: Called as the solver goes on.

    Returns:
        The aligner; `measured` has both terms of the objective on either side, percentiles of held-out cosines, the
        isometry defect of each component, and what two controls reach: one map for all, and shuffled targets.

    Raises:
        StoreError: There are too few images, or see `embeddings`.
    """
    level = level or store.manifest.levels[0]
    components = store.components(level)
    identity = {
        "model": store.manifest.model,
        "weights_hash": store.manifest.weights_hash,
        "preprocessing": json.loads(json.dumps(store.manifest.preprocessing)),
        "level": level,
        "space": space.id,
        "space_hash": space.weights_hash,
    }
    if store.manifest.weights_hash == space.images.weights_hash:
        maps, bias = identity_of(components, store.manifest.dim)
        return Aligner(maps, bias, components, identity, {"identity": True})
    rows = rows_of(store, embeddings(store, space, images), level)
    kept = held_out(store.ids, share, recipe.seed)
    if not 2 <= kept.sum() <= len(kept) - 2:
        raise StoreError(
            f"Of {len(store)} images {int(kept.sum())} are held out: too few on one side.",
            where=str(store.place),
            cure="extract more images, or hold out another share",
        )
    train, other = rows.take(np.flatnonzero(~kept)), rows.take(np.flatnonzero(kept))
    found = SOLVERS[solver](train, other, recipe, on_point)
    aligner = Aligner(found.maps, found.bias, components, identity)
    measured = {
        "solver": solver,
        "recipe": asdict(recipe),
        "images": {"train": len(train), "held out": len(other)},
        "path": [asdict(point) for point in found.path],
        **_measured(found, other),
        "defects": [round(value, 6) for value in aligner.defects().tolist()],
        "controls": _controls(train, other, recipe),
    }
    return replace(aligner, measured=measured)


def _measured(found: Solution, other: Rows) -> dict[str, Any]:
    best = min(found.path, key=lambda point: point.total)
    cosines = []
    for contributions, target in other.batches():
        aligned = torch.einsum("ncw,cwd->nd", contributions, found.maps) + found.bias
        cosines.append(cosine_similarity(aligned, target, dim=-1))
    levels = [5, 25, 50, 75, 95]
    values = np.percentile(torch.cat(cosines).numpy(), levels)
    return {
        "objective": {"train": best.train, "held out": best.held_out, "penalty": best.penalty},
        "cosine percentiles": {str(one): round(float(value), 4) for one, value in zip(levels, values, strict=True)},
    }


def _controls(train: Rows, other: Rows, recipe: Recipe) -> dict[str, float]:
    """The first term on held-out images, with less than the components to go by: the honest zero of the fit."""
    few = replace(recipe, rounds=2)
    shuffle = np.random.default_rng(recipe.seed).permutation(len(train))
    shuffled = replace(train, targets=train.targets[torch.from_numpy(shuffle)])
    one, *_ = SOLVERS["ranged"](train, other, replace(recipe, rounds=0, sweeps=0), lambda point: None).path
    mixed = min(SOLVERS["ranged"](shuffled, other, few, lambda point: None).path, key=lambda point: point.total)
    mean = normalize(train.targets.mean(0), dim=0)
    return {
        "one map for all": one.held_out,
        "shuffled targets": mixed.held_out,
        "the mean target": float(1 - (other.targets @ mean).mean()),
    }
