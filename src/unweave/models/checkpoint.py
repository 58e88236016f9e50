"""A checkpoint file: read without executing anything in it, and fitted to a module or refused with what differs."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unweave.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
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
            _refuse_compressed(path)
            with warnings.catch_warnings(action="ignore"):  # what it warns of is refused below
                content = torch.load(path, map_location="cpu", weights_only=True)
    # Whatever parsing trips over, and what torch refuses because reading it would execute code.
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
    odd = next((name for name, value in state.items() if not _is_ordinary(value)), None)
    if odd is not None:
        raise ModelError(
            f"The file holds weights that are sparse, quantised or left out, such as {odd}.",
            where=str(path),
            cure="save them as ordinary tensors: `to_dense()` or `dequantize()` makes one",
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_checkpoint(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint into a module, in place; every key must fit.

    Raises:
        ModelError: The file cannot be read, or does not fit: the keys that are missing, unexpected and differently
            shaped.
    """
    given, wanted = read_checkpoint(path), module.state_dict()
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given.keys() - wanted.keys())
    both = sorted(wanted.keys() & given.keys())
    shapes = [
        f"{name} {list(given[name].shape)} for {list(wanted[name].shape)}"
        for name in both
        if given[name].shape != wanted[name].shape
    ]
    # Complex numbers would lose their imaginary part, and fractions what is behind the point.
    kinds = [
        f"{name} {given[name].dtype} for {wanted[name].dtype}"
        for name in both
        if not torch.can_cast(given[name].dtype, wanted[name].dtype)
    ]
    misfits = [
        ("missing", missing),
        ("unexpected", unexpected),
        ("differently shaped", shapes),
        ("of another kind of number", kinds),
    ]
    if any(names for _, names in misfits):
        listed = "; ".join(f"{len(names)} {kind}: {_few(names)}" for kind, names in misfits if names)
        raise ModelError(
            f"The checkpoint does not fit the model. {listed}.",
            where=str(path),
            cure="choose the model id that the checkpoint was saved from, and its image size",
        )
    module.load_state_dict(given)


def _is_ordinary(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _refuse_compressed(path: Path) -> None:
    """Torch never compresses what it saves, so what is compressed was made to grow when it is read."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
                raise ValueError("it is compressed")


def _few(names: Iterable[str], number: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")
