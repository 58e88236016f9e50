"""Words as numbers: what the text tower of the zoo's CLIP reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from unweave.errors import ArgumentError


@dataclass(frozen=True)
class Vocabulary:
    """The words that a text may hold.

    Attributes:
        words: Numbered from 1 in this order; 0 stands for no word.
        length: The most words that a text may have.
    """

    words: tuple[str, ...]
    length: int = 16

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, 1)}

    def encode(self, texts: Sequence[str]) -> UInt8[np.ndarray, "text word"]:
        """The words of texts, in whatever case and punctuation, as numbers, filled up with 0.

        Raises:
            ArgumentError: A text has no words, or too many, or one that is not known.
        """
        numbers = np.zeros((len(texts), self.length), np.uint8)
        for row, text in zip(numbers, texts, strict=True):
            words = re.findall(r"\w+", text.lower())
            if not 1 <= len(words) <= self.length:
                raise ArgumentError(
                    f"A text has {len(words)} words.", where=repr(text), cure=f"write 1 to {self.length} words"
                )
            row[: len(words)] = [self._number(word, text) for word in words]
        return numbers

    def _number(self, word: str, text: str) -> int:
        if word not in self._numbers:
            near = difflib.get_close_matches(word, self.words, n=4, cutoff=0.5) or self.words[:8]
            raise ArgumentError(
                f"The pocket world has no word {word!r}.", where=repr(text), cure=f"one of {', '.join(near)}"
            )
        return self._numbers[word]
