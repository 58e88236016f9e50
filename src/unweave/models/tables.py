"""The tables of tensors that a checkpoint file holds, read without executing anything in it."""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unweave.errors import ModelError

Tables = dict[str, dict[str, Tensor]]
"""Where a table of tensors stands in a file (`state_dict`, `teacher`, nothing for the file itself), and its tensors."""

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch itself puts into names, wherever it wraps a module to compile, shard or recompute it."""

_DEEPEST = 8
"""How many mappings deep tables are looked for."""


class _Settings:
    """Stands in the place of a trainer's record of its settings, and keeps nothing of it."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _mapping(*_: object) -> dict[Any, Any]:
    """Stands in the place of a mapping that torch does not fill."""
    return {}


def _harmless() -> list[Any]:
    """What trainers save beside weights and whose making does nothing else: a fixed list.

    Names of packages that need not be installed stand for plain records here; nothing is imported for a file.
    """
    core = importlib.import_module("numpy._core.multiarray")
    numpy: list[Any] = [np.dtype, np.ndarray]
    numpy += [kind for name in dir(np.dtypes) if isinstance(kind := getattr(np.dtypes, name), type)]
    numpy += [
        (getattr(core, name), f"numpy.{place}.multiarray.{name}")
        for place in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ]
    paths = [
        (getattr(pathlib, f"Pure{kind}"), f"{place}.{kind}")
        for place in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath")
    ]
    lightning = [
        (OrderedDict, f"{place}.AttributeDict")
        for place in (
            "pytorch_lightning.utilities.parsing",
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
        )
    ]
    omegaconf = [
        (_Settings, f"omegaconf.{name}")
        for name in (
            "base.ContainerMetadata",
            "base.Metadata",
            "dictconfig.DictConfig",
            "listconfig.ListConfig",
            *(f"nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "Path", "String")),
        )
    ]
    return [
        *(bool, int, float, str, list, dict, slice, datetime, timedelta),
        (_mapping, "collections.defaultdict"),
        argparse.Namespace,
        types.SimpleNamespace,
        *numpy,
        *paths,
        *lightning,
        *omegaconf,
        (_Settings, "typing.Any"),
    ]


def read_tables(path: str | os.PathLike[str]) -> Tables:
    """Read the tables of a safetensors file, or of a torch file of weights and plain records.

    Tables are found in mappings within mappings, as trainers write them. What torch puts into names where it compiles
    or shards a module is taken out.

    Raises:
        ModelError: There is no such file, or it holds no tensors with names, or needs code to be executed.
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
            _refuse_programs(path)
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_harmless()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    # Whatever parsing trips over, and what torch refuses because reading it would execute code.
    except Exception as error:
        raise _unreadable(path) from error
    tables: Tables = {}
    for place, name, tensor in _tensors(content):
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        tables.setdefault(place, {})[name] = tensor
    if not tables:
        raise ModelError(
            "The file holds no state dict (names with tensors).",
            where=str(path),
            cure="save `model.state_dict()` by itself, best with safetensors.torch.save_file",
        )
    return tables


def _tensors(content: object) -> Iterator[tuple[str, str, Tensor]]:
    """Each tensor with its name and the place of its table, the file's own order kept."""
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        place, table = waiting.pop(0)
        if isinstance(table, (list, tuple)):
            table = dict(enumerate(table)) if any(isinstance(part, Mapping) for part in table) else None
        if not isinstance(table, Mapping) or id(table) in seen or place.count(".") >= _DEEPEST:
            continue
        seen.add(id(table))
        for name, value in table.items():
            if isinstance(value, Tensor) and isinstance(name, str):
                yield place, name, value
        waiting += [(f"{place}.{name}" if place else str(name), value) for name, value in table.items()]


def _unreadable(path: Path) -> ModelError:
    try:
        asks = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        asks = []
    known = {own[1] if isinstance(own, tuple) else f"{own.__module__}.{own.__qualname__}" for own in _harmless()}
    asks = [name for name in asks if name not in known]
    if not asks:
        return ModelError(
            "The file is neither safetensors nor a torch file that holds weights alone.",
            where=str(path),
            cure="save the state dict by itself, best with safetensors.torch.save_file",
        )
    whole = any(name.startswith("torch.nn.modules.") for name in asks)
    listed = ", ".join(asks[:4]) + (", ..." if len(asks) > 4 else "")
    return ModelError(
        f"The file {'is a whole module' if whole else 'holds more than weights'}, "
        f"and reading it would run code ({listed}); nothing is run.",
        where=str(path),
        cure="where it was made, save the weights alone: `torch.save(model.state_dict(), FILE)`",
    )


def _refuse_programs(path: Path) -> None:
    """Archives that hold code, and those that torch never writes.

    Torch never compresses what it saves, so what is compressed was made to grow when it is read.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist())
        parts = {name.partition("/")[2] for name in file.namelist()}
    if "constants.pkl" in parts and "data.pkl" in parts:
        raise ModelError(
            "The file is a TorchScript program, which holds code beside its weights; nothing is run.",
            where=str(path),
            cure="save its weights alone: `torch.save(torch.jit.load(FILE).state_dict(), ANOTHER)`",
        )
    if any(name.startswith("models/") and name.endswith(".json") for name in parts):
        raise ModelError(
            "The file is a program of torch.export, which holds code beside its weights; nothing is run.",
            where=str(path),
            cure="save its weights alone: `torch.save(dict(torch.export.load(FILE).state_dict), ANOTHER)`",
        )
    if parts == {""}:
        raise ModelError(
            "The file is an archive of NumPy, as JAX writes weights.",
            where=str(path),
            cure="have the model's library read it, and save the weights: `torch.save(model.state_dict(), FILE)`",
        )
    if packed:
        raise ValueError("it is compressed")
