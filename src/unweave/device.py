"""Where to compute."""

from __future__ import annotations

import torch

from unweave.errors import DeviceError


def device_of(wanted: str) -> str:
    """`auto`, `cpu` or `cuda` as the device that is meant.

    Raises:
        DeviceError: There is no CUDA device.
    """
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError("There is no CUDA device here.", cure="use `--device cpu`")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
