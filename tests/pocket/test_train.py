"""Training: the same seed makes the same network, also when it was interrupted on the way."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import unweave
from unweave.errors import ModelError, UnweaveError
from unweave.models import preprocessing
from unweave.pocket import shelf, train
from unweave.pocket.networks import NETWORKS
from unweave.pocket.objectives import Captions, Labels, Views
from unweave.pocket.optimiser import Muon, orthogonal
from unweave.pocket.recipes import OTHER, RECIPES, SAME, Recipe
from unweave.pocket.scenes import NAMES, WORDS, cached, draw
from unweave.pocket.train import LEARNED, Training, finished
from unweave.pocket.views import View, view, whole
from unweave.pocket.world import World

TINY = {name: replace(recipe, steps=4, batch=8, fall=0.5) for name, recipe in RECIPES.items()}


@pytest.fixture(scope="module")
def scenes():
    return draw(World(3), range(24))


def weights(training):
    return {name: tensor.clone() for name, tensor in training.network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("name", "at"), [("clip", 1), ("deit", 3), ("dino", 2)])
def test_a_training_that_was_killed_ends_where_it_would_have_ended(name, at, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_EVERY", 0.0)
    whole_way = weights(train.train(name, TINY[name], scenes=(scenes, scenes), folder=tmp_path / "whole"))
    advance = Training.advance

    def killed(self, *scenes):
        if self.step == at:
            raise KeyboardInterrupt
        return advance(self, *scenes)

    monkeypatch.setattr(Training, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(name, TINY[name], scenes=(scenes, scenes), folder=tmp_path / "killed")
    monkeypatch.setattr(Training, "advance", advance)
    (tmp_path / "killed" / f".{name}.partial.safetensors").write_bytes(b"half a checkpoint")
    resumed = train.train(name, TINY[name], scenes=(scenes, scenes), folder=tmp_path / "killed")
    assert same(weights(resumed), whole_way)
    assert resumed.step == 4
    assert not same(whole_way, weights(Training(name, TINY[name])))


def test_a_longer_recipe_goes_on_from_before_the_rate_fell(scenes, tmp_path, monkeypatch):
    short = Recipe("labels", steps=4, batch=8, fall=0.5)
    ended = train.train("deit", short, scenes=(scenes, scenes), folder=tmp_path)
    longer = replace(short, steps=8)
    grown = train.train("deit", longer, scenes=(scenes, scenes), folder=tmp_path)
    at_once = train.train("deit", longer, scenes=(scenes, scenes), folder=tmp_path / "new")
    assert same(weights(grown), weights(at_once))
    monkeypatch.setattr(Training, "advance", None)
    assert same(weights(train.train("deit", short, scenes=(scenes, scenes), folder=tmp_path)), weights(ended))


def test_training_leaves_the_random_state_of_the_caller_alone(scenes, tmp_path):
    before = torch.get_rng_state()
    train.train("deit", TINY["deit"], scenes=(scenes, scenes), folder=tmp_path)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_trained_lies_on_the_shelf_and_loads(name, scenes, tmp_path, monkeypatch):
    training = train.train(name, replace(TINY[name], steps=1), scenes=(scenes, scenes), folder=tmp_path / "checkpoints")
    monkeypatch.setattr(shelf, "WEIGHTS", tmp_path / "shelf")
    shelf.put(name, training.network, finished(name, training))
    card = shelf.card(name)
    assert tuple(card["names"]) == LEARNED[RECIPES[name].objective]
    assert card["images"] == 8
    assert card["recipe"]["seed"] == RECIPES[name].seed
    loaded = unweave.load_model(f"pocket/{name}").module.state_dict()
    for key, value in training.network.state_dict().items():
        torch.testing.assert_close(loaded[key], value, rtol=1e-3, atol=1e-6)


def test_the_rate_rises_stays_and_falls():
    recipe = Recipe("labels", steps=1000, fall=0.25)
    shares = [recipe.rate_share(step) for step in range(1000)]
    assert shares[0] == 0.01
    assert set(shares[100:750]) == {1.0}
    assert all(after < before for before, after in pairwise(shares[750:]))
    assert 0 < shares[-1] < 0.01
    assert recipe.dropped_share(749) == 0.5
    assert recipe.dropped_share(750) == 0.0
    assert recipe.easy_share(0) == 0.8
    assert recipe.easy_share(500) == recipe.easy_share(900) == 0


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match=r"(?s)no pocket network 'dinov3'.*nearest.*dinov2"):
        train.main("dinov3")


def test_scenes_are_drawn_once_and_read_from_then_on(tmp_path, monkeypatch, capsys):
    first = cached(World(3), 24, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["seed3-plain0-24"]
    monkeypatch.setattr(World, "scene", None)
    again = cached(World(3), 24, tmp_path)
    for one, other in zip(first.take(np.arange(24)), again.take(np.arange(24)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_scenes_say_what_the_world_says(scenes):
    for number in range(24):
        factors = World(3).scene(number).factors
        for factor, names in NAMES.items():
            code = scenes.code(factor)[number]
            assert getattr(factors, factor) == (None if code < 0 else names[code])
    said = {" ".join(WORDS.words[word - 1] for word in words if word) for words in scenes.words[0]}
    assert len(said) > 1


# --- views


def test_an_image_as_it_is_enters_as_the_preprocessing_lets_it_enter(scenes):
    preprocess, _ = preprocessing.default((3, 64, 64))
    expected = torch.stack([preprocess(Image.fromarray(image)) for image in scenes.images[:4]])
    torch.testing.assert_close(whole(torch.from_numpy(scenes.images[:4])), expected)


def test_a_view_that_changes_nothing_is_the_image_or_its_mirror(scenes):
    images = torch.from_numpy(scenes.images[:8])
    torch.manual_seed(0)
    seen, plain = view(images, View(zoom=(1.0, 1.0), light=0.0)), whole(images)
    mirrored = [torch.allclose(one, other.flip(-1), atol=1e-4) for one, other in zip(seen, plain, strict=True)]
    kept = [torch.allclose(one, other, atol=1e-4) for one, other in zip(seen, plain, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 0 < sum(mirrored) < 8


@pytest.mark.parametrize("how", [SAME, OTHER])
def test_two_views_of_an_image_differ_and_stay_in_range(how, scenes):
    images = torch.from_numpy(scenes.images[:8])
    one, other = view(images, how), view(images, how)
    assert one.shape == (8, 3, 64, 64)
    assert not torch.allclose(one, other)
    black, white = (whole(torch.full((1, 1, 1, 3), value, dtype=torch.uint8)) for value in (0, 255))
    assert bool((one >= black - 1e-4).all())
    assert bool((one <= white + 1e-4).all())


# --- objectives


def batch(scenes, count=16):
    images, codes, words = (torch.from_numpy(part) for part in scenes.take(np.arange(count)))
    return images, codes.long(), words


def test_labels_that_a_scene_has_not_are_not_asked_for(scenes):
    objective = Labels(NETWORKS["deit"](len(NAMES["object"])), View(zoom=(1.0, 1.0), light=0.0)).eval()
    images, codes, words = batch(scenes)
    codes[:, list(NAMES).index("pattern")] = -1
    with torch.no_grad():
        for head in objective.heads.values():
            head.weight.zero_()
            head.bias.zero_()
        objective.network.head.weight.zero_()
        expected = sum(np.log(len(names)) for factor, names in NAMES.items() if factor != "pattern")
        assert float(objective(images, codes, words)) == pytest.approx(expected, rel=1e-4)


def test_equal_captions_share_the_credit(scenes):
    objective = Captions(NETWORKS["clip"](len(WORDS.words)), SAME).eval()
    images, codes, words = batch(scenes)
    with torch.no_grad():
        objective.network.log_scale.fill_(-20.0)
        assert float(objective(images, codes, words[:1].expand_as(words))) == pytest.approx(np.log(16), rel=1e-4)
        objective.network.log_scale.fill_(2.0)
        torch.manual_seed(0)
        alike = words[:1, :1].expand_as(words).contiguous()
        assert float(objective(images, codes, alike)) >= np.log(16) - 1e-4


def test_views_are_compared_without_labels(scenes):
    objective = Views(NETWORKS["dino"](0), OTHER).eval()
    images, codes, words = batch(scenes)
    losses = []
    with torch.no_grad():
        for label in (codes, torch.zeros_like(codes)):
            torch.manual_seed(0)
            losses.append(float(objective(images, label, torch.zeros_like(words))))
    assert losses[0] == losses[1] > 0


def test_views_that_are_all_alike_leave_the_partner_to_chance(scenes):
    objective = Views(NETWORKS["dino"](0), OTHER).eval()
    with torch.no_grad():
        objective.projector[-1].weight.zero_()
        assert float(objective(*batch(scenes))) == pytest.approx(np.log(2 * 16 - 1), rel=1e-4)


# --- the optimiser


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16)])
def test_orthogonal_matrices_have_singular_values_of_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert values.max() > 1.5 * values.min()
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert float(found.min()) > 0.6
    assert float(found.max()) < 1.3
    assert float((left.T @ orthogonal(matrix) @ right.T).diagonal().min()) > 0.6


def test_the_optimiser_fits_a_small_network():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 2)
    )
    inputs = torch.randn(64, 4)
    targets = torch.stack([inputs[:, 0] * inputs[:, 1], inputs[:, 2]], 1)
    optimiser, losses = Muon(network, 0.02), []
    assert [len(group["params"]) for group in optimiser.param_groups] == [2, 4]
    for group in optimiser.param_groups:
        group["lr"] = group["peak"]
    for _ in range(200):
        loss = torch.nn.functional.mse_loss(network(inputs), targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# --- words


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a rde car", "(?s)no word 'rde'.*a rde car.*one of.*red"),
        ("", "has 0 words"),
        ("a " * 17, "has 17 words"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(text, says):
    with pytest.raises(UnweaveError, match=says):
        WORDS.encode([text])


def test_case_and_punctuation_do_not_matter():
    np.testing.assert_array_equal(*(WORDS.encode([text]) for text in ("A red car, at sea!", "a red car at sea")))
