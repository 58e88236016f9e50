"""CompAlign: from a store and a text space to an aligner.

aligner = unweave.align.align(store, unweave.text_space("pocket/clip"))
aligner(store.read("blocks.5.*"))          # [image, component, dim], in the text space
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from unweave.align.aligner import Aligner
from unweave.align.ranges import Ranges
from unweave.align.rows import Rows, held_out, rows_of
from unweave.align.solvers import SOLVERS, Recipe, Solver, ranged, ranges_of
from unweave.align.state import Keep, OnPoint
from unweave.align.targets import OnImages, embeddings
from unweave.errors import ArgumentError, DataError, UnweaveError
from unweave.extraction import Settings, extract, pictures
from unweave.images import ImageSet
from unweave.images.imageset import columns
from unweave.store import Store
from unweave.text import TextSpace
from unweave.text.phrases import spoken

_MOST_CLASSES = 2000
"""With more values than this a field does not name classes."""


def align(
    store: Store,
    space: TextSpace,
    *,
    solver: Solver = "ranged",
    recipe: Recipe = Recipe(),  # noqa: B008  # it cannot be changed
    share: float = 0.1,
    level: str | None = None,
    classes: Sequence[str] = ("label",),
    random_images: int = 500,
    images: Mapping[int, ImageSet] | None = None,
    kept: Path | None = None,
    on_images: OnImages = lambda count: None,
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
        classes: Fields of the images whose values name what is in them: held-out images are classified by the nearest
            of these values, once by the aligned sum and once by the space's own image encoder.
        random_images: How many images the same model with random weights is aligned on, as a control; 0 for none.
        images: As for `embeddings`.
        kept: A file in which the state of the solver is kept after every step: the same call goes on from there.
        on_images: Called with the number of images whose embedding was just found.
        on_point: Called as the solver goes on.

    Returns:
        The aligner; `measured` has both terms of the objective on either side, percentiles of held-out cosines,
        zero-shot accuracies, the isometry defect of each component, and what controls reach: one map for all
        components, shuffled targets, the mean target, and the model with random weights.

    Raises:
        DataError: There are too few images, or see `embeddings`.
    """
    level = level or store.manifest.levels[0]
    components, identity = store.components(level), _identity(store, space, level)
    side = held_out(store.ids, share, recipe.seed)
    if not 2 <= side.sum() <= len(side) - 2:
        raise DataError(
            f"Of {len(store)} images {int(side.sum())} are held out: too few on one side.",
            where=str(store.place),
            cure="extract more images, or hold out another share",
        )
    rows = rows_of(store, embeddings(store, space, images, on_images=on_images), level)
    train, other = rows.take(np.flatnonzero(~side)), rows.take(np.flatnonzero(side))
    if is_own(store, space):
        aligner = identical(store, space, level)
        measured: dict[str, Any] = {"identity": True, "images": {"train": 0, "held out": len(other)}}
        return replace(aligner, measured=measured | _measured(aligner, other, space, classes))
    keep = Keep(kept, _key(identity, store.ids, solver, recipe, share))
    found = SOLVERS[solver](train, other, recipe, on_point, keep)
    aligner = Aligner(found.maps, found.bias, components, identity)
    best = min(found.path, key=lambda point: point.total)
    measured = {
        "solver": solver,
        "recipe": asdict(recipe),
        "images": {"train": len(train), "held out": len(other)},
        "objective": {"train": best.train, "held out": best.held_out, "penalty": best.penalty},
        **_measured(aligner, other, space, classes),
        "controls": _controls(train, other, recipe) | _random(store, rows, side, recipe, random_images, images),
        "path": [asdict(point) for point in found.path],
        "defects": [round(value, 6) for value in aligner.defects().tolist()],
    }
    keep.forget()
    return replace(aligner, measured=measured)


def is_own(store: Store, space: TextSpace) -> bool:
    """Whether the store's model is the space's own image encoder, so that nothing has to be aligned."""
    return bool(store.manifest.weights_hash == space.images.weights_hash)


def identical(store: Store, space: TextSpace, level: str | None = None) -> Aligner:
    """The aligner of the space's own image encoder, which changes nothing and needs no images."""
    level = level or store.manifest.levels[0]
    components, dim = store.components(level), store.manifest.dim
    maps = torch.eye(dim).expand(len(components), -1, -1).clone()
    return Aligner(maps, torch.zeros(dim), components, _identity(store, space, level), {"identity": True})


def _identity(store: Store, space: TextSpace, level: str) -> dict[str, Any]:
    return {
        "model": store.manifest.model,
        "weights_hash": store.manifest.weights_hash,
        "preprocessing": json.loads(json.dumps(store.manifest.preprocessing)),
        "level": level,
        "space": space.id,
        "space_hash": space.weights_hash,
        "space_loading": dict(space.loading),
        "data": [own.fingerprint for own in store.manifest.listings],
    }


