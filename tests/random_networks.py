"""Random residual networks, and whether a plan tells the truth about them.

    python tests/random_networks.py SEED                          what the network is, and the verdict
    python tests/random_networks.py --table 0 500 --workers 1     verdicts by feature
    python tests/random_networks.py --case "form: x += f"         a fixed case of the tests
    python tests/random_networks.py --fixed form "x += f"         one construction on an otherwise plain network

A seed decides everything: a stem, tokens and positions, one to three blocks of constructions that people use (see
`parts`, `attentions`, `branches`, `trunks`), what lies between them, and a readout. Half of the seeds draw common
constructions alone. The truth comes from `replay`, the verdict from `verdicts`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from attentions import ATTENDS, ATTENTIONS, HEAD_NORMS, MERGES, SPLITS, WINDOWS
from branches import CONVS, LINEARS, MLPS
from parts import ACTS, MAP_NORMS, NORMS, Choices, Option, Setting, Table, option, parameter, randomise
from replay import Recorder
from trunks import (
    BLOCKS,
    FLATTENS,
    FORMS,
    PARALLELS,
    POSITIONS,
    PREFIXES,
    READOUTS,
    STEMS,
    TAILS,
    TRANSITIONS,
)
from verdicts import compare

SHAPES = ((16, 16, 8), (16, 16, 4), (16, 24, 8), (24, 16, 8), (8, 16, 4), (16, 8, 4), (24, 24, 8), (12, 18, 6))

TRUNKS: Table = {}
CONTAINERS = ["ModuleList", "Sequential", "ModuleDict", "attributes", "stages"]


class Network(nn.Module):
    """One network of the language.

    Attributes:
        recorder: Shared by all parts.
        drawn: Every choice: category, name, place.
        exotic: The rare ones among the names.
        blocks_at: Module paths of the blocks.
    """

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self.recorder, self.drawn, self.exotic = Recorder(), choices.drawn, choices.rare
        layout = choices.value("layout", ["tokens", "tokens", "map"])
        height, breadth, patch = choices.value("shape", list(SHAPES))
        self.size = (height, breadth)
        width = choices.value("width", [12, 8])
        heads = choices.value("heads", [2, 4] if width == 8 else [3, 2, 4])
        s = Setting(self.recorder, choices, width, heads, height // patch, breadth // patch, layout=layout)
        stems = {name: entry for name, entry in STEMS.items() if entry.make.maps or layout == "tokens"}
        self.embed = s.pick("stem", stems).make(s, patch, self.size)
        self.flatten: Option | None = None
        if layout == "tokens":
            self.flatten = s.pick("flatten", FLATTENS) if self.embed.maps else None
            self.prefix = s.pick("prefix", PREFIXES).make(width)
            s = replace(s, prefix=self.prefix.count)
        self.positions = s.pick("positions", POSITIONS).make(s)
        self.before = choices.value("before", ["nothing", "LayerNorm", "dropout"]) if layout == "tokens" else "nothing"
        if self.before == "LayerNorm":
            self.norm_pre = nn.LayerNorm(width)
        elif self.before == "dropout":
            self.norm_pre = nn.Dropout(0.1)
        blocks, self.transitions = [], nn.ModuleList()
        depth = choices.value("depth", [1, 1, 1, 1, 1, 1, 2, 2, 2, 3])
        self.trunk = choices.pick("trunk", TRUNKS, s)
        row = self.trunk.make is _in_a_row
        for number in range(depth):
            at = replace(s, at=f"block{number}")
            blocks.append(at.pick("block", BLOCKS).make(at))
            if number + 1 < depth and row:
                transition = at.pick("transition", TRANSITIONS).make(at)
                self.transitions.append(transition)
                s = replace(transition.after, at="")
        self._contain(blocks, choices.value("container", CONTAINERS))
        self.order = blocks
        if self.trunk.setup:
            self.trunk.setup(self, s)
        readout = s.pick("readout", READOUTS).make(s)
        self.readout, self.tail = readout, s.pick("tail", TAILS).make(s, readout.width)
        self.blocks_at = tuple(
            path for path, module in self.named_modules() if any(module is block for block in blocks)
        )

    def _contain(self, blocks: list[nn.Module], container: str) -> None:
        if container == "ModuleList":
            self.blocks = nn.ModuleList(blocks)
        elif container == "Sequential":
            self.layers = nn.Sequential(*blocks)
        elif container == "ModuleDict":
            self.encoder = nn.ModuleDict({f"layer_{number}": block for number, block in enumerate(blocks)})
        elif container == "stages":
            self.stages = nn.Sequential(*(nn.Sequential(block) for block in blocks))
        else:
            for number, block in enumerate(blocks):
                setattr(self, f"block{number + 1}", block)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        if self.flatten is not None:
            x = self.flatten.make(x)
        if hasattr(self, "prefix"):
            x = self.prefix(x)
        x = self.positions(x)
        if self.before != "nothing":
            x = self.norm_pre(x)
        x = self.recorder.source(x, self, "embed")
        x = self.trunk.make(self, x)
        return self.tail(self.readout(x))

    def describe(self) -> str:
        """What was drawn, place by place."""
        places: dict[str, list[str]] = defaultdict(list)
        for category, name, at in self.drawn:
            places[at].append(f"{category}: {name}")
        return "\n".join(f"  {at or 'network'}: " + "; ".join(words) for at, words in places.items())


@option(TRUNKS, "in a row", weight=8)
def _in_a_row(network: Network, x: Tensor) -> Tensor:
    for number, block in enumerate(network.order):
        x = block(x)
        if number < len(network.transitions):
            x = network.transitions[number](x)
    return x


@option(TRUNKS, "the first block once more")
def _(network: Network, x: Tensor) -> Tensor:
    for block in [*network.order, network.order[0]]:
        x = block(x)
    return x


@option(TRUNKS, "each block twice", exotic=True)
def _(network: Network, x: Tensor) -> Tensor:
    for block in network.order:
        x = block(block(x))
    return x


@option(TRUNKS, "long skip, added", exotic=True)
def _(network: Network, x: Tensor) -> Tensor:
    """The skipped stream goes on twice; or what lies between is a branch, which hands on a part of it."""
    first, *rest = network.order if len(network.order) > 1 else (nn.Identity(), *network.order)
    skip = x = first(x)
    if network.recorder.reads_as("a long skip makes what lies between a branch"):
        x = network.recorder.source(x, network, "linear")
    for block in rest:
        x = block(x)
    return x + skip


def _skip(network: Network, s: Setting) -> None:
    network.skip = nn.Conv2d(2 * s.width, s.width, 1) if s.layout == "map" else nn.Linear(2 * s.width, s.width)


@option(TRUNKS, "long skip, concatenated", setup=_skip, exotic=True)
def _(network: Network, x: Tensor) -> Tensor:
    skip = x
    for block in network.order:
        x = block(x)
    return network.skip(torch.cat([x, skip], 1 if x.ndim == 4 else -1))


def _weights(network: Network, s: Setting) -> None:
    network.scale_depth = parameter(len(network.order) + 1)


@option(TRUNKS, "weighted mean of all depths", setup=_weights, exotic=True)
def _(network: Network, x: Tensor) -> Tensor:
    streams = [x]
    for block in network.order:
        streams.append(block(streams[-1]))
    weights = network.scale_depth.softmax(0)
    return sum(weights[number] * stream for number, stream in enumerate(streams))


def build(choices: Choices, seed: int) -> Network:
    """A network with random weights in float64, in evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(choices).double().eval().requires_grad_(False)
    randomise(network, seed)
    return network


