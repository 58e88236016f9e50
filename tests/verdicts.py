"""Whether a plan tells the truth about a network that has an oracle (see `replay`), and what it says where it does not.

Of the code under test only the public interface is used: `unweave.plan`, what it reports, and what it computes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Literal

import torch
from torch import Tensor, nn

import unweave
from replay import Piece, Truth, places, truth
from unweave import Component
from unweave.decomposition import Plan
from unweave.errors import UnweaveError

TOLERANCE = 1e-7
"""Of the length of the representation, for each image."""


def grid_faults(network: nn.Module, plan: Plan, image: Tensor) -> list[str]:
    """Every attention whose tokens a plan at level `token` puts elsewhere than they come from."""
    height, width = network.embed.sides
    faults = []
    for path, told in places(network, image, height, width).items():
        grid = next((grid for name, grid in plan.grids.items() if name == path or name.startswith(f"{path}.")), None)
        if grid is None:
            faults.append(f"{path} has no grid")
            continue
        expected = [
            place
            if isinstance(place, str)
            else place[0] * grid.height // height * grid.width + place[1] * grid.width // width
            for place in told
        ]
        if grid.prefix != expected.count("prefix"):
            faults.append(f"{path} has {expected.count('prefix')} prefix tokens, its grid says {grid.prefix}")
        wrong = [
            (token, cell, place)
            for token, (cell, place) in enumerate(zip(grid.cells, expected, strict=True))
            if cell != place and not (isinstance(place, str) and (cell is None or cell < 0))
        ]
        faults += [f"{path}: token {token} is said to lie in {cell}, it is {place}" for token, cell, place in wrong[:2]]
    return faults


# Comparison ---------------------------------------------------------------------------------------------------------

Class = Literal["match", "said", "silent", "error", "crash"]


@dataclass(frozen=True)
class Verdict:
    """What a plan of one network is worth.

    Attributes:
        kind: `match` every piece is a component; `said` something differs, and the plan names it; `silent` something
            differs, and nothing is said of it; `error` a typed error; `crash` any other.
        lines: What differs, and what was said of it.
    """

    kind: Class
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([self.kind, *(f"  {line}" for line in self.lines)])


@dataclass
class _Difference:
    """Something that differs; `said` is what the plan says of it, if anything."""

    what: str
    said: str = ""

    def __str__(self) -> str:
        return f"{self.what} -- said: {self.said}" if self.said else self.what


def compare(network: nn.Module, images: Tensor) -> Verdict:
    """Plans a network, runs the plan, and holds every component against the oracle."""
    expected = truth(network, images)
    try:
        plan = unweave.plan(network, images)
    except UnweaveError as error:
        return Verdict("error", (f"{type(error).__name__}: {error}",))
    except Exception as error:
        return Verdict("crash", (f"planning: {type(error).__name__}: {error}",))
    try:
        result = plan.run(images)
        report = plan.report()
    except Exception as error:
        return Verdict("crash", (f"running: {type(error).__name__}: {error}",))
    verdict = held_against(network, plan, report, result.values, result.representation, expected)
    names = sorted(expected.open)
    for chosen in chain.from_iterable(combinations(names, number) for number in range(1, len(names) + 1)):
        if verdict.kind != "match":
            other = truth(network, images, chosen)
            again = held_against(network, plan, report, result.values, result.representation, other)
            verdict = min(verdict, again, key=lambda either: ["match", "said", "silent"].index(either.kind))
    return verdict


def held_against(
    network: nn.Module, plan: Plan, report: Mapping, values: Tensor, representation: Tensor, expected: Truth
) -> Verdict:
    size = expected.representation.norm(dim=-1)
    spoken = _Spoken(report, expected)
    differences: list[_Difference] = []

    def distance(value: Tensor, other: Tensor) -> float:
        return float(((value - other).norm(dim=-1) / size).max())

    def total(kind: str) -> Tensor:
        columns = [number for number, component in enumerate(plan.components) if component.kind == kind]
        return values[:, columns].sum(1)

    if distance(representation, expected.representation) > 1e-10:
        differences.append(_Difference("the representation is not what the network gives"))
    if distance(values.sum(1), expected.representation) > 1e-10:
        differences.append(_Difference("the components do not add up to the representation"))
    names = Counter(str(component) for component in plan.components)
    for name, count in names.items():
        if count > 1:
            differences.append(_Difference(f"{count} components are called {name}"))

    free = dict(enumerate(plan.components))
    missing: list[Piece] = []
    for piece in expected.pieces:
        if float((piece.value.norm(dim=-1) / size).max()) <= TOLERANCE or piece.kind == "embed":
            continue
        fitting = [number for number, component in free.items() if _fits(piece, component)]
        errors = {number: distance(values[:, number], piece.value) for number in fitting}
        best = min(errors, key=errors.__getitem__, default=None)
        if best is None or errors[best] > TOLERANCE:
            missing.append(piece)
            continue
        component = free.pop(best)
        if piece.kind == "head" and piece.numbered and component.head != piece.head:
            differences.append(_Difference(f"{piece} is called {component}"))
    groups: dict[tuple[str, str, int, int | None], list[Piece]] = defaultdict(list)  # of one module, or of a list
    for piece in missing:
        if piece.group:
            head = piece.head if piece.kind == "head" else None
            groups[re.sub(r"\.\d+$", "", piece.path), piece.group, piece.turn, head].append(piece)
    for pieces in groups.values():
        together = sum(piece.value for piece in pieces)
        fitting = [
            number
            for number, component in free.items()
            if _fits(pieces[0], component) and distance(values[:, number], together) <= TOLERANCE
        ]
        if fitting:
            del free[fitting[0]]
            missing = [piece for piece in missing if piece not in pieces]

    embed = sum((piece.value for piece in expected.pieces if piece.kind == "embed"), torch.zeros_like(representation))
    if distance(total("embed"), embed) > TOLERANCE:
        what = f"embed differs by {distance(total('embed'), embed):.2g} of |z|"
        differences.append(_Difference(what + _explained(total("embed") - embed, missing, distance), spoken.of_embed()))
    for piece in missing:
        size_of_it = float((piece.value.norm(dim=-1) / size).max())
        near = min(range(len(plan.components)), key=lambda number: distance(values[:, number], piece.value))
        component = plan.components[near]
        differences.append(
            _Difference(
                f"{piece}, {size_of_it:.2g} of |z|, is no component; the nearest is {component} ({component.kind}), "
                f"{distance(values[:, near], piece.value):.2g} away",
                spoken.of(piece),
            )
        )
    if (gap := distance(total("bias"), expected.bias)) > TOLERANCE:
        said = differences[0].said if differences and all(difference.said for difference in differences) else ""
        differences.append(_Difference(f"the biases differ by {gap:.2g} of |z|", said or spoken.of_bias()))
    parts = [component for component in plan.components if component.kind not in ("bias", "embed", "lumped")]
    for component in parts:
        if below := [other for other in parts if str(other).startswith(f"{component}.")]:
            differences.append(_Difference(f"{component} cannot be selected alone: {below[0]} lies in it"))
    if not differences:
        for number, component in free.items():
            extra = float((values[:, number].norm(dim=-1) / size).max())
            if component in parts and extra > TOLERANCE:
                differences.append(_Difference(f"{component} ({component.kind}), {extra:.2g} of |z|, is no piece"))
        layers = plan.coverage.attention_layers
        least, most = (sum(bound(counts) for counts in expected.attentions) for bound in (min, max))
        if not least <= layers <= most:
            differences.append(_Difference(f"coverage counts {layers} attention layers, the network has {most}"))
        for path in expected.passed:
            if not any(_related(path, module) for module in plan.coverage.passed):
                differences.append(_Difference(f"{path} is passed through, and the plan does not list it"))
    if not differences:
        return Verdict("match")
    said = all(difference.said for difference in differences)
    return Verdict("said" if said else "silent", tuple(str(difference) for difference in differences))


def _fits(piece: Piece, component: Component) -> bool:
    """Whether a component may be this piece: of its kind, and of its block."""
    if component.kind != piece.kind:
        return False
    if piece.kind == "lumped" or not piece.block:
        return True
    path, block = component.path, piece.block
    above = bool(path) and block.startswith(f"{path}.") and block.rpartition(".")[0] == path
    return above or re.match(rf"{re.escape(block)}(?![A-Za-z0-9])", path) is not None


def _explained(gap: Tensor, missing: Iterable[Piece], distance) -> str:
    """Which blocks' pieces the gap holds, where it is as simple as that."""
    blocks: dict[str, Tensor] = defaultdict(lambda: torch.zeros_like(gap))
    for piece in missing:
        blocks[piece.block] += piece.value
    inside = [
        block
        for block, value in blocks.items()
        if distance(gap - value, gap) > 1e-3 and distance(gap, value) < 0.5 * distance(value, 0 * value)
    ]
    return f" (as if it held {', '.join(inside)})" if inside else ""


