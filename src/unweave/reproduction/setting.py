"""A setting: which models, on which images, in which text space, and where stores, aligners and results are kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import unweave
from unweave.alignment import Recipe, align
from unweave.errors import ArgumentError
from unweave.extraction import Settings, extract
from unweave.files import replacing
from unweave.images import open_images
from unweave.loading import Loading
from unweave.models import Model, load_model
from unweave.store import Store
from unweave.tasks.classifier import By
from unweave.text import TextSpace, text_space

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model of the tables.

    Attributes:
        name: As published.
        model: Its id.
        by: What tells its classes: the model's own classifier, words, or a probe.
    """

    name: str
    model: str
    by: By

    def as_code(self) -> str:
        """The Python that names it again."""
        return f"unweave.reproduction.Subject({self.name!r}, {self.model!r}, {self.by!r})"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that name it again."""
        return ["--model", self.name]


PUBLISHED = (
    Subject("DeiT-B/16", "timm/deit_base_patch16_224.fb_in1k", "model"),
    Subject("CLIP ViT-B/16", "open_clip/ViT-B-16/laion2b_s34b_b88k", "zero-shot"),
    Subject("DINO ViT-B/16", "timm/vit_base_patch16_224.dino", "probe"),
    Subject("DINOv2 ViT-B/14", "timm/vit_base_patch14_dinov2.lvd142m", "probe"),
    Subject("Swin-B", "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k", "model"),
    Subject("MaxViT-S", "timm/maxvit_small_tf_224.in1k", "model"),
)
"""The six models of the paper."""

POCKET = (
    Subject("pocket DeiT", "pocket/deit", "model"),
    Subject("pocket CLIP", "pocket/clip", "zero-shot"),
    Subject("pocket DINO", "pocket/dino", "probe"),
    Subject("pocket DINOv2", "pocket/dinov2", "probe"),
    Subject("pocket Swin", "pocket/swin", "model"),
    Subject("pocket MaxViT", "pocket/maxvit", "model"),
)
"""Their small kin, which are shipped."""

SPACE, POCKET_SPACE = "open_clip/ViT-L-14/laion2b_s32b_b82k", "pocket/clip"
"""Where words are: as published, and in the pocket world."""


_SAID = {
    "pocket": False,
    "data": None,
    "fitted": None,
    "space": SPACE,
    "random_weights": False,
    "limit": None,
    "device": "auto",
    "seed": 0,
}
"""What of a setting a command line says too, and what it is if nothing is said."""


@dataclass(frozen=True)
class Setting:
    """What a table is made of.

    Attributes:
        work: A folder for stores, aligners and results; what is there is not done again.
        pocket: Whether it is the pocket world.
        data: The images that the table is about; None for those of the pocket world.
        fitted: The images that aligners are fitted to; None for those of the pocket world.
        space: The id of the text space.
        random_weights: For models and text space: to try out all steps without fetching anything.
        limit: Only the first so many images of everything.
        device: Where to compute.
        seed: Of everything that is drawn by chance.
        recipe: How aligners are fitted.
        draws: Of random components, where they are a control.
        say: Called with what is being done.
    """

    work: str | PathLike[str]
    pocket: bool = False
    data: str | None = None
    fitted: str | None = None
    space: str = SPACE
    random_weights: bool = False
    limit: int | None = None
    device: str = "auto"
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    draws: int = 20
    say: Say = field(default=lambda what: None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "work", fspath(self.work))

    def as_code(self) -> str:
        """The Python that makes it again."""
        given = {name: value for name, value in vars(self).items() if name in _SAID and value != _SAID[name]}
        words = ", ".join([repr(self.work), *(f"{name}={value!r}" for name, value in given.items())])
        return f"unweave.reproduction.Setting({words})"

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that make it again.

        Raises:
            ArgumentError: It fits aligners, or draws, otherwise than a command does.
        """
        if self.recipe != Recipe() or self.draws != 20:
            raise ArgumentError("No option says a recipe, or how much is drawn.")
        words = ["--work", fspath(self.work)]
        for part, usual in _SAID.items():
            value, option = getattr(self, part), f"--{'fit' if part == 'fitted' else part.replace('_', '-')}"
            if value != usual and not (self.pocket and part in ("fitted", "space")):
                words += [option] if value is True else [option, str(value)]
        return words

    @property
    def images(self) -> str:
        """The images that the table is about.

        Raises:
            ArgumentError: They were not named.
        """
        if self.data is None:
            raise ArgumentError("The images were not named.", cure="name them with `--data`, or use `--pocket`")
        return self.data

    @property
    def fit(self) -> str:
        """The images that aligners are fitted to.

        Raises:
            ArgumentError: They were not named.
        """
        if self.fitted is None:
            raise ArgumentError(
                "The images to fit aligners to were not named.", cure="name them with `--fit`, or use `--pocket`"
            )
        return self.fitted

    @cached_property
    def words(self) -> TextSpace:
        """The text space, loaded."""
        self.say(f"loading {self.space}")
        random = self.random_weights and not self.space.startswith("pocket/")
        return text_space(self.space, random_weights=random, seed=self.seed, device=self._device)

    @cached_property
    def _fingerprint(self) -> str:
        return open_images(self.images).fingerprint

    @property
    def _device(self) -> str:
        from unweave.device import device_of

        return device_of(self.device)

    @property
    def settings(self) -> Settings:
        """How contributions are extracted."""
        return Settings(device=self.device)

    def loading(self, subject: Subject) -> Loading:
        """How a model is loaded."""
        return Loading(subject.model, random_weights=self.random_weights, seed=self.seed)

    def model(self, subject: Subject) -> Model:
        """A model, loaded."""
        self.say(f"{subject.name}: loading")
        return load_model(self.loading(subject), device=self._device)

    def file(self, table: str, subject: Subject, suffix: str) -> Path:
        """Where something that belongs to a table is put."""
        path = Path(self.work) / "results" / f"{table}-{_plain(subject.name)}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def store(self, subject: Subject, data: str, split: str | None = None) -> Store:
        """A model's contributions for some images; extracted once, and gone on with where that was interrupted."""
        place = Path(self.work) / "stores" / _plain(f"{subject.model} {data} {split or ''} {self._mark}")
        self.say(f"{subject.name}: extracting {data}{f', {split}' if split else ''}")
        images = open_images(data, split=split, limit=self.limit)
        return extract(self.loading(subject), images, place, self.settings)

    def aligner(self, subject: Subject) -> Path:
        """Where a model's aligner lies; fitted once, and gone on with where that was interrupted."""
        place = Path(self.work) / "aligners" / _plain(f"{subject.model} {self.space} {self.fitted or ''} {self._mark}")
        if not (place / "aligner.json").exists():
            store = self.store(subject, self.fit)
            self.say(f"{subject.name}: aligning to {self.space}")
            recipe, kept = replace(self.recipe, seed=self.seed, random_images=0), place.with_suffix(".unfinished")
            align(store, self.words, recipe, kept=kept).save(place)
        return place

    def result(self, table: str, subject: Subject, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Rows of a table, made once for these images."""
        images = None if self.data is None else self._fingerprint
        known = {key: str(value) for key, value in asdict(self).items() if key not in ("say", "work", "device")}
        key = hashlib.sha256(
            json.dumps([unweave.__version__, table, asdict(subject), known, images], sort_keys=True).encode()
        ).hexdigest()[:16]
        path = Path(self.work) / "results" / f"{table}-{_plain(subject.name)}-{key}.json"
        if path.exists():
            return list(json.loads(path.read_text("utf-8")))
        rows = make()
        with replacing(path, "result") as partial:
            partial.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
        return rows

    @property
    def _mark(self) -> str:
        parts = ["random" if self.random_weights else "", str(self.limit or ""), str(self.seed or "")]
        return " ".join(part for part in parts if part)


def chosen(subjects: Sequence[Subject], names: Sequence[str]) -> tuple[Subject, ...]:
    """The subjects with these names or ids, or models of one's own by their id; all if none is named.

    Raises:
        ArgumentError: A name is neither.
    """
    known: Mapping[str, Subject] = {key: subject for subject in subjects for key in (subject.name, subject.model)}
    picked = []
    for name in names:
        if name not in known and "/" not in name:
            raise ArgumentError(
                f"There is no model {name!r}.", cure=f"use some of {', '.join(subject.name for subject in subjects)}"
            )
        picked.append(known.get(name) or Subject(name, name, "zero-shot" if name.startswith("open_clip/") else "probe"))
    return tuple(picked) or tuple(subjects)


def _plain(name: str) -> str:
    """A name for a file: readable, and its hash where something had to be left out."""
    text = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{text[:80]}-{mark}"