def network_of(seed: int) -> Network:
    """The network of a seed; every other one is of common constructions alone."""
    return build(Choices(seed, exotic=0.3 if seed % 2 else 0.0), seed)


def fixed(choices: Mapping[str, str], seed: int = 0) -> Network:
    """A plain network but for these entries (category, or place and category, to name)."""
    made = Choices(seed, fixed=choices, plain=True)
    network = build(made, seed)
    unused = set(choices) - made.used
    assert not unused, f"never drawn: {unused}"
    return network


def images_of(network: Network, seed: int = 0, count: int = 2) -> Tensor:
    """Random images of the network's size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *network.size, generator=generator, dtype=torch.float64)


# One construction for each network ----------------------------------------------------------------------------------

_FORCED = {
    "grid": {"prefix": "none", "readout": "norm, mean"},
    "map": {"layout": "map"},
    "pairs": {"shape": "(16, 16, 4)"},
    "even": {},
    "several": {},
    "tokens": {},
    "prefix": {},
    "whole": {},
    "heads": {},
    "square": {},
}


def _cases() -> dict[str, dict[str, str]]:
    """By readable name, what is not plain about a network: every construction once."""
    made: dict[str, dict[str, str]] = {}

    def enter(category: str, table: Table, **around: str) -> None:
        for name, entry in table.items():
            needs = sorted(entry.needs - {"grid"} if "layout" in around or "map" in entry.needs else entry.needs)
            forced = {key: value for need in needs for key, value in _FORCED[need].items()}
            made[f"{category}: {name}"] = {**forced, **around, around.get("at", category): name}
            made[f"{category}: {name}"].pop("at", None)

    two = {"depth": "2"}
    enter("form", FORMS, at="block0.form", **two)
    enter(
        "map form",
        {name: entry for name, entry in FORMS.items() if "tokens" not in entry.needs},
        at="block0.form",
        layout="map",
        block="convolution, MLP",
        **two,
    )
    enter("parallel", PARALLELS, block="parallel attention and MLP", **two)
    enter("block", BLOCKS, at="block0.block", **two)
    enter("split", SPLITS)
    enter("attend", ATTENDS)
    enter("merge", MERGES)
    enter("window", WINDOWS)
    enter("attention", ATTENTIONS, at="attn")
    enter("mlp", MLPS)
    enter("act", ACTS)
    enter("conv", CONVS, block="convolution, MLP", prefix="none", readout="norm, mean")
    enter(
        "map conv",
        {name: entry for name, entry in CONVS.items() if "tokens" not in entry.needs},
        at="conv",
        block="convolution, MLP",
        layout="map",
    )
    enter("linear", LINEARS, block="linear, attention, MLP")
    enter("norm", NORMS)
    enter("final norm", NORMS)
    enter("map norm", MAP_NORMS, at="norm", layout="map", block="convolution, MLP")
    enter("final map norm", MAP_NORMS, at="final norm", layout="map", block="convolution, MLP")
    enter("post-norm", NORMS, at="norm", form="n(x + f(x))", **two)
    enter("head norm", HEAD_NORMS, merge="a norm on each head")
    enter("stem", STEMS)
    enter("flatten", FLATTENS)
    enter("prefix", PREFIXES)
    enter("positions", POSITIONS)
    enter("transition", TRANSITIONS, **two)
    enter("trunk", TRUNKS, **two)
    enter("readout", READOUTS)
    enter("tail", TAILS)
    for name in ("prefix: none", *(key for key in made if made[key].get("prefix") == "none")):
        made[name].setdefault("readout", "norm, mean")
    return made


CASES = _cases()

_PARALLEL = {"block": "parallel attention and MLP"}
_ALL_ADDCMUL = {"form": "addcmul(x, gamma, f)"}

KNOWN: dict[str, dict[str, str]] = {
    "one parallel block": {**_PARALLEL, "depth": "1"},
    "three parallel blocks": {**_PARALLEL, "depth": "3"},
    "three parallel blocks, MLP first": {**_PARALLEL, "depth": "3", "parallel": "x + m + a"},
    "three parallel blocks in place, one norm": {
        **_PARALLEL,
        "depth": "3",
        "parallel": "x += a; x += m",
        "parallel norm": "shared",
    },
    "parallel blocks, pooled": {**_PARALLEL, "depth": "2", "prefix": "none", "readout": "norm, mean"},
    "parallel attentions and MLPs, twice": {"block": "parallel attentions, parallel MLPs", "depth": "2"},
    "addcmul in every block": {**_ALL_ADDCMUL, "depth": "3"},
    "a plain block, then addcmul": {"depth": "2", "block1.form": "addcmul(x, gamma, f)"},
    "addcmul around attention without softmax, then a plain block": {
        "depth": "2",
        "block0.form": "addcmul(x, gamma, f)",
        "block0.attend": "sigmoid attention",
    },
    "Linear(cat(x, f)) below two plain blocks": {"depth": "3", "block0.form": "Linear(cat([x, f]))"},
    "attention without softmax in every block": {"depth": "2", "attend": "exp over sum"},
    "a norm on each head in every block": {"depth": "2", "merge": "a norm on each head"},
    "differential attention with a norm on each head": {
        "attend": "differential, weights subtracted",
        "merge": "a norm on each head",
    },
    "retention with GroupNorm and a gate": {"attend": "retention", "merge": "GroupNorm over heads"},
    "heads unbound and concatenated, windows": {
        "prefix": "none",
        "readout": "norm, mean",
        "shape": "(16, 16, 4)",
        "window": "shifted windows",
        "merge": "cat of unbound heads",
    },
    "a block applied twice": {"trunk": "each block twice", "depth": "1", "block": "attention, MLP"},
    "parallel blocks applied twice": {**_PARALLEL, "trunk": "each block twice", "depth": "1"},
    "functional experts behind attention": {"mlp": "experts by einsum", "depth": "2"},
    "functional experts by matmul, pooled": {
        "mlp": "experts by einsum, gathered by matmul",
        "prefix": "none",
        "readout": "norm, mean",
    },
    "a LayerNorm with x-m twice everywhere": {
        "norm": "(x-m)*rsqrt(mean((x-m)**2)+eps)",
        "final norm": "(x-m)*rsqrt(mean((x-m)**2)+eps)",
        "form": "n(x + f(x))",
    },
    "x[:, 0] written in both blocks": {"depth": "2", "form": "x[:, 0] = x[:, 0] + f[:, 0]"},
    "a masked sum in both blocks, max over tokens": {
        "depth": "2",
        "form": "where(mask, x + f, x)",
        "readout": "norm, max over tokens",
    },
    "a max over tokens behind parallel blocks": {**_PARALLEL, "readout": "norm, max over tokens"},
    "U-Net of feature maps": {
        "layout": "map",
        "trunk": "long skip, concatenated",
        "block": "convolution, MLP",
        "depth": "2",
    },
}
CASES |= {f"known: {name}": choices for name, choices in KNOWN.items()}


# Command ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One seed (or case), judged."""

    seed: int | str
    kind: str
    lines: tuple[str, ...]
    drawn: tuple[tuple[str, str], ...]
    seconds: float = field(compare=False)

    def as_dict(self) -> dict[str, object]:
        """Ready for a line of JSON."""
        return {"seed": self.seed, "kind": self.kind, "lines": self.lines, "drawn": self.drawn}

    @property
    def again(self) -> str:
        """What to type to see it."""
        which = self.seed if isinstance(self.seed, int) else f'--case "{self.seed}"'
        return f"python tests/random_networks.py {which}"


