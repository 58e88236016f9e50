"""Both solvers find maps that were planted, and the default one is lower in less time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stores import stored
from unweave.alignment import Aligner, Recipe, solvers
from unweave.alignment.objective import objective
from unweave.alignment.pairs import Pairs
from unweave.alignment.solvers import adam, nearest, ranged, shared
from unweave.alignment.state import Keep
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import AlignmentError
from unweave.source import Origin

IMAGES, WIDTH = 400, 12
NAMES = tuple(Component(f"blocks.{layer}.attn", "head", layer, head) for layer in range(2) for head in range(3))


def planted(dim=12, noise=0.0, seed=0):
    """Contributions of three directions each, and the targets that known isometries make of them."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(IMAGES, len(NAMES), 3, generator=generator)
    values = torch.einsum("ncr,crw->ncw", inner, torch.randn(len(NAMES), 3, WIDTH, generator=generator))
    maps = torch.stack([nearest(torch.randn(WIDTH, dim, generator=generator)) for _ in NAMES])
    targets = torch.einsum("ncw,cwd->nd", values, maps)
    targets = (
        targets
        + noise * targets.norm(dim=-1, keepdim=True) * torch.randn(targets.shape, generator=generator) / dim**0.5
    )
    return values, maps, targets


def sides(place, values, targets):
    return split(stored(place, values, NAMES), targets)


def split(source, targets):
    """Pairs of the images to fit, and of those that are held out."""
    pairs = Pairs.of(source.view(), targets)
    _, other = pairs.view.split(0.2, 0)
    kept = np.isin(pairs.view.ids, other.ids)
    return pairs.take(np.flatnonzero(~kept)), pairs.take(np.flatnonzero(kept))


@pytest.mark.parametrize("dim", [12, 15, 8])
def test_the_default_solver_recovers_planted_maps(tmp_path, dim):
    values, maps, targets = planted(dim)
    solution = ranged(*sides(tmp_path, values, targets), Recipe(rounds=30))
    assert solution.path[-1].held_out < 1e-3 < solution.path[0].held_out
    aligned, expected = (torch.einsum("ncw,cwd->ncd", values, side) for side in (solution.maps, maps))
    scale = (aligned * expected).sum() / aligned.square().sum()  # the cosine does not tell it
    assert (scale * aligned - expected).norm() / expected.norm() < 0.1


def test_the_default_solver_goes_from_one_map_over_blocks_to_descent(tmp_path):
    values, _, targets = planted(noise=0.3)
    solution = ranged(*sides(tmp_path, values, targets), Recipe(rounds=2))
    steps = ["one map", "blocks 1", "blocks 2", "descent 1", "descent 2"]
    assert [point.step for point in solution.path] == steps
    seconds = [point.seconds for point in solution.path]
    assert seconds == sorted(seconds)


def test_noise_is_what_is_left(tmp_path):
    values, _, targets = planted(noise=0.3)
    _, _, clean = planted()
    left = float(1 - torch.nn.functional.cosine_similarity(clean, targets, dim=-1).mean())
    solution = ranged(*sides(tmp_path, values, targets), Recipe(rounds=30))
    assert left < min(point.held_out for point in solution.path) < 1.6 * left


def test_the_published_recipe_goes_down_and_the_default_goes_lower(tmp_path):
    values, _, targets = planted(noise=0.1)
    train, other = sides(tmp_path, values, targets)
    slow = adam(train, other, Recipe(epochs=20, rate=3e-3))
    quick = ranged(train, other, Recipe())
    assert slow.path[0].total > slow.path[-1].total
    assert min(point.total for point in quick.path) < min(point.total for point in slow.path)


@pytest.mark.parametrize("form", ["mean-squared", "frobenius"])
@pytest.mark.parametrize("solve", [adam, ranged])
def test_a_point_is_the_objective_of_the_maps(tmp_path, solve, form):
    values, _, targets = planted(noise=0.2)
    train, other = sides(tmp_path, values, targets)
    solution = solve(train, other, Recipe(form=form, weight=0.7, rounds=3))
    best = min(solution.path, key=lambda point: point.total)
    for pairs, term in ((train, best.train), (other, best.held_out)):
        first, second = objective(
            pairs.view.values(), solution.maps, solution.bias, pairs.targets, weight=0.7, form=form
        )
        assert float(first) == pytest.approx(term, abs=2e-5)
        assert float(second) == pytest.approx(best.penalty, rel=2e-2, abs=2e-4)


