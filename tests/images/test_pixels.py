"""Files beyond 8-bit RGB: deep scans, bands, pages, very large images. What is taken for granted is said once a set."""

from __future__ import annotations

import builtins
import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

import unweave
from unweave.errors import ArgumentError, DataError, DataWarning
from unweave.images import find_images, open_images, read_image, squares
from unweave.images.bands import upright

tifffile = pytest.importorskip("tifffile")

RAMP = np.linspace(0, 4095, 64).reshape(8, 8).round().astype(np.uint16)
"""What a scanner of 12 bits gives."""


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[..., 0].astype(int)


def near(image: Image.Image, values: np.ndarray, white: float) -> bool:
    return bool((np.abs(grey(image) - values * 255.0 / white) <= 0.51).all())


def silent(path: object, **options: float) -> Image.Image:
    with warnings.catch_warnings(action="error"):
        return read_image(path, **options)


def ramp_tif(path: Path, values: np.ndarray = RAMP, **tags: int) -> Path:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"largest": 341, "used": 281}[name]] = value
    Image.fromarray(values).save(path, tiffinfo=info)
    return path


def ramp_png(path: Path, values: np.ndarray = RAMP, bits: int | None = None) -> Path:
    info = PngInfo()
    if bits is not None:
        info.add(b"sBIT", bytes([bits]))
    Image.fromarray(values).save(path, pnginfo=info)
    return path


