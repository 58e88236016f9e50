"""CompAlign: from a store and a text space to an aligner.

aligner = unweave.align(store, unweave.text_space("pocket/clip"))
store.view().through(aligner).select("blocks.5.*").values()     # [image, component, dim], in the text space
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

from unweave.alignment.aligner import Aligner
from unweave.alignment.pairs import Pairs
from unweave.alignment.ranges import Ranges
from unweave.alignment.solvers import SOLVERS, Recipe, ranged, ranges_of
from unweave.alignment.state import Keep, OnPoint
from unweave.alignment.targets import embeddings
from unweave.errors import AlignmentError, DataError, UnweaveError
from unweave.extraction import Settings, extract, pictures
from unweave.images import ImageSet
from unweave.images.imageset import columns
from unweave.loading import Loading
from unweave.progress import OnProgress, silent
from unweave.results import verb
from unweave.store import Readable, view_of
from unweave.text import TextSpace, text_space
from unweave.text.phrases import spoken
from unweave.view import View

_MOST_CLASSES = 2000
"""With more values than this a field does not name classes."""


@verb
def align(
    source: Readable,
    space: TextSpace | str,
    recipe: Recipe = Recipe(),  # noqa: B008  # it cannot be changed
    *,
    classes: Sequence[str] | None = None,
    images: Sequence[ImageSet] = (),
    kept: Path | None = None,
    on_progress: OnProgress = silent,
    on_point: OnPoint = lambda point: None,
) -> Aligner:
    """Fit one linear map for each component (method: CompAlign).

    A model whose weights are the space's own image encoder gets the identity.

    Args:
        source: A store or its folder, a view of one, or a batch in memory.
        space: The text space that the maps lead to, or its id.
        recipe: How the maps are fitted.
        classes: Fields of the images whose values name what is in them: held-out images are classified by the nearest
            of these values, once by the aligned sum and once by the space's own image encoder. `label` if not given,
            where the images have it.
        images: Image sets that have the images, for contributions that do not know where their images lie.
        kept: A file in which the state of the solver is kept after every step: the same call goes on from there.
        on_progress: Called as images are embedded, and as steps are done.
        on_point: Called with every point that the solver reaches.

    Returns:
        The aligner; `measured` has both terms of the objective on either side, percentiles of held-out cosines,
        zero-shot accuracies, the isometry defect of each component, and what controls reach: one map for all
        components, shuffled targets, the mean target, and the model with random weights.

    Raises:
        DataError: There are too few images, a field is missing, or an image can no longer be read.
        AlignmentError: The contributions do not say of which model they are.
    """
    view, space = view_of(source), text_space(space) if isinstance(space, str) else space
    missing = next((name for name in classes or () if name not in view.fields), None)
    if missing is not None:
        view.field(missing)
    identity = _identity(view, space)
    train_view, other_view = view.split(recipe.held_out, recipe.seed)
    side = np.isin(view.numbers, other_view.numbers)
    if min(len(train_view), len(other_view)) < 2:
        raise DataError(
            f"Of {len(view)} images {len(other_view)} are held out: too few on one side.",
            where=str(view.source),
            cure="extract more images, or hold out another share",
        )
    pairs = Pairs.of(view, embeddings(view, space, images, on_progress=on_progress))
    train, other = pairs.take(np.flatnonzero(~side)), pairs.take(np.flatnonzero(side))
    judged = classes if classes is not None else [name for name in ("label",) if name in view.fields]
    if is_own(view, space):
        aligner = identical(view, space)
        measured: dict[str, Any] = {"identity": True, "images": {"train": 0, "held out": len(other)}}
        return replace(aligner, measured=measured | _measured(aligner, other, space, judged))
    keep = Keep(kept, _key(identity, view.ids, recipe))
    solution = SOLVERS[recipe.solver](train, other, recipe, on_point, keep)
    aligner = Aligner(solution.maps, solution.bias, view.components, identity, space=_given(space))
    best = min(solution.path, key=lambda point: point.total)
    measured = {
        "recipe": asdict(recipe),
        "images": {"train": len(train), "held out": len(other)},
        "objective": {"train": best.train, "held out": best.held_out, "penalty": best.penalty},
        **_measured(aligner, other, space, judged),
        "controls": _controls(train, other, recipe) | _random(pairs, side, recipe, images),
        "path": [asdict(point) for point in solution.path],
        "defects": [round(value, 6) for value in aligner.defects().tolist()],
    }
    keep.forget()
    return replace(aligner, measured=measured)


def is_own(view: View, space: TextSpace) -> bool:
    """Whether the contributions are of the space's own image encoder, so that nothing has to be aligned."""
    return view.origin is not None and view.origin.weights_hash == space.images.weights_hash


def identical(view: View, space: TextSpace) -> Aligner:
    """The aligner of the space's own image encoder, which changes nothing and needs no images."""
    maps = torch.eye(view.dim).expand(len(view.components), -1, -1).clone()
    bias, identity = torch.zeros(view.dim), _identity(view, space)
    return Aligner(maps, bias, view.components, identity, {"identity": True}, space=_given(space))


