"""What the verbs say of images beyond 8-bit RGB, and their options."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import unweave

MODEL = ("timm/test_vit", "--random-weights")


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 4096, (40, 50)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


def test_a_dark_set_is_said_once_and_white_mends_it(run, scans, tmp_path):
    dark = run("decompose", *MODEL, scans, "-o", "dark", "--no-figure")
    assert dark.exit_code == 0, dark.output
    assert dark.stderr.count("warning:") == 1 and "0.png: its values are" in dark.stderr
    assert "`--white 4095`" in dark.stderr
    card = json.loads((tmp_path / "dark" / "contributions.json").read_text())
    assert len(card["notes"]) == 1 and unweave.Contributions.load(tmp_path / "dark").origin.notes == (card["notes"][0],)
    light = run("decompose", *MODEL, scans, "-o", "light", "--no-figure", "--white", "4095")
    assert light.exit_code == 0 and "warning:" not in light.stderr
    several = run("decompose", *MODEL, scans / "0.png", scans / "1.png", "-o", "two", "--no-figure", "--white", "4095")
    assert several.exit_code == 0 and "warning:" not in several.stderr
    one, two = (unweave.Contributions.load(tmp_path / name) for name in ("light", "two"))
    assert np.allclose(one.values[:2], two.values) and one.origin.images[0].white == 4095
    assert not np.allclose(one.values, unweave.Contributions.load(tmp_path / "dark").values)


def test_a_store_keeps_what_is_white(run, scans, tmp_path):
    made = run("extract", *MODEL, scans, "-o", "store", "--white", "4095")
    assert made.exit_code == 0, made.output
    again = run("extract", *MODEL, scans, "-o", "store", "--white", "4095")
    assert again.exit_code == 0, again.output
    other = run("extract", *MODEL, scans, "-o", "store")
    assert other.exit_code == 2 and "`white` was 4095.0 and is None" in other.stderr
    verified = run("store", "verify", "store")
    assert verified.exit_code == 0 and "warning" not in verified.stderr, verified.output
    store = unweave.open_store(tmp_path / "store")
    listed = store.view().origin.images[0]
    assert (listed.white, listed.max_pixels) == (4095.0, None)


def test_very_large_images_have_an_option(run, tmp_path, monkeypatch):
    Image.linear_gradient("L").resize((500, 400)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99_000)  # of the model's own input there are fewer
    refused = run("decompose", *MODEL, tmp_path / "a.png", "-o", "out")
    assert refused.exit_code == 2 and "`--max-pixels 200000`" in refused.stderr
    taken = run("decompose", *MODEL, tmp_path / "a.png", "-o", "out", "--max-pixels", "200000")
    assert taken.exit_code == 0, taken.output


def test_an_extraction_of_which_nothing_can_be_read_is_empty(run, tmp_path):
    (tmp_path / "tiles").mkdir()
    np.save(tmp_path / "tiles" / "a.npy", np.ones((20, 20, 6), np.uint16))
    made = run("extract", *MODEL, tmp_path / "tiles", "-o", "store")
    assert made.exit_code == 0, made.output
    assert "20 x 20 x 6, and the model takes 3" in made.stdout and "holds 0 images" in made.stdout


@pytest.mark.parametrize("number", ["0", "-3", "nan", "inf", "white"])
def test_white_that_cannot_be(run, scans, number):
    refused = run("decompose", *MODEL, scans, "--white", number)
    assert refused.exit_code == 2 and "--white" in refused.stderr
