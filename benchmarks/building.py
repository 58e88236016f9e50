"""How each model of the catalogue is built with random weights and no network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from catalogue import CONFIGURED, IMAGE_SIZES, PUBLISHED, classes
from cutting import cut

import unweave
from unweave.models.hf.architectures import architecture

WAYS: tuple[dict[str, Any] | None, ...] = (
    {"side": 256, "narrow": True},
    {"side": 256},
    {"side": 512},
    {"side": 4096},
    None,
)
"""How configurations of transformers are cut, the smallest first, until one can be built; None for what is not cut."""

_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
"""The least text tower: the image tower is what is measured."""


def loadings(id: str, folder: Path) -> Iterator[tuple[unweave.Loading, str]]:
    """How a model is loaded with random weights, the first way first, and what of it was cut.

    Args:
        id: The library and the name of the model or, of transformers, of the class; it may end in ` --representation
            NAME`, as for the command line.
        folder: Where configurations are written.
    """
    id, _, representation = id.partition(" --representation ")
    library, _, name = id.partition("/")
    size = IMAGE_SIZES.get(id)
    cut_to = f"images of {size} px" if size else ""
    if id in PUBLISHED:
        yield _published(id, library, folder), ""
    elif library == "open_clip":
        yield _open_clip(_without_text(name), folder), ""
    elif library == "hf":
        for loading, told in _transformers(name, folder):
            yield replace(loading, representation=representation or None), told
    else:
        yield unweave.Loading(id, random_weights=True, image_size=size), cut_to


@cache
def tower(id: str) -> str | None:
    """What tells one image tower from others: models with the same are measured once. None where nothing does."""
    library, _, name = id.partition("/")
    if id in PUBLISHED or " " in id or library not in ("open_clip", "hf"):
        return None
    if library == "open_clip":
        return json.dumps(_without_text(name), sort_keys=True)
    try:
        config = classes()[name](architectures=[name], **CONFIGURED.get(name, {}))
        chosen = architecture(config, id)
    except Exception:
        return None
    return f"{type(config).__name__} {chosen.build.__name__} {chosen.method} {chosen.part} {chosen.classifies}"


def _without_text(name: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(name)
    return {key: value for key, value in config.items() if key not in ("text_cfg", "multimodal_cfg")}


def _published(id: str, library: str, folder: Path) -> unweave.Loading:
    if library == "open_clip":
        return _open_clip(PUBLISHED[id], folder)
    written = PUBLISHED[id] if library == "hf" else {**PUBLISHED[id], "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(written))
    place = f"hf/{folder}" if library == "hf" else f"{library}/local-dir:{folder}"
    return unweave.Loading(place, random_weights=True)


def _open_clip(config: dict[str, Any], folder: Path) -> unweave.Loading:
    written = {"model_cfg": {**config, "text_cfg": _NO_TEXT}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return unweave.Loading(f"open_clip/local-dir:{folder}", random_weights=True)


def _transformers(name: str, folder: Path) -> Iterator[tuple[unweave.Loading, str]]:
    config = classes()[name](architectures=[name], **CONFIGURED.get(name, {}))
    tried = []
    for number, options in enumerate(WAYS):
        try:
            way, told = cut(config, **options) if options else (config, "")
        except Exception:
            continue  # what is cut does not go together
        if told not in tried:
            tried.append(told)
            way.save_pretrained(folder / str(number))
            yield unweave.Loading(f"hf/{folder / str(number)}", random_weights=True), told
