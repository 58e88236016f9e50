"""Heatmaps: everything adds up to the score, tokens lie where the image is, and nothing is normalised."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unweave
from stores import Classifier, draw, model, space_of
from tiny import SIZE, WIDTH, Vit, pictures, ready
from unweave.alignment import Aligner
from unweave.attribution import Scores
from unweave.components import Component
from unweave.errors import AlignmentError, ArgumentError, DataError, ModelError, StoreError
from unweave.images import open_images
from unweave.models import Model
from unweave.models.preprocessing import viewed
from unweave.tasks.heatmaps import Highest, as_pixels, heatmap
from unweave.tasks.mapper import Mapper
from unweave.tasks.maps import Heatmaps, joined, spread
from unweave.tasks.target import Target, affine, toward_classes, toward_texts

pytestmark = pytest.mark.xdist_group("heatmap")


@cache
def pocket(name):
    return unweave.load_model(f"pocket/{name}")


@cache
def plan_of(name):
    return unweave.plan(pocket(name))


@cache
def tiny(dtype=torch.float64):
    return unweave.plan(ready(Vit(), dtype), pictures(2, dtype))


def aligner_of(plan, dim=5, seed=0):
    """A map for each component that was drawn."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(len(plan.components), plan.dim, dim, generator=generator)
    identity = {"model": "tiny", "level": "head", "space_hash": space_of(dim).weights_hash}
    return Aligner(maps, torch.randn(dim, generator=generator), plan.components, identity)


