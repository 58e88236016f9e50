"""What the world says about a scene is what is drawn."""

import colorsys
import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import PIL
import pytest

from unweave.errors import UnweaveError
from unweave.pocket.backgrounds import background
from unweave.pocket.paint import contrasting, pattern
from unweave.pocket.scene import compose, stream
from unweave.pocket.sprites import sprite
from unweave.pocket.things import RGB
from unweave.pocket.world import CATEGORIES, COLOURS, LOCATIONS, OBJECTS, PATTERNS, STYLES, World

PIXELS = {"13.0": "4f7b220fa9eea3625db39aed4032aa1d4ece705d2d5c1117955201ac92a4d153"}
"""The first 100 scenes of World(0), hashed, for each version of Pillow whose drawing was looked at."""

HUES = {
    "red": (-0.06, 0.06),
    "yellow": (0.1, 0.18),
    "green": (0.18, 0.47),
    "purple": (0.7, 0.86),
    "pink": (0.86, 1.08),
}
"""From which hue to which people say the word, in turns of the colour circle; pale red is pink too."""

THINGS = {thing.name: thing for thing in OBJECTS}


@pytest.fixture(scope="module")
def scenes():
    return [World(0).scene(number) for number in range(600)]


def colours_in(scene):
    """The share of the object's pixels that is nearest to each colour, and to the pattern's second colour."""
    anchors = dict(RGB)
    if scene.factors.pattern not in (None, "plain"):
        anchors["contrasting"] = contrasting(scene.factors.colour)
    pixels = scene.image[scene.mask].astype(float)
    found = np.linalg.norm(pixels[:, None] - np.array([*anchors.values()], float), axis=-1).argmin(axis=1)
    return {name: float((found == index).mean()) for index, name in enumerate(anchors)}


def test_a_scene_is_the_same_whatever_was_drawn_before():
    first = World(3).scene(11)
    World(3).scene(4)
    again = World(3).scene(11)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert (first.factors, first.caption, first.number) == (again.factors, again.caption, again.number)


def test_another_process_draws_the_same_pixels():
    code = "import sys; from unweave.pocket import World; sys.stdout.buffer.write(World(3).scene(11).image.tobytes())"
    drawn = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert drawn.stdout == World(3).scene(11).image.tobytes()


def test_the_pixels_are_known_for_a_known_pillow(scenes):
    version = ".".join(PIL.__version__.split(".")[:2])
    if version not in PIXELS:
        pytest.skip(f"what Pillow {version} draws was not looked at")
    pixels = b"".join(scene.image.tobytes() for scene in scenes[:100])
    assert hashlib.sha256(pixels).hexdigest() == PIXELS[version]


def test_the_factors_are_known_for_every_pillow(scenes):
    facts = [(f.object, f.colour, f.pattern, f.location, f.size) for f in (scene.factors for scene in scenes[:3])]
    assert facts == [
        ("penguin", None, None, "sea", 43),
        ("banana", "yellow", None, "meadow", 43),
        ("car", "yellow", "spotted", "beach", 58),
    ]


def test_other_seeds_and_numbers_are_other_scenes():
    images = [World(seed).scene(number).image.tobytes() for seed in range(3) for number in range(3)]
    assert len(set(images)) == 9


def test_every_value_comes_up_and_nothing_else(scenes):
    seen = {name: {getattr(scene.factors, name) for scene in scenes} for name in ("object", "category", "location")}
    assert seen == {"object": set(THINGS), "category": set(CATEGORIES), "location": set(LOCATIONS)}
    assert {scene.factors.colour for scene in scenes} == {*COLOURS, None}
    assert {scene.factors.pattern for scene in scenes} == {*PATTERNS, None}
    assert len(set(OBJECTS)) == 40


def test_painted_things_come_twice_as_often_and_the_rest_evenly(scenes):
    tintable = sum(THINGS[scene.factors.object].tintable for scene in scenes)
    assert abs(tintable / len(scenes) - 22 / 51) < 0.06
    for factor, values in (("location", LOCATIONS), ("pattern", PATTERNS)):
        counts = Counter(getattr(scene.factors, factor) for scene in scenes)
        expected = sum(counts[value] for value in values) / len(values)
        assert all(abs(counts[value] - expected) < 4 * expected**0.5 for value in values)


def test_sizes_and_places_are_in_their_ranges(scenes):
    for factors in (scene.factors for scene in scenes):
        assert 36 <= factors.size <= 60
        assert max(abs(place - 32) for place in factors.centre) <= 8
        assert abs(factors.rotation) <= 12


def test_the_mask_lies_where_the_factors_say(scenes):
    for scene in scenes:
        rows, columns = np.nonzero(scene.mask)
        size, (x, y) = scene.factors.size, scene.factors.centre
        reach = 0.62 * size + 1  # half the side of a square that is turned by 12 degrees
        assert x - reach <= columns.min() <= columns.max() <= x + reach
        assert y - reach <= rows.min() <= rows.max() <= y + reach
        assert 0.12 * size**2 < scene.mask.sum() < size**2 + size
        assert max(np.ptp(rows), np.ptp(columns)) > 0.8 * size


