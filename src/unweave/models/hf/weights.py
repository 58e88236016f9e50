"""Weights of transformers' files: only those that images reach, and none that is missing or left over unsaid."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from unweave.errors import ModelError

_UNREAD = ("mask_token", "position_ids", "relative_position_index", "inv_freq", "num_batches_tracked", "bias_mask")
"""What files hold beside the weights of layers, and images alone never meet."""


@dataclass(frozen=True)
class Loaded:
    """A model with its weights.

    Attributes:
        model: In evaluation mode.
        missing: Weights that the file does not hold, or not in their shape, and that were drawn by chance; with the
            shapes, where it is for them.
        notes: What was taken off and left out, in words.
    """

    model: nn.Module
    missing: dict[str, str]
    notes: tuple[str, ...] = ()


def loaded(build: Any, config: Any, name: str, *, reached: frozenset[str] | None, id: str) -> Loaded:
    """A model with the weights of a folder, or of a model on the hub.

    Args:
        build: A class of transformers.
        config: What it is built of.
        name: The folder, or the model on the hub.
        reached: The weights that images reach; the rest is not built, and not read. None for all of it.
        id: For messages.

    Raises:
        ModelError: Weights of layers that images reach are left over, or their names have several prefixes.
    """
    options: dict[str, Any] = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if reached is None:
        source: str | None = name
        kept = build
    else:
        kept = _only(build, reached)
        state = _state(name, build, config, reached)
        source = name if state is None else None
        options |= {} if state is None else {"state_dict": state}
    with _quiet():
        model, told = kept.from_pretrained(source, **options)
    missing, unexpected = set(told["missing_keys"]), set(told["unexpected_keys"])
    notes: tuple[str, ...] = ()
    prefix = _prefix(missing, unexpected, getattr(build, "base_model_prefix", ""), id)
    if prefix is not None:
        taken, put = prefix
        options["key_mapping"] = {"^" + re.escape(taken): put}
        with _quiet():
            model, told = kept.from_pretrained(source, **options)
        missing, unexpected = set(told["missing_keys"]), set(told["unexpected_keys"])
        notes = (f"The prefix `{taken}` is taken off the names of the weights.",)
    over = sorted(unexpected)
    astray = [key for key in over if _belongs(key, model)]
    if astray:
        listed = f"; {len(missing)} are missing: {_few(sorted(missing))}" if missing else ""
        raise ModelError(
            f"The file holds {len(astray)} weights that the model of its config.json has no place for: "
            f"{_few(astray)}{listed}.",
            where=id,
            cure="use the configuration that the weights were saved with",
        )
    rest = [key for key in over if key.rpartition(".")[2] not in _UNREAD]
    if rest and reached is None:
        notes += (f"{len(rest)} weights of the file are left out: {_few(rest)}.",)
    absent = {*missing, *(key for key, *_ in told["mismatched_keys"])}
    _fill(model, absent)  # which have to be tried before it can be told whether they matter
    shapes = {key: f"{list(of_file)} in the file, {list(own)} here" for key, of_file, own in told["mismatched_keys"]}
    return Loaded(model, dict.fromkeys(missing, "") | shapes, notes)


def drawn(build: Any, config: Any, reached: frozenset[str] | None) -> nn.Module:
    """A model with weights drawn by chance, of what images reach."""
    if reached is None:
        return build._from_config(config) if hasattr(build, "_from_config") else build(config)
    with _quiet():
        model: nn.Module = _only(build, reached).from_pretrained(None, config=config, state_dict={})
    _fill(model, set(model.state_dict()))
    return model


_FROZEN = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
"""What frozen norms keep as buffers, and others as weights and statistics; and what it is where nothing was learned."""


@torch.no_grad()
def _fill(model: nn.Module, absent: set[str]) -> None:
    """Draws weights that no file has: transformers leaves some of them as the memory happened to be."""
    named = list(model.named_parameters(remove_duplicate=False))
    read = {id(weight) for name, weight in named if name not in absent}
    for name, weight in named:
        if id(weight) not in read:
            if weight.ndim > 1:
                weight.normal_(std=0.02)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, buffer in model.named_buffers():
        value = _FROZEN.get(name.rpartition(".")[2])
        if value is not None and name in absent:
            buffer.fill_(value)


class _Touching(TorchFunctionMode):
    """Notes which weights are computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") != "__get__":
            self.weights |= {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter)}
        return func(*args, **(kwargs or {}))


def touched(model: nn.Module, run: Callable[[], object]) -> frozenset[str]:
    """The weights of a model that a function computes with."""
    mode = _Touching()
    with torch.no_grad(), mode:
        run()
    return frozenset(
        name for name, weight in model.named_parameters(remove_duplicate=False) if id(weight) in mode.weights
    )


def reached(build: Any, config: Any, run: Callable[[nn.Module], object]) -> frozenset[str]:
    """The weights that images reach, found without making any: on shapes alone.

    Args:
        build: A class of transformers.
        config: What it is built of.
        run: Calls the model on images of its size.
    """
    with torch.device("meta"), _quiet():
        model = build(config).eval()
    model.config._attn_implementation = "eager"  # of whose operations each can be mapped
    with FakeTensorMode(allow_non_fake_inputs=True), _unlogged():
        for part in model.modules():
            for slot in (part._parameters, part._buffers):
                for name, tensor in slot.items():
                    if tensor is not None:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                        slot[name] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
        return touched(model, lambda: run(model))


