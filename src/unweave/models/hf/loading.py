"""Loading a model of transformers: configuration, class, weights, processor."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from unweave.errors import ModelError, UnweaveError
from unweave.hub import fetching, is_about_files
from unweave.models.hf.architectures import Architecture, architecture, tower, within
from unweave.models.hf.inputs import Inputs, inputs_of, sized
from unweave.models.hf.mapping import attend_packed
from unweave.models.hf.towers import Layout, Tower, takes
from unweave.models.hf.weights import drawn, loaded, reached, touched
from unweave.models.library import Request, Source
from unweave.models.output import FIELDS
from unweave.models.readout import first_line

_CURE = "go online once, or give a folder that holds the model's config.json as `hf/FOLDER`"


def load(request: Request) -> Source:
    """Build the model; see `unweave.models.library.Request`. Its configuration is needed even with random weights.

    Raises:
        ModelError: No such folder or model, the hub is out of reach, it is not a model of images, or its weights do not
            fit it.
    """
    import transformers

    folder = is_folder(request.name)
    if not folder and (request.name.count("/") > 1 or request.name.startswith(("/", ".", "~"))):
        raise ModelError(f"There is no folder {request.name!r}.", where=request.id, cure="give the path of a folder")
    with fetching(request.id, allowed=not folder, cure=_CURE), reading(request.id):
        try:
            config = transformers.AutoConfig.from_pretrained(request.name, trust_remote_code=False)
        except ValueError as error:
            raise ModelError(
                f"transformers cannot tell which model this is: {first_line(error)}", where=request.id, cure=_CURE
            ) from error
        return _source(architecture(config, request.id, bare=request.bare), config, request)


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
        cure = "save it again with `save_pretrained`, which writes config.json and safetensors"
        if isinstance(error, UnpicklingError):
            what = "The weights are a pickle that asks for code to be run, and nothing is run."
        if isinstance(error, ImportError):
            what, cure = f"The model needs a package: {first_line(error)}", "install what it names"
        raise ModelError(what, where=id, cure=cure) from error


@contextmanager
def running(name: str, images: torch.Tensor, request: Request) -> Iterator[None]:
    """While a model is tried on images: what it raises is one `ModelError`.

    Args:
        name: Of the model.
        images: What it is given.
        request: For the message.
    """
    try:
        yield
    except UnweaveError:
        raise
    except Exception as error:
        size = " x ".join(str(length) for length in images.shape[1:])
        raise ModelError(
            f"{name} does not run on images of {size} alone: {type(error).__name__}: {first_line(error)}",
            where=request.id,
            cure="leave `image_size` out"
            if request.image_size is not None
            else "give `image_size`, if it is for another size; or load the model yourself, and give its tower, with a "
            "forward of images alone, to Model.from_module",
        ) from error


def _source(chosen: Architecture, config: Any, request: Request) -> Source:
    build, notes = chosen.build, list(chosen.notes)
    notes += _unmasked(chosen.config)
    arguments = getattr(chosen.config, "model_args", None)
    if isinstance(arguments, dict):
        arguments.pop("num_classes", None)  # timm writes it twice, and transformers gives it itself
    if request.image_size is not None and not request.pretrained:
        _resize(chosen.config, request.image_size)
    with torch.device("meta"):
        hollow = build(chosen.config)
        pictures = torch.empty(1, *sized(config, request.image_size))
    part = tower(hollow, config, pictures) if chosen.part else ""
    call = getattr(hollow.get_submodule(part), chosen.method)
    needed = tuple(inspect.signature(call).parameters)
    inputs = inputs_of(config, _processing(request), request.image_size, needed, plain=chosen.method == "forward")
    notes += _one_tile(chosen.config, inputs)
    layout = _told(inputs, chosen, call, request)
    options: dict[str, Any] = {"method": chosen.method, "part": part, "layout": layout}
    images = torch.rand(2, *inputs.size)
    kept = None
    if not chosen.whole:
        with running(chosen.build.__name__, images, request):
            kept = reached(build, chosen.config, lambda model: Tower(model, **options, each=True)(images[:1]))
        if chosen.instead is not None and not within(chosen.instead, kept):
            return _source(chosen.instead, config, request)
    missing: dict[str, str] = {}
    if request.pretrained:
        found = loaded(build, chosen.config, request.name, reached=kept, id=request.id)
        model, missing = found.model, found.missing
        notes += found.notes
    else:
        model = drawn(build, chosen.config, kept)
    model = model.eval()
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    images = images.to(dtype)
    notes += inputs.notes
    made: Any = _itself
    pooling: tuple[str, ...] = ()
    with running(chosen.build.__name__, images, request):
        options["layout"] = _ordered(model, images, options)
        options |= _way(model, images, options, chosen)
        if options["each"] or options["pools"] or not options["layout"].plain:
            made = partial(Tower, **options)
            pooling = _pooling(made(model), images) if options["pools"] else ()
        if missing:
            used = touched(model, lambda: made(model)(images[:1]))
            missing = {name: shapes for name, shapes in missing.items() if name in used}
            notes += _about(missing)
        heads = _heads(made(model), images) if chosen.classifies else ()
    return Source(
        model,
        inputs.preprocess,
        inputs.described,
        inputs.size,
        tower=made,
        missing=missing,
        notes=tuple(notes),
        pooling=pooling,
        heads=heads,
    )


def _itself(module: nn.Module) -> nn.Module:
    return module


def _processing(request: Request) -> str | None:
    """Where the preprocessing of a model at this size may be."""
    return request.name if request.image_size is None or request.pretrained else None


def _one_tile(config: Any, inputs: Inputs) -> list[str]:
    """Has a model that cuts pictures into tiles take one; what was said of it."""
    if not getattr(config, "image_grid_pinpoints", None):
        return []
    config.image_grid_pinpoints = [list(inputs.size[-2:])]
    return ["Pictures are taken as one tile, which the model has twice: as the whole, and as its only tile."]


def _resize(config: Any, size: Any) -> None:
    """Gives a configuration, and that of its tower, another image size."""
    owners = [config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)]
    named = [own for own in owners if own is not None and getattr(own, "image_size", None) is not None]
    for own in named or [config]:
        own.image_size = size


def _unmasked(config: Any) -> list[str]:
    """Switches masking off in a configuration; what was said of it."""
    if not getattr(config, "mask_ratio", 0):
        return []
    ratio, config.mask_ratio = config.mask_ratio, 0.0
    return [f"The model is built with mask_ratio=0 in place of {ratio}: no patch is masked."]


def _told(inputs: Inputs, chosen: Architecture, call: Any, request: Request) -> Layout:
    """How the model is given images, with what it is told beside them."""
    layout, constants = inputs.layout, dict(inputs.layout.constants)
    if takes(call, "noise") and layout.plain:  # by whose order a masked autoencoder shuffles its patches
        patch = getattr(chosen.config, "patch_size", 16)
        height, width = (patch, patch) if isinstance(patch, int) else patch[-2:]
        tokens = (inputs.size[-2] // height) * (inputs.size[-1] // width)
        constants["noise"] = torch.arange(tokens, dtype=torch.float32)[None]
    enlarged = request.image_size is not None and request.pretrained and layout.places is None
    if enlarged and takes(call, "interpolate_pos_encoding"):
        constants["interpolate_pos_encoding"] = True
    argument = layout.argument if takes(call, layout.argument) else _first(call)
    return Layout(layout.shape, layout.places, constants, argument)


def _first(call: Any) -> str:
    """What a function calls its first argument, which is the pixels whatever it is called."""
    return next(iter(inspect.signature(call).parameters))


def _ordered(model: nn.Module, images: torch.Tensor, options: dict[str, Any]) -> Layout:
    """The layout without the order of patches, where the model makes the same of images without being told one."""
    layout: Layout = options["layout"]
    constants = {name: value for name, value in layout.constants.items() if name != "noise"}
    if len(constants) < len(layout.constants):
        plain = replace(layout, constants=constants)
        once, again = (_tried(model, images, options | {"layout": plain, "pools": True}) for _ in range(2))
        if torch.equal(once["pooler_output"], again["pooler_output"]):
            return plain
    return layout


def _way(model: nn.Module, images: torch.Tensor, options: dict[str, Any], chosen: Architecture) -> dict[str, Any]:
    """Whether images are taken together or each alone, and whether what comes out has to be pooled."""
    layout: Layout = options["layout"]
    together = layout.together and _together(model, images, options)
    if not together and any(name.endswith("grid_thw") for name in layout.constants):
        attend_packed(model)
    elif not together:
        model.config._attn_implementation = "eager"  # type: ignore[union-attr]  # of whose operations each can be mapped
    found: dict[str, Any] = {"each": not together, "pools": False}
    found["pools"] = not chosen.whole or not _represents(_tried(model, images[:1], options | found))
    if not together:
        with torch.no_grad():
            alone = Tower(model, **options, **found).single(images[0])
        for name, value in _tried(model, images, options | found).items():
            if not _same(value[0], alone[name]):
                raise ValueError("it decides by the values of images what to compute")
    return found


def _together(model: nn.Module, images: torch.Tensor, options: dict[str, Any]) -> bool:
    """Whether a model makes the same of an image beside others as of the image alone."""
    options = options | {"each": False, "pools": options["method"] != "forward" or bool(options["part"])}
    try:
        both, single = (_tried(model, own, options) for own in (images, images[:1]))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return all(value.shape[0] == len(images) and _same(value[:1], single[name]) for name, value in both.items())


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two answers differ by rounding alone, whatever their scale."""
    apart = (first - second).double().norm() if first.shape == second.shape else torch.tensor(torch.inf)
    return bool(apart <= 1e-3 * second.double().norm())


