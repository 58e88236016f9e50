"""Which class of transformers is built of what a configuration names, and what of it maps images to a representation.

The library's own tables and conventions decide (`modeling_auto`, `get_image_features`, `vision_config`,
`backbone_config`); no model is named here. What is built in place of the class that the folder names is said.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unweave.errors import ModelError
from unweave.models.hf.towers import FEATURES, takes

_TOWERS = ("vision_config", "backbone_config")
"""Where a configuration holds that of a tower."""


@dataclass(frozen=True)
class Architecture:
    """What is built.

    Attributes:
        build: A class of transformers.
        config: The configuration that it takes.
        named: The class that the folder names.
        method: What is called of it.
        part: Whether only a part of it is called: the submodule of `tower`.
        classifies: Whether it returns classes.
        notes: What was left out, in words.
        instead: What is built where the named class lacks weights of this one.
    """

    build: Any
    config: Any
    named: str = ""
    method: str = "forward"
    part: bool = False
    classifies: bool = False
    notes: tuple[str, ...] = ()
    instead: Architecture | None = None

    @property
    def whole(self) -> bool:
        """Whether images alone go in, and nothing of it is left out."""
        return self.method == "forward" and not self.part


def architecture(config: Any, id: str, *, bare: bool = False) -> Architecture:
    """What to build of a configuration.

    Args:
        config: As transformers reads it.
        id: For messages.
        bare: Whether a classifier is left out, for tokens or another output than logits are asked for.

    Raises:
        ModelError: Nothing in it takes images.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    named = next(iter(getattr(config, "architectures", None) or ()), "")
    known = getattr(transformers, named, None) if named else None
    if _foreign(config):
        known = None
    classifiers = {
        *_names(auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        *_names(auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES),
    }
    if known is not None and named in classifiers and not bare:
        return Architecture(known, config, named, classifies=True)
    if (
        not bare
        and not named
        and getattr(config, "pretrained_cfg", None)
        and (getattr(config, "num_labels", 0) or 0) > 0
    ):
        built = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)  # timm's own files name no class
        if built is not None:
            return Architecture(built, config, classifies=True)
    base = _base(config, named)
    if known is not None and named in _names(auto.MODEL_FOR_BACKBONE_MAPPING_NAMES):
        return Architecture(known, config, named)
    holds = tower_config(config) is not None
    towers = [
        Architecture(built, config, named, part=True, notes=_left_out(named, built.__name__, "image tower"))
        for built in (known, base)
        if built is not None and holds
    ]
    for built in (base, known):
        method = None if built is None else _features(built)
        if built is not None and method is not None:
            notes = _left_out(named, built.__name__, "side of images")
            instead = towers[0] if towers and known is not None and built is not known else None
            return Architecture(built, config, named, method, notes=notes, instead=instead)
    if known is not None and ("VisionModel" in named or known is base) and _sees(known) and not holds:
        return Architecture(known, config, named)
    if towers:
        return towers[0]
    if base is not None and _sees(base):
        return Architecture(base, config, named, notes=_replaced(named, base.__name__))
    if known is not None and _sees(known):
        return Architecture(known, config, named)
    raise ModelError(
        f"transformers has no image tower for {named or type(config).__name__}.",
        where=id,
        cure="load the model yourself and give its image tower to Model.from_module",
    )


def tower_config(config: Any) -> Any:
    """The configuration of the tower within another one; None where there is none."""
    return next((own for name in _TOWERS if (own := getattr(config, name, None)) is not None), None)


def tower(model: nn.Module, config: Any, images: Tensor) -> str:
    """The path of the submodule that was built of the tower's configuration, or else is the first to take images alone.

    Args:
        model: Of the whole configuration.
        config: The whole configuration.
        images: Some, on the model's device.

    Raises:
        ValueError: There is none.
    """
    wanted = tower_config(config)
    encoders: Any = getattr(model, "get_encoder", None)
    encoder = encoders(modality="image") if encoders is not None and takes(encoders, "modality") else model
    names = {part: path for path, part in model.named_modules()}
    if encoder is not model and names.get(encoder):
        return names[encoder]
    for path, part in model.named_modules():
        if path and type(getattr(part, "config", None)) is type(wanted):
            return path
    for part in _called_with(model, images):
        return names[part]
    raise ValueError("it has no submodule that was built of its vision_config or backbone_config")


def _called_with(model: nn.Module, images: Tensor) -> list[nn.Module]:
    """The submodules that a model calls with images and nothing else, the outermost first."""
    called: list[nn.Module] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not model and len(args) == 1 and args[0] is images and not kwargs:
            called.append(module)

    handles = [part.register_forward_pre_hook(note, with_kwargs=True) for part in model.modules()]
    with torch.no_grad(), suppress(Exception):  # it may want more than images later
        model(images)
    for handle in handles:
        handle.remove()
    return called


def within(architecture: Architecture, names: Collection[str]) -> bool:
    """Whether what is built has weights of these names, under any prefix."""
    with torch.device("meta"):
        own = architecture.build(architecture.config).state_dict()
    ends = {name[start:] for name in own for start in (0, *(at + 1 for at, letter in enumerate(name) if letter == "."))}
    return ends.issuperset(names)


def _features(built: Any) -> str | None:
    """The method that gives what a model of images and text reads of pixels alone; None where there is none."""
    for method in FEATURES:
        call = getattr(built, method, None)
        if call is not None and not any(
            own.default is own.empty and name.endswith("input_ids")
            for name, own in inspect.signature(call).parameters.items()
        ):
            return method
    return None


def _base(config: Any, named: str) -> Any:
    """The class of a configuration without heads; None where transformers has none."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    try:
        found = MODEL_MAPPING[type(config)]
    except (KeyError, ValueError, ImportError, AttributeError):
        return None
    several = found if isinstance(found, (tuple, list)) else (found,)
    return next((own for own in several if own.__name__ == named), several[0])


def _left_out(named: str, built: str, what: str) -> tuple[str, ...]:
    of = built if named in ("", built) else f"{named} (as {built})"
    return (f"Of {of} the {what} alone is loaded; the rest is left out.",)


def _replaced(named: str, built: str) -> tuple[str, ...]:
    if named in ("", built):
        return ()
    return (f"The folder names {named}; {built} is loaded, without what the other has beside it.",)


def _foreign(config: Any) -> bool:
    """Whether the class is one of the folder's own, whose code is not run."""
    return "AutoModel" in "".join(getattr(config, "auto_map", None) or ())


def _sees(known: Any) -> bool:
    """Whether a class takes images, and neither text nor sound."""
    modalities = getattr(known, "input_modalities", ())
    alone = isinstance(modalities, (tuple, list)) and "image" in modalities and {*modalities} <= {"image", "video"}
    return alone or str(getattr(known, "main_input_name", "")).startswith("pixel_values")


def _names(mapping: Any) -> Iterator[str]:
    for names in mapping.values():
        yield from (names,) if isinstance(names, str) else names
