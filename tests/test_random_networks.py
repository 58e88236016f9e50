"""Networks that people could write, a few hundred of them, held against the oracle that replays them.

A plan may leave something unresolved, if it says so; it may not be silently wrong, and it may not crash. `python
tests/random_networks.py SEED` shows the network of a seed that fails. `pytest -m sweep tests/test_random_networks.py`
goes on with other seeds: `UNWEAVE_SEEDS=START:COUNT` says which, and `UNWEAVE_SEEDS_FILE` names a file of JSON lines
that keeps what is known, so that an interrupted sweep goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import random_networks
import unweave
from random_networks import CASES, Outcome, fixed, images_of, judge, network_of
from replay import OracleError, Recorder, truth
from verdicts import grid_faults, held_against

CHUNK = 50
CHUNKS = 10
MATCHED = 0.8
"""The least share of seeds of which every piece is a component."""

ALWAYS = ("known", "form", "parallel", "attention")
"""Categories of cases that are part of the suite; the others are the sweep's, as the seeds hold them too."""

SAYING_IS_ENOUGH = (
    "attend: bmm, heads outside the batch",
    "conv: transposed",
    "map conv: transposed",
)
"""Cases that need not be resolved, as long as the plan says so; all others must match."""


def judged_apart(folder: Path, *arguments: str) -> dict[int | str, Outcome]:
    """The verdicts of the command, by seed or case.

    It runs in a process of its own: there signatures are not checked, which takes three times as long as all else.
    """
    path = folder / "verdicts.jsonl"
    command = [sys.executable, "-W", "error", random_networks.__file__, *arguments, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["seed"]: Outcome(row["seed"], row["kind"], tuple(row["lines"]), (), 0.0) for row in rows}


