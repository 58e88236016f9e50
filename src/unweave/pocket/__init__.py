"""An offline default with known truth: a small image world, and small models trained on it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unweave.pocket.birds import Birds as Birds
    from unweave.pocket.encoder import text as text
    from unweave.pocket.shipped import evaluation as evaluation
    from unweave.pocket.world import World as World

_HOMES = {
    "Birds": "unweave.pocket.birds",
    "World": "unweave.pocket.world",
    "evaluation": "unweave.pocket.shipped",
    "text": "unweave.pocket.encoder",
}

__all__ = ["Birds", "World", "evaluation", "text"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unweave.pocket' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
