"""A text space of any two functions: what comes back is checked, and the space is known again by what it does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import normalize
from torchvision.transforms import functional

import unweave
from stores import SMALL, draw, model, remembering
from tiny import SIZE, WIDTH, Vit, ready
from unweave.alignment import Aligner, Recipe, align, aligned
from unweave.errors import AlignmentError, ArgumentError, ModelError, NonFiniteError
from unweave.text import TextSpace
from unweave.text.behaviour import Behaviour, drawn_images

RECIPE = Recipe(rounds=1, sweeps=1, held_out=0.3, random_images=0)
TOWER = ready(Vit(), torch.float32)
LETTERS = torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(0))


def texts(given):
    """The mean of the letters' vectors."""
    return torch.stack([LETTERS[[ord(letter) % 128 for letter in text]].mean(0) for text in given])


def images(pixels):
    with torch.no_grad():
        return TOWER(pixels)


def preprocess(image):
    return functional.to_tensor(functional.resize(image, [SIZE, SIZE]))


def space(**given):
    given = {"encode_texts": texts, "encode_images": images, "preprocess": preprocess} | given
    return TextSpace.from_functions(**given)


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    with remembering(folder / "cache"):
        yield unweave.extract(model(), draw(folder / "images", 24), folder / "store", SMALL)


# --- the vectors


def test_vectors_are_brought_to_length_one_and_not_kept_on_disk(no_cache):
    calls = []

    def counted(given):
        calls.append(list(given))
        return 7 * texts(given).numpy()

    made = space(encode_texts=counted, id="letters")
    calls.clear()
    found = made.encode(["a bird", "grass"])
    assert torch.allclose(found, normalize(texts(["a bird", "grass"]), dim=1), atol=1e-6)
    assert torch.equal(made.encode(["a bird", "grass"]), found) and calls == [["a bird", "grass"]]
    assert not no_cache.exists()
    assert "letters" in repr(made) and made.as_code() == "space" and made.templates == ("{}",)


def test_templates_and_match_are_those_that_are_given():
    made = space(templates=["{} seen", "no {}"], match=unweave.text.Match(10.0))
    each = [normalize(texts([text]), dim=1)[0] for text in ("it seen", "no it")]
    assert torch.allclose(made.encode(["it"])[0], normalize(sum(each), dim=0), atol=1e-6)
    one = torch.eye(WIDTH)[:1]
    assert torch.allclose(made.logits(one, one), torch.tensor([[10.0]]))


def padded(given):
    """What a tower makes that reads what fills texts up."""
    longest = max(map(len, given))
    return torch.stack([LETTERS[[ord(letter) % 128 for letter in text.ljust(longest)]].mean(0) for text in given])


def wrong(what):
    def function(given):
        made = texts(["abc"] * len(given)) + torch.arange(len(given))[:, None]
        return what(made)

    return function