def judge(seed: int | str) -> Outcome:
    """The verdict of one seed, or of one of `CASES`."""
    start = time.process_time()
    network = network_of(seed) if isinstance(seed, int) else fixed(CASES[seed])
    verdict = compare(network, images_of(network))
    drawn = tuple(dict.fromkeys((category, name) for category, name, _ in network.drawn))
    return Outcome(seed, verdict.kind, verdict.lines, drawn, time.process_time() - start)


CLASSES = ("match", "said", "silent", "error", "crash")


def table(outcomes: Iterable[Outcome]) -> str:
    """How often each class of verdict came, in all and by feature."""
    outcomes = list(outcomes)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        for feature in outcome.drawn:
            counts[feature][outcome.kind] += 1
    whole = Counter(outcome.kind for outcome in outcomes)
    lines = [f"{'':60s}" + "".join(f"{name:>8s}" for name in CLASSES)]
    lines.append(f"{'all':60s}" + "".join(f"{whole[name]:8d}" for name in CLASSES))
    for category in dict.fromkeys(category for category, _ in sorted(counts)):
        lines.append(category)
        for (other, name), count in sorted(counts.items()):
            if other == category:
                lines.append(f"  {name:58.58s}" + "".join(f"{count[kind]:8d}" for kind in CLASSES))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="?", help="print this seed's network and verdict")
    parser.add_argument("--table", type=int, nargs=2, metavar=("START", "COUNT"), help="verdicts of many, by feature")
    parser.add_argument("--cases", metavar="CATEGORY", help="verdicts of all cases of a category, by feature")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--case", help="a fixed case by name, such as 'mlp: SwiGLU'")
    parser.add_argument("--fixed", nargs="+", default=[], metavar="CATEGORY NAME", help="a plain network but for these")
    parser.add_argument("--json", help="write one line for each seed to this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.table or given.cases:
        seeds: list[int | str] = [name for name in CASES if name.partition(":")[0] == given.cases]
        if given.table:
            seeds = list(range(given.table[0], sum(given.table)))
        if given.workers > 1:
            with ProcessPoolExecutor(given.workers) as pool:
                outcomes = list(pool.map(judge, seeds, chunksize=8))
        else:
            outcomes = [judge(seed) for seed in seeds]
        if given.json:
            lines = [json.dumps(outcome.as_dict()) + "\n" for outcome in outcomes]
            Path(given.json).write_text("".join(lines))
        print(table(outcomes))
        seconds = sorted(outcome.seconds for outcome in outcomes)
        mean = sum(seconds) / len(seconds)
        print(f"CPU seconds for each network: median {seconds[len(seconds) // 2]:.2f}, mean {mean:.2f}")
        for kind in ("crash", "error", "silent"):
            print(kind, [outcome.seed for outcome in outcomes if outcome.kind == kind])
        return
    if given.case:
        network = fixed(CASES[given.case])
    elif given.fixed:
        network = fixed(dict(zip(given.fixed[::2], given.fixed[1::2], strict=True)))
    else:
        network = network_of(given.seed or 0)
    print(network.describe())
    print(compare(network, images_of(network)))


if __name__ == "__main__":
    sys.exit(main())
