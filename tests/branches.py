"""MLPs, convolution branches and linear branches as people write them; see `parts`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parts import LayerNorm, MapBatchNorm, MapLayerNorm, Part, Setting, Table, act, option, parameter

MLPS: Table = {}
CONVS: Table = {}
LINEARS: Table = {}


class Branch(Part):
    """A branch that is no attention.

    Attributes:
        kind: What its source must be called.
        linear: Whether it has no source of its own.
        layout: What it takes: `tokens` (channels last, any axes between), or `map`.
    """

    kind = "mlp"
    linear = False
    layout = "tokens"

    def done(self, hidden: Tensor, group: str = "", part: int = 0) -> Tensor:
        """The last activation: what enters the last linear map."""
        return self.recorder.source(hidden, self, self.kind, group=group, part=part)


HIDDEN = 6


@option(MLPS, "fc1, act, fc2")
class Mlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc1, self.act, self.fc2 = nn.Linear(s.width, HIDDEN), act(s), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.done(self.act(self.fc1(x))))


@option(MLPS, "with dropout and no bias")
class DropoutMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc1, self.act, self.fc2 = (
            nn.Linear(s.width, HIDDEN, bias=False),
            act(s),
            nn.Linear(HIDDEN, s.width, bias=False),
        )
        self.drop1, self.drop2 = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.done(self.act(self.fc1(x))))))


@option(MLPS, "nn.Sequential")
class SequentialMlp(nn.Sequential):
    kind, linear, layout = "mlp", False, "tokens"

    def __init__(self, s: Setting) -> None:
        super().__init__(nn.Linear(s.width, HIDDEN), act(s), nn.Linear(HIDDEN, s.width))
        self.recorder = s.recorder

    def forward(self, x: Tensor) -> Tensor:
        x = self[1](self[0](x))
        return self[2](self.recorder.source(x, self, "mlp"))


@option(MLPS, "two hidden layers")
class DeepMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.layers = nn.ModuleList([nn.Linear(s.width, HIDDEN), nn.Linear(HIDDEN, 5), nn.Linear(5, s.width)])
        self.act = act(s)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](self.done(x))


@option(MLPS, "low rank")
class LowRankMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.down = nn.Sequential(nn.Linear(s.width, 3, bias=False), nn.Linear(3, HIDDEN))
        self.act, self.up = act(s), nn.Sequential(nn.Linear(HIDDEN, 3, bias=False), nn.Linear(3, s.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.done(self.act(self.down(x))))


@option(MLPS, "a norm inside")
class NormMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc1, self.act, self.norm, self.fc2 = (
            nn.Linear(s.width, HIDDEN),
            act(s),
            LayerNorm(s, HIDDEN),
            nn.Linear(HIDDEN, s.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.done(self.act(self.fc1(x)))))


@option(MLPS, "ends in an activation")
class ActivationLast(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc, self.act = nn.Linear(s.width, s.width), act(s)

    def forward(self, x: Tensor) -> Tensor:
        return self.done(self.act(self.fc(x)))


@option(MLPS, "SwiGLU")
class SwiGLU(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.w1, self.w2, self.w3 = nn.Linear(s.width, HIDDEN), nn.Linear(s.width, HIDDEN), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.done(F.silu(self.w1(x)) * self.w2(x)))


@option(MLPS, "SwiGLU, packed, with a norm")
class PackedSwiGLU(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.w12, self.norm, self.w3 = nn.Linear(s.width, 2 * HIDDEN), LayerNorm(s, HIDDEN), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.norm(self.done(F.silu(gate) * value)))


@option(MLPS, "GEGLU")
class GEGLU(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.up, self.down = nn.Linear(s.width, 2 * HIDDEN), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).split(HIDDEN, -1)
        return self.down(self.done(value * F.gelu(gate)))


@option(MLPS, "F.glu")
class GLU(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.up, self.down = nn.Linear(s.width, 2 * HIDDEN), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.done(F.glu(self.up(x), dim=-1)))


@option(MLPS, "bilinear", exotic=True)
class Bilinear(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.w, self.v, self.out = nn.Linear(s.width, HIDDEN), nn.Linear(s.width, HIDDEN), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.done(self.w(x) * self.v(x)))


@option(MLPS, "squeeze-excite inside")
class ExcitedMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc1, self.act, self.fc2 = nn.Linear(s.width, HIDDEN), act(s), nn.Linear(HIDDEN, s.width)
        self.squeeze, self.excite = nn.Linear(HIDDEN, 2), nn.Linear(2, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        x = self.done(self.act(self.fc1(x)))
        squeezed = x.flatten(1, -2).mean(1).reshape(-1, *[1] * (x.ndim - 2), HIDDEN)
        return self.fc2(x * self.recorder.hold(torch.sigmoid(self.excite(F.relu(self.squeeze(squeezed))))))


@option(MLPS, "functional weights")
class FunctionalMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.w1, self.bias1, self.w2, self.bias2 = (
            parameter(HIDDEN, s.width),
            parameter(HIDDEN),
            parameter(s.width, HIDDEN),
            parameter(s.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.done(F.gelu(F.linear(x, self.w1, self.bias1)))
        return F.linear(x, self.w2, self.bias2)


@option(MLPS, "matmul plus bias")
class MatmulMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.matrix1, self.bias1, self.matrix2, self.bias2 = (
            parameter(s.width, HIDDEN),
            parameter(HIDDEN),
            parameter(HIDDEN, s.width),
            parameter(s.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.done(torch.relu(x @ self.matrix1 + self.bias1)) @ self.matrix2 + self.bias2


@option(MLPS, "addmm", exotic=True)
class AddmmMlp(MatmulMlp):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        hidden = self.done(torch.addmm(self.bias1, flat, self.matrix1).relu())
        return torch.addmm(self.bias2, hidden, self.matrix2).view_as(x)


@option(MLPS, "einsum")
class EinsumMlp(MatmulMlp):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.done(F.silu(torch.einsum("...c,ch->...h", x, self.matrix1) + self.bias1))
        return torch.einsum("...h,hc->...c", hidden, self.matrix2)


@option(MLPS, "1x1 convolutions over tokens", needs="tokens")
class PointMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc1, self.act, self.fc2 = nn.Conv1d(s.width, HIDDEN, 1), act(s), nn.Conv1d(HIDDEN, s.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.done(self.act(self.fc1(x.transpose(1, 2))))).transpose(1, 2)


@option(MLPS, "over tokens", needs="tokens")
class TokenMlp(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc1, self.act, self.fc2 = nn.Linear(s.tokens, HIDDEN), act(s), nn.Linear(HIDDEN, s.tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.done(self.act(self.fc1(x.transpose(1, 2))))).transpose(1, 2)


@option(MLPS, "spatial gating", needs="tokens", exotic=True)
class SpatialGating(Branch):
    """gMLP."""

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc1, self.norm, self.over, self.fc2 = (
            nn.Linear(s.width, 2 * HIDDEN),
            LayerNorm(s, HIDDEN),
            nn.Linear(s.tokens, s.tokens),
            nn.Linear(HIDDEN, s.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        value, gate = F.gelu(self.fc1(x)).chunk(2, -1)
        gate = self.over(self.norm(gate).transpose(1, 2)).transpose(1, 2)
        return self.fc2(self.done(value * gate))


@option(MLPS, "maxout", exotic=True)
class Maxout(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.up, self.down = nn.Linear(s.width, 3 * HIDDEN), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).unflatten(-1, (HIDDEN, 3)).max(-1).values
        return self.down(self.recorder.source(hidden, self, "mlp"))


@option(MLPS, "top of two, maximum", exotic=True)
class Maximum(Branch):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.a, self.b, self.down = nn.Linear(s.width, HIDDEN), nn.Linear(s.width, HIDDEN), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.done(torch.maximum(self.a(x), self.b(x))))


@option(MLPS, "wide and narrow, added", exotic=True)
class TwoPaths(Branch):
    """Two activations in one branch: two pieces, or one."""

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.a, self.b, self.c, self.d = (
            nn.Linear(s.width, 4),
            nn.Linear(4, s.width),
            nn.Linear(s.width, 5),
            nn.Linear(5, s.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        narrow, wide = self.done(F.gelu(self.a(x)), "paths"), self.done(F.relu(self.c(x)), "paths", 1)
        return self.b(narrow) + self.d(wide)


class Experts(Branch):
    """A mixture of experts: each is a piece, or all of them are one."""

    number = 3

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.router = nn.Linear(s.width, self.number)

    def gates(self, x: Tensor) -> Tensor:
        """Beside a sum over experts, what weighs them is held."""
        return self.recorder.hold(self.router(x).softmax(-1))


@option(MLPS, "experts in a ModuleList, weighed by softmax", exotic=True)
class ModuleExperts(Experts):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(s.width, 4), nn.GELU(), nn.Linear(4, s.width)) for _ in range(self.number)]
        )

    def forward(self, x: Tensor) -> Tensor:
        gates, out = self.gates(x), 0
        for number, expert in enumerate(self.experts):
            hidden = self.recorder.source(expert[1](expert[0](x)), expert, "mlp", group="experts")
            out = out + gates[..., number : number + 1] * expert[2](hidden)
        return out


@option(MLPS, "experts stacked, weighed by einsum", exotic=True)
class StackedExperts(ModuleExperts):
    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        outs = []
        for expert in self.experts:
            outs.append(expert[2](self.recorder.source(expert[1](expert[0](x)), expert, "mlp", group="experts")))
        return torch.einsum("...e,...ec->...c", gates, torch.stack(outs, -2))


@option(MLPS, "experts by einsum", exotic=True)
class EinsumExperts(Experts):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.matrix1, self.matrix2 = parameter(self.number, s.width, 4), parameter(self.number, 4, s.width)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        hidden = F.gelu(torch.einsum("...c,ech->...eh", x, self.matrix1))
        hidden = self.recorder.source(hidden, self, "mlp", heads=self.number, axis=-2, group="experts")
        return torch.einsum("...eh,ehc,...e->...c", hidden, self.matrix2, gates)


@option(MLPS, "experts by einsum, gathered by matmul", exotic=True)
class MatmulExperts(EinsumExperts):
    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        hidden = torch.einsum("...c,ech->...eh", x, self.matrix1).relu()
        hidden = self.recorder.source(hidden, self, "mlp", heads=self.number, axis=-2, group="experts")
        outs = torch.einsum("...eh,ehc->...ec", hidden, self.matrix2)
        return (gates.unsqueeze(-2) @ outs).squeeze(-2)


@option(MLPS, "routed to the best expert", exotic=True)
class RoutedExperts(EinsumExperts):
    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        best, which = gates.max(-1, keepdim=True)
        best = self.recorder.hold(F.one_hot(which.squeeze(-1), self.number).to(x.dtype) * best)
        hidden = F.silu(torch.einsum("...c,ech->...eh", x, self.matrix1))
        hidden = self.recorder.source(hidden, self, "mlp", heads=self.number, axis=-2, group="experts")
        return torch.einsum("...eh,ehc,...e->...c", hidden, self.matrix2, best)


# Convolution branches -----------------------------------------------------------------------------------------------


class Conv(Branch):
    kind = "conv"
    layout = "map"


@option(CONVS, "depthwise, act, pointwise")
class DepthwiseConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.dw, self.act, self.pw = (
            nn.Conv2d(s.width, s.width, 3, padding=1, groups=s.width),
            act(s),
            nn.Conv2d(s.width, s.width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pw(self.done(self.act(self.dw(x))))


@option(CONVS, "ConvNeXt")
class ConvNeXt(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.dw, self.norm = nn.Conv2d(s.width, s.width, 5, padding=2, groups=s.width), LayerNorm(s, s.width)
        self.pw1, self.pw2, self.gamma = nn.Linear(s.width, HIDDEN), nn.Linear(HIDDEN, s.width), parameter(s.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return (self.gamma * self.pw2(self.done(F.gelu(self.pw1(x))))).permute(0, 3, 1, 2)


@option(CONVS, "conv, BatchNorm, act, conv, BatchNorm")
class BasicConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv1, self.bn1 = nn.Conv2d(s.width, HIDDEN, 3, padding=1, bias=False), MapBatchNorm(s, HIDDEN)
        self.act, self.conv2, self.bn2 = (
            act(s),
            nn.Conv2d(HIDDEN, s.width, 3, padding=1, bias=False),
            MapBatchNorm(s, s.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.done(self.act(self.bn1(self.conv1(x))))))


@option(CONVS, "inverted residual with squeeze-excite")
class InvertedConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.expand, self.bn1 = nn.Conv2d(s.width, HIDDEN, 1, bias=False), MapBatchNorm(s, HIDDEN)
        self.dw, self.bn2 = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN, bias=False), MapBatchNorm(s, HIDDEN)
        self.squeeze, self.excite, self.act = nn.Conv2d(HIDDEN, 2, 1), nn.Conv2d(2, HIDDEN, 1), act(s)
        self.project, self.bn3 = nn.Conv2d(HIDDEN, s.width, 1, bias=False), MapBatchNorm(s, s.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn2(self.dw(self.act(self.bn1(self.expand(x))))))
        x = self.done(x)
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.bn3(self.project(x * self.recorder.hold(gate)))


@option(CONVS, "dilated")
class DilatedConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv, self.act, self.out = (
            nn.Conv2d(s.width, HIDDEN, 3, padding=2, dilation=2),
            act(s),
            nn.Conv2d(HIDDEN, s.width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.done(self.act(self.conv(x))))


@option(CONVS, "grouped, activation before a convolution")
class GroupedConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv1, self.act = nn.Conv2d(s.width, s.width, 1, groups=2), act(s)
        self.conv2 = nn.Conv2d(s.width, s.width, 3, padding=1, groups=2, padding_mode="zeros")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.done(self.act(self.conv1(x))))


@option(CONVS, "pre-activation")
class PreActivation(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.act, self.conv = act(s), nn.Conv2d(s.width, s.width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.done(self.act(x)))


@option(CONVS, "strips", exotic=True)
class StripConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.row, self.column = (
            nn.Conv2d(s.width, s.width, size, padding="same", groups=s.width) for size in ((1, 3), (3, 1))
        )
        self.act, self.out = act(s), nn.Conv2d(s.width, s.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.done(self.act(self.row(x) + self.column(x))))


@option(CONVS, "split into two streams (CSP)", exotic=True)
class SplitConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv = nn.Conv2d(s.width // 2, s.width // 2, 3, padding=1)
        self.act, self.out = act(s), nn.Conv2d(s.width, s.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return self.out(self.done(self.act(torch.cat([self.conv(a), b], 1))))


@option(CONVS, "gated by a convolution", exotic=True)
class GatedConv(Conv):
    """MambaOut: `value * act(conv(gate))`, a product of two values."""

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.up, self.dw, self.down = (
            nn.Conv2d(s.width, 2 * HIDDEN, 1),
            nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1, groups=HIDDEN),
            nn.Conv2d(HIDDEN, s.width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, 1)
        return self.down(self.done(F.silu(self.dw(gate)) * value))


@option(CONVS, "upsampled from half the size", needs="pairs", exotic=True)
class HalfSizeConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv, self.act, self.out = nn.Conv2d(s.width, s.width, 2, 2), act(s), nn.Conv2d(s.width, s.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.out(self.done(self.act(self.conv(x)))), scale_factor=2, mode="nearest")


@option(CONVS, "transposed convolution", needs="pairs", exotic=True)
class TransposedConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv, self.act, self.out = (
            nn.Conv2d(s.width, HIDDEN, 2, 2),
            act(s),
            nn.ConvTranspose2d(HIDDEN, s.width, 2, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.done(self.act(self.conv(x))))


@option(CONVS, "conv1d over tokens", needs="tokens")
class TokenConv(Conv):
    layout = "tokens"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv, self.act, self.out = nn.Conv1d(s.width, HIDDEN, 3, padding=1), act(s), nn.Linear(HIDDEN, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.done(self.act(self.conv(x.transpose(1, 2)).transpose(1, 2))))


@option(CONVS, "LayerNorm2d between")
class NormedConv(Conv):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv, self.act, self.norm, self.out = (
            nn.Conv2d(s.width, HIDDEN, 3, padding=1),
            act(s),
            MapLayerNorm(s, HIDDEN),
            nn.Conv2d(HIDDEN, s.width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.done(self.act(self.conv(x)))))


# Branches that are linear all through -------------------------------------------------------------------------------


class Linear(Branch):
    kind = "linear"
    linear = True


@option(LINEARS, "Linear")
class OneLinear(Linear):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.fc = nn.Linear(s.width, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@option(LINEARS, "two Linears")
class TwoLinears(Linear):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.down, self.up = nn.Linear(s.width, 3), nn.Linear(3, s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


@option(LINEARS, "Linear over tokens", needs="tokens")
class TokenLinear(Linear):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.over = nn.Linear(s.tokens, s.tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.over(x.mT).mT


@option(LINEARS, "positions by convolution", needs="grid")
class ConvPositions(Linear):
    kind, layout = "conv", "map"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.conv = nn.Conv2d(s.width, s.width, 3, padding=1, groups=s.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@option(LINEARS, "a pool less the tokens (PoolFormer)", needs="grid")
class PoolBranch(Linear):
    kind, layout = "conv", "map"

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.root = math.sqrt(s.width)
