"""JSON that somebody may have damaged: every field is held against the type that it should have."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from unweave.notation import parse_json

T = TypeVar("T")


def parsed(text: bytes) -> dict[str, Any]:
    """The fields of a JSON file.

    Raises:
        ValueError: It is no JSON, or nothing with fields.
    """
    known = parse_json(text)
    if not isinstance(known, dict):
        raise ValueError("it has no fields")
    return known


def record(kind: type[T], known: object, name: str = "") -> T:
    """A dataclass from the fields of a JSON file.

    Args:
        kind: The dataclass.
        known: Its fields.
        name: Where they stand in the file, for the error.

    Raises:
        ValueError: A field is missing, unknown, or of another type; the message names it.
    """
    if not isinstance(known, Mapping):
        raise ValueError(f"`{name}` has no fields")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = next(iter(known.keys() - fields.keys()), None)
    if unknown is not None:
        raise ValueError(f"the field `{name}{unknown}` is unknown")
    given = {}
    for part, field in fields.items():
        if part in known:
            given[part] = typed(hints[part], known[part], f"{name}{part}")
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"the field `{name}{part}` is missing")
    return kind(**given)


def typed(kind: Any, known: object, name: str) -> Any:
    """A value of a JSON file, as a type has it; lists become tuples, and objects dataclasses.

    Raises:
        ValueError: It is of another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind in (Any, object) or (kind is NoneType and known is None) or hasattr(known, "dtype"):
        return known  # a tensor stands for itself
    if origin in (UnionType, Union):
        return None if known is None and NoneType in inner else _first_of(inner, known, name)
    if origin is Literal:
        if known in inner:
            return known
    elif origin is tuple:
        if isinstance(known, list):
            kinds = inner[:1] * len(known) if inner[-1] is Ellipsis else inner
            pairs = enumerate(zip(kinds, known, strict=True))
            return tuple(typed(kind_there, item, f"{name}[{place}]") for place, (kind_there, item) in pairs)
    elif origin is not None:  # a mapping, of names or as pairs
        if isinstance(known, dict) and len(inner) == 2:
            return {key: typed(inner[1], item, f"{name}.{key}") for key, item in known.items()}
        if isinstance(known, list) and inner[0] is not str:
            return {typed(inner[0], key, name): typed(inner[1], item, name) for key, item in known}
    elif dataclasses.is_dataclass(kind):
        return record(kind, known, f"{name}.")  # type: ignore[arg-type]
    elif kind is float and isinstance(known, dict) and set(known) == {"$number"}:
        return float(known["$number"])
    elif kind is float:
        if isinstance(known, int | float) and not isinstance(known, bool) and math.isfinite(known):
            return float(known)
    elif type(known) is kind:
        return known
    raise ValueError(f"the field `{name}` cannot be {json.dumps(known)[:60]}")


def _first_of(kinds: tuple[Any, ...], known: object, name: str) -> Any:
    """A value as the first of several types that it can have."""
    errors = []
    for kind in kinds:
        try:
            return typed(kind, known, name)
        except ValueError as error:
            errors.append(error)
    raise errors[0]