def target_of(plan, count=2, seed=0):
    directions = torch.randn(count, plan.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Target(tuple(map(str, range(count))), directions, torch.arange(count, dtype=torch.float64), "x")


# -- sums --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deit", "swin", "maxvit"])
def test_maps_and_what_is_beside_them_add_up_to_the_logits(name):
    loaded = pocket(name)
    images = loaded.example(3)
    mapped = Mapper(plan_of(name), "last:2")(images, toward_classes(loaded))
    with torch.no_grad():
        logits = loaded.classifier(loaded.readout(images))
    assert torch.allclose(mapped.total, logits, atol=2e-5 * float(logits.abs().max()))
    assert float(mapped.error.max()) < 1e-5 and mapped.targets[0] == "elephant"


def test_every_head_is_the_sum_of_its_tokens_in_float64():
    """The slow twin: vectors of whole heads, from a run at level `head`."""
    plan, target = tiny(), target_of(tiny())
    mapped = Mapper(plan)(pictures(), target)
    whole = plan.run(pictures())
    for component in mapped.components:
        vector = whole.values[:, plan.components.index(component)]
        tokens = mapped.maps[component].sum((-2, -1)) + mapped.prefix[component] + mapped.placeless[component]
        assert (tokens - vector @ target.directions.T).abs().max() < 1e-12
    total = whole.representation @ target.directions.T + target.constants
    assert (mapped.total - total).abs().max() < 1e-12


def test_an_aligner_measures_each_component_through_its_own_map():
    loaded = Model.from_module(
        ready(Classifier(), torch.float32), classifier="head", input_size=(3, SIZE, SIZE), id="tiny"
    )
    plan = unweave.plan(loaded)
    aligner, space = aligner_of(plan), space_of(5)
    target = toward_texts(loaded, space, ["a dog", "a cat"], aligner)
    images = loaded.example(3)
    mapped = Mapper(plan, "body.blocks.1.attn.head.2, body.blocks.0.mlp")(images, target)
    contributions = plan.run(images)
    aligned = torch.einsum("ncw,cwd->ncd", contributions.values, aligner.maps)
    wanted = (aligned.sum(1) + aligner.bias) @ space.encode(["a dog", "a cat"]).T
    assert torch.allclose(mapped.total, wanted, atol=1e-4)
    head = Component("body.blocks.1.attn", "head", 1, 2)
    own_score = aligned[:, plan.components.index(head)] @ space.encode(["a dog", "a cat"]).T
    assert torch.allclose(mapped.maps[head].sum((-2, -1)) + mapped.prefix[head], own_score, atol=1e-4)
    mlp = next(part for part in mapped.components if part.kind == "mlp")
    assert mlp not in mapped.maps and mapped.placeless[mlp].abs().min() > 0


def test_prefix_tokens_are_kept_apart_and_signs_are_kept():
    mapped = Mapper(tiny())(pictures(), target_of(tiny()))
    assert all(map_.shape[-2:] == (2, 2) for map_ in mapped.maps.values())
    assert all(map_.abs().min() > 0 for map_ in mapped.prefix.values())
    summed = mapped.summed()
    assert bool((summed < 0).any()) and bool((summed > 0).any())
    assert torch.allclose(summed, sum(mapped.maps.values()), rtol=0, atol=1e-14)


# -- places ------------------------------------------------------------------------------------------------------------


class OneCell(nn.Module):
    """A ViT whose patches say nothing but one that is lit: no positions, no biases."""

    def __init__(self):
        super().__init__()
        self.vit = ready(Vit(), torch.float64)
        with torch.no_grad():
            for name, parameter in self.vit.named_parameters():
                if name.endswith("bias") or "position" in name:
                    parameter.zero_()

    def forward(self, images):
        return self.vit(images)


@pytest.mark.parametrize("cell", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_map_lights_the_one_patch_that_carries_anything(cell):
    images = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)
    row, column = cell[0] * 8, cell[1] * 8
    images[:, :, row : row + 8, column : column + 8] = pictures(1)[:, :, :8, :8]
    plan = unweave.plan(OneCell().eval(), pictures(2))
    mapped = Mapper(plan, "blocks.0.attn")(images, target_of(plan, 1))
    lit = mapped.summed()[0, 0].abs() > 1e-9
    assert lit.nonzero().tolist() == [list(cell)]


@pytest.mark.parametrize("name", ["swin", "maxvit"])
@pytest.mark.parametrize("cell", [(1, 2), (2, 0)])
def test_what_changes_with_a_place_of_the_image_lies_there_in_the_first_layer(name, cell):
    """A spot is moved into an otherwise even image: the map of the first attention changes most at its cell."""
    loaded, plan = pocket(name), plan_of(name)
    images = torch.zeros(2, 3, 64, 64)
    top, left = 16 * cell[0], 16 * cell[1]
    spot = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(3))
    images[1, :, top : top + 16, left : left + 16] = 4 * spot
    path = next(part.path for part in plan.components if part.kind == "head")
    mapped = Mapper(plan, f"{path}.head.*")(images, toward_classes(loaded, ["duck", "car", "cap", "bus"]))
    changed = (mapped.summed()[1] - mapped.summed()[0]).abs().sum(0)
    coarse = spread(changed, 4, 4)
    assert divmod(int(coarse.argmax()), 4) == cell


def test_spreading_keeps_sums_and_places():
    maps = torch.arange(6.0).view(1, 2, 3)
    wide = spread(maps, 4, 6)
    assert torch.allclose(wide.sum((-2, -1)), maps.sum((-2, -1)))
    assert torch.allclose(wide[0, :2, :2], maps[0, 0, 0] / 4 * torch.ones(2, 2))
    uneven = spread(maps, 3, 5)
    assert torch.allclose(uneven.sum((-2, -1)), maps.sum((-2, -1)))
    naive = torch.zeros(3, 5)
    fine = maps[0].repeat_interleave(15, 0).repeat_interleave(10, 1) / 150  # the least common multiple of both grids
    for row in range(3):
        for column in range(5):
            naive[row, column] = fine[10 * row : 10 * row + 10, 6 * column : 6 * column + 6].sum()
    assert torch.allclose(uneven[0], naive, atol=1e-6)


def test_evidence_is_what_speaks_for_the_target_in_each_component():
    generator = torch.Generator().manual_seed(0)
    names = [Component(f"blocks.{layer}.attn", "head", layer, 0) for layer in range(3)]
    maps = {name: torch.randn(2, 1, 4, 4, generator=generator) for name in names}
    none = {name: torch.zeros(2, 1) for name in names}
    mapped = Heatmaps(("a", "b"), ("t",), maps, none, none, {}, torch.zeros(1), torch.zeros(2))
    expected = sum(map_.clamp(min=0) for map_ in maps.values())
    assert torch.allclose(mapped.enlarged(4, 4, evidence=True), expected, atol=1e-6)
    assert torch.allclose(mapped.enlarged(4, 4), sum(maps.values()), atol=1e-6)


