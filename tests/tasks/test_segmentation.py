"""Segmentation: the measures against plain loops, the other methods against what their papers say, bad input."""

import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional as F

import unweave
from stores import model, space_of
from tiny import SIZE, WIDTH, Vit, pictures, ready
from unweave.errors import ArgumentError, DataError, ModelError
from unweave.images import ImageSet
from unweave.tasks import baselines
from unweave.tasks.attention import Attention
from unweave.tasks.baselines import GradCam, RawAttention, Rollout, TransformerAttribution, Unfit, laid_out
from unweave.tasks.mapper import Mapper
from unweave.tasks.segmentation import METHODS, OURS, nearest, segment
from unweave.tasks.segmentation import measured as measured_by
from unweave.tasks.segments import Segmentation, Tally
from unweave.tasks.target import toward_classes

pytestmark = pytest.mark.xdist_group("heatmap")

PLAIN = tuple(name for name in METHODS if name != "gradcam")


@cache
def vit():
    return ready(Vit())


@cache
def attention():
    return Attention(vit(), pictures(2))


class Shown:
    """The attention probabilities of a tiny ViT, noted as it runs."""

    def __init__(self, monkeypatch):
        self.noted = []
        monkeypatch.setattr(F, "scaled_dot_product_attention", self.attend)

    def attend(self, q, k, v):
        probabilities = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        self.noted.append(probabilities)
        return probabilities @ v


@pytest.fixture
def shown(monkeypatch):
    attention()  # captured with the fused kernel
    return Shown(monkeypatch)


# -- measures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_counts_pixels_of_one_value_together(levels):
    """Pixels are taken value by value: the precision so far counts for the share of the object that each adds."""
    random = np.random.default_rng(levels)
    map_, mask = random.integers(0, levels, (9, 7)).astype(float), random.random((9, 7)) < 0.3
    expected, before = 0.0, 0.0
    for value in sorted(set(map_.ravel()), reverse=True):
        taken = map_ >= value
        recall = (taken & mask).sum() / mask.sum()
        expected += (recall - before) * (taken & mask).sum() / taken.sum()
        before = recall
    assert precision_of(map_, mask) == pytest.approx(expected)
    assert precision_of(mask.astype(float), mask) == 1
    assert precision_of(np.zeros((9, 7)), mask) == pytest.approx(mask.mean())


def precision_of(map_, mask):
    tally = Tally()
    tally.add(map_, mask)
    return tally.quality("x").average_precision


def test_the_measures_are_what_loops_say():
    random = np.random.default_rng(0)
    maps, masks = random.normal(size=(4, 6, 5)), random.random((4, 6, 5)) < 0.4
    tally = Tally()
    count = dict.fromkeys(("tp", "fp", "fn", "tn"), 0)
    for map_, mask in zip(maps, masks, strict=True):
        tally.add(map_, mask)
        for value, truth in zip(map_.ravel(), mask.ravel(), strict=True):
            count[("t" if (value > map_.mean()) == truth else "f") + ("p" if value > map_.mean() else "n")] += 1
    quality = tally.quality("x")
    foreground = count["tp"] / (count["tp"] + count["fp"] + count["fn"])
    background = count["tn"] / (count["tn"] + count["fp"] + count["fn"])
    assert quality.pixel_accuracy == pytest.approx((count["tp"] + count["tn"]) / maps.size)
    assert quality.foreground_iou == pytest.approx(foreground)
    assert quality.mean_iou == pytest.approx((foreground + background) / 2)
    assert quality.images == 4
    pixels = [average_precision_score(mask.ravel(), map_.ravel()) for map_, mask in zip(maps, masks, strict=True)]
    assert quality.average_precision == pytest.approx(np.mean(pixels))


def test_the_nearest_direction_is_found_where_scores_are_linear():
    z, directions = torch.randn(60, 5), torch.randn(3, 5)
    solved = nearest(z, z @ directions.T + torch.tensor([1.0, -2.0, 0.5]), ridge=1e-9)
    assert torch.allclose(solved, directions, atol=1e-4)


