"""Arithmetic in the type of the operands: what every computation of this package is done under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch


class _FullPrecision:
    """Float32 without TF32 while any thread is inside; the process's switches are then as they were."""

    def __init__(self, switches: tuple[Any, ...]) -> None:
        self._switches = switches
        self._before: list[str] = []
        self._inside = 0
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = [switch.fp32_precision for switch in self._switches]
                for switch in self._switches:
                    switch.fp32_precision = "ieee"
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for switch, before in zip(self._switches, self._before, strict=True):
                    switch.fp32_precision = before


_cudnn: Any = torch.backends.cudnn
_FULL_PRECISION = _FullPrecision((torch.backends.cuda.matmul, _cudnn.conv, _cudnn.rnn))


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast and, on a GPU, no TF32: operations compute in the type of what they are given.

    PyTorch lets cuDNN round what a float32 convolution multiplies to ten bits. A contribution that is a product of
    weights would then differ from what the convolution computed by about 1e-4, and so would the sum.
    """
    full = _FULL_PRECISION if device.type == "cuda" else nullcontext()
    with torch.no_grad(), torch.autocast(device.type, enabled=False), full:
        yield