def _given(space: TextSpace) -> TextSpace | None:
    """The space itself, where nothing can load it again."""
    return space if space.of_functions else None


def _identity(view: View, space: TextSpace) -> dict[str, Any]:
    origin = view.origin
    if origin is None:
        raise AlignmentError(
            "The contributions do not say of which model they are, so that no aligner can belong to it.",
            where=str(view.source),
            cure="decompose a `Model` (`unweave.load_model`, `Model.from_module`), or extract a store",
        )
    return {
        "model": origin.model,
        "weights_hash": origin.weights_hash,
        "preprocessing": json.loads(json.dumps(origin.preprocessing)),
        "level": origin.level,
        "space": space.id,
        "space_hash": space.weights_hash,
        "space_loading": space.known(),
        "data": [listing.fingerprint for listing in origin.images],
    }


def _key(identity: Mapping[str, Any], ids: Sequence[str], recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps([identity, ids, asdict(recipe)]).encode()).hexdigest()


def _measured(aligner: Aligner, other: Pairs, space: TextSpace, classes: Sequence[str]) -> dict[str, Any]:
    """How near the aligned sum of held-out images is to their embeddings, and what either says of their classes."""
    aligned = torch.cat(
        [torch.einsum("ncw,cwd->nd", values, aligner.maps) + aligner.bias for values, _ in other.batches()]
    )
    levels = [5, 25, 50, 75, 95]
    found = np.percentile(cosine_similarity(aligned, other.targets, dim=-1).numpy(), levels)
    fields = {name: _zero_shot(aligned, other, space, name) for name in classes}
    return {
        "cosine percentiles": {str(one): round(float(value), 4) for one, value in zip(levels, found, strict=True)},
        "zero-shot": fields,
    }


def _zero_shot(aligned: Float[Tensor, "image dim"], other: Pairs, space: TextSpace, field: str) -> dict[str, Any]:
    """Which of a field's values is nearest: balanced accuracies of the aligned sum, and of the space's own encoder."""
    named = other.view.field(field)
    values = sorted({value for value in other.view.source.field(field) if isinstance(value, str)})
    if not 2 <= len(values) <= _MOST_CLASSES:
        return {"left out": f"{len(values)} different texts are no classes"}
    try:
        directions = space.encode([spoken(value) for value in values])
    except UnweaveError as error:
        return {"left out": str(error)}
    place = {value: number for number, value in enumerate(values)}
    true = torch.tensor([place.get(value, -1) for value in named])
    found: dict[str, Any] = {"classes": len(values)}
    for name, images in (("aligned", aligned), ("space", other.targets)):
        right = (normalize(images, dim=-1) @ directions.T).argmax(1) == true
        each = [right[true == one].float().mean() for one in true[true >= 0].unique()]
        found[name] = round(float(torch.stack(each).mean()), 4) if each else 0.0
    return found


def _controls(train: Pairs, other: Pairs, recipe: Recipe) -> dict[str, Any]:
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


def _reached(train: Pairs, other: Pairs, recipe: Recipe, found: Ranges | None = None) -> float:
    path = ranged(train, other, recipe, found=found).path
    return min(path, key=lambda point: point.total).held_out


def _random(pairs: Pairs, side: np.ndarray, recipe: Recipe, images: Sequence[ImageSet]) -> dict[str, Any]:
    """The same model with random weights, and beside it the model itself, on as many images, of which half are held
    out: what an architecture and its preprocessing bring along.
    """
    half = recipe.random_images // 2
    chosen = np.sort(np.concatenate([np.flatnonzero(~side)[:half], np.flatnonzero(side)[:half]]))
    if half < 2 or len(chosen) < 4:
        return {}
    trained, origin = pairs.take(chosen), pairs.view.origin
    assert origin is not None
    few = replace(recipe, rounds=2)
    try:
        pictured = pictures(trained.view, images)
        listed = ImageSet(
            "", columns({"id": list(trained.view.ids)}, where=str(pairs.view.source)), lambda row: pictured[row].read()
        )
        settings = Settings(
            levels=(origin.level,),
            select=tuple(origin.selection.split(", ")) if origin.selection else None,
            attention=origin.attention,
            nonlinear=origin.nonlinear,
            dtype="float32",
            on_error="raise",
        )
        with tempfile.TemporaryDirectory() as folder:
            known = origin.loading or Loading(origin.model)
            drawn = replace(known, checkpoint=None, random_weights=True, seed=recipe.seed)
            store = extract(drawn, listed, f"{folder}/store", settings)
            random = replace(trained, view=store.view().select(pairs.view.columns))
            reached = [
                _reached(sample.take(np.flatnonzero(~side[chosen])), sample.take(np.flatnonzero(side[chosen])), few)
                for sample in (random, trained)
            ]
    except UnweaveError as error:
        return {"random model": {"left out": str(error)}}
    return {"random model": {"images": len(chosen), "random weights": reached[0], "this model": reached[1]}}