def test_layers_of_other_grids_are_enlarged_each_from_its_own():
    mapped = Mapper(plan_of("swin"))(pocket("swin").example(1), toward_classes(pocket("swin"), ["duck"]))
    assert {tuple(map_.shape[-2:]) for map_ in mapped.maps.values()} == {(16, 16), (8, 8), (4, 4)}
    assert mapped.grid == (16, 16)
    for evidence in (False, True):
        expected = np.zeros((64, 64))
        for map_ in mapped.maps.values():
            values = map_[0, 0].double().numpy()
            values = np.maximum(values, 0) if evidence else values
            expected += linear(values, 64) * (len(values) / 64) ** 2  # a pixel's share of its token
        made = mapped.enlarged(64, 64, evidence=evidence)[0, 0].double().numpy()
        assert np.abs(made - expected).max() < 1e-5 * np.abs(expected).max()


def linear(values, size):
    """Between the middles of cells, and constant beyond the outermost, one pixel at a time."""
    cells = len(values)
    smooth = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y, x = (np.clip((place + 0.5) * cells / size - 0.5, 0, cells - 1) for place in (row, column))
            top, left = min(int(y), cells - 2), min(int(x), cells - 2)
            down, right = y - top, x - left
            smooth[row, column] = (1 - down) * (
                (1 - right) * values[top, left] + right * values[top, left + 1]
            ) + down * ((1 - right) * values[top + 1, left] + right * values[top + 1, left + 1])
    return smooth


# -- targets -----------------------------------------------------------------------------------------------------------


def test_a_classifier_of_any_modules_is_one_matrix():
    weight, bias = affine(model())
    z = torch.randn(4, WIDTH)
    assert torch.allclose(model().classifier(z), z @ weight.T + bias, atol=1e-5)


def test_classes_go_by_name_or_number_and_against_others():
    every = toward_classes(pocket("deit"))
    some = toward_classes(pocket("deit"), ["duck", "1"])
    assert some.names == ("duck", every.names[1])
    assert torch.equal(some.directions[1], every.directions[1])
    rather = some.against(every)
    assert torch.allclose(rather.directions, some.directions - every.directions.mean(0))
    assert torch.allclose(rather.constants, some.constants - every.constants.mean())


def test_classes_go_by_any_of_their_names(monkeypatch):
    called = (("tench", "n01440764"), ("crane", "n02012849"), ("crane", "n03126707"))
    monkeypatch.setattr("unweave.tasks.target.class_names", lambda model, count: called)
    every = toward_classes(model())
    assert [every.place(name) for name in ("n01440764", "n02012849", "n03126707", "Crane")] == [0, 1, 2, 1]
    assert toward_classes(model(), ["n03126707"]).directions.equal(every.directions[2:])


def test_targets_that_cannot_be_are_refused():
    with pytest.raises(ArgumentError, match="none of the 40 classes"):
        toward_classes(pocket("deit"), ["unicorn"])
    with pytest.raises(ModelError, match="no classifier"):
        toward_classes(pocket("dino"))
    loaded, plan = model(), unweave.plan(model())
    with pytest.raises(AlignmentError, match="not the image encoder"):
        toward_texts(pocket("deit"), space_of(5), ["a dog"])
    with pytest.raises(ArgumentError, match="no texts"):
        toward_texts(loaded, space_of(5), [])
    with pytest.raises(AlignmentError, match="another model"):
        toward_texts(pocket("deit"), space_of(5), ["a dog"], aligner_of(plan))
    with pytest.raises(AlignmentError, match="another text space"):
        toward_texts(loaded, space_of(5, {"a": torch.ones(5)}), ["a dog"], aligner_of(plan))
    partial = aligner_of(plan)
    partial = Aligner(partial.maps[1:], partial.bias, partial.components[1:], partial.identity)
    with pytest.raises(AlignmentError, match="no map for the component"):
        Mapper(plan)(loaded.example(1), toward_texts(loaded, space_of(5), ["a dog"], partial))