# -- attention from the graph ------------------------------------------------------------------------------------------


def test_probabilities_and_gradients_are_those_of_the_model(shown):
    images, direction = pictures(2), torch.randn(2, 8, dtype=torch.float64)
    trace = attention().trace(images, lambda z: (z * direction).sum(-1))
    z = vit()(images.requires_grad_())
    gradients = torch.autograd.grad((z * direction).sum(), shown.noted)
    assert torch.allclose(trace.representation, z)
    for layer in range(2):
        assert torch.allclose(trace.probabilities[layer][:, 0], shown.noted[layer])
        assert torch.allclose(trace.gradients[layer][:, 0], gradients[layer])
    assert trace.read[-1][0, 0].tolist() == [True] + 4 * [False] and bool(trace.read[0].all())


def test_raw_attention_and_rollout_are_what_their_definitions_say(shown):
    images, direction = pictures(2), torch.randn(2, 8, dtype=torch.float64)
    raw, rolled = RawAttention(attention())(images, direction), Rollout(attention())(images, direction)
    vit()(images)
    first, second = (layer.mean(1) for layer in shown.noted)
    assert torch.allclose(raw.flatten(1), second[:, 0, 1:])
    identity = torch.eye(5, dtype=torch.float64)
    assert torch.allclose(rolled.flatten(1), ((second + identity) / 2 @ (first + identity) / 2)[:, 0, 1:])


def test_gradcam_weighs_channels_by_their_mean_gradient():
    pytest.importorskip("pytorch_grad_cam")
    images, direction = pictures(3, torch.float32), torch.randn(3, 8)
    network = ready(Vit(), torch.float32)
    made = GradCam(Attention(network, images), network)(images, direction)
    held = []
    hook = network.blocks[1].norm1.register_forward_hook(lambda module, given, out: held.append(out))
    z = network(images.requires_grad_())
    hook.remove()
    (gradient,) = torch.autograd.grad((z * direction).sum(), held)
    weights = gradient[:, 1:].mean(1)
    cam = (held[0][:, 1:] * weights[:, None]).sum(-1).clamp_min(0).detach()
    cam = cam - cam.amin(1, keepdim=True)
    cam = (cam / (1e-7 + cam.amax(1, keepdim=True))).view(3, 1, 2, 2)
    wanted = F.interpolate(cam, size=(SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(made, wanted, atol=1e-4)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_without_a_library_the_other_methods_are_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    rows = measured(images_of(2), methods=None).table().to_pylist()
    said = {row["method"]: row["reason"] for row in rows}
    assert "unweave[gradcam]" in said["gradcam"] and said["components"] is None
    with pytest.raises(ModelError, match="GradCAM needs a library"):
        measured(images_of(2), methods=["gradcam"])


def test_gradcam_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ModelError, match=r"unweave\[gradcam\]"):
        GradCam(attention(), vit())


def test_relevance_goes_through_a_linear_layer_by_its_positive_products():
    random = torch.Generator().manual_seed(0)
    x, weight, relevance = (torch.randn(shape, generator=random).double() for shape in ((2, 3), (4, 3), (2, 4)))
    wanted = torch.zeros(2, 3).double()
    for row in range(2):
        for i in range(4):
            positive = [max(0.0, float(x[row, j] * weight[i, j])) for j in range(3)]
            for j in range(3):
                wanted[row, j] += positive[j] / sum(positive) * relevance[row, i] if sum(positive) else 0.0
    assert torch.allclose(baselines._positive(x, weight, relevance), wanted)


def test_relevance_of_two_summands_and_two_factors_adds_up():
    first, second, relevance = (torch.randn(2, 3, 3, dtype=torch.float64) + 2 for _ in range(3))
    shares = baselines._normalised(
        first * relevance / (first + second), second * relevance / (first + second), relevance
    )
    assert torch.allclose(sum(shares).sum((1, 2)), relevance.sum((1, 2)))
    halves = baselines._halves(torch.matmul, first, second, relevance)
    for half in halves:
        assert torch.allclose(half.sum((1, 2)), relevance.sum((1, 2)) / 2)


def test_transformer_attribution_rolls_out_relevance_times_gradient():
    images, direction = pictures(2), torch.randn(2, 8, dtype=torch.float64)
    method = TransformerAttribution(attention())
    made = method(images, direction)
    trace = attention().trace(images, lambda z: (z * direction).sum(-1))
    first, second = (
        torch.eye(5, dtype=torch.float64) + (gradient * each)[:, 0].clamp_min(0).mean(1)
        for gradient, each in zip(trace.gradients, method.relevance(trace, direction), strict=True)
    )
    assert torch.allclose(made.flatten(1), (second @ first)[:, 0, 1:])
    relevance = method.relevance(trace, direction)
    assert all(float(each.abs().sum()) > 0 for each in relevance)
    # only the class token's row is read in the last layer
    assert float(relevance[-1][:, :, :, 1:].abs().max()) == 0


@pytest.mark.parametrize("method", [Rollout, TransformerAttribution])
def test_methods_that_need_one_sequence_say_so_for_windows(method):
    swin = unweave.load_model("pocket/swin")
    attending = Attention(swin.readout, swin.example())
    with pytest.raises(Unfit, match="windows"):
        method(attending)
    maps = RawAttention(attending)(swin.example(2), torch.randn(2, 128))
    assert maps.shape == (2, 4, 4) and torch.allclose(maps.sum((1, 2)), torch.ones(2), atol=1e-5)


def test_tokens_without_a_cell_are_left_out():
    grid = attention().layers[-1].keys
    assert laid_out(torch.arange(5.0)[None], grid).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]