def test_what_does_not_fit_into_the_memory_is_read_again(tmp_path):
    values, _, targets = planted(noise=0.1)
    train, other = sides(tmp_path, values, targets)
    whole, streamed = (ranged(train, other, Recipe(memory=memory, sweeps=0, rounds=2)) for memory in (2**30, 1))
    assert torch.allclose(whole.maps, streamed.maps, atol=1e-4)


def test_the_same_seed_gives_the_same_maps(tmp_path):
    values, _, targets = planted(noise=0.1)
    train, other = sides(tmp_path, values, targets)
    for solve in (adam, ranged):
        first, second = (solve(train, other, Recipe(rounds=2)) for _ in range(2))
        assert torch.equal(first.maps, second.maps)


def test_one_map_for_all_is_procrustes(tmp_path):
    values, _, targets = planted()
    train, _ = sides(tmp_path, values, targets)
    z = train.view.sum()
    left, _, right = np.linalg.svd(z.numpy().T @ train.targets.numpy())
    assert np.abs(shared(train).numpy() - left @ right).max() < 1e-4


def test_constant_and_empty_components_have_maps(tmp_path):
    values, _, targets = planted(noise=0.1)
    values[:, 1] = 0
    values[:, 2] = values[0, 2]
    for solve in (adam, ranged):
        solution = solve(*sides(tmp_path / solve.__name__, values, targets), Recipe(rounds=2))
        assert bool(torch.isfinite(solution.maps).all())


def test_images_are_held_out_by_their_ids(tmp_path):
    ids = [f"{number}.png" for number in range(1000)]
    values = torch.zeros(1000, len(NAMES), 2)
    forth, back = (
        stored(tmp_path / name, values, NAMES, ids=names).view() for name, names in (("a", ids), ("b", ids[::-1]))
    )
    held_out = forth.split(0.1, 0)[1].ids
    assert 60 < len(held_out) < 140
    assert back.split(0.1, 0)[1].ids == held_out[::-1]
    assert forth.split(0.1, 1)[1].ids != held_out


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("solve", [adam, ranged])
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_interrupted_goes_on_as_it_was(tmp_path, solve, after):
    values, _, targets = planted(noise=0.2)
    train, other = sides(tmp_path / "store", values, targets)
    recipe = Recipe(rounds=2, epochs=5)
    whole = solve(train, other, recipe)
    keep, seen = Keep(tmp_path / "state", "this"), []

    def until(point):
        seen.append(point)
        if len(seen) > after:
            raise Interrupted

    with pytest.raises(Interrupted):
        solve(train, other, recipe, until, keep)
    told = []
    again = solve(train, other, recipe, told.append, keep)
    assert len(told) == len(whole.path) - after  # what was done before is not done again
    assert torch.equal(again.maps, whole.maps) and torch.equal(again.bias, whole.bias)
    assert [point.total for point in again.path] == [point.total for point in whole.path]
    for other_key in (Keep(tmp_path / "state", "another"), Keep(tmp_path / "nothing", "this")):
        assert other_key.load() is None
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-100])
    assert keep.load() is None
    keep.forget()
    assert not (tmp_path / "state").exists()
    (tmp_path / "file").touch()
    with pytest.raises(AlignmentError, match="state of the alignment cannot be written"):
        solve(train, other, recipe, keep=Keep(tmp_path / "file/state", "this"))


def test_it_stops_when_nothing_is_gained(tmp_path, monkeypatch):
    values, _, targets = planted()
    train, other = sides(tmp_path, values, targets)
    monkeypatch.setattr(solvers, "_descended", lambda small, spans, width, maps, bias, recipe: (maps, bias))
    solution = ranged(train, other, Recipe(rounds=50, patience=3, sweeps=0))
    assert len(solution.path) == 1 + 3


# --- aligners


def aligner():
    generator = torch.Generator().manual_seed(3)
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head", "space": "s"}
    identity |= {"space_hash": "h", "space_loading": {}}
    maps = torch.randn(len(NAMES), WIDTH, 5, generator=generator)
    return Aligner(maps, torch.randn(5, generator=generator), NAMES, identity, {"x": 1.5})


