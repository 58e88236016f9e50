"""The paper's tables end to end, on stand-ins: the published formats with drawn birds and scenes, few of them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import unweave
from stores import remembering
from unweave.alignment import Recipe
from unweave.errors import UnweaveError
from unweave.reproduction import (
    POCKET,
    PUBLISHED,
    TABLES,
    Reproduction,
    Setting,
    Subject,
    chosen,
    pocket_setting,
    published,
    reproduce,
)

pytestmark = pytest.mark.xdist_group("store verbs")

DEIT = Subject("tiny DeiT", "pocket/deit", "model")
CLIP = Subject("tiny CLIP", "pocket/clip", "zero-shot")


@pytest.fixture(scope="module", autouse=True)
def once(tmp_path_factory):
    with remembering(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Waterbirds in its published form."""
    folder = tmp_path_factory.mktemp("waterbirds")
    lines = ["img_id,img_filename,y,split,place"]
    for split, name in enumerate(("train", "validation", "test")):
        for number, picture in enumerate(unweave.open_images(f"pocket/birds/0/{name}/40")):
            file = f"{split}-{number}.png"
            picture.read().save(folder / file)
            y, place = (int(picture.fields[field] == "water") for field in ("bird", "background"))
            lines.append(f"{number},{file},{y},{split},{place}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def setting(tmp_path, **options):
    quick = {"recipe": Recipe(rounds=0, sweeps=1), "draws": 1}
    return Setting(tmp_path / "work", fitted="pocket/world/5/60", space="pocket/clip", **quick | options)


def test_waterbirds_in_the_published_form(tmp_path, birds, monkeypatch):
    own = setting(tmp_path, data=str(birds))
    rows = reproduce("waterbirds", own, [Subject("DINO ViT-B/16", "pocket/dino", "probe")]).table().to_pylist()
    assert [row["ranked on"] for row in rows] == ["held-out images", "test images, as published"]
    assert rows[0]["worst_before (published)"] == 0.8 and rows[0]["average_after (published)"] == 0.938
    assert all(0 <= row[name] <= 1 for row in rows for name in ("worst_before", "worst_after", "worst_random"))
    assert rows[0]["worst_before"] == rows[1]["worst_before"]
    # what is done is not done again: nothing is extracted or aligned
    monkeypatch.setattr("unweave.reproduction.setting.extract", None)
    assert reproduce("waterbirds", own, [Subject("DINO ViT-B/16", "pocket/dino", "probe")]).table().to_pylist() == rows


def test_ablation_by_the_models_own_classifier_and_by_words(tmp_path):
    own = setting(tmp_path, data="pocket/evaluation", limit=120)
    rows = reproduce("ablation", own, [DEIT, CLIP]).table().to_pylist()
    assert [row["layers ablated"] for row in rows] == [*range(7)] * 2
    assert rows[0]["classifier"] == "model" and rows[7]["classifier"] == "zero-shot"
    assert rows[0]["accuracy"] > 0.5 > rows[6]["accuracy"] and rows[7]["accuracy"] > 0.5 > rows[13]["accuracy"]


def test_retrieval(tmp_path):
    own = setting(tmp_path, data="pocket/evaluation", limit=150)
    (row,) = reproduce("retrieval", own, [DEIT]).table().to_pylist()
    assert -1 <= row["within components, median"] <= 1 and -1 <= row["within features, median"] <= 1
    assert row["within features, values"] == 4


def test_segmentation_with_masks_in_a_folder(tmp_path):
    """Pixel-ImageNet's form: a folder for each class, of images and of masks."""
    for picture in unweave.open_images("pocket/evaluation", limit=24):
        label, name = picture.fields["label"], picture.id.replace("/", "-")
        for kind, image in (("images", picture.read()), ("masks", Image.fromarray(picture.mask()))):
            (tmp_path / "pixel" / kind / label).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "pixel" / kind / label / f"{name}.png")
    own = setting(tmp_path, data=f"masks:{tmp_path / 'pixel'}")
    rows = reproduce("segmentation", own, [Subject("DeiT-B/16", "pocket/deit", "model")]).table().to_pylist()
    ours = rows[0]
    assert ours["method"] == "components" and ours["images"] == 24 and ours["map"] > 0.4
    assert ours["map (published)"] == 0.8305 and ours["foreground_iou (published)"] == 0.5291
    assert all(row["map (published)"] is None for row in rows[1:])
    assert {row["method"] for row in rows} >= {"raw attention", "rollout", "transformer attribution", "gradcam"}


