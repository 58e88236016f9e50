"""What a model of transformers takes of one picture: its size, its preprocessing, and what it is told beside pixels.

A processor that always makes one image of one size is used as it is. One that cuts pictures into patches, or several
tiles, or keeps their shape, is used at one fixed size: pictures are resized to it, and where the processor puts each
pixel is found by giving it pictures whose pixels are numbered. So the model still takes images, and its tokens have
their places in them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unweave.errors import ModelError
from unweave.loading import LARGEST_IMAGE
from unweave.models import preprocessing
from unweave.models.hf.towers import Layout
from unweave.models.preprocessing import Preprocess, describe

_SIDE = 16
"""How many patches a picture has across where the model takes any number of them."""

_WHOLE: dict[str, Any] = {
    "do_image_splitting": False,
    "crop_to_patches": False,
    "do_pan_and_scan": False,
    "max_num_tiles": 1,
    "max_image_tiles": 1,
    "max_patches": 1,
    "vision_input_type": "vanilla",
    "size_divisor": 1,
}
"""Options by which processors are told not to cut a picture into several, nor to pad it."""

_BESIDE = ("grid_thw", "spatial_shapes", "image_sizes")
"""Ends of what arguments are called that tell a model how pixels lie which it takes in patches."""


@dataclass(frozen=True)
class Inputs:
    """What a model takes of one picture.

    Attributes:
        size: Of the tensor that preprocessing makes: channels, height, width; of a clip frames as well.
        preprocess: A picture to that tensor.
        described: The same in words, for JSON.
        layout: How the model is given it.
        notes: What was assumed, in words.
    """

    size: tuple[int, ...]
    preprocess: Preprocess
    described: dict[str, Any]
    layout: Layout
    notes: tuple[str, ...] = ()


def inputs_of(
    config: Any,
    name: str | None,
    image_size: int | tuple[int, int] | None,
    needed: tuple[str, ...],
    *,
    plain: bool,
) -> Inputs:
    """What a model takes of one picture.

    Args:
        config: The whole configuration.
        name: The folder, or the model on the hub, that may have a processor; None for none.
        image_size: Height and width in pixels, where not the model's own.
        needed: What the model is called with.
        plain: Whether it takes images as they are, unless its arguments tell otherwise.

    Raises:
        ModelError: It needs more than pixels, and no processor says what.
    """
    if "pixel_values_videos" in needed or _frames(config):
        return _clip(config, name, image_size, needed)
    processor = None if name is None else processor_of(name)
    beside = {argument for argument in needed if argument.endswith(_BESIDE)}
    size = sized(config, image_size)
    of_timm = getattr(processor, "data_config", None)
    if processor is not None and isinstance(of_timm, dict):  # it is made of timm's record, which may be of another size
        processor = type(processor)({**_get(config, "pretrained_cfg"), "input_size": list(size)})
    if processor is not None and (image_size is None or of_timm):
        fixed = _fixed(processor, needed)
        if fixed is not None:
            preprocess, described = preprocessing.fitted(fixed.preprocess, fixed.described, size[0])
            channels = size[0] if preprocess is not fixed.preprocess else fixed.size[0]
            return replace(fixed, size=(channels, *fixed.size[1:]), preprocess=preprocess, described=described)
    if processor is not None:
        return _numbered(processor, config, size, needed, True)
    for candidate in () if plain and not beside else _processors(config, beside):
        try:
            found = _numbered(candidate, config, size, needed, False)
        except ModelError:
            continue
        if not beside or beside & found.layout.constants.keys():
            return found
    preprocess, described = preprocessing.default(size)
    return Inputs(size, preprocess, described, Layout())


def processor_of(name: str) -> Any:
    """The image processor of a folder, or of a model on the hub; None where there is none.

    Raises:
        OSError, ValueError: It is there, and damaged.
    """
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        files = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
        if any(Path(name, file).is_file() for file in files[:2]):
            raise
        return None  # many folders hold a model alone; the default preprocessing stands in, and its description says so


def sized(config: Any, image_size: int | tuple[int, int] | None) -> tuple[int, int, int]:
    """Channels, height and width that a configuration names, of its tower where it has one; 224 where it names none."""
    configs = [config, *_inner(config)]
    channels = next((int(n) for own in configs for n in _read(own, "num_channels", "in_channels", "in_chans")), 3)
    timm = [own for name in ("pretrained_cfg", "model_args") for own in (_get(of, name) for of in configs) if own]
    chosen: Any = image_size
    for own in timm[::-1]:
        length = own.get("img_size") or own.get("input_size")
        if isinstance(length, (list, tuple)) and len(length) == 3:
            channels, length = int(length[0]), tuple(length[1:])
        channels = int(own.get("in_chans") or channels)
        chosen = chosen or length
    if chosen is None:
        chosen = next(
            (size for own in configs for size in _read(own, "image_size", "crop_size", "pretrain_img_size")), None
        )
    if chosen is None:
        patch = next((size for own in configs for size in _read(own, "patch_size")), None)
        count = next((int(count) for own in configs for count in _read(own, "num_patches")), None)
        takes_any = count is not None or any(_get(own, "spatial_merge_size") is not None for own in configs)
        chosen = (math.isqrt(count) if count else _SIDE) * patch if isinstance(patch, int) and takes_any else 224
    if isinstance(chosen, dict):
        chosen = (chosen.get("height", 224), chosen.get("width", 224))
    height, width = (chosen, chosen) if isinstance(chosen, int) else tuple(chosen)[-2:]
    return channels, int(height), int(width)


def _inner(config: Any) -> Iterator[Any]:
    for name in ("vision_config", "backbone_config", "image_config"):
        own = getattr(config, name, None)
        if own is not None:
            yield own
            yield from _inner(own)


def _read(config: Any, *names: str) -> Iterator[Any]:
    yield from (value for name in names if (value := _get(config, name)))


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


# -- one image of one size ---------------------------------------------------------------------------------------------


def _fixed(processor: Any, needed: tuple[str, ...]) -> Inputs | None:
    """A processor that makes one image of one size of any picture; None of another."""
    settings = processor.to_dict()
    lengths = [length for name in ("size", "crop_size") for length in _lengths(settings.get(name)) if length]
    if max(lengths, default=0) > LARGEST_IMAGE:
        raise ValueError(f"its preprocessing makes images of {max(lengths)} pixels")
    options = {name: value for name, value in _WHOLE.items() if hasattr(processor, name)}
    try:
        made = [_made(processor, Image.new("RGB", size, "red"), options) for size in ((640, 480), (300, 400))]
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError):
        if options:
            return None
        raise
    (pixels, beside), (others, besides) = ((own.pop("pixel_values", None), own) for own in made)
    if pixels is None or others is None or pixels.shape != others.shape or pixels[0].ndim < 3:
        return None
    size = tuple(pixels.shape[-3:])
    constants = _told(beside, needed)
    if math.prod(pixels.shape) != math.prod(size) or any(
        not _same(own, _told(besides, needed)[key]) for key, own in constants.items()
    ):
        return None

    def process(image: Image.Image) -> Tensor:
        return _made(processor, image, options)["pixel_values"].reshape(size)

    shape = tuple(pixels.shape) if pixels.ndim > 4 or constants else None
    return Inputs(size, process, _described(settings), Layout(shape, None, constants))


def _made(processor: Any, image: Image.Image, options: dict[str, Any]) -> dict[str, Any]:
    made = dict(processor(images=image, return_tensors="pt", **options))
    return {name: torch.stack(list(value)) if _tensors(value) else value for name, value in made.items()}


def _told(made: Mapping[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
    """What a processor tells beside pixels, by the names that the model has for it: towers leave `image_` away."""
    named = {name if name in needed else name.removeprefix("image_"): value for name, value in made.items()}
    return {name: value for name, value in named.items() if name in needed}


def _tensors(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(own, Tensor) for own in value)


def _same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


def _lengths(size: Any) -> Iterator[int]:
    for name in ("height", "width", "shortest_edge"):
        length = getattr(size, name, None) if not isinstance(size, dict) else size.get(name)
        if isinstance(length, int) and not (name == "shortest_edge" and length > LARGEST_IMAGE):
            yield length


def _described(settings: dict[str, Any]) -> dict[str, Any]:
    timm = settings.get("data_config")
    if isinstance(timm, dict):
        height, width = timm["input_size"][-2:]
        lengths = tuple(math.floor(length / timm["crop_pct"]) for length in (height, width))
        cropped = (timm["mean"], timm["std"], timm["interpolation"])
        return describe(lengths[0] if height == width else lengths, (height, width), *cropped)
    size = dict(settings.get("size") or {}) if settings.get("do_resize") else {}
    crop = dict(settings.get("crop_size") or {}) if settings.get("do_center_crop") else {}
    resize: Any = (size["height"], size["width"]) if size.get("height") else size.get("shortest_edge")
    normalised = settings.get("do_normalize") and settings.get("image_mean")
    resample = settings.get("resample") if settings.get("do_resize") else None
    return describe(
        resize,
        (crop["height"], crop["width"]) if crop.get("height") else None,
        settings["image_mean"] if normalised else (0.0,),
        settings["image_std"] if normalised else (1.0,),
        "none" if resample is None else Image.Resampling(resample).name.lower(),
    )


# -- one fixed size ----------------------------------------------------------------------------------------------------


def _processors(config: Any, beside: Collection[str]) -> Iterator[Any]:
    """Processors that may go with a model, the likeliest first, told of its patches.

    Args:
        config: The whole configuration.
        beside: What the model needs to be told beside the pixels.
    """
    vision = next(_inner(config), config)
    for found in dict.fromkeys(_of_family(config)) or _telling(beside):
        try:
            made = found()
        except (TypeError, ValueError):  # it cannot be made without a file's settings
            continue
        for name, of in (
            ("patch_size", "patch_size"),
            ("temporal_patch_size", "temporal_patch_size"),
            ("merge_size", "spatial_merge_size"),
        ):
            value = _get(vision, of)
            if hasattr(made, name) and value is not None:
                kept = getattr(made, name)
                setattr(made, name, {"height": value, "width": value} if isinstance(kept, dict) else value)
        yield made


def _of_family(config: Any) -> Iterator[Any]:
    """The processors that transformers has for a tower and for the whole model."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    for own in (*_inner(config), config):
        try:
            found = IMAGE_PROCESSOR_MAPPING[type(own)]
        except (KeyError, ValueError, ImportError):
            found = _by_name(own)
        if found:
            several = found if isinstance(found, dict) else {"": found}
            yield several.get("torchvision") or next(iter(several.values()))


