"""Classification models of torchvision: `torchvision/NAME`, with their default weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unweave.hub import fetching
from unweave.models import preprocessing
from unweave.models.library import Request, Source, unknown
from unweave.models.preprocessing import Preprocess, describe


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
    preset = weights.transforms()
    with fetching(request.id, allowed=request.pretrained and not cached, url=weights.url):
        module = _create(request, weights if request.pretrained else None, preset.crop_size[0])
    if request.lengths is not None:
        preprocess: Preprocess
        preprocess, described = preprocessing.default((3, *request.lengths))
        return Source(module, preprocess, described, (3, *request.lengths), returns="logits", convert=convert)
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    described = describe(resize, (crop, crop), preset.mean, preset.std, preset.interpolation.value)
    return Source(module, preset, described, (3, crop, crop), returns="logits", convert=convert)


def convert(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A checkpoint with its table of positions, where it has one, as torchvision itself resamples it."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    if "encoder.pos_embedding" not in state:
        return state
    size: Any = module
    return dict(interpolate_embeddings(size.image_size, size.patch_size, OrderedDict(state)))


def _create(request: Request, weights: Any, usual: int) -> nn.Module:
    """Builders call the size of their images by different names, or take any; the first that fits is used.

    Args:
        request: What is asked for.
        weights: Those to load; None for random ones.
        usual: The size that the default weights were trained at, which is not always the builder's own.
    """
    from torchvision.models import get_model

    sizes: list[dict[str, Any]] = [{}] if weights is not None else [{"image_size": usual}, {}]
    if request.lengths is not None:
        sizes = [{"image_size": request.image_size}, {"input_size": request.lengths}, {}]
    for keywords in sizes:
        try:
            if "image_size" not in keywords or weights is None:
                return get_model(request.name, weights=weights, **keywords)
            # With weights, torchvision builds the size that these were trained at, and no other.
            module = get_model(request.name, **keywords)
            module.load_state_dict(convert(weights.get_state_dict(progress=True, check_hash=True), module))
            return module
        except TypeError as error:
            if "image_size" in keywords and "unexpected" not in str(error):
                square = ValueError("its images are square")
                raise request.no_such_size(square, "give one number for height and width") from error
            if not keywords:
                raise
        except (AssertionError, ValueError) as error:
            raise request.no_such_size(error) from error
    raise AssertionError("the last way of building takes no size")
