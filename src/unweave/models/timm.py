"""Models of timm: `timm/NAME[.TAG]`."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from unweave.errors import ModelError
from unweave.hub import fetching
from unweave.models.library import Request, Source, unknown
from unweave.models.preprocessing import describe
from unweave.models.readout import first_line


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`.

    Raises:
        ModelError: timm does not know the name or the tag, the hub is out of reach, or the model cannot have this
            image size.
    """
    import timm

    base, _, tag = request.name.partition(".")
    if not timm.is_model(base):
        raise unknown("timm model", request.name, [*timm.list_models(), *timm.list_pretrained()], where=request.id)
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}*") if name.partition(".")[0] == base]
    if tag and tag not in tags:
        raise unknown(f"pretrained tag of {base}", tag, tags, where=request.id)
    with fetching(request.id, allowed=request.pretrained):
        module = _create(request)
    config: dict[str, Any] = timm.data.resolve_model_data_config(module)
    if request.image_size is not None:
        config["input_size"] = (config["input_size"][0], request.image_size, request.image_size)
    channels, height, width = config["input_size"]
    resize = tuple(math.floor(length / config["crop_pct"]) for length in (height, width))
    described = describe(
        resize[0] if height == width else resize,
        (height, width),
        config["mean"],
        config["std"],
        config["interpolation"],
    )
    described["mode"] = config["crop_mode"]
    transform = timm.data.create_transform(**config, is_training=False)
    return Source(module, transform, described, (channels, height, width))


def _create(request: Request) -> nn.Module:
    import timm

    if request.image_size is None:
        return timm.create_model(request.name, pretrained=request.pretrained)
    try:
        return timm.create_model(request.name, pretrained=request.pretrained, img_size=request.image_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    except (AssertionError, ValueError) as error:
        raise ModelError(
            f"The model cannot have images of {request.image_size} pixels: {first_line(error)}",
            where=request.id,
            cure="choose a size that its patches and windows divide, or leave `image_size` out",
        ) from error
    if timm.get_pretrained_cfg(request.name).fixed_input_size:
        raise ModelError("The model takes no other image size.", where=request.id, cure="leave `image_size` out")
    return timm.create_model(request.name, pretrained=request.pretrained)