def test_imagenet_segmentation_in_the_published_form(tmp_path):
    """It names no classes: the map is of the class that the model itself sees."""
    with h5py.File(tmp_path / "gtsegs_ijcv.mat", "w") as file:
        refs = {"img": [], "gt": []}
        for number, picture in enumerate(unweave.open_images("pocket/evaluation", limit=12)):
            pixels = np.asarray(picture.read()).transpose(2, 1, 0)
            image = file.create_dataset(f"a{number}", data=pixels)
            mask = file.create_dataset(f"b{number}", data=picture.mask().astype(np.uint8).T)
            cell = file.create_dataset(f"c{number}", data=np.array([[mask.ref]], h5py.ref_dtype))
            refs["img"].append([image.ref])
            refs["gt"].append([cell.ref])
        for name, own in refs.items():
            file.create_dataset(f"value/{name}", data=np.array(own, h5py.ref_dtype))
    own = setting(tmp_path, data=str(tmp_path / "gtsegs_ijcv.mat"))
    rows = reproduce("segmentation", own, [DEIT, Subject("tiny DINO", "pocket/dino", "probe")]).table().to_pylist()
    assert rows[0]["images"] == 12 and rows[0]["map"] > 0.3
    assert rows[-1]["model"] == "tiny DINO" and "no classifier of its own" in rows[-1]["why not"]
    with pytest.raises(UnweaveError, match="name no classes"):
        reproduce("heatmaps", own, [DEIT])


def test_a_table_of_other_images_is_made_anew(tmp_path, monkeypatch):
    made = []
    entry = type(TABLES["ablation"])("ablation", "", "", lambda setting, subject: made.append(1) or [{"x": len(made)}])
    monkeypatch.setitem(TABLES, "ablation", entry)
    (tmp_path / "images").mkdir()
    for count in (1, 2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"images/{count}.png")
        for _ in range(2):
            (row,) = reproduce("ablation", setting(tmp_path, data=str(tmp_path / "images")), [DEIT]).table().to_pylist()
            assert row["x"] == count


def test_heatmaps_are_drawn_and_timed(tmp_path):
    own = setting(tmp_path, data="pocket/evaluation")
    rows = reproduce("heatmaps", own, [DEIT, Subject("tiny DINO", "pocket/dino", "probe")]).table().to_pylist()
    for row in rows:
        assert row["images"] == 8 and row["heads"] == 24 and row["seconds"] > 0
        with Image.open(row["figure"]) as figure:
            assert figure.size[1] > 600


def test_random_weights_go_through_all_steps(tmp_path, birds):
    own = setting(tmp_path, data=str(birds), random_weights=True, limit=120)
    rows = reproduce("waterbirds", own, [DEIT]).table().to_pylist()
    assert len(rows) == 2
    store = unweave.open_store(next(path for path in (tmp_path / "work/stores").iterdir() if "waterbirds" in path.name))
    assert store.manifest.loading.random_weights is True


