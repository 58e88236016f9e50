"""The slow, obvious twin of the decomposition: take one piece away, run the model again, look at the difference.

Contributions are direct. The model is run once, and the output of every branch and the statistic of every norm on the
trunk are written down. Then it is run again with every branch held at its recorded value, every norm of the trunk at
its recorded statistic (`(x - mean(x)) * recorded 1/std * weight + bias`, the mean stays live), every attention on the
trunk at its recorded probabilities, and one piece missing. The difference to the recorded representation is the
piece's contribution. Nothing here knows the graph, the rules or the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from families import Branch, Family, Reading, core

Name = tuple[str, str, int | None, int | None]
"""Path, kind, head and token of a component; in windowed attention a token is its cell on the layer's grid."""


@dataclass
class Change:
    """What is different in one run from the recorded one."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Values put in place of the recorded outputs of branch modules."""
    zeroed: set[str] = field(default_factory=set)
    """Modules whose output is zero: a whole branch is gone."""
    unbiased: set[str] = field(default_factory=set)
    """Trunk modules whose bias is gone."""
    no_entry: bool = False
    """Nothing enters the residual stream."""
    own: dict[str, Tensor] = field(default_factory=dict)
    """Values of the class token in place of the recorded ones, in attention on the trunk."""
    unbiased_values: set[str] = field(default_factory=set)
    """Attention on the trunk whose value projection has lost its bias on the tokens that are passed through."""
    copies: int = 1
    """How many times the batch is repeated, each with its own part of `outputs`: many small removals in one run."""


