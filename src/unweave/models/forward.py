"""How a module is called: what torch wraps around it, what cannot be captured, and how images are given to it.

What can be learnt from a module's behaviour is: its signature names the argument that takes the images, and the first
layer that is called meets them, so its weights are of their type.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from unweave.errors import ArgumentError, ModelError

IMAGES = (
    "pixel_values",
    "pixel_values_videos",
    "images",
    "image",
    "imgs",
    "img",
    "x",
    "inputs",
    "input",
    "samples",
    "videos",
    "video",
    "clip",
)
"""What libraries call the argument that takes the images."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch's own wrappers, which compute the same (`torch.compile`, `DataParallel`).

    Raises:
        ArgumentError: It is no module.
    """
    while True:
        if not isinstance(module, nn.Module):
            raise ArgumentError(
                f"A {type(module).__name__} is no torch.nn.Module.",
                cure="give the module itself, or load one by its id with `unweave.load_model`",
            )
        if "_orig_mod" in module._modules:
            module = module.get_submodule("_orig_mod")
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


# --- what cannot be captured


def check_supported(module: nn.Module) -> None:
    """Refuses a module whose operations, or whose weights, are not there to be read.

    Raises:
        ModelError: TorchScript, quantised layers, and weights without values, without shapes, split over processes, or
            made in inference mode; names the part.
    """
    for path, part in module.named_modules():
        tensors = [(name, tensor) for name, tensor in _own_tensors(part)]
        for what, cure, concerns in _PARTS:
            if concerns(part):
                raise ModelError(what, where=path or type(part).__name__, cure=cure)
        for what, cure, concerns_tensor in _TENSORS:
            for name, tensor in tensors:
                if concerns_tensor(tensor):
                    raise ModelError(what, where=f"{path}.{name}" if path else name, cure=cure)


def _own_tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for tensors in (part._parameters, part._buffers):
        yield from ((name, tensor) for name, tensor in tensors.items() if isinstance(tensor, Tensor))


def _is_quantised(part: nn.Module) -> bool:
    # A layer of torch's own that holds packed weights, or quantises what it is given.
    return any(
        kind.__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))
        for kind in type(part).__mro__
    )


def _is_sharded(part: nn.Module) -> bool:
    return type(part).__name__ == "FullyShardedDataParallel" and type(part).__module__.startswith("torch.distributed.")


_GATHER = (
    "gather them on one process (`get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))` of "
    "torch.distributed.checkpoint.state_dict), and load them into a module that is not sharded"
)

_PARTS: tuple[tuple[str, str, Callable[[nn.Module], bool]], ...] = (
    (
        "The module is TorchScript (scripted, traced or loaded by `torch.jit.load`), which has no Python forward to be "
        "captured.",
        "make the module in Python and give it the weights: `module.load_state_dict(scripted.state_dict())`",
        lambda part: isinstance(part, torch.jit.ScriptModule),
    ),
    (
        "The layer is quantised: its weights are packed, and its arithmetic is not that of its weights.",
        "give the module as it was before it was quantised; `.to(torch.bfloat16)` takes half the memory",
        _is_quantised,
    ),
    ("The weights are sharded over processes (FSDP).", _GATHER, _is_sharded),
)
"""Kinds of parts that cannot be captured: what is said, a cure, and which they are."""

_TENSORS: tuple[tuple[str, str, Callable[[Tensor], bool]], ...] = (
    (
        "The weight has no shape yet: a lazy layer gets its weights when it is first called.",
        "call the module once on images before giving it",
        is_lazy,
    ),
    (
        "The weight is on the meta device: it has a shape, and no values.",
        "`module.to_empty(device='cpu')`, then load the weights (`module.load_state_dict(...)`)",
        lambda tensor: tensor.is_meta,
    ),
    (
        "The weight is quantised.",
        "give the module as it was before it was quantised; `.to(torch.bfloat16)` takes half the memory",
        lambda tensor: tensor.is_quantized,
    ),
    (
        "The weights are sharded over processes (DTensor).",
        _GATHER,
        lambda tensor: hasattr(tensor, "full_tensor") and hasattr(tensor, "placements"),
    ),
    (
        "The weight was made in `torch.inference_mode()`, whose tensors cannot be captured.",
        "make or load the module outside of it, or give `copy.deepcopy(module)`, copied outside of it",
        lambda tensor: tensor.is_inference() and not torch.is_inference_mode_enabled(),
    ),
)
"""Kinds of tensors that cannot be captured: what is said, a cure, and which they are."""


# --- how images are given


def image_argument(module: nn.Module, named: str | None = None) -> str | None:
    """The keyword by which a module's forward takes images; None where they are its first argument.

    Args:
        module: Its forward's signature is read.
        named: What the caller says that it is.

    Raises:
        ModelError: The forward has no such argument, or cannot be called without others.
    """
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # a forward that is no Python function
        return named
    keywords = [own for own in parameters if own.kind not in (own.VAR_POSITIONAL, own.VAR_KEYWORD)]
    names = [own.name for own in keywords if own.kind is not own.POSITIONAL_ONLY]
    if named is not None:
        if named not in names and not any(own.kind is own.VAR_KEYWORD for own in parameters):
            raise ModelError(
                f"The forward takes no {named!r}.",
                where=type(module).__qualname__,
                cure=f"its arguments are {', '.join(names) or 'without names'}",
            )
        chosen: str | None = named
    else:
        chosen = _chosen(parameters, names)
    first = next((own for own in parameters if own.kind in (*_POSITIONAL, own.VAR_POSITIONAL)), None)
    taken = first.name if chosen is None and first is not None else chosen
    needed = [own.name for own in keywords if own.default is own.empty and own.name != taken]
    if needed:
        raise ModelError(
            f"The forward needs more than images: {', '.join(needed)}.",
            where=type(module).__qualname__,
            cure="wrap the module in one whose forward takes images alone and holds the others as buffers",
        )
    return chosen


def _chosen(parameters: list[inspect.Parameter], names: list[str]) -> str | None:
    first = parameters[0] if parameters else None
    if first is not None and first.kind not in (first.KEYWORD_ONLY, first.VAR_KEYWORD):  # noqa: SIM102, two questions
        if first.kind is first.VAR_POSITIONAL or first.name in IMAGES or first.default is first.empty:
            return None
    known = next((name for name in IMAGES if name in names), None)
    if known is not None:
        return known
    required = [own.name for own in parameters if own.kind is own.KEYWORD_ONLY and own.default is own.empty]
    if len(required) == 1:
        return required[0]
    if first is not None and first.kind is first.VAR_KEYWORD:
        return IMAGES[0]
    return None


def called(module: nn.Module, images: Tensor, argument: str | None) -> Any:
    """What a module's forward returns of images that it takes by this keyword, or as its first argument."""
    return module(images) if argument is None else module(**{argument: images})


