"""Positions of another image size, as transformers itself resamples them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def resampled(state: dict[str, Tensor], module: nn.Module, *, size: tuple[int, int]) -> dict[str, Tensor]:
    """A checkpoint whose tables of positions are those of an image size.

    Args:
        state: The checkpoint, by the module's names.
        module: Parts of it that resample their own table say so by `interpolate_pos_encoding`, as those of
            transformers do. A part is lent the file's table while it is asked.
        size: Height and width of the module's images.
    """
    for path, part in module.named_modules():
        resample: Any = getattr(part, "interpolate_pos_encoding", None)
        for name, table in part.named_parameters() if callable(resample) else ():
            key = f"{path}.{name}" if path else name
            given = state.get(key)
            if given is None or given.shape == table.shape or given.shape[-1] != table.shape[-1]:
                continue
            own = table.data
            try:
                table.data = given.to(own)
                state[key] = resample(torch.zeros(1, *own.shape[-2:]), *size).reshape(own.shape)
            finally:
                table.data = own
    return state
