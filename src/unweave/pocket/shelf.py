"""Where the zoo's weights lie: for each network a safetensors file of float16, and a JSON card that says what it is.

A card holds the names that the network knows (classes, or words), its recipe, how long that took, the hash of the
weights, and what was measured.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from unweave.errors import ModelError
from unweave.files import replacing
from unweave.notation import parse_json, read_text

WEIGHTS = Path(__file__).parent / "weights"
"""The folder that is shipped."""


def card(name: str, folder: Path | None = None) -> dict[str, Any]:
    """What is known of a network.

    Raises:
        ModelError: There is no card, or it is damaged.
    """
    path = (folder or WEIGHTS) / f"{name}.json"
    try:
        known = parse_json(read_text(path))
        if not {"names", "sha256"} <= known.keys():
            raise ValueError("it lacks names or the hash of the weights")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"The card cannot be read: {error}.", where=str(path), cure=_cure(name)) from error
    return known


def weights(name: str, folder: Path | None = None) -> Path:
    """The file of a network's weights.

    Raises:
        ModelError: It is missing, or is not the file that the card was written for.
    """
    path, wanted = (folder or WEIGHTS) / f"{name}.safetensors", card(name, folder)["sha256"]
    if not path.is_file():
        raise ModelError("The weights are missing.", where=str(path), cure=_cure(name))
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise ModelError("The weights are damaged: their hash is not the card's.", where=str(path), cure=_cure(name))
    return path


def put(name: str, network: nn.Module, known: dict[str, Any], folder: Path | None = None) -> None:
    """Lay a network's weights, rounded to float16, and its card on the shelf."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    content = save({key: value.half() if value.is_floating_point() else value for key, value in state.items()})
    folder = folder or WEIGHTS
    with replacing(folder / f"{name}.safetensors", "weights", error=ModelError) as partial:
        partial.write_bytes(content)
    write(name, known | {"sha256": hashlib.sha256(content).hexdigest()}, folder)


def write(name: str, known: dict[str, Any], folder: Path | None = None) -> None:
    """Write a card."""
    with replacing((folder or WEIGHTS) / f"{name}.json", "card", error=ModelError) as partial:
        partial.write_text(json.dumps(known, indent=2) + "\n", "utf-8")


def _cure(name: str) -> str:
    return f"install unweave again, or run `python -m unweave.pocket.train {name}`"
