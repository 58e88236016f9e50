"""The claim: taking a representation apart costs hardly more than computing it.

    python benchmarks/decompose.py --json decompose.json

For each model, in one process and in turn with the plain forward pass: the plan at head level, the plan's head x token
scores for one direction, the plan of one region and of every token as a region, and what a user would write instead
(`baselines.py`). Prints a table and writes it into README.md beside this file. A run that was cut off goes on where it
stopped, from its `--json` file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from baselines import HookedViT, Pushing
from measure import free_bytes, in_turn, machine, peak_bytes, seconds_of, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor

import unweave
from unweave.decomposition.walk import Walk, walk
from unweave.errors import UnweaveError
from unweave.graph.export import capture
from unweave.graph.precision import exact
from unweave.models import Model

MODELS = {
    "deit": "timm/deit_base_patch16_224",
    "dinov2": "timm/vit_base_patch14_dinov2",
    "clip": "open_clip/ViT-B-16/laion2b_s34b_b88k",
    "swin": "timm/swin_base_patch4_window7_224",
    "maxvit": "timm/maxvit_small_tf_224",
}
README = Path(__file__).with_name("README.md")
MEMORY_LIMIT = 12e9
"""Bytes that a baseline may take; what would need more runs at a smaller batch, or is left out and said to be."""
SECONDS = 75.0
"""How long one comparison may go on; slow baselines get fewer rounds."""
AGREEMENT = 1e-4
"""The largest difference between a baseline's heads and the plan's, relative to the longest of them."""


@dataclass(frozen=True)
class Row:
    """One comparison with the plain forward pass.

    Attributes:
        model, level, method: What ran; `components` and `batch` how much of it.
        plain, other: Seconds of each round.
        extra_bytes: Peak memory beyond the peak of the forward pass, at the same batch.
        kept_bytes: Weight products that a plan keeps between batches.
        error: The largest relative error of the sum.
        difference: The largest difference from the plan's heads, relative to the longest of them.
        plan_seconds, first_seconds: Making the plan, and what its first batch takes beyond the others.
        note: Why it did not run, or not at the full batch; `failed` if it should have.
    """

    model: str
    level: str
    method: str
    batch: int = 0
    components: int = 0
    plain: Sequence[float] = ()
    other: Sequence[float] = ()
    extra_bytes: int = 0
    kept_bytes: int = 0
    error: float | None = None
    difference: float | None = None
    plan_seconds: float | None = None
    first_seconds: float | None = None
    note: str = ""
    failed: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same comparison in another run."""
        return self.model, self.level, self.method

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Median, least and greatest ratio to the plain forward pass."""
        return spread([other / plain for plain, other in zip(self.plain, self.other, strict=True)])


@dataclass(frozen=True)
class Bench:
    """How everything is measured."""

    device: torch.device
    batch: int
    repeats: int
    layers: int

    def measured(self, row: Row, model: Model, images: Tensor, call: Callable[[], object]) -> Row:
        """A row with its times and memory; `call` has run before."""

        def plain() -> Tensor:
            with torch.inference_mode():
                return model.readout(images)

        plain()
        timing = in_turn(plain, call, self.device, repeats=self.repeats, seconds=SECONDS)
        extra = peak_bytes(call, self.device) - peak_bytes(plain, self.device)
        return replace(row, batch=len(images), plain=timing.plain, other=timing.other, extra_bytes=extra)


Step = Callable[[Row], Row]


@dataclass
class Subject:
    """One model under test, and the plan's heads for the baselines to agree with."""

    model: Model
    bench: Bench

    def steps(self, tokens: bool) -> Iterator[tuple[Row, Step]]:
        """Every comparison of the model: the row to fill in, and what fills it."""
        row = partial(Row, self.model.id)
        yield row("head", "unweave"), self.plan
        if HookedViT.fits(self.model.readout):
            yield row("head", "forward hooks"), self.hooks
        yield row("head", "pushing forward"), self.pushing
        yield row("one region", "unweave"), self.region
        yield row("all tokens as regions", "unweave, scores"), self.regions
        if tokens:
            yield row("head x token", "unweave, scores"), self.scores
            yield row("head x token", f"pushing forward, last {self.bench.layers} layers"), self.token_pushing

    def plan(self, row: Row) -> Row:
        """All components at head level."""
        start = perf_counter()
        plan = unweave.plan(self.model)
        made = perf_counter() - start
        first = seconds_of(lambda: plan.run(self.images), self.bench.device)
        result = plan.run(self.images)
        self.heads = result.values[:, _heads(plan.components)]
        row = replace(row, components=len(plan.components), error=float(result.error.max()))
        del result
        row = self.bench.measured(row, self.model, self.images, lambda: plan.run(self.images))
        resolved, layers = plan.coverage.resolved, plan.coverage.attention_layers
        return replace(
            row,
            kept_bytes=plan.constant_bytes,
            plan_seconds=made,
            first_seconds=max(0.0, first - spread(row.other)[0]),
            note="" if resolved == layers else f"{resolved} of {layers} attention layers resolved",
        )

    def hooks(self, row: Row) -> Row:
        """Forward hooks on a plain ViT: heads and MLPs."""
        hooked = HookedViT(self.model.readout)
        pieces = hooked(self.images)
        difference = _difference(pieces[:, : self.heads.shape[1]], self.heads)
        row = replace(row, components=pieces.shape[1], difference=difference)
        return self.bench.measured(row, self.model, self.images, lambda: hooked(self.images))

    def pushing(self, row: Row) -> Row:
        """Every component pushed forward; at a smaller batch where memory asks for it."""
        pushing = Pushing(self.walk)
        one = peak_bytes(lambda: pushing(self.images[:1]), self.bench.device)
        batch = max(1, min(self.bench.batch, int(_allowed(self.bench.device) // one)))
        images = self.images[:batch]
        result = pushing(images)
        row = replace(row, components=len(result.kinds), error=result.error)
        row = replace(row, difference=_difference(result.heads.transpose(0, 1), self.heads[:batch]))
        del result
        note = f"at batch {batch}: it takes {one / 1e9:.1f} GB an image" if batch < self.bench.batch else ""
        return self.bench.measured(replace(row, note=note), self.model, images, lambda: pushing(images))

    def scores(self, row: Row) -> Row:
        """The plan's inner products of every head x token with one direction."""
        start = perf_counter()
        plan = self.token_plan
        made = perf_counter() - start
        first = seconds_of(lambda: plan.project(self.images, self.direction), self.bench.device)
        error = float(plan.project(self.images, self.direction).error.max())
        row = replace(row, components=len(plan.components), error=error)
        row = self.bench.measured(row, self.model, self.images, lambda: plan.project(self.images, self.direction))
        return replace(row, plan_seconds=made, first_seconds=max(0.0, first - spread(row.other)[0]))

    def region(self, row: Row) -> Row:
        """All components at head level, of one box of each image."""
        start = perf_counter()
        plan = unweave.plan(self.model, regions=True)
        whole = plan.of(1)
        made = perf_counter() - start
        box = box_of(plan)
        first = seconds_of(lambda: plan.run(self.images, box), self.bench.device)
        row = replace(row, components=len(whole.components), error=float(plan.run(self.images, box).error.max()))
        row = self.bench.measured(row, self.model, self.images, lambda: plan.run(self.images, box))
        return replace(row, plan_seconds=made, first_seconds=max(0.0, first - spread(row.other)[0]))

    def regions(self, row: Row) -> Row:
        """The inner products of all components of every token as a region, with one direction."""
        start = perf_counter()
        plan = unweave.plan(self.model, regions=True)
        count = len(plan.of(len(plan.everywhere)).components) * len(plan.everywhere)
        made = perf_counter() - start
        first = seconds_of(lambda: plan.project(self.images, self.direction), self.bench.device)
        row = replace(row, components=count, error=float(plan.project(self.images, self.direction).error.max()))
        row = self.bench.measured(row, self.model, self.images, lambda: plan.project(self.images, self.direction))
        return replace(row, plan_seconds=made, first_seconds=max(0.0, first - spread(row.other)[0]))

    def token_pushing(self, row: Row) -> Row:
        """Every head x token of the last layers pushed forward, for one image, where memory allows it."""
        layers, image = self.bench.layers, self.images[:1]
        single = Pushing(self.walk, tokens=True, last=1)
        needed = peak_bytes(lambda: single(image), self.bench.device) + (layers - 1) * single.layer_bytes
        if needed > _allowed(self.bench.device):
            return replace(row, note=f"left out: it would take {needed / 1e9:.1f} GB")
        pushing = Pushing(self.walk, tokens=True, last=layers)
        result = pushing(image)
        found = (result.heads @ self.direction.T).transpose(0, 1)
        scores = self.token_plan.project(image, self.direction).values[:, _heads(self.token_plan.components)]
        row = replace(row, components=len(result.kinds), error=result.error)
        row = replace(row, difference=_difference(found, scores[:, -found.shape[1] :]))
        del result
        return self.bench.measured(row, self.model, image, lambda: pushing(image).values @ self.direction.T)

    @cached_property
    def token_plan(self) -> unweave.Plan:
        """The plan at token level."""
        return unweave.plan(self.model, level="token")

    @cached_property
    def images(self) -> Tensor:
        """The batch."""
        return self.model.example(self.bench.batch)

    @cached_property
    def walk(self) -> Walk:
        """The trunk and branches of the model."""
        return walk(capture(self.model.readout, self.model.example()))

    @cached_property
    def heads(self) -> Tensor:
        """The plan's heads, `[image, head, dim]`."""
        plan = unweave.plan(self.model)
        return plan.run(self.images).values[:, _heads(plan.components)]

    @cached_property
    def direction(self) -> Tensor:
        """One direction of the representation's space, `[1, dim]`."""
        dim = self.walk.graph.output.meta["val"].shape[1]
        return torch.randn(1, dim, generator=torch.Generator().manual_seed(1)).to(self.bench.device)


def box_of(plan: unweave.RegionPlan) -> unweave.regions.Region:
    """The middle of the image."""
    height, width = plan.size
    return unweave.regions.box(width // 4, height // 4, 3 * width // 4, 3 * height // 4)


def _heads(components: Sequence[unweave.Component]) -> list[int]:
    return [place for place, component in enumerate(components) if component.kind == "head"]


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        raise UnweaveError(f"A baseline found heads {list(found.shape)}, the plan {list(expected.shape)}.")
    if not expected.numel():
        return 0.0
    difference = float((found - expected).norm(dim=-1).max() / expected.norm(dim=-1).max())
    if not difference <= AGREEMENT:
        raise UnweaveError(f"A baseline's heads differ from the plan's by {difference:.1e} of the longest.")
    return difference


def _allowed(device: torch.device) -> float:
    return min(MEMORY_LIMIT, 0.8 * free_bytes(device))


# -- tables ----------------------------------------------------------------------------------------------------------

HEADINGS = (
    "model",
    "method",
    "components",
    "batch",
    "time ratio",
    "least to most",
    "rounds",
    "forward, s",
    "with it, s",
    "extra, MB",
    "error",
    "difference",
)
TITLES = {
    "head": "All heads, MLPs, convolutions and biases",
    "one region": "The same of one box of each image, in place of the whole",
    "all tokens as regions": "Every token of the grid as a region, one direction",
    "head x token": "Head x token, one direction",
}


def cells(row: Row) -> tuple[str, ...]:
    """A row as text; what did not run has its reason in place of its ratio."""
    name = row.model.removeprefix("timm/")
    if not row.plain:
        return (name, row.method, "", "", row.note, *[""] * (len(HEADINGS) - 5))
    middle, least, most = row.ratio
    return (
        name,
        f"{row.method} ({row.note})" if row.note else row.method,
        f"{row.components:,}",
        str(row.batch),
        f"**{middle:.3g}**",
        f"{least:.3g} to {most:.3g}",
        str(len(row.plain)),
        f"{spread(row.plain)[0]:.2f}",
        f"{spread(row.other)[0]:.2f}",
        f"{round(row.extra_bytes / 1e6):,}",
        "" if row.error is None else f"{row.error:.0e}",
        "" if row.difference is None else f"{row.difference:.0e}",
    )


def markdown(rows: Sequence[Row], command: str, where: str) -> str:
    """What goes into the README."""
    lines = [f"`{command}`", "", f"{where}; {date.today().isoformat()}", ""]
    for level, title in TITLES.items():
        own = [row for row in rows if row.level == level]
        if own:
            lines += [f"### {title}", "", _line(HEADINGS), _line(["---"] * 2 + ["--:"] * (len(HEADINGS) - 2))]
            lines += [*(_line(cells(row)) for row in own), ""]
    plans = [row for row in rows if row.plan_seconds is not None]
    if plans:
        lines += ["### Made once for each model", ""]
        lines += [_line(("model", "level", "plan, s", "first batch beyond the others, s", "weight products kept, MB"))]
        lines += [_line(("---", "---", "--:", "--:", "--:"))]
        for row in plans:
            kept = f"{row.kept_bytes / 1e6:,.0f}" if row.kept_bytes else ""
            times = (f"{row.plan_seconds:.1f}", f"{row.first_seconds:.1f}")
            lines.append(_line((row.model.removeprefix("timm/"), row.level, *times, kept)))
    return "\n".join(lines).strip()


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def write(text: str, path: Path, device: str) -> None:
    """Puts the text between the markers of its device in a file.

    Raises:
        UnweaveError: The file or its markers are missing.
    """
    begin, end = (f"<!-- decompose:{device}:{mark} -->" for mark in ("begin", "end"))
    whole = path.read_text() if path.exists() else ""
    if begin not in whole or end not in whole:
        raise UnweaveError(f"{path} has no place for this table.", cure=f"put the lines {begin} and {end} into it")
    before, after = whole.split(begin, 1)[0], whole.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def show(console: Console, rows: Sequence[Row]) -> None:
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(*(text.replace("**", "") for text in cells(row)))
    console.print(table)


# -- the run ---------------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """The rows so far, kept in a file so that a run can go on where another stopped."""

    path: Path | None
    settings: dict[str, Any]
    rows: dict[tuple[str, str, str], Row]

    @classmethod
    def opened(cls, path: Path | None, settings: dict[str, Any]) -> Record:
        """What the file holds, if it was measured in the same way."""
        rows: dict[tuple[str, str, str], Row] = {}
        if path and path.exists():
            held = json.loads(path.read_text())
            if held["settings"] == settings:
                found = [Row(**row) for row in held["rows"]]
                rows = {row.key: row for row in found if not row.failed}
        return cls(path, settings, rows)

    def add(self, row: Row) -> None:
        """Keeps a row, and writes all of them."""
        self.rows[row.key] = row
        if self.path:
            rows = [asdict(own) for own in self.rows.values()]
            text = json.dumps({"settings": self.settings, "rows": rows}, indent=1)
            part = self.path.with_suffix(".part")
            part.write_text(text)
            part.replace(self.path)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    console = Console()
    device = torch.device(given.device)
    if given.threads:
        torch.set_num_threads(given.threads)
    bench = Bench(device, 2, 2, 1) if given.quick else Bench(device, given.batch, given.repeats, 5)
    settings = {"machine": machine(device), "image_size": given.image_size, "code": _fingerprint()}
    record = Record.opened(given.json, {**settings, "batch": bench.batch, "repeats": bench.repeats})
    models = [MODELS.get(name, name) for name in given.models.split(",")]
    tokens = [MODELS.get(name, name) for name in given.tokens.split(",")]
    for model in models:
        with exact(device):  # the plain forward pass and the baselines too
            _compared(model, bench, given.image_size, model in tokens, given.methods.split(","), record, console)
    rows = [row for row in record.rows.values() if row.model in models]
    show(console, rows)
    console.print(settings["machine"])
    if not given.quick:
        command = shlex.join(["python", "benchmarks/decompose.py", *(sys.argv[1:] if arguments is None else arguments)])
        write(markdown(rows, command, settings["machine"]), README, device.type)
    return int(any(row.failed for row in rows))


def _compared(
    name: str, bench: Bench, size: int, tokens: bool, methods: Sequence[str], record: Record, console: Console
) -> None:
    """Runs every comparison of a model that the record lacks; one that fails leaves its reason."""
    row, start = Row(name, "head", "unweave"), perf_counter()
    try:
        model = unweave.load_model(name, random_weights=True, device=str(bench.device), image_size=size)
        for row, step in Subject(model, bench).steps(tokens):
            if row.key not in record.rows and row.method.startswith(tuple(methods)):
                record.add(step(row))
                console.print(f"{perf_counter() - start:6.0f} s  {name}  {row.method}")
    except (UnweaveError, RuntimeError, MemoryError) as error:
        text = " ".join(str(error).split())
        record.add(replace(row, note=f"failed: {text[:200]}", failed=True))
        console.print(f"{name}, {row.method}: {text}", style="red")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", default=",".join(MODELS), help=f"ids, or of {', '.join(MODELS)} (default: all of these)")
    add("--tokens", default="deit", help="models whose heads are split by token as well (default: deit)")
    add("--methods", default="unweave,forward,pushing", help="only rows whose method begins so (default: all)")
    add("--batch", type=int, default=8)
    add("--repeats", type=int, default=5, help="rounds of each comparison (default: 5)")
    add("--image-size", type=int, default=224)
    add("--device", default="cpu")
    add("--threads", type=int, default=0, help="of the CPU (default: torch's own choice)")
    add("--quick", action="store_true", help="two images, two rounds, one layer; README.md stays as it is")
    add("--json", type=Path, metavar="FILE", help="where to keep the figures, and where to go on from")
    return parser


def _fingerprint() -> str:
    """The code that is measured: figures of other code are not gone on from."""
    digest = sha256()
    for folder in (Path(unweave.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
