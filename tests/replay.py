"""What each piece of a network writes into its representation, told by the network itself: recorded, then replayed.

A network that is written with a `Recorder` names two sorts of places in its own forward pass. A *source* is where a
piece begins: the output of an attention head, the last activation of an MLP or a convolution branch, the embedding.
What is *held* are the statistics of norms, attention that a live value passes through, gates, and which entries win a
maximum. With everything held, the representation is affine in the sources. So the network runs once to record, and
once more with all sources replayed, where each copy of the images lacks another source; the differences are the
contributions, and what is left without any source is the bias. Nothing here knows a graph, a rule or a plan.

The recorder is off unless it records or replays, and then every place gives back the very tensor it is given: the
network that is exported is the plain one.

What is a source, and what is held, is the convention of `docs/decomposition.md`:

* a class token, registers and positions count as embedding, wherever they enter the residual stream;
* everything in front of the first block is embedding, norms and nonlinearities of the stem included;
* a bias below a source belongs to the source (biases of values, of an MLP's first layer); all others, and the shift
  of each norm on the way, are biases;
* a branch that is linear all through is a piece of its own (`linear`; `conv` if it mixes neighbours), and what it
  reads is replayed for it: it is not passed on to what wrote there;
* a pool without weights belongs to the trunk; in a maximum the winners are held;
* a product such as SwiGLU's is one source; a gate that is computed by squeeze-excite, beside attention or in a highway
  is held;
* attention by which alone another stream is read (attention pooling, class attention) is held and passed through;
* a nonlinearity on the trunk is a source of kind `lumped`: nothing below it can be told apart.

Where a reading is truly open, the network asks `Recorder.reads_as(name)`, and both answers are right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["head", "mlp", "conv", "linear", "embed", "lumped"]
Layout = Literal["whole", "major", "minor", "outer"]


class OracleError(Exception):
    """The oracle does not close: a network of this file is written wrongly, whatever the code under test does."""


@dataclass(frozen=True)
class Piece:
    """One source and its contribution.

    Attributes:
        path: The module it is computed in.
        block: The block around that module; empty where it lies in none.
        kind: What it must be called.
        head: Its number among the heads of its layer.
        turn: Which application of its module, from 0.
        order: Its place in the order of execution.
        group: Pieces of one group may also come as a single component, their sum.
        numbered: Whether the plan must use the same head number.
        value: `[image, dim]`.
    """

    path: str
    block: str
    kind: Kind
    head: int | None
    turn: int
    order: int
    group: str
    numbered: bool
    value: Tensor = field(repr=False)

    def __str__(self) -> str:
        head = "" if self.head is None else f" {'head' if self.kind == 'head' else 'mlp, expert'} {self.head}"
        turn = f" (pass {self.turn})" if self.turn else ""
        return f"{self.path or 'the network'} {self.kind if self.head is None else ''}{head}{turn}".replace("  ", " ")


@dataclass(frozen=True)
class Truth:
    """What the oracle says of one network and batch.

    Attributes:
        pieces: Every source.
        bias: All that is left without any source, `[image, dim]`.
        representation: What the network gives.
        attentions: For each attention layer, how many layers it may count as.
        passed: Modules whose attention is held and passed through, above everything that cannot be told apart.
        open: The names of the readings that are open in this network.
        leaves: For each module, how many sources had been met when it was left for the last time.
    """

    pieces: tuple[Piece, ...]
    bias: Tensor
    representation: Tensor
    attentions: tuple[tuple[int, ...], ...]
    passed: tuple[str, ...]
    open: frozenset[str]
    leaves: dict[str, int]


@dataclass
class _Site:
    """A place where a source is: its columns among the pieces, and how its heads lie on an axis."""

    value: Tensor
    columns: slice
    heads: int
    axis: int
    layout: Layout


class Recorder:
    """The places of one network; see the module."""

    def __init__(self) -> None:
        self.mode: Literal["off", "record", "replay"] = "off"
        self._reset()

    def _reset(self) -> None:
        self.sites: list[_Site] = []
        self.held: list[Tensor] = []
        self.labels: list[tuple[nn.Module, Kind, int | None, int, int, str, bool]] = []
        self.attentions: list[tuple[int, ...]] = []
        self.passing: list[tuple[nn.Module, int]] = []
        self.asked: set[str] = set()
        self.readings: frozenset[str] = frozenset()
        self.coefficients = torch.ones(1, 0, dtype=torch.float64)
        self._turns: Counter[tuple[int, str]] = Counter()
        self._embed: int | None = None
        self._places = [0, 0, 0]
        self.entries: list[bool] = []
        self.watched: dict[nn.Module, Tensor] = {}
        self.nudges: Tensor | None = None

    # What a network calls -------------------------------------------------------------------------------------------

    @property
    def works(self) -> bool:
        """Whether this run is not the plain one, so that a fused operation must be written out."""
        return self.mode != "off"

    def source(
        self,
        value: Tensor,
        owner: nn.Module,
        kind: Kind,
        *,
        heads: int = 0,
        axis: int = 1,
        layout: Layout = "whole",
        group: str = "",
        number: int | None = None,
        part: int = 0,
    ) -> Tensor:
        """A piece, or one for each head.

        Args:
            value: Images (or windows of one after the other) on its first axis.
            owner: The module that computes it.
            heads: How many heads lie on `axis`: one for each entry (`whole`), with their channels inside (`major`) or
                outside (`minor`); `outer`: on the first axis, outside the images.
            group: Pieces of one group (and one head) may come as one component.
            number: The number of a head that is a piece of its own.
            part: Which of several sources that a module has in one pass.
        """
        if self.mode == "off":
            return value
        if layout == "outer":
            value = value.unflatten(0, (heads, -1)).transpose(0, 1).flatten(0, 1)
            value = self._source(value, owner, kind, heads, 0, "minor", group, number, part)
            return value.unflatten(0, (-1, heads)).transpose(0, 1).flatten(0, 1)
        return self._source(value, owner, kind, heads, axis % value.ndim, layout, group, number, part)

    def entry(self, value: Tensor, owner: nn.Module) -> Tensor:
        """A value that is still embedding, if nothing was written before; or what follows is the trunk already."""
        if self.mode == "record":
            self.entries.append(all(label[1] == "embed" for label in self.labels))
        elif self.mode == "replay":
            self._places[2] += 1
        first = self.mode != "off" and self.entries[self._places[2] - 1]
        reads = first and self.reads_as("a norm in front of the first sum is embedding")
        return self.source(value, owner, "embed") if reads else value

    def hold(self, value: Tensor) -> Tensor:
        """A value that is kept as it was recorded."""
        if self.mode == "off":
            return value
        if self.mode == "record":
            self.held.append(value.clone())
            return value
        self._places[1] += 1
        return _repeated(self.held[self._places[1] - 1], len(self.coefficients))

    def attention(self, *layers: int) -> None:
        """Counts an attention layer; it may count as any of these numbers of layers (1 if none is given)."""
        if self.mode == "record":
            self.attentions.append(layers or (1,))

    def passes(self, owner: nn.Module) -> None:
        """Counts an attention layer by which alone another stream is read."""
        if self.mode == "record":
            self.attentions.append((1,))
            self.passing.append((owner, len(self.sites)))

    def reads_as(self, name: str) -> bool:
        """Whether an open question is answered the other way."""
        if self.mode == "record":
            self.asked.add(name)
        return name in self.readings

    def watch(self, owner: nn.Module, tokens: Tensor) -> None:
        """Notes the tokens that an attention reads, in its own order: `[rows, token, channel]`."""
        if self.mode == "replay":
            self.watched[owner] = tokens

    # Running ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def running(self, mode: Literal["record", "replay"], coefficients: Tensor | None = None):
        self.mode, self._places = mode, [0, 0, 0]
        if coefficients is not None:
            self.coefficients = coefficients
        try:
            yield
        finally:
            self.mode = "off"

    def _source(
        self,
        value: Tensor,
        owner: nn.Module,
        kind: Kind,
        heads: int,
        axis: int,
        layout: Layout,
        group: str,
        number: int | None,
        part: int,
    ) -> Tensor:
        if self.mode == "record":
            count = heads or 1
            if kind == "embed" and self._embed is not None:
                columns = slice(self._embed, self._embed + 1)
            else:
                columns = slice(len(self.labels), len(self.labels) + count)
                if kind == "embed":
                    self._embed = columns.start
                turn_of = (id(owner), f"{kind}{group}{number}{part}")
                turn, order = self._turns[turn_of], len(self.sites)
                self._turns[turn_of] += 1
                for head in range(heads) if heads else [number]:
                    self.labels.append((owner, kind, head, turn, order, group, number is None))
            self.sites.append(_Site(value.clone(), columns, heads, axis, layout))
            return value
        self._places[0] += 1
        site = self.sites[self._places[0] - 1]
        if kind == "embed" and self.nudges is not None:
            return torch.cat([site.value, (site.value[:, None] + self.nudges).flatten(0, 1)])
        copies, rows = len(self.coefficients), len(site.value)
        weights = self.coefficients[:, site.columns]
        repeated = _repeated(site.value, copies)
        if not site.heads:
            return repeated * weights.repeat_interleave(rows, 0).reshape(-1, *[1] * (repeated.ndim - 1))
        inside = site.value.shape[site.axis] // site.heads
        weights = weights.repeat_interleave(inside, 1) if site.layout == "major" else weights.repeat(1, inside)
        if site.axis == 0:
            return repeated * weights.reshape(-1, *[1] * (repeated.ndim - 1))
        shape = [len(repeated)] + [1] * (repeated.ndim - 1)
        shape[site.axis] = weights.shape[1]
        return repeated * weights.repeat_interleave(rows, 0).reshape(shape)


def truth(network: nn.Module, images: Tensor, readings: Iterable[str] = ()) -> Truth:
    """The contribution of every source of a network.

    Args:
        network: With a `recorder` that all its parts share, and `blocks_at`, the paths of its blocks.
        images: In the network's dtype.
        readings: The open questions that are answered the other way.

    Raises:
        OracleError: What is written for the recorder differs from the plain network, or the sources and the bias do
            not add up, or the replayed network is not affine in the sources.
    """
    recorder: Recorder = network.recorder
    recorder._reset()
    recorder.readings = frozenset(readings)
    leaves: dict[str, int] = {}
    with torch.no_grad():
        plain = network(images)
        hooks = [
            module.register_forward_hook(_leave(path, leaves, recorder)) for path, module in network.named_modules()
        ]
        with recorder.running("record"):
            recorded = network(images)
        for hook in hooks:
            hook.remove()
        size = plain.norm(dim=-1, keepdim=True)
        _close(recorded, plain, size, "written out for the recorder, the network is another one")
        count = len(recorder.labels)
        generator = torch.Generator().manual_seed(0)
        mixed = 2 * torch.rand(1, count, generator=generator, dtype=torch.float64)
        everything = torch.ones(1, count, dtype=torch.float64)
        without = 1 - torch.eye(count, dtype=torch.float64)
        with recorder.running("replay", torch.cat([everything, mixed, 0 * everything, without])):
            runs = network(_repeated(images, count + 3)).unflatten(0, (count + 3, -1))
    whole, mixture, bias, rest = runs[0], runs[1], runs[2], runs[3:]
    values = whole - rest
    scale = torch.maximum(size, values.norm(dim=-1, keepdim=True).amax(0))
    _close(whole, plain, scale, "replayed, the network gives something else")
    _close(values.sum(0) + bias, plain, scale, "the sources and the bias do not add up")
    _close(torch.einsum("p,pbd->bd", mixed[0], values) + bias, mixture, scale, "it is not affine in its sources")
    paths = {id(module): path for path, module in network.named_modules()}
    pieces = tuple(
        Piece(
            paths[id(owner)],
            _block(paths[id(owner)], network.blocks_at),
            kind,
            head,
            turn,
            order,
            group,
            numbered,
            value,
        )
        for (owner, kind, head, turn, order, group, numbered), value in zip(recorder.labels, values, strict=True)
    )
    opaque = max((piece.order for piece in pieces if piece.kind == "lumped"), default=-1)
    return Truth(
        pieces,
        bias,
        plain,
        tuple(recorder.attentions),
        tuple(paths[id(owner)] for owner, order in recorder.passing if order > opaque),
        frozenset(recorder.asked),
        leaves,
    )


Place = tuple[int, int] | Literal["prefix", "padding"]


def places(network: nn.Module, image: Tensor, height: int, width: int) -> dict[str, list[Place]]:
    """Where the tokens that each attention layer reads come from, by nudging one token of the embedding after another.

    With all sources replayed and all statistics held, a nudge travels along the trunk alone.

    Args:
        network: As for `truth`; its embedding is a map, or tokens with the prefix in front.
        image: One image.
        height, width: The embedding's grid.

    Returns:
        For each attention's module, the row and column on the embedding's grid that moves each of its tokens most; or
        that it is a prefix token, or padding that nothing moves.
    """
    recorder: Recorder = network.recorder
    truth(network, image)
    entering = recorder.sites[0].value
    count = entering[0, 0].numel() if entering.ndim == 4 else entering.shape[1]
    prefix = count - height * width
    nudge = torch.eye(count, dtype=image.dtype)[:, :, None] * (
        torch.arange(entering.numel() // count).to(image) % 3 + 1
    )
    recorder.nudges = nudge.transpose(1, 2).reshape(count, *entering.shape[1:]) if entering.ndim == 4 else nudge
    recorder.watched.clear()
    with torch.no_grad(), recorder.running("replay", torch.ones(count + 1, len(recorder.labels)).to(image)):
        network(_repeated(image, count + 1))
    recorder.nudges = None
    paths = {module: path for path, module in network.named_modules()}
    told = {}
    for module, tokens in recorder.watched.items():
        moved = tokens.reshape(count + 1, -1, tokens.shape[-1])
        most, origin = (moved[1:] - moved[:1]).norm(dim=-1).max(0)
        told[paths[module]] = [
            "padding" if not size else "prefix" if token < prefix else divmod(token - prefix, width)
            for size, token in zip(most.tolist(), origin.tolist(), strict=True)
        ]
    return told


def _leave(path: str, leaves: dict[str, int], recorder: Recorder) -> Callable[..., None]:
    def hook(*_: object) -> None:
        leaves[path] = len(recorder.sites)

    return hook


def _block(path: str, blocks: Iterable[str]) -> str:
    around = [block for block in blocks if path == block or path.startswith(f"{block}.")]
    return max(around, key=len, default="")


def _close(left: Tensor, right: Tensor, scale: Tensor, what: str) -> None:
    error = float(((left - right).norm(dim=-1, keepdim=True) / scale).max())
    if not error < 1e-12:
        raise OracleError(f"{what} (relative error {error:.1e})")


def _repeated(rows: Tensor, copies: int) -> Tensor:
    return rows.repeat(copies, *[1] * (rows.ndim - 1))
