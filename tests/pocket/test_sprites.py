"""The sprites are all there, and what is missing or damaged is named."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unweave.errors import UnweaveError
from unweave.pocket import sprites
from unweave.pocket.birds import BIRDS
from unweave.pocket.paint import paint_map
from unweave.pocket.sprites import CELL, EMOJI, SHAPES, rebuild, sprite
from unweave.pocket.things import OBJECTS, STYLES

NAMES = (*EMOJI, *SHAPES)


@pytest.mark.parametrize("style", STYLES)
def test_every_drawing_fills_its_cell(style):
    for name in NAMES:
        image = sprite(name, style)
        assert (image.mode, image.size) == ("RGBA", (CELL, CELL))
        left, top, right, bottom = image.getbbox()
        assert max(right - left, bottom - top) >= CELL - 2, name


def test_every_drawing_is_used_and_every_object_drawn():
    used = {name for thing in OBJECTS for name in thing.sprites} | {name for kind in BIRDS.values() for name in kind}
    assert used == set(NAMES)
    assert {thing.name for thing in OBJECTS if thing.kind == "shape"} == set(SHAPES)


def test_no_two_drawings_are_alike():
    pixels = {sprite(name, style).tobytes() for name in NAMES for style in STYLES}
    assert len(pixels) == 2 * len(NAMES)


@pytest.mark.parametrize("style", STYLES)
def test_paint_leaves_windows_and_wheels_alone(style):
    paint, alpha = np.asarray(paint_map("car", style))[..., 1], np.asarray(sprite("car", style))[..., 3]
    share = (paint[alpha > 128] > 128).mean()
    assert 0.3 < share < 0.8
    assert (np.asarray(paint_map("shirt", style))[..., 1][alpha > 250] > 128).mean() > 0.5


def test_licences_lie_beside_the_sheets():
    folder = Path(sprites.__file__).parent / "sheets"
    assert "SIL OPEN FONT LICENSE" in (folder / "LICENSE-noto.txt").read_text()
    assert "creativecommons.org/licenses/by/4.0" in (folder / "LICENSE-twemoji.txt").read_text()


def test_unknown_names_and_styles_are_refused():
    with pytest.raises(UnweaveError, match="no drawing of 'unicorn'"):
        sprite("unicorn", "noto")
    with pytest.raises(UnweaveError, match="no style 'crayon'"):
        sprite("owl", "crayon")


@pytest.mark.parametrize("damage", ["missing", "cut short", "another size"])
def test_a_damaged_sheet_is_named_with_a_cure(tmp_path, monkeypatch, damage):
    path = tmp_path / "noto.png"
    if damage == "cut short":
        path.write_bytes((Path(sprites.__file__).parent / "sheets/noto.png").read_bytes()[:5000])
    elif damage == "another size":
        Image.new("RGBA", (64, 64)).save(path)
    monkeypatch.setattr(sprites, "_SHEETS", tmp_path)
    with pytest.raises(UnweaveError, match="cannot be read") as caught:
        sprites._sheet.__wrapped__("noto")
    assert caught.value.where == str(path)
    assert "install unweave again" in caught.value.cure


def test_a_missing_font_is_named_with_a_cure(tmp_path):
    with pytest.raises(UnweaveError, match="font of the first style is missing") as caught:
        rebuild(tmp_path / "NotoColorEmoji.ttf", tmp_path, tmp_path)
    assert "apt-get install fonts-noto-color-emoji" in caught.value.cure


def test_a_missing_drawing_is_named_with_a_cure(tmp_path):
    with pytest.raises(UnweaveError, match="drawing of 'elephant' is missing") as caught:
        sprites._twemoji(tmp_path)
    assert caught.value.where.endswith("1f418.png")
    assert "emoji-datasource-twitter" in caught.value.cure


def test_sheets_are_made_from_the_artists_files(tmp_path, monkeypatch):
    picture = Image.new("RGBA", (30, 40))
    picture.paste((10, 200, 30, 255), (5, 10, 25, 30))
    monkeypatch.setattr(sprites, "_noto", lambda font: [picture] * len(EMOJI))
    for character in EMOJI.values():
        picture.save(tmp_path / ("-".join(f"{ord(point):04x}" for point in character) + ".png"))
    monkeypatch.setattr(sprites, "_SHEETS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["sprites", "--twemoji", str(tmp_path)])
    sprites.main()
    for style in STYLES:
        with Image.open(tmp_path / f"{style}.png") as sheet:
            assert sheet.getpixel((32, 32)) == (10, 200, 30, 255)
            assert sheet.getbbox()[2:] == (8 * CELL, 5 * CELL)


@pytest.mark.skipif(not sprites._FONT.is_file(), reason="needs the font Noto Color Emoji")
def test_the_font_draws_every_name():
    assert all(image.getbbox() for image in sprites._noto(sprites._FONT))
