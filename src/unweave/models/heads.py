"""The classifier of a module, built as a checkpoint has it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn


def fit_head(module: nn.Module, state: dict[str, Tensor], required: frozenset[str], tower: str) -> list[str]:
    """Give the classifier as many classes as the checkpoint has.

    Args:
        module: Its classifier is replaced where it has other classes.
        state: The checkpoint, by the module's names; a linear layer in the classifier's place gets its name here.
        required: The names of the tensors that the representation needs.
        tower: The path of the part that matters, with a dot behind it; empty for the whole module.

    Returns:
        What was done, in sentences.
    """
    part, notes = module.get_submodule(tower.rstrip(".")), _named(module, state, required, tower)
    for path in heads(module, required, tower):
        head, weight = module.get_submodule(path), state.get(f"{path}.weight")
        if weight is None or weight.ndim not in (2, 4) or weight.shape == getattr(head, "weight", weight[:0]).shape:
            continue
        reset: Any = getattr(part, "reset_classifier", None)
        if callable(reset):
            reset(len(weight))
        elif isinstance(head, nn.Linear):
            new = nn.Linear(head.in_features, len(weight), bias=head.bias is not None)
            module.set_submodule(path, new.to(head.weight))
        else:
            continue
        notes.append(f"The classifier has {len(weight):,} classes, as in the file.")
    module.eval()
    return list(dict.fromkeys(notes))


def _named(module: nn.Module, state: dict[str, Tensor], required: frozenset[str], tower: str) -> list[str]:
    """Gives a linear layer that a trainer put in the classifier's place (`fc.1`, `heads`) the classifier's name."""
    wanted, notes = module.state_dict(), list[str]()
    for path in heads(module, required, tower):
        head, place = module.get_submodule(path), f"{top(path, required)}."
        inside = [name for name in state if name.startswith(place)]
        weights = [name for name in inside if name.endswith(".weight")]
        if not isinstance(head, nn.Linear) or len(weights) != 1 or any(name in wanted for name in inside):
            continue
        at, shape = weights[0].removesuffix(".weight"), state[weights[0]].shape
        if set(inside) <= {weights[0], f"{at}.bias"} and len(shape) == 2 and shape[1] == head.in_features:
            for name in inside:
                state[path + name.removeprefix(at)] = state.pop(name)
            notes.append(
                f"The classifier is the linear layer `{at}`; what stands beside it without weights is not known."
            )
    return notes


def top(path: str, required: Collection[str]) -> str:
    """The largest part around a part in which there is nothing that the representation needs."""
    while "." in path and not any(name.startswith(f"{path.rpartition('.')[0]}.") for name in required):
        path = path.rpartition(".")[0]
    return path


def heads(module: nn.Module, required: frozenset[str], tower: str) -> list[str]:
    """The paths of what the representation does not need: by the module's word, and what holds nothing required."""
    ask = getattr(module.get_submodule(tower.rstrip(".")), "get_classifier", None)
    named = ask() if callable(ask) else None
    named = named if isinstance(named, (tuple, list)) else [named]
    paths = [path for path, part in module.named_modules() if path and any(part is head for head in named)]
    paths += [name.rpartition(".")[0] for name in module.state_dict() if name not in required]
    return [path for path in dict.fromkeys(paths) if path.startswith(tower)]
