"""How far the attention of a model was resolved, and why no further."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from unweave.decomposition.branches import Walk
from unweave.graph.graph import operation


@dataclass(frozen=True)
class Coverage:
    """How far the attention of a model was resolved.

    Attributes:
        attention_layers: Attention layers that the representation depends on.
        resolved: Those whose heads are components, or that were passed through to another stream.
        passed: Those that were passed through.
        unresolved: For each of the others, where it is and why.
    """

    attention_layers: int
    resolved: int
    passed: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()


def coverage_of(walk: Walk) -> Coverage:
    """What a finished walk made of each attention layer."""
    graph, paths = walk.graph, walk.paths
    suspects = tuple(paths.unresolved())
    layers = sorted({*paths.attention, *suspects}, key=graph.order.__getitem__)
    sites = {site.attention: site for branch in walk.branches for site in branch.sites if site.role == "attention"}
    passed = {node for node, _ in walk.fired}.intersection(layers)
    held = {factor: node for node, _ in walk.fired for factor in _held(walk, node)}
    stops = sorted({*_stops(walk), *held}, key=graph.order.__getitem__)
    unresolved, merged = [], set()
    for node in layers:
        site = sites.get(node)
        if site is not None and site.merged:
            merged.add(node)
            reason = "its heads could not be told apart, and are one component"
        elif site is not None or node in passed:
            continue
        elif node in suspects:
            reason = "it looks like attention, but neither factor could be told to be the weights"
        else:
            stop = next((stop for stop in stops if graph.depends(stop, node)), None)
            reason = "the representation does not depend on it"
            if stop in held:
                reason = (
                    f"it only makes a factor that is held, of {operation(held[stop])} in {graph.module(held[stop])}"
                )
            elif stop is not None:
                through = "another attention" if stop in sites else operation(stop)
                reason = f"it reaches the representation only through {through} in {graph.module(stop) or 'the model'}"
        unresolved.append(f"{graph.module(node) or 'the model'} ({operation(node)}): {reason}")
    return Coverage(
        len(layers),
        len((sites.keys() | passed) - merged),
        tuple(graph.module(node) for node in layers if node in passed),
        tuple(unresolved),
    )


def _held(walk: Walk, node: fx.Node) -> list[fx.Node]:
    """The image-dependent factors of a product that are held at their values."""
    factors, live = walk.paths.factors(node), walk.paths.live(node)
    return [factor for factor in factors if factor is not live] if live is not None and len(factors) > 1 else []


def _stops(walk: Walk) -> list[fx.Node]:
    return [
        site.source
        for branch in walk.branches
        for site in branch.sites
        if site.role in ("lumped", "source", "attention") and isinstance(site.source, fx.Node)
    ]