def test_far_from_the_object_the_background_is_left_alone():
    behind = background("meadow", stream(0))
    alpha = np.zeros((64, 64), np.float32)
    alpha[20:40, 20:40] = 1
    image, mask = compose(behind, np.full((64, 64, 3), 200, np.float32), alpha)
    assert np.array_equal(mask, alpha > 0)
    assert (image[mask] == 200).all()
    assert np.abs(image[:12].astype(int) - behind[:12]).max() <= 3


@pytest.mark.parametrize("style", STYLES)
def test_a_painted_thing_has_the_named_colour(style):
    scenes = [World(0, styles=(style,)).scene(number) for number in range(250)]
    for scene in (scene for scene in scenes if THINGS[scene.factors.object].tintable):
        shares = colours_in(scene)
        named = shares.pop(scene.factors.colour)
        shares.pop("contrasting", None)
        assert named > 0.15, (scene.number, scene.factors, shares)
        if THINGS[scene.factors.object].category in ("shape", "clothing"):
            assert named > max(shares.values()), (scene.number, scene.factors, shares)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("thing", [thing for thing in OBJECTS if thing.colour], ids=lambda thing: thing.name)
def test_a_natural_colour_dominates_in_every_style(thing, style):
    pixels = np.asarray(sprite(thing.sprites[0], style)).astype(float) / 255
    pixels = pixels[pixels[..., 3] > 0.9][:, :3]
    if thing.colour == "white":
        assert np.quantile(pixels.min(axis=1), 0.3) > 0.75
        return
    low, high = HUES[thing.colour]
    hues, saturations = np.array([colorsys.rgb_to_hsv(*pixel)[:2] for pixel in pixels]).T
    assert (((hues - low) % 1 < high - low) & (saturations > 0.15)).mean() > 0.5


def test_a_pattern_is_seen_and_plain_is_plain(scenes):
    for scene in (scene for scene in scenes if scene.factors.category == "shape"):
        pixels = scene.image[scene.mask].astype(float)
        base, other = np.array(RGB[scene.factors.colour], float), np.array(contrasting(scene.factors.colour), float)
        along = (pixels - base) @ (other - base) / ((other - base) ** 2).sum()
        share = float((along > 0.5).mean())
        low, high = (0, 0.06) if scene.factors.pattern == "plain" else (0.12, 0.65)
        assert low <= share <= high, (scene.number, scene.factors, share)


def test_stripes_spots_and_checks_are_what_they_are_called():
    shares = {kind: float(pattern(kind, stream(1), 256, 16.0).mean()) for kind in PATTERNS}
    assert shares == pytest.approx({"plain": 0, "striped": 0.42, "spotted": 0.31, "checkered": 0.5}, abs=0.04)
    # Stripes change in one direction only; spots and checks in every direction.
    for kind, ways in (("striped", 1), ("spotted", 2), ("checkered", 2)):
        slopes = np.stack(np.gradient(pattern(kind, stream(1), 256, 16.0))).reshape(2, -1)
        low, high = np.linalg.eigvalsh(slopes @ slopes.T)
        assert (low < 0.05 * high) if ways == 1 else (low > 0.5 * high), kind


def test_easy_scenes_are_large_upright_central_and_without_pattern():
    scenes = [World(1, plain=0.5).scene(number) for number in range(300)]
    easy = [scene.factors for scene in scenes if scene.factors.rotation == 0]
    assert abs(len(easy) / 300 - 0.5) < 0.12
    for factors in easy:
        assert factors.pattern in (None, "plain")
        assert factors.size >= 52
        assert max(abs(place - 32) for place in factors.centre) <= 1


def test_locations_differ_at_the_edges():
    def edges(location, seeds):
        frames = [background(location, stream(seed)).astype(float) for seed in seeds]
        return np.mean([np.concatenate([f[:, :8], f[:, -8:]], axis=1) for f in frames], axis=0)

    means = {location: edges(location, range(20)) for location in LOCATIONS}
    for location in LOCATIONS:
        fresh = edges(location, range(100, 120))
        assert min(means, key=lambda other: np.abs(means[other] - fresh).mean()) == location


def test_a_background_varies():
    for location in LOCATIONS:
        first, second = (background(location, stream(seed)).astype(int) for seed in (0, 1))
        assert np.abs(first - second).mean() > 4


def test_the_held_out_style_is_another_drawing():
    for thing in OBJECTS:
        ours, other = (np.asarray(sprite(thing.sprites[0], style)).astype(int) for style in STYLES)
        assert np.abs(ours - other).mean() > 8, thing.name
    assert {World(0, styles=STYLES[1:]).scene(number).factors.style for number in range(5)} == {"twemoji"}
    assert {World(0).scene(number).factors.style for number in range(20)} == {"noto"}


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UnweaveError, match="no style"):
        World(styles=("crayon",))
    with pytest.raises(UnweaveError, match="no style"):
        World(styles=())
    with pytest.raises(UnweaveError, match="between 0 and 1"):
        World(plain=1.5)
    with pytest.raises(UnweaveError, match="numbered from 0"):
        World().scene(-1)
    with pytest.raises(UnweaveError, match="numbered from 0"):
        World(-1).scene(0)