class Oracle:
    """Contributions of every component of one tiny model on one batch, by removing it.

    Args:
        family: The model's parts.
        readout: The model, `family.make()`.
        images: `[image, 3, size, size]`, of the model's dtype.
    """

    def __init__(self, family: Family, readout: nn.Module, images: Tensor) -> None:
        self.family, self.readout, self.images = family, readout, images
        self.model = core(readout)
        self._arguments: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {}
        self._outputs: dict[str, object] = {}
        self._scales: dict[str, Tensor] = {}
        self._attention: dict[str, tuple[Tensor, Tensor]] = {}
        self.representation = self._record()

    def contributions(self) -> dict[Name, Tensor]:
        """Every component at head level: heads, MLPs, convolutions, embedding and biases, each `[image, dim]`."""
        found: dict[Name, Tensor] = {}
        for branch in self.family.branches:
            whole = self._without(Change(zeroed={branch.end or branch.source}))
            pieces = {
                (branch.path, "head" if branch.heads else branch.kind, head, None): self._piece(branch, head)
                for head in (range(branch.heads) if branch.heads else [None])
            }
            found |= pieces
            found[branch.path, "bias", None, None] = whole - sum(pieces.values())
        for reading in self.family.readings:
            found |= self._reading(reading)
        tails = {end for branch in self.family.branches for end in (branch.source, branch.end)}
        for path in (*self.family.norms, *self.family.affine):
            if path not in tails and path not in {reading.norm for reading in self.family.readings}:
                found[path, "bias", None, None] = self._without(Change(unbiased={path}))
        found["embed", "embed", None, None] = self._without(Change(no_entry=True))
        return found

    def tokens(self) -> dict[Name, Tensor]:
        """Every attention head split by the token it reads, and every MLP split by token, each `[image, dim]`."""
        found: dict[Name, Tensor] = {}
        for branch in self.family.branches:
            if branch.heads:
                found |= self._each(branch.source, self._head_tokens(branch))
            elif branch.kind == "mlp":
                found |= self._each(branch.source, self._mlp_tokens(branch))
        return found

    def neurons(self) -> dict[Name, Tensor]:
        """Every MLP split by hidden neuron (in the place of the token), each `[image, dim]`."""
        found: dict[Name, Tensor] = {}
        for branch in self.family.branches:
            if branch.kind == "mlp":
                found |= self._each(branch.source, self._mlp_neurons(branch))
        return found

    # One piece -------------------------------------------------------------------------------------------------------

    def _piece(self, branch: Branch, head: int | None) -> Tensor:
        """One head's, or the whole activation's, contribution: its slice of what enters `branch.source` is zeroed."""
        if branch.weight is not None:
            weight = self.model.get_submodule(branch.weight).weight
            kept = weight.clone()
            weight[:, self._slice(weight.shape[1], branch, head)] = 0
            try:
                without = self._apply(branch.source, *self._arguments[branch.source][0])
            finally:
                weight.copy_(kept)
        else:
            entering = self._entering(branch).clone()
            width = entering.shape[branch.axis]
            entering.movedim(branch.axis, -1)[..., self._slice(width, branch, head)] = 0
            without = self._apply(branch.source, entering)
        return self._without(Change(outputs={branch.source: without}))

    @staticmethod
    def _slice(width: int, branch: Branch, head: int | None) -> slice:
        if head is None:
            return slice(None)
        return slice(head * width // branch.heads, (head + 1) * width // branch.heads)

    def _head_tokens(self, branch: Branch) -> Iterator[tuple[Name, Tensor]]:
        """What `source` puts out without one token's values in one head; its own output vouches for the writing."""
        written = self.family.tokens
        arguments, options = self._arguments[branch.path]
        probabilities, values = written.attend(self.model.get_submodule(branch.path), *arguments, **options)
        rows, heads, keys, width = values.shape
        if written.cells is None:
            cells = torch.arange(keys).expand(rows, keys)
        else:
            cells = written.cells(self.model, branch.path)
            cells = cells.repeat(rows // len(cells), 1)

        def merged(values: Tensor) -> Tensor:
            """The attention's output once more, with these values, as it enters the projection."""
            return (probabilities @ values).transpose(1, 2).reshape(rows, -1, heads * width)

        def project(merged: Tensor) -> Tensor:
            if branch.weight is None:
                return self._apply(branch.source, merged.reshape(self._entering(branch).shape))
            layer = self.model.get_submodule(branch.weight)
            projected = nn.functional.linear(merged, layer.weight, layer.bias)
            out = _tensor(self._outputs[branch.source])
            if written.cells is None:
                return projected
            flat = cells.reshape(len(out), -1)[0]  # windows go back to where they were, without what padded them
            placed = out.new_empty(out.shape)
            placed.flatten(1, -2)[:, flat[flat >= 0]] = projected.reshape(len(out), len(flat), -1)[:, flat >= 0]
            return placed

        torch.testing.assert_close(project(merged(values)), _tensor(self._outputs[branch.source]), rtol=1e-9, atol=1e-9)
        for head in range(heads):
            for cell in cells.unique().tolist():
                kept = values.clone()
                kept[:, head] = kept[:, head] * (cells != cell)[..., None]
                yield (branch.path, "head", head, cell), project(merged(kept))

    def _mlp_tokens(self, branch: Branch) -> Iterator[tuple[Name, Tensor]]:
        entering = self._entering(branch)
        written = self.family.tokens
        cells = written.cells(self.model, branch.path).flatten().tolist() if written.mlps else None
        for token in range(entering[0, ..., 0].numel()):
            kept = entering.clone()
            kept.flatten(1, -2)[:, token] = 0
            cell = cells[token] if cells else token
            yield (branch.path, branch.kind, None, cell), self._apply(branch.source, kept)

    def _mlp_neurons(self, branch: Branch) -> Iterator[tuple[Name, Tensor]]:
        entering = self._entering(branch)
        for neuron in range(entering.shape[branch.axis]):
            kept = entering.clone()
            kept.select(branch.axis, neuron).zero_()
            yield (branch.path, branch.kind, None, neuron), self._apply(branch.source, kept)

    def _reading(self, reading: Reading) -> dict[Name, Tensor]:
        """Heads that read the class token (biases left out), and the biases met on the way through."""
        values = self._attention[reading.module][1]
        found: dict[Name, Tensor] = {}
        if reading.own:
            own = values[:, :, : reading.own]
            shift = self.model.get_submodule(reading.norm).bias  # what enters where the class token is zero
            blank = shift.expand(len(own), values.shape[2], -1)
            biases = reading.attend(self.model.get_submodule(reading.module), blank)[1][:, :, : reading.own]
            for head in range(reading.heads):
                kept = own.clone()
                kept[:, head] = biases[:, head]
                found[reading.module, "head", head, None] = self._without(Change(own={reading.module: kept}))
            found[reading.module, "bias", None, None] = self._without(
                Change(
                    own={reading.module: own - biases},
                    unbiased_values={reading.module},
                    unbiased={reading.norm, reading.project},
                )
            )
            return found
        found[reading.values, "bias", None, None] = self._without(Change(unbiased_values={reading.module}))
        projection = self._without(Change(unbiased={reading.project}))
        name = (reading.project, "bias", None, None)
        found[name] = found.get(name, 0) + projection
        return found

    # Runs ------------------------------------------------------------------------------------------------------------

    def _without(self, change: Change) -> Tensor:
        """The recorded representation minus the representation of a run with the change."""
        with self._frozen(change):
            return _repeated(self.representation, change.copies) - self.readout(_repeated(self.images, change.copies))

    def _each(self, source: str, removals: Iterator[tuple[Name, Tensor]], together: int = 64) -> dict[Name, Tensor]:
        """The contribution of each of many pieces, given what `source` puts out without it; several in one run."""
        found: dict[Name, Tensor] = {}
        while group := list(islice(removals, together)):
            change = Change(outputs={source: torch.cat([without for _, without in group])}, copies=len(group))
            taken = self._without(change).chunk(len(group))
            found |= {name: part for (name, _), part in zip(group, taken, strict=True)}
        return found

    def _record(self) -> Tensor:
        norms, readings = self.family.norms, {reading.module: reading for reading in self.family.readings}
        sources = {path for branch in self.family.branches for path in (branch.source, branch.path)}
        paths = [*dict.fromkeys([*sources, *norms, *readings])]

        def recorder(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: tuple[object, ...], options: dict[str, object], out: object) -> None:
                assert path not in self._outputs, f"{path} runs twice"
                self._arguments[path], self._outputs[path] = (arguments, options), out
                if path in norms:
                    self._scales[path] = _scale(module, arguments[0])
                if path in readings:
                    self._attention[path] = readings[path].attend(module, *arguments)

            return hook

        with ExitStack() as stack:
            for path in paths:
                handle = self.model.get_submodule(path).register_forward_hook(recorder(path), with_kwargs=True)
                stack.callback(handle.remove)
            representation = self.readout(self.images)
        missing = {branch.source for branch in self.family.branches} | set(norms) | set(readings)
        assert not (missing - set(self._outputs)), f"never run: {missing - set(self._outputs)}"
        return representation

    @contextmanager
    def _frozen(self, change: Change) -> Iterator[None]:
        """The model with everything held at its recorded value, except for the change."""
        with ExitStack() as stack:

            def after(path: str, hook: Callable[..., object]) -> None:
                module = self.model.get_submodule(path)
                stack.callback(module.register_forward_hook(hook).remove)

            def before(path: str, hook: Callable[..., object]) -> None:
                module = self.model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

            for path in self.family.norms:
                after(path, self._freeze(path, change.copies))
            for path in change.unbiased - {reading.module for reading in self.family.readings}:
                after(path, self._take_bias)
            for reading in self.family.readings:
                self._freeze_reading(reading, change, after, before)
            for branch in self.family.branches:
                value = change.outputs.get(branch.source)
                if value is None:
                    value = _repeated(_tensor(self._outputs[branch.source]), change.copies)
                after(branch.source, _holder(value))
            for path in change.zeroed:
                after(path, _zero)
            if change.no_entry:
                for entry in self.family.entry:
                    kind, _, path = entry.partition(":")
                    if kind == "input":
                        before(path, _zero_first)
                    else:
                        parameter = self.model.get_parameter(path)
                        stack.callback(parameter.copy_, parameter.clone())
                        parameter.zero_()
            yield

    def _freeze(self, path: str, copies: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return _frozen_norm(module, arguments[0], _repeated(self._scales[path], copies))

        return hook

    @staticmethod
    def _take_bias(module: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> Tensor:
        axis = 1 if isinstance(module, nn.Conv2d) else _channels(module, out)
        return out - module.bias.reshape([-1] + [1] * (out.ndim - 1 - axis))

    def _freeze_reading(self, reading: Reading, change: Change, after: Callable, before: Callable) -> None:
        """The attention on the trunk runs again with recorded probabilities; what it passes on is live."""
        probabilities, recorded = (_repeated(part, change.copies) for part in self._attention[reading.module])
        module = self.model.get_submodule(reading.module)
        live: dict[str, Tensor] = {}

        def read(arguments: tuple[Tensor, ...]) -> Tensor:
            values = reading.attend(module, *arguments)[1]
            if reading.module in change.unbiased_values:
                values = values - reading.attend(module, *(torch.zeros_like(tokens) for tokens in arguments))[1]
            own = change.own.get(reading.module, recorded[:, :, : reading.own])
            values = torch.cat([own, values[:, :, reading.own :]], 2)
            return (probabilities @ values).transpose(1, 2).flatten(2)

        if reading.project == reading.module:
            layer = module.out_proj
            bias = None if reading.module in change.unbiased else layer.bias

            def whole(module: nn.Module, arguments: tuple[Tensor, ...], out: object) -> object:
                return (nn.functional.linear(read(arguments), layer.weight, bias), None)

            after(reading.module, whole)
        else:

            def note(module: nn.Module, arguments: tuple[Tensor, ...], options: object) -> None:
                live["merged"] = read(arguments)

            def give(module: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, object]) -> object:
                return (live["merged"],), options

            before(reading.module, note)
            before(reading.project, give)

    def _entering(self, branch: Branch) -> Tensor:
        arguments = self._arguments[branch.source][0]
        assert isinstance(arguments[0], Tensor)
        return arguments[0]

    def _apply(self, path: str, *arguments: object) -> Tensor:
        """A module on other input, its statistic frozen where it is a norm."""
        module = self.model.get_submodule(path)
        if path in self.family.norms:
            return _frozen_norm(module, arguments[0], self._scales[path])
        out = module(*arguments, **self._arguments[path][1])
        return _tensor(out)


def _channels(module: nn.Module, tokens: Tensor) -> int:
    """The axis a layer norm runs over: the first behind the image for maps, the last for tokens."""
    return 1 if "2d" in type(module).__name__ else tokens.ndim - 1


def _scale(module: nn.Module, tokens: Tensor) -> Tensor:
    axis = _channels(module, tokens)
    return (tokens.var(axis, unbiased=False, keepdim=True) + module.eps).rsqrt()


def _frozen_norm(module: nn.Module, tokens: Tensor, scale: Tensor) -> Tensor:
    axis = _channels(module, tokens)
    shape = [-1] + [1] * (tokens.ndim - 1 - axis)
    centred = tokens - tokens.mean(axis, keepdim=True)
    return centred * scale * module.weight.reshape(shape) + module.bias.reshape(shape)


def _tensor(out: object) -> Tensor:
    """What a module puts out; attention modules put their probabilities beside it."""
    return out[0] if isinstance(out, tuple) else out


def _repeated(rows: Tensor, copies: int) -> Tensor:
    return rows.repeat(copies, *[1] * (rows.ndim - 1))


def _holder(value: Tensor) -> Callable[..., object]:
    def hook(module: nn.Module, arguments: object, out: object) -> object:
        return (value, *out[1:]) if isinstance(out, tuple) else value

    return hook


def _zero(module: nn.Module, arguments: object, out: object) -> object:
    return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)


def _zero_first(module: nn.Module, arguments: tuple[object, ...], options: dict[str, object]) -> object:
    return (torch.zeros_like(arguments[0]), *arguments[1:]), options