def _telling(beside: Collection[str]) -> Iterator[Any]:
    """Processors that tell what a model needs to be told, those of the most families first: of a family that has none,
    such as another size of a known one, files name one of these.
    """
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names = Counter(
        names.get("torchvision") if isinstance(names, dict) else names
        for names in IMAGE_PROCESSOR_MAPPING_NAMES.values()
    )
    for name, _ in names.most_common() if beside else ():
        processor = getattr(transformers, str(name), None)
        if any(told.endswith(tuple(beside)) for told in getattr(processor, "model_input_names", ())):
            yield processor


def _by_name(config: Any) -> Any:
    """The processor that goes with a model of the same family, for configurations of towers alone."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    kind = str(getattr(config, "model_type", ""))
    family = kind.removesuffix("_model").removesuffix("_vision")
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(family)
    name = names.get("torchvision") if isinstance(names, dict) else names
    return getattr(transformers, str(name), None)


def _numbered(processor: Any, config: Any, size: tuple[int, int, int], needed: tuple[str, ...], own: bool) -> Inputs:
    """A processor at one fixed size: where it puts each pixel, and what it tells the model beside.

    Raises:
        ModelError: It does more than to lay out pixels.
    """
    patch = _get(next(_inner(config), config), "patch_size")
    for options in _ways(processor, size, patch):
        try:
            made, places = _placed(processor, size, options)
        except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError):
            continue
        break
    else:
        raise ModelError(
            f"{type(processor).__name__} does not merely lay out the pixels of a picture of {size[1]} x {size[2]}.",
            cure="load the model yourself, and give its tower, with a forward of images alone, to Model.from_module",
        )
    settings, (_, height, width) = processor.to_dict(), size
    shape, constants = made.pop("pixel_values").shape, _told(made, needed)
    ordered = torch.equal(places, torch.arange(len(places)))
    layout = Layout(tuple(shape), None if ordered else places, constants)
    if not own and ordered and not constants and tuple(shape) == (1, *size):
        preprocess, described = preprocessing.default(size)
        return Inputs(size, preprocess, described, Layout())
    resample = settings.get("resample")
    resample = Image.Resampling.BICUBIC if resample is None else Image.Resampling(resample)

    def process(image: Image.Image) -> Tensor:
        fitted = image.convert("RGB").resize((width, height), resample)
        return layout.image(_made(processor, fitted, options)["pixel_values"], size)

    described = {**_described(settings), "resize": [height, width], "crop": None}
    described["interpolation"] = resample.name.lower()
    notes = [f"Pictures are resized to {height} x {width} pixels, whatever their shape: one grid is captured."]
    if not own:
        notes.append(f"There is no processor; pictures are normalised as {type(processor).__name__} does.")
    return Inputs(size, process, described, layout, tuple(notes))


def _ways(processor: Any, size: tuple[int, int, int], patch: Any) -> Iterator[dict[str, Any]]:
    """Options by which a processor may leave a picture of this size whole, the likeliest first."""
    _, height, width = size
    sizes: dict[str, Any] = {
        "image_grid_pinpoints": [[height, width]],
        "max_image_size": {"longest_edge": max(height, width)},
        "tile_size": height,
    }
    if isinstance(patch, int):
        sizes["max_num_patches"] = (height // patch) * (width // patch)
    common = {name: value for name, value in (_WHOLE | sizes).items() if hasattr(processor, name)}
    same = {
        name: {"height": height, "width": width} for name in ("size", "crop_size") if getattr(processor, name, None)
    }
    off = {name: False for name in ("do_resize", "do_center_crop", "do_pad") if hasattr(processor, name)}
    if "image_grid_pinpoints" in common:
        yield common | same
    yield common | off
    yield common | same
    yield common


def _placed(processor: Any, size: tuple[int, int, int], options: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """Where a processor puts each pixel of a picture of this size.

    Returns:
        What it makes, and for each of its pixels the place in the image (`Layout.places`).

    Raises:
        ValueError: It makes more of them than that.
    """
    channels, height, width = size
    numbers = np.arange(1, channels * height * width + 1).reshape(channels, height, width).transpose(1, 2, 0)
    bare = options | {name: False for name in ("do_rescale", "do_normalize") if hasattr(processor, name)}
    made: dict[str, Any] = {}
    found = torch.zeros(())
    for exponent in range(3):
        digit = (numbers // 256**exponent % 256).astype(np.uint8)
        made = _made(processor, Image.fromarray(digit if channels == 3 else digit[..., 0]), bare)
        found = found + made["pixel_values"].double() * 256**exponent
    whole = found.round().long()
    present = whole.unique()
    if not torch.equal(whole.double(), found) or present[present > 0].tolist() != list(range(1, numbers.size + 1)):
        raise ValueError("it does more than to lay out pixels")
    return made, (whole - 1).flatten()


# -- clips -------------------------------------------------------------------------------------------------------------


def _frames(config: Any) -> int:
    for own in (config, *_inner(config)):
        for name in ("num_frames", "frames_per_clip"):
            if isinstance(count := _get(own, name), int):
                return count
    return 0


def _clip(config: Any, name: str | None, image_size: int | tuple[int, int] | None, needed: tuple[str, ...]) -> Inputs:
    """Clips: frames, channels, height, width, as transformers' models of clips take them."""
    channels, height, width = sized(config, image_size)
    frames = _frames(config)
    argument = next((own for own in needed if own.startswith("pixel_values")), "pixel_values")
    frame: Inputs | None = None
    processor = None if name is None else processor_of(name)
    if processor is not None and image_size is None:
        frame = _fixed(processor, ())
    preprocess, described = (
        preprocessing.default((channels, height, width)) if frame is None else (frame.preprocess, frame.described)
    )
    size = (frames, *((channels, height, width) if frame is None else frame.size))
    clip = preprocessing.clip(preprocess, frames)
    described = {**described, "frames": frames, "order": "frame, channel, height, width"}
    return Inputs(size, clip, described, Layout(argument=argument))