class _Spoken:
    """What a plan says in words, and which pieces it is about."""

    def __init__(self, report: Mapping, expected: Truth) -> None:
        self.expected = expected
        self.lumps = [
            (
                lump["module"],
                lump.get("inside", "trunk"),
                f"lump at {lump['operation']} in {lump['module'] or 'the network'}",
            )
            for lump in report["lumps"]
        ]
        self.lumped = any(component["kind"] == "lumped" for component in report["components"])
        coverage = report["coverage"]
        # what must be passed excuses nothing
        self.passed = [
            module for module in coverage["passed"] if not any(_related(module, path) for path in expected.passed)
        ]
        self.unresolved = [
            (re.match(r"[\w.]*", line)[0], line)
            for key, lines in coverage.items()
            if key != "passed" and isinstance(lines, list | tuple)
            for line in lines
        ]

    def of(self, piece: Piece) -> str:
        """What is said of a piece: a lump that it lies below; attention that is passed, or is not resolved."""
        for module, inside, words in self.lumps:
            near = not piece.block or _related(module, piece.block)
            below = self.expected.leaves.get(module, len(self.expected.pieces)) > piece.order
            if near or (below and self.lumped and inside == "trunk"):
                return words
        for module in self.passed:
            if _related(module, piece.block or module) or self.expected.leaves.get(module, 0) > piece.order:
                return f"{module} is passed"
        if piece.kind == "head":
            for module, line in self.unresolved:
                if _related(module, piece.block or module):
                    return f"not resolved: {line}"
        return ""

    def of_embed(self) -> str:
        """What is said of the embedding."""
        if self.lumps:
            return self.lumps[0][2]
        return f"{self.passed[0]} is passed" if self.passed else ""

    def of_bias(self) -> str:
        """What is said of biases, where nothing else differs."""
        return self.of_embed()


def _related(module: str, block: str) -> bool:
    """Whether one of two module paths lies in the other."""
    return module == block or module.startswith(f"{block}.") or (bool(module) and block.startswith(f"{module}."))