# -- the harness -------------------------------------------------------------------------------------------------------


def images_of(count=5, masks=True, labels=None, size=(SIZE, SIZE), broken=(), empty=()):
    def read(row):
        if row in broken:
            raise DataError("The image is damaged.", where=str(row))
        return Image.fromarray(np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), np.uint8))

    def mask(row):
        object_ = np.zeros(size, bool)
        object_[2:9, 3 : 8 + row] = row not in empty
        return object_

    fields = {"id": [f"p{row}" for row in range(count)], "label": labels or [row % 3 for row in range(count)]}
    return ImageSet("pictures", pa.table(fields), read, mask if masks else None)


@cache
def mapper():
    return Mapper(unweave.plan(model()))


def measured(images, **options):
    options = {"mapper": mapper(), "methods": PLAIN, **options}
    return measured_by(model(), images, toward_classes(model()), **options)


def test_every_method_is_measured_on_the_same_images_in_one_run(monkeypatch):
    whole = measured(images_of(), shown=3)
    monkeypatch.setattr("unweave.tasks.segmentation._BATCH", 2)
    told = []
    segmentation = measured(images_of(), shown=3, on_progress=lambda *what: told.append(what))
    assert [quality.method for quality in segmentation.qualities] == list(PLAIN)
    assert {quality.images for quality in segmentation.qualities} == {5}
    assert segmentation.space == "classifier" and told == [("measuring maps", count, 5) for count in (2, 4, 5)]
    assert [image.label for image in segmentation.shown] == ["0", "1", "2"]
    assert set(segmentation.shown[0].maps) == set(PLAIN)
    for ours, theirs in zip(whole.qualities, segmentation.qualities, strict=True):
        for name in ("pixel_accuracy", "foreground_iou", "mean_iou", "average_precision"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-6)


def test_the_verb_measures_what_is_asked_for(tmp_path):
    segmentation = segment(model(), images_of(), select="last:1", methods=[OURS], shown=2)
    last = Mapper(unweave.plan(model()), "last:1")
    expected = measured(images_of(), mapper=last, methods=[OURS], shown=2)
    assert segmentation.table().equals(expected.table()) and segmentation.card["model"] == "tiny"
    assert segmentation.card["components"] == [str(component) for component in last.components]
    assert "figure" in segmentation.save(tmp_path / "out")
    again = Segmentation.load(tmp_path / "out")
    assert again.table().equals(segmentation.table()) and again.card == segmentation.card
    assert np.array_equal(again.shown[1].maps[OURS], segmentation.shown[1].maps[OURS])
    assert np.array_equal(again.shown[1].mask, segmentation.shown[1].mask)
    assert "figure" not in segment(model(), images_of(), methods=[OURS], shown=0).save(tmp_path / "none")