def test_an_interrupted_table_goes_on(tmp_path, birds, monkeypatch):
    own, calls = setting(tmp_path, data=str(birds)), []

    def counting(setting, subject):
        calls.append(subject.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [{"worst_before": 0.5}, {"worst_before": 0.25}]

    monkeypatch.setitem(TABLES, "waterbirds", type(TABLES["waterbirds"])("waterbirds", "", "", counting))
    subjects = [Subject(name, "pocket/dino", "probe") for name in ("one", "two")]
    with pytest.raises(KeyboardInterrupt):
        reproduce("waterbirds", own, subjects)
    assert len(reproduce("waterbirds", own, subjects).table().to_pylist()) == 4
    assert calls == ["one", "two", "two"]


def test_published_figures_belong_to_models_of_the_paper():
    names = {own.name for own in PUBLISHED}
    for table in TABLES:
        assert set(published(table)) <= names
    assert len(published("waterbirds")) == 6 and published("ablation") == {}
    worst = published("waterbirds")["CLIP ViT-B/16"]
    assert (worst["worst_before"], worst["worst_after"]) == (0.507, 0.744)


def test_models_by_name_and_by_id():
    assert chosen(PUBLISHED, []) == PUBLISHED
    assert [own.name for own in chosen(PUBLISHED, ["Swin-B", "timm/deit_base_patch16_224.fb_in1k"])] == [
        "Swin-B",
        "DeiT-B/16",
    ]
    assert chosen(POCKET, ["timm/resnet50"])[0] == Subject("timm/resnet50", "timm/resnet50", "probe")
    with pytest.raises(UnweaveError, match="no model 'VGG'"):
        chosen(PUBLISHED, ["VGG"])


def test_the_pocket_setting_needs_nothing(tmp_path):
    own = pocket_setting(tmp_path)
    assert own.pocket and own.fitted.startswith("pocket/") and own.space == "pocket/clip"


def test_what_is_missing_is_said(tmp_path, birds):
    with pytest.raises(UnweaveError, match="no table 'x'"):
        reproduce("x", setting(tmp_path), [DEIT])
    with pytest.raises(UnweaveError, match="images were not named"):
        reproduce("ablation", setting(tmp_path), [DEIT])
    with pytest.raises(UnweaveError, match="fit aligners to"):
        reproduce("waterbirds", Setting(tmp_path / "w", data=str(birds), space="pocket/clip"), [DEIT])


def test_the_verb(tmp_path, birds, monkeypatch):
    from typer.testing import CliRunner

    from unweave.cli import app

    monkeypatch.chdir(tmp_path)
    common = ["--data", str(birds), "--fit", "pocket/world/5/60", "--space", "pocket/clip", "-o", "out"]
    arguments = ["reproduce", "waterbirds", "--model", "pocket/dino", *common]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["rows"] == Reproduction.load("out/waterbirds").table().to_pylist()
    assert Path("out/waterbirds/reproduction.md").exists()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "held-out images" in result.stdout and "pocket/dino" in result.stdout
    for wrong, what in (
        (["reproduce", "figure", "-o", "out", "--pocket"], "no table 'figure'"),
        (["reproduce", "waterbirds", "-o", "out"], "Waterbirds, as published"),
        (["reproduce", "waterbirds", "-o", "out", "--model", "VGG", *common[:2]], "no model 'VGG'"),
        (
            ["reproduce", "waterbirds", "-o", "out", "--model", "pocket/dino", "--data", "no", *common[2:6]],
            "no such images",
        ),
    ):
        result = CliRunner().invoke(app, wrong)
        assert result.exit_code == 2 and what in result.stderr, result.output


def test_a_setting_says_how_it_is_made_again(tmp_path):
    pocket = pocket_setting(tmp_path, limit=3, seed=2)
    assert eval(pocket.as_code(), {"unweave": unweave}) == pocket
    assert pocket.as_options("setting") == ["--work", str(tmp_path), "--pocket", "--limit", "3", "--seed", "2"]
    published = Setting(tmp_path, data="birds", fitted="photos", random_weights=True)
    assert eval(published.as_code(), {"unweave": unweave}) == published
    assert published.as_options("setting")[2:] == ["--data", "birds", "--fit", "photos", "--random-weights"]
    subject = Subject("DINO ViT-B/16", "timm/vit_base_patch16_224.dino", "probe")
    assert eval(subject.as_code(), {"unweave": unweave}) == subject
    assert subject.as_options("subjects") == ["--model", "DINO ViT-B/16"]
