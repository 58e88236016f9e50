"""Every shape of image file, is read as a viewer would show it, or refused with its path and the reason."""

import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unweave.errors import DataError, DataWarning
from unweave.images import find_images, read_image


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def photograph(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    noise = random.Random(0).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).save(path, **options)
    return path


def test_truncated(tmp_path):
    path = photograph(tmp_path / "a.jpg", (200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="truncated") as caught:
        read_image(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "a.bmp", "a.tif"])
@pytest.mark.parametrize("part", [0.05, 0.5])
def test_truncated_in_any_format(tmp_path, name, part):
    path = photograph(tmp_path / name, (200, 200))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DataError):
        read_image(path)


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "a.jpg")[4, 4].astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    assert pixels(tmp_path / name)[0].tolist() == [[0] * 3, [1] * 3, [100] * 3, [255] * 3]


def test_numbers_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "i.tif")
    Image.fromarray(np.array([[0, 2.5]], dtype=np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(tmp_path / "n.tif")
    for name in "ifn":
        with pytest.raises(DataError, match="unknown"):
            read_image(tmp_path / f"{name}.tif")
    Image.fromarray(np.array([[0, 1]], dtype=np.float32)).save(tmp_path / "unit.tif")
    assert pixels(tmp_path / "unit.tif")[0].tolist() == [[0] * 3, [255] * 3]


def test_palette_transparency_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    assert pixels(tmp_path / "a.png")[0].tolist() == [[200, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode, colour", [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))])
def test_alpha_lies_on_white(tmp_path, mode, colour):
    Image.new(mode, (2, 2), colour).save(tmp_path / "a.png")
    with pytest.warns(DataWarning, match="taken for transparency"):
        assert (pixels(tmp_path / "a.png") == 255).all()
    Image.new(mode, (2, 2), (*colour[:-1], 255)).save(tmp_path / "b.png")
    assert (pixels(tmp_path / "b.png") == 0).all()  # which changes nothing, so nothing is said


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animation_gives_its_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
    with pytest.warns(DataWarning, match="only the first of its 2 frames"):
        assert np.abs(pixels(tmp_path / name)[8, 8].astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("mode, colour", [("L", 77), ("1", 1)])
def test_greyscale(tmp_path, mode, colour):
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == (77 if mode == "L" else 255)).all()


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (32, 16), "blue")
    image.paste("red", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    upright = pixels(tmp_path / "a.jpg")
    assert upright.shape == (32, 16, 3)
    assert upright[4, 8, 0] > 200 and upright[28, 8, 2] > 200


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_hide_a_photograph(tmp_path):
    photograph(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    assert pixels(tmp_path / "a.jpg").shape == (30, 40, 3)


def test_zero_sized(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DataError, match="empty"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("content", [b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(40), b"GIF89a"])
def test_not_an_image(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert caught.value.where == str(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(DataError):
            read_image(path)


def test_decompression_bomb(tmp_path):
    path = tmp_path / "a.bmp"
    Image.new("1", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 60000, 60000)
    path.write_bytes(content)
    with pytest.raises(DataError, match="too large") as caught:
        read_image(path)
    assert "`max_pixels=3600000000`" in str(caught.value)


def test_find_sorts_below_each_folder(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a.jpeg", ".hidden/x.jpg", "b/.x.jpg", "notes.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "one.bin").touch()
    found = find_images([tmp_path / "one.bin", tmp_path / "photos"])
    assert [image.id for image in found] == ["one.bin", "a.jpeg", "b/10.png", "b/2.JPG"]
    assert find_images(tmp_path / "photos") == found[1:]


def test_find_keeps_ids_apart_and_files_once(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").touch()
    found = find_images([tmp_path / "x", tmp_path / "y", tmp_path / "x" / "1.jpg"])
    assert [image.path for image in found] == [tmp_path / "x/1.jpg", tmp_path / "y/1.jpg"]
    assert len({image.id for image in found}) == 2
    assert all(image.id.endswith(f"{name}/1.jpg") for image, name in zip(found, "xy", strict=True))


def test_find_survives_a_loop_of_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").touch()
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    assert [image.id for image in find_images(tmp_path)] == ["a/1.jpg"]


def test_find_makes_strange_names_printable(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    (image,) = find_images(tmp_path)
    assert image.id == "\\xff.jpg" and image.path.exists()


def test_find_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        find_images(tmp_path / "none")
    with pytest.raises(DataError, match="empty"):
        find_images(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"1 with \.txt"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="No images"):
        find_images([])
