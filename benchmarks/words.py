"""Words for components, where the truth is known: the pocket zoo, aligned to its own CLIP.

    python benchmarks/words.py [--work FOLDER] [--families deit,swin]

Aligners are fitted on scenes of one world and judged on the shipped evaluation scenes, of the usual style.

* How near the aligned sum is to what CLIP itself makes of an image; what either says of every factor in words alone.
* Whether components that are scored highest for a factor carry that factor, and not others: linear heads learn every
  factor from the sum of the contributions with the highest scores, or margins, and of as many drawn at random.
* Whether scores of what has nothing to say stay within chance: the same networks with random weights, aligned likewise,
  and the trained ones with the images of every component shuffled.

Stores and aligners are kept in the work folder, so that a run which was interrupted goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch.nn.functional import cosine_similarity, normalize
from zoo import JUDGED, LEARNED, SCORED, aligner_of, codes, store_of, summed, usual

import unweave
from unweave import Scores, View
from unweave.alignment import embeddings
from unweave.pocket.measure import markdown, prompts
from unweave.pocket.networks import NETWORKS
from unweave.pocket.probes import accuracy, fitted
from unweave.pocket.scenes import NAMES
from unweave.source import Source

TOPS, DRAWS = (1, 3), 8


def named(images: torch.Tensor, space: unweave.TextSpace, factor: str) -> np.ndarray:
    texts = [normalize(space.encoder.embed(prompts(factor, value)).mean(0), dim=-1) for value in NAMES[factor]]
    return (normalize(images, dim=-1) @ torch.stack(texts).T).argmax(1).numpy()


def said(aligned: torch.Tensor, target: torch.Tensor, view: View, space: unweave.TextSpace) -> list[str]:
    """How near aligned sums are to the targets, and how well either tells every factor in words."""
    cells = [f"{float(cosine_similarity(aligned, target).mean()):.3f}"]
    for factor in NAMES:
        true = codes(view, factor)
        ours, theirs = (accuracy(named(images, space, factor), true) for images in (aligned, target))
        cells.append(f"{ours:.2f} / {theirs:.2f}")
    return cells


def decoded(learned: View, asked: View, places: list[int]) -> list[float]:
    """Balanced accuracies of linear heads for each factor, on the sum of some components."""
    ours, theirs = summed(learned, places), summed(asked, places)
    found = []
    for factor in SCORED:
        known = codes(learned, factor)
        head = fitted(ours[known >= 0], known[known >= 0])
        found.append(accuracy(head.predict(theirs), codes(asked, factor)))
    return found


def working(found: Scores) -> list[int]:
    """Components that are no biases: those vary over images by the norms behind them alone."""
    return [place for place, own in enumerate(found.components) if own.kind not in ("bias", "embed")]


def above(found: Scores) -> list[float]:
    """For each factor, the share of components above their own chance at 5 %; of all pairs, when all are tested."""
    places = working(found)
    return [*(found.p[places] <= 0.05).float().mean(0).tolist(), float(found.above()[places].float().mean())]


class Shuffled:
    """A source of contributions with the images of every component in an order of its own."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        """All else is as it was."""
        return getattr(self.source, name)

    def values(self, columns: Sequence[int], rows: np.ndarray) -> torch.Tensor:
        """Contributions, each component's of other images."""
        orders = (np.random.default_rng((7, column)).permutation(len(self.source.ids)) for column in columns)
        return torch.cat(
            [self.source.values([column], order[rows]) for column, order in zip(columns, orders, strict=True)], 1
        )


def main(
    work: Annotated[Path, typer.Option(help="Where stores and aligners are kept.")] = Path("unweave-bench-words"),
    families: Annotated[str, typer.Option()] = ",".join(NETWORKS),
) -> None:
    os.environ.setdefault("UNWEAVE_CACHE", str(work / "cache"))
    space = unweave.text_space("pocket/clip")
    near, matrices, chance = list[list[str]](), list[list[str]](), list[list[str]]()
    for name in track(families.split(","), console=Console(stderr=True)):
        store, evaluation = store_of(work, name, LEARNED), store_of(work, name, JUDGED)
        learned, asked, aligner = store.view(), usual(evaluation), aligner_of(work, store, space)
        target = normalize(embeddings(asked, space), dim=-1)
        near.append([name, *said(asked.through(aligner).representation, target, asked, space)])
        found = unweave.score(learned, SCORED, space=aligner)
        places, rng = working(found), np.random.default_rng(0)
        everything = decoded(learned, asked, list(range(len(found.components))))
        matrices.append([name, "all", *(f"{value:.2f}" for value in everything)])
        for count in TOPS:
            draws = [rng.choice(places, count, replace=False).tolist() for _ in range(DRAWS)]
            random = np.mean([decoded(learned, asked, own) for own in draws], 0)
            matrices.append([name, f"{count} at random", *(f"{value:.2f}" for value in random)])
            for column, factor in enumerate(SCORED):
                for by, values in (("score", found.values), ("margin", found.margins())):
                    best = sorted(places, key=lambda place: -float(values[place, column]))[:count]
                    cells = [f"{value:.2f}" for value in decoded(learned, asked, best)]
                    cells[column] = f"**{cells[column]}**"
                    matrices.append([name, f"{count} by {by} for {factor}", *cells])

        blank = store_of(work, name, LEARNED, random=True)
        random, plain = store_of(work, name, JUDGED, random=True), aligner_of(work, blank, space)
        near.append(
            [f"{name}, random weights", *said(usual(random).through(plain).representation, target, asked, space)]
        )
        judged = unweave.score(random, SCORED, space=plain)
        trained = unweave.score(evaluation, SCORED, space=aligner)
        mixed = unweave.score(View.of(Shuffled(evaluation.view().source)), SCORED, space=aligner)
        for what, one in (("trained", trained), ("random weights", judged), ("images shuffled", mixed)):
            chance.append([name, what, *(f"{value:.2f}" for value in above(one))])
    tables = {
        "The aligned sum beside CLIP: cosine; balanced zero-shot accuracy, aligned / CLIP's own": [
            ["network", "cosine", *NAMES],
            *near,
        ],
        "What linear heads read from the components with the highest scores": [
            ["network", "components", *SCORED],
            *matrices,
        ],
        "Share of components above chance: each alone at 5 %; of all pairs, at a false discovery rate of 5 %": [
            ["network", "which", *SCORED, "all pairs"],
            *chance,
        ],
    }
    for title, table in tables.items():
        print(f"\n### {title}\n\n{markdown(table)}")


if __name__ == "__main__":
    typer.run(main)
