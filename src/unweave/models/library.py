"""Model ids, and the libraries that they name.

An id is the library, a slash, and the library's own name kept verbatim: `timm/vit_base_patch16_224.dino`. One file per
library turns a `Request` into a `Source`; everything that is the same for all of them (seeds, checkpoints, devices,
where the representation is) happens once, in `load_model`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, Unpack

import torch
from torch import nn

from unweave.errors import ArgumentError, DeviceError, ModelError
from unweave.graph.finite import check_weights
from unweave.loading import Loading, Pool, Rest
from unweave.models.checkpoint import Convert, Loaded, load_checkpoint
from unweave.models.model import Model, example_for
from unweave.models.positions import resampled
from unweave.models.preprocessing import Preprocess, Size, fitted
from unweave.models.readout import Readout, Returns, first_line, split
from unweave.models.weights import randomise
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
            "timm/NAME[.TAG], timm/hf-hub:ORG/NAME or timm/local-dir:FOLDER",
            "timm/vit_base_patch16_224.dino",
            "a timm model and the tag of its weights; or one on the hub or in a folder, as timm writes them",
            "timm",
            "timm",
            "pip install unweave",
        ),
        Library(
            "open_clip",
            "open_clip/ARCH/TAG, open_clip/hf-hub:ORG/NAME or open_clip/local-dir:FOLDER",
            "open_clip/ViT-B-16/laion2b_s34b_b88k",
            "the image tower of a model of OpenCLIP and the tag of its weights; or of one on the hub or in a folder",
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
        image_size: Height and width in pixels, one number where they are the same; None for the model's own.
        bare: Whether tokens, or another output than the model's own, are asked for.
    """

    id: str
    name: str
    pretrained: bool
    image_size: int | tuple[int, int] | None = None
    bare: bool = False

    @property
    def lengths(self) -> tuple[int, int] | None:
        """Height and width, where they are asked for."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    def no_such_size(self, error: Exception | None = None, cure: str = "leave `image_size` out") -> ModelError:
        """The error for a size that a model cannot have, with what the library said of it."""
        if error is None:
            return ModelError("The model takes no other image size.", where=self.id, cure=cure)
        height, width = self.lengths or (0, 0)
        size = f"{height}" if height == width else f"{height} x {width}"
        return ModelError(
            f"The model cannot have images of {size} pixels: {first_line(error)}",
            where=self.id,
            cure=f"choose a size that its patches and windows divide, or {cure}",
        )


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
        representation: Field or index of the output that is the representation, where it is not found by itself.
        unpool: Makes the tower return tokens, or a map, in place of what it pools of them; gives their field or index.
        convert: The library's own conversion of a checkpoint to the module, positions of another image size included.
        heads: Paths in the tower of its classifiers, where it has several and does not name them.
        missing: Weights that the library did not find, and drew by chance; with the shapes, where it is for them.
        notes: What was assumed, taken off or left out, each a sentence.
        pooling: What is said of how the tower pools its representation, which holds of no other one.
    """

    module: nn.Module
    preprocess: Preprocess
    preprocessing: dict[str, Any]
    input_size: Size
    tower: Callable[[nn.Module], nn.Module] = field(default=lambda module: module)
    returns: Returns = "features"
    representation: str | int | None = None
    unpool: Callable[[nn.Module], str | int | None] | None = None
    convert: Convert | None = None
    heads: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pooling: tuple[str, ...] = ()


