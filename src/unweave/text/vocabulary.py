"""A general vocabulary of things that can be seen: `python -m unweave.text.vocabulary WORDNET` makes the file anew.

Nouns come from WordNet 3.0 (the folder with `index.noun` and `data.noun`, such as Debian's wordnet-base has): those
whose most frequent sense is an animal, a plant, a thing, a part of the body, a dish, a substance or something in
nature, as far as they are common in written English (wordfreq). People, looks, places, light and styles are lists of
our own (`own.toml`).
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from unweave.errors import ArgumentError, DataError, UnweaveError
from unweave.notation import parse_toml, read_text
from unweave.text.phrases import read_phrases

_HERE = Path(__file__).parent

_SEEN = {
    "05": "animal",
    "06": "artifact",
    "08": "body",
    "13": "food",
    "17": "object",
    "19": "phenomenon",
    "20": "plant",
}
_SEEN |= {"27": "substance"}
"""Lexicographer files of WordNet whose words name what can be seen."""

_COMMON = 3.0
"""How common a noun is, at least: the logarithm of how often it comes in a thousand million words."""


@cache
def vocabulary() -> tuple[str, ...]:
    """The vocabulary that is shipped: some thousand words and phrases for what can be seen."""
    return read_phrases(_HERE / "vocabulary.txt")


def made(wordnet: Path) -> tuple[str, ...]:
    """The vocabulary, from WordNet, wordfreq and our own lists.

    Args:
        wordnet: The folder with `index.noun` and `data.noun`.

    Raises:
        ArgumentError: WordNet is not there, or wordfreq is not installed.
    """
    try:
        from wordfreq import zipf_frequency
    except ImportError as error:
        raise ArgumentError("wordfreq is not installed.", cure="pip install wordfreq") from error
    own: dict[str, list[str]] = parse_toml(read_text(_HERE / "own.toml"))
    left_out = set(own.pop("not_seen"))
    nouns = [
        word
        for word in _nouns(wordnet)
        if len(word) > 2 and word not in left_out and zipf_frequency(word, "en") >= _COMMON
    ]
    return tuple(dict.fromkeys([*chain(*own.values()), *sorted(nouns)]))


def _nouns(wordnet: Path) -> list[str]:
    """Nouns of WordNet whose most frequent sense is something that can be seen."""
    try:
        senses = (wordnet / "data.noun").read_text("utf-8").splitlines()
        entries = (wordnet / "index.noun").read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"WordNet cannot be read: {error.strerror}.", where=str(wordnet)) from error
    spelled = {line[:8]: line.split()[4::2] for line in senses if line[9:11] in _SEEN}
    nouns = []
    for line in entries:
        if line.startswith(" "):  # the licence
            continue
        lemma, _, _, pointers, *rest = line.split()
        tagged, first = int(rest[int(pointers) + 1]), rest[int(pointers) + 2]
        word = lemma.replace("_", " ")
        # Names are spelled with capitals; of several words only those that occur in WordNet's own texts are common.
        if lemma in spelled.get(first, ()) and word.replace(" ", "").isalpha() and (" " not in word or tagged):
            nouns.append(word)
    return nouns


def main(
    wordnet: Annotated[Path, typer.Argument(help="The folder with index.noun and data.noun.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = _HERE / "vocabulary.txt",
) -> None:
    """Make the vocabulary anew."""
    found = made(wordnet)
    head = "# What can be seen, in words: made by `python -m unweave.text.vocabulary` from WordNet 3.0 (Princeton\n"
    head += "# University), the frequencies of wordfreq, and lists of our own.\n"
    out.write_text(head + "\n".join(found) + "\n", "utf-8")
    typer.echo(f"{len(found)} phrases in {out}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UnweaveError as error:
        raise SystemExit(str(error)) from None
