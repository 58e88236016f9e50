"""Text that somebody else wrote, as JSON, TOML or XML: read, or refused with a reason, whatever it is made of.

Files may be nested a million levels deep, hold one name twice, or numbers that are none. Here each of these is a
`ValueError` whose text is the reason in a few words; whoever reads a file says which file it was, and what to do.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

DEPTH = 64
"""How many levels of lists and tables may lie in each other; nothing that unweave reads has more than ten."""

LARGEST = 1 << 26
"""How many bytes a file of text may have."""


def read_text(path: Path) -> str:
    """A file's text in UTF-8, with or without a byte order mark.

    Raises:
        OSError: The file is missing, or cannot be read.
        ValueError: It is no ordinary file, is larger than any such file, or is not UTF-8.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MB")
    if not path.is_file():
        raise ValueError("it is not a file")
    return _decoded(path.read_bytes())


def parse_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: It is not JSON, is nested too deeply, names something twice, or has a number out of range.
    """
    text = _decoded(text)
    try:
        parsed = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_once)
    except RecursionError:
        raise _TOO_DEEP from None
    if "\\ud" in text.lower():  # half a character can be written in JSON, and nowhere else
        json.dumps(parsed, ensure_ascii=False).encode()
    return _shallow(parsed)


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """What TOML says.

    Raises:
        ValueError: It is not TOML, or is nested too deeply.
    """
    try:
        parsed = tomllib.loads(_decoded(text))
    except RecursionError:
        raise _TOO_DEEP from None
    return _shallow(parsed)


def parse_xml(content: bytes) -> Element:
    """The outermost element of XML that defines no entities of its own.

    Raises:
        ValueError: It is not XML, or what it defines could grow without bound.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException, ElementTree

    try:
        return ElementTree.fromstring(content)
    except DefusedXmlException:
        raise ValueError("it defines entities of its own") from None
    except (ParseError, LookupError) as error:  # LookupError: an encoding that nobody has
        raise ValueError(str(error)) from None


def whole(text: str, least: int = 0, most: int = 10**9) -> int | None:
    """The whole number that a text says in digits; None where it says none from `least` to `most`."""
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(most)):
        return None
    return int(text) if least <= int(text) <= most else None


def to_json(value: object, *, indent: int | None = None) -> str:
    """JSON as its standard has it: a number that is none (NaN, an infinity) is `null`."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), indent=indent, allow_nan=False)


_TOO_DEEP = ValueError(f"it is nested more than {DEPTH} levels deep")


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None


def _each_once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"it has {name!r} twice")
        table[name] = value
    return table


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _shallow(value: Any) -> Any:
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise _TOO_DEEP


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
