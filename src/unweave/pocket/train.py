"""Training the zoo: `python -m unweave.pocket.train NAME` makes a network from nothing but drawn scenes.

Every step draws its batch, its views and whatever else is random from a seed of its own, so that a training that was
interrupted goes on as if nothing had happened. The rate of learning rises, stays, and falls to zero over the last part;
the state before the fall is kept, and more steps later go on from there.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from safetensors import safe_open
from safetensors.torch import save_file
from timm.layers import PatchDropout
from torch import Tensor, nn

from unweave.errors import UnweaveError
from unweave.files import replacing
from unweave.models.library import unknown
from unweave.pocket.networks import NETWORKS, image_tower
from unweave.pocket.objectives import OBJECTIVES
from unweave.pocket.optimiser import Muon
from unweave.pocket.recipes import RECIPES, Recipe
from unweave.pocket.scenes import NAMES, WORDS, Scenes, cached
from unweave.pocket.shelf import WEIGHTS, put
from unweave.pocket.world import World

DRAWN = ((World(1, plain=1.0), 20_000), (World(0), 120_000))
"""Easy scenes and usual ones, and how many of them are drawn once and seen again and again."""

LEARNED: dict[str, tuple[str, ...]] = {"labels": NAMES["object"], "captions": WORDS.words, "views": ()}
"""The names that a network learns from each objective: classes of its classifier, or words of its text tower."""

_EVERY = 60.0
"""Seconds between checkpoints."""


class Training:
    """A network that learns, one step at a time.

    Args:
        name: Of the network, one of `NETWORKS`.
        recipe: How it learns.
        device: Where.

    Attributes:
        step: How many batches it has learned from.
        seconds: How much of the processor's time that took.
    """

    def __init__(self, name: str, recipe: Recipe, device: str = "cpu") -> None:
        self.recipe, self.device = recipe, device
        self.step, self.seconds = 0, 0.0
        torch.manual_seed(recipe.seed)
        self.network = NETWORKS[name](len(LEARNED[recipe.objective]))
        self.objective = OBJECTIVES[recipe.objective](self.network, recipe.view).to(device).train()
        self.optimiser = Muon(self.objective, recipe.rate)

    def advance(self, easy: Scenes, usual: Scenes) -> float:
        """Learn from one batch; returns the loss."""
        began, recipe = time.process_time(), self.recipe
        torch.manual_seed(recipe.seed + 1_000_003 * (self.step + 1))
        rng = np.random.default_rng((recipe.seed, self.step))
        first = round(recipe.batch * recipe.easy_share(self.step))
        counts = ((easy, first), (usual, recipe.batch - first))
        taken = [scenes.take(rng.integers(len(scenes), size=count)) for scenes, count in counts]
        arrays = map(np.concatenate, zip(*taken, strict=True))
        images, codes, words = (torch.from_numpy(array).to(self.device) for array in arrays)
        _drop_patches(image_tower(self.network), recipe.dropped_share(self.step))
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * recipe.rate_share(self.step)
        loss = self.objective(images, codes.long(), words)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.seconds += time.process_time() - began
        return loss.item()

    def save(self, path: Path) -> None:
        """Write all there is to a file that is either the old one or the new one, never half of it."""
        tensors = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in state.items()}
        known = {"step": self.step, "seconds": self.seconds}
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with replacing(path, "checkpoint") as partial:
            save_file(whole, partial, {"json": json.dumps(known)})

    def load(self, path: Path) -> None:
        """Go back to what `save` wrote."""
        objective: dict[str, Tensor] = {}
        state: dict[int, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a mapping
                kind, _, name = key.partition(".")
                if kind == "objective":
                    objective[name] = file.get_tensor(key)
                else:
                    number, _, name = name.partition(".")
                    state.setdefault(int(number), {})[name] = file.get_tensor(key)
            known = json.loads(file.metadata()["json"])
        self.objective.load_state_dict(objective)
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.step, self.seconds = known["step"], known["seconds"]


def train(
    name: str,
    recipe: Recipe,
    *,
    scenes: tuple[Scenes, Scenes],
    folder: Path,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Training:
    """Train a network to the end of its recipe, from where an earlier run stopped if there was one.

    Args:
        name: Of the network.
        recipe: How it learns.
        scenes: Easy ones and usual ones.
        folder: Where checkpoints are kept: one from before the rate falls, one of the fall to each number of steps.
        device: Where the network learns.
        progress: Where to say how far it is.
    """
    rising, falling = folder / f"{name}.safetensors", folder / f"{name}-{recipe.steps}.safetensors"
    progress = progress or Progress(disable=True)
    with torch.random.fork_rng(devices=[]):
        training = Training(name, recipe, device)
        for path in (rising, falling):
            if path.is_file():
                training.load(path)
        task = progress.add_task(name, total=recipe.steps, completed=training.step, loss=float("nan"))
        saved = time.monotonic()
        while training.step < recipe.steps:
            loss = training.advance(*scenes)
            progress.update(task, completed=training.step, loss=loss)
            if time.monotonic() - saved > _EVERY or training.step in (recipe.top, recipe.steps):
                training.save(rising if training.step <= recipe.top else falling)
                saved = time.monotonic()
                progress.console.print(f"{name} step {training.step} of {recipe.steps}: loss {loss:.3f}")
    return training


def finished(name: str, training: Training) -> dict[str, Any]:
    """The card of a trained network, before it is measured."""
    recipe = training.recipe
    return {
        "name": name,
        "names": LEARNED[recipe.objective],
        "recipe": asdict(recipe),
        "images": training.step * recipe.batch,
        "seconds": round(training.seconds),
        "device": training.device,
    }


def _drop_patches(tower: Any, share: float) -> None:
    """Hide a share of a ViT's patches from it (other networks hide none)."""
    if hasattr(tower, "patch_drop"):
        drops = PatchDropout(share, num_prefix_tokens=tower.num_prefix_tokens)
        tower.patch_drop = drops if share else nn.Identity()


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(RECIPES)}.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights and the card.")] = WEIGHTS,
    cache: Annotated[Path, typer.Option(help="Folder for drawn scenes and checkpoints.")] = Path("pocket-training"),
    steps: Annotated[int | None, typer.Option(help="Train for more or fewer steps than the recipe says.")] = None,
    device: Annotated[str, typer.Option(help="Where to train.")] = "cpu",
    processes: Annotated[int, typer.Option(help="How many processes draw scenes.")] = 2,
) -> None:
    """Train a network of the pocket zoo, or go on where an earlier training stopped."""
    if name not in RECIPES:
        raise unknown("pocket network", name, RECIPES, where="unweave.pocket.train")
    recipe = RECIPES[name] if steps is None else replace(RECIPES[name], steps=steps)
    easy, usual = (cached(world, count, cache / "scenes", processes=processes) for world, count in DRAWN)
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), loss) as progress:
        training = train(
            name, recipe, scenes=(easy, usual), folder=cache / "checkpoints", device=device, progress=progress
        )
    put(name, training.network, finished(name, training), out)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UnweaveError as error:
        raise SystemExit(str(error)) from None
