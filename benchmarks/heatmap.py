"""What a heatmap costs: its time beside a forward pass, and its memory.

    python benchmarks/heatmap.py --threads 1 -o benchmarks/heatmap.md

Time and memory do not depend on weights, so they are random. A map is that of one image and one text, through an
aligner of random maps: each component is measured along a direction of its own, and everything that is not mapped is
scored too, so that the maps and what is beside them add up to the whole score.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import measure
import torch

import unweave
from unweave.components import Component
from unweave.tasks.mapper import Mapper
from unweave.tasks.target import Target

MODEL = "timm/vit_base_patch16_224"
SELECTIONS: dict[str, Callable[[Component], bool]] = {
    "10 heads of the last five layers": lambda part: part.kind == "head" and part.layer >= 7 and part.head in (2, 9),
    "all 60 heads of the last five layers": lambda part: part.kind == "head" and part.layer >= 7,
    "all 144 heads": lambda part: part.kind == "head",
}


def target_of(plan: unweave.Plan, dim: int, seed: int) -> Target:
    """A text that was drawn, seen through drawn maps."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(len(plan.components), plan.dim, dim, generator=generator)
    aligner = unweave.Aligner(maps, torch.zeros(dim), plan.components, {"level": "head"})
    places = {component: place for place, component in enumerate(plan.components)}
    directions = torch.randn(1, dim, generator=generator)
    return Target(("a text",), directions, torch.zeros(1), "random", places, aligner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    model = unweave.load_model(MODEL, random_weights=True)
    plan, images = unweave.plan(model), model.example(1)
    targets = [target_of(plan, 512, seed) for seed in range(2)]

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return model.readout(images)

    forward()
    lines = [
        "| mapped | tokens | time / forward pass | with two texts in turn | peak memory, MB | forward pass, MB |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, chosen in SELECTIONS.items():
        mapper = Mapper(plan, chosen)
        mapper(images, targets[0])
        turn = [0]

        def changing(mapper: Mapper = mapper, turn: list[int] = turn) -> object:
            turn[0] = 1 - turn[0]
            return mapper(images, targets[turn[0]])

        same = measure.in_turn(
            forward,
            lambda mapper=mapper: mapper(images, targets[0]),
            device,
            repeats=options.repeats,
            seconds=options.seconds,
        )
        other = measure.in_turn(forward, changing, device, repeats=options.repeats, seconds=options.seconds)
        ratios = [
            "{:.2f} ({:.2f} ... {:.2f})".format(
                *measure.spread([two / one for one, two in zip(times.plain, times.other, strict=True)])
            )
            for times in (same, other)
        ]
        memory = measure.peak_bytes(lambda mapper=mapper: mapper(images, targets[0]), device) / 1e6
        plain = measure.peak_bytes(forward, device) / 1e6
        lines.append(
            f"| {name} | {len(mapper.plan.components):,} | {ratios[0]} | {ratios[1]} | {memory:.0f} | {plain:.0f} |"
        )
        print(lines[-1], flush=True)
    text = f"""# What a heatmap costs

`python benchmarks/heatmap.py --threads {torch.get_num_threads()}`: {MODEL} with random weights, one image of 224 x 224,
one text through an aligner (512 dimensions). {measure.machine(device)}.
Median of the ratios of calls in turn, least and greatest in brackets; with two texts in turn, weight products are made
anew for each. Peak memory is beyond the weights, the plan and the aligner.

""" + "\n".join(lines)
    if options.output:
        options.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
