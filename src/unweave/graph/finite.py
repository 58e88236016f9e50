"""Numbers that are none: weights that are NaN or infinite are refused before anything is computed of them.

A buffer may hold them: masks are infinite, and some libraries fill what is not used with NaN. It is refused if it makes
the representation NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unweave.errors import NonFiniteError


def check_weights(module: nn.Module) -> None:
    """Refuses parameters that are NaN or infinite.

    Raises:
        NonFiniteError: Names the first.
    """
    for name, tensor in module.named_parameters():
        if tensor.is_floating_point() and tensor.numel():
            extremes = torch.stack(torch.aminmax(tensor.detach()))
            if not bool(torch.isfinite(extremes).all()):
                raise _error(name, tensor.detach(), "weight")


def check_buffers(module: nn.Module, representation: Tensor) -> None:
    """Refuses buffers that are NaN or infinite, if the representation is.

    Raises:
        NonFiniteError: Names the first that is NaN, or else infinite.
    """
    if bool(torch.isfinite(representation).all()):
        return
    buffers = [(name, tensor) for name, tensor in module.named_buffers() if tensor.is_floating_point()]
    for bad in (torch.isnan, torch.isinf):
        for name, tensor in buffers:
            if bool(bad(tensor).any()):
                raise _error(name, tensor, "buffer")


def _error(name: str, tensor: Tensor, kind: str) -> NonFiniteError:
    count = int((~torch.isfinite(tensor)).sum())
    return NonFiniteError(
        f"{count} of the {tensor.numel()} entries of the {kind} are NaN or infinite.",
        where=name,
        cure="load the weights again, or from another checkpoint",
    )
