"""Image towers of OpenCLIP: `open_clip/ARCH/TAG`; the representation is what `encode_image` returns."""

from __future__ import annotations

from torch import nn

from unweave.errors import ModelError
from unweave.hub import fetching
from unweave.models.library import Request, Source, unknown
from unweave.models.preprocessing import describe


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`. Without pretrained weights the tag may be left out.

    Raises:
        ModelError: open_clip does not know the architecture or the tag, or the hub is out of reach.
    """
    import open_clip

    name, _, tag = request.name.partition("/")
    if name not in open_clip.list_models():
        raise unknown("OpenCLIP architecture", name, open_clip.list_models(), where=request.id)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise unknown(f"tag of {name}", tag, tags, where=request.id)
    if request.pretrained and not tag:
        raise ModelError(
            "The id names no pretrained weights.",
            where=request.id,
            cure=f"one of {', '.join(f'open_clip/{name}/{t}' for t in tags)}",
        )
    with fetching(request.id, allowed=request.pretrained):
        module, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=tag if request.pretrained else None, force_image_size=request.image_size
        )
    config = module.visual.preprocess_cfg
    size = config["size"]
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    described = describe(
        height if height == width else (height, width),
        (height, width),
        config["mean"],
        config["std"],
        config["interpolation"],
    )
    described["mode"] = config["resize_mode"]
    return Source(module, preprocess, described, (3, height, width), tower=_visual)


def _visual(module: nn.Module) -> nn.Module:
    return module.get_submodule("visual")