def test_the_own_encoder_of_a_space_needs_no_aligner():
    target = toward_texts(model(), space_of(WIDTH), ["a dog"])
    assert target.along(()).shape == (1, WIDTH) and target.aligner is None


# -- choosing ----------------------------------------------------------------------------------------------------------


def scores(rows):
    """Scores by component and feature that were made up; those that are not named are 0 and no more than chance."""
    components = tuple(dict.fromkeys(component for component, *_ in rows))
    features = {name: (name,) for name in dict.fromkeys(feature for _, feature, *_ in rows)}
    values, p = torch.zeros(len(components), len(features)), torch.ones(len(components), len(features))
    for component, feature, score, above in rows:
        place = components.index(component), list(features).index(feature)
        values[place], p[place] = score, 0.0 if above else 1.0
    none = torch.zeros_like(values)
    return Scores(components, features, values, none, none, none, none, p, 9)


def test_components_are_chosen_by_score_above_chance_where_they_read_tokens(tmp_path):
    plan = tiny()
    heads = [part for part in plan.components if part.kind == "head"]
    mlp = next(part for part in plan.components if str(part) == "blocks.0.mlp")
    rows = [(head, "colour", number / 10, number > 1) for number, head in enumerate(heads)]
    rows += [(mlp, "colour", 2.0, True), (heads[0], "shape", 1.0, True), (heads[1], "shape", -1.0, False)]
    made = scores(rows)
    assert list(Highest(made, ["colour"], 3).of(plan)) == heads[:-4:-1]
    assert len(Highest(made, ["colour"], 100).of(plan)) == len(heads) - 2
    assert list(Highest(made, ["colour"]).of(plan)) == heads[:3:-1]
    assert Highest(made, ["colour", "shape"], 1).of(plan) == (heads[0],)
    assert Highest(made, (), 1).of(plan) == (heads[0],)
    made.save(tmp_path / "scores", figure=False)
    assert Highest(tmp_path / "scores", ["colour"], 3).of(plan) == Highest(made, ["colour"], 3).of(plan)
    with pytest.raises(ArgumentError, match="no feature 'size'"):
        Highest(made, ["size"], 3).of(plan)
    with pytest.raises(StoreError, match="a file is missing"):
        Highest(tmp_path / "nothing", ["size"], 3).of(plan)
    with pytest.raises(ArgumentError, match="above chance"):
        Highest(scores([(heads[0], "colour", 1.0, False)]), ["colour"], 3).of(plan)
    with pytest.raises(DataError, match="no component of the model"):
        Highest(scores([(Component("stem", "conv"), "colour", 1.0, True)]), ["colour"], 3).of(plan)


def test_what_reads_no_tokens_cannot_be_mapped():
    with pytest.raises(ArgumentError, match="reads tokens at known places"):
        Mapper(tiny(), "kind:bias")
    with pytest.raises(ArgumentError, match="matches none"):
        Mapper(tiny(), "nothing")


# -- the verb and its files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("photos") / "images", 3)


