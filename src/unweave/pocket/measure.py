"""How good the zoo is: `python -m unweave.pocket.measure` asks every network, and writes cards and documentation.

All accuracies are balanced over classes, or over groups of birds, on scenes that no network has learned from: the
shipped evaluation set, and birds of their test split.

* CLIP is asked in words alone; supervised networks by their own classifier.
* Every representation is probed by linear heads, and beside it that of the same network before it was trained: what a
  head reads from random features, training has not put there.
* A head that tells land birds from water birds learns from biased scenes, and again from balanced ones. What its worst
  group loses by the bias says how much the background tempts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from unweave.errors import UnweaveError
from unweave.models import Model, load_model
from unweave.pocket import shelf
from unweave.pocket.captions import TEMPLATES, alone
from unweave.pocket.encoder import TextEncoder, text
from unweave.pocket.networks import IMAGE_SIZE, NETWORKS, Clip, image_tower
from unweave.pocket.probes import Classes, Features, Images, Trial, accuracy, fitted, misled, trial
from unweave.pocket.recipes import RECIPES
from unweave.pocket.scenes import NAMES, Scenes, coded, draw
from unweave.pocket.shipped import Evaluation, evaluation
from unweave.pocket.train import Training
from unweave.pocket.views import whole
from unweave.pocket.world import World

PROBED = ("object", "location")
"""What linear heads read from every representation."""

PROBE = World(2), range(4000)
"""The scenes that linear heads learn from; networks learn from other worlds."""

PROBES = ("probe", "probe, untrained", "probe, random")
"""The networks that are probed: as trained, as it was before, and with random weights of a gain of one."""

BIRD_SEEDS = (0, 1, 2)


def represent(model: Model, images: Images) -> Features:
    """The representations of images."""
    with torch.inference_mode():
        batches = torch.from_numpy(np.array(images)).to(model.device).split(200)
        return torch.cat([model.readout(whole(batch)) for batch in batches]).cpu().numpy()


def prompts(factor: str, value: str) -> list[str]:
    """What somebody would write who names this factor alone, in all ways that captions have."""
    return [template.format(phrase) for template in TEMPLATES for phrase in alone(factor, value)]


def zero_shot(encoder: TextEncoder, features: Features, factor: str) -> Classes:
    """The value of a factor whose prompts are nearest to each image, by the cosine with their mean."""
    directions = torch.stack([encoder.encode(prompts(factor, value)).mean(0) for value in NAMES[factor]])
    return (features @ nn.functional.normalize(directions, dim=-1).cpu().numpy().T).argmax(1)


def named(model: Model, features: Features) -> dict[str, Classes]:
    """What a model says of images without further training: every factor in words, or the object by its classifier."""
    if isinstance(model.module, Clip):
        encoder = text(model)
        return {factor: zero_shot(encoder, features, factor) for factor in NAMES}
    if model.classifier is None:
        return {}
    with torch.inference_mode():
        return {"object": model.classifier(torch.from_numpy(features).to(model.device)).argmax(1).cpu().numpy()}


def untrained(name: str, device: str) -> Model:
    """A network as it was before its first step."""
    tower = image_tower(Training(name, RECIPES[name], device).network)
    return Model.from_module(tower, input_size=(3, IMAGE_SIZE, IMAGE_SIZE), id=f"pocket/{name}, untrained")


def measured(
    name: str, scenes: Evaluation, probe: Scenes, trials: list[Trial], *, device: str = "cpu"
) -> dict[str, Any]:
    """All that is measured of one network.

    Args:
        name: Of the network.
        scenes: What it is asked about.
        probe: What linear heads learn from.
        trials: Birds, for each seed.
        device: Where it is asked.

    Returns:
        Accuracies: `named` and `named, held-out style` by factor; each of `PROBES` by factor; `birds` for each seed.
    """
    model = load_model(f"pocket/{name}", device=device)
    random = load_model(f"pocket/{name}", random_weights=True, device=device)
    codes = np.array([coded(factors) for factors in scenes.factors])
    usual, said = ~scenes.held_out, named(model, represent(model, scenes.images))

    def right(found: dict[str, Classes], which: np.ndarray) -> dict[str, float]:
        columns = {factor: codes[:, list(NAMES).index(factor)] for factor in found}
        return {factor: round(accuracy(found[factor][which], columns[factor][which]), 4) for factor in found}

    def probed(model: Model) -> dict[str, float]:
        learned, asked = represent(model, probe.images), represent(model, scenes.images)
        return right({factor: fitted(learned, probe.code(factor)).predict(asked) for factor in PROBED}, usual)

    birds = [misled(flocks, partial(represent, model)) for flocks in trials]
    return {
        "named": right(said, usual),
        "named, held-out style": right(said, ~usual),
        **dict(zip(PROBES, map(probed, (model, untrained(name, device), random)), strict=True)),
        "birds": [{which: round(value, 4) for which, value in one.items()} for one in birds],
    }


def tables(cards: dict[str, dict[str, Any]]) -> tuple[list[list[str]], list[list[str]]]:
    """The two tables of the documentation, their heads first: what networks say, and what linear heads read."""

    def cell(found: dict[str, float], factor: str) -> str:
        return f"{found[factor]:.2f}" if factor in found else ""

    def spread(birds: list[dict[str, float]], name: str) -> str:
        values = [one[name] for one in birds]
        return f"{mean(values):.2f} ± {stdev(values):.2f}"

    said = [["network", *NAMES, "object, held-out style"]]
    columns = [f"{factor}{of.removeprefix('probe')}" for factor in PROBED for of in PROBES]
    read = [["network", *columns, "worst, biased", "worst, balanced", "average, biased"]]
    for name, card in cards.items():
        found = card["measured"]
        cells = [cell(found["named"], factor) for factor in NAMES]
        said.append([name, *cells, cell(found["named, held-out style"], "object")])
        probes = [cell(found[which], factor) for factor in PROBED for which in PROBES]
        birds = [spread(found["birds"], which) for which in ("worst biased", "worst balanced", "average biased")]
        read.append([name, *probes, *birds])
    return [row for row in said if any(row[1:])], read


def markdown(table: list[list[str]]) -> str:
    """A table for the documentation."""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which networks; all if none is named.")] = None,
    docs: Annotated[Path | None, typer.Option(help="The page that the tables are written into.")] = None,
    device: Annotated[str, typer.Option(help="Where the networks are asked.")] = "cpu",
) -> None:
    """Measure the networks of the pocket zoo, print the tables, and write figures into the cards."""
    console = Console()
    with console.status("Drawing what they are measured on"):
        scenes, probe, trials = evaluation(), draw(*PROBE), [trial(seed) for seed in BIRD_SEEDS]
    for name in track(names or list(NETWORKS), "Measuring", console=console):
        found = measured(name, scenes, probe, trials, device=device)
        shelf.write(name, shelf.card(name) | {"measured": found})
    cards = {name: shelf.card(name) for name in NETWORKS}
    both = tables({name: card for name, card in cards.items() if "measured" in card})
    for head, *body in both:
        table = Table(*head)
        for row in body:
            table.add_row(*row)
        console.print(table)
    if docs is not None:
        written = "\n\n".join(map(markdown, both))
        above, _, rest = docs.read_text().partition("<!-- zoo:begin -->")
        below = rest.partition("<!-- zoo:end -->")[2]
        docs.write_text(f"{above}<!-- zoo:begin -->\n\n{written}\n\n<!-- zoo:end -->{below}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UnweaveError as error:
        raise SystemExit(str(error)) from None
