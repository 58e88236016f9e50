"""Vision models of transformers: `hf/ORG/NAME` on the hub, or `hf/FOLDER` as `save_pretrained` writes it.

An image classifier is loaded with its classifier; of a model of images and text only the image tower, with its
projection where there is one. Which output is the representation is found as for any module (`unweave.models.readout`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from PIL import Image
from torch import Tensor, nn

from unweave.errors import ModelError, UnweaveError
from unweave.hub import fetching, is_about_files
from unweave.loading import LARGEST_IMAGE
from unweave.models import preprocessing
from unweave.models.library import Request, Source
from unweave.models.preprocessing import describe
from unweave.models.readout import first_line

_CURE = "go online once, or give a folder that holds the model's config.json as `hf/FOLDER`"


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`. Its configuration is needed even with random weights.

    Raises:
        ModelError: No such folder or model, the hub is out of reach, or it is not a model of images.
    """
    import transformers

    folder = is_folder(request.name)
    if request.image_size is not None and request.pretrained:
        raise ModelError(
            "A pretrained model keeps its image size here.", where=request.id, cure="leave `image_size` out"
        )
    missing: frozenset[str] = frozenset()
    with fetching(request.id, allowed=not folder, cure=_CURE), reading(request.id):
        try:
            config = transformers.AutoConfig.from_pretrained(request.name, trust_remote_code=False)
        except ValueError as error:
            raise ModelError(
                f"transformers cannot tell which model this is: {first_line(error)}", where=request.id, cure=_CURE
            ) from error
        architecture, config = _architecture(config, request)
        if request.image_size is not None:
            config.image_size = request.image_size
        if request.pretrained:
            module, told = architecture.from_pretrained(request.name, output_loading_info=True)
            missing = frozenset(told["missing_keys"])
        else:
            module = architecture.from_config(config) if hasattr(architecture, "from_config") else architecture(config)
        processor = _processor(request.name) if request.image_size is None else None
        return replace(_source(module, config, processor), missing=missing)


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder, rather than of a model on the hub."""
    try:
        return Path(name).is_dir()
    except OSError:  # a name that no folder can have, such as one of a thousand characters
        return False


@contextmanager
def reading(id: str) -> Iterator[None]:
    """While transformers reads files of anybody's making: whatever it trips over is one `ModelError`.

    It runs no code that lies beside them: neither a model's own (`trust_remote_code`) nor what a pickle asks for.

    Args:
        id: For the message.
    """
    folder = is_folder(id.removeprefix("hf/"))
    try:
        yield
    except UnweaveError:
        raise
    except Exception as error:
        if not folder and is_about_files(error):
            raise  # which `fetching` explains
        what = f"transformers cannot load the model: {type(error).__name__}: {first_line(error)}"
        if isinstance(error, UnpicklingError):
            what = "The weights are a pickle that asks for code to be run, and nothing is run."
        raise ModelError(
            what, where=id, cure="save it again with `save_pretrained`, which writes config.json and safetensors"
        ) from error


def _architecture(config: Any, request: Request) -> tuple[Any, Any]:
    """The class to build and the configuration it takes."""
    import transformers

    name = next(iter(getattr(config, "architectures", None) or ()), "")
    if (name.endswith("ForImageClassification") or "VisionModel" in name) and hasattr(transformers, name):
        return getattr(transformers, name), config
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return transformers.AutoModel, config
    stem = name.removesuffix("Model")
    for tower in (f"{stem}VisionModelWithProjection", f"{stem}VisionModel"):
        if hasattr(transformers, tower):
            return getattr(transformers, tower), vision
    raise ModelError(
        f"transformers has no image tower of its own for {name or type(config).__name__}.",
        where=request.id,
        cure="load the model yourself and give its image tower to Model.from_module",
    )


def _processor(name: str) -> Any:
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        if any(Path(name, file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
            raise  # it is there, and damaged
        return None  # many folders hold a model alone; the default preprocessing stands in, and its description says so


def _source(module: nn.Module, config: Any, processor: Any) -> Source:
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    input_size = (int(getattr(config, "num_channels", 3)), int(height), int(width))
    if processor is None:
        preprocess, described = preprocessing.default(input_size)
        return Source(module, preprocess, described, input_size)

    settings = processor.to_dict()
    lengths = [length for name in ("size", "crop_size") for length in dict(settings.get(name) or {}).values() if length]
    largest = max(lengths, default=0)
    if largest > LARGEST_IMAGE:
        raise ValueError(f"its preprocessing makes images of {largest} pixels")

    def process(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    _, height, width = process(Image.new("RGB", (640, 480))).shape
    return Source(module, process, _described(settings), (input_size[0], height, width))


def _described(settings: dict[str, Any]) -> dict[str, Any]:
    size = settings["size"] if settings.get("do_resize") else {}
    crop = settings["crop_size"] if settings.get("do_center_crop") else {}
    resize = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    return describe(
        resize,
        (crop["height"], crop["width"]) if crop else None,
        settings["image_mean"] if settings.get("do_normalize") else (0.0,),
        settings["image_std"] if settings.get("do_normalize") else (1.0,),
        Image.Resampling(settings["resample"]).name.lower() if settings.get("do_resize") else "none",
    )
