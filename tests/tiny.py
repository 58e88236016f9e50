"""Tiny models written out, for what a plan promises of any model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 16
HEADS = 4
WIDTH = 8


class Attention(nn.Module):
    """Self-attention of the tokens, or of the first one to all of them."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        read = (self.q(x[:, :1] if self.first else x), self.k(x), self.v(x))
        q, k, v = (own.unflatten(-1, (HEADS, -1)).transpose(1, 2) for own in read)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 6), act or nn.GELU(), nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH), Mlp(act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClassBlock(nn.Module):
    """A class token reads the patches; they stay as they are (CaiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(WIDTH), Attention(True), nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        token = token + self.attn(self.norm1(torch.cat([token, x], 1)))
        return token + self.mlp(self.norm2(token))


class Vit(nn.Module):
    """Patches, a class token, two blocks, a norm.

    Args:
        act: The nonlinearity of the MLPs.
        readout: `class`: the class token; `late`: a class token that joins behind the blocks; `pool`: a probe that
            attends to all tokens, then an MLP beside it.
        trunk: What the stream passes between the blocks.
    """

    def __init__(
        self,
        act: nn.Module | None = None,
        readout: str = "class",
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.kind = readout
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 5, WIDTH))
        self.blocks = nn.ModuleList([Block(act), Block(act)])
        self.trunk = trunk or nn.Identity()
        if readout == "late":
            self.last = ClassBlock()
        if readout == "pool":
            self.pool, self.pool_norm, self.pool_mlp = Attention(True), nn.LayerNorm(WIDTH), Mlp()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        token = self.token.expand(images.shape[0], -1, -1)
        x = torch.cat([token, x], 1) + self.position
        x = self.blocks[1](self.trunk(self.blocks[0](x)))
        if self.kind == "late":
            return self.norm(self.last(x[:, 1:], token))[:, 0]
        if self.kind == "pool":
            # the probe is the token alone; it is no part of the sum
            pooled = self.pool(torch.cat([token, self.norm(x)], 1))
            return (pooled + self.pool_mlp(self.pool_norm(pooled)))[:, 0]
        return self.norm(x)[:, 0]


def ready(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Every parameter away from zero, in evaluation."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module.to(dtype).eval()


def pictures(count: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)
