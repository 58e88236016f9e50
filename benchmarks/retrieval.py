"""Retrieval by chosen components, where the truth is known, and how quickly an index is searched.

    python benchmarks/retrieval.py pocket [--work FOLDER] [--families deit,swin]
    python benchmarks/retrieval.py speed [--images 1000000]

`pocket` chooses components of the zoo on scenes of one world, and judges them on the shipped evaluation scenes of the
usual style, which decide nothing.

* Mean average precision of finding scenes with the same colour, pattern, location or category: by the components
  chosen for it, and by the whole representation.
* What it costs every factor if the same components are replaced by their mean: the accuracy of linear heads that
  learned from the whole representation, on the other world.
* Whether components rank scenes along phrases as CLIP does, and the more so the higher they are scored.

`speed` compares exact search with what else is at hand, in this process, by turns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch.nn.functional import normalize
from zoo import JUDGED, LEARNED, SCORED, aligner_of, codes, store_of, summed, usual

import unweave
from unweave.errors import ArgumentError
from unweave.pocket.measure import markdown
from unweave.pocket.networks import NETWORKS
from unweave.pocket.probes import accuracy, fitted
from unweave.tasks.choice import By, Chosen, choose, choose_best
from unweave.tasks.index import Index
from unweave.tasks.precision import Precision, agreement, precision

app = typer.Typer(add_completion=False)
DRAWS = 5
BY: tuple[By, ...] = ("margin", "score")


class Judge:
    """A network whose components were scored on one world, and scenes that decided nothing.

    Linear heads learned every factor from the whole representation, in the world where components were scored.
    """

    def __init__(self, work: Path, name: str, space: unweave.TextSpace) -> None:
        store = store_of(work, name, LEARNED)
        self.name, self.learned, self.judged = name, store.view(), usual(store_of(work, name, JUDGED))
        self.seen = self.learned.through(aligner_of(work, store, space))
        self.scores = unweave.score(self.seen, SCORED, space=space)
        self.indices: dict[Any, Index] = {}
        ours = self.learned.representation.numpy()
        self.heads = [self._head(ours, codes(self.learned, one)) for one in SCORED]
        self.whole = self._read(self.judged.representation.numpy())

    def _head(self, ours: np.ndarray, known: np.ndarray) -> Any:
        return fitted(ours[known >= 0], known[known >= 0])

    def _read(self, images: np.ndarray) -> np.ndarray:
        told = (head.predict(images) for head in self.heads)
        return np.array(
            [accuracy(codes_, codes(self.judged, factor)) for codes_, factor in zip(told, SCORED, strict=True)]
        )

    def costs(self, places: tuple[int, ...]) -> np.ndarray:
        """How far each factor's accuracy falls if these components are replaced by their mean in the other world."""
        mean = summed(self.learned, places).mean(0)
        left = self.judged.representation.numpy() - summed(self.judged, places) + mean
        return self.whole - self._read(left)

    def precision(self, one: Chosen | None, factor: str, *, centred: bool = True) -> Precision:
        """Of finding scenes with the same value; by the whole representation, if no components are named."""
        places = None if one is None else one.places
        if (places, centred) not in self.indices:
            view = self.judged if places is None else self.judged.select(places)
            self.indices[places, centred] = Index.build(view, representation=places is None, centred=centred)
        return precision(self.indices[places, centred], self.judged.field(factor))

    def chosen(self, factor: str, by: By, rule: str) -> Chosen | None:
        """Components by one of the rules; None if none passes it."""
        try:
            if rule == "interval":
                return choose(self.scores, factor, by=by)
            return choose_best(self.scores, factor, self.learned, factor, by=by, probes=200)
        except ArgumentError:
            return None

    def at_random(self, count: int, column: int) -> float:
        """What a factor loses with as many components that are no biases, on average."""
        rng = np.random.default_rng(0)
        places = [place for place, own in enumerate(self.scores.components) if own.kind != "bias"]
        draws = [rng.choice(places, count, replace=False).tolist() for _ in range(DRAWS)]
        return float(np.mean([self.costs(tuple(own))[column] for own in draws]))


def matrix(judge: Judge, factor: str, one: Chosen | None) -> list[str]:
    whole = judge.precision(None, factor)
    cells = [judge.name, factor, f"{whole.chance:.2f}", f"{whole.mean:.3f} ({whole.low:.3f} ... {whole.high:.3f})"]
    if one is None:
        return [*cells, "none", "", ""]
    own = judge.precision(one, factor)
    mean = f"**{own.mean:.3f}**" if own.mean > whole.mean else f"{own.mean:.3f}"
    others = (f"{other} {judge.precision(one, other).mean:.2f}" for other in SCORED if other != factor)
    return [*cells, str(len(one.places)), f"{mean} ({own.low:.3f} ... {own.high:.3f})", ", ".join(others)]


def rule(judge: Judge, factor: str, one: Chosen | None) -> str:
    if one is None:
        return "none"
    centred, plain = (judge.precision(one, factor, centred=own).mean for own in (True, False))
    return f"{len(one.places)}: {centred:.3f} / {plain:.3f}"


def cut(judge: Judge, factor: str, one: Chosen | None, name: str) -> list[str]:
    column = SCORED.index(factor)
    cells = [judge.name, factor, name, f"{judge.whole[column]:.2f}"]
    if one is None:
        return [*cells, "none", *[""] * 4]
    fall = judge.costs(one.places)
    own, others = float(fall[column]), float(np.delete(fall, column).mean())
    reached = "**yes**" if own > 0 and own >= 3 * others else "no"
    random = judge.at_random(len(one.places), column)
    return [*cells, str(len(one.places)), f"{own:.3f}", f"{others:.3f}", f"{random:.3f}", reached]