@pytest.mark.parametrize(
    ("side", "function", "what"),
    [
        ("encode_texts", wrong(lambda made: made[0]), "came back for 4"),
        ("encode_texts", wrong(lambda made: made[:-1]), "came back for 4"),
        ("encode_texts", wrong(lambda made: made[:, None].expand(-1, 5, -1)), "came back for 4"),
        ("encode_texts", wrong(lambda made: made.tolist()), "A list came back"),
        ("encode_texts", wrong(lambda made: made.long()), "int64"),
        ("encode_texts", wrong(lambda made: made * torch.nan), "NaN or infinite"),
        ("encode_texts", wrong(lambda made: made * 0), "A vector is zero"),
        ("encode_texts", lambda given: texts(given)[:, :5], "Texts have 5 dimensions, and images 8"),
        ("encode_texts", lambda given: texts(given) + 0.1 * torch.rand(1), "Two calls returned different vectors"),
        ("encode_texts", padded, "depends on what else is in the batch"),
        ("encode_texts", lambda given: texts(given)[torch.arange(len(given)).flip(0)], "depends on what else"),
        ("encode_texts", lambda given: LETTERS[:1].expand(len(given), -1), "the same vector of everything"),
        ("encode_texts", lambda given: {}["word"], "failed on 4 texts: KeyError: 'word'"),
        ("encode_images", lambda pixels: images(pixels)[:, :5], "Texts have 8 dimensions, and images 5"),
        ("encode_images", lambda pixels: images(pixels)[:1], "came back for 3"),
        ("encode_images", lambda pixels: pixels, "came back for 3"),
        ("encode_images", lambda pixels: images(pixels) - images(pixels).mean(0), "A vector is zero|depends on what"),
        ("encode_images", lambda pixels: images(pixels * 0), "the same vector of everything"),
        ("encode_images", lambda pixels: images(pixels) / 0, "NaN or infinite"),
        ("encode_images", lambda pixels: nn.functional.dropout(images(pixels)), "Two calls"),
        ("preprocess", lambda image: image, "It returned a Image"),
        ("preprocess", lambda image: preprocess(image)[None], "shape \\(1, 3,"),
        ("preprocess", lambda image: (255 * preprocess(image)).byte(), "uint8"),
        ("preprocess", functional.to_tensor, "Images of different shapes"),
        ("preprocess", lambda image: preprocess(image) + torch.rand(1), "two different inputs of one image"),
        ("preprocess", lambda image: preprocess(image) / 0, "NaN or infinite pixels"),
        ("preprocess", lambda image: image["pixels"], "failed on an RGB image of 320 x 240"),
    ],
)
def test_what_cannot_be_a_text_space_is_refused(side, function, what):
    with pytest.raises(ModelError, match=what) as caught:
        space(**{side: function}, id="mine")
    assert "mine" in caught.value.where and caught.value.cure
    assert side in caught.value.where or "dimensions" in what


def test_too_few_probes_are_refused():
    for probes in ([], ["one"], ["one", "one"], "one"):
        with pytest.raises(ArgumentError, match="fewer than two"):
            space(probes=probes)


def test_errors_of_the_functions_pass_and_so_do_later_failures():
    words = {"a": 0, "bird": 1}

    def closed(given):
        for text in given:
            unknown = next((word for word in text.split() if word not in words), None)
            if unknown is not None:
                raise ArgumentError(f"No word {unknown}.")
        return texts(given)

    with pytest.raises(ArgumentError, match="No word photo"):
        space(encode_texts=closed)
    made = space(encode_texts=closed, probes=["a", "bird"])
    assert made.encode(["a bird"]).shape == (1, WIDTH)
    with pytest.raises(ArgumentError, match="No word red"):
        made.encode(["red"])
    late = space(encode_texts=lambda given: texts(given) / (0 if "late" in given else 1))
    with pytest.raises(NonFiniteError, match="1 of 1 vectors"):
        late.encode(["late"])


def test_a_module_is_the_model_itself_and_never_changed():
    module = ready(Vit(), torch.float32)
    module.train()
    made = space(encode_images=module)
    assert made.images.weights_hash == unweave.Model.from_module(module, input_size=(3, SIZE, SIZE)).weights_hash
    assert module.training
    headed = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, num_heads=2, depth=1, num_classes=WIDTH
    ).eval()
    pixels = torch.stack([preprocess(image) for image in drawn_images()])
    pixels = nn.functional.interpolate(pixels, 32)
    made = space(encode_images=headed, preprocess=lambda image: functional.resize(preprocess(image), [32, 32]))
    example = made.images.example(2)
    with torch.no_grad():
        assert torch.allclose(made.images.readout(example), headed(example), atol=1e-6)


# --- aligners


def test_an_aligner_into_functions_has_to_be_given_its_space_again(store, tmp_path):
    mine = space(id="letters")
    made = align(store, mine, RECIPE)
    features = {"x": ["a bird", "grass"]}
    scores = unweave.score(store, features, space=made)
    made.save(tmp_path / "aligner", figure=False)

    loaded = Aligner.load(tmp_path / "aligner")
    assert loaded.incomplete and "has to be given" in repr(loaded)
    for attempt in (loaded, tmp_path / "aligner", str(tmp_path / "aligner")):
        with pytest.raises(AlignmentError, match="made of functions") as caught:
            unweave.score(store, features, space=attempt)
        assert "space=TextSpace.from_functions" in caught.value.cure
    with pytest.raises(AlignmentError, match="made of functions"):
        unweave.heatmap(model(), store.view().origin.images[0].data, texts=["a bird"], space=loaded)

    given = Aligner.load(tmp_path / "aligner", space=space(id="other name"))
    assert not given.incomplete and given.space is not None
    again = unweave.score(store, features, space=given)
    assert again.table().equals(scores.table())
    assert "Aligner.load(" in again.code() and ", space=space)" in again.code()
    assert "no command line makes it" in again.code()
    assert "space=aligner" in scores.code() or "aligner" in scores.code()
    view, words = aligned(store.view().through(loaded), mine)
    assert words is mine and view.aligner is loaded
    assert "from_functions" not in json.dumps(dict(loaded.identity))


