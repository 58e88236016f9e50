"""Contact sheets show every row in full, and every scene where it belongs."""

import sys

import numpy as np
from PIL import Image

from unweave.pocket import contact
from unweave.pocket.contact import contact_sheet, in_rows
from unweave.pocket.world import LOCATIONS, World


def test_rows_are_full_and_no_object_repeats_too_often():
    scenes = in_rows(World(5).scene, lambda scene: scene.factors.location, LOCATIONS, 4, most=2)
    assert [scene.factors.location for scene in scenes] == [place for place in LOCATIONS for _ in range(4)]
    objects = [scene.factors.object for scene in scenes]
    assert max(objects.count(name) for name in objects) <= 2


def test_a_sheet_holds_each_image_at_twice_its_size():
    scenes = [World(0).scene(number) for number in range(3)]
    sheet = np.asarray(contact_sheet(scenes, 2))
    first = scenes[0].image.repeat(2, axis=0).repeat(2, axis=1)
    left = top = 14
    assert np.array_equal(sheet[top : top + 128, left : left + 128], first)


def test_the_command_draws_the_pictures_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["contact", str(tmp_path)])
    contact.main()
    assert {path.name for path in tmp_path.iterdir()} == {"pocket-world.png", "pocket-held-out.png", "pocket-birds.png"}
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert image.width == 7 * (128 + 14) + 14