def load_model(
    id: str | Loading,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    random_weights: bool = False,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **rest: Unpack[Rest],
) -> Model:
    """Load a model by its id.

    Args:
        id: The library, then the library's own name: `timm/NAME`, `open_clip/ARCH/TAG`, `hf/ORG/NAME`, `hf/FOLDER`,
            `torchvision/NAME`, `pocket/NAME`. Or a `Loading`, which holds all others but device and dtype.
        checkpoint: A safetensors or weights-only torch file to take the weights from, as a trainer wrote it: they may
            lie deeper in it, under any prefix, with another head or none, and for another image size.
        random_weights: Seeded random weights, every one of them alive (`unweave.models.weights.randomise`); nothing is
            fetched.
        seed: For the random weights. The caller's own random state is left as it is.
        image_size: Height and width in pixels, or one number for both, where not the model's own.
        device: Where the weights go.
        dtype: What they are cast to.
        rest: `representation`: field or index of the output that is the representation, where not the model's own.
            `pool`: how tokens or a map become one vector: the `mean` over all places of the image, or the `class`
            token. `checkpoint_key`: what the weights are called, where the checkpoint has them several times.

    Returns:
        The model; its `notes` say what was taken off, resampled and left out.

    Raises:
        ArgumentError: This is no id; the seed or the image size is out of range; weights are asked for twice; nothing
            in the checkpoint has the name that is asked for.
        DeviceError: There is no such device.
        ModelError: Unknown library or name, library not installed, hub out of reach, checkpoint or image size that
            does not fit.
        NonFiniteError: A weight is NaN or infinite.
    """
    if isinstance(id, Loading):
        return _loaded(id, device, dtype)
    return _loaded(Loading(id, checkpoint, random_weights, seed, image_size, **rest), device, dtype)


def _loaded(loading: Loading, device: str | torch.device, dtype: torch.dtype) -> Model:
    id = loading.id
    library, name = _resolve(id)
    pretrained, bare = not loading.random_weights and loading.checkpoint is None, loading.representation is not None
    request = Request(id, name, pretrained, loading.image_size, bare or loading.pool is not None)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators as well.
        torch.default_generator.manual_seed(loading.seed)
        source: Source = import_module(f"unweave.models.{library.prefix}").load(request)
    module, notes = source.module.eval(), source.notes
    if loading.representation is None and loading.pool is None:
        notes += source.pooling
    if loading.random_weights:
        randomise(module, loading.seed)
    absent = source.missing
    if loading.checkpoint is not None:
        loaded = _from_checkpoint(source, loading)
        notes, absent = notes + loaded.notes, dict.fromkeys(loaded.missing, "")
        if isinstance(loading.image_size, tuple) and not any("resampled" in note for note in notes):
            size = " x ".join(map(str, loading.image_size))
            notes += (f"The file's positions are taken for those of {size} pixels.",)
        if any(not name.startswith(_path(source)) for name in absent):
            module = source.tower(module)  # the rest has no weights
            notes += ("The image tower alone is kept.",)
    try:
        module.to(device, dtype)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise DeviceError(
            f"The model cannot be moved to {str(device)!r}: {str(error).splitlines()[0]}",
            where=id,
            cure="use 'cpu', or 'cuda' where there is a GPU with room for it",
        ) from error
    tower = source.tower(source.module)
    check_weights(tower)
    if loading.pool is not None and loading.representation is None and source.unpool is not None:
        source = replace(source, representation=source.unpool(tower))
    parts = _split(source, loading, loading.pool)
    drawn = _drawn(parts.body, source.module, absent)
    if drawn and _matter(drawn, parts.body, example_for(parts.body, source.input_size, 1)):
        first = next(iter(drawn))
        shapes = f" ({drawn[first]})" if drawn[first] else ""
        raise ModelError(
            f"{len(drawn)} weights are missing from the file{', or of another shape there' if shapes else ''}, such as "
            f"{first}{shapes}.",
            where=id,
            cure="use the configuration that the weights were saved with, or `random_weights`; or, where another "
            "output does without them, read that one (`representation`)",
        )
    preprocess, preprocessing = fitted(source.preprocess, source.preprocessing, source.input_size[-3])
    classifier = parts.classifier
    if classifier is not None and _drawn(classifier, source.module, absent):
        classifier = None
        notes += ("The model has no classifier, for the file has not all of it.",)
    return Model(
        id=id,
        module=module,
        readout=parts.body,
        classifier=classifier,
        preprocess=preprocess,
        preprocessing=preprocessing,
        input_size=source.input_size,
        loading=loading,
        notes=notes + parts.notes,
    )


