"""`unweave explain`: what a model would be decomposed into, by which rules, at what cost, before any image is read."""

from __future__ import annotations

import unweave
from unweave.cli import given, options
from unweave.cli.console import show, working


def explain(loading: given.Loading, splitting: given.Splitting, json: options.Json = False) -> None:
    """Show a model's components, the rules that apply, and what a decomposition costs."""
    with working(f"Reading {loading.id}"):
        explanation = unweave.explain(unweave.load_model(loading), **splitting)
    show(explanation, json=json)
