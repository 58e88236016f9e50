"""What of an output is the representation: records of tensors, class tokens only where there are some, means, maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import unweave
from tiny import SIZE, WIDTH, Block, pictures, ready
from unweave.errors import ModelError
from unweave.models import Model

IMAGE = (3, SIZE, SIZE)
SIDE = SIZE // 4
PATCHES = SIDE * SIDE


@dataclass
class Record:
    pooled: Tensor
    tokens: Tensor


class Named(NamedTuple):
    pooled: Tensor
    tokens: Tensor


class Plain:
    def __init__(self, tokens: Tensor) -> None:
        self.last_hidden_state = tokens


class Tokens(nn.Module):
    """Patches and tokens of no place before and behind them, two blocks, a norm.

    Args:
        before, behind: How many class and register tokens there are.
        answer: What it returns of its tokens.
        written: Whether they are written into an empty tensor, rather than concatenated.
    """

    def __init__(
        self,
        before: int = 0,
        behind: int = 0,
        answer: Callable[[Tensor], Any] = lambda tokens: tokens,
        written: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.before, self.behind, self.answer, self.written = before, behind, answer, written
        self.extra = nn.Parameter(torch.zeros(1, before + behind, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, before + PATCHES + behind, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, images: Tensor) -> Any:
        x = self.embed(images).flatten(2).transpose(1, 2)
        extra = self.extra.expand(images.shape[0], -1, -1)
        x = torch.cat([extra[:, : self.before], x, extra[:, self.before :]], 1) + self.position
        return self.answer(self.norm(self.blocks[1](self.blocks[0](x))))


class Shifted(Tokens):
    """Each token reads the one before it, and the first reads zeros, which are no class token."""

    def forward(self, images: Tensor) -> Any:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = x + nn.functional.pad(x, (0, 0, 1, -1))
        return self.answer(self.norm(self.blocks[1](self.blocks[0](x + self.position))))


def representation_of(module: nn.Module, **options: Any) -> tuple[Tensor, Model]:
    model = Model.from_module(module, input_size=IMAGE, **options)
    plan = unweave.plan(model)
    found = plan.run(pictures())
    assert found.error.max() < 1e-10 and plan.notes == model.notes
    torch.testing.assert_close(found.representation, model.readout(pictures()))
    return found.representation, model


@pytest.mark.parametrize(
    "answer", [lambda t: t, lambda t: {"last_hidden_state": t}, Plain], ids=["bare", "dict", "record"]
)
def test_the_first_token_is_taken_only_if_it_is_a_class_token(answer: Callable[[Tensor], Any]) -> None:
    with_token, without = ready(Tokens(1, answer=answer)), ready(Tokens(answer=answer))
    read = lambda module: (module.answer, setattr(module, "answer", lambda t: t), module(pictures()))[2]  # noqa: E731
    found, model = representation_of(with_token)
    assert "class token" in model.notes[0] and f"token 0 of {PATCHES + 1}" in model.notes[0]
    torch.testing.assert_close(found, read(with_token)[:, 0])
    found, model = representation_of(without)
    assert f"mean over the {PATCHES} tokens" in model.notes[0] and "no class token" in model.notes[0]
    torch.testing.assert_close(found, read(without).mean(1))


def test_plans_of_modules_say_it_too() -> None:
    module = ready(Tokens())
    plan = unweave.plan(module, pictures())
    torch.testing.assert_close(plan.run(pictures()).representation, module(pictures()).mean(1))
    for own in (plan, plan.at(level="token"), plan.split("kind:head")):
        assert own.notes and own.notes[0] in str(own.explanation().report["notes"])
    assert "mean over the 16 tokens" in " ".join(str(plan).split())


@pytest.mark.parametrize(("before", "behind"), [(1, 0), (3, 0), (1, 2), (0, 2), (0, 0)])
def test_the_mean_is_over_tokens_of_the_image(before: int, behind: int) -> None:
    module = ready(Tokens(before, behind))
    found, model = representation_of(module, pool="mean")
    torch.testing.assert_close(found, module(pictures())[:, before : before + PATCHES].mean(1))
    assert f"the {PATCHES} tokens" in model.notes[0] and ("of 1" in model.notes[0]) == bool(before + behind)


def test_a_class_token_behind_the_patches_is_found() -> None:
    module = ready(Tokens(0, 1))
    torch.testing.assert_close(representation_of(module)[0], module(pictures())[:, -1])
    torch.testing.assert_close(representation_of(module, pool="class")[0], module(pictures())[:, -1])


def test_a_class_token_that_is_cut_off_again_is_none() -> None:
    module = ready(Tokens(1, answer=lambda tokens: tokens[:, 1:]))
    torch.testing.assert_close(representation_of(module)[0], module(pictures()).mean(1))


def test_a_shift_makes_no_class_token() -> None:
    module = ready(Shifted())
    torch.testing.assert_close(representation_of(module)[0], module(pictures()).mean(1))


def test_tokens_behind_a_projection_of_all_of_them() -> None:
    module = Tokens(1, answer=lambda tokens: module.project(tokens))
    module.project = nn.Linear(WIDTH, 5)
    ready(module)
    torch.testing.assert_close(representation_of(module)[0], module(pictures())[:, 0])


def test_as_many_channels_as_tokens_are_not_confused() -> None:
    for width, before in ((PATCHES, 0), (PATCHES + 1, 1)):

        class Square(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)  # noqa: B023
                self.extra = nn.Parameter(torch.zeros(1, before, width))  # noqa: B023

            def forward(self, images: Tensor) -> Tensor:
                x = self.embed(images).flatten(2).transpose(1, 2)
                x = torch.cat([self.extra.expand(images.shape[0], -1, -1), x], 1)
                return self.norm(x + x.mean(1, keepdim=True))

        module = ready(Square())
        tokens = module(pictures())
        torch.testing.assert_close(representation_of(module)[0], tokens[:, 0] if before else tokens.mean(1))


def test_tokens_that_say_the_same_of_every_image_are_no_class_tokens() -> None:
    """Models that answer about images are given tokens that begin a picture, and end it, behind the tower."""

    class Framed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.begin, self.end = nn.Conv2d(3, 8, 4, 4), *(nn.Parameter(torch.zeros(8)) for _ in range(2))

        def forward(self, images: Tensor) -> Tensor:
            x = self.embed(images).flatten(2).transpose(1, 2)
            begin, end = (token.expand(len(x), 1, -1) for token in (self.begin, self.end))
            return torch.cat([begin, x + x.mean(1, keepdim=True), end], 1)

    module = ready(Framed())
    representation, model = representation_of(module)
    torch.testing.assert_close(representation, module(pictures())[:, 1:-1].mean(1))
    assert f"mean over the {PATCHES} tokens" in model.notes[0] and f"(of {PATCHES + 2})" in model.notes[0]


def test_channels_may_come_before_tokens() -> None:
    module = ready(Tokens(answer=lambda tokens: tokens.transpose(1, 2)))
    torch.testing.assert_close(representation_of(module, pool="mean")[0], module(pictures()).mean(2))


def test_channels_may_come_before_tokens_that_were_never_a_map() -> None:
    class Cut(Tokens):
        def forward(self, images: Tensor) -> Any:
            x = (
                images.unflatten(3, (SIDE, 4))
                .unflatten(2, (SIDE, 4))
                .permute(0, 2, 4, 3, 5, 1)
                .flatten(3)
                .flatten(1, 2)
            )
            return self.norm(self.blocks[1](self.blocks[0](self.cut(x)))).transpose(1, 2)

    module = Cut()
    module.cut = nn.Linear(48, WIDTH)
    ready(module)
    found, model = representation_of(module)
    torch.testing.assert_close(found, module(pictures()).mean(2))
    assert f"mean over the {PATCHES} tokens" in model.notes[0]


def test_a_class_token_that_is_not_there_cannot_be_asked_for() -> None:
    with pytest.raises(ModelError, match=r"class token: each comes from the image[\s\S]+pool='mean'"):
        representation_of(ready(Tokens()), pool="class")


# --- maps


def as_map(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))


MAPS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "channels first": (as_map, (2, 3)),
    "channels last": (lambda tokens: tokens.unflatten(1, (SIDE, SIDE)), (1, 2)),
}


@pytest.mark.parametrize("kind", MAPS)
def test_maps_are_pooled_when_asked(kind: str) -> None:
    answer, places = MAPS[kind]
    module = ready(Tokens(answer=answer))
    found, model = representation_of(module, pool="mean")
    torch.testing.assert_close(found, module(pictures()).mean(places))
    assert f"mean over the {SIDE} x {SIDE} places" in model.notes[0]
    with pytest.raises(ModelError, match=r"returns is \[1, .*\], a map[\s\S]+pool='mean'[\s\S]+representation="):
        representation_of(module)
    with pytest.raises(ModelError, match=r"no class token[\s\S]+pool='mean'"):
        representation_of(module, pool="class")
    with pytest.raises(ModelError, match="a map"):
        unweave.plan(module, pictures())


def test_a_map_of_one_cell_needs_no_pooling() -> None:
    module = ready(Tokens(answer=lambda tokens: tokens.mean(1)[:, :, None, None]))
    found, model = representation_of(module)
    torch.testing.assert_close(found, module(pictures()).flatten(1))
    assert not model.notes


# --- records


RECORDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tuple": (lambda t: (t[:, 0], t), "0"),
    "list": (lambda t: [t, t[:, 0]], "1"),
    "dict": (lambda t: {"tokens": t, "pooled": t[:, 0], "loss": t.sum()}, "pooled"),
    "dataclass": (lambda t: Record(t[:, 0], t), "pooled"),
    "named tuple": (lambda t: Named(t[:, 0], t), "pooled"),
    "nested": (lambda t: {"encoder": [t, {"pooled": t[:, 0]}]}, "encoder.1.pooled"),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_of_records_the_first_vector_is_taken_and_said(kind: str) -> None:
    answer, path = RECORDS[kind]
    module = ready(Tokens(1, answer=answer))
    expected = ready(Tokens(1, answer=lambda tokens: tokens[:, 0]))(pictures())
    found, model = representation_of(module)
    torch.testing.assert_close(found, expected)
    assert f"`{path}` is taken" in model.notes[0]
    named, model = representation_of(module, representation=path)
    torch.testing.assert_close(named, expected)
    assert not model.notes
    torch.testing.assert_close(unweave.plan(module, pictures()).run(pictures()).representation, expected)


def test_with_pooling_the_tokens_of_a_record_are_taken() -> None:
    module = ready(Tokens(1, answer=lambda tokens: {"pooler_output": tokens[:, 0], "last_hidden_state": tokens}))
    tokens = module(pictures())["last_hidden_state"]
    torch.testing.assert_close(representation_of(module, pool="mean")[0], tokens[:, 1:].mean(1))
    torch.testing.assert_close(representation_of(module)[0], tokens[:, 0])


def test_of_several_maps_one_has_to_be_named() -> None:
    module = ready(Tokens(answer=lambda tokens: {"p4": as_map(tokens), "p5": as_map(tokens)[..., :2, :2]}))
    with pytest.raises(ModelError, match=r"several tensors[\s\S]+`p4`, `p5`[\s\S]+representation='p5'"):
        representation_of(module, pool="mean")
    found, _ = representation_of(module, pool="mean", representation="p5")
    torch.testing.assert_close(found, module(pictures())["p5"].mean((2, 3)))


@pytest.mark.parametrize(
    ("answer", "options", "says"),
    [
        (lambda t: t[:, 0], {"pool": "mean"}, r"\[1, 8\], which has neither tokens nor places"),
        (lambda t: {"x": t[:, 0]}, {"representation": "y"}, r"holds no tensor 'y'; it holds `x`"),
        (lambda t: {"loss": t.sum()}, {}, r"holds no tensor; it holds `loss`"),
        (lambda t: t.sum(), {}, r"not a representation \[image, dim\]"),
        (lambda t: t[:, 0].argsort(1)[:, :, None], {}, r"not a representation \[image, dim\]"),
        (lambda t: None, {}, r"\(NoneType\) holds no tensor\."),
    ],
)
def test_what_is_no_representation_is_refused(answer: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Model.from_module(ready(Tokens(1, answer=answer)), input_size=IMAGE, **options)
