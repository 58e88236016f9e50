"""Contributions come back from disk as they went, damaged files are refused, and unfinished ones leave no trace."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from unweave import Contributions
from unweave.components import Component
from unweave.errors import UnweaveError
from unweave.saving import ContributionsWriter, files_at
from unweave.source import Origin

COMPONENTS = (
    Component("patch_embed", "embed"),
    Component("blocks.0.attn", "head", layer=0, head=1),
    Component("blocks.0.mlp", "mlp", layer=0),
)
ORIGIN = Origin(
    model="timm/vit",
    weights_hash="ab12",
    preprocessing={"mean": [0.5, 0.5, 0.5]},
    level="head",
    selection="kind:head",
    computed_in="bfloat16",
    skipped=(("ü.jpg", "The file is empty."),),
)


def make(images=4, dim=6, dtype=torch.float32, first=0):
    values = torch.randn(images, len(COMPONENTS), dim, generator=torch.Generator().manual_seed(first)).to(dtype)
    return Contributions(
        values=values,
        components=COMPONENTS,
        ids=tuple(f"photo/{first + n}.jpg" for n in range(images)),
        representation=values.sum(1),
        error=torch.rand(images) * 1e-6,
        tolerance=2e-5,
        origin=ORIGIN,
    )


def same(a, b):
    assert (a.components, a.ids, a.tolerance, a.origin) == (b.components, b.ids, b.tolerance, b.origin)
    assert a.values.dtype == b.values.dtype
    for name in ("values", "representation", "error"):
        assert torch.equal(getattr(a, name).double(), getattr(b, name).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["out", "deep/down/out", "deep/run.safetensors"])
def test_round_trip(tmp_path, dtype, name):
    contributions = make(5, 7, dtype)
    path = contributions.save(tmp_path / name)
    same(Contributions.load(tmp_path / name), contributions)
    same(Contributions.load(path.with_suffix(".json")), contributions)
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".json", ".safetensors"]
    tensors = load_file(path)
    assert torch.equal(tensors["values"], contributions.values)
    assert tensors["values"].data_ptr() % tensors["values"].element_size() == 0


def test_the_card_tells_what_the_numbers_are(tmp_path):
    path = make().save(tmp_path)
    card = json.loads(path.with_suffix(".json").read_text())
    assert (
        card["model"] == ORIGIN.model
        and card["weights_hash"] == "ab12"
        and card["selection"] == "kind:head"
        and card["computed_in"] == "bfloat16"
    )
    assert card["components"][1] == {
        "name": "blocks.0.attn.head.1", "path": "blocks.0.attn", "kind": "head", "layer": 0, "head": 1,
    }  # fmt: skip
    assert card["skipped"] == [{"id": "ü.jpg", "reason": "The file is empty."}]
    assert card["images"] == 4 and card["dim"] == 6 and card["dtype"] == "float32"
    assert 0 < card["largest_error"] <= 1e-6 and card["tolerance"] == 2e-5
    assert set(card["versions"]) == {"unweave", "torch", "timm"}


def test_without_an_origin(tmp_path):
    contributions = replace(make(), origin=None)
    contributions.save(tmp_path)
    same(Contributions.load(tmp_path), contributions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("announced", [7, 50])
def test_batches_end_as_one_and_close_up_over_skipped_images(tmp_path, dtype, announced):
    first, second = make(4, 5, dtype, first=0), make(3, 5, dtype, first=10)
    with ContributionsWriter(tmp_path / "out", COMPONENTS, images=announced, dim=5, dtype=dtype) as writer:
        assert writer.size == sum(
            announced * numbers * size for numbers, size in ((15, dtype.itemsize), (5, 4), (1, 4))
        )
        writer.append(first)
        writer.append(second)
        assert not writer.tensors.exists()
        path = writer.finish(ORIGIN)
    loaded = Contributions.load(path)
    same(
        loaded,
        replace(
            first,
            values=torch.cat([first.values, second.values]),
            representation=torch.cat([first.representation, second.representation]),
            error=torch.cat([first.error, second.error]),
            ids=first.ids + second.ids,
        ),
    )
    assert load_file(path)["values"].shape == (7, 3, 5)


def test_many_rows_close_up_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("unweave.files.pair._AT_ONCE", 100)
    contributions = make(40, 5)
    with ContributionsWriter(tmp_path, COMPONENTS, images=41, dim=5) as writer:
        writer.append(contributions)
        writer.finish(ORIGIN)
    same(Contributions.load(tmp_path), contributions)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_no_trace(tmp_path, interrupt):
    with (
        pytest.raises(interrupt),
        ContributionsWriter(tmp_path / "a" / "b", COMPONENTS, images=9, dim=6) as writer,
    ):
        writer.append(make())
        raise interrupt
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_keeps_what_was_there(tmp_path):
    contributions = make()
    contributions.save(tmp_path)
    with ContributionsWriter(tmp_path, COMPONENTS, images=9, dim=6) as writer:
        writer.append(make(first=20))
    same(Contributions.load(tmp_path), contributions)
    assert len(list(tmp_path.iterdir())) == 2


def test_too_little_room(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 0, 100))
    with pytest.raises(UnweaveError, match="lacks the room"):
        make().save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_disk_fills_up(tmp_path):
    with pytest.raises(UnweaveError, match=r"lacks the room"):
        ContributionsWriter(tmp_path / "out", COMPONENTS, images=10**12, dim=10**4)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnweaveError, match="cannot be written") as caught:
        make().save(tmp_path / "file" / "out")
    assert "file" in caught.value.where


def test_wrong_batches(tmp_path):
    with ContributionsWriter(tmp_path, COMPONENTS, images=5, dim=6) as writer:
        with pytest.raises(UnweaveError, match="other components"):
            writer.append(make()["kind:head"])
        with pytest.raises(UnweaveError, match="other components"):
            writer.append(make(dim=7))
        writer.append(make())
        with pytest.raises(UnweaveError, match="More than the 5"):
            writer.append(make())
        writer.finish()
        with pytest.raises(UnweaveError, match="already finished"):
            writer.append(make(images=1))
    with pytest.raises(UnweaveError, match="int32"):
        ContributionsWriter(tmp_path, COMPONENTS, images=5, dim=6, dtype=torch.int32)


def damage_card(change):
    def apply(tensors, card):
        fields = json.loads(card.read_text())
        change(fields)
        card.write_text(json.dumps(fields))

    return apply


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda tensors, card: tensors.unlink(), "a file is missing"),
        (lambda tensors, card: card.unlink(), "a file is missing"),
        (lambda tensors, card: tensors.write_bytes(tensors.read_bytes()[:-9]), "damaged"),
        (lambda tensors, card: tensors.write_bytes(b"\xff" * 100), "damaged"),
        (lambda tensors, card: tensors.write_bytes(b""), "damaged"),
        (lambda tensors, card: card.write_bytes(card.read_bytes()[:-9]), "damaged"),
        (lambda tensors, card: card.write_bytes(b"\xff\x00"), "damaged"),
        (lambda tensors, card: card.write_text("[]"), "damaged"),
        (damage_card(lambda fields: fields.pop("format")), "damaged"),
        (damage_card(lambda fields: fields.update(version=99)), "version 99"),
        (damage_card(lambda fields: fields.update(level="token")), "belong together"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    make().save(tmp_path)
    damage(*files_at(tmp_path))
    with pytest.raises(UnweaveError, match=message) as caught:
        Contributions.load(tmp_path)
    assert str(tmp_path) in caught.value.where


def test_files_of_two_runs_do_not_mix(tmp_path):
    make(first=1).save(tmp_path / "a")
    make(first=9).save(tmp_path / "b")
    shutil.copy(tmp_path / "a" / "contributions.json", tmp_path / "b" / "contributions.json")
    with pytest.raises(UnweaveError, match="belong together"):
        Contributions.load(tmp_path / "b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_sum_to_one(dtype):
    share = make(6, 64, dtype).share()
    assert share.dtype == torch.float32 and share.shape == (3,)
    assert abs(float(share.sum()) - 1) < (1e-5 if dtype == torch.float32 else 2e-2)


def test_shares_by_definition():
    contributions = make(6, 8, torch.float64)
    z = contributions.representation
    expected = [
        sum(float(c @ row) / float(row @ row) for c, row in zip(contributions.values[:, n], z, strict=True)) / 6
        for n in range(3)
    ]
    torch.testing.assert_close(contributions.share(), torch.tensor(expected, dtype=torch.float64))
