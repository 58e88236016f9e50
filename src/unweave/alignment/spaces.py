"""A view in a text space: through an aligner, or as it is where its model is the space's own image encoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from unweave.alignment.aligner import CARD, Aligner
from unweave.alignment.fitting import identical, is_own
from unweave.errors import AlignmentError, ArgumentError
from unweave.store import Readable, view_of
from unweave.text import TextSpace, text_space
from unweave.view import View

Space: TypeAlias = "Aligner | TextSpace | str | os.PathLike[str] | None"
"""What brings components into a text space: an aligner, or the folder that `align` wrote, which knows its text space;
or, where the model is the image encoder of a text space itself, that space or its id. None where a view is seen through
an aligner already.
"""


def aligned(
    source: Readable, space: Space = None, *, templates: Sequence[str] | None = None, device: str = "cpu"
) -> tuple[View, TextSpace]:
    """Contributions in a text space, and the space.

    Args:
        source: A store or its folder, a view of one, or a batch in memory.
        space: What brings them there (see `Space`).
        templates: Sentences for phrases; those of the space if not given.
        device: The device that a space which is loaded here computes on.

    Raises:
        ArgumentError: Nothing leads to a text space.
        AlignmentError: The aligner, the space and the model do not belong together.
    """
    view = view_of(source)
    maps = aligner_of(space) or (view.aligner if isinstance(view.aligner, Aligner) else None)
    if maps is not None:
        words = space if isinstance(space, TextSpace) else space_of(maps, templates=templates, device=device)
        maps.check(words)
        return view.level(maps.identity["level"]).through(maps), words
    if space is None:
        raise ArgumentError(
            "Words need a text space.",
            where=str(view.source),
            cure="name the folder of an aligner; or, if the model is a CLIP itself, its text space",
        )
    words = space if isinstance(space, TextSpace) else text_space(str(space), templates=templates, device=device)
    if not is_own(view, words):
        raise AlignmentError(
            f"The contributions are of {view.model}, which is not the image encoder of {words.id}.",
            where=str(view.source),
            cure="align it: `unweave align STORE --space ID`, then name the folder of the aligner",
        )
    return view.through(identical(view, words)), words


def aligner_of(space: Space) -> Aligner | None:
    """The aligner that is given or named, if it is one."""
    if isinstance(space, Aligner):
        return space
    if isinstance(space, (str, os.PathLike)) and (Path(space).is_dir() or (Path(space) / CARD).exists()):
        return Aligner.load(space)
    return None


def space_of(aligner: Aligner, *, templates: Sequence[str] | None = None, device: str = "cpu") -> TextSpace:
    """The text space that an aligner leads to: as it was given, or loaded again.

    Raises:
        AlignmentError: It was made of functions, and has not been given.
    """
    identity = aligner.identity
    if aligner.space is not None:
        return aligner.space if templates is None else replace(aligner.space, templates=tuple(templates))
    if aligner.of_functions:
        raise AlignmentError(
            f"The aligner leads to {identity['space']}, a text space made of functions, which are not saved with it.",
            where="`space` of the aligner",
            cure="give the text space, in Python: `Aligner.load(FOLDER, space=TextSpace.from_functions(...))`",
        )
    return text_space(identity["space"], templates=templates, device=device, **identity["space_loading"])


def view_card(view: View, space: TextSpace | None = None) -> dict[str, Any]:
    """What a result is of, for its card: the contributions, their model, and the text space."""
    origin = view.origin
    about: dict[str, Any] = {"source": str(view.source), "images": len(view), "model": view.model}
    if origin is not None:
        about |= {"weights_hash": origin.weights_hash, "level": origin.level}
    if space is not None:
        about |= {"space": space.id, "space_hash": space.weights_hash}
    return about
