"""Muon (Jordan et al., 2024): matrices move by orthogonal steps, all else by Adam's.

The step of a matrix is its momentum with all singular values made about one, so that every direction learns at the
same pace. Small transformers then need about half as many scenes.

`torch.optim.Muon` computes these steps in bfloat16. On a processor that has to imitate those numbers, a matrix of
384 x 128 takes 68 ms there and 8 ms here, and a training five times as long; so the zoo has its own, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

_DECAY = 0.05


class Muon(Optimizer):
    """Two optimisers in one, with one state.

    Args:
        module: What learns. The weights of its linear layers and 1 x 1 convolutions are matrices.
        rate: Of matrices, for singular values of one.
        other: The rate of everything else.
    """

    def __init__(self, module: nn.Module, rate: float, other: float = 1e-3) -> None:
        matrices = {
            id(part.weight)
            for part in module.modules()
            if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1))
        }
        groups: list[dict[str, Any]] = [{"params": [], "matrix": True, "peak": rate}]
        groups += [{"params": [], "matrix": False, "peak": other}]
        for parameter in module.parameters():
            groups[id(parameter) not in matrices]["params"].append(parameter)
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            move = _along_all if group["matrix"] else _adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * _DECAY)
                    parameter.sub_(group["lr"] * move(parameter.grad, self.state[parameter]))


def _along_all(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """The step of a matrix; queries, keys and values that share one are three."""
    if not state:
        state["mean"] = torch.zeros_like(gradient)
    state["mean"].lerp_(gradient, 0.05)
    wanted = gradient.lerp(state["mean"], 0.95).flatten(1)
    rows, columns = wanted.shape
    parts = wanted.chunk(3) if rows == 3 * columns else (wanted,)
    scale = max(1.0, parts[0].shape[0] / columns) ** 0.5
    return scale * torch.cat([orthogonal(part) for part in parts]).view_as(gradient)


def _adam(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    if not state:
        state.update(time=torch.zeros(()), mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
    state["time"] += 1
    state["mean"].lerp_(gradient, 0.1)
    state["square"].lerp_(gradient.square(), 0.01)
    mean, square = state["mean"] / (1 - 0.9 ** state["time"]), state["square"] / (1 - 0.99 ** state["time"])
    return mean / (square.sqrt() + 1e-8)


def orthogonal(matrix: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The nearest matrix whose singular values are all about one, by Newton and Schulz's iteration."""
    found = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    found = found / (found.norm() + 1e-7)
    for _ in range(5):
        gram = found @ found.T
        found = 3.4445 * found + (2.0315 * gram @ gram - 4.7750 * gram) @ found
    return found.T if matrix.shape[0] > matrix.shape[1] else found
