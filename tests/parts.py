"""What random networks are put together of: tables of constructions, what is drawn from them; norms and activations.

Each table holds one sort of construction, as people spell it, with a `Recorder` told where its sources are and what is
held. The first entry of a table is its plainest. An entry that is `exotic` is rare, and still something that somebody
might write.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replay import Recorder


@dataclass(frozen=True)
class Option:
    """One entry of a table.

    Attributes:
        make: A class, or a function; what it is called with is up to the table.
        exotic: Whether it is rare.
        needs: What a setting must have: `grid` (no prefix tokens), `prefix`, `tokens`, `map`, `pairs` (even sides),
            `even` (even heads), `several` (more than one patch), `whole` (no windows),
            `heads` (keys and values of every head), `square` (as many keys as queries).
        setup: Gives a module the parameters that a function uses.
        sourced: Whether the function tells the recorder itself.
        weight: How often it is drawn, beside the others.
    """

    make: Callable[..., Any]
    exotic: bool = False
    needs: frozenset[str] = frozenset()
    setup: Callable[..., None] | None = None
    sourced: bool = False
    weight: int = 1


Table = dict[str, Option]


def option(table: Table, name: str, *, needs: str = "", **rest: Any) -> Callable[[Any], Any]:
    """Enters a class or function in a table."""

    def enter(make: Any) -> Any:
        assert name not in table, name
        table[name] = Option(make, needs=frozenset(needs.split()), **rest)
        return make

    return enter


class Choices:
    """What is drawn, and what was drawn.

    Args:
        seed: Decides everything.
        exotic: The share of draws that are from the exotic entries.
        fixed: Entries that are given, by category, or by place and category: `block0.form`,
            `block0.1.form`.
        plain: Whether all else is the first entry of its table.
    """

    def __init__(
        self, seed: int, exotic: float = 0.0, fixed: Mapping[str, str] | None = None, plain: bool = False
    ) -> None:
        self.dice, self.exotic, self.fixed, self.plain = random.Random(seed), exotic, dict(fixed or {}), plain
        self.drawn: list[tuple[str, str, str]] = []
        self.rare: list[str] = []
        self.used: set[str] = set()

    def pick(self, category: str, table: Table, setting: Setting | None = None, at: str = "") -> Option:
        """One entry of a table that fits the setting."""
        given = self._given(category, at)
        if given is not None:
            name = self.fixed[given]
            self.used.add(given)
            assert self._fits(table[name], setting), f"{category} {name} does not fit"
        else:
            fitting = [name for name, entry in table.items() if self._fits(entry, setting)]
            rare = [name for name in fitting if table[name].exotic]
            common = [name for name in fitting if not table[name].exotic]
            if self.plain:
                name = fitting[0]
            else:
                share = self.exotic * min(1.0, len(rare) / 3)  # one rare entry alone would come too often
                names = rare if rare and (not common or self.dice.random() < share) else common
                name = self.dice.choices(names, [table[name].weight for name in names])[0]
        self.drawn.append((category, name, at))
        self.rare += [name] if table[name].exotic else []
        return table[name]

    def value(self, category: str, values: list[Any], at: str = "") -> Any:
        """One of some values that are no constructions; fixed ones are given as text."""
        if (key := self._given(category, at)) is not None:
            self.used.add(key)
            return next(value for value in values if str(value) == self.fixed[key])
        return values[0] if self.plain else self.dice.choice(values)

    def _given(self, category: str, at: str) -> str | None:
        block = at.partition(".")[0]
        return next((key for key in (f"{at}.{category}", f"{block}.{category}", category) if key in self.fixed), None)

    @staticmethod
    def _fits(entry: Option, setting: Setting | None) -> bool:
        return setting is None or entry.needs <= setting.has


@dataclass(frozen=True)
class Setting:
    """What a part is built for."""

    recorder: Recorder
    choices: Choices
    width: int
    heads: int
    height: int
    breadth: int
    prefix: int = 0
    layout: str = "tokens"
    at: str = ""
    also: frozenset[str] = frozenset()

    @property
    def has(self) -> frozenset[str]:
        """What entries may need."""
        given = {self.layout, "prefix" if self.prefix else "grid", *self.also}
        if self.height * self.breadth > 1:
            given.add("several")
        if self.width // self.heads % 2 == 0:
            given.add("even")
        if self.height % 2 == self.breadth % 2 == 0:
            given.add("pairs")
        return frozenset(given)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return self.height * self.breadth + self.prefix

    def pick(self, category: str, table: Table) -> Option:
        """One entry that fits."""
        return self.choices.pick(category, table, self, self.at)

    def value(self, category: str, values: list[Any]) -> Any:
        """One of some values."""
        return self.choices.value(category, values, self.at)


class Part(nn.Module):
    """Anything that tells the recorder something."""

    def __init__(self, s: Setting) -> None:
        super().__init__()
        self.recorder = s.recorder


def parameter(*shape: int) -> nn.Parameter:
    """A parameter; `randomise` gives it values by its name."""
    return nn.Parameter(torch.zeros(*shape))


def randomise(module: nn.Module, seed: int) -> None:
    """Random weights, well away from zero, so that nothing is dead."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(value: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(value.shape, generator=generator, dtype=torch.float64)

    def signed(value: Tensor, low: float, high: float) -> Tensor:
        sign = torch.where(torch.rand(value.shape, generator=generator) < 0.5, -1.0, 1.0)
        return sign * uniform(value, low, high)

    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        leaf = name.rpartition(".")[2]
        if leaf.startswith("fixed") or not value.is_floating_point():
            continue
        if leaf.startswith(("bias", "in_proj_bias", "running_mean", "shift")):
            value.copy_(signed(value, 0.1, 0.5))
        elif leaf.startswith(("token", "position", "register", "query")):
            value.copy_(signed(value, 0.2, 1.0))
        elif leaf.startswith(("gamma", "running_var", "scale")) or value.ndim == 1:
            value.copy_(uniform(value, 0.5, 1.5))
        else:
            inputs = value.shape[-2] if leaf.startswith("matrix") else value[0].numel()
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(noise / math.sqrt(inputs))


