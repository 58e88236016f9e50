"""Models of other input than three channels: grey, bands, clips; from photographs, files and folders of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unweave
from tiny import SIZE, WIDTH, Vit, ready
from unweave.errors import ArgumentError, DataError, DataWarning
from unweave.images import open_images, read_image
from unweave.models import Model
from unweave.models.preprocessing import bands, clip, default

transformers = pytest.importorskip("transformers")

MEANS, DEVIATIONS = (100.0, 200.0, 300.0, 400.0), (10.0, 20.0, 30.0, 40.0)


def network(channels: int) -> nn.Module:
    class Banded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.body, self.head = nn.Conv2d(channels, 3, 1), Vit(), nn.Linear(WIDTH, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(self.mix(images)))

    return ready(Banded(), torch.float32)


def noise(*shape: int, most: int = 255, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, mode in enumerate(("RGB", "L", "P", "CMYK")):
        Image.fromarray(noise(24, 32, 3)).convert(mode).save(folder / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    return folder


# --- grey


def test_a_grey_model_takes_any_photograph(photos, tmp_path):
    model = Model.from_module(network(1), classifier="head", input_size=(1, SIZE, SIZE), id="tiny")
    white = model.preprocess(Image.new("RGB", (30, 50), "white"))
    assert white.shape == (1, SIZE, SIZE) and torch.allclose(white, torch.ones(1))
    red = model.preprocess(Image.new("RGB", (30, 50), "red"))
    assert red.mean().item() == pytest.approx(2 * 0.299 - 1, abs=0.01)
    assert model.preprocessing["colour"] == "luminance" and model.preprocessing["mean"] == [0.5]
    contributions = unweave.decompose(model, str(photos))
    assert len(contributions.ids) == 4
    assert (contributions.values.sum(1) - contributions.representation).abs().max() < 1e-5
    pixels = unweave.heatmap(model, str(photos), classes=["0"]).pixels
    assert pixels.shape == (4, SIZE, SIZE, 3) and (pixels[..., 0] == pixels[..., 2]).all()
    assert len(unweave.extract(model, str(photos), tmp_path / "store")) == 4


@pytest.mark.parametrize("mean", [[0.3], [0.2, 0.3, 0.4], None])
@pytest.mark.parametrize("processor", ["ViTImageProcessor", "CLIPImageProcessor"])
def test_a_folder_of_a_grey_model(photos, tmp_path, mean, processor):
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
        num_channels=1,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "m")
    if mean is not None:
        size = {"height": 32, "width": 32}
        getattr(transformers, processor)(
            size=size, crop_size=size, image_mean=mean, image_std=[0.2] * len(mean)
        ).save_pretrained(tmp_path / "m")
    model = unweave.load_model(f"hf/{tmp_path / 'm'}")
    assert model.input_size == (1, 32, 32) and model.preprocessing["colour"] == "luminance"
    white = model.preprocess(Image.new("RGB", (40, 40), "white"))
    assert white.shape == (1, 32, 32)
    assert white.mean().item() == pytest.approx((1 - 0.3) / 0.2 if mean else 1, abs=1e-3)
    assert model.preprocessing["mean"] == [pytest.approx(0.3 if mean else 0.5)]
    assert len(unweave.decompose(model, str(photos)).ids) == 4


# --- bands


@pytest.fixture
def satellite():
    return Model.from_module(
        network(4), classifier="head", input_size=(4, SIZE, SIZE), preprocess=bands(MEANS, DEVIATIONS, SIZE), id="tiny"
    )


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "first.npy"])
def test_bands_are_normalised_in_the_files_own_numbers(tmp_path, satellite, name):
    flat = np.full((40, 60, 4), MEANS).astype(np.uint16) + np.uint16(5)
    if name == "a.tif":
        pytest.importorskip("tifffile").imwrite(tmp_path / name, flat, photometric="minisblack", planarconfig="contig")
    else:
        np.save(tmp_path / name, flat if name == "a.npy" else np.moveaxis(flat, -1, 0))
    tensor = satellite.preprocess(read_image(tmp_path / name))
    assert tensor.shape == (4, SIZE, SIZE)
    assert torch.allclose(tensor.mean((1, 2)), 5 / torch.tensor(DEVIATIONS))
    assert satellite.preprocessing["mean"] == list(MEANS) and satellite.preprocessing["numbers"] == "the file's own"


def test_bands_are_cut_as_pictures_are(tmp_path):
    values = noise(48, 70, 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", values.astype(np.float64))
    picture = read_image(tmp_path / "a.png")
    own = bands((0, 0, 0), (255, 255, 255), (16, 24))
    usual, _ = default((3, 16, 24))
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert (own(picture) - (usual(picture) * std + mean)).abs().max() < 0.02
    assert torch.allclose(own(read_image(tmp_path / "a.npy", white=255)), own(picture))
    assert torch.allclose(own(values), own(picture))
    grey = bands([0], [255], 16)(picture)
    assert grey.shape == (1, 16, 16)


def test_every_verb_takes_bands(tmp_path, satellite):
    (tmp_path / "images").mkdir()
    for number in range(3):
        np.save(tmp_path / "images" / f"{number}.npy", noise(20, 30, 4, most=900, dtype=np.float32))
    images = open_images(str(tmp_path / "images"))
    contributions = unweave.decompose(satellite, images)
    assert (contributions.values.sum(1) - contributions.representation).abs().max() < 1e-5
    assert unweave.heatmap(satellite, images, classes=["0"]).pixels.shape == (3, SIZE, SIZE, 3)
    store = unweave.extract(satellite, images, tmp_path / "store")
    assert len(store) == 3 and store.view().origin.preprocessing["std"] == list(DEVIATIONS)


def test_bands_that_do_not_match_name_file_and_cure(tmp_path, satellite, photos):
    np.save(tmp_path / "six.npy", noise(20, 30, 6))
    colours = Model.from_module(network(3), input_size=(3, SIZE, SIZE))
    unknown = Model.from_module(network(4), input_size=(4, SIZE, SIZE))
    for model, file, message in (
        (satellite, tmp_path / "six.npy", "20 x 30 x 6, and the model takes 4 bands"),
        (colours, tmp_path / "six.npy", "20 x 30 x 6, and the model takes 3 bands"),
        (satellite, photos / "0.png", "3 bands, and the model takes 4"),
        (unknown, photos / "0.png", "takes 4 bands, and their means and deviations are not known"),
    ):
        for how in ("raise", "skip"):
            with pytest.raises(DataError, match=message) as caught:
                unweave.decompose(model, str(file), on_error=how)
            assert file.name in caught.value.where and "bands" in caught.value.cure
    assert satellite.preprocess(noise(9, 9, 4)).shape == (4, SIZE, SIZE)


def test_numbers_that_are_missing_are_refused(tmp_path, satellite):
    values = noise(20, 30, 4, dtype=np.float32)
    values[3, 4, 2] = np.nan
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match="NaN or infinite"):
        unweave.decompose(satellite, str(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    "given", [((1, 2), (1,), 8), ((), (), 8), ((1,), (0,), 8), ((1,), (1,), 0), ((float("nan"),), (1,), 8)]
)
def test_bands_that_cannot_be(given):
    with pytest.raises(ArgumentError):
        bands(*given)


# --- clips


class Film(nn.Module):
    """A tiny model of clips: three-dimensional patches, then a ViT's layers over all of them."""

    def __init__(self, frames: int, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first
        self.embed = nn.Conv3d(3, WIDTH, (2, 8, 8), (2, 8, 8))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, clips: Tensor) -> Tensor:
        clips = clips if self.channels_first else clips.transpose(1, 2)
        return self.layer(self.embed(clips).flatten(2).transpose(1, 2)).mean(1)


