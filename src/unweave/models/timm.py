"""Models of timm: `timm/NAME[.TAG]`, `timm/hf-hub:ORG/NAME`, and `timm/local-dir:FOLDER`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unweave.errors import ModelError, UnweaveError
from unweave.hub import fetching
from unweave.models.library import Request, Source, unknown
from unweave.models.preprocessing import describe
from unweave.models.readout import first_line

_CURE = "go online once, or give a folder that holds the model's config.json and its weights: `timm/local-dir:FOLDER`"


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`.

    Raises:
        ModelError: timm does not know the name or the tag, the hub is out of reach, the folder holds no model, or the
            model cannot have this image size.
    """
    import timm
    from timm.layers import to_2tuple

    folder = _check(request)
    hub = request.name.startswith(("hf-hub:", "hf_hub:"))
    # With random weights it is only the configuration that is needed of the hub.
    with fetching(
        request.id, allowed=hub or (request.pretrained and folder is None), **({"cure": _CURE} if hub else {})
    ):
        try:
            arguments = _arguments(request)
            module = _create(request)
        except Exception as error:  # a folder's files are of anybody's making
            if folder is None or isinstance(error, UnweaveError):
                raise
            raise ModelError(
                f"timm cannot load the model: {' '.join(str(error).split())[:300] or type(error).__name__}",
                where=request.id,
                cure="use a folder with the config.json and the weights that timm's `save_for_hf` writes",
            ) from error
    config: dict[str, Any] = timm.data.resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    height, width = request.lengths or to_2tuple(arguments.get("img_size", (height, width)))
    config["input_size"] = (channels, height, width)
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
    return Source(module, transform, described, (channels, height, width), unpool=_unpool, convert=convert)


def convert(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A checkpoint as timm itself converts it to a model of its own: other codes' names, positions resampled."""
    import timm

    entrance = timm.model_entrypoint(module.pretrained_cfg["architecture"])  # type: ignore[index]
    known = vars(sys.modules[entrance.__module__])
    filter_state = known.get("checkpoint_filter_fn") or known["_filter_fn"]
    converted: dict[str, Tensor] = filter_state(state, module)
    return converted


def _unpool(module: nn.Module) -> None:
    """Makes a model return its last tokens or map, as timm's own `global_pool=""` does; its classifier is gone then."""
    reset: Any = getattr(module, "reset_classifier", None)
    if callable(reset):
        reset(0, "")


def _check(request: Request) -> Path | None:
    """Whether timm knows the name.

    Returns:
        The folder that it names, if it names one.
    """
    import timm

    try:
        place, name = timm.models.parse_model_name(request.name)
    except ValueError as error:
        raise ModelError(
            f"There is no timm model {request.name!r}: {first_line(error)}",
            where=request.id,
            cure=f"`timm/hf-hub:{request.name.rpartition(':')[2] or 'ORG/NAME'}` for a model on the hub, "
            "`timm/local-dir:FOLDER` for one in a folder",
        ) from error
    if place == "local-dir":
        if not Path(name).is_dir():
            raise ModelError(f"There is no folder {name!r}.", where=request.id, cure="give the path of a folder")
        return Path(name)
    if place is None:
        base, _, tag = name.partition(".")
        if not timm.is_model(base):
            raise unknown("timm model", name, [*timm.list_models(), *timm.list_pretrained()], where=request.id)
        tags = [own.partition(".")[2] for own in timm.list_pretrained(f"{base}*") if own.partition(".")[0] == base]
        if tag and tag not in tags:
            raise unknown(f"pretrained tag of {base}", tag, tags, where=request.id)
    return None


def _arguments(request: Request) -> dict[str, Any]:
    """What a model on the hub or in a folder is built with, where it differs from what its architecture says."""
    import timm
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    place, name = timm.models.parse_model_name(request.name)
    if place is None:
        return {}
    read = load_model_config_from_path if place == "local-dir" else load_model_config_from_hf
    arguments: dict[str, Any] = read(name)[2] or {}
    return arguments


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
        raise request.no_such_size(error) from error
    module = timm.create_model(request.name, pretrained=request.pretrained)
    if module.pretrained_cfg.get("fixed_input_size"):
        raise request.no_such_size()
    return module
