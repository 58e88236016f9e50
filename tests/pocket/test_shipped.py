"""The shipped evaluation set is whole, true to the world, and says so when it is not."""

import shutil
from collections import Counter

import numpy as np
import pytest

from unweave.errors import UnweaveError
from unweave.pocket import shipped
from unweave.pocket.shipped import HELD_OUT, SCENES, SEED, evaluation, read, write
from unweave.pocket.world import COLOURS, LOCATIONS, OBJECTS, PATTERNS, World


@pytest.fixture(scope="module")
def scenes():
    return [World(1).scene(number) for number in range(40)]


@pytest.fixture(scope="module")
def written(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write(scenes, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "evaluation")


def test_it_is_as_large_as_it_says():
    scenes = evaluation()
    assert len(scenes) == len(scenes.captions) == SCENES == 2000
    assert scenes.images.shape == (SCENES, 64, 64, 3)
    assert scenes.masks.shape == (SCENES, 64, 64)
    assert scenes.held_out.sum() == HELD_OUT == 400
    assert scenes.held_out[-HELD_OUT:].all()
    assert evaluation() is scenes


def test_every_value_is_there_often_enough_to_measure():
    scenes = evaluation()
    names = tuple(thing.name for thing in OBJECTS)
    for factor, values, least in (
        ("object", names, 20),
        ("colour", COLOURS, 60),
        ("pattern", PATTERNS, 100),
        ("location", LOCATIONS, 120),
    ):
        counts = Counter(scenes.values(factor))
        assert all(counts[value] >= least for value in values), counts


@pytest.mark.parametrize("number", [0, 700, 1599, 1600, 1999])
def test_it_is_what_the_world_draws(number):
    scenes = evaluation()
    scene = World(SEED, styles=(scenes.factors[number].style,)).scene(number)
    assert scene.factors == scenes.factors[number]
    assert scene.caption == scenes.captions[number]
    # Another Pillow may round otherwise, but draws the same picture.
    assert np.abs(scene.image.astype(int) - scenes.images[number]).mean() < 2
    assert (scene.mask != scenes.masks[number]).mean() < 0.01


def test_reading_gives_back_what_was_written(folder, scenes):
    again = read(folder)
    assert np.array_equal(again.images, [scene.image for scene in scenes])
    assert np.array_equal(again.masks, [scene.mask for scene in scenes])
    assert again.factors == tuple(scene.factors for scene in scenes)
    assert again.captions == tuple(scene.caption for scene in scenes)


@pytest.mark.parametrize("name", ["evaluation.webp", "evaluation-masks.png", "evaluation.json"])
def test_a_missing_or_damaged_file_is_named_with_a_cure(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:200] + b"\0" + whole[201:]):
        path.write_bytes(damaged)
        with pytest.raises(UnweaveError, match="cannot be read") as caught:
            read(folder)
        assert caught.value.where == str(path)
        assert "unweave.pocket.shipped" in caught.value.cure
    path.unlink()
    with pytest.raises(UnweaveError, match="cannot be read"):
        read(folder)


def test_files_of_different_sets_are_not_mixed(folder, scenes, tmp_path):
    write(scenes[::-1], tmp_path)
    shutil.copy(tmp_path / "evaluation.webp", folder)
    with pytest.raises(UnweaveError, match=r"not the file that evaluation\.json describes"):
        read(folder)


def test_the_command_draws_it_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    monkeypatch.setattr(shipped, "SCENES", 40)
    monkeypatch.setattr(shipped, "HELD_OUT", 15)
    shipped.main()
    again = read(tmp_path)
    assert (len(again), again.held_out.sum()) == (40, 15)
    assert again.factors[:25] == evaluation().factors[:25]