def colours_png(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16-bit colours, which Pillow reads and does not write."""
    import zlib

    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


# --- more bits than eight


@pytest.mark.parametrize("make", [ramp_tif, ramp_png])
@pytest.mark.parametrize("bits", [10, 12])
def test_a_dark_scan_is_said_and_its_white_can_be_named(tmp_path, make, bits):
    white = 2**bits - 1
    values = (RAMP // (4096 // (white + 1))).astype(np.uint16)
    path = make(tmp_path / f"a{'.tif' if make is ramp_tif else '.png'}", values)
    with pytest.warns(DataWarning, match=f"of 0 to 65535: if {white} is white, say so with `white={white}`"):
        assert grey(read_image(path)).max() == round(255 * white / 65535)
    assert near(silent(path, white=white), values, white)


def test_the_tags_of_a_tiff_say_what_is_white(tmp_path):
    assert near(silent(ramp_tif(tmp_path / "a.tif", largest=4095)), RAMP, 4095)
    assert near(silent(ramp_tif(tmp_path / "b.tif", RAMP // 4, largest=1023)), RAMP // 4, 1023)
    assert near(silent(ramp_tif(tmp_path / "c.tif", used=4000)), RAMP, 4095)  # the bits that it needs
    with pytest.warns(DataWarning, match="of 0 to 65535"):  # it cannot be, as there are larger values
        assert near(read_image(ramp_tif(tmp_path / "d.tif", largest=1000)), RAMP, 65535)
    assert near(silent(tmp_path / "a.tif", white=2000), RAMP.clip(0, 2000), 2000)  # whoever names it knows better


def test_twelve_packed_bits_are_twelve(tmp_path):
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in RAMP.reshape(-1, 2).tolist())
    entries = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, len(packed))]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    path = tmp_path / "a.tif"
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + table + bytes(4))
    assert near(silent(path), RAMP, 4095)


def test_where_zero_is_white_it_is_so_in_16_bits_as_well(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP * 16, photometric="miniswhite")
    assert near(silent(tmp_path / "a.tif"), 65535 - RAMP * 16.0, 65535)


def test_a_dicom_file_says_what_to_do(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    with pytest.raises(DataError, match="DICOM") as caught:
        read_image(tmp_path / "a.dcm")
    assert "pixel_array" in str(caught.value)


def test_a_png_says_how_many_bits_mean_something(tmp_path):
    assert near(silent(ramp_png(tmp_path / "a.png", RAMP, bits=12)), RAMP, 4095)
    spread = RAMP << 4 | RAMP >> 8  # as the format wants it
    assert near(silent(ramp_png(tmp_path / "b.png", spread, bits=12)), RAMP, 4095)
    dark = (RAMP // 64) << 4
    with pytest.warns(DataWarning, match="of 0 to 65535"):
        assert grey(read_image(ramp_png(tmp_path / "c.png", dark, bits=12))).max() == 4


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_deep_colours_are_scaled_like_grey(tmp_path, kind):
    values = np.dstack([RAMP, RAMP // 2, RAMP // 4])
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        colours_png(path, values)
    else:
        tifffile.imwrite(path, values, photometric="rgb")
    with pytest.warns(DataWarning, match="if 4095 is white"):
        assert grey(read_image(path)).max() == 16
    picture = silent(path, white=4095)
    assert np.abs(np.asarray(picture) - values * (255 / 4095)).max() <= 0.51
    assert np.array_equal(picture.info["bands"].read(3), values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_numbers_are_turned_as_pictures_are(tmp_path, orientation):
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(upright(values, orientation), grey(silent(tmp_path / "a.png")))


def test_transparency_of_deep_colours_is_laid_on_white(tmp_path):
    values = np.dstack([RAMP, RAMP, RAMP, np.full_like(RAMP, 65535)])
    values[:4, :, 3] = 0
    picture = colours_png(tmp_path / "a.png", values)
    with pytest.warns(DataWarning, match="transparency"):
        pixels = grey(read_image(picture, white=4095))
    assert (pixels[:4] == 255).all() and np.abs(pixels[4:] - RAMP[4:] * 255.0 / 4095).max() <= 1


def test_numbers_without_a_range_are_read_where_white_is_named(tmp_path):
    values = np.array([[-3.0, 0, 5, 10, 20]], np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="unknown") as caught:
        read_image(tmp_path / "f.tif")
    assert "`white=...`" in str(caught.value)
    assert grey(silent(tmp_path / "f.tif", white=10))[0].tolist() == [0, 0, 128, 255, 255]


def test_white_leaves_eight_bits_alone(tmp_path):
    Image.new("L", (4, 4), 200).save(tmp_path / "a.png")
    assert (grey(silent(tmp_path / "a.png", white=4095)) == 200).all()


def test_a_flat_image_far_from_black_is_said_as_well(tmp_path):
    with pytest.warns(DataWarning, match="scale it to the whole range"):
        read_image(ramp_tif(tmp_path / "a.tif", 32000 + RAMP))
    silent(ramp_tif(tmp_path / "b.tif", 16 * RAMP))
    silent(ramp_tif(tmp_path / "c.tif", 0 * RAMP))  # black is black
    with pytest.warns(DataWarning):
        read_image(ramp_tif(tmp_path / "d.tif", 0 * RAMP + 4000))


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf")])
def test_white_that_cannot_be(number):
    with pytest.raises(ArgumentError, match="White cannot be"):
        read_image("a.png", white=number)


# --- said once a set


def test_what_is_said_is_said_once_a_set(tmp_path):
    for number in range(3):
        ramp_tif(tmp_path / f"{number}.tif")
    images = open_images(str(tmp_path))
    with pytest.warns(DataWarning) as said:
        for picture in [*images, *images[1:]]:
            picture.read()
    assert [str(one.message).split(":")[0] for one in said] == [str(tmp_path / "0.tif")]
    with pytest.warns(DataWarning) as said:  # another set
        for image in find_images(tmp_path):
            image.read()
    assert len(said) == 1


# --- four bands


def four(nir: np.ndarray) -> np.ndarray:
    colour = np.random.default_rng(0).integers(20, 230, (*nir.shape, 3), np.uint8)
    return np.dstack([colour, nir])


NOISE = np.random.default_rng(1).integers(0, 255, (16, 16), np.uint8)


@pytest.mark.parametrize("marked", ["unspecified", "unassalpha", "assocalpha"])
@pytest.mark.parametrize("nir", [NOISE, NOISE * 0, np.where(NOISE > 100, 0, NOISE)], ids=["noise", "zero", "water"])
def test_a_fourth_band_that_is_data_is_left_out(tmp_path, marked, nir):
    values = four(nir)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[marked])
    with pytest.warns(DataWarning, match="left out of the picture"):
        picture = read_image(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(picture), values[..., :3])
    assert np.array_equal(picture.info["bands"].read(4), values)


def test_a_fourth_band_without_a_tag_is_data(tmp_path):
    values = four(np.where(NOISE > 100, 0, 255).astype(np.uint8))
    body = values.tobytes()
    sizes = struct.pack("<HHHH", 8, 8, 8, 8)
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 4, 8), (259, 4, 1, 1), (262, 4, 1, 2), (273, 4, 1, 16)]
    entries += [(277, 4, 1, 4), (278, 4, 1, 16), (279, 4, 1, len(body))]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = struct.pack("<2sHI", b"II", 42, 16 + len(body)) + sizes
    (tmp_path / "a.tif").write_bytes(head + body + table + bytes(4))
    with pytest.warns(DataWarning, match="fourth band"):
        picture = read_image(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(picture), values[..., :3])


def test_transparency_is_transparency_and_said(tmp_path):
    alpha = np.full((16, 16), 255, np.uint8)
    alpha[:8], alpha[8] = 0, 128
    Image.fromarray(four(alpha)).save(tmp_path / "a.tif")
    with pytest.warns(DataWarning, match="its fourth band was taken for transparency"):
        pixels = np.asarray(read_image(tmp_path / "a.tif"))
    assert (pixels[:8] == 255).all() and np.array_equal(pixels[9:], four(alpha)[9:, :, :3])


# --- more bands, and arrays


def six(path: Path, layout: str = "contig", dtype: type = np.uint16) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 3000, (10, 12, 6)).astype(dtype)
    planes = values if layout == "contig" else np.moveaxis(values, -1, 0)
    if path.suffix == ".npy":
        np.save(path, planes)
    elif layout == "pages":
        tifffile.imwrite(path, planes, photometric="minisblack")
    else:
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig=layout)
    return values


@pytest.mark.parametrize(
    ("name", "layout"), [("a.tif", "contig"), ("a.tif", "separate"), ("a.npy", "contig"), ("a.npy", "separate")]
)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
def test_six_bands_are_read_as_they_are(tmp_path, name, layout, dtype):
    values = six(tmp_path / name, layout, dtype)
    picture = silent(tmp_path / name)
    assert picture.size == (12, 10)
    assert np.array_equal(picture.info["bands"].read(6), values)
    with pytest.raises(DataError, match="6" if name == "a.tif" else "6 x 10 x 12|10 x 12 x 6") as caught:
        silent(tmp_path / name).info["bands"].read(4)
    assert caught.value.where == str(tmp_path / name) and "bands(mean, std, size)" in str(caught.value)


def test_pages_are_bands_where_as_many_are_wanted(tmp_path):
    values = six(tmp_path / "a.tif", "pages")
    with pytest.warns(DataWarning, match="only the first of its 6 pages") as said:
        picture = read_image(tmp_path / "a.tif", white=3000)
    assert len(said) == 1 and near(picture, values[..., 0], 3000)
    assert np.array_equal(picture.info["bands"].read(6), values)
    assert np.array_equal(picture.info["bands"].read(1), values[..., :1])


def test_smaller_versions_of_a_page_are_no_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(NOISE)
        file.write(NOISE[::2, ::2], subfiletype=1)
    assert np.array_equal(grey(silent(tmp_path / "a.tif")), NOISE)


def test_an_array_of_pictures_numbers_is_a_picture(tmp_path):
    colour = four(NOISE)[..., :3]
    for name, values in {"last": colour, "first": np.moveaxis(colour, -1, 0)}.items():
        np.save(tmp_path / f"{name}.npy", values)
        assert np.array_equal(np.asarray(silent(tmp_path / f"{name}.npy")), colour)
    np.save(tmp_path / "grey.npy", NOISE)
    assert np.array_equal(grey(silent(tmp_path / "grey.npy")), NOISE)
    np.save(tmp_path / "share.npy", NOISE / 255)
    assert np.array_equal(grey(silent(tmp_path / "share.npy")), NOISE)
    assert np.array_equal(grey(read_image(io.BytesIO((tmp_path / "grey.npy").read_bytes()))), NOISE)


@pytest.mark.parametrize(
    "values",
    [
        np.array([{}]),
        np.zeros(5),
        np.zeros((2, 2, 2, 2)),
        np.zeros((3, 3), complex),
        np.zeros((0, 4)),
        np.array("text"),
    ],
    ids=["objects", "a row", "four axes", "complex", "empty", "text"],
)
def test_arrays_that_are_no_images(tmp_path, values):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        read_image(tmp_path / "a.npy")
    assert caught.value.where == str(tmp_path / "a.npy")


def test_arrays_beside_photographs_are_no_images(tmp_path):
    np.save(tmp_path / "a.npy", NOISE)
    assert open_images(str(tmp_path)).ids == ["a.npy"]
    Image.fromarray(NOISE).save(tmp_path / "b.png")
    assert open_images(str(tmp_path)).ids == ["b.png"]


def test_four_planes_one_after_the_other_are_bands(tmp_path):
    planes = np.arange(4 * 40 * 50, dtype=np.uint16).reshape(4, 40, 50)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack", planarconfig="separate")
    picture = unweave.open_images(tmp_path)[0].read()
    assert np.array_equal(picture.info["bands"].read(4), np.moveaxis(planes, 0, -1))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"), "pip install imagecodecs"),
        (ImportError("No module named 'compression'"), "pip install imagecodecs"),
        (OSError("the file is cut off"), "the file is cut off"),
    ],
)
def test_bands_that_cannot_be_decoded_name_the_file(tmp_path, monkeypatch, error, says):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50, 3), np.uint16), photometric="rgb")
    picture = unweave.open_images(tmp_path, white=255)[0]

    def asarray(page):
        raise error

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    with pytest.raises(DataError, match=rf"a\.tif[\s\S]*{says}|{says}[\s\S]*a\.tif"):
        picture.read().info["bands"].read(3)


def test_without_the_library_a_tiff_says_what_to_install(tmp_path, monkeypatch):
    six(tmp_path / "a.tif")
    there = builtins.__import__

    def missing(name, *rest, **named):
        if name == "tifffile":
            raise ImportError(name)
        return there(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match="need a library") as caught:
        read_image(tmp_path / "a.tif")
    assert "unweave[tiff]" in str(caught.value) and caught.value.where == str(tmp_path / "a.tif")


# --- very large images


def test_a_very_large_image_is_let_through_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(np.tile(NOISE, (2, 2))).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.tile(NOISE, (2, 2)))
    for name in ("a.png", "a.npy"):
        with pytest.raises(DataError, match="too large") as caught:
            read_image(tmp_path / name)
        assert "`max_pixels=1024` (`--max-pixels 1024`)" in str(caught.value)
        picture = read_image(tmp_path / name, max_pixels=1024)
        assert picture.size == (32, 32) and squares([picture]).shape == (1, 96, 96, 3)
        with pytest.raises(DataError, match="too large"):
            read_image(tmp_path / name, max_pixels=1023)
    assert Image.MAX_IMAGE_PIXELS == 100
    images = open_images(str(tmp_path), max_pixels=2000)
    assert images[0].read().size == (32, 32) and images.as_code().endswith("max_pixels=2000)")


def test_a_tiff_that_claims_to_be_large_is_refused_before_it_is_read(tmp_path):
    six(tmp_path / "a.tif")
    with pytest.raises(DataError, match="12 x 10 pixels in 6 bands"):
        read_image(tmp_path / "a.tif", max_pixels=40)


def test_limits_that_cannot_be():
    with pytest.raises(ArgumentError, match="cannot have 0 pixels"):
        open_images("pocket/evaluation", max_pixels=0)


# --- labels


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_keep_their_text(tmp_path, kind):
    import pyarrow as pa
    from pyarrow import parquet

    labels = {"plain": ["007", "7"], "zeros": ["007", "008"], "point": ["1.0", "2.0"], "more": ["1.50", "2.25"]}
    labels |= {"power": ["1e3", "2e3"], "sign": ["+1", "2"], "truth": ["true", "false"], "whole": ["7", "8"]}
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    columns = {"path": ["a.png", "b.png"], **labels}
    if kind == "csv":
        rows = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
        (tmp_path / "m.csv").write_text("\n".join(rows))
    else:
        parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    images = open_images(str(tmp_path / f"m.{kind}"))
    for name, texts in labels.items():
        assert [str(image.fields[name]) for image in images] == texts, name
    assert images.where("whole", "7").ids == images.where("zeros", "007").ids == ["a.png"]
    contributions = unweave.decompose("pocket/clip", images)
    for name, (first, _) in labels.items():
        assert contributions.view().where(f"{name}={first}").ids == ("a.png",), name
