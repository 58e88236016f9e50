"""`unweave ablate`: how well classes are told as more and more components are ablated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import counted, print_files, print_json, progress, table, working
from unweave.cli.results import results
from unweave.cli.seen import one_space, rows_where
from unweave.errors import ArgumentError

if TYPE_CHECKING:
    from unweave.tasks.ablation import Ablation, Step
    from unweave.tasks.study import Study

_HEAD, _HOW = "What tells the classes", "How to work"


def ablate(
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="What `unweave extract` wrote.")],
    output: options.Output,
    order: Annotated[
        list[str] | None,
        typer.Option(
            help="`last` (layers from the last one back, if not given), `first`, `random`, `score:FEATURE`; or "
            "selections (`blocks.9.*`), one for each step. May be given several times.",
        ),
    ] = None,
    to: Annotated[Literal["mean", "zero"], typer.Option(help="What contributions are replaced by.")] = "mean",
    head: Annotated[
        Literal["classifier", "zero-shot", "probe"],
        typer.Option(help="The model's own, the words of a text space, or a linear probe.", rich_help_panel=_HEAD),
    ] = "classifier",
    label: Annotated[
        str, typer.Option(metavar="FIELD", help="The field that has the classes.", rich_help_panel=_HEAD)
    ] = "label",
    aligner: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="One for each store, in their order.", rich_help_panel=_HEAD),
    ] = None,
    text_space: options.OwnSpace = None,
    where: options.Where = None,
    means_where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Images that means (and a probe) come from, rather than half of all, chosen by their ids.",
        ),
    ] = None,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Ablate components step by step, and tell classes after each: everything else is held."""
    if aligner and len(aligner) != len(stores):
        raise ArgumentError(
            f"{len(stores)} stores have {len(aligner)} aligners.", cure="give one for each, in their order"
        )
    one_space(aligner, text_space)
    with working("Reading"):
        import pyarrow as pa

        import unweave
        from unweave.extraction.extractor import device_of
        from unweave.files import write_table
        from unweave.tasks.ablation import ablation
        from unweave.tasks.study import study

    found = []
    for number, store in enumerate(stores):
        with working(f"Reading {store}"):
            for conditions in (where, means_where):
                rows_where(unweave.open_store(store), conditions)
            own = study(
                store,
                head,
                label,
                aligner=aligner[number] if aligner else None,
                space=text_space,
                measured=where,
                fitted=means_where,
                device=device_of(device),
            )
            steps = _steps(own, order or ["last"], seed)
        with progress(f"ablating {store}", sum(len(step.components) for step in steps)) as advance:
            found.append(
                ablation(
                    own.store,
                    own.head,
                    label,
                    steps,
                    rows=own.measured,
                    mean_rows=own.fitted,
                    to=to,
                    on_component=counted(advance),
                )
            )
    rows = pa.concat_tables([one.table() for one in found])
    card = {"stores": stores, "head": head, "label": label, "to": to, "order": order or ["last"], "seed": seed}
    with results(output) as (folder, files):
        files |= write_table(rows, card, folder, "ablation")
        if not no_figure:
            files["figure"] = str(_drawn(found, folder))
    if json:
        print_json(card | {"files": files, "rows": rows.to_pylist()})
        return
    console = Console(highlight=False)
    for one in found:
        console.print(_told(one))
        console.print(Text())
    print_files(files)


def _steps(own: Study, order: list[str], seed: int) -> tuple[Step, ...]:
    import numpy as np

    from unweave.attribute import attribute
    from unweave.tasks.ablation import layers, one_by_one, selections

    if order[0] in ("last", "first"):
        return layers(own.components, last=order[0] == "last")
    if order[0] == "random":
        return one_by_one(own.components, np.random.default_rng(seed).permutation(len(own.components)).tolist())
    if not order[0].startswith("score:"):
        return selections(own.components, order)
    seen, space = own.words
    name = order[0].removeprefix("score:")
    scores = attribute(seen, space, {name: space.features().get(name, (name,))}, samples=20, seed=seed)
    return one_by_one(own.components, scores.ranked(name))


def _told(found: Ablation) -> Any:
    rows: list[list[str | Text]] = [
        [row["ablated"], str(row["components"]), f"{row['accuracy']:.3f}", f"{row['low']:.3f} ... {row['high']:.3f}"]
        for row in found.table().to_pylist()
    ]
    title = f"{found.model}: accuracy of the {found.head} head, {found.accuracies[0].images:,} images"
    return table(title, {"ablated": "left", "components": "right", "accuracy": "right", "95 %": "right"}, rows)


def _drawn(found: list[Ablation], output: Path) -> Path:
    from unweave.figures import Curve, curves_figure, save_figure

    curves = [
        Curve(
            own.model,
            [each.value for each in own.accuracies],
            [each.interval[0] for each in own.accuracies],
            [each.interval[1] for each in own.accuracies],
        )
        for own in found
    ]
    what = "layers" if found[0].steps and found[0].steps[0].name.startswith("layer ") else "steps"
    figure = curves_figure(
        {"": curves}, title=f"Accuracy of the {found[0].head} head", across=f"{what} ablated", up="accuracy"
    )
    return save_figure(figure, output / "ablation.png")
