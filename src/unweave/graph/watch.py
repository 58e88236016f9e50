"""A module tree as it was, and what has changed of it: parts, tensors, hooks, forwards, and plain attributes.

A plan looks at this before every batch, so looking costs a fraction of a millisecond: it compares identities, and only
where one differs does it ask what that means. Changes inside a tensor are not seen here; tensors count them themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as every_module

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_SLOTS = {
    "_parameters": "weight",
    "_buffers": "buffer",
    "_modules": "submodule",
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
}
_PLAIN = (bool, int, float, str, bytes, type(None))
_NOTHING = object()


@dataclass(frozen=True, eq=False)
class Change:
    """One difference.

    Attributes:
        path: The module.
        kind: What of it: `weight`, `buffer`, `submodule`, `forward hook`, `forward`, `attribute`, ...
        name: Under which name in the module.
        old, new: What was and is there; None for nothing.
        place: Where it is kept.
    """

    path: str
    kind: str
    name: str
    old: Any
    new: Any
    place: dict[Any, Any]

    @property
    def full(self) -> str:
        """Its name from the root."""
        return f"{self.path}.{self.name}" if self.path and self.name else self.path or self.name

    @property
    def tensor(self) -> bool:
        """Whether one registered tensor took the place of another."""
        return self.kind in ("weight", "buffer") and type(self.old) is type(self.new) and isinstance(self.new, Tensor)

    def __str__(self) -> str:
        where = self.path or "the module"
        if self.kind in ("forward", "class"):
            return f"the {self.kind} of {where}"
        verb = "added" if self.old is None else "removed" if self.new is None else "replaced"
        if "hook" in self.kind:
            return f"a {self.kind} of {where}, {verb}"
        return f"{self.full} ({self.kind}, {verb})"


class Watch:
    """A module tree as it is now.

    Args:
        module: Its root.
        tensors: Tensors that count wherever they are kept; a tensor in a plain attribute is otherwise what some forward
            left there.
        unwatched: Plain attributes that do not count, in every module.
    """

    def __init__(self, module: nn.Module, tensors: Iterable[Tensor] = (), unwatched: Iterable[str] = ()) -> None:
        self.module, self.tensors, self.unwatched = module, tuple(tensors), frozenset(unwatched)
        self.harmless: list[object] = []
        self._passing: set[tuple[int, Any]] = set()
        self.look()

    def look(self) -> None:
        """Takes the tree as it is now for what is known of it."""
        parts = dict(self.module.named_modules())
        self._paths, self._parts = list(parts), list(parts.values())
        self._classes: list[Any] = list(map(type, self._parts))
        self._forwards = {kind: kind.forward for kind in self._classes}
        self._places: list[tuple[str, str, dict[Any, Any]]] = [
            ("every module", _SLOTS[hooks], getattr(every_module, f"_global{hooks}")) for hooks in _HOOKS
        ]
        for path, part in parts.items():
            attributes: dict[str, Any] = part.__dict__
            self._places.append((path, "attribute", attributes))
            self._places += [(path, kind, attributes[slot]) for slot, kind in _SLOTS.items()]
        kept = {id(tensor) for tensor in self.tensors}
        self._known = [
            {name: value for name, value in place.items() if not self._left(kind, place, name, value, kept)}
            for _, kind, place in self._places
        ]
        # what `unchanged` compares, laid out so that it need not loop
        both = [(place, known) for (_, _, place), known in zip(self._places, self._known, strict=True)]
        self._empty = [place for place, _ in both if not place]
        self._some = [(place, known) for place, known in both if len(known) < len(place)]
        self._whole = [place for place, known in both if place and len(known) == len(place)]
        self._lengths = list(map(len, self._whole))
        self._values = list(chain.from_iterable(map(dict.values, self._whole)))

    def _left(self, kind: str, place: dict[Any, Any], name: Any, value: object, kept: set[int]) -> bool:
        """Whether an entry is what some forward leaves behind."""
        if kind != "attribute":
            return False
        return (id(place), name) in self._passing or (isinstance(value, Tensor) and id(value) not in kept)

    @property
    def unchanged(self) -> bool:
        """Whether everything is the very object that it was."""
        return (
            not any(self._empty)
            and list(map(len, self._whole)) == self._lengths
            and all(map(is_, chain.from_iterable(map(dict.values, self._whole)), self._values))
            and all(place.get(name, _NOTHING) is value for place, known in self._some for name, value in known.items())
            and all(map(is_, map(type, self._parts), self._classes))
            and all(kind.forward is forward for kind, forward in self._forwards.items())
        )

    def changes(self) -> list[Change]:
        """What is different now, in a way that may matter."""
        found = []
        for path, part, before in zip(self._paths, self._parts, self._classes, strict=True):
            now: Any = type(part)
            if now is not before:
                found.append(Change(path, "class", "", before, now, {}))
            elif now.forward is not self._forwards[now]:
                found.append(Change(path, "forward", "", self._forwards[now], now.forward, {}))
        kept = {id(tensor) for tensor in self.tensors}
        for (path, kind, place), known in zip(self._places, self._known, strict=True):
            for name in dict.fromkeys((*known, *place)):
                old, new = known.get(name), place.get(name)
                if old is new or _equal(old, new) or self._left(kind, place, name, new, kept):
                    continue
                if kind == "attribute" and name in self.unwatched:
                    continue
                if "hook" in kind and all(end is None or end in self.harmless for end in (old, new)):
                    continue
                forward = kind == "attribute" and name == "forward"
                found.append(Change(path, "forward" if forward else kind, str(name), old, new, place))
        return found

    def accept(self, changes: Iterable[Change]) -> None:
        """Takes changes for harmless: such hooks may come and go, such attributes take any value."""
        for change in changes:
            if "hook" in change.kind:
                self.harmless += [end for end in (change.old, change.new) if end is not None]
            elif change.kind == "attribute":
                self._passing.add((id(change.place), change.name))
        self.look()


def told(changes: Sequence[Change]) -> str:
    """Changes in words, the first few of them."""
    return ", ".join(map(str, changes[:3])) + (f", and {len(changes) - 3} more" if len(changes) > 3 else "")


def _equal(old: object, new: object) -> bool:
    """Whether two plain values are the same."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(_equal(one, other) for one, other in zip(old, new, strict=True))
    return type(old) is type(new) and isinstance(old, _PLAIN) and old == new