@pytest.mark.parametrize(
    "other",
    [
        {"encode_texts": lambda given: texts(given).roll(1, 1)},
        {"encode_images": lambda pixels: images(pixels).roll(1, 1)},
        {"encode_texts": lambda given: texts(given) + 0.1},
        {"preprocess": lambda image: preprocess(image) - 0.5},
        {"encode_texts": lambda given: texts(given)[:, :5], "encode_images": lambda pixels: images(pixels)[:, :5]},
    ],
)
def test_another_space_is_refused(store, tmp_path, other):
    made = align(store, space(), RECIPE)
    made.save(tmp_path, figure=False)
    with pytest.raises(AlignmentError, match="another text space"):
        Aligner.load(tmp_path, space=space(**other))
    with pytest.raises(AlignmentError, match="another text space"):
        unweave.score(store.view().through(made), {"x": ["a bird"]}, space=space(**other))


def test_lengths_rounding_and_other_probes_make_no_other_space(store, tmp_path):
    made = align(store, space(), RECIPE)
    made.save(tmp_path, figure=False)
    noise = 1e-3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    alike = space(encode_texts=lambda given: 3 * texts(given) + noise, probes=["one", "two"])
    assert Aligner.load(tmp_path, space=alike).space is alike
    other = space(encode_texts=lambda given: texts(given).roll(1, 1), probes=["one", "two"])
    with pytest.raises(AlignmentError, match="another text space"):
        Aligner.load(tmp_path, space=other)


def test_a_damaged_record_of_the_space_is_an_error(store, tmp_path):
    align(store, space(), RECIPE).save(tmp_path, figure=False)
    card = tmp_path / "aligner.json"
    written = card.read_text()
    assert written.count('"sketch"') == 1
    card.write_text(written.replace('"dim"', '"dimension"'))
    with pytest.raises(AlignmentError):
        Aligner.load(tmp_path)


def test_the_model_of_the_space_itself_needs_no_aligner(tmp_path):
    module = ready(Vit(), torch.float32)
    mine = space(encode_images=module)
    own = unweave.Model.from_module(module, preprocess=preprocess, input_size=(3, SIZE, SIZE), id="own")
    contributions = unweave.decompose(own, draw(tmp_path / "images", 4))
    view, words = aligned(contributions, mine)
    assert words is mine
    found = view.along(mine.encode(["a bird"])).sum(1)
    assert torch.allclose(found, contributions.representation @ mine.encode(["a bird"]).T, atol=1e-4)
    assert unweave.score(contributions, {"x": ["a bird", "grass"]}, space=mine).code().count("space=space") == 1


def test_vectors_of_images_that_are_nan_are_named(store):
    mine = space()
    broken = replace(mine, images=unweave.Model.from_module(Nan(), input_size=(3, SIZE, SIZE), id="nan"))
    with pytest.raises(NonFiniteError, match="NaN") as caught:
        align(store, broken, RECIPE)
    assert "images " in caught.value.where


class Nan(nn.Module):
    def forward(self, pixels):
        return TOWER(pixels).log()


def test_a_behaviour_depends_on_no_length():
    vectors = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    first = Behaviour.of(["a", "b"], vectors, vectors)
    assert first.difference(Behaviour.of(["a", "b"], 2 * vectors, vectors)) is None
    assert "dimensions" in first.difference(Behaviour.of(["a", "b"], vectors[:, :5], vectors[:, :5]))
    assert "'b'" in first.difference(Behaviour.of(["a", "b"], vectors * torch.tensor([[1.0], [-1.0]]), vectors))
    assert np.array(first.sketch).shape == (4, 16)
