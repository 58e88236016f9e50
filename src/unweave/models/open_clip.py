"""Image towers of OpenCLIP: `open_clip/ARCH/TAG`, `open_clip/hf-hub:ORG/NAME`, `open_clip/local-dir:FOLDER`.

The representation is what `encode_image` returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from unweave.errors import ModelError, UnweaveError
from unweave.hub import fetching, is_about_files
from unweave.models.library import Request, Source, unknown
from unweave.models.preprocessing import describe
from unweave.models.readout import first_line

HOSTED = ("hf-hub:", "local-dir:")
"""How names begin that OpenCLIP reads a configuration and weights from."""


def split(name: str) -> tuple[str, str]:
    """The architecture and the tag of a name; one that begins as in `HOSTED` is whole, and has no tag."""
    architecture, _, tag = name.partition("/")
    return (name, "") if name.startswith(HOSTED) else (architecture, tag)


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`. Without pretrained weights the tag may be left out.

    Raises:
        ModelError: open_clip does not know the architecture or the tag, or the hub is out of reach.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name, tag = split(request.name)
    hosted = name.startswith(HOSTED)
    if not hosted and name not in open_clip.list_models():
        raise unknown("OpenCLIP architecture", name, open_clip.list_models(), where=request.id)
    tags = [] if hosted else open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise unknown(f"tag of {name}", tag, tags, where=request.id)
    if request.pretrained and not tag and not hosted:
        raise ModelError(
            "The id names no pretrained weights.",
            where=request.id,
            cure=f"one of {', '.join(f'open_clip/{name}/{t}' for t in tags)}",
        )
    with fetching(request.id, allowed=request.pretrained and not name.startswith("local-dir:")), _reading(request):
        module = open_clip.create_model(
            name,
            pretrained=tag if request.pretrained and not hosted else None,
            load_weights=request.pretrained,
            require_pretrained=request.pretrained,  # a file that cannot be had is otherwise replaced by random weights
            pretrained_text=False,
            force_image_size=request.image_size,
        )
    preprocess = image_transform_v2(PreprocessCfg(**module.visual.preprocess_cfg), is_train=False)
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


@contextmanager
def _reading(request: Request) -> Iterator[None]:
    """While OpenCLIP reads a configuration and weights of anybody's making: what it trips over is one `ModelError`."""
    local = request.name.startswith("local-dir:")
    try:
        yield
    except UnweaveError:
        raise
    except Exception as error:
        if not local and is_about_files(error):
            raise  # which `fetching` explains
        raise ModelError(
            f"open_clip cannot load the model: {type(error).__name__}: {first_line(error)}",
            where=request.id,
            cure="give a folder with open_clip_config.json and the weights beside it" if local else None,
        ) from error


def _visual(module: nn.Module) -> nn.Module:
    return module.get_submodule("visual")