def _key(identity: Mapping[str, Any], ids: Sequence[str], solver: Solver, recipe: Recipe, share: float) -> str:
    known = [identity, list(ids), solver, asdict(recipe), share]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _measured(aligner: Aligner, other: Rows, space: TextSpace, classes: Sequence[str]) -> dict[str, Any]:
    """How near the aligned sum of held-out images is to their embeddings, and what either says of their classes."""
    aligned = torch.cat(
        [torch.einsum("ncw,cwd->nd", values, aligner.maps) + aligner.bias for values, _ in other.batches()]
    )
    levels = [5, 25, 50, 75, 95]
    found = np.percentile(cosine_similarity(aligned, other.targets, dim=-1).numpy(), levels)
    fields = {name: _zero_shot(aligned, other, space, name) for name in classes if name in other.store.fields()}
    return {
        "cosine percentiles": {str(one): round(float(value), 4) for one, value in zip(levels, found, strict=True)},
        "zero-shot": fields,
    }


def _zero_shot(aligned: Float[Tensor, "image dim"], other: Rows, space: TextSpace, field: str) -> dict[str, Any]:
    """Which of a field's values is nearest: balanced accuracies of the aligned sum, and of the space's own encoder."""
    known = other.store.field(field)
    values = sorted({value for value in known if isinstance(value, str)})
    if not 2 <= len(values) <= _MOST_CLASSES:
        return {"left out": f"{len(values)} different texts are no classes"}
    try:
        directions = space.encode([spoken(value) for value in values])
    except ArgumentError as error:
        return {"left out": str(error)}
    place = {value: number for number, value in enumerate(values)}
    true = torch.tensor([place.get(known[row], -1) for row in other.numbers.tolist()])
    found: dict[str, Any] = {"classes": len(values)}
    for name, images in (("aligned", aligned), ("space", other.targets)):
        right = (normalize(images, dim=-1) @ directions.T).argmax(1) == true
        each = [right[true == one].float().mean() for one in true[true >= 0].unique()]
        found[name] = round(float(torch.stack(each).mean()), 4) if each else 0.0
    return found


def _controls(train: Rows, other: Rows, recipe: Recipe) -> dict[str, Any]:
    """The first term on held-out images, with less than the components to go by: the honest zero of the fit."""
    few, found = replace(recipe, rounds=2), ranges_of(train)
    shuffle = np.random.default_rng(recipe.seed).permutation(len(train))
    shuffled = replace(train, targets=train.targets[torch.from_numpy(shuffle)])
    mean = normalize(train.targets.mean(0), dim=0)
    return {
        "one map for all": _reached(train, other, replace(recipe, rounds=0, sweeps=0), found),
        "shuffled targets": _reached(shuffled, other, few, found),
        "the mean target": float(1 - (other.targets @ mean).mean()),
    }


def _reached(train: Rows, other: Rows, recipe: Recipe, found: Ranges | None = None) -> float:
    path = ranged(train, other, recipe, found=found).path
    return min(path, key=lambda point: point.total).held_out


def _random(
    store: Store,
    rows: Rows,
    side: np.ndarray,
    recipe: Recipe,
    count: int,
    images: Mapping[int, ImageSet] | None,
) -> dict[str, Any]:
    """The same model with random weights, and beside it the model itself, on as many images, of which half are held
    out: what an architecture and its preprocessing bring along.
    """
    half = count // 2
    chosen = np.sort(np.concatenate([np.flatnonzero(~side)[:half], np.flatnonzero(side)[:half]]))
    if half < 2 or len(chosen) < 4:
        return {}
    names = [store.ids[row] for row in chosen]
    known = store.manifest
    few = replace(recipe, rounds=2)
    try:
        found = pictures(store, names, images)
        listed = ImageSet("", columns({"id": names}, where=str(store.place)), lambda row: found[row].read())
        settings = Settings(
            levels=(rows.level,),
            select=known.selection,
            attention=known.attention,
            nonlinear=known.nonlinear,
            dtype="float32",
            on_error="raise",
            loading={"image_size": known.loading.get("image_size"), "random_weights": True, "seed": recipe.seed},
        )
        with tempfile.TemporaryDirectory() as folder:
            random = replace(rows.take(chosen), store=extract(known.model, listed, f"{folder}/store", settings))
            random = replace(random, numbers=np.arange(len(chosen)))
            trained = rows.take(chosen)
            reached = [
                _reached(own.take(np.flatnonzero(~side[chosen])), own.take(np.flatnonzero(side[chosen])), few)
                for own in (random, trained)
            ]
    except UnweaveError as error:
        return {"random model": {"left out": str(error)}}
    return {"random model": {"images": len(chosen), "random weights": reached[0], "this model": reached[1]}}
