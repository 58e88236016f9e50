"""The networks of the pocket zoo: ordinary timm modules, small, for images of 64 x 64 pixels.

Each has the parts that make its family what it is: a class token (all ViTs), registers and LayerScale (DINOv2), shifted
windows and relative positions (Swin), convolutions with windows and grids (MaxViT), a text tower (CLIP). None has a
class of its own here: they are timm's constructors with other numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

IMAGE_SIZE = 64


class TextTower(nn.Module):
    """A small transformer over words, read at the mean of its words.

    Args:
        words: How many words there are; number 0 stands for no word.
        dim: Width, and length of the embedding.
        depth: Number of blocks.
        heads: Attention heads of each.
        length: The most words that a text may have.
    """

    def __init__(self, words: int, dim: int = 128, depth: int = 3, heads: int = 4, length: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(words + 1, dim, padding_idx=0)
        self.position = nn.Parameter(torch.randn(length, dim) * 0.02)
        block = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.projection = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    @property
    def length(self) -> int:
        """The most words that a text may have."""
        return self.position.shape[0]

    def forward(self, words: Int[Tensor, "text word"]) -> Float[Tensor, "text dim"]:
        """Numbers of words, 0 after the last, to one embedding for each text."""
        absent: Bool[Tensor, "text word"] = words == 0
        tokens = self.blocks(self.embed(words) + self.position[: words.shape[1]], src_key_padding_mask=absent)
        present = (~absent).unsqueeze(-1)
        return self.projection((tokens * present).sum(1) / present.sum(1))


class Clip(nn.Module):
    """Two towers that meet in one space: the image tower's representation is compared with the text tower's.

    Args:
        image: Images to `[image, dim]`.
        text: Numbers of words to `[text, dim]`.
    """

    def __init__(self, image: nn.Module, text: TextTower) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # 1 / 0.07, as CLIP begins

    def forward(
        self, images: Float[Tensor, "image 3 height width"], words: Int[Tensor, "text word"]
    ) -> Float[Tensor, "image text"]:
        """Scaled cosines between images and texts."""
        image = nn.functional.normalize(self.image(images), dim=-1)
        text = nn.functional.normalize(self.text(words), dim=-1)
        return self.log_scale.exp().clamp(max=100) * image @ text.T


def _vit(classes: int = 0, **settings: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=8,
        embed_dim=128,
        depth=6,
        num_heads=4,
        mlp_ratio=2.0,
        num_classes=classes,
        **settings,
    )


def _swin(classes: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=IMAGE_SIZE,
        patch_size=4,
        window_size=4,
        embed_dim=32,
        depths=(2, 2, 4),
        num_heads=(2, 4, 8),
        num_classes=classes,
    )


def _maxvit(classes: int) -> nn.Module:
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg

    settings = MaxxVitCfg(
        embed_dim=(32, 64, 128),
        depths=(1, 1, 2),
        block_type=("M", "M", "M"),
        stem_width=16,
        conv_cfg=MaxxVitConvCfg(expand_ratio=2.0),
        transformer_cfg=MaxxVitTransformerCfg(dim_head=16, expand_ratio=2.0, window_size=(4, 4), grid_size=(4, 4)),
    )
    return MaxxVit(settings, img_size=IMAGE_SIZE, num_classes=classes)


def _clip(words: int) -> nn.Module:
    return Clip(_vit(pre_norm=True), TextTower(words))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "clip": _clip,
    "deit": _vit,
    "dino": _vit,
    "dinov2": partial(_vit, reg_tokens=4, init_values=0.1),
    "swin": _swin,
    "maxvit": _maxvit,
}
"""How each network of the zoo is built, from its number of classes: of words for CLIP, 0 where it learned none."""


def image_tower(network: nn.Module) -> nn.Module:
    """The part of a network that images enter: CLIP's image tower, all of any other."""
    return network.image if isinstance(network, Clip) else network