def test_classes_as_words_are_those_of_the_images():
    words = space_of(WIDTH)
    headless = unweave.Model.from_module(ready(Vit(), torch.float32), input_size=(3, SIZE, SIZE), id="tiny")
    words = replace(words, images=headless)
    images = images_of(3, labels=["sea_lion", "dog", "dog"])
    segmentation = segment(headless, images, space=words, methods=[OURS], shown=3)
    assert segmentation.space == "tiny" and [image.label for image in segmentation.shown] == ["sea lion", "dog", "dog"]
    with pytest.raises(ArgumentError, match="Only a classifier predicts"):
        segment(headless, images, label=None, space=words)
    with pytest.raises(DataError, match="Nothing is known of the kind"):
        segment(headless, images, label="kind", space=words)


def test_ours_is_the_map_of_the_images_own_class():
    images = images_of(3)
    segmentation = measured(images, methods=[OURS], shown=3)
    inputs = torch.stack([model().preprocess(picture.read()) for picture in images])
    maps = mapper()(inputs, toward_classes(model())).enlarged(SIZE, SIZE)
    for row, image in enumerate(segmentation.shown):
        assert np.allclose(image.maps[OURS], maps[row, row % 3].numpy(), atol=1e-5)
        assert np.array_equal(image.mask, images[row].mask()) and np.array_equal(
            image.pixels, np.asarray(images[row].read())
        )


def test_the_predicted_class_needs_no_field(monkeypatch):
    monkeypatch.setattr("unweave.tasks.segmentation._BATCH", 2)
    images = images_of(4, broken=(2,))
    segmentation = measured(images, methods=[OURS], label=None, shown=4)
    wanted = [
        int(model().module(model().preprocess(images[row].read())[None]).argmax()) for row in range(4) if row != 2
    ]
    assert [image.label for image in segmentation.shown] == [str(code) for code in wanted] and len(
        segmentation.skipped
    ) == 1


def test_images_that_cannot_be_used_are_left_out_and_said():
    segmentation = measured(images_of(broken=(1,), empty=(3,)), methods=[OURS])
    assert segmentation.skipped == (("p1", "The image is damaged."), ("p3", "its mask is empty"))
    assert segmentation.qualities[0].images == 3
    with pytest.raises(DataError, match="None of the 2 images"):
        measured(images_of(2, broken=(0, 1)), methods=[OURS])


def test_a_method_without_meaning_has_a_reason_and_no_number(monkeypatch):
    def unfit(attention):
        raise Unfit("Its tokens are merged.")

    monkeypatch.setattr("unweave.tasks.segmentation.Rollout", unfit)
    row = next(row for row in measured(images_of(2)).table().to_pylist() if row["method"] == "rollout")
    assert row["reason"] == "Its tokens are merged." and row["average_precision"] is None and row["images"] == 0


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="no masks"):
        measured(images_of(masks=False))
    with pytest.raises(DataError, match="16 x 12 pixels, the image 16 x 16"):
        measured(images_of(size=(12, 16)))
    with pytest.raises(DataError, match="Nothing is known of the kind"):
        measured(images_of(), label="kind")
    with pytest.raises(DataError, match="'7' is none of the 3 classes") as caught:
        measured(images_of(2, labels=[0, 7]))
    assert "p1" in str(caught.value)
    for methods in ([], ["magic"]):
        with pytest.raises(ArgumentError, match="no method"):
            measured(images_of(), methods=methods)


def test_a_model_without_attention_has_no_baselines():
    plain = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(16, 5)).eval()
    attending = Attention(plain, torch.randn(2, 3, 16, 16))
    with pytest.raises(Unfit, match="no attention"):
        RawAttention(attending)
