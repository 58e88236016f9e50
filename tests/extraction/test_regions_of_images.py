"""Regions of photographs: from boxes, masks and tokens to rows of contributions, in memory and in a store."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import unweave
from unweave import regions
from unweave.cli import app
from unweave.errors import ArgumentError, DataError, StoreError
from unweave.extraction import Settings, pictures, verify, whole_pictures
from unweave.images import open_images

SPECS = ("token 0,3", "box 8,8,40,24", "mask each")


@pytest.fixture(scope="module")
def model() -> unweave.Model:
    return unweave.load_model("pocket/dinov2", dtype=torch.float64)


@pytest.fixture(scope="module")
def scenes():
    return open_images("pocket/evaluation", limit=3)


@pytest.fixture
def photos(tmp_path):
    """Two photographs of other shapes than the model's, and one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("tall.png", (80, 160)), ("wide.png", (160, 80))):
        noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def test_rows_know_image_and_region(scenes) -> None:
    at = scenes.at(*SPECS)
    assert len(at) == 9 and at.ids[:4] == [*(f"{scenes.ids[0]} {spec}" for spec in SPECS), f"{scenes.ids[1]} token 0,3"]
    assert at[4].fields["image"] == scenes.ids[1] and at[4].region == "box 8,8,40,24"
    assert at[4].fields["object"] == scenes[1].fields["object"]
    assert np.array_equal(np.asarray(at[4].read()), np.asarray(scenes[1].read()))
    again = eval(at.as_code(), {"unweave": unweave})
    assert again.ids == at.ids and again.fingerprint == at.fingerprint != scenes.fingerprint


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ((), "no regions"),
        (("token 1",), "no region 'token 1'"),
        (("cell 1,2",), "no region"),
        (("mask ",), "no region"),
        (("token 1,2", "token 1,2"), "comes twice"),
    ],
)
def test_what_is_no_region(scenes, specs, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        scenes.at(*specs)


def test_regions_need_images_without_them(scenes, photos) -> None:
    with pytest.raises(DataError, match="have no masks"):
        open_images(str(photos)).at("mask each")
    with pytest.raises(DataError, match="already"):
        scenes.at("token 0,0").at("token 0,0")


def test_rows_are_what_the_plan_says_of_the_weights(model, scenes) -> None:
    """The twin: the masks of a picture of the model's own size, pooled by hand."""
    rows = unweave.decompose(model, scenes.at(*SPECS))
    plan = unweave.plan(model, regions=True)
    assert rows.ids == tuple(scenes.at(*SPECS).ids) and rows.error.max() < 1e-10
    for number, scene in enumerate(scenes):
        image = model.preprocess(scene.read()).double()[None]
        listed = [regions.token(0, 3), regions.box(8, 8, 40, 24), regions.mask(scene.mask())]
        expected = plan.run(image, listed)
        apart = rows.values[3 * number : 3 * number + 3] - expected.values[0]
        assert apart.abs().max() < 1e-9
        tokens = trunk_of(model, image)
        cells = torch.nn.functional.avg_pool2d(torch.from_numpy(scene.mask()).double()[None], 8).flatten()
        pooled = (cells / cells.sum()) @ tokens
        assert (rows.representation[3 * number + 2] - pooled).abs().max() < 1e-7


def trunk_of(model: unweave.Model, image: torch.Tensor) -> torch.Tensor:
    """The normed tokens of the grid, [token, dim]."""
    kept: list[torch.Tensor] = []
    handle = model.readout.norm.register_forward_hook(lambda module, given, output: kept.append(output))
    with torch.no_grad():
        model.readout(image)
    handle.remove()
    return kept[0][0, -64:]


def test_boxes_are_of_the_photograph_and_cut_like_it(model, photos) -> None:
    """The shorter side is resized and the centre is cut: the ends of a photograph are not seen."""
    tall = open_images(str(photos)).take([0])
    plan = unweave.plan(model, regions=True)
    image = model.preprocess(tall[0].read()).double()[None]
    for left, top, right, bottom in ((0, 40, 80, 120), (13, 51, 60, 90)):
        found = unweave.decompose(model, tall.at(f"box {left},{top},{right},{bottom}"))
        inside = np.zeros((160, 80), np.uint8)
        inside[top:bottom, left:right] = 255
        # by hand: a pixel of the model counts by how much of it comes from inside
        resized = Image.fromarray(inside).resize((64, 128), Image.Resampling.BICUBIC).crop((0, 32, 64, 96))
        cells = np.asarray(resized, np.float64).reshape(8, 8, 8, 8).mean((1, 3)).flatten()
        weights = torch.zeros(1, plan.tokens.count, dtype=torch.float64)
        weights[0, -64:] = torch.from_numpy(cells / cells.sum())
        assert (found.values - plan.run(image, weights).values[0]).abs().max() < 1e-6
    with pytest.raises(DataError, match="Nothing is inside"):
        unweave.decompose(model, tall.at("box 0,0,80,20"))
    with pytest.raises(DataError, match="no box from"):
        unweave.decompose(model, tall.at("box 0,0,81,20"))


def test_masks_are_files_of_the_photograph_s_size(model, photos, tmp_path) -> None:
    inside = np.zeros((160, 80), np.uint8)
    inside[40:120] = 255
    Image.fromarray(inside).save(tmp_path / "mask.png")
    tall = open_images(str(photos)).take([0])
    by_mask = unweave.decompose(model, tall.at(f"mask {tmp_path / 'mask.png'}"))
    by_box = unweave.decompose(model, tall.at("box 0,40,80,120"))
    assert torch.equal(by_mask.values, by_box.values)
    both = open_images(str(photos)).at(f"mask {tmp_path / 'mask.png'}")
    kept = unweave.decompose(model, both, on_error="skip")
    assert kept.fields["image"] == ["tall.png"]
    ((name, reason),) = kept.origin.skipped
    assert name == "wide.png" and "80 x 160 pixels, the image 160 x 80" in reason


def test_a_store_of_regions(model, scenes, tmp_path) -> None:
    at = scenes.at(*SPECS)
    settings = Settings(levels=("head", "layer"), dtype="float32", computed_in="float64", batch=2, rows=4)
    store = unweave.extract(model, at, tmp_path / "s", settings)
    assert store.manifest.regional and store.ids == at.ids
    memory = unweave.decompose(model, at)
    assert (store.view("head").values() - memory.values).abs().max() < 1e-6
    view = store.view("head").where(region="mask each")
    assert view.ids == tuple(f"{name} mask each" for name in scenes.ids)
    assert [picture.fields["image"] for picture in pictures(view)] == scenes.ids
    checked = verify(store, rows=9, model=model)
    assert not checked.faults and checked.rows == 9
    # blocks of four rows cut an image's regions in two: whoever goes on writes the same
    (tmp_path / "s" / "records" / "00000001.parquet").unlink()
    again = unweave.extract(model, at, tmp_path / "s", settings)
    assert torch.equal(again.view("head").values(), store.view("head").values())
    more = unweave.extract(
        model, open_images("pocket/evaluation", limit=4).at(*SPECS), tmp_path / "s", settings, append=True
    )
    assert len(more) == 12
    with pytest.raises(StoreError, match="regional"):
        unweave.extract(model, scenes, tmp_path / "s", settings, append=True)


def test_what_needs_whole_images_says_so(scenes, tmp_path) -> None:
    store = unweave.extract("pocket/dinov2", scenes.at("token 0,0"), tmp_path / "s")
    with pytest.raises(DataError, match="needs whole images"):
        whole_pictures(store.view())


def test_plans_and_images_go_together(model, scenes) -> None:
    with pytest.raises(ArgumentError, match="plan is of whole images"):
        unweave.decompose(model, scenes.at("token 0,0"), plan=unweave.plan(model))
    with pytest.raises(ArgumentError, match="these are whole images"):
        unweave.decompose(model, scenes, plan=unweave.plan(model, regions=True))
    with pytest.raises(ArgumentError, match="a batch of tensors names none"):
        unweave.decompose(model, model.example(1), plan=unweave.plan(model, regions=True))


def test_a_heatmap_of_a_region_adds_up_to_its_score(scenes) -> None:
    model = unweave.load_model("pocket/clip")
    at = scenes.at("token 2,3", "box 0,0,32,32")
    maps = unweave.heatmap(model, at, texts=["a bird"], space="pocket/clip")
    assert maps.ids == tuple(at.ids)
    rows = unweave.decompose(model, at)
    space = unweave.text.text_space("pocket/clip")
    direction = torch.nn.functional.normalize(space.encode(["a bird"])[0], dim=0)
    assert torch.allclose(maps.total[:, 0], rows.representation @ direction, atol=1e-3)
    whole = unweave.heatmap(model, scenes, texts=["a bird"], space="pocket/clip")
    assert not torch.allclose(maps.summed()[0], whole.summed()[0], atol=1e-3)


def test_many_regions_are_computed_a_few_at_a_time(model, scenes, monkeypatch) -> None:
    everywhere = unweave.plan(model, regions=True).everywhere
    assert len(everywhere) == 64
    together = unweave.decompose(model, scenes[:1].at(*everywhere))
    monkeypatch.setattr("unweave.extraction.extractor.MOST", 5)
    few = unweave.decompose(model, scenes[:1].at(*everywhere))
    assert few.ids == together.ids and torch.allclose(few.values, together.values, atol=1e-12)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def test_the_command_line(photos, tmp_path) -> None:
    out = tmp_path / "out"
    code, text = run(
        "decompose", "pocket/dinov2", str(photos), "--token", "0,3", "--box", "10,10,50,60", "-o", str(out), "--json"
    )  # fmt: skip
    assert code == 0, text
    saved = unweave.Contributions.load(out)
    assert len(saved.ids) == 4 and "tall.png box 10,10,50,60" in saved.ids
    code, text = run("extract", "pocket/dinov2", str(photos), "--token", "all", "-o", str(tmp_path / "store"), "--json")
    assert code == 0 and json.loads(text[text.index("{") :])["rows"] == 128, text
    code, text = run("decompose", "pocket/dinov2", str(photos), "--token", "9,9", "-o", str(out))
    assert code == 2 and "There is no token in row 9" in text and "rows 0 to 7" in text