class _Nothing(nn.Module):
    """Stands where images do not come; what is done to its weights when a model is made is done to none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.empty(0, 1), torch.empty(0)

    def __iter__(self) -> Iterator[nn.Module]:
        """Of a list of layers none is left."""
        return iter(())


def _only(build: Any, reached: frozenset[str]) -> Any:
    """A class that builds nothing that images do not reach."""

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        build.__init__(self, config, *args, **kwargs)
        for path in _beside(self, reached):
            owner, _, name = path.rpartition(".")
            setattr(self.get_submodule(owner), name, _Nothing())
        names = {name for name, _ in self.named_parameters()}
        ties = getattr(self, "all_tied_weights_keys", None) or {}
        self.all_tied_weights_keys = {name: of for name, of in ties.items() if {name, of} <= names}

    def initialise(self: Any, module: nn.Module) -> None:
        try:
            build._init_weights(self, module)
        except (AttributeError, TypeError) as error:  # it looks into what is not there
            if _Nothing.__name__ not in str(error):
                raise

    methods = {"__init__": init, "_init_weights": initialise}
    return type(build.__name__, (build,), methods | {"__module__": build.__module__})


def _beside(model: nn.Module, reached: frozenset[str]) -> list[str]:
    """The largest submodules that images do not reach."""
    paths: list[str] = []
    for path, part in model.named_modules():
        inside = [f"{path}.{name}" for name, _ in part.named_parameters()]
        if path and inside and not reached.intersection(inside) and not any(path.startswith(f"{p}.") for p in paths):
            paths.append(path)
    return paths


def _state(name: str, build: Any, config: Any, reached: frozenset[str]) -> dict[str, Tensor] | None:
    """The weights that images reach, read from the files that hold one of them; None where there are no safetensors."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    index = cached_file(name, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    single = None
    if index is None:
        single = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
        if single is None:
            return None
        with safe_open(single, "pt") as file:
            where = dict.fromkeys(file.keys(), "model.safetensors")
    else:
        where = json.loads(Path(index).read_text())["weight_map"]
    wanted = set(_wanted(where, build, config, reached))
    state: dict[str, Tensor] = {}
    for shard in sorted({where[key] for key in wanted}):
        with safe_open(single or cached_file(name, shard), "pt") as file:
            state |= {key: file.get_tensor(key) for key in file.keys() if key in wanted}  # noqa: SIM118
    return state


def _wanted(keys: Mapping[str, str], build: Any, config: Any, reached: frozenset[str]) -> Iterator[str]:
    """The names in a file that become weights that images reach, or that nobody knows."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    with torch.device("meta"), _quiet():
        model = build(config)
    whole = model.state_dict()
    beside = tuple(f"{path}." for path in _beside(model, reached))
    conversions = get_model_conversion_mapping(model)
    renamings = [own for own in conversions if isinstance(own, WeightRenaming)]
    converters = [own for own in conversions if isinstance(own, WeightConverter)]
    for key in keys:
        target, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, whole)
        if target not in whole and key in whole:
            target = key
        if (target in whole or _belongs(target, model)) and not target.startswith(beside):
            yield key


def _prefix(missing: set[str], unexpected: set[str], base: str, id: str) -> tuple[str, str] | None:
    """What stands before the names of missing weights in a file, and what the model has in its place.

    Raises:
        ModelError: Several such prefixes fit.
    """
    if not missing or not unexpected:
        return None
    found: dict[tuple[str, str], int] = {}
    for put in (f"{base}.", "") if base else ("",):
        inner = {key.removeprefix(put) for key in missing if key.startswith(put)}
        if not inner:
            continue
        probe = max(inner, key=len)
        ends = {key.removesuffix(probe) for key in unexpected if key.endswith(f".{probe}")}
        count = {prefix: sum(prefix + key in unexpected for key in inner) for prefix in ends}
        fitting = sorted(prefix for prefix in count if count[prefix] > len(inner) // 2)
        if len(fitting) > 1:
            raise ModelError(
                f"The names of the weights have several prefixes that fit: {', '.join(fitting)}.",
                where=id,
                cure="save the one model that is meant by itself, with `save_pretrained`",
            )
        found |= {(prefix, put): count[prefix] for prefix in fitting}
    return max(found, key=found.__getitem__, default=None)


def _belongs(key: str, model: nn.Module) -> bool:
    """Whether a weight without a place is one of a layer that the model has, or of one more in a row of layers."""
    if key.rpartition(".")[2] in _UNREAD:
        return False
    path, modules = key.rpartition(".")[0], dict(model.named_modules())
    while path and path not in modules:
        path, _, last = path.rpartition(".")
        if last.isdigit() and path in modules:
            return bool(list(modules[path].parameters()))
    return bool(path) and bool(list(modules[path].parameters(recurse=False)))


def _few(names: list[str], number: int = 4) -> str:
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without what torch logs of an operation that does not run, which an error tells anyway."""
    logger = logging.getLogger(torch._subclasses.fake_tensor.__name__)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of what it did not find, which is read here."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
