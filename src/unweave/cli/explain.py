"""`unweave explain`: what a model would be decomposed into, by which rules, at what cost, before any image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from unweave.cli import options
from unweave.cli.console import in_bytes, print_json, table, working
from unweave.components import KINDS, Component


def explain(
    model: options.Model,
    level: options.Level = "head",
    select: options.Select = None,
    checkpoint: options.Checkpoint = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    attention: options.Attention = "through",
    nonlinear: options.Nonlinear = "stop",
    strict: options.Strict = False,
    json: options.Json = False,
) -> None:
    """Show a model's components, the rules that apply, and what a decomposition costs."""
    with working(f"Reading {model}"):
        import unweave

        loaded = unweave.load_model(
            model, checkpoint=checkpoint, random_weights=random_weights, seed=seed, image_size=image_size
        )
        plan = unweave.plan(
            loaded, level=level, select=select or None, attention=attention, nonlinear=nonlinear, strict=strict
        )
    if json:
        print_json({"model": loaded.id, **plan.report()})
        return
    Console(highlight=False).print(_described(loaded.id, plan))


def _described(name: str, plan: Any) -> Group:
    report = plan.report()
    parts: list[RenderableType] = [
        Text.assemble((name, "bold"), f": {len(plan.components)} components at level {plan.level}, {plan.dim} dim"),
        Text(),
        components_table(plan.components),
        Text(),
        coverage_text(plan.coverage),
        Text(
            f"memory: {in_bytes(plan.memory_per_image)} per image beside the forward pass, "
            f"{in_bytes(plan.constant_bytes)} of constants"
        ),
    ]
    rows = [
        [
            entry["operation"],
            entry["rule"],
            str(entry["count"]),
            ", ".join(name or "the model" for name in entry["modules"]),
        ]
        for entry in report["operations"]
    ]
    columns = {"operation": "left", "rule": "left", "times": "right", "for example in": "left"}
    parts += [Text(), table("Operations on the path", columns, rows)]
    if report["dense"]:
        parts += [Text(), Text(f"dense fall-backs, as large as the values themselves: {_several(report['dense'])}")]
    if report["lumps"]:
        rows = [[lump["operation"], lump["module"], lump["line"], lump["reason"]] for lump in report["lumps"]]
        columns = {"stopped at": "left", "module": "left", "line": "left", "because": "left"}
        parts += [Text(), table("One component for all below", columns, rows)]
    for rule in dict.fromkeys(lump["rule"] for lump in report["lumps"] if lump["rule"]):
        parts += [Text("\nthe rule to write:", "dim"), Text(rule)]
    return Group(*parts)


def components_table(components: Sequence[Component]) -> RenderableType:
    """How many components of each kind every layer has, equal neighbours in one row."""
    layers: dict[int | str, Counter[str]] = {}
    paths: dict[int | str, str] = {}
    for component in components:
        key = component.layer if component.layer is not None else component.path or component.kind
        layers.setdefault(key, Counter())[component.kind] += 1
        paths.setdefault(key, component.path or component.kind)
    kinds = [kind for kind in KINDS if any(counts[kind] for counts in layers.values())]
    runs: list[list[int | str]] = []
    for key, counts in layers.items():
        before = runs[-1][-1] if runs else None
        if isinstance(key, int) and isinstance(before, int) and layers[before] == counts:
            runs[-1].append(key)
        else:
            runs.append([key])
    rows = [
        [
            _span([str(key) if isinstance(key, int) else "" for key in run]),
            _span([paths[key] for key in run]),
            *(str(layers[run[0]][kind] or "") for kind in kinds),
        ]
        for run in runs
    ]
    total = ["", "all", *(str(sum(counts[kind] for counts in layers.values())) for kind in kinds)]
    columns = {"layer": "left", "from": "left"} | {str(kind): "right" for kind in kinds}
    return table("Components of each layer", columns, [*rows, total])


def coverage_text(coverage: Any) -> Text:
    """How many attention layers were resolved into heads, and why not the others."""
    if not coverage.attention_layers:
        return Text("attention: this model has none")
    whole = coverage.resolved == coverage.attention_layers
    style = "green" if whole else "yellow"
    text = Text.assemble("attention: ", (f"{coverage.resolved} of {coverage.attention_layers} layers resolved", style))
    if coverage.passed:
        text.append(f", {len(coverage.passed)} of them passed through: {', '.join(coverage.passed)}")
    for reason in coverage.unresolved:
        text.append(f"\n  {reason}", "yellow")
    return text


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"


def _several(names: list[str], number: int = 12) -> str:
    return ", ".join(names[:number]) + (f" and {len(names) - number:,} more" if len(names) > number else "")