@pytest.fixture
def films(tmp_path):
    for label, clip_name, count in (("run", "a", 12), ("run", "b", 4), ("walk", "c", 2)):
        folder = tmp_path / "films" / label / clip_name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (24, 20), (20 * number, 0, 0)).save(folder / f"frame{number}.png")
    return tmp_path / "films"


def test_folders_of_frames_are_clips(films):
    images = open_images(f"clips:{films}")
    assert images.ids == ["run/a", "run/b", "walk/c"]
    assert [one.fields["label"] for one in images] == ["run", "run", "walk"]
    assert [one.fields["frames"] for one in images] == [12, 4, 2]
    frames = images[0].read().info["frames"]
    assert [frame.getpixel((0, 0))[0] for frame in frames] == [20 * number for number in range(12)]  # 10 after 9
    assert open_images(f"clips:{films / 'run/a'}").ids == ["a"]
    assert images.as_code() == f"unweave.open_images('clips:{films}')"
    (films / "loose.png").write_bytes((films / "run/a/frame0.png").read_bytes())
    with pytest.raises(DataError, match="there are 1 images"):
        open_images(f"clips:{films}")


@pytest.mark.parametrize("size", [(4, 3, 16, 16), (3, 4, 16, 16)], ids=["frames first", "channels first"])
def test_clips_are_sampled_evenly_and_it_is_said(films, size):
    model = Model.from_module(ready(Film(4, size[0] == 3), torch.float32), input_size=size)
    assert model.preprocessing["frames"] == 4
    images = open_images(f"clips:{films}")
    with pytest.warns(DataWarning, match="run/a: 4 of its 12 frames are taken, evenly") as said:
        contributions = unweave.decompose(model, images)
    assert len(said) == 1 and contributions.origin.notes == (str(said[0].message),)
    assert (contributions.values.sum(1) - contributions.representation).abs().max() < 1e-5
    with pytest.warns(DataWarning, match="frames"):
        tensor = model.preprocess(open_images(f"clips:{films}")[0].read())
        unweave.decompose(model, open_images(f"clips:{films}", limit=1))
    assert tensor.shape == size
    red = (tensor if size[0] == 4 else tensor.transpose(0, 1))[:, 0, 0, 0] * 0.229 + 0.485
    assert torch.allclose(red * 255, torch.tensor([0.0, 80, 140, 220]), atol=1)
    with pytest.warns(DataWarning, match="its 2 frames stand for 4"):
        unweave.decompose(model, open_images(f"clips:{films}/walk"))
    listed = [Image.new("RGB", (20, 20))] * 7
    assert model.preprocess(listed).shape == size


def test_pictures_are_no_clips_and_clips_no_pictures(films):
    model = Model.from_module(ready(Film(4, True), torch.float32), input_size=(3, 4, 16, 16))
    with pytest.raises(DataError, match="takes clips of 4 frames, and this is one picture") as caught:
        unweave.decompose(model, str(films / "run"))
    assert "`clips:FOLDER`" in str(caught.value)
    pictures = Model.from_module(network(3), input_size=(3, SIZE, SIZE))
    with pytest.raises(DataError, match="clip of 12 frames, and the model takes one picture") as caught:
        unweave.decompose(pictures, f"clips:{films}")
    assert caught.value.where == "run/a"


def test_which_axis_of_a_clip_is_that_of_channels():
    for size, first in {
        (16, 3): "frame",
        (3, 16): "channel",
        (3, 3): "frame",
        (1, 8): "channel",
        (8, 1): "frame",
    }.items():
        preprocess, described = default((*size, 8, 8))
        assert preprocess.first == first and described["frames"] == size[first == "channel"]
    with pytest.raises(ArgumentError, match="neither that of an image nor that of a clip"):
        default((2, 8))
    with pytest.raises(ArgumentError):
        clip(default((3, 8, 8))[0], 0)
