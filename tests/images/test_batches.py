"""Batches come in order, full, one ahead of the model, and account for every image."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from unweave.errors import DataError
from unweave.images import batches, find_images, sample_images


class Tiny:
    """A model as far as batches are concerned: a preprocessing."""

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float() / 255


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    (tmp_path / "6.png").write_bytes(b"")
    return tmp_path


def test_order_and_skipped(folder):
    loader = batches(Tiny(), find_images(folder), 2)
    for _ in range(2):
        got = list(loader)
        assert [ids for ids, _ in got] == [("0.png", "1.png"), ("2.png", "4.png"), ("5.png",)]
        assert [round(255 * float(row[0, 0, 0])) for _, batch in got for row in batch] == [0, 1, 2, 4, 5]
        assert [name for name, _ in loader.skipped] == ["3.png", "6.png"]
        assert "empty" in loader.skipped[1].reason and "known format" in loader.skipped[0].reason


def test_raise(folder):
    with pytest.raises(DataError) as caught:
        list(batches(Tiny(), find_images(folder), 2, on_error="raise"))
    assert caught.value.where.endswith("3.png")


def test_failing_preprocessing_is_reported(folder):
    class Odd(Tiny):
        def preprocess(self, image):
            raise RuntimeError("odd")

    loader = batches(Odd(), sample_images(), 4)
    assert list(loader) == []
    assert len(loader.skipped) == 8 and "odd" in loader.skipped[0].reason


def test_an_image_like_a_thread_is_reported(tmp_path):
    Image.new("L", (60000, 1)).save(tmp_path / "a.png")
    loader = batches(Tiny(), find_images(tmp_path), 2)
    assert list(loader) == [] and "60000 x 1" in loader.skipped[0].reason


def test_sizes_that_differ(folder):
    class Varying(Tiny):
        def preprocess(self, image):
            return torch.zeros(3, 4, 4 + image.getpixel((0, 0))[0])

    with pytest.raises(DataError, match="one size"):
        list(batches(Varying(), find_images(folder), 2))


def test_the_next_batch_is_decoded_beside_the_model(folder):
    seen, threads = [], set()

    class Watching(Tiny):
        def preprocess(self, image):
            seen.append(image.getpixel((0, 0))[0])
            threads.add(threading.current_thread())
            return super().preprocess(image)

    running = iter(batches(Watching(), find_images(folder), 2))
    next(running)
    deadline = time.monotonic() + 5
    while len(seen) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(seen)[:3] == [0, 1, 2] and 4 not in seen
    assert threading.main_thread() not in threads
    running.close()
    assert not any(thread.is_alive() for thread in threads)


def test_no_images_and_no_batch():
    assert list(batches(Tiny(), [], 4)) == []
    with pytest.raises(DataError, match="batch of 0"):
        batches(Tiny(), [], 0)


def test_samples_are_eight_different_pictures_and_repeat():
    first, second = ([np.asarray(image.read()) for image in sample_images()] for _ in range(2))
    assert len({image.tobytes() for image in first}) == 8
    assert all((a == b).all() and a.shape == (384, 384, 3) for a, b in zip(first, second, strict=True))
    assert len({image.id for image in sample_images()}) == 8
