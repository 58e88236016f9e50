"""Attention as people write it; see `parts`."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parts import NORMS, GroupNorm, LayerNorm, Part, Setting, Table, option, parameter

# Attention, composed of how queries, keys and values are made, how they meet, and how heads are put together ----------

SPLITS: Table = {}
ATTENDS: Table = {}
MERGES: Table = {}
WINDOWS: Table = {}
ATTENTIONS: Table = {}


def heads_first(x: Tensor, heads: int) -> Tensor:
    """`[b, n, (h d)]` to `[b, h, n, d]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _qkv(m: Attention, s: Setting) -> None:
    m.qkv = nn.Linear(s.width, 3 * s.width, bias=s.value("qkv bias", [True, False]))


def _separate(m: Attention, s: Setting) -> None:
    m.q, m.k, m.v = (nn.Linear(s.width, s.width) for _ in range(3))


@option(SPLITS, "qkv as (3 h d), permuted", setup=_qkv)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    b, n, _ = x.shape
    return m.qkv(x).reshape(b, n, 3, m.heads, m.dim).permute(2, 0, 3, 1, 4).unbind(0)


@option(SPLITS, "q, k, v apart", setup=_separate)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    b, n, _ = x.shape
    return tuple(layer(x).view(b, n, m.heads, m.dim).transpose(1, 2) for layer in (m.q, m.k, m.v))


@option(SPLITS, "qkv chunked", setup=_qkv)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(heads_first(part, m.heads) for part in m.qkv(x).chunk(3, dim=-1))


@option(SPLITS, "qkv as (h 3 d)", setup=_qkv)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    b, n, _ = x.shape
    return tuple(part.transpose(1, 2) for part in m.qkv(x).view(b, n, m.heads, 3, m.dim).unbind(3))


@option(SPLITS, "qkv as (h 3d), split", setup=_qkv)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    b, n, _ = x.shape
    return m.qkv(x).view(b, n, m.heads, 3 * m.dim).permute(0, 2, 1, 3).split(m.dim, -1)


@option(SPLITS, "qkv as (d 3 h)", setup=_qkv, exotic=True)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    return m.qkv(x).unflatten(-1, (m.dim, 3, m.heads)).permute(3, 0, 4, 1, 2).unbind()


@option(SPLITS, "heads as (d h)", setup=_separate, exotic=True)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(layer(x).unflatten(-1, (m.dim, m.heads)).permute(0, 3, 1, 2) for layer in (m.q, m.k, m.v))


def _kv(m: Attention, s: Setting) -> None:
    m.q, m.kv = nn.Linear(s.width, s.width), nn.Linear(s.width, 2 * s.width)


@option(SPLITS, "q and kv", setup=_kv)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    b, n, _ = x.shape
    q = m.q(x).reshape(b, n, m.heads, m.dim).permute(0, 2, 1, 3)
    k, v = m.kv(x).reshape(b, n, 2, m.heads, m.dim).permute(2, 0, 3, 1, 4)
    return q, k, v


def _einsum(m: Attention, s: Setting) -> None:
    m.matrix_q, m.matrix_k, m.matrix_v = (parameter(m.heads, s.width, m.dim) for _ in range(3))


@option(SPLITS, "einsum with weights by head", setup=_einsum)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.einsum("bnc,hcd->bhnd", x, layer) for layer in (m.matrix_q, m.matrix_k, m.matrix_v))


def _grouped(m: Attention, s: Setting) -> None:
    m.q, m.k, m.v = nn.Linear(s.width, s.width), nn.Linear(s.width, m.dim), nn.Linear(s.width, m.dim)


@option(SPLITS, "multi-query, expanded", setup=_grouped)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    k, v = (layer(x).unsqueeze(1).expand(-1, m.heads, -1, -1) for layer in (m.k, m.v))
    return heads_first(m.q(x), m.heads), k, v


@option(SPLITS, "multi-query, broadcast", setup=_grouped, exotic=True)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    return heads_first(m.q(x), m.heads), m.k(x)[:, None], m.v(x)[:, None]


@option(SPLITS, "one group, repeat_interleave", setup=_grouped)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    k, v = (heads_first(layer(x), 1).repeat_interleave(m.heads, dim=1) for layer in (m.k, m.v))
    return heads_first(m.q(x), m.heads), k, v


def _reduced(m: Attention, s: Setting) -> None:
    m.q, m.kv, m.sr = nn.Linear(s.width, s.width), nn.Linear(s.width, 2 * s.width), nn.Conv2d(s.width, s.width, 2, 2)
    m.sr_norm = LayerNorm(s, s.width)
    m.sides = (s.height, s.breadth)


@option(SPLITS, "fewer keys by strided convolution", setup=_reduced, needs="grid pairs whole")
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    b, _, c = x.shape
    small = m.sr(x.permute(0, 2, 1).reshape(b, c, *m.sides)).reshape(b, c, -1).permute(0, 2, 1)
    k, v = m.kv(m.sr_norm(small)).reshape(b, -1, 2, m.heads, m.dim).permute(2, 0, 3, 1, 4)
    return heads_first(m.q(x), m.heads), k, v


def _conv_qkv(m: Attention, s: Setting) -> None:
    m.qkv = nn.Conv1d(s.width, 3 * s.width, 1)


@option(SPLITS, "qkv by a 1x1 convolution", setup=_conv_qkv)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    b, n, _ = x.shape
    return m.qkv(x.transpose(1, 2)).view(b, 3, m.heads, m.dim, n).transpose(-1, -2).unbind(1)


def _depthwise_qkv(m: Attention, s: Setting) -> None:
    m.qkv, m.local = (
        nn.Linear(s.width, 3 * s.width),
        nn.Conv1d(3 * s.width, 3 * s.width, 3, padding=1, groups=3 * s.width),
    )


@option(SPLITS, "qkv through a depthwise convolution", setup=_depthwise_qkv, exotic=True)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(heads_first(layer, m.heads) for layer in m.local(m.qkv(x).mT).mT.tensor_split(3, dim=-1))


def _no_values(m: Attention, s: Setting) -> None:
    m.q, m.k = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)


@option(SPLITS, "values are the tokens themselves", setup=_no_values, exotic=True)
def _(m: Attention, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(heads_first(part, m.heads) for part in (m.q(x), m.k(x), x))


def _none(m: Attention, s: Setting) -> None:
    pass


@option(ATTENDS, "scaled_dot_product_attention", setup=_none)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


@option(ATTENDS, "matmul, softmax", setup=_none)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (q @ k.transpose(-2, -1)) * m.dim**-0.5
    return attn.softmax(dim=-1) @ v


@option(ATTENDS, "q*scale, matmul, dropout", setup=lambda m, s: setattr(m, "attn_drop", nn.Dropout(0.3)))
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q * m.dim**-0.5
    attn = m.attn_drop(torch.softmax(torch.matmul(q, k.mT), -1))
    return torch.matmul(attn, v)


@option(ATTENDS, "einsum", setup=_none)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = F.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(m.dim), dim=-1)
    return torch.einsum("bhqk,bhkd->bhqd", attn, v)


@option(ATTENDS, "einsum with heads inside", setup=_none)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    attn = torch.einsum("...qhd,...khd->...hqk", q, k).div(m.dim**0.5).softmax(-1)
    return torch.einsum("...hqk,...khd->...qhd", attn, v).transpose(1, 2)


@option(ATTENDS, "bmm, heads in the batch", setup=_none, needs="heads", sourced=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.reshape(-1, *part.shape[-2:]) for part in (q, k, v))
    out = torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(m.dim**-0.5).softmax(-1), v)
    out = m.recorder.source(out, m, "head", heads=m.heads, axis=0, layout="minor")
    return out.view(-1, m.heads, *out.shape[-2:])


@option(ATTENDS, "bmm, heads outside the batch", setup=_none, needs="heads", sourced=True, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (torch.cat(part.unbind(1), 0) for part in (q, k, v))
    out = torch.softmax(q.bmm(k.mT) / math.sqrt(m.dim), 2).bmm(v)
    out = m.recorder.source(out, m, "head", heads=m.heads, layout="outer")
    return torch.stack(out.chunk(m.heads, 0), 1)


def _mask(m: Attention, s: Setting) -> None:
    allowed = torch.rand(m.queries, m.keys, generator=torch.Generator().manual_seed(s.value("mask", [1, 2, 3]))) < 0.6
    allowed[:, 0] = True
    m.register_buffer("fixed_mask", allowed)
    m.register_buffer("fixed_bias", torch.where(allowed, 0.0, -math.inf).double())


@option(ATTENDS, "SDPA with a boolean mask", setup=_mask)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m.fixed_mask)


@option(ATTENDS, "SDPA with a float mask", setup=_mask)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, m.fixed_bias)


@option(
    ATTENDS,
    "SDPA with a bias and a scale",
    setup=lambda m, s: setattr(m, "table", parameter(1, m.heads, m.queries, m.keys)),
)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m.table, scale=0.7)


@option(ATTENDS, "SDPA causal", setup=_none)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@option(ATTENDS, "masked_fill, softmax", setup=_mask)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (q @ k.mT / math.sqrt(m.dim)).masked_fill(~m.fixed_mask, float("-inf"))
    return attn.softmax(-1) @ v


@option(ATTENDS, "relative positions", setup=lambda m, s: setattr(m, "table", parameter(m.heads, m.queries, m.keys)))
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q.matmul(k.transpose(-1, -2)) * m.dim**-0.5 + m.table.unsqueeze(0)).softmax(-1).matmul(v)


@option(ATTENDS, "softmax(dtype=...)", setup=_none)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * m.dim**-0.5).softmax(-1, dtype=torch.float64).to(v.dtype) @ v


@option(ATTENDS, "softmax, values transposed", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (k @ q.mT * m.dim**-0.5).softmax(-2)
    return (v.mT @ attn).mT


@option(ATTENDS, "log_softmax().exp()", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * m.dim**-0.5).log_softmax(-1).exp() @ v


@option(ATTENDS, "exp(x - logsumexp(x))", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = q @ k.mT * m.dim**-0.5
    return torch.exp(attn - attn.logsumexp(-1, keepdim=True)) @ v


@option(ATTENDS, "exp over sum", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (q @ k.mT * m.dim**-0.5).exp()
    return (attn / attn.sum(-1, keepdim=True)) @ v


@option(ATTENDS, "exp(x - max) over sum", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = torch.matmul(q, k.transpose(-2, -1)) * m.dim**-0.5
    attn = torch.exp(attn - attn.amax(-1, keepdim=True))
    return torch.matmul(attn / attn.sum(-1, keepdim=True), v)


@option(ATTENDS, "exp, divided behind the values", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = (q @ k.mT * m.dim**-0.5).exp()
    return (attn @ v) / attn.sum(-1, keepdim=True)


@option(ATTENDS, "softmax off by one", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = torch.exp(q @ k.transpose(-2, -1) * m.dim**-0.5)
    return (attn / (1 + attn.sum(-1, keepdim=True))) @ v


@option(ATTENDS, "softmax with a sink", setup=lambda m, s: setattr(m, "sink", parameter(m.heads)), exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = q @ k.mT * m.dim**-0.5
    sink = m.sink.view(1, -1, 1, 1).expand(attn.shape[0], -1, attn.shape[2], 1)
    return torch.cat([attn, sink], -1).softmax(-1)[..., :-1] @ v


@option(ATTENDS, "sigmoid attention", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(q @ k.mT * m.dim**-0.5 - math.log(m.keys)) @ v


@option(ATTENDS, "relu attention", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.relu(q @ k.mT * m.dim**-0.5) @ v


@option(ATTENDS, "relu attention over the sum", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = F.relu(q @ k.mT)
    return (attn / (attn.sum(-1, keepdim=True) + 1e-6)) @ v


@option(ATTENDS, "squared relu over the length", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.relu(q @ k.mT * m.dim**-0.5).square().div(m.keys) @ v


@option(ATTENDS, "elu+1 linear attention", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return (q @ (k.transpose(-2, -1) @ v)) / (q @ k.sum(-2, keepdim=True).transpose(-2, -1))


@option(ATTENDS, "elu+1 linear attention by einsum", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    context = torch.einsum("bhnd,bhne->bhde", k, v)
    scale = 1 / torch.einsum("bhnd,bhd->bhn", q, k.sum(2))
    return torch.einsum("bhnd,bhde,bhn->bhne", q, context, scale)


@option(ATTENDS, "relu linear attention", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.relu(q) + 0.1, F.relu(k) + 0.1
    v = F.pad(v, (0, 1), value=1.0)
    out = q @ (k.mT @ v)
    return out[..., :-1] / (out[..., -1:] + 1e-9)


@option(
    ATTENDS, "linear attention by softmax of q and of k", setup=lambda m, s: setattr(m, "layers", (1, 2)), exotic=True
)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


@option(ATTENDS, "cosine attention", setup=lambda m, s: setattr(m, "scale", parameter(m.heads, 1, 1)))
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * m.scale.clamp(max=4.6).exp()
    return attn.softmax(-1) @ v


def _qk_norm(m: Attention, s: Setting) -> None:
    m.q_norm, m.k_norm = LayerNorm(s, m.dim), LayerNorm(s, m.dim)


@option(ATTENDS, "q and k normed", setup=_qk_norm)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(m.q_norm(q), m.k_norm(k), v)


def _angles(m: Attention, s: Setting) -> None:
    m.register_buffer(
        "fixed_angles", torch.outer(torch.arange(max(m.queries, m.keys)), 0.3 ** torch.arange(m.dim // 2))
    )


@option(ATTENDS, "rotary positions", setup=_angles, needs="even")
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def turned(x: Tensor) -> Tensor:
        angles = m.fixed_angles[: x.shape[-2]].double()
        a, b = x.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)

    return F.scaled_dot_product_attention(turned(q), turned(k), v)


def _talking(m: Attention, s: Setting) -> None:
    m.before, m.after = nn.Linear(m.heads, m.heads, bias=False), nn.Linear(m.heads, m.heads)


@option(ATTENDS, "talking heads", setup=_talking)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = m.before((q @ k.mT * m.dim**-0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
    return m.after(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v


def _talking_convolutions(m: Attention, s: Setting) -> None:
    m.before, m.after = nn.Conv2d(m.heads, m.heads, 1), nn.Conv2d(m.heads, m.heads, 1, bias=False)


@option(ATTENDS, "talking heads by convolution", setup=_talking_convolutions)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return m.after(m.before(q @ k.mT * m.dim**-0.5).softmax(-1)) @ v


def _differential(m: Attention, s: Setting) -> None:
    m.q2, m.k2, m.scale_lambda = (*(nn.Linear(m.dim, m.dim) for _ in range(2)), parameter(m.heads, 1, 1))


@option(ATTENDS, "differential, weights subtracted", setup=_differential, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first = (q @ k.mT * m.dim**-0.5).softmax(-1)
    second = (m.q2(q) @ m.k2(k).mT * m.dim**-0.5).softmax(-1)
    return (first - 0.5 * m.scale_lambda * second) @ v


def _differential_outputs(m: Attention, s: Setting) -> None:
    _differential(m, s)
    m.layers = (1, 2)


@option(ATTENDS, "differential, outputs subtracted", setup=_differential_outputs, sourced=True, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first = F.scaled_dot_product_attention(q, k, v)
    first = m.recorder.source(first, m, "head", heads=m.heads, group="difference")
    second = F.scaled_dot_product_attention(m.q2(q), m.k2(k), v)
    second = m.recorder.source(second, m, "head", heads=m.heads, group="difference", part=1)
    return first - 0.5 * m.scale_lambda * second


def _decay(m: Attention, s: Setting) -> None:
    distance = (torch.arange(m.queries)[:, None] - torch.arange(m.keys)[None]).abs()
    m.register_buffer("fixed_decay", (1 - 2.0 ** (-1 - torch.arange(m.heads).double())[:, None, None]) ** distance)


@option(ATTENDS, "retention", setup=_decay, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * m.dim**-0.5 * m.fixed_decay) @ v


@option(ATTENDS, "retention over its sum", setup=_decay, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = q @ k.mT * m.dim**-0.5 * m.fixed_decay
    return (attn / attn.detach().abs().sum(-1, keepdim=True).clamp(min=1)) @ v


@option(ATTENDS, "softmax of distances", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    distance = (q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)
    return torch.softmax(-0.5 * distance, -1) @ v


@option(
    ATTENDS, "channel attention", setup=lambda m, s: setattr(m, "scale", parameter(m.heads, 1, 1)), needs="whole square"
)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.mT, k.mT, v.mT
    attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * m.scale
    return (attn.softmax(dim=-1) @ v).transpose(-2, -1)


@option(ATTENDS, "heads in a loop", needs="heads", setup=lambda m, s: setattr(m, "layers", (1, m.heads)), sourced=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    outs = []
    for number in range(m.heads):
        attn = (q[:, number] @ k[:, number].transpose(1, 2) * m.dim**-0.5).softmax(-1)
        outs.append(m.recorder.source(attn @ v[:, number], m, "head", number=number))
    return torch.stack(outs, 1)


@option(ATTENDS, "gathered top keys", setup=_none, exotic=True)
def _(m: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attn = q @ k.mT * m.dim**-0.5
    least = attn.topk(min(2, m.keys), -1).values[..., -1:]
    return attn.masked_fill(attn < least, -math.inf).softmax(-1) @ v


@option(MERGES, "transpose, reshape, proj", setup=lambda m, s: setattr(m, "proj", nn.Linear(s.width, s.width)))
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    b, h, n, d = o.shape
    return m.proj(o.transpose(1, 2).reshape(b, n, h * d))


def _projection(m: Attention, s: Setting) -> None:
    m.proj, m.proj_drop = nn.Linear(s.width, s.width), nn.Dropout(0.1)


@option(MERGES, "permute, flatten, proj, dropout", setup=_projection)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj_drop(m.proj(o.permute(0, 2, 1, 3).flatten(2)))


@option(MERGES, "swapaxes, contiguous, view, proj", setup=_projection)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(o.swapaxes(1, 2).contiguous().view(o.shape[0], o.shape[2], -1))


@option(MERGES, "einsum with weights by head", setup=lambda m, s: setattr(m, "out", parameter(m.heads, m.dim, s.width)))
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bhnd,hdc->bnc", o, m.out)


@option(MERGES, "no projection", setup=_none)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return o.transpose(1, 2).flatten(2)


@option(MERGES, "heads as (d h)", setup=_projection, exotic=True)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(o.permute(0, 2, 3, 1).flatten(2))


@option(MERGES, "cat of unbound heads", setup=_projection)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(torch.cat(o.unbind(1), dim=-1))


def _each_head(m: Attention, s: Setting) -> None:
    m.outs = nn.ModuleList([nn.Linear(m.dim, s.width, bias=number == 0) for number in range(m.heads)])


@option(MERGES, "one projection for each head", setup=_each_head)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return sum(out(o[:, number]) for number, out in enumerate(m.outs))


@option(MERGES, "stack of projections, summed", setup=_each_head, exotic=True)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return torch.stack([out(head) for out, head in zip(m.outs, o.unbind(1), strict=True)]).sum(0)


def _head_norm(m: Attention, s: Setting) -> None:
    _projection(m, s)
    m.head_norm = s.pick("head norm", HEAD_NORMS).make(s, m.dim)


@option(MERGES, "a norm on each head", setup=_head_norm, exotic=True)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(m.head_norm(o).transpose(1, 2).flatten(2))


@option(MERGES, "a norm on each head, scaled, behind the transpose", setup=_head_norm, exotic=True)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj((m.head_norm(o.transpose(1, 2)) * 0.8).reshape(x.shape[0], x.shape[1], -1))


def _group_norm(m: Attention, s: Setting) -> None:
    _projection(m, s)
    m.group_norm = GroupNorm(s, m.heads, s.width)


@option(MERGES, "GroupNorm over heads", setup=_group_norm, exotic=True)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    merged = o.transpose(1, 2).flatten(2)
    return m.proj(m.group_norm(merged.flatten(0, 1)).view_as(merged))


def _sub_norm(m: Attention, s: Setting) -> None:
    _projection(m, s)
    m.sub_norm = LayerNorm(s, s.width)


@option(MERGES, "a norm on all heads", setup=_sub_norm)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(m.sub_norm(o.transpose(1, 2).flatten(2)))


def _gate(m: Attention, s: Setting) -> None:
    _projection(m, s)
    m.gate = nn.Linear(s.width, s.width)


@option(MERGES, "gated", setup=_gate)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(o.transpose(1, 2).flatten(2) * m.recorder.hold(torch.sigmoid(m.gate(x))))


@option(MERGES, "gated by SiLU", setup=_gate)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(m.recorder.hold(F.silu(m.gate(x))) * o.transpose(1, 2).flatten(2))


def _head_gate(m: Attention, s: Setting) -> None:
    _projection(m, s)
    m.gate = nn.Linear(s.width, m.heads)


@option(MERGES, "a gate for each head", setup=_head_gate)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    gate = m.recorder.hold(m.gate(x).sigmoid().transpose(1, 2).unsqueeze(-1))
    return m.proj((o * gate).transpose(1, 2).flatten(2))


@option(MERGES, "gated behind the projection", setup=_gate, exotic=True)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(o.transpose(1, 2).flatten(2)) * m.recorder.hold(m.gate(x).sigmoid())


def _weighed(m: Attention, s: Setting) -> None:
    _projection(m, s)
    m.gamma_heads = parameter(m.heads)


@option(MERGES, "a weight for each head", setup=_weighed)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj((o * m.gamma_heads.view(-1, 1, 1)).transpose(1, 2).flatten(2))


@option(MERGES, "a weight for each head by einsum", setup=_weighed)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(torch.einsum("bhnd,h->bnhd", o, m.gamma_heads).flatten(2))


def _mixed(m: Attention, s: Setting) -> None:
    _projection(m, s)
    m.mix = nn.Linear(m.heads, m.heads)


@option(MERGES, "heads mixed behind the values", setup=_mixed, exotic=True)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(m.mix(o.permute(0, 2, 3, 1)).transpose(-1, -2).flatten(2))


@option(MERGES, "conv1d", setup=lambda m, s: setattr(m, "proj", nn.Conv1d(s.width, s.width, 1)))
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(o.transpose(2, 3).flatten(1, 2)).transpose(1, 2)


def _functional(m: Attention, s: Setting) -> None:
    m.out, m.bias_out = parameter(s.width, s.width), parameter(s.width)


@option(MERGES, "F.linear", setup=_functional)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return F.linear(o.transpose(1, 2).flatten(2), m.out, m.bias_out)


@option(MERGES, "matmul plus bias", setup=_functional)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return o.transpose(1, 2).flatten(2) @ m.out + m.bias_out


def _two(m: Attention, s: Setting) -> None:
    m.proj = nn.Sequential(nn.Linear(s.width, 5), nn.Linear(5, s.width))


@option(MERGES, "two projections", setup=_two)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(o.transpose(1, 2).flatten(2))


@option(MERGES, "an activation in front of the projection", setup=_projection, exotic=True, sourced=True)
def _(m: Attention, o: Tensor, x: Tensor) -> Tensor:
    return m.proj(m.recorder.source(F.gelu(o.transpose(1, 2).flatten(2)), m, "mlp"))


HEAD_NORMS: Table = {
    name: NORMS[name]
    for name in ("LayerNorm", "RMSNorm", "LayerNorm without weights", "RMSNorm written out", "(x-m)/sqrt(var+eps)")
}


@option(WINDOWS, "none", weight=5)
class Whole:
    def __init__(self, s: Setting) -> None:
        self.queries = s.tokens

    def cut(self, x: Tensor) -> Tensor:
        return x

    def join(self, x: Tensor) -> Tensor:
        return x


@option(WINDOWS, "windows", needs="grid pairs")
class Windows:
    shift = 0

    def __init__(self, s: Setting) -> None:
        self.height, self.breadth = s.height, s.breadth
        self.window = (2, 2)
        self.queries = 4

    def cut(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        x = x.view(-1, self.height, self.breadth, c)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        a, b = self.window
        x = x.view(-1, self.height // a, a, self.breadth // b, b, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, a * b, c)

    def join(self, x: Tensor) -> Tensor:
        c = x.shape[-1]
        a, b = self.window
        x = x.view(-1, self.height // a, self.breadth // b, a, b, c).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, self.height, self.breadth, c)
        if self.shift:
            x = x.roll(shifts=(self.shift, self.shift), dims=(1, 2))
        return x.reshape(-1, self.height * self.breadth, c)


@option(WINDOWS, "shifted windows", needs="grid pairs")
class ShiftedWindows(Windows):
    shift = 1


@option(WINDOWS, "rows", needs="grid")
class Rows(Windows):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.window = (1, s.breadth)
        self.queries = s.breadth


@option(WINDOWS, "columns", needs="grid")
class Columns(Rows):
    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.queries = s.height

    def cut(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.height, self.breadth)).transpose(1, 2).flatten(0, 1)

    def join(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.breadth)).transpose(1, 2).flatten(1, 2)


@option(WINDOWS, "padded windows", needs="grid")
class PaddedWindows(Windows):
    """Sides that windows of two do not divide are padded with zeros."""

    def cut(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.height, self.breadth))
        x = F.pad(x, (0, 0, 0, self.breadth % 2, 0, self.height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)  # [b, rows, columns, 2, 2, c]
        return x.flatten(3, 4).flatten(0, 2)

    def join(self, x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, (self.height + 1) // 2, (self.breadth + 1) // 2)).unflatten(3, (2, 2)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)[:, : self.height, : self.breadth].flatten(1, 2)


@option(WINDOWS, "dilated grid", needs="grid pairs")
class Dilated(Windows):
    def cut(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (2, self.height // 2, 2, self.breadth // 2))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(0, 2)

    def join(self, x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, self.height // 2, self.breadth // 2)).unflatten(3, (2, 2))
        return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 3)


@option(ATTENTIONS, "composed", weight=10)
class Attention(Part):
    """Attention, put together of a split, an attend, a merge and windows."""

    kind = "attn"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.heads, self.dim, self.layers = s.heads, s.width // s.heads, (1,)
        window = s.pick("window", WINDOWS)
        self.window = window.make(s)
        self.queries = self.window.queries
        whole = isinstance(self.window, Whole)
        inner = replace(s, layout="whole" if whole else "cut")
        self.split = inner.pick("split", SPLITS)
        given = {"heads"} if self.split is not SPLITS["multi-query, broadcast"] else set()
        given |= {"square"} if self.split.setup is not _reduced else set()
        inner = replace(inner, also=frozenset(given))
        self.attend, self.merge = inner.pick("attend", ATTENDS), inner.pick("merge", MERGES)
        self.keys = self.queries // 4 if self.split.setup is _reduced else self.queries
        for part in (self.split, self.attend, self.merge):
            part.setup(self, s)

    def forward(self, x: Tensor) -> Tensor:
        x = self.window.cut(x)
        self.recorder.watch(self, x)
        q, k, v = self.split.make(self, x)
        o = self.attend.make(self, q, k, v)
        self.recorder.attention(*self.layers)
        if not self.attend.sourced:
            o = self.recorder.source(o, self, "head", heads=self.heads, axis=1)
        return self.window.join(self.merge.make(self, o, x))


@option(ATTENTIONS, "nn.MultiheadAttention")
class Multihead(Part):
    kind = "attn"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.mha = nn.MultiheadAttention(s.width, s.heads, batch_first=True, dropout=s.value("dropout", [0.0, 0.2]))
        self.weights = s.value("need_weights", [False, True])

    def forward(self, x: Tensor) -> Tensor:
        if not self.recorder.works:
            return self.mha(x, x, x, need_weights=self.weights)[0]
        self.recorder.attention()
        self.recorder.watch(self, x)
        m = self.mha
        parts = F.linear(x, m.in_proj_weight, m.in_proj_bias).chunk(3, -1)
        q, k, v = (heads_first(part, m.num_heads) for part in parts)
        o = self.recorder.source(F.scaled_dot_product_attention(q, k, v), self, "head", heads=m.num_heads, axis=1)
        return m.out_proj(o.transpose(1, 2).flatten(2))


@option(ATTENTIONS, "grouped queries by enable_gqa")
class GroupedQueries(Part):
    kind = "attn"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.heads, self.dim = s.heads, s.width // s.heads
        self.groups = 2 if s.heads == 4 else 1
        self.q, self.k, self.v = (nn.Linear(s.width, n * self.dim) for n in (s.heads, self.groups, self.groups))
        self.o = nn.Linear(s.width, s.width, bias=False)
        self.repeats = s.value("grouped", ["enable_gqa", "repeat_interleave", "expand"])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            heads_first(self.q(x), self.heads),
            heads_first(self.k(x), self.groups),
            heads_first(self.v(x), self.groups),
        )
        self.recorder.attention()
        if self.repeats == "enable_gqa":
            o = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif self.repeats == "repeat_interleave":
            k, v = (part.repeat_interleave(self.heads // self.groups, 1) for part in (k, v))
            o = F.scaled_dot_product_attention(q, k, v)
        else:
            k, v = (part[:, :, None].expand(-1, -1, self.heads // self.groups, -1, -1).flatten(1, 2) for part in (k, v))
            o = (q @ k.mT * self.dim**-0.5).softmax(-1) @ v
        o = self.recorder.source(o, self, "head", heads=self.heads, axis=1)
        return self.o(o.transpose(1, 2).flatten(2))


class OneHead(Part):
    """A head of its part."""

    def __init__(self, s: Setting, dim: int) -> None:
        super().__init__(s)
        self.q, self.k, self.v = (nn.Linear(s.width, dim) for _ in range(3))
        self.root = dim**0.5

    def forward(self, x: Tensor, owner: nn.Module, number: int) -> Tensor:
        attn = (self.q(x) @ self.k(x).transpose(-2, -1) / self.root).softmax(-1)
        return owner.recorder.source(attn @ self.v(x), owner, "head", number=number)


@option(ATTENTIONS, "heads are modules, concatenated")
class ModuleHeads(Part):
    kind = "attn"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.head_list = nn.ModuleList([OneHead(s, s.width // s.heads) for _ in range(s.heads)])
        self.proj = nn.Linear(s.width, s.width)

    def forward(self, x: Tensor) -> Tensor:
        self.recorder.attention(1, len(self.head_list))
        return self.proj(torch.cat([head(x, self, number) for number, head in enumerate(self.head_list)], -1))


@option(ATTENTIONS, "heads are modules, summed")
class SummedHeads(Part):
    kind = "attn"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.head_list = nn.ModuleList([OneHead(s, 3) for _ in range(s.heads)])
        self.outs = nn.ModuleList([nn.Linear(3, s.width, bias=False) for _ in range(s.heads)])

    def forward(self, x: Tensor) -> Tensor:
        self.recorder.attention(1, len(self.head_list))
        out = torch.zeros_like(x)
        for number, (head, proj) in enumerate(zip(self.head_list, self.outs, strict=True)):
            out = out + proj(head(x, self, number))
        return out


@option(ATTENTIONS, "local attention by unfold", needs="grid", exotic=True)
class LocalAttention(Part):
    kind = "attn"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.heads, self.dim, self.sides = s.heads, s.width // s.heads, (s.height, s.breadth)
        self.q, self.kv, self.proj = (nn.Linear(s.width, n * s.width) for n in (1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).view(b, n, self.heads, 1, self.dim).transpose(1, 2)
        kv = F.unfold(self.kv(x).transpose(1, 2).view(b, 2 * c, *self.sides), 3, padding=1)
        k, v = kv.view(b, 2, self.heads, self.dim, 9, n).permute(1, 0, 2, 5, 4, 3)
        self.recorder.attention()
        o = ((q @ k.transpose(-2, -1)) * self.dim**-0.5).softmax(-1) @ v
        o = self.recorder.source(o, self, "head", heads=self.heads, axis=1)
        return self.proj(o.squeeze(3).transpose(1, 2).flatten(2))


@option(ATTENTIONS, "outlook attention", needs="grid", exotic=True)
class Outlook(Part):
    """VOLO: the weights of a neighbourhood are a linear map of its centre; folded back."""

    kind = "attn"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.heads, self.dim, self.sides = s.heads, s.width // s.heads, (s.height, s.breadth)
        self.v, self.attn, self.proj = (
            nn.Linear(s.width, s.width),
            nn.Linear(s.width, 81 * s.heads),
            nn.Linear(s.width, s.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        v = F.unfold(self.v(x).transpose(1, 2).view(b, c, *self.sides), 3, padding=1)
        v = v.view(b, self.heads, self.dim, 9, n).permute(0, 1, 4, 3, 2)
        attn = self.attn(x).view(b, n, self.heads, 9, 9).transpose(1, 2).mul(self.dim**-0.5).softmax(-1)
        self.recorder.attention()
        o = self.recorder.source(attn @ v, self, "head", heads=self.heads, axis=1)
        o = F.fold(o.permute(0, 1, 4, 3, 2).reshape(b, c * 9, n), self.sides, 3, padding=1)
        return self.proj(o.flatten(2).transpose(1, 2))


@option(ATTENTIONS, "agents", exotic=True)
class AgentAttention(Part):
    """Few learned queries gather, then hand out: two attentions in a row; the first only through the second."""

    kind = "attn"

    def __init__(self, s: Setting) -> None:
        super().__init__(s)
        self.heads, self.dim = s.heads, s.width // s.heads
        self.query_agents = parameter(1, s.heads, 2, self.dim)
        self.qkv, self.proj = nn.Linear(s.width, 3 * s.width), nn.Linear(s.width, s.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_first(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        agents = self.query_agents.expand(x.shape[0], -1, -1, -1)
        gathered = (agents @ k.mT * self.dim**-0.5).softmax(-1) @ v
        o = (q @ agents.mT * self.dim**-0.5).softmax(-1) @ gathered
        self.recorder.attention(1, 2)
        o = self.recorder.source(o, self, "head", heads=self.heads, axis=1)
        return self.proj(o.transpose(1, 2).flatten(2))
