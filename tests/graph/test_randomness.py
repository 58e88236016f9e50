"""Random operations that reach the representation are refused by name; all others are nobody's business."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import unweave
from tiny import WIDTH, Vit, pictures, ready
from unweave.errors import CaptureError


class Drawing(nn.Module):
    """A model, and a part that draws."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.noise = Vit(), Noise(draw)

    def forward(self, images: Tensor) -> Tensor:
        return self.noise(self.model(images))


class Noise(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, z: Tensor) -> Tensor:
        return self.draw(z)


def attended(z: Tensor, p: float) -> Tensor:
    tokens = z[:, None]
    return F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=p)[:, 0]


RANDOM = {
    "randn": lambda z: z + torch.randn(WIDTH),
    "rand": lambda z: z * torch.rand(z.shape),
    "randn_like": lambda z: z + torch.randn_like(z),
    "rand_like": lambda z: z + torch.rand_like(z),
    "randint": lambda z: z + torch.randint(0, 9, (WIDTH,)),
    "randperm": lambda z: z[:, torch.randperm(WIDTH)],
    "normal": lambda z: z + torch.normal(0.0, 1.0, (WIDTH,)),
    "normal_functional": lambda z: z + torch.empty(WIDTH, dtype=z.dtype).normal_(),
    "exponential": lambda z: F.gumbel_softmax(z),
    "bernoulli": lambda z: z * torch.bernoulli(torch.full((WIDTH,), 0.5, dtype=z.dtype)),
    "multinomial": lambda z: z[:, torch.multinomial(torch.ones(WIDTH), WIDTH)],
}
ON = {
    "dropout": lambda z: F.dropout(z, 0.5),
    "alpha_dropout": lambda z: F.alpha_dropout(z, 0.5, True),
    "feature_dropout": lambda z: F.dropout1d(z[None], 0.5)[0],
    "rrelu": lambda z: F.rrelu(z, training=True),
}


@pytest.mark.parametrize("name", [*RANDOM, *ON])
def test_random_operations_are_refused_by_name(name: str) -> None:
    draw = {**RANDOM, **ON}[name]
    with pytest.raises(CaptureError, match=rf"is random: it depends on aten\.{name}\.") as caught:
        unweave.plan(ready(Drawing(draw)), pictures(2))
    message = str(caught.value)
    assert "at: noise, " in message and "test_randomness.py:" in message and "draw" in message
    assert ("mask_ratio=0" if name in RANDOM else ".eval()") in message


def test_attention_that_drops_in_evaluation_is_refused() -> None:
    with pytest.raises(CaptureError, match="scaled_dot_product_attention") as caught:
        unweave.plan(ready(Drawing(lambda z: attended(z, 0.1))), pictures(2), level="token")
    assert "dropout_p" in str(caught.value)


def test_a_module_in_training_is_refused_and_the_cure_works() -> None:
    module = ready(Vit(trunk=nn.Dropout(0.5))).train()
    with pytest.raises(CaptureError, match=r"dropout[\s\S]+at: trunk, [\s\S]+\.eval\(\)"):
        unweave.plan(module, pictures(2))
    unweave.plan(module.eval(), pictures(2))


@pytest.mark.parametrize(
    "draw",
    [
        lambda z: (torch.randn(WIDTH), z)[1],
        lambda z: z + torch.zeros(torch.randn(WIDTH).shape),
        lambda z: F.dropout(z, 0.0),
        lambda z: F.dropout(z, 0.5, training=False),
        lambda z: F.rrelu(z, training=False),
        lambda z: attended(z, 0.0),
    ],
    ids=["unused", "only its shape", "p=0", "off", "rrelu off", "attention"],
)
def test_what_is_not_drawn_or_not_used_is_no_matter(draw: Callable[[Tensor], Tensor]) -> None:
    module = ready(Drawing(draw))
    result = unweave.plan(module, pictures(2)).run(pictures())
    assert torch.equal(result.representation, module(pictures()))


class Masked(nn.Module):
    """As transformers' masked autoencoders: patches are shuffled even if none is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Vit()

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        noise = torch.rand(images.shape[0], 4) if noise is None else noise
        order = noise.argsort(1)
        patches = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3).transpose(1, 2).flatten(2)
        patches = patches.gather(1, order[..., None].expand(-1, -1, patches.shape[-1]))
        return self.model.norm(patches[..., :WIDTH].mean(1))


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.masked = Masked()

    def forward(self, images: Tensor) -> Tensor:
        return self.masked(images, noise=torch.zeros(images.shape[0], 4))


def test_noise_that_can_be_given_can_be_fixed() -> None:
    with pytest.raises(CaptureError, match=r"aten\.rand\.[\s\S]+noise=torch\.zeros"):
        unweave.plan(ready(Masked()), pictures(2))
    module = ready(Fixed())
    result = unweave.plan(module, pictures(2)).run(pictures())
    assert (result.representation - module(pictures())).abs().max() < 1e-12
