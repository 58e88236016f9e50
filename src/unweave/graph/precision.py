"""Arithmetic in the type of the operands: what every computation of this package is done under."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch


class _FullPrecision:
    """Float32 without TF32 while any thread is inside; the process's switches are then as they were.

    PyTorch has two kinds of switches for the same: one for each operation (`fp32_precision`), and older ones for all of
    a library (`allow_tf32`). It refuses to read an older one that says something else than the newer ones, and reads it
    while a module is captured; so both are turned, and both are put back.
    """

    def __init__(self) -> None:
        self._before: tuple[list[str], list[bool]] = ([], [])
        self._inside = 0
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                precisions, exact = [switch.fp32_precision for switch in _SWITCHES], ["ieee"] * len(_SWITCHES)
                _turn(exact)
                self._before = precisions, [_allowed(library) for library in _LIBRARIES]
                _turn(exact, [False] * len(_LIBRARIES))
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _turn(*self._before)


_cudnn: Any = torch.backends.cudnn
_LIBRARIES: tuple[Any, ...] = (torch.backends.cuda.matmul, _cudnn)
_SWITCHES: tuple[Any, ...] = (torch.backends.cuda.matmul, _cudnn.conv, _cudnn.rnn)


def _allowed(library: Any) -> bool:
    """What an older switch says while the newer ones say no: it cannot be read where it says yes."""
    try:
        return bool(library.allow_tf32)
    except RuntimeError:
        return True


def _turn(precisions: Sequence[str], allowed: Sequence[bool] = ()) -> None:
    with warnings.catch_warnings(action="ignore"):  # that the older switches are old
        for library, own in zip(_LIBRARIES, allowed, strict=False):
            library.allow_tf32 = own
    for switch, precision in zip(_SWITCHES, precisions, strict=True):  # which the older ones turn as well
        switch.fp32_precision = precision


_FULL_PRECISION = _FullPrecision()


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast and, on a GPU, no TF32: operations compute in the type of what they are given.

    PyTorch lets cuDNN round what a float32 convolution multiplies to ten bits. A contribution that is a product of
    weights would then differ from what the convolution computed by about 1e-4, and so would the sum.
    """
    full = _FULL_PRECISION if device.type == "cuda" else nullcontext()
    with torch.no_grad(), torch.autocast(device.type, enabled=False), full:
        yield
