"""Image sets: the same order every time, every id once, and each published layout as what it means."""

from __future__ import annotations

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv as tables
from pyarrow import parquet

import unweave
from unweave.errors import ArgumentError, DataError
from unweave.images import ImageSet, open_images
from unweave.images.imageset import columns

h5py = pytest.importorskip("h5py")


def picture(path, colour=(10, 20, 30), size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def rows(found, *fields):
    return [(one.id, *(one.fields[field] for field in fields)) for one in found]


# --- folders


def test_subfolders_are_labels_and_the_order_is_that_of_names(tmp_path):
    for name in ("dog/b.png", "cat/z.png", "dog/a.png"):
        picture(tmp_path / name)
    found = rows(open_images(str(tmp_path)), "label")
    assert found == [("cat/z.png", "cat"), ("dog/a.png", "dog"), ("dog/b.png", "dog")]


def test_a_first_folder_of_splits_is_no_label(tmp_path):
    for name in ("train/dog/b.png", "val/cat/z.png", "test/dog/a.png"):
        picture(tmp_path / name)
    found = open_images(str(tmp_path))
    assert rows(found, "split", "label") == [
        ("test/dog/a.png", "test", "dog"),
        ("train/dog/b.png", "train", "dog"),
        ("val/cat/z.png", "val", "cat"),
    ]
    assert open_images(str(tmp_path), split="val").ids == ["val/cat/z.png"]
    with pytest.raises(DataError, match="No image has the split 'dev'") as caught:
        open_images(str(tmp_path), split="dev")
    assert "train" in str(caught.value)


def test_images_beside_folders_have_no_label(tmp_path):
    for name in ("dog/b.png", "a.png"):
        picture(tmp_path / name)
    found = open_images(str(tmp_path))
    assert found.fields == ["bytes"]
    with pytest.raises(DataError, match="Nothing is known of the split"):
        open_images(str(tmp_path), split="val")


def test_a_set_is_a_sequence(tmp_path):
    for number in range(5):
        picture(tmp_path / f"{number}.png", (number, 0, 0))
    found = open_images(str(tmp_path))
    assert [one.id for one in found[1:3]] == ["1.png", "2.png"]
    assert found[-1].id == "4.png"
    assert found[1:][1:].ids == ["2.png", "3.png", "4.png"]
    assert found[1:][1:][0].read().getpixel((0, 0)) == (2, 0, 0)
    assert found.without(["0.png", "3.png"]).ids == ["1.png", "2.png", "4.png"]
    assert found.without(["0.png"])[2].read().getpixel((0, 0)) == (3, 0, 0)
    assert len(open_images(str(tmp_path), limit=2)) == 2
    with pytest.raises(IndexError):
        found[5]


def test_the_fingerprint_is_that_of_names_sizes_and_order(tmp_path):
    for folder in ("one", "two"):
        picture(tmp_path / folder / "a.png")
        picture(tmp_path / folder / "b.png")
    one, two = (open_images(str(tmp_path / folder)) for folder in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert one[:1].fingerprint != one.fingerprint
    picture(tmp_path / "two/b.png", size=(80, 60))
    assert open_images(str(tmp_path / "two")).fingerprint != one.fingerprint


def test_ids_that_repeat_are_refused(tmp_path):
    with (tmp_path / "t.csv").open("w") as file:
        file.write("id,path\nx,a.png\nx,b.png\ny,c.png\n")
    with pytest.raises(DataError, match="2 images have the id 'x'"):
        open_images(str(tmp_path / "t.csv"))


def test_nothing_is_an_error_that_says_what_there_could_be(tmp_path):
    with pytest.raises(DataError, match="no such images") as caught:
        open_images(str(tmp_path / "nowhere"))
    assert "waterbirds" in str(caught.value)
    with pytest.raises(DataError, match="empty"):
        open_images(str(tmp_path))


def test_names_beyond_ascii_are_kept(tmp_path):
    picture(tmp_path / "Vögel/שלום 鳥.png")
    assert rows(open_images(str(tmp_path)), "label") == [("Vögel/שלום 鳥.png", "Vögel")]


# --- tables


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_brings_its_fields(tmp_path, kind):
    picture(tmp_path / "deep/a.png", (1, 2, 3))
    picture(tmp_path / "b.png")
    table = pa.table({"id": ["007", "8"], "path": ["deep/a.png", "b.png"], "label": ["x", "y"], "group": [3, 0]})
    path = tmp_path / f"m.{kind}"
    if kind == "csv":
        tables.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    found = open_images(str(path))
    assert rows(found, "label", "group") == [("007", "x", 3), ("8", "y", 0)]
    assert found[0].read().getpixel((0, 0)) == (1, 2, 3)


def test_a_manifest_without_paths_says_what_it_has(tmp_path):
    (tmp_path / "m.csv").write_text("file,label\na.png,x\n")
    with pytest.raises(DataError, match="no column `path`") as caught:
        open_images(str(tmp_path / "m.csv"))
    assert "file" in str(caught.value)
    (tmp_path / "n.csv").write_text("")
    with pytest.raises(DataError, match="cannot be read"):
        open_images(str(tmp_path / "n.csv"))


def test_paths_are_ids_where_there_are_none(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("path\na.png\n")
    assert open_images(str(tmp_path / "m.csv")).ids == ["a.png"]


# --- published layouts


def waterbirds(root):
    birds = [("001.Albatross/a.jpg", 1, 0, 0), ("002.Sparrow/b.jpg", 0, 1, 1), ("003.Gull/c.jpg", 1, 1, 2)]
    with (root / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["img_id", "img_filename", "y", "split", "place", "place_filename"])
        for number, (name, bird, place, split) in enumerate(birds):
            picture(root / name)
            table.writerow([number, name, bird, split, place, "/x/y.jpg"])


def test_waterbirds_as_published(tmp_path):
    waterbirds(tmp_path)
    found = open_images(str(tmp_path))
    assert rows(found, "label", "place", "group", "split") == [
        ("001.Albatross/a.jpg", "water", "land", 2, "train"),
        ("002.Sparrow/b.jpg", "land", "water", 1, "val"),
        ("003.Gull/c.jpg", "water", "water", 3, "test"),
    ]
    assert found[0].read().size == (8, 6)
    assert open_images(str(tmp_path), split="test").ids == ["003.Gull/c.jpg"]


def test_a_damaged_table_of_waterbirds_is_named(tmp_path):
    waterbirds(tmp_path)
    table = tmp_path / "metadata.csv"
    table.write_text(table.read_text().replace(",1,1,1,", ",1,7,1,").replace(",0,1,1,", ",0,x,1,"))
    with pytest.raises(DataError, match="not the table of Waterbirds"):
        open_images(str(tmp_path))


def test_waterbirds_cleaned(tmp_path):
    for name in (
        "test/landbird/sparrow_12_water.jpg",
        "test/waterbird/gull-landbg_3.jpg",
        "train/Waterbirds/duck_water.png",
    ):
        picture(tmp_path / name)
    found = open_images(f"waterbirds:{tmp_path}")
    assert rows(found, "label", "place", "group", "split") == [
        ("test/landbird/sparrow_12_water.jpg", "land", "water", 1, "test"),
        ("test/waterbird/gull-landbg_3.jpg", "water", "land", 2, "test"),
        ("train/Waterbirds/duck_water.png", "water", "water", 3, "train"),
    ]
    picture(tmp_path / "train/landbird/nothing.png")
    with pytest.raises(DataError, match="does not tell the bird and the background"):
        open_images(f"waterbirds:{tmp_path}")


@pytest.mark.parametrize("root", ["", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_by_folders_and_by_its_table(tmp_path, root):
    picture(tmp_path / root / "train/n01440764/x.JPEG")
    picture(tmp_path / root / "val/ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n02119789 1 2 3 4 n02119789 5 6 7 8\n"
    )
    found = open_images(str(tmp_path))
    assert [(one.fields["label"], one.fields["split"]) for one in found] == [
        ("n01440764", "train"),
        ("n02119789", "val"),
    ]


def test_imagenet_by_its_annotations(tmp_path):
    picture(tmp_path / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG")
    notes = tmp_path / "ILSVRC/Annotations/CLS-LOC/val"
    notes.mkdir(parents=True)
    (notes / "ILSVRC2012_val_00000001.xml").write_text("<annotation><object><name>n1</name></object></annotation>")
    assert open_images(str(tmp_path))[0].fields["label"] == "n1"


def test_imagenet_whose_classes_are_not_known(tmp_path):
    picture(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="class of an image of ImageNet is not known"):
        open_images(f"imagenet:{tmp_path}")


def test_the_origin_opens_the_set_again_from_anywhere(tmp_path, monkeypatch):
    for name in ("landbird/a_water.jpg", "waterbird/b_land.jpg"):
        picture(tmp_path / "birds" / name)
    tar(tmp_path / "t.tar", [("a.png", encoded((1, 0, 0)))])
    monkeypatch.chdir(tmp_path)
    for named in ("birds", "waterbirds:birds", "t*.tar", "pocket/world/0/2"):
        found = open_images(named)
        monkeypatch.chdir(tmp_path / "birds")
        assert open_images(found.origin).fingerprint == found.fingerprint
        monkeypatch.chdir(tmp_path)


# --- archives


def tar(path, members, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def encoded(colour):
    file = io.BytesIO()
    Image.new("RGB", (5, 5), colour).save(file, "png")
    return file.getvalue()


def test_samples_of_webdataset(tmp_path):
    tar(
        tmp_path / "train-0.tar",
        [("a.png", encoded((1, 0, 0))), ("a.cls", b"7"), ("a.json", json.dumps({"who": "me", "box": [1]}).encode())],
    )
    tar(tmp_path / "train-1.tar", [("x/b.txt", b"ein Schwan"), ("x/b.png", encoded((2, 0, 0)))])
    for named in (str(tmp_path), str(tmp_path / "train-*.tar")):
        found = open_images(named)
        assert rows(found, "label", "caption", "who", "box") == [
            ("train-0/a", 7, None, "me", "[1]"),
            ("train-1/x/b", None, "ein Schwan", None, None),
        ]
        assert [one.read().getpixel((0, 0))[0] for one in found] == [1, 2]


def test_a_tar_that_is_compressed_or_cut_is_refused(tmp_path):
    tar(tmp_path / "z.tar", [("a.png", encoded((1, 0, 0)))], "w:gz")
    with pytest.raises(DataError, match="tar cannot be read"):
        open_images(str(tmp_path / "z.tar"))


def test_a_broken_picture_in_a_tar_is_named(tmp_path):
    tar(tmp_path / "t.tar", [("a.png", b"nothing")])
    with pytest.raises(DataError, match="not an image") as caught:
        open_images(str(tmp_path / "t.tar"))[0].read()
    assert "t/a" in str(caught.value)


def test_a_dataset_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    pictures = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(3)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "where": datasets.Value("string"),
        }
    )
    rows_ = {"image": pictures, "label": [1, 0, 1], "where": ["a", "b", "c"]}
    both = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows_, features)})
    both.save_to_disk(tmp_path / "d")
    found = open_images(str(tmp_path / "d"))
    assert rows(found, "label", "where") == [("train/0", "dog", "a"), ("train/1", "cat", "b"), ("train/2", "dog", "c")]
    assert [one.read().getpixel((0, 0))[0] for one in found] == [0, 1, 2]
    assert open_images(str(tmp_path / "d"), split="train").fingerprint == found.fingerprint
    with pytest.raises(DataError, match="no split 'test'"):
        open_images(str(tmp_path / "d"), split="test")


def test_a_dataset_on_a_hub_that_is_out_of_reach_is_refused_at_once(monkeypatch):
    pytest.importorskip("datasets")
    from unweave import hub

    monkeypatch.setattr(hub, "reachable", lambda url: False)
    with pytest.raises(DataError, match="hub cannot be reached") as caught:
        open_images("hf/nobody/nothing", split="train")
    assert "save_to_disk" in str(caught.value)


# --- masks


def test_a_folder_of_masks(tmp_path):
    picture(tmp_path / "images/cat/a.jpg", size=(3, 2))
    Image.fromarray(np.array([[0, 255, 0], [0, 0, 7]], np.uint8)).save(picture(tmp_path / "masks/cat/a.png"))
    found = open_images(str(tmp_path))
    assert rows(found, "label") == [("cat/a.jpg", "cat")]
    assert found[0].mask().tolist() == [[False, True, False], [False, False, True]]
    picture(tmp_path / "images/dog/b.jpg")
    with pytest.raises(DataError, match="has no mask") as caught:
        open_images(str(tmp_path))
    assert "dog/b.jpg" in str(caught.value)


def test_imagenet_segmentation(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)  # height, width, channel
    truth = np.array([[0, 1, 1, 0], [0, 0, 1, 1]], np.uint8)
    with h5py.File(tmp_path / "gtsegs_ijcv.mat", "w") as file:
        image = file.create_dataset("a", data=pixels.transpose(2, 1, 0))
        mask = file.create_dataset("b", data=truth.T)
        cell = file.create_dataset("c", data=np.array([[mask.ref]], h5py.ref_dtype))
        file.create_dataset("value/img", data=np.array([[image.ref]], h5py.ref_dtype))
        file.create_dataset("value/gt", data=np.array([[cell.ref]], h5py.ref_dtype))
    found = open_images(str(tmp_path / "gtsegs_ijcv.mat"))
    assert np.array_equal(np.asarray(found[0].read()), pixels)
    assert np.array_equal(found[0].mask(), truth != 0)
    (tmp_path / "other.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a file of ImageNet-Segmentation"):
        open_images(str(tmp_path / "other.mat"))


def test_images_without_masks_say_so(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="have no masks"):
        open_images(str(tmp_path))[0].mask()


# --- the pocket world


def test_scenes_and_birds_of_the_pocket_world():
    from unweave.pocket import Birds, evaluation

    found = open_images("pocket/evaluation")
    assert (
        len(found) == 2000 and found[5].fields["object"] == evaluation().factors[5].object == found[5].fields["label"]
    )
    assert np.array_equal(np.asarray(found[5].read()), evaluation().images[5])
    assert np.array_equal(found[5].mask(), evaluation().masks[5])
    birds = open_images("pocket/birds/3/test/6")
    assert [one.fields["group"] for one in birds] == [Birds(3, "test").scene(n).factors.group for n in range(6)]
    assert open_images("pocket/world/1/2")[1].fields["location"] is not None
    with pytest.raises(DataError, match="no such scenes"):
        open_images("pocket/sea")


# --- tables of fields


def test_a_column_of_mixed_types_becomes_text():
    assert columns({"id": ["a", "b"], "x": [1, "two"]}, where="")["x"].to_pylist() == ["1", "two"]


def test_a_set_tells_itself_from_another_with_the_same_table():
    table = columns({"id": ["a"]}, where="")
    one, two = (ImageSet("", table, lambda row: Image.new("RGB", (1, 1)), mark=mark) for mark in ("x", "y"))
    assert one.fingerprint != two.fingerprint


def test_a_set_says_how_it_is_opened_again(tmp_path):
    for split in ("train", "test"):
        for number in range(3):
            path = tmp_path / split / "swan" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    whole, place = open_images(str(tmp_path)), str(tmp_path)
    test = open_images(str(tmp_path), split="test", max_pixels=178_956_970)
    for images, words in (
        (whole, []),
        (whole[:4], ["--limit", "4"]),
        (test, ["--split", "test", "--max-pixels", "178956970"]),
        (test[:2].at("token 0,0", "token 0,1"), ["--split", "test", "--limit", "2", "--max-pixels", "178956970"]),
        (whole[2:4], None),
        (test.take([2, 0]), None),
    ):
        again = eval(images.as_code(), {"unweave": unweave})
        assert again.ids == images.ids and again.regions == images.regions
        if words is None:
            with pytest.raises(ArgumentError, match="No option chooses single images"):
                images.as_options("images")
        else:
            said = images.as_options("images")
            assert said[: 1 + len(words)] == [place, *words] and len(said) == 1 + len(words) + 2 * len(images.regions)