def _split(source: Source, loading: Loading, pool: Pool | None) -> Readout:
    tower = source.tower(source.module)
    representation = source.representation if loading.representation is None else loading.representation
    example = example_for(tower, source.input_size, 1)
    return split(tower, example, heads=source.heads, returns=source.returns, representation=representation, pool=pool)


def _from_checkpoint(source: Source, loading: Loading) -> Loaded:
    assert loading.checkpoint is not None
    path, pool = _path(source), loading.pool if source.unpool is None else None

    def needed() -> frozenset[str]:
        read = {id(tensor) for tensor in _split(source, loading, pool).body.state_dict(keep_vars=True).values()}
        return frozenset(
            name for name, tensor in source.module.state_dict(keep_vars=True).items() if id(tensor) in read
        )

    return load_checkpoint(
        source.module,
        loading.checkpoint,
        key=loading.checkpoint_key,
        tower=path,
        needed=needed,
        convert=source.convert or partial(resampled, size=(source.input_size[-2], source.input_size[-1])),
    )


def _drawn(part: nn.Module, module: nn.Module, missing: Mapping[str, str]) -> dict[str, str]:
    """The weights of a part of a module that the module has by chance, by their names in the part."""
    drawn = {id(weight): missing[name] for name, weight in module.named_parameters() if name in missing}
    return {name: drawn[id(weight)] for name, weight in part.named_parameters() if id(weight) in drawn}


@torch.no_grad()
def _matter(names: Iterable[str], body: nn.Module, images: torch.Tensor) -> bool:
    """Whether any of these weights has to do with the representation: where they are NaN, so is it."""
    weights = [body.get_parameter(name) for name in names]
    kept = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.fill_(torch.nan)
        return not bool(body(images).isfinite().all())
    finally:
        for weight, own in zip(weights, kept, strict=True):
            weight.copy_(own)


def _path(source: Source) -> str:
    """What the names of the tower's weights begin with in the module; empty where the tower wraps it."""
    tower = source.tower(source.module)
    return next((f"{path}." for path, part in source.module.named_modules() if path and part is tower), "")


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
    near = nearest(name, known)
    return ModelError(
        f"There is no {what} {name!r}.", where=where, cure=f"the nearest: {', '.join(near)}" if near else None
    )


def nearest(name: str, known: Iterable[str], count: int = 4) -> list[str]:
    """The names that are nearest to one: that begin with it, that hold it, then by how many letters have to change."""
    wanted = name.casefold()

    def distance(known: str) -> tuple[bool, bool, int, str]:
        folded = known.casefold()
        return not folded.startswith(wanted), wanted not in folded, _edits(wanted, folded), known

    return sorted(set(known), key=distance)[:count]


def _edits(first: str, second: str) -> int:
    """How many letters have to be added, taken away or replaced to make one word of another."""
    row = list(range(len(second) + 1))
    for place, letter in enumerate(first):
        corner, row[0] = row[0], place + 1
        for column, other in enumerate(second):
            corner, row[column + 1] = (
                row[column + 1],
                min(row[column] + 1, row[column + 1] + 1, corner + (letter != other)),
            )
    return row[-1]


def _resolve(id: str) -> tuple[Library, str]:
    if not isinstance(id, str):
        raise ArgumentError(
            f"A model is loaded by its id, not by a {type(id).__name__}.",
            cure=f"give an id such as {LIBRARIES['timm'].example!r}; a module of your own goes to Model.from_module",
        )
    prefix, _, name = id.partition("/")
    if prefix not in LIBRARIES:
        near, hint = nearest(prefix, LIBRARIES, 1)[0], LIBRARIES["timm"].example
        if id.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
            hint = f"`timm/{id}` or `open_clip/{id}`"
        elif prefix and not name:
            hint = f"`timm/{id}`"
        elif prefix and _edits(prefix, near) <= 3:
            hint = f"`{near}/{name}`"
        elif prefix and "/" not in name and ":" not in prefix:
            hint = f"`hf/{id}`"
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

    Args:
        model: A model, an id, or how one is loaded.
        device: Where it is loaded to.
        dtype: What its weights are cast to: the name of a type of torch.

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
    return _loaded(Loading(model) if isinstance(model, str) else model, device, getattr(torch, dtype))