_entrances: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""The layer that meets the images, of modules whose weights are of several types."""


def device_and_dtype(
    module: nn.Module, input_size: Sequence[int] | None = None, argument: str | None = None
) -> tuple[torch.device, torch.dtype]:
    """Where a module's images should be, and of which type: that of its weights.

    Where they are of several, it is that of the layer that meets the images, for which the module is called once, up to
    there; without a size, that of the first.

    Args:
        module: Images to whatever it makes of them.
        input_size: Of one image.
        argument: The keyword by which it takes them.
    """
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    first = next(iter(tensors), torch.empty(0))
    kinds = {tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()}
    if len(kinds) < 2:
        return first.device, first.dtype
    if module not in _entrances and input_size is not None:
        images = torch.zeros((1, *input_size), device=first.device, dtype=first.dtype)
        entrance = _entrance(module, images, argument)
        if entrance is not None:
            _entrances[module] = entrance
    weights = _entrances[module].parameters(recurse=False) if module in _entrances else iter(tensors)
    return first.device, next(weights, first).dtype


class _Met(Exception):
    """A layer was called."""


def _entrance(module: nn.Module, images: Tensor, argument: str | None) -> nn.Module | None:
    """The first layer with weights that is given numbers, not indices."""
    layers = {part for part in module.modules() if not any(part.children()) and any(True for _ in part.parameters())}
    found: list[nn.Module] = []

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if layer in layers and given and isinstance(given[0], Tensor) and given[0].is_floating_point():
            found.append(layer)
            raise _Met

    handle = register_module_forward_pre_hook(note)  # of all modules, so that this one is left as it is
    try:
        with torch.no_grad(), suppress(Exception):
            called(module, images, argument)
    finally:
        handle.remove()
    return found[0] if found else None
