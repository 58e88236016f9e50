"""How far an ablation written into the weights (total) is from the one of contributions (direct), on the pocket zoo.

    python benchmarks/surgery.py [--models pocket/deit,pocket/swin] [--draws 5]

Components are drawn at random; means are over 300 scenes, distances over 300 others, in shares of the representation's
norm. `readout` and `tokens` are the two ways to average over tokens (see `unweave.surgery.edit`).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer

import unweave
from unweave.images import batches, open_images
from unweave.pocket.measure import markdown
from unweave.surgery.edit import mean_ablated


def inputs(model: unweave.Model, data: str, count: int) -> torch.Tensor:
    return torch.cat([images for _, images in batches(model, open_images(data, limit=count), 100)])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(((one - other).norm(dim=1) / other.norm(dim=1)).mean())


def main(
    models: Annotated[str, typer.Option()] = "pocket/deit,pocket/clip,pocket/dinov2,pocket/swin",
    draws: Annotated[int, typer.Option()] = 5,
    images: Annotated[int, typer.Option()] = 300,
) -> None:
    head = ["network", "components", "direct moves", "total moves", "total from direct, `readout`", "`tokens`"]
    table = [head]
    for name in models.split(","):
        model = unweave.load_model(name)
        fitted, asked = (inputs(model, data, images) for data in (f"pocket/world/7/{images}", "pocket/evaluation"))
        plan = unweave.plan(model)
        with torch.no_grad():
            means = torch.cat([plan.run(part).values for part in fitted.split(100)]).mean(0)
            values = torch.cat([plan.run(part).values for part in asked.split(100)])
            whole = model.readout(asked)
        working = [place for place, own in enumerate(plan.components) if own.kind in ("head", "mlp", "conv")]
        for count in (1, 5, 10):
            rows = []
            for seed in range(draws):
                chosen = np.random.default_rng(seed).choice(working, count, replace=False).tolist()
                direct = whole + (means[chosen] - values[:, chosen]).sum(1)
                totals = [
                    mean_ablated(model, [plan.components[place] for place in chosen], fitted, average=average).total(
                        asked
                    )
                    for average in ("readout", "tokens")
                ]
                rows.append([apart(direct, whole), apart(totals[0], whole), *(apart(own, direct) for own in totals)])
            table.append([name, str(count), *(f"{value:.2f}" for value in np.mean(rows, 0))])
    print(markdown(table))


if __name__ == "__main__":
    typer.run(main)
