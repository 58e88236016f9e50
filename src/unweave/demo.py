"""The whole program on what it ships with: a pocket model is taken apart on the pocket world, and a report says what
came out.

Nothing is fetched and nothing else is needed. It is a demonstration, and a measuring instrument: in the pocket world
the truth about every image is known, so the report can say what each component carries, and not only guess.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from unweave.contributions import Contributions
from unweave.decomposition import plan as plan_for
from unweave.decomposition.planning import Plan
from unweave.figures import factors_figure, heatmap_figure, share_figure
from unweave.figures.page import Page
from unweave.models import Model, load_model
from unweave.pocket.contact import contact_sheet
from unweave.pocket.scenes import NAMES
from unweave.pocket.shipped import Evaluation, evaluation
from unweave.pocket.truth import explained
from unweave.progress import OnProgress, silent
from unweave.results import Shown, rich_table

BATCH = 100
SHOWN, MAPPED = 14, 12
"""How many scenes are shown with their captions, and how many with maps."""


@dataclass(frozen=True, eq=False, repr=False)
class Demonstration(Shown):
    """What the demonstration found.

    Attributes:
        model: The id of the model.
        contributions: Of all shipped scenes.
        carried: For each factor, the share of each component's variance that it explains.
        report: The HTML file.
        seconds: How long it took.
    """

    model: str
    contributions: Contributions
    carried: dict[str, Float[Tensor, " component"]]
    report: Path
    seconds: float

    @property
    def carriers(self) -> dict[str, int]:
        """For each factor, the place of the component that carries most of it."""
        return _carriers(self.contributions, self.carried)

    def about(self) -> dict[str, Any]:
        """What every component carries, ready for JSON."""
        return {
            "model": self.model,
            "images": len(self.contributions.ids),
            "components": len(self.contributions.components),
            "largest_error": float(self.contributions.error.max()),
            "seconds": round(self.seconds, 3),
            "carried": {
                factor: [
                    {**part.as_dict(), "explained": float(value)}
                    for part, value in zip(self.contributions.components, values, strict=True)
                ]
                for factor, values in self.carried.items()
            },
            "files": {"report": str(self.report)},
        }

    def told(self) -> list[RenderableType]:
        """The component that carries most of each factor, and how exactly all of them add up."""
        components, error = self.contributions.components, float(self.contributions.error.max())
        rows = [
            [factor, str(components[place]), f"{100 * float(self.carried[factor][place]):.2f} %"]
            for factor, place in self.carriers.items()
        ]
        headings = {"factor": "left", "is carried most by": "left", "of its variance": "right"}
        return [
            rich_table("What the components carry", headings, rows),
            Text(
                f"\n{len(self.contributions.ids):,} images in {self.seconds:.1f} s. The {len(components)} components "
                f"of {self.model} add up to the representation within {error:.1e} (relative, largest of all images)."
            ),
            Text.assemble(("report  ", "dim"), str(self.report)),
        ]


def demonstrate(report: str | Path, *, model: str = "pocket/deit", on_progress: OnProgress = silent) -> Demonstration:
    """Decompose the shipped scenes with a pocket model, and write the report.

    Args:
        report: The HTML file to write.
        model: The id of the model; one of the pocket zoo, as others know nothing of drawings of 64 x 64 pixels.
        on_progress: Called as scenes are done.

    Raises:
        ModelError: There is no such model, or its weights are damaged.
        ConservationError: The contributions of an image do not add up.
        UnweaveError: The report cannot be written.
    """
    began = time.perf_counter()
    scenes, loaded = evaluation(), load_model(model)
    plan = plan_for(loaded)
    contributions = _decomposed(loaded, plan, scenes, on_progress)
    carried = {factor: explained(contributions.values, torch.tensor(_codes(scenes, factor))) for factor in NAMES}
    page = _page(loaded, plan, scenes, contributions, carried)
    _show_maps(page, loaded, plan, scenes, contributions)
    _show_more(page, loaded)
    seconds = time.perf_counter() - began
    return Demonstration(model, contributions, carried, page.save(report), seconds)


def _carriers(contributions: Contributions, carried: dict[str, Tensor]) -> dict[str, int]:
    """Biases are left out: they vary over the scenes by the norms behind them alone."""
    working = [place for place, part in enumerate(contributions.components) if part.kind not in ("bias", "rest")]
    return {factor: max(working, key=lambda place: float(values[place])) for factor, values in carried.items()}


def _codes(scenes: Evaluation, factor: str) -> list[int]:
    return [-1 if value is None else NAMES[factor].index(value) for value in scenes.values(factor)]


def _inputs(model: Model, scenes: Evaluation, places: range | np.ndarray) -> Tensor:
    return torch.stack([model.preprocess(Image.fromarray(scenes.images[place])) for place in places])


def _decomposed(model: Model, plan: Plan, scenes: Evaluation, on_progress: OnProgress) -> Contributions:
    """All scenes, batch by batch; kept as one, since all of it takes some tens of megabytes."""
    parts = []
    for first in range(0, len(scenes), BATCH):
        places = range(first, min(first + BATCH, len(scenes)))
        parts.append(plan.run(_inputs(model, scenes, places), [f"scene {place}" for place in places]))
        on_progress("decomposing scenes", places.stop, len(scenes))
    return Contributions(
        torch.cat([part.values for part in parts]),
        plan.components,
        tuple(name for part in parts for name in part.ids),
        torch.cat([part.representation for part in parts]),
        torch.cat([part.error for part in parts]),
        parts[0].tolerance,
    )


def _page(
    model: Model, plan: Plan, scenes: Evaluation, contributions: Contributions, carried: dict[str, Tensor]
) -> Page:
    count, error = len(scenes), float(contributions.error.max())
    heads = sum(part.kind == "head" for part in plan.components)
    page = Page(
        f"{model.id}, taken apart",
        f"The representation of each of {count:,} drawn scenes, as an exact sum of what every attention head, MLP and "
        "other branch of the model adds to it.",
    )
    page.facts(
        [
            ("scenes", f"{count:,}"),
            ("components", f"{len(plan.components)}"),
            ("of them attention heads", f"{heads}"),
            ("attention layers resolved", f"{plan.coverage.resolved} of {plan.coverage.attention_layers}"),
            ("largest error of the sum", f"{error:.0e}"),
        ]
    )
    page.section(
        "The pocket world",
        "What the model saw: drawings of one object somewhere, of which everything is known. None of them was seen in "
        "training. The caption is one of several ways to say what is there.",
    )
    page.figure(contact_sheet([scenes.scene(place) for place in range(SHOWN)], 7), "drawn scenes with their captions")
    share = contributions.share().tolist()
    page.section(
        "How much each component adds",
        "A component's share is its part of the representation's squared length, averaged over the scenes. Shares add "
        "up to all of it; a negative one (blue) writes against the sum of the others.",
    )
    figure = share_figure(plan.components, share, title=model.id, images=count)
    page.figure(figure, "share of the representation by layer and head")
    page.section(
        "What each component carries",
        "The truth about every scene is known here, so it can be measured how much of what a component writes goes by "
        "the object, its category, its colour, its pattern and the location: the share of its variance over the scenes "
        "that lies between the factor's values, corrected for chance. An object's category, and often its colour, "
        "follow from the object; the location follows from nothing else.",
    )
    page.figure(
        factors_figure(plan.components, {name: values.tolist() for name, values in carried.items()}, title=""),
        "share of each component's variance that each factor explains",
    )
    rows = []
    for name, best in _carriers(contributions, carried).items():
        whole = float(explained(contributions.representation[:, None], torch.tensor(_codes(scenes, name)))[0])
        part, most = str(plan.components[best]), float(carried[name][best])
        rows.append((name, part, f"{most:.0%}", f"{share[best]:.1%}", f"{whole:.0%}"))
    page.table(("factor", "most of it is in", "of its variance", "its share", "of the representation's variance"), rows)
    return page


def _show_maps(page: Page, model: Model, plan: Plan, scenes: Evaluation, contributions: Contributions) -> None:
    """Where the heads read what speaks for each scene's object."""
    codes = np.array(_codes(scenes, "object"))
    centre = contributions.representation.mean(0)
    _, first = np.unique(codes, return_index=True)
    places = np.sort(first)[:: max(1, len(first) // MAPPED)][:MAPPED]
    directions = torch.stack([contributions.representation[codes == codes[place]].mean(0) - centre for place in places])
    directions = directions / directions.norm(dim=-1, keepdim=True)
    tokens = plan.at("token", "kind:head")
    scores = tokens.project(_inputs(model, scenes, places), directions).values.diagonal(dim1=0, dim2=2).T
    page.section(
        "Where the heads read it",
        "Each head's contribution, split by the token that it reads and measured along the direction in which scenes "
        "with this object differ from the average scene; all heads summed on the model's own grid of tokens. Red "
        "tokens speak for the object, blue ones against it.",
    )
    figure = heatmap_figure(
        scenes.images[places],
        np.stack(list(_maps(tokens, scores))),
        [scenes.factors[place].object for place in places],
        title="",
        label="along the object's direction",
    )
    page.figure(figure, "scenes, and maps of what speaks for the object in them")


def _maps(plan: Plan, scores: Float[Tensor, "image component"]) -> Iterator[Float[np.ndarray, "row column"]]:
    """Scores of tokens on the finest grid of any layer; a token of a coarser one covers several cells evenly."""
    side = max(grid.height for grid in plan.grids.values())
    for row in scores.double().numpy():
        total = np.zeros((side, side))
        for part, score in zip(plan.components, row, strict=True):
            if part.row is None or part.column is None:
                continue
            size = side // plan.grids[part.path].height
            top, left = part.row * size, part.column * size
            total[top : top + size, left : left + size] += score / size**2
        yield total


def _show_more(page: Page, model: Model) -> None:
    page.section(
        "The same for your model and images",
        "Any model of timm, torchvision, open_clip or transformers, and any folder of photographs.",
    )
    page.code(
        f"unweave explain {model.id}\n"
        "unweave decompose timm/vit_base_patch16_224.dino photos/\n"
        "unweave decompose torchvision/swin_b photos/ --random-weights"
    )
