"""What maps are of, as verbs name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unweave.cli.seen import one_space


def target_of(
    model: Any,
    names: Mapping[str, Sequence[str]] | Sequence[str] | None,
    texts: bool,
    aligner: Path | None,
    space: str | None,
    templates: Path | None,
    device: str,
) -> Any:
    """Texts through an aligner or in a CLIP's own space, or classes of the model's own classifier."""
    from unweave.align import Aligner
    from unweave.errors import ArgumentError
    from unweave.tasks.target import toward_classes, toward_texts
    from unweave.text import read_templates, text_space

    if not texts:
        return toward_classes(model, list(names) if names is not None else None)
    one_space(aligner, space)
    if aligner is None and space is None:
        raise ArgumentError(
            "Texts need a text space.", cure="give --aligner FOLDER; or, for a CLIP in its own space, --text-space ID"
        )
    loaded = Aligner.load(aligner) if aligner is not None else None
    own = loaded.identity if loaded is not None else {"space": space, "space_loading": {}}
    sentences = read_templates(templates) if templates else None
    found = text_space(own["space"], templates=sentences, device=device, **own["space_loading"])
    return toward_texts(model, found, names or [], loaded)


def scored(path: Path) -> Any:
    """The table that `unweave score` wrote: its folder, or the Parquet file."""
    from pyarrow import ArrowException, parquet

    from unweave.errors import DataError

    file = path / "scores.parquet" if path.is_dir() else path
    try:
        return parquet.read_table(file)
    except (OSError, ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(
            f"The scores cannot be read: {reason}.", where=str(file), cure="name the folder that `unweave score` wrote"
        ) from error


def features_of(table: Any) -> list[str]:
    """The features that a table scores."""
    named = "feature" in table.column_names
    return list(dict.fromkeys(table["feature"].to_pylist())) if named else []
