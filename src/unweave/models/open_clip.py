"""Image towers of OpenCLIP: `open_clip/ARCH/TAG`, `open_clip/hf-hub:ORG/NAME`, and `open_clip/local-dir:FOLDER`.

The representation is what `encode_image` returns, before that is made of length one. A text tower that is itself a
model of the hub is built only where it can be had, and with the library's weights: the image tower is read without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from unweave.errors import ModelError, UnweaveError
from unweave.hub import fetching, is_about_files
from unweave.models import timm
from unweave.models.checkpoint import load_checkpoint
from unweave.models.library import Request, Source, unknown
from unweave.models.preprocessing import Preprocess, describe
from unweave.models.readout import first_line

_CURE = "go online once, or give a folder that holds the model's open_clip_config.json: `open_clip/local-dir:FOLDER`"

_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
"""The least text tower that OpenCLIP builds; it is thrown away."""


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`. Without pretrained weights the tag may be left out.

    Raises:
        ModelError: open_clip does not know the architecture or the tag, the hub is out of reach, the folder holds no
            model, or the model cannot have this image size.
    """
    name, tag = _check(request)
    with fetching(request.id, allowed=name.startswith("hf-hub:"), cure=_CURE), _reading(request):
        import open_clip

        text = open_clip.get_model_config(name)["text_cfg"].get("hf_model_name")
    notes: tuple[str, ...] = ()
    module: nn.Module
    if not request.pretrained:
        with fetching(request.id, allowed=False), _reading(request):
            module, preprocess = _create(request, name, tag, whole=not text)
    else:
        try:
            with fetching(request.id, allowed=bool(text) or not name.startswith("local-dir:")), _reading(request):
                module, preprocess = _create(request, name, tag, whole=True)
        except ModelError:
            if not text:
                raise
            with fetching(request.id), _reading(request):
                module, preprocess = _create(request, name, tag, whole=False)
                load_checkpoint(module, _weights(name, tag), convert=convert)
            notes = (f"The image tower alone is built: the text tower needs {text} from the hub.",)
    visual = _visual(module)
    if request.pretrained and isinstance(request.image_size, tuple):
        _check_grid(request, visual)
    config: Any = visual.preprocess_cfg
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
    return Source(
        module,
        preprocess,
        described,
        (3, height, width),
        tower=_visual,
        representation=0 if getattr(visual, "output_tokens", False) else None,  # with its tokens, it gives a tuple
        unpool=_unpool,
        convert=convert,
        notes=notes,
    )


