"""The arguments and options that verbs share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer
from typer.models import OptionInfo

from unweave.loading import LARGEST_IMAGE

MANY = 10**9
"""The largest number of images, rows or components that anybody asks for on purpose."""

SEEDS = 2**32 - 1
"""The largest seed that torch, numpy and scikit-learn all take."""


def panel(name: str) -> Callable[..., OptionInfo]:
    """What declares options that the help shows together, each by its help and then as `typer.Option` does."""

    def option(help: str, *names: str, **how: Any) -> OptionInfo:
        return typer.Option(*names, help=help, rich_help_panel=name, **how)

    return option


def finite(value: float | None) -> float | None:
    """A number that is one: what no range keeps out is NaN."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number.")
    return value


def possible(path: Path | None) -> Path | None:
    """A path that a file can have."""
    if path is not None and any(len(os.fsencode(part)) > 200 for part in path.parts):
        raise typer.BadParameter("A name in this path is too long.")
    return path


def pixels(text: str) -> int | tuple[int, int]:
    """An image size: one number, or the height and the width."""
    lengths = text.lower().replace("\N{MULTIPLICATION SIGN}", "x").split("x")
    if len(lengths) > 2 or not all(length.isdecimal() and 1 <= int(length[:6]) <= LARGEST_IMAGE for length in lengths):
        raise typer.BadParameter(f"{text!r} is neither a number from 1 to {LARGEST_IMAGE:,} nor HEIGHTxWIDTH.")
    return int(lengths[0]) if len(lengths) == 1 else (int(lengths[0]), int(lengths[1]))


def field(text: str) -> str | int:
    """A field of an output by its name, or by its place."""
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 6 else text


def rows(text: str) -> list[range]:
    """Rows of a store: `0:3,7` is 0, 1, 2 and 7."""
    runs: list[range] = []
    for part in text.split(","):
        first, colon, behind = part.partition(":")
        numbers = [number for number in (first, behind if colon else first) if number.isdecimal() and len(number) < 10]
        if len(numbers) < 2:
            raise typer.BadParameter(f"{part!r} is neither a row nor FIRST:BEHIND.")
        runs.append(range(int(numbers[0]), int(numbers[1]) if colon else int(numbers[0]) + 1))
    return runs


def side(text: str) -> tuple[float, int, int]:
    """A side of a split by ids: the share of the second, the seed, and which."""
    share, seed, which = (*text.split(","), "", "")[:3]
    try:
        values = float(share), int(seed), int(which)
    except ValueError:
        values = math.nan, 0, 0
    if not 0 <= values[0] <= 1 or values[2] not in (0, 1) or text.count(",") != 2:
        raise typer.BadParameter(f"{text!r} is not SHARE,SEED,SIDE, such as 0.5,0,1.")
    return values


Levels: TypeAlias = Literal["layer", "head", "token", "neuron"]
"""As `unweave.components.Level`, which a command line need not wait for."""

_weights = panel("Weights")
_how = panel("How to decompose")

Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model's id, such as `timm/vit_base_patch16_224.dino` (see `unweave models`)."
    ),
]
Checkpoint: TypeAlias = Annotated[
    Path | None, _weights("Take the weights from this safetensors or torch file.", exists=True, dir_okay=False)
]
RandomWeights: TypeAlias = Annotated[bool, _weights("Use random weights and fetch nothing.", "--random-weights")]
Seed: TypeAlias = Annotated[int, _weights("The seed of the random weights.", min=0, max=SEEDS)]
ImageSize: TypeAlias = Annotated[
    Any,
    _weights(
        "Height and width in pixels (`224`, `224x448`); the model's own if not given.", parser=pixels, metavar="N|HxW"
    ),
]
CheckpointKey: TypeAlias = Annotated[
    str | None,
    _weights(
        "What the weights are called, where the checkpoint has them several times: `state_dict_ema`, `teacher`.",
        metavar="NAME",
    ),
]
Representation: TypeAlias = Annotated[
    Any,
    _how(
        "The field or index of the model's output that is the representation; found by itself if not given.",
        parser=field,
        metavar="NAME|N",
    ),
]
Pool: TypeAlias = Annotated[
    Literal["mean", "class"] | None,
    _how(
        "How tokens become one vector: the mean of those of the image, or the class token; the model's own way if not "
        "given."
    ),
]
Level: TypeAlias = Annotated[
    Levels, _how("How finely: whole branches, attention heads, heads by token, or hidden neurons.")
]
Select: TypeAlias = Annotated[
    list[str] | None,
    _how(
        "Only these components; the others are summed. A glob (`blocks.9.*`), `kind:head` or `last:4`; "
        "`!` before it takes away. May be given several times."
    ),
]
Attention: TypeAlias = Annotated[
    Literal["through", "stop"], _how("At attention that pools the whole image: go through it, or stop there.")
]
Nonlinear: TypeAlias = Annotated[
    Literal["stop", "freeze"],
    _how("At nonlinearities on the residual path: stop there, or freeze their slope and go on."),
]
Strict: TypeAlias = Annotated[bool, _how("Make an operation without a rule an error.", "--strict")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]

