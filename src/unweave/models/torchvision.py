"""Classification models of torchvision: `torchvision/NAME`, with their default weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from unweave.errors import ModelError
from unweave.hub import fetching
from unweave.models import preprocessing
from unweave.models.library import Request, Source, unknown
from unweave.models.preprocessing import Preprocess, describe
from unweave.models.readout import first_line


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`.

    Raises:
        ModelError: torchvision does not know the name, the weights cannot be fetched, or the model cannot have this
            image size.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if request.name not in names:
        raise unknown("torchvision classification model", request.name, names, where=request.id)
    weights = models.get_model_weights(request.name).DEFAULT
    cached = (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file()
    with fetching(request.id, allowed=request.pretrained and not cached, url=weights.url):
        module = _create(request, weights if request.pretrained else None)
    preset = weights.transforms()
    if request.image_size is not None:
        size = request.image_size
        preprocess: Preprocess
        preprocess, described = preprocessing.default((3, size, size))
        return Source(module, preprocess, described, (3, size, size), returns="logits")
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    described = describe(resize, (crop, crop), preset.mean, preset.std, preset.interpolation.value)
    return Source(module, preset, described, (3, crop, crop), returns="logits")


def _create(request: Request, weights: object) -> nn.Module:
    """Builders call the size of their images by different names, or take any; the first that fits is used."""
    from torchvision.models import get_model

    size = request.image_size
    sizes: list[dict[str, Any]] = [{}] if size is None else [{"image_size": size}, {"input_size": (size, size)}, {}]
    for keywords in sizes:
        try:
            return get_model(request.name, weights=weights, **keywords)
        except TypeError:
            if not keywords:
                raise
        except (AssertionError, ValueError) as error:
            raise ModelError(
                f"The model cannot have images of {size} pixels: {first_line(error)}",
                where=request.id,
                cure="choose a size that its patches and windows divide, or leave `image_size` out",
            ) from error
    raise AssertionError("the last way of building takes no size")
