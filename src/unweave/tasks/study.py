"""A study: a store, images to learn from and images to measure on, and a head that tells classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unweave.align import Aligned, open_aligned
from unweave.components import Component
from unweave.errors import ArgumentError, DataError
from unweave.store import Store, open_store
from unweave.tasks.ablation import split
from unweave.tasks.head import Head, HeadKind, head_of
from unweave.text import TextSpace


@dataclass(frozen=True, eq=False)
class Study:
    """What an experiment is made on.

    Attributes:
        store: The contributions.
        fitted: Rows that means, scores and probes come from.
        measured: Rows that are measured on; none of them is fitted to.
        head: What tells classes.
        seen: The fitted rows in a text space, where there is one.
        space: That space.
    """

    store: Store
    fitted: np.ndarray
    measured: np.ndarray
    head: Head
    seen: Aligned | None
    space: TextSpace | None

    @property
    def level(self) -> str:
        """At which the components are."""
        return self.seen.level if self.seen is not None else self.store.manifest.levels[0]

    @property
    def components(self) -> tuple[Component, ...]:
        """Of the store."""
        return self.store.components(self.level)

    @property
    def words(self) -> tuple[Aligned, TextSpace]:
        """The fitted rows in a text space, and the space.

        Raises:
            ArgumentError: There is none.
        """
        if self.seen is None or self.space is None:
            raise ArgumentError(
                "Words need a text space.",
                where=str(self.store.place),
                cure="name the folder of an aligner; or, if the model is a CLIP itself, its text space",
            )
        return self.seen, self.space


def study(
    store: str | os.PathLike[str] | Store,
    head: HeadKind,
    label: str,
    *,
    aligner: str | os.PathLike[str] | None = None,
    space: str | None = None,
    measured: Sequence[str] | None = None,
    fitted: Sequence[str] | None = None,
    softness: float = 0.1,
    device: str = "cpu",
) -> Study:
    """Open what an experiment is made on.

    Args:
        store: What `extract` wrote.
        head: The model's own `classifier`, the words of a text space (`zero-shot`: the values of the field are the
            words), or a linear `probe` that is fitted here.
        label: The field that names the class of an image.
        aligner: A folder that `align` wrote.
        space: The id of a text space, where the model is a CLIP in its own space.
        measured: Conditions `FIELD=VALUE` for the images to measure on; all others than the fitted ones if not given.
        fitted: Conditions for the images to fit to; half of all, chosen by their ids, if not given.
        softness: Of the probe.
        device: Where the text space computes.

    Raises:
        DataError: There are no such images, an image is on both sides, or the head has no text space.
    """
    opened = store if isinstance(store, Store) else open_store(store)
    everything = opened.chosen(measured) if measured else np.arange(len(opened))
    if fitted:
        learned = opened.chosen(fitted)
        asked = everything if measured else np.setdiff1d(everything, learned)
    else:
        first, second = split(opened)
        learned, asked = np.intersect1d(everything, first), np.intersect1d(everything, second)
    both = np.intersect1d(learned, asked)
    if len(both) or not len(learned) or not len(asked):
        what = (
            f"{len(both)} images would be fitted to and measured on."
            if len(both)
            else f"There are {len(learned)} images to fit to and {len(asked)} to measure on."
        )
        raise DataError(what, where=str(opened.place), cure="choose images so that there are some on either side")
    seen, text = None, None
    if aligner is not None or space is not None:
        seen, text = open_aligned(opened, aligner, space, rows=learned, device=device)
    words = None if seen is None or text is None else (seen, text)
    found = head_of(head, opened, label, learned, words=words, softness=softness)
    return Study(opened, learned, asked, found, seen, text)