def contributions(**changed):
    origin = Origin(
        **{"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"} | changed
    )
    values = torch.randn(4, len(NAMES), WIDTH, generator=torch.Generator().manual_seed(4))
    return Contributions(values, NAMES, tuple("abcd"), values.sum(1), torch.zeros(4), origin=origin)


def test_an_aligner_applies_its_maps_by_name():
    made, given = aligner(), contributions()
    expected = torch.stack([given.values[:, row] @ made.maps[row] for row in range(len(NAMES))], 1)
    assert torch.allclose(made(given), expected, atol=1e-5)
    assert torch.allclose(made(given["blocks.1.*"]), expected[:, 3:], atol=1e-5)
    assert torch.allclose(made.representation(given), expected.sum(1) + made.bias, atol=1e-5)
    with pytest.raises(AlignmentError, match="needs all components"):
        made.representation(given["blocks.1.*"])


@pytest.mark.parametrize("field", ["model", "weights_hash", "level", "preprocessing"])
def test_an_aligner_of_another_model_is_refused_by_the_field(field):
    with pytest.raises(AlignmentError, match=f"another {field.replace('_', ' ')}") as caught:
        aligner()(contributions(**{field: {"preprocessing": {"a": 1}, "level": "layer"}.get(field, "other")}))
    assert f"field `{field}`" in str(caught.value)


def test_a_component_without_a_map_is_named():
    given = contributions()
    other = Contributions(given.values[:, :1], (Component("x", "mlp"),), given.ids, given.representation, given.error)
    with pytest.raises(AlignmentError, match="no map for the component x"):
        aligner()(other)


def test_an_aligner_is_kept_and_read(tmp_path):
    made = aligner()
    made.save(tmp_path / "a")
    again = Aligner.load(tmp_path / "a")
    assert torch.equal(again.maps, made.maps) and torch.equal(again.bias, made.bias)
    assert again.components == made.components and again.identity == made.identity and again.measured == made.measured
    card = json.loads((tmp_path / "a/aligner.json").read_text())
    for damage, what in (
        (json.dumps(card | {"version": 2}), "has version 2"),
        (json.dumps(card | {"format": "x"}), "another format"),
        (json.dumps(card | {"measured": {}}), "do not belong together"),
        ("[", "cannot be read"),
    ):
        (tmp_path / "a/aligner.json").write_text(damage)
        with pytest.raises(AlignmentError, match=what):
            Aligner.load(tmp_path / "a")
    with pytest.raises(AlignmentError, match="cannot be read"):
        Aligner.load(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(AlignmentError, match="cannot be written"):
        made.save(tmp_path / "file/a")


def test_how_the_text_space_is_loaded_is_held_against_what_there_is(tmp_path):
    made = aligner()
    replace(made, identity={**made.identity, "space_loading": {"trust": True}}).save(tmp_path / "a")
    with pytest.raises(AlignmentError, match=r"space_loading\.trust` is unknown"):
        Aligner.load(tmp_path / "a")


def test_pushing_uploads_both_files(monkeypatch):
    seen = {}

    class Api:
        def create_repo(self, repository, exist_ok):
            seen["made"] = repository, exist_ok

        def upload_folder(self, repo_id, folder_path, **options):
            seen["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            seen["again"] = Aligner.load(folder_path)
            seen["options"] = options
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    made = aligner()
    assert made.push("me/mine", commit_message="m") == "https://hub/me/mine"
    assert seen["made"] == ("me/mine", True) and seen["options"] == {"commit_message": "m"}
    assert seen["files"] == ["aligner.json", "aligner.safetensors"]
    assert torch.equal(seen["again"].maps, made.maps)


def test_a_hub_that_does_not_answer_is_an_error_in_words(monkeypatch):
    class Api:
        def create_repo(self, repository, exist_ok):
            raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(AlignmentError, match="cannot be uploaded: no route"):
        aligner().push("me/mine")


def test_the_defect_of_an_isometry_is_nothing():
    made = aligner()
    isometries = Aligner(torch.stack([nearest(map_) for map_ in made.maps]), made.bias, NAMES, {})
    assert isometries.defects().max() < 1e-5 < made.defects().min()
