"""A store in a text space, as verbs name the two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unweave.errors import ArgumentError


def one_space(aligner: object, space: str | None) -> None:
    """Refuse two text spaces where one is wanted.

    Raises:
        ArgumentError: There are two.
    """
    if aligner and space is not None:
        raise ArgumentError(
            "There can be one text space, and an aligner has its own.",
            cure="leave out `--aligner`, or `--text-space`",
        )


def rows_where(store: Any, conditions: list[str] | None) -> Any:
    """The rows of a store for which every `FIELD=VALUE` holds; None where there is no condition.

    Raises:
        ArgumentError: There are none.
        StoreError: A condition is not of this form, or there is no such field.
    """
    if not conditions:
        return None
    for condition in conditions:
        name, _, value = condition.partition("=")
        if not len(store.chosen([condition])):
            there = sorted({str(own) for own in store.field(name)})
            more = f" and {len(there) - 10:,} more" if len(there) > 10 else ""
            raise ArgumentError(
                f"No image has the {name} {value!r}.",
                where=str(store.place),
                cure=f"use {', '.join(there[:10])}{more}",
            )
    rows = store.chosen(conditions)
    if not len(rows):
        raise ArgumentError(
            f"No image has all of {', '.join(conditions)}.", where=str(store.place), cure="leave one of them out"
        )
    return rows


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
    from unweave.align import open_aligned
    from unweave.extraction.extractor import device_of
    from unweave.text import read_templates

    one_space(aligner, space)
    opened = unweave.open_store(store)
    rows = rows_where(opened, where)
    sentences = read_templates(templates) if templates else None
    return open_aligned(opened, aligner, space, templates=sentences, rows=rows, device=device_of(device))


def origin(seen: Any) -> dict[str, Any]:
    """What results are of, for their card."""
    own = seen.aligner.identity
    names = ("model", "weights_hash", "level", "space", "space_hash")
    return {"store": str(seen.store.place), **{name: own[name] for name in names}}
