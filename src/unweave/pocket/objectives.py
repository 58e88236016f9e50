"""What the networks of the zoo learn from: labels, captions, or nothing but the images.

An objective holds the network and what helps it only while it learns (further heads, a projector). Called with a batch
it returns the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from unweave.pocket.networks import Clip
from unweave.pocket.scenes import NAMES
from unweave.pocket.views import View, view

Images = UInt8[Tensor, "image height width 3"]
Codes = Int[Tensor, "image factor"]
Words = UInt8[Tensor, "image paraphrase word"]


class Labels(nn.Module):
    """Names every factor of a scene from the network's representation.

    The object is named by the network's own classifier; the other factors by linear heads that are thrown away, so
    that the representation holds them as well.

    Args:
        network: A timm module that classifies objects.
        how: How images are varied.
    """

    def __init__(self, network: Any, how: View) -> None:
        super().__init__()
        self.network, self.how = network, how
        others = {factor: len(names) for factor, names in NAMES.items() if factor != "object"}
        self.heads = nn.ModuleDict({factor: nn.Linear(network.num_features, size) for factor, size in others.items()})

    def forward(self, images: Images, codes: Codes, words: Words) -> Float[Tensor, ""]:
        """The sum of the factors' cross entropies, each over the scenes that have the factor."""
        features = self.network.forward_features(view(images, self.how))
        representation = self.network.forward_head(features, pre_logits=True)
        heads = {"object": self.network.get_classifier(), **self.heads}
        losses = []
        for code, factor in zip(codes.unbind(1), NAMES, strict=True):
            loss = functional.cross_entropy(heads[factor](representation), code, ignore_index=-1, reduction="sum")
            losses.append(loss / (code >= 0).sum().clamp(min=1))
        return torch.stack(losses).sum()


class Captions(nn.Module):
    """Tells the caption of each image from those of the others in its batch, and the image of each caption.

    Each time that a scene is seen, one of its paraphrases is.

    Args:
        network: The two towers.
        how: How images are varied.
    """

    def __init__(self, network: Clip, how: View) -> None:
        super().__init__()
        self.network, self.how = network, how

    def forward(self, images: Images, codes: Codes, words: Words) -> Float[Tensor, ""]:
        """Cross entropy both ways; equal captions share the credit."""
        one = torch.randint(words.shape[1], (len(words),), device=words.device)
        said = words[torch.arange(len(words), device=words.device), one].long()
        logits = self.network(view(images, self.how), said)
        same = (said[:, None] == said[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


class Views(nn.Module):
    """Tells the other view of each scene from all other views in its batch (SimCLR; Chen et al., 2020).

    No label is read.

    Args:
        network: Images to `[image, dim]`.
        how: How much two views of a scene may differ.
        width: Of the projector in which views are compared.
        temperature: What cosines are divided by.
    """

    def __init__(self, network: Any, how: View, width: int = 256, temperature: float = 0.15) -> None:
        super().__init__()
        self.network, self.how, self.temperature = network, how, temperature
        self.projector = nn.Sequential(
            nn.Linear(network.num_features, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width // 2),
        )

    def forward(self, images: Images, codes: Codes, words: Words) -> Float[Tensor, ""]:
        """Cross entropy of each view's partner among all views but itself."""
        both = self.projector(self.network(torch.cat([view(images, self.how) for _ in range(2)])))
        both = functional.normalize(both, dim=-1)
        cosines = (both @ both.T).fill_diagonal_(-torch.inf)
        partner = torch.arange(len(both), device=both.device).roll(len(images))
        return functional.cross_entropy(cosines / self.temperature, partner)


OBJECTIVES: dict[str, Callable[[Any, View], nn.Module]] = {"labels": Labels, "captions": Captions, "views": Views}