CATEGORIES = [
    pytest.param(category, marks=[] if category in ALWAYS else [pytest.mark.sweep])
    for category in dict.fromkeys(case.partition(":")[0] for case in CASES)
]


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_construction_once_in_a_plain_network(category: str, tmp_path: Path) -> None:
    outcomes = judged_apart(tmp_path, "--cases", category)
    assert set(outcomes) == {case for case in CASES if case.partition(":")[0] == category}
    for case, outcome in outcomes.items():
        allowed = ("match", "said") if str(case).startswith(SAYING_IS_ENOUGH) else ("match",)
        assert outcome.kind in allowed, "\n  ".join([outcome.again, outcome.kind, *outcome.lines])


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_networks_match_or_say_what_they_do_not_resolve(
    chunk: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outcomes = list(judged_apart(tmp_path, "--table", str(chunk * CHUNK), str(CHUNK)).values())
    assert len(outcomes) == CHUNK
    bad = [outcome for outcome in outcomes if outcome.kind in ("silent", "crash")]
    for outcome in bad:
        print(f"\n{outcome.again}\n{outcome.kind}", *outcome.lines, sep="\n  ")
    share = _pooled(chunk, outcomes, tmp_path_factory)
    assert not bad, f"seeds {[outcome.seed for outcome in bad]}"
    assert share is None or share >= MATCHED, f"{share:.0%} of all seeds match"


def _pooled(chunk: int, outcomes: list[Outcome], factory: pytest.TempPathFactory) -> float | None:
    """The share of matches over all chunks, for the chunk that is the last to be done; None for the others.

    Every chunk leaves its count in a folder that the workers of a run share.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "random-networks"
    folder.mkdir(exist_ok=True)
    partial = folder / f"{chunk}.partial"
    partial.write_text(str(sum(outcome.kind == "match" for outcome in outcomes)))
    partial.rename(folder / f"{chunk}.txt")
    done = [int(path.read_text()) for path in folder.glob("*.txt")]
    return sum(done) / (CHUNK * CHUNKS) if len(done) == CHUNKS else None


def test_a_seed_decides_everything() -> None:
    first, second = network_of(17), network_of(17)
    images = images_of(first, 17)
    assert first.describe() == second.describe()
    assert torch.equal(first(images), second(images))
    assert network_of(18).describe() != first.describe()


def test_half_of_the_seeds_hold_something_exotic() -> None:
    exotic = 0
    for seed in range(200):
        exotic += bool(network_of(seed).exotic)
    assert 80 <= exotic <= 120


# Tokens on the grid -------------------------------------------------------------------------------------------------

_POOLED = {"prefix": "none", "readout": "norm, mean"}
_STAGES = {**_POOLED, "shape": "(16, 16, 4)", "depth": "2", "block1.window": "none"}
GRIDS = {
    **{name: choices for name, choices in CASES.items() if name.startswith(("stem:", "flatten:", "prefix:"))},
    **{name: {**CASES[name], "shape": "(16, 24, 8)"} for name in ("window: rows", "window: columns")},
    **{name: CASES[name] for name in CASES if name.startswith("window:")},
    "window: padded windows, odd sides": {**_POOLED, "shape": "(24, 24, 8)", "window": "padded windows"},
    "window: padded windows, one odd side": {**_POOLED, "shape": "(16, 24, 8)", "window": "padded windows"},
    "shifted windows, then Swin's merging": {
        **_STAGES,
        "block0.transition": "slices, norm, Linear (Swin)",
        "block0.window": "shifted windows",
    },
    "reshape, Linear merging": {**_STAGES, "block0.transition": "reshape, Linear"},
    "strided convolution": {**_STAGES, "block0.transition": "strided convolution"},
    "average pool": {**_STAGES, "block0.transition": "average pool"},
    "flip and roll": {"depth": "2", "block0.transition": "flip and roll"},
    "tokens to a map and back": {**_POOLED, "depth": "2", "block0.transition": "tokens to a map and back"},
    "nn.MultiheadAttention with registers": {"attn": "nn.MultiheadAttention", "prefix": "class token and registers"},
    "attention on maps": {"layout": "map", "shape": "(16, 24, 8)"},
    "index write behind a residual sum": {"depth": "2", "block0.form": "x[:, 0] += f[:, 0]"},
    "mT behind a residual sum": {"depth": "2", "block0.form": "detour by mT"},
    "swapdims behind a residual sum": {"depth": "2", "block0.form": "detour by swapdims"},
    "where behind a residual sum": {"depth": "2", "block0.form": "where(mask, x + f, x)"},
    "parallel blocks": {"depth": "2", "block": "parallel attention and MLP"},
}

GRID_MAY_BE_UNKNOWN = (
    "stem: einsum over reshaped patches",
    "stem: F.unfold, Linear",
    "stem: Tensor.unfold, Linear",
    "flatten: einsum",
    "flatten: cat of rows",
)
"""Where a plan may say that it does not know; a wrong place is a fault here as well."""


@pytest.mark.parametrize("case", GRIDS)
def test_tokens_lie_where_they_come_from(case: str) -> None:
    network = fixed(GRIDS[case])
    plan = unweave.plan(network, images_of(network), level="token")
    faults = grid_faults(network, plan, images_of(network, count=1))
    if case in GRID_MAY_BE_UNKNOWN:
        faults = [fault for fault in faults if not fault.endswith("has no grid")]
    assert not faults, "\n".join([case, *faults, network.describe()])


# The oracle and the comparison --------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """`norm(x + act(w x))` by hand, with or without its statistic held."""

    blocks_at = ()

    def __init__(self, held: bool = True) -> None:
        super().__init__()
        self.recorder, self.held = Recorder(), held
        self.weight, self.bias = torch.tensor([[0.3, -0.7], [1.1, 0.4]]).double(), torch.tensor([0.2, -0.5]).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.recorder.source(x, self, "embed")
        x = x + self.recorder.source(torch.tanh(x @ self.weight), self, "mlp") + self.bias
        size = x.norm(dim=-1, keepdim=True)
        return x / (self.recorder.hold(size) if self.held else size)


def test_the_oracle_gives_what_a_person_computes() -> None:
    network, x = Tiny(), torch.tensor([[0.5, 2.0], [-1.0, 0.3]]).double()
    told = truth(network, x)
    mlp = torch.tanh(x @ network.weight)
    size = (x + mlp + network.bias).norm(dim=-1, keepdim=True)
    expected = {"embed": x / size, "mlp": mlp / size}
    for piece in told.pieces:
        assert torch.allclose(piece.value, expected[piece.kind], atol=1e-14)
    assert torch.allclose(told.bias, network.bias / size, atol=1e-14)


def test_the_oracle_refuses_a_network_that_is_not_affine_in_its_sources() -> None:
    with pytest.raises(OracleError, match="add up"):
        truth(Tiny(held=False), torch.tensor([[0.5, 2.0], [-1.0, 0.3]]).double())


def test_a_recorder_that_is_off_gives_back_what_it_is_given() -> None:
    recorder, value = Recorder(), torch.ones(2, 3)
    assert recorder.source(value, nn.Identity(), "mlp") is value
    assert recorder.hold(value) is value
    assert recorder.entry(value, nn.Identity()) is value


@pytest.fixture(scope="module")
def judged():
    """A plain network with its plan, values and truth."""
    network = fixed({"depth": "2"})
    images = images_of(network)
    plan = unweave.plan(network, images)
    result = plan.run(images)
    return network, plan, result, truth(network, images)


def _verdict(judged, plan=None, values=None):
    network, honest, result, told = judged
    plan = plan or honest
    report = {**plan.report(), "components": [component.as_dict() for component in plan.components]}
    given = result.values if values is None else values
    return held_against(network, plan, report, given, result.representation, told)


def test_the_comparison_accepts_an_honest_plan(judged) -> None:
    assert _verdict(judged).kind == "match"


@pytest.mark.parametrize("fraud", ["swapped heads", "swapped layers", "bias to embed", "one head for all", "kind"])
def test_the_comparison_sees_every_fraud(judged, fraud: str) -> None:
    """The sum is right in all of these."""
    _, plan, result, _ = judged
    names, values, components = (
        [str(component) for component in plan.components],
        result.values.clone(),
        list(plan.components),
    )
    place = {name: number for number, name in enumerate(names)}
    if fraud.startswith("swapped"):
        one, two = {
            "swapped heads": ("blocks.0.attn.head.0", "blocks.0.attn.head.1"),
            "swapped layers": ("blocks.0.mlp", "blocks.1.mlp"),
        }[fraud]
        values[:, [place[one], place[two]]] = values[:, [place[two], place[one]]]
    elif fraud == "bias to embed":
        values[:, place["embed"]] += 0.1
        values[:, place["blocks.0.attn.bias"]] -= 0.1
    elif fraud == "one head for all":
        heads = [place[f"blocks.0.attn.head.{head}"] for head in range(3)]
        values[:, heads[0]], values[:, heads[1:]] = values[:, heads].sum(1), 0.0
    else:
        components[place["blocks.0.mlp"]] = replace(components[place["blocks.0.mlp"]], kind="linear")
    assert _verdict(judged, replace(plan, components=tuple(components)), values).kind == "silent"


def test_the_comparison_sees_a_name_that_comes_twice(judged) -> None:
    _, plan, _, _ = judged
    second = next(number for number, component in enumerate(plan.components) if str(component) == "blocks.1.mlp")
    components = list(plan.components)
    components[second] = replace(components[second], path="blocks.0.mlp")
    verdict = _verdict(judged, replace(plan, components=tuple(components)))
    assert verdict.kind == "silent"
    assert any("2 components are called" in line for line in verdict.lines)


def test_a_lump_excuses_only_what_lies_below_it(judged) -> None:
    _, plan, result, _ = judged
    lump = {"operation": "aten.relu", "module": "blocks.0", "line": "", "reason": "", "rule": "", "inside": "trunk"}
    place = {str(component): number for number, component in enumerate(plan.components)}
    network, _, _, told = judged
    for block, expected in (("blocks.0", "said"), ("blocks.1", "silent")):
        values, gone = result.values.clone(), place[f"{block}.mlp"]
        components = [
            replace(component, path="x", kind="lumped") if number == gone else component
            for number, component in enumerate(plan.components)
        ]
        other = replace(plan, components=tuple(components))
        report = {**plan.report(), "components": [component.as_dict() for component in components], "lumps": [lump]}
        assert held_against(network, other, report, values, result.representation, told).kind == expected


# Many more ----------------------------------------------------------------------------------------------------------


@pytest.mark.sweep
def test_thousands_of_seeds() -> None:
    start, count = (int(number) for number in os.environ.get("UNWEAVE_SEEDS", "10000:2000").split(":"))
    given = os.environ.get("UNWEAVE_SEEDS_FILE")
    path = Path(given) if given else None
    known = {}
    if path is not None and path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            known[row["seed"]] = row["kind"]
    for seed in range(start, start + count):
        if seed in known:
            continue
        outcome = judge(seed)
        known[seed] = outcome.kind
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps(outcome.as_dict()) + "\n")
        if outcome.kind in ("silent", "crash"):
            print(f"\n{outcome.again}\n{outcome.kind}", *outcome.lines, sep="\n  ")
    seeds = [seed for seed in known if start <= seed < start + count]
    counts = Counter(known[seed] for seed in seeds)
    print(dict(counts))
    assert not [seed for seed in seeds if known[seed] in ("silent", "crash")]
    assert counts["match"] >= MATCHED * count