_regions = panel("Regions, in place of the whole image")

Token: TypeAlias = Annotated[
    list[str] | None,
    _regions(
        "Explain this token of the model's grid, from 0; all of them with `all`. May be given several times.",
        metavar="ROW,COLUMN|all",
    ),
]
Box: TypeAlias = Annotated[
    list[str] | None,
    _regions(
        "Explain this box, in pixels of the picture. May be given several times.", metavar="LEFT,TOP,RIGHT,BOTTOM"
    ),
]
Mask: TypeAlias = Annotated[
    list[str] | None,
    _regions(
        "Explain what is not black in this picture of the same size; `each`: in each image's own mask.",
        metavar="FILE|each",
    ),
]

_space = panel("The text space")
_work = panel("How to work")

Store: TypeAlias = Annotated[str, typer.Argument(metavar="STORE", help="What `unweave extract` wrote.")]
Output: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", callback=possible, help="Where results are written.")
]
Space: TypeAlias = Annotated[
    str | None,
    _space(
        "The folder of an aligner, which knows its text space; or, for a CLIP, the id of its own.", metavar="FOLDER|ID"
    ),
]
Templates: TypeAlias = Annotated[
    Path | None, _space("Sentences for phrases, one on each line, with {} for the phrase.")
]
Where: TypeAlias = Annotated[
    list[str] | None, typer.Option(metavar="FIELD=VALUE", help="Only images of which a field has this value.")
]
Rows: TypeAlias = Annotated[
    Any, typer.Option(parser=rows, metavar="N,FIRST:BEHIND", help="Only these rows of the store, from 0: `0:3,7`.")
]
Side: TypeAlias = Annotated[
    list[Any] | None,
    typer.Option(
        parser=side,
        metavar="SHARE,SEED,SIDE",
        help="Only one side of a split by the images' ids: `0.5,0,1` is the second half.",
    ),
]
Check: TypeAlias = Annotated[bool, typer.Option("--check", help="Compare what is read with its checksums.")]
StoreLevel: TypeAlias = Annotated[str | None, typer.Option(help="The level; the store's first if not given.")]
Device: TypeAlias = Annotated[Literal["auto", "cpu", "cuda"], _work("Where encoders compute.")]
DrawSeed: TypeAlias = Annotated[int, _work("Of everything that is drawn by chance.", "--seed", min=0, max=SEEDS)]
Limit: TypeAlias = Annotated[int | None, typer.Option(min=1, max=MANY, help="Only the first so many images.")]
_reading = panel("How files are read")

White: TypeAlias = Annotated[
    float | None,
    _reading(
        "The value that is white in files of more than 8 bits, such as 4095 of 12 bits.",
        min=1e-09,
        max=1000000000000000.0,
        callback=finite,
    ),
]
MaxPixels: TypeAlias = Annotated[
    int | None, _reading("The most pixels of an image; about 179 million if not given.", min=1, max=10**12)
]
NoFigure: TypeAlias = Annotated[bool, typer.Option("--no-figure", help="Draw no figure.")]
Label: TypeAlias = Annotated[str, typer.Option(metavar="FIELD", help="The field that has the classes.")]
Images: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="A folder, a table (.csv, .parquet), tars, `hf/ORG/NAME`, `pocket/evaluation`, or KIND:PATH.",
    ),
]

_chosen = panel("Which components")

Scores: TypeAlias = Annotated[
    Path | None, _chosen("What `unweave score` wrote: the components that score highest.", metavar="FOLDER")
]
Feature: TypeAlias = Annotated[list[str] | None, _chosen("For this feature; for all if none is named.", metavar="NAME")]
Components: TypeAlias = Annotated[
    int | None, _chosen("The most components; the better half if not given.", min=1, max=MANY)
]
OnError: TypeAlias = Annotated[Literal["skip", "raise"], typer.Option(help="At a broken image: go on, or stop.")]
Table: TypeAlias = Annotated[
    str, typer.Argument(metavar="TABLE", help="`ablation`, `retrieval`, `waterbirds`, `heatmaps`, `segmentation`.")
]
Pictures: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGES",
        help="Image files and folders, or one set of images as for `unweave extract`; drawn samples if none.",
    ),
]
