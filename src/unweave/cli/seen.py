"""A store in a text space, as verbs name the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def seen_in(
    store: str,
    aligner: Path | None,
    space: str | None,
    templates: Path | None,
    where: list[str] | None,
    device: str,
) -> tuple[Any, Any]:
    """The store in the text space, and the space, loaded."""
    import unweave
    from unweave.alignment import open_aligned
    from unweave.extraction.extractor import device_of
    from unweave.text import read_templates

    opened = unweave.open_store(store)
    rows = opened.chosen(where) if where else None
    sentences = read_templates(templates) if templates else None
    return open_aligned(opened, aligner, space, templates=sentences, rows=rows, device=device_of(device))


def origin(seen: Any) -> dict[str, Any]:
    """What results are of, for their card."""
    own = seen.aligner.identity
    names = ("model", "weights_hash", "level", "space", "space_hash")
    return {"store": str(seen.store.place), **{name: own[name] for name in names}}
