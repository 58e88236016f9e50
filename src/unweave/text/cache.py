"""Embeddings of texts, kept by what they are embeddings of, so that they are computed once.

They lie in the folder that `UNWEAVE_CACHE` names, or `~/.cache/unweave`; deleting it costs time only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unweave.errors import StoreError
from unweave.files import replacing


def folder() -> Path:
    """Where embeddings are kept."""
    root = os.environ.get("UNWEAVE_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "unweave"


def kept(key: str, make: Callable[[], Tensor]) -> Tensor:
    """What is kept under a key, or is made and kept now.

    A damaged file is made anew; a folder that cannot be written is passed over.

    Args:
        key: Names the content.
        make: Computes it.
    """
    path = folder() / "text" / f"{key}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        return load_file(path)["embeddings"]
    made = make()
    with contextlib.suppress(StoreError), replacing(path, "embeddings") as partial:
        save_file({"embeddings": made.contiguous()}, partial)
    return made