# Norms over the last axis -------------------------------------------------------------------------------------------

NORMS: Table = {}


@option(NORMS, "LayerNorm")
class LayerNorm(nn.LayerNorm):
    affine = True
    shift = True

    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(dim, elementwise_affine=self.affine, bias=self.shift)
        self.recorder = s.recorder

    def forward(self, x: Tensor) -> Tensor:
        if not self.recorder.works:
            return super().forward(x)
        scale = self.recorder.hold((x.var(-1, unbiased=False, keepdim=True) + self.eps).rsqrt())
        x = (x - x.mean(-1, keepdim=True)) * scale
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


@option(NORMS, "LayerNorm without weights")
class PlainLayerNorm(LayerNorm):
    affine = False


@option(NORMS, "LayerNorm without bias")
class UnshiftedLayerNorm(LayerNorm):
    shift = False


@option(NORMS, "F.layer_norm")
class FunctionalLayerNorm(Part):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.gamma, self.bias = parameter(dim), parameter(dim)

    def forward(self, x: Tensor) -> Tensor:
        if not self.recorder.works:
            return F.layer_norm(x, x.shape[-1:], self.gamma, self.bias, 1e-6)
        scale = self.recorder.hold((x.var(-1, unbiased=False, keepdim=True) + 1e-6).rsqrt())
        return (x - x.mean(-1, keepdim=True)) * scale * self.gamma + self.bias


@option(NORMS, "RMSNorm")
class RMSNorm(nn.RMSNorm):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(dim, eps=1e-6)
        self.recorder = s.recorder

    def forward(self, x: Tensor) -> Tensor:
        if not self.recorder.works:
            return super().forward(x)
        return x * self.recorder.hold((x.square().mean(-1, keepdim=True) + self.eps).rsqrt()) * self.weight


@option(NORMS, "no norm")
class NoNorm(nn.Identity):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__()