def convert(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """OpenCLIP's own conversion of a checkpoint: the names of its older models, positions resampled."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    visual: Any = _visual(module)
    if visual is module:
        named = {f"visual.{name}": tensor for name, tensor in state.items()}
        resize_pos_embed(named, SimpleNamespace(visual=visual))
    else:
        named = convert_state_dict(module, state)
        if "positional_embedding" in named and not hasattr(module, "positional_embedding"):
            named = convert_to_custom_text_state_dict(named)
        resize_pos_embed(named, module)
        resize_text_pos_embed(named, module)
        own = module.state_dict()
        for name in ("logit_scale", "logit_bias"):
            if name in named and name in own and named[name].numel() == own[name].numel():
                named[name] = named[name].reshape(own[name].shape)
    if hasattr(visual, "trunk"):
        stem = "visual.trunk."
        trunk = {name.removeprefix(stem): own for name, own in named.items() if name.startswith(stem)}
        rest = {name: own for name, own in named.items() if not name.startswith(stem)}
        named = rest | {f"{stem}{name}": own for name, own in timm.convert(trunk, visual.trunk).items()}
    return {name.removeprefix("visual.") if visual is module else name: own for name, own in named.items()}


def split_name(name: str) -> tuple[str, str]:
    """What OpenCLIP calls a model, and the tag of its weights; models on the hub and in folders have no tag."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, ""
    architecture, _, tag = name.partition("/")
    return architecture, tag


@contextmanager
def _reading(request: Request) -> Iterator[None]:
    """While OpenCLIP builds: what it trips over is one `ModelError`, but for the hub, which `fetching` explains."""
    try:
        yield
    except UnweaveError:
        raise
    except Exception as error:
        if request.image_size is not None and isinstance(error, AssertionError | ValueError):
            raise request.no_such_size(error) from error
        local = request.name.startswith("local-dir:")
        if not local and is_about_files(error):
            raise  # which `fetching` explains
        raise ModelError(
            f"OpenCLIP cannot load the model: {type(error).__name__}: {first_line(error)}",
            where=request.id,
            cure="use a folder with the open_clip_config.json and the weights that OpenCLIP's `save_for_hf` and "
            "`push_to_hf_hub` write"
            if local
            else None,
        ) from error


def _check(request: Request) -> tuple[str, str]:
    """What OpenCLIP calls the model, and the tag of its weights."""
    import open_clip

    name, tag = split_name(request.name)
    if ":" in name:
        folder = name.removeprefix("local-dir:")
        if folder != name and not Path(folder).is_dir():
            raise ModelError(f"There is no folder {folder!r}.", where=request.id, cure="give the path of a folder")
        return name, ""
    if name not in open_clip.list_models():
        raise unknown("OpenCLIP architecture", name, open_clip.list_models(), where=request.id)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise unknown(f"tag of {name}", tag, tags, where=request.id)
    if request.pretrained and not tag:
        raise ModelError(
            "The id names no pretrained weights.",
            where=request.id,
            cure=f"one of {', '.join(f'open_clip/{name}/{t}' for t in tags)}" if tags else "`--checkpoint` with a file",
        )
    return name, tag


def _create(request: Request, name: str, tag: str, *, whole: bool) -> tuple[nn.Module, Preprocess]:
    """The model, or its image tower alone; with the library's weights where both are asked for."""
    import open_clip

    known = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    module, _, preprocess = open_clip.create_model_and_transforms(
        name,
        pretrained=tag if request.pretrained and whole else None,
        load_weights=request.pretrained and whole,
        require_pretrained=request.pretrained and whole,  # a file that cannot be had is else replaced by random weights
        force_image_size=request.image_size,
        pretrained_text=False,  # its configuration is fetched all the same
        image_mean=known.get("mean"),
        image_std=known.get("std"),
        image_interpolation=known.get("interpolation"),
        image_resize_mode=known.get("resize_mode"),
        **({} if whole else {"text_cfg": _NO_TEXT}),
    )
    return (module if whole else _visual(module)), preprocess


def _weights(name: str, tag: str) -> str:
    """The file of the library's weights."""
    import open_clip
    from open_clip.factory import _find_checkpoint_in_dir
    from open_clip.pretrained import download_pretrained_from_hf

    place, _, own = name.partition(":")
    if place == "local-dir":
        found = _find_checkpoint_in_dir(Path(own))
    elif place == "hf-hub":
        found = download_pretrained_from_hf(own)
    else:
        found = open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
    if found is None:
        raise FileNotFoundError(f"there are no weights in {own}")
    return str(found)


def _unpool(visual: nn.Module) -> int | None:
    """Makes a tower return its tokens beside what it pools of them, where it can."""
    if not hasattr(visual, "output_tokens"):
        return None
    visual.output_tokens = True  # type: ignore[assignment]
    return 1


def _visual(module: nn.Module) -> nn.Module:
    return module.get_submodule("visual") if hasattr(module, "visual") else module


def _check_grid(request: Request, visual: Any) -> None:
    """OpenCLIP would take positions on a square for those on another grid with as many patches."""
    rows, columns = getattr(visual, "grid_size", None) or (1, 1)
    if math.isqrt(rows * columns) ** 2 == rows * columns:
        raise ModelError(
            f"OpenCLIP cannot tell positions on {rows} x {columns} patches from those on a square of as many.",
            where=request.id,
            cure="choose an image size with another number of patches",
        )
