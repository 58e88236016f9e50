"""`unweave explain`: what a model would be decomposed into, by which rules, at what cost, before any image is read."""

from __future__ import annotations

from rich.console import Console

import unweave
from unweave.cli import options
from unweave.cli.console import print_json, working


def explain(
    model: options.Model,
    level: options.Level = "head",
    select: options.Select = None,
    checkpoint: options.Checkpoint = None,
    checkpoint_key: options.CheckpointKey = None,
    random_weights: options.RandomWeights = False,
    seed: options.Seed = 0,
    image_size: options.ImageSize = None,
    representation: options.Representation = None,
    pool: options.Pool = None,
    attention: options.Attention = "through",
    nonlinear: options.Nonlinear = "stop",
    strict: options.Strict = False,
    json: options.Json = False,
) -> None:
    """Show a model's components, the rules that apply, and what a decomposition costs."""
    with working(f"Reading {model}"):
        loaded = unweave.load_model(
            unweave.Loading(model, checkpoint, random_weights, seed, image_size, checkpoint_key, representation, pool)
        )
        explanation = unweave.explain(
            loaded, level=level, select=select or None, attention=attention, nonlinear=nonlinear, strict=strict
        )
    if json:
        print_json({"model": loaded.id, **explanation.report})
        return
    Console(highlight=False).print(explanation)