def _tried(model: nn.Module, images: torch.Tensor, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return Tower(model, **options)(images)


def _represents(fields: dict[str, torch.Tensor]) -> bool:
    """Whether the first of a model's fields is a representation, or tokens of which one is."""
    first = next((fields[name] for name in FIELDS if name in fields), None)
    return first is not None and (first.ndim < 4 or first.shape[2:] == (1, 1))


def _about(missing: Mapping[str, str]) -> list[str]:
    """What is said of weights that the file does not have."""
    absent = [name for name, shapes in missing.items() if not shapes]
    others = [f"{name} ({shapes})" for name, shapes in missing.items() if shapes]
    told = [f"{len(absent)} weights are missing from the file; what they make is left out."] if absent else []
    return told + ([f"Of another shape, and left out with what they make: {', '.join(others[:4])}."] if others else [])


def _pooling(module: nn.Module, images: torch.Tensor) -> tuple[str, ...]:
    """What is said of how a representation was pooled; nothing of a vector, which is taken as it is."""
    with torch.no_grad():
        found = module(images)
    if "tokens" in found:
        return (f"The representation is the mean over {found['tokens'].shape[1]} tokens.",)
    if "map" in found:
        places = " x ".join(map(str, found["map"].shape[2:]))
        return (f"The representation is the mean over the {places} places of a map.",)
    return ()


def _heads(module: nn.Module, images: torch.Tensor) -> tuple[str, ...]:
    """The layers that make several logits of an image, as distilled models do; empty where there is one."""
    outputs: dict[str, torch.Tensor] = {}
    handles = [
        part.register_forward_hook(lambda _, __, output, path=path: outputs.__setitem__(path, output))
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        with torch.no_grad():
            found = module(images)
    finally:
        for handle in handles:
            handle.remove()
    several = [value for name, value in dict(found).items() if name.endswith("_logits")]
    if isinstance(module, Tower) and module.each:
        return tuple(outputs)[-1:]
    return tuple(path for path, output in outputs.items() if any(output is value for value in several))
