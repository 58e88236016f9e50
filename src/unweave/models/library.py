"""Model ids, and the libraries that they name.

An id is the library, a slash, and the library's own name kept verbatim: `timm/vit_base_patch16_224.dino`. One file per
library turns a `Request` into a `Source`; everything that is the same for all of them (seeds, checkpoints, devices,
where the representation is) happens once, in `load_model`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from unweave.errors import ArgumentError, DeviceError, ModelError
from unweave.loading import Loading
from unweave.models.checkpoint import load_checkpoint
from unweave.models.model import Model, example_for
from unweave.models.preprocessing import Preprocess, Size, fitted
from unweave.models.readout import Returns, split
from unweave.models.weights import check_finite, randomise
from unweave.pocket.networks import NETWORKS


@dataclass(frozen=True)
class Library:
    """A library that models come from.

    Attributes:
        prefix: What its ids begin with.
        pattern: The shape of its ids.
        example: One id.
        meaning: What its ids name, in a few words.
        package: What is imported.
        distribution: What is installed under that name.
        install: The command that installs it.
    """

    prefix: str
    pattern: str
    example: str
    meaning: str
    package: str
    distribution: str
    install: str


LIBRARIES = {
    library.prefix: library
    for library in (
        Library(
            "timm",
            "timm/NAME[.TAG]",
            "timm/vit_base_patch16_224.dino",
            "a timm model and the tag of its pretrained weights",
            "timm",
            "timm",
            "pip install unweave",
        ),
        Library(
            "open_clip",
            "open_clip/ARCH/TAG",
            "open_clip/ViT-B-16/laion2b_s34b_b88k",
            "the image tower of an OpenCLIP architecture and the tag of its weights",
            "open_clip",
            "open_clip_torch",
            "pip install 'unweave[open-clip]'",
        ),
        Library(
            "hf",
            "hf/ORG/NAME or hf/FOLDER",
            "hf/facebook/dinov2-base",
            "a transformers vision model on the hub, or in a local folder",
            "transformers",
            "transformers",
            "pip install 'unweave[hf]'",
        ),
        Library(
            "torchvision",
            "torchvision/NAME",
            "torchvision/swin_b",
            "a torchvision classification model, with its default weights",
            "torchvision",
            "torchvision",
            "pip install unweave",
        ),
        Library(
            "pocket",
            "pocket/NAME",
            "pocket/clip",
            f"a small network that is shipped, trained on the pocket world: {', '.join(NETWORKS)}",
            "unweave",
            "unweave",
            "pip install unweave",
        ),
    )
}


@dataclass(frozen=True)
class Request:
    """What a loader is asked for.

    Attributes:
        id: The whole id, for messages.
        name: The library's own name.
        pretrained: Fetch the library's weights; otherwise only build the architecture.
        image_size: Height and width in pixels, where not the model's own.
    """

    id: str
    name: str
    pretrained: bool
    image_size: int | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader found.

    Attributes:
        module: The library's own module.
        preprocess: The library's own transform, `PIL image -> [channel, height, width]`.
        preprocessing: The same in words, for JSON.
        input_size: Channels, height, width.
        tower: Which part of the module maps images to what it makes of them.
        returns: What the tower returns, where it does not name its classifier.
        heads: Paths in the tower of its classifiers, where it has several and does not name them.
        missing: Weights that the library did not find, and drew by chance.
        notes: What was assumed, taken off or left out, each a sentence.
    """

    module: nn.Module
    preprocess: Preprocess
    preprocessing: dict[str, Any]
    input_size: Size
    tower: Callable[[nn.Module], nn.Module] = field(default=lambda module: module)
    returns: Returns = "features"
    heads: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def load_model(
    id: str | Loading,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    random_weights: bool = False,
    seed: int = 0,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> Model:
    """Load a model by its id.

    Args:
        id: The library, then the library's own name: `timm/NAME`, `open_clip/ARCH/TAG`, `hf/ORG/NAME`, `hf/FOLDER`,
            `torchvision/NAME`, `pocket/NAME`. Or a `Loading`, which holds the next four as well.
        checkpoint: A safetensors or weights-only torch file to take the weights from.
        random_weights: Seeded random weights, every one of them alive (`unweave.models.weights.randomise`); nothing is
            fetched.
        seed: For the random weights. The caller's own random state is left as it is.
        image_size: Height and width in pixels, where not the model's own.
        device: Where the weights go.
        dtype: What the weights are cast to: a type of torch, or its name.

    Raises:
        ArgumentError: This is no id; the seed or the image size is out of range; weights are asked for twice.
        DeviceError: There is no such device.
        ModelError: Unknown library or name, library not installed, hub out of reach, checkpoint or image size that
            does not fit.
        NonFiniteError: A weight is NaN or infinite.
    """
    file = None if checkpoint is None else os.fspath(checkpoint)
    loading = id if isinstance(id, Loading) else Loading(id, file, random_weights, seed, image_size)
    return _loaded(loading, device, getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def _loaded(loading: Loading, device: str | torch.device, dtype: torch.dtype) -> Model:
    id, seed = loading.id, loading.seed
    library, name = _resolve(id)
    request = Request(id, name, not loading.random_weights and loading.checkpoint is None, loading.image_size)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        source: Source = import_module(f"unweave.models.{library.prefix}").load(request)
    module = source.module.eval()
    if loading.random_weights:
        randomise(module, seed)
    if loading.checkpoint is not None:
        load_checkpoint(module, loading.checkpoint)
    try:
        module.to(device, dtype)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise DeviceError(
            f"The model cannot be moved to {str(device)!r}: {str(error).splitlines()[0]}",
            where=id,
            cure="use 'cpu', or 'cuda' where there is a GPU with room for it",
        ) from error
    tower = source.tower(module)
    check_finite(tower)
    parts = split(tower, example_for(tower, source.input_size, 1), heads=source.heads, returns=source.returns)
    drawn = [name for name, _ in parts.body.named_parameters() if name in source.missing]
    if drawn:
        raise ModelError(
            f"{len(drawn)} weights are missing from the file, such as {drawn[0]}.",
            where=id,
            cure="use the configuration that the weights were saved with, or `random_weights`",
        )
    preprocess, preprocessing = fitted(source.preprocess, source.preprocessing, source.input_size[-3])
    return Model(
        id=id,
        module=module,
        readout=parts.body,
        classifier=None if _drawn(tower, parts.classifier, source.missing) else parts.classifier,
        preprocess=preprocess,
        preprocessing=preprocessing,
        input_size=source.input_size,
        loading=loading,
    )


def _drawn(tower: nn.Module, classifier: nn.Module | None, missing: frozenset[str]) -> bool:
    """Whether a classifier holds weights that the library drew by chance."""
    drawn = {id(weight) for name, weight in tower.named_parameters() if name in missing}
    return classifier is not None and any(id(weight) in drawn for weight in classifier.parameters())


def available() -> list[dict[str, str | None]]:
    """The libraries that ids may name, for `unweave models`.

    Returns:
        For each its `prefix`, `pattern`, `example`, `meaning`, installed `version` (None where it is not) and
        `install` command.
    """
    return [
        {
            "prefix": library.prefix,
            "pattern": library.pattern,
            "example": library.example,
            "meaning": library.meaning,
            "version": metadata.version(library.distribution) if _installed(library) else None,
            "install": library.install,
        }
        for library in LIBRARIES.values()
    ]


def unknown(what: str, name: str, known: Iterable[str], *, where: str) -> ModelError:
    """The error for a name that a library does not know, with the nearest that it does."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    return ModelError(
        f"There is no {what} {name!r}.",
        where=where,
        cure=f"the nearest: {', '.join(near)}" if near else f"one of {', '.join(names[:8])}, ..." if names else None,
    )


def _resolve(id: str) -> tuple[Library, str]:
    if not isinstance(id, str):
        raise ArgumentError(
            f"A model is loaded by its id, not by a {type(id).__name__}.",
            cure=f"give an id such as {LIBRARIES['timm'].example!r}; a module of your own goes to Model.from_module",
        )
    prefix, _, name = id.partition("/")
    if prefix not in LIBRARIES:
        near = difflib.get_close_matches(prefix, LIBRARIES, n=1, cutoff=0.4)
        hint = f"`{near[0]}/{name}`" if near and name else f"`timm/{id}`" if not name else LIBRARIES["timm"].example
        raise ModelError(
            f"The model id {id!r} does not begin with a library ({', '.join(LIBRARIES)}).", cure=f"an id such as {hint}"
        )
    library = LIBRARIES[prefix]
    if not name:
        raise ModelError(f"The model id {id!r} names no model.", cure=f"an id such as {library.example}")
    if not _installed(library):
        raise ModelError(f"{library.distribution} is not installed.", where=id, cure=library.install)
    return library, name


def _installed(library: Library) -> bool:
    try:
        return find_spec(library.package) is not None
    except (ImportError, ValueError):
        return False


def opened(model: Model | Loading | str, *, device: str = "cpu", dtype: str = "float32") -> Model:
    """A model as it is, or the one that an id names, loaded.

    Raises:
        ArgumentError: It is neither.
        ModelError: There is no model of this id.
    """
    if isinstance(model, Model):
        return model
    if not isinstance(model, (str, Loading)):
        raise ArgumentError(
            f"A {type(model).__name__} is no model.",
            cure="give a model's id, what `unweave.load_model` returns, or `unweave.Model.from_module(module)`",
        )
    return load_model(model, device=device, dtype=dtype)