def test_the_verb_maps_pictures_and_tensors(photos):
    loaded = model()
    heatmaps = heatmap(loaded, str(photos), classes=["1"], select="last:1")
    assert heatmaps.ids == ("0000.png", "0001.png", "0002.png") and heatmaps.targets == ("1",)
    inputs = torch.stack([loaded.preprocess(picture.read()) for picture in open_images(str(photos))])
    tensors = heatmap(loaded, inputs, classes=["1"], select="last:1")
    for other in (tensors, heatmap(loaded, open_images(str(photos)), classes="1", select="last:1")):
        assert torch.allclose(heatmaps.summed(), other.summed(), atol=1e-5)
        assert torch.allclose(heatmaps.total, other.total, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(tensors.total[:, 0], loaded.module(inputs)[:, 1], atol=1e-4)
    rather = heatmap(loaded, inputs, classes=["1"], against=["0", "2"], select="last:1")
    others = heatmap(loaded, inputs, classes=["0", "2"], select="last:1")
    assert torch.allclose(rather.total, tensors.total - others.total.mean(1, keepdim=True), atol=1e-4)


def test_the_verb_maps_texts(photos):
    told, space = [], space_of(WIDTH)
    headless = Model.from_module(ready(Vit(), torch.float32), input_size=(3, SIZE, SIZE), id="tiny")
    words = replace(space, images=headless)
    heatmaps = heatmap(headless, str(photos), texts="a dog", space=words, on_progress=lambda *what: told.append(what))
    assert heatmaps.targets == ("a dog",) and heatmaps.card["space"] == "tiny"
    assert told == [("mapping images", count, 3) for count in range(1, 4)]
    with pytest.raises(AlignmentError, match="not the image encoder"):
        heatmap(headless, str(photos), texts="a dog", space=space)


def test_what_the_verb_refuses(photos, tmp_path):
    for asked in ({}, {"texts": ["a"], "classes": ["1"]}):
        with pytest.raises(ArgumentError, match="Maps are of texts or of classes"):
            heatmap(model(), str(photos), **asked)
    with pytest.raises(ArgumentError, match="Texts need a text space"):
        heatmap(model(), str(photos), texts=["a"])
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(DataError, match="None of the images could be read"):
        heatmap(model(), str(tmp_path), classes=["1"])


def test_images_that_cannot_be_read_are_left_out_and_said(photos, tmp_path):
    folder = draw(tmp_path / "images", 2)
    (folder / "0000a.png").write_bytes(b"x")
    heatmaps = heatmap(model(), str(folder), classes=["1"], select="last:1")
    assert heatmaps.ids == ("0000.png", "0001.png")
    assert [left["id"] for left in heatmaps.card["skipped"]] == ["0000a.png"]
    assert np.array_equal(heatmaps.pixels[1], np.asarray(Image.open(folder / "0001.png")))


def test_arrays_come_back(tmp_path):
    mapper = Mapper(tiny(), "last:1")
    parts = [mapper(pictures(1, seed=seed), target_of(tiny()), [str(seed)]) for seed in range(2)]
    heatmaps = joined(parts)
    heatmaps.save(tmp_path / "deep" / "maps", figure=False)
    again = Heatmaps.load(tmp_path / "deep" / "maps")
    assert again.ids == ("0", "1") and again.targets == ("0", "1") and again.components == heatmaps.components
    assert again.table().equals(heatmaps.table())
    ours, theirs = heatmaps.arrays(), again.arrays()
    assert list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert np.array_equal(ours["sum"], heatmaps.summed().numpy())
    beside = sum(values for name, values in ours.items() if name.startswith("beside/"))
    assert np.allclose(ours["sum"].sum((-2, -1)) + beside, ours["total"])
    assert sum(name.startswith("map/") for name in ours) == len(heatmaps.maps)


def test_a_figure_needs_pictures(photos, tmp_path):
    made = heatmap(model(), str(photos), classes=["1"], select="last:1")
    assert "figure" in made.save(tmp_path / "a")
    assert np.array_equal(Heatmaps.load(tmp_path / "a").pixels, made.pixels)
    without = Mapper(tiny(), "last:1")(pictures(1), target_of(tiny()))
    with pytest.raises(ArgumentError, match="given as tensors"):
        without.figure()
    assert "figure" not in without.save(tmp_path / "b") and Heatmaps.load(tmp_path / "b").pixels is None


def test_files_that_cannot_be_written_are_errors(tmp_path):
    heatmaps = Mapper(tiny(), "last:1")(pictures(1), target_of(tiny()))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        heatmaps.save(tmp_path / "file" / "maps")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_view_is_what_the_model_sees():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))

    def preprocess(image):
        cut = np.asarray(image.crop((5, 2, 21, 18)), np.float32) / 255
        return ((torch.from_numpy(cut) - 0.4) / torch.tensor([0.2, 0.3, 0.1])).permute(2, 0, 1)

    assert np.array_equal(as_pixels(viewed(preprocess, picture)), np.asarray(picture)[2:18, 5:21])