class Written(Part):
    """A norm written out: `normalised` differs."""

    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.gamma, self.bias = parameter(dim), parameter(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.normalised(x) + self.bias


@option(NORMS, "(x-m)/sqrt(var+eps)")
class DividedNorm(Written):
    def normalised(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        var = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / self.recorder.hold(torch.sqrt(var + 1e-6))


@option(NORMS, "d=x-m; d*rsqrt(mean(d*d)+eps)")
class OnceCentredNorm(Written):
    def normalised(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred * self.recorder.hold(torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-6))


@option(NORMS, "(x-m)*rsqrt(mean((x-m)**2)+eps)", exotic=True)
class TwiceCentredNorm(Written):
    def normalised(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        return (x - mean) * self.recorder.hold(torch.rsqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-6))


@option(NORMS, "(x-x.mean())*(x.var()+eps)**-0.5")
class VarNorm(Written):
    def normalised(self, x: Tensor) -> Tensor:
        scale = (x.var(-1, keepdim=True, unbiased=False) + 1e-6) ** -0.5
        return (x - x.mean(-1, keepdim=True)) * self.recorder.hold(scale)


@option(NORMS, "(x-x.mean())/(x.std()+eps)")
class StdNorm(Written):
    def normalised(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / self.recorder.hold(x.std(-1, keepdim=True) + 1e-6)


@option(NORMS, "var_mean", exotic=True)
class VarMeanNorm(Written):
    def normalised(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        return x.sub(mean).div(self.recorder.hold(var.add(1e-6).sqrt()))


@option(NORMS, "mean of squares less squared mean", exotic=True)
class MomentNorm(Written):
    def normalised(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        var = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) / self.recorder.hold((var + 1e-6).sqrt())


@option(NORMS, "RMSNorm written out")
class WrittenRMSNorm(Part):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.gamma = parameter(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * (x * self.recorder.hold(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)))


@option(NORMS, "x/sqrt(mean(x*x))", exotic=True)
class DividedRMSNorm(WrittenRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x / self.recorder.hold(((x * x).mean(-1, keepdim=True) + 1e-6).sqrt()) * self.gamma


@option(NORMS, "ScaleNorm", exotic=True)
class ScaleNorm(Part):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.gamma = parameter(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x / self.recorder.hold(x.norm(dim=-1, keepdim=True).clamp(min=1e-6))


@option(NORMS, "F.normalize", exotic=True)
class UnitNorm(Part):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.gamma, self.root = parameter(dim), dim**0.5

    def forward(self, x: Tensor) -> Tensor:
        if not self.recorder.works:
            return F.normalize(x, dim=-1) * self.root * self.gamma
        return x / self.recorder.hold(x.norm(dim=-1, keepdim=True)) * self.root * self.gamma


@option(NORMS, "BatchNorm1d", needs="tokens")
class TokenBatchNorm(Part):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.bn = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.transpose(1, 2)).transpose(1, 2)


@option(NORMS, "BatchNorm1d of flattened tokens", needs="tokens", exotic=True)
class FlatBatchNorm(Part):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.bn = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.flatten(0, 1)).view_as(x)


class GroupNorm(nn.GroupNorm):
    """torch's own, written out when recorded."""

    def __init__(self, s: Setting, groups: int, dim: int) -> None:
        super().__init__(groups, dim, eps=1e-6)
        self.recorder = s.recorder

    def forward(self, x: Tensor) -> Tensor:
        if not self.recorder.works:
            return super().forward(x)
        grouped = x.unflatten(1, (self.num_groups, -1)).flatten(2)
        scale = self.recorder.hold((grouped.var(-1, unbiased=False, keepdim=True) + self.eps).rsqrt())
        out = ((grouped - grouped.mean(-1, keepdim=True)) * scale).reshape(x.shape)
        shape = [-1] + [1] * (x.ndim - 2)
        return out * self.weight.view(shape) + self.bias.view(shape)


@option(NORMS, "GroupNorm", needs="tokens")
class TokenGroupNorm(Part):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.gn = GroupNorm(s, 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(x.permute(0, 2, 1)).permute(0, 2, 1)


# Norms of feature maps ----------------------------------------------------------------------------------------------

MAP_NORMS: Table = {}


@option(MAP_NORMS, "BatchNorm2d")
class MapBatchNorm(nn.BatchNorm2d):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(dim)


@option(MAP_NORMS, "LayerNorm2d by permute")
class MapLayerNorm(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@option(MAP_NORMS, "GroupNorm(1)")
class MapGroupNorm(GroupNorm):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s, 1, dim)


@option(MAP_NORMS, "GroupNorm(2)")
class MapGroupNorm2(GroupNorm):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s, 2, dim)


@option(MAP_NORMS, "channels first written out")
class ChannelsFirstNorm(Written):
    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / self.recorder.hold(torch.sqrt(s + 1e-6))
        return self.gamma[:, None, None] * x + self.bias[:, None, None]


@option(MAP_NORMS, "RMSNorm2d", exotic=True)
class MapRMSNorm(WrittenRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return (
            x * self.recorder.hold(torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)) * self.gamma.view(1, -1, 1, 1)
        )


@option(MAP_NORMS, "InstanceNorm2d", needs="several", exotic=True)
class MapInstanceNorm(nn.InstanceNorm2d):
    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(dim, affine=True)
        self.recorder = s.recorder

    def forward(self, x: Tensor) -> Tensor:
        if not self.recorder.works:
            return super().forward(x)
        scale = self.recorder.hold((x.var((2, 3), unbiased=False, keepdim=True) + self.eps).rsqrt())
        out = (x - x.mean((2, 3), keepdim=True)) * scale
        return out * self.weight[:, None, None] + self.bias[:, None, None]


@option(MAP_NORMS, "no norm")
class NoMapNorm(NoNorm):
    pass


def norm(s: Setting, dim: int, category: str = "norm") -> nn.Module:
    """A norm for the setting's layout."""
    return s.pick(category, MAP_NORMS if s.layout == "map" else NORMS).make(s, dim)


# Activations --------------------------------------------------------------------------------------------------------

ACTS: Table = {}
for _name, _make in {
    "GELU": nn.GELU,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "Tanh": nn.Tanh,
    "GELU(tanh)": lambda: nn.GELU("tanh"),
    "Hardswish": nn.Hardswish,
    "LeakyReLU": lambda: nn.LeakyReLU(0.1),
    "ReLU6": nn.ReLU6,
}.items():
    option(ACTS, _name)(_make)
for _name, _make in {
    "Mish": nn.Mish,
    "ELU": nn.ELU,
    "CELU": nn.CELU,
    "SELU": nn.SELU,
    "Softplus": nn.Softplus,
    "PReLU": nn.PReLU,
    "Hardtanh": nn.Hardtanh,
    "LogSigmoid": nn.LogSigmoid,
    "Softsign": nn.Softsign,
}.items():
    option(ACTS, _name, exotic=True)(_make)


def _act(name: str, exotic: bool = False) -> Callable[[Callable[[Tensor], Tensor]], None]:
    def enter(function: Callable[[Tensor], Tensor]) -> None:
        class Act(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return function(x)

        option(ACTS, name, exotic=exotic)(Act)

    return enter


@_act("QuickGELU")
def _(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@_act("ReLU squared")
def _(x: Tensor) -> Tensor:
    return F.relu(x).square()


@_act("GELU written out", exotic=True)
def _(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


@_act("GELU by erf", exotic=True)
def _(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


@_act("clamp(min=0)", exotic=True)
def _(x: Tensor) -> Tensor:
    return x.clamp(min=0)


@_act("maximum(x, 0.1x)", exotic=True)
def _(x: Tensor) -> Tensor:
    return torch.maximum(x, 0.1 * x)


@_act("x*relu6(x+3)/6", exotic=True)
def _(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


@_act("sin", exotic=True)
def _(x: Tensor) -> Tensor:
    return torch.sin(x)


@_act("where(x > 0, x, 0)", exotic=True)
def _(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


@_act("softmax over channels", exotic=True)
def _(x: Tensor) -> Tensor:
    return x.softmax(-1)


@_act("relu(x)*sigmoid(x)", exotic=True)
def _(x: Tensor) -> Tensor:
    return F.relu(x) * torch.sigmoid(x)


def act(s: Setting) -> nn.Module:
    """An activation."""
    return s.pick("act", ACTS).make()