def agreed(judge: Judge, space: unweave.TextSpace) -> list[list[str]]:
    features = {one: space.features()[one] for one in SCORED}
    phrases = {phrase: (phrase,) for own in features.values() for phrase in own}
    found, rows = {"features": judge.scores, "phrases": unweave.score(judge.seen, phrases, space=space)}, []
    for name, scores in found.items():
        own = agreement(judge.seen, space, scores).summary().values()
        shown = (f"{one['median']:.2f} ({one['lower quartile']:.2f} ... {one['upper quartile']:.2f})" for one in own)
        rows.append([judge.name, f"{len(scores.features)} {name}", *shown])
    return rows


@app.command()
def pocket(
    work: Annotated[Path, typer.Option(help="Where stores and aligners are kept.")] = Path("unweave-bench-words"),
    families: Annotated[str, typer.Option()] = ",".join(NETWORKS),
) -> None:
    """Measure precision, ablation and agreement on the zoo."""
    os.environ.setdefault("UNWEAVE_CACHE", str(work / "cache"))
    space = unweave.text_space("pocket/clip")
    tables: list[list[list[str]]] = [[], [], [], []]
    for name in track(families.split(","), console=Console(stderr=True)):
        judge = Judge(work, name, space)
        for factor in SCORED:
            found = {f"{by}, {how}": judge.chosen(factor, by, how) for how in ("interval", "best") for by in BY}
            tables[0].append(matrix(judge, factor, found["margin, interval"]))
            whole, plain = (judge.precision(None, factor, centred=own).mean for own in (True, False))
            rules = (rule(judge, factor, one) for one in found.values())
            tables[1].append([name, factor, f"{whole:.3f} / {plain:.3f}", *rules])
            tables[2] += [
                cut(judge, factor, found[own], own) for own in ("margin, interval", "margin, best", "score, interval")
            ]
        tables[3] += agreed(judge, space)
    costs = ["accuracy", "components", "falls by", "the other three, by", "as many at random", "three times the others"]
    heads = {
        "Mean average precision (95 % over probes), by components chosen by margin and interval": [
            *("network", "property", "chance", "whole", "components", "chosen", "the same ones, on the others")
        ],
        "The rules side by side: how many components, and precision, centred / not": [
            *("network", "property", "whole"),
            *(f"{by}, {how}" for how in ("interval", "best") for by in BY),
        ],
        "What it costs to replace the chosen components by their mean": ["network", "property", "rule", *costs],
        "Agreement with CLIP, and its rank correlation with the score: median (quartiles)": [
            *("network", "over", "within a component", "within a feature")
        ],
    }
    for (title, head), rows in zip(heads.items(), tables, strict=True):
        print(f"\n### {title}\n\n{markdown([head, *rows])}")


@app.command()
def speed(
    images: Annotated[int, typer.Option()] = 1_000_000,
    dim: Annotated[int, typer.Option()] = 768,
    count: Annotated[int, typer.Option()] = 10,
    rounds: Annotated[int, typer.Option()] = 5,
    faiss: Annotated[bool, typer.Option(help="Flat faiss, too; it copies the rows.")] = False,
) -> None:
    """Measure exact search among random rows."""
    from sklearn.neighbors import NearestNeighbors

    rows, generator = torch.empty(images, dim), torch.Generator().manual_seed(0)
    for part in rows.split(2**16):
        part.normal_(generator=generator)
        part /= part.norm(dim=1, keepdim=True)
    index = Index(rows, torch.zeros(dim), tuple(map(str, range(images))), {})
    plain = rows.numpy()
    neighbours = NearestNeighbors(n_neighbors=count, algorithm="brute", metric="cosine").fit(plain)
    quick = index.faiss() if faiss else None

    def partition(queries: torch.Tensor) -> np.ndarray:
        near = -(queries.numpy() @ plain.T)
        best = np.argpartition(near, count, axis=1)[:, :count]
        return np.take_along_axis(best, np.take_along_axis(near, best, 1).argsort(1), 1)

    calls: dict[str, Callable[[torch.Tensor], Any]] = {
        "unweave, exact": lambda queries: index.search(queries, count).rows,
        "numpy matmul, argpartition": partition,
        "scikit-learn, brute": lambda queries: neighbours.kneighbors(queries.numpy(), return_distance=False),
        "reading all rows (a sum)": lambda queries: rows.sum(),
    }
    if quick is not None:
        calls["faiss, flat"] = lambda queries: quick.search(queries, count).rows
    lines = []
    for number in (1, 8):
        queries = normalize(torch.randn(number, dim, generator=torch.Generator().manual_seed(1)), dim=1)
        found = {name: call(queries) for name, call in calls.items()}
        own = found["unweave, exact"]
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                began = time.perf_counter()
                call(queries)
                times[name].append(time.perf_counter() - began)
        best = {name: min(each) for name, each in times.items()}
        for name, least in best.items():
            same = "" if np.ndim(found[name]) != 2 else "yes" if np.array_equal(found[name], own) else "no"
            ratio, rate = best["unweave, exact"] / least, 4 * images * dim / least / 1e9
            lines.append([name, str(number), f"{1000 * least:,.0f}", f"{rate:.1f}", f"{ratio:.2f}", same])
    print(f"{images:,} x {dim}, float32, {torch.get_num_threads()} threads\n")
    columns = ["search", "queries", "ms", "GB/s", "unweave takes, of its time", "the same images"]
    print(markdown([columns, *lines]))


if __name__ == "__main__":
    app()
