"""A checkpoint file: read without executing anything in it, and fitted to a module or refused with what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unweave.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a weights-only torch file.

    The `state_dict` or `model` key of a training checkpoint is unwrapped, and the `module.` prefix of data-parallel
    training taken off.

    Raises:
        ModelError: There is no such file, or it holds no state dict, or needs code to be executed.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            "There is no such checkpoint file.", where=str(path), cure="give the path of a file of weights"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            "The file is neither safetensors nor a torch file that holds weights alone.",
            where=str(path),
            cure="save the state dict by itself, best with safetensors.torch.save_file",
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise ModelError(
            "The file holds no state dict (names with tensors).",
            where=str(path),
            cure="save `model.state_dict()` by itself, best with safetensors.torch.save_file",
        )
    state = {str(name): value for name, value in content.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_checkpoint(module: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a module, in place; every key must fit.

    Raises:
        ModelError: The file cannot be read, or does not fit: the keys that are missing, unexpected and differently
            shaped.
    """
    given, wanted = read_checkpoint(path), module.state_dict()
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    shapes = [
        f"{name} {list(given[name].shape)} for {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name].shape != wanted[name].shape
    ]
    misfits = [("missing", missing), ("unexpected", unexpected), ("differently shaped", shapes)]
    if any(names for _, names in misfits):
        listed = "; ".join(f"{len(names)} {kind}: {_few(names)}" for kind, names in misfits if names)
        raise ModelError(
            f"The checkpoint does not fit the model. {listed}.",
            where=str(path),
            cure="choose the model id that the checkpoint was saved from, and its image size",
        )
    module.load_state_dict(given)


def _few(names: Iterable[str], number: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")
