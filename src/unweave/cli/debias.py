"""`unweave debias`: ablate what misleads a classifier, and write the edit into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import counted, print_files, print_json, progress, table, working
from unweave.cli.results import results
from unweave.cli.seen import one_space
from unweave.errors import ArgumentError
from unweave.notation import whole

if TYPE_CHECKING:
    from unweave.tasks.debias import Debiased, Written

_IMAGES, _HEAD, _HOW = "Which images", "What tells the classes", "How to work"


def debias(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="All images, with a field `split`; or the images to fit to.")
    ],
    output: options.Output,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="STORE", help="Images to rank and choose by, in a store of their own.", rich_help_panel=_IMAGES
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar="STORE", help="Images to report on, likewise.", rich_help_panel=_IMAGES)
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            metavar="FIT,HELD,TEST",
            help="The values of `split` of the three sides, where one store has them all.",
            rich_help_panel=_IMAGES,
        ),
    ] = "train,val,test",
    label: Annotated[
        str, typer.Option(metavar="FIELD", help="The field that has the classes.", rich_help_panel=_HEAD)
    ] = "label",
    attribute: Annotated[
        str, typer.Option(metavar="FIELD", help="The field that has what misleads.", rich_help_panel=_HEAD)
    ] = "background",
    head: Annotated[
        Literal["probe", "zero-shot", "classifier"],
        typer.Option(help="A linear probe that is fitted, ...", rich_help_panel=_HEAD),
    ] = "probe",
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS=PHRASE",
            help="What a class is called in words, for `zero-shot`; may be given several times.",
            rich_help_panel=_HEAD,
        ),
    ] = None,
    softness: Annotated[
        float,
        typer.Option(
            min=1e-6, max=1e6, callback=options.finite, help="Of the probe (scikit-learn's C).", rich_help_panel=_HEAD
        ),
    ] = 0.1,
    features: Annotated[
        Path | None, typer.Option(help="A TOML file with the two features; birds and their backgrounds if not given.")
    ] = None,
    spurious: Annotated[str, typer.Option(metavar="FEATURE", help="What misleads, in words.")] = "background",
    core: Annotated[str, typer.Option(metavar="FEATURE", help="What should lead, in words.")] = "bird",
    aligner: options.Aligner = None,
    text_space: options.OwnSpace = None,
    k: Annotated[
        str, typer.Option("-k", metavar="N", help="How many components to ablate; `auto` chooses without groups.")
    ] = "10",
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=options.possible,
            help="Write the edit into the weights: an ordinary checkpoint, ending in `.safetensors`, measured again.",
        ),
    ] = None,
    export_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=options.MANY,
            help="How many components the checkpoint ablates; chosen on held-out images if not given.",
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="Rank on the test images, as the published code does.", rich_help_panel=_HOW),
    ] = False,
    draws: Annotated[
        int, typer.Option(min=1, max=10_000, help="Of random components, a control.", rich_help_panel=_HOW)
    ] = 20,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    no_figure: options.NoFigure = False,
    json: options.Json = False,
) -> None:
    """Rank components by what misleads a classifier, and ablate the first; groups before and after, beside controls."""
    number = whole(k)
    if k != "auto" and number is None:
        raise ArgumentError(f"{k!r} is no number of components.", cure="use a number, or `auto`")
    called: dict[str, list[str]] = {}
    for one in call or []:
        name, equals, phrase = one.partition("=")
        if not equals or not phrase:
            raise ArgumentError(
                f"{one!r} calls nothing by a name.", cure="write CLASS=PHRASE, such as 'land=a landbird'"
            )
        called.setdefault(name, []).append(phrase)
    one_space(aligner, text_space)
    with working(f"Reading {store}"):
        from unweave.extraction.extractor import device_of
        from unweave.files import write_table
        from unweave.tasks.debias import experiment

        plan = experiment(
            store,
            held_out,
            test,
            splits=splits.split(","),
            head=head,
            label=label,
            softness=softness,
            features=features,
            spurious=spurious,
            core=core,
            words=called or None,
            aligner=aligner,
            space=text_space,
            published=published,
            seed=seed,
            device=device_of(device),
        )
    with progress("ablating", plan.steps(draws)) as advance:
        found = plan.run(attribute, k=number, draws=draws, seed=seed, on_step=counted(advance))
    ablated = [str(own) for own in found.ablated]
    card = {
        **plan.card,
        "head": head,
        "protocol": found.protocol,
        "k": found.k,
        "k chosen without groups": found.chosen,
        "ablated": ablated,
        "order": [str(found.components[place]) for place in found.order],
        "best by groups": [str(found.components[place]) for place in found.best_order],
    }
    with results(output) as (folder, files):
        files |= write_table(found.table(), card, folder, "debias")
        if not no_figure:
            files["figure"] = str(_drawn(found, folder))
        if export is not None:
            from unweave.tasks.debias import passes, written

            with progress("writing weights", passes(found, plan, export_k)) as advance:
                out = written(found, plan, attribute, export, k=export_k, on_images=advance)
            files["checkpoint"] = str(out.path)
            card["checkpoint"] = {
                "k": out.k,
                "ablated": [str(own) for own in out.edit.expressed],
                "worst": out.groups.worst,
                "average": out.groups.average,
                "groups": {name: own.value for name, own in out.groups.accuracies.items()},
                "apart": out.apart,
                "refused": [{"component": str(own.component), "why": str(own.reason)} for own in out.edit.refused],
            }
    if json:
        print_json(card | {"files": files, "rows": found.table().to_pylist()})
        return
    console = Console(highlight=False)
    console.print(_told(found))
    if export is not None:
        console.print(Text(f"\n{_exported(out)}"), soft_wrap=True)
    console.print(Text(f"\nablated: {', '.join(ablated) or 'nothing'}"), soft_wrap=True)
    print_files(files)


def _told(found: Debiased) -> Any:
    import numpy as np

    before, after = found.curve[0], found.curve[found.k]
    best = found.best[min(found.k, len(found.best) - 1)]
    random = [own[min(found.k, len(own) - 1)] for own in found.random]
    columns = {"": "left", "before": "right", f"{found.k} ablated": "right", "random": "right", "groups known": "right"}
    rows: list[list[str | Text]] = []
    for name, own in before.accuracies.items():
        drawn = float(np.mean([each.accuracies[name].value for each in random]))
        cells = [f"{each.accuracies[name].value:.3f}" for each in (before, after)]
        low, high = after.accuracies[name].interval
        cells[1] += f" ({low:.3f} ... {high:.3f})"
        rows.append([f"{name} ({own.images:,})", *cells, f"{drawn:.3f}", f"{best.accuracies[name].value:.3f}"])
    for what in ("worst", "average"):
        drawn = float(np.mean([getattr(each, what) for each in random]))
        cells = [f"{getattr(each, what):.3f}" for each in (before, after)]
        rows.append([Text(f"{what} group", "bold"), *cells, f"{drawn:.3f}", f"{getattr(best, what):.3f}"])
    return table(f"{found.model}: accuracy of the {found.head} head by group", columns, rows)


def _exported(out: Written) -> str:
    """What the checkpoint is worth, in a sentence or two."""
    worst, average = out.groups.worst, out.groups.average
    text = f"The checkpoint, without the first {out.k}, tells the worst group at {worst:.3f} and the average at "
    text += f"{average:.3f}: its later layers answer to what is gone. It is the ablated model to {out.apart:.0e}."
    for own in out.edit.refused:
        text += f"\nnot in the weights: {own.component}: {own.reason}"
    return text


def _drawn(found: Debiased, output: Path) -> Path:
    import numpy as np

    from unweave.figures import Curve, curves_figure, save_figure

    panels = {}
    for what in ("worst", "average"):
        curves = [[getattr(groups, what) for groups in curve] for curve in (found.curve, found.best)]
        random = np.array([[getattr(groups, what) for groups in curve] for curve in found.random])
        low, high = np.quantile(random, [0.05, 0.95], axis=0).tolist()
        panels[f"{what} group"] = [
            Curve("by words", curves[0], mark=found.k),
            Curve("groups known (upper bound)", curves[1]),
            Curve("at random", random.mean(0).tolist(), low, high, faint=True),
        ]
    title = f"{found.model}: accuracy of the {found.head} head, {found.protocol} ranking"
    figure = curves_figure(panels, title=title, across="components ablated", up="accuracy")
    return save_figure(figure, output / "debias.png")
