"""A store gives back what was put into it, to the last bit, whatever is asked of it and wherever it lies."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.numpy import load

import unweave
from unweave import Contributions
from unweave.components import Component
from unweave.errors import ArgumentError, DataError, StoreError
from unweave.extraction import verify
from unweave.store import Manifest, Place, Store, export, writer
from unweave.store.blocks import file
from unweave.store.manifest import Listing
from unweave.store.writer import Block

DIM, CLASSES, ROWS = 5, 3, 4
COMPONENTS = {
    "head": tuple(
        [Component("embed", "embed")]
        + [Component(f"blocks.{layer}.attn", "head", layer, head) for layer in range(2) for head in range(3)]
    ),
    "layer": (
        Component("embed", "embed"),
        Component("blocks.0.attn", "attn", 0),
        Component("blocks.1.attn", "attn", 1),
    ),
}
MANIFEST = Manifest(
    model="tiny",
    loading=None,
    weights_hash="abc",
    preprocessing={"size": 16},
    levels=("head", "layer"),
    selection=None,
    attention="through",
    nonlinear="stop",
    computed_in="float32",
    dtype="float16",
    dim=DIM,
    classes=CLASSES,
    rows=ROWS,
    batch=2,
    tolerance=1e-5,
    listings=(),
    versions={},
)
BROKEN = (2, 9)
"""Images that could not be read, of eleven."""


def truth(count=11, first=0):
    rng = np.random.default_rng(first)
    values = {level: rng.normal(size=(count, len(own), DIM)).astype(np.float16) for level, own in COMPONENTS.items()}
    return (
        values,
        rng.normal(size=(count, DIM)).astype(np.float32),
        rng.normal(size=(count, CLASSES)).astype(np.float32),
    )


def listed(count=11, first=0):
    numbers = range(first, first + count)
    return pa.table({"id": [f"ü/{n}.png" for n in numbers], "label": ["swan" if n % 3 else "dück" for n in numbers]})


def begun(place, count=11):
    writer.create(place, COMPONENTS)
    return writer.extend(place, MANIFEST, listed(count), Listing("x", None, count, "f", 0, 0))


def put(place, manifest, block, values, z, logits, broken=BROKEN):
    _, places = manifest.listing(block)
    good = [n for n in places if n not in broken]
    own = Block(
        block,
        {level: every[good] for level, every in values.items()},
        z[good],
        logits[good],
        np.array(good, np.float32) * 1e-7,
        np.array(good, np.float32) * 1e-4,
        [f"broken {n}" if n in broken else None for n in places],
    )
    writer.put(place, manifest, own)


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    return Place(tmp_path / "störe" if request.param == "disk" else f"memory://{tmp_path}/store")


@pytest.fixture
def filled(place):
    manifest = begun(place)
    for block in (2, 0, 1):
        put(place, manifest, block, *truth())
    assert writer.merge(place, manifest)
    return Store(place)


GOOD = [n for n in range(11) if n not in BROKEN]


# --- what was put in


def test_every_row_knows_its_image(filled):
    values, z, logits = truth()
    assert filled.ids == [f"ü/{n}.png" for n in GOOD] and len(filled) == 9
    assert filled.skipped == [(f"ü/{n}.png", f"broken {n}") for n in BROKEN]
    assert filled.field("label") == ["swan" if n % 3 else "dück" for n in GOOD]
    found = Contributions.of(filled.view())
    assert found.ids == tuple(filled.ids) and found.components == COMPONENTS["head"]
    assert np.array_equal(found.values.numpy(), values["head"][GOOD])
    assert np.array_equal(filled.view("layer").values().numpy(), values["layer"][GOOD])
    assert np.array_equal(found.representation.numpy(), z[GOOD])
    assert np.array_equal(filled.view().logits.numpy(), logits[GOOD])
    assert found.error.tolist() == pytest.approx([n * 1e-7 for n in GOOD])
    assert found.origin.weights_hash == "abc" and found.origin.skipped == tuple(filled.skipped)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, 7, 2), [1, 3, 5]),
        ([8, 0, 0, -1], [8, 0, 0, 8]),
        (np.array([False] * 3 + [True] * 6), [3, 4, 5, 6, 7, 8]),
        (["ü/10.png", "ü/1.png"], [8, 1]),
        ([], []),
        (slice(4, 4), []),
        (torch.tensor([2, 1]), [2, 1]),
    ],
)
@pytest.mark.parametrize(
    ("components", "columns"), [("blocks.1.*", [4, 5, 6]), (["kind:embed"], [0]), (None, range(7))]
)
def test_rows_and_components_in_any_order(filled, rows, expected, components, columns):
    values, z, _ = truth()
    found = filled.view().select(components).rows(rows)
    numbers = [GOOD[row] for row in expected]
    assert np.array_equal(found.values().numpy(), values["head"][numbers][:, list(columns)])
    assert np.array_equal(found.representation.numpy(), z[numbers])
    assert found.ids == tuple(f"ü/{n}.png" for n in numbers)


def test_batches_are_the_whole_in_pieces(filled):
    view = filled.view().select("blocks.0.*")
    parts = list(view.batches(4))
    assert [len(part.ids) for part in parts] == [4, 4, 1]
    assert torch.equal(torch.cat([part.values() for part in parts]), view.values())


def test_only_the_bytes_that_are_asked_for_are_read(filled):
    """Components that were destroyed do not matter to those that are read."""
    chunks = {0: 3, 1: 4, 2: 2}  # rows of each block
    for block, rows in chunks.items():
        content = bytearray(filled.place.read(file("contributions/head", block)))
        start = len(content) - 7 * rows * DIM * 2
        content[start : start + 4 * rows * DIM * 2] = b"\xff" * (4 * rows * DIM * 2)
        filled.place.write(file("contributions/head", block), bytes(content))
    values, _, _ = truth()
    assert np.array_equal(filled.view().select("blocks.1.*").values().numpy(), values["head"][GOOD][:, 4:])
    assert not np.array_equal(filled.view().select("embed").values().numpy(), values["head"][GOOD][:, :1])
    with pytest.raises(StoreError, match="not those that were written") as caught:
        Store(filled.place, check=True).view().select("embed").values()
    assert "verify STORE --repair" in str(caught.value)
    assert Store(filled.place, check=True).view().select("blocks.1.*").values().shape == (9, 3, DIM)


def test_only_the_bytes_that_are_asked_for_travel(filled, monkeypatch):
    if filled.place.local is not None:
        pytest.skip("elsewhere only")
    asked = []
    spans = Place.spans
    monkeypatch.setattr(Place, "spans", lambda self, name, own: asked.extend(own) or spans(self, name, own))
    filled.view().select([1, 2, 6]).rows(slice(0, 3)).values()
    assert [end - start for start, end in asked] == [2 * 3 * DIM * 2, 3 * DIM * 2]


def test_blocks_are_what_any_reader_of_safetensors_reads(filled):
    values, z, _ = truth()
    for block, numbers in ((0, [0, 1, 3]), (1, [4, 5, 6, 7]), (2, [8, 10])):
        tensors = load(filled.place.read(file("contributions/head", block)))
        assert list(tensors) == ["values"]
        assert np.array_equal(tensors["values"], values["head"][numbers].swapaxes(0, 1))
        assert np.array_equal(load(filled.place.read(file("representation", block)))["values"], z[numbers])


def test_components_that_write_nothing_are_there(place):
    manifest = begun(place, 3)
    values, z, logits = truth(3)
    values["head"][:, 2] = 0
    put(place, manifest, 0, values, z, logits, broken=())
    writer.merge(place, manifest)
    assert np.array_equal(Store(place).view().values().numpy(), values["head"])


def test_a_store_of_one_image_and_one_where_all_are_broken(place, tmp_path):
    manifest = begun(place, 1)
    put(place, manifest, 0, *truth(1), broken=())
    assert len(Store(place)) == 1 and Store(place).view().values().shape == (1, 7, DIM)
    other = Place(tmp_path / "other")
    manifest = begun(other, 2)
    put(other, manifest, 0, *truth(2), broken=(0, 1))
    found = Store(other)
    assert len(found) == 0 and found.view().values().shape == (0, 7, DIM) and len(found.skipped) == 2
    assert found.about()["largest_error"] is None


# --- what is not there yet


def test_a_store_that_is_not_finished_opens_only_on_request(place):
    manifest = begun(place)
    put(place, manifest, 1, *truth())
    assert not writer.merge(place, manifest)
    with pytest.raises(StoreError, match="1 of 3 blocks"):
        Store(place)
    found = Store(place, partial=True)
    assert found.missing == [0, 2] and found.ids == [f"ü/{n}.png" for n in range(4, 8)]
    values, _, _ = truth()
    assert np.array_equal(found.view().values().numpy(), values["head"][4:8])


def test_more_images_come_after_those_that_are_there(filled):
    place, manifest = filled.place, filled.manifest
    more = writer.extend(place, manifest, listed(3, 100), Listing("y", None, 3, "g", 0, 0))
    assert more.listings[1].first == 3 and more.blocks == 4 and more.images == 14
    with pytest.raises(StoreError, match="3 of 4 blocks"):
        Store(place)
    new = truth(3, 100)
    put(place, more, 3, *new, broken=())
    assert writer.merge(place, more)
    found, (values, _, _) = Store(place), truth()
    assert found.ids[9:] == ["ü/100.png", "ü/101.png", "ü/102.png"]
    assert np.array_equal(found.view().values().numpy(), np.concatenate([values["head"][GOOD], new[0]["head"]]))


def test_a_block_that_is_written_again_is_the_same(filled):
    names = [*(file("contributions/head", block) for block in range(3)), writer.record_file(1)]
    before = [filled.place.read(name) for name in names]
    put(filled.place, filled.manifest, 1, *truth())
    assert before == [filled.place.read(name) for name in names]


# --- what is asked in vain


def test_questions_without_an_answer_are_refused(filled):
    for question, error, what in (
        (lambda: filled.view("token"), StoreError, "no level 'token'"),
        (lambda: filled.view().select("nothing.*"), ArgumentError, "nothing"),
        (lambda: filled.view().rows([9]), DataError, "none with the number 9"),
        (lambda: filled.view().rows(["nobody"]), DataError, "no image 'nobody'"),
        (lambda: filled.view().rows([True]), DataError, "do not choose"),
        (lambda: filled.field("colour"), DataError, "no field 'colour'"),
        (lambda: filled.view().where("label"), ArgumentError, "not a condition"),
        (lambda: export(filled.view().rows([]), "x"), DataError, "No image"),
    ):
        with pytest.raises(error, match=what):
            question()
    assert filled.view().where("label=dück").numbers.tolist() == [0, 2, 5]


def test_nothing_there(tmp_path):
    with pytest.raises(StoreError, match="no store here"):
        unweave.open_store(tmp_path)
    with pytest.raises(StoreError, match="no such place"):
        Place("nosuchprotocol://x")


@pytest.mark.parametrize("field", ["model", "weights_hash", "preprocessing", "levels", "dtype", "selection"])
def test_another_model_is_refused_by_the_field_that_differs(filled, field):
    own = filled.manifest.identity
    filled.manifest.agree(own, where="here")
    with pytest.raises(StoreError, match=f"differs in its {field.replace('_', ' ')}") as caught:
        filled.manifest.agree(own | {field: ["other"]}, where="here")
    assert f"field `{field}`" in str(caught.value)


def test_a_newer_or_damaged_store_is_refused(filled):
    text = filled.place.read("manifest.json")
    known = json.loads(text)
    for damage, what in (
        (json.dumps(known | {"version": 3}), "has version 3"),
        (json.dumps(known | {"format": "x"}), "another format"),
        (text[:100].decode(), "damaged"),
        (json.dumps({key: value for key, value in known.items() if key != "rows"}), "damaged"),
        ("[]", "damaged"),
    ):
        filled.place.write("manifest.json", damage.encode())
        with pytest.raises(StoreError, match=what):
            Store(filled.place)


@pytest.mark.parametrize("name", ["index.parquet", "components-head.parquet", "listings/0000.parquet"])
def test_a_damaged_table_is_named(filled, name):
    filled.place.write(name, b"PAR1 nothing")
    with pytest.raises(StoreError, match="table of the store is damaged") as caught:
        if name.startswith("listings"):
            filled.place.remove("index.parquet")
        Store(filled.place).view().values()
    assert name in str(caught.value)


@pytest.mark.parametrize("damage", ["gone", "short", "long"])
def test_a_damaged_block_is_named_and_never_read_as_other_numbers(filled, damage):
    name = file("contributions/head", 1)
    content = filled.place.read(name)
    filled.place.remove(name)
    if damage != "gone":
        filled.place.write(name, content[:30] if damage == "short" else content[:100] + b"7 bytes" + content[100:])
    with pytest.raises(StoreError, match="is missing" if damage == "gone" else "bytes and should have") as caught:
        Store(filled.place).view().select("embed").values()
    assert f"{filled.place}/{name}" in str(caught.value) and "unweave extract" in str(caught.value)
    assert filled.view().select("embed").rows(slice(0, 3)).values().shape == (3, 1, DIM)


def test_opening_runs_nothing(filled):
    """No pickle: everything is JSON, Parquet or plain numbers."""
    if filled.place.local is None:
        pytest.skip("on disk only")
    files = [path for path in filled.place.local.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".parquet", ".safetensors"}


# --- taking a part elsewhere


def test_a_part_as_contributions(filled, tmp_path):
    view = filled.view().select("blocks.1.*").rows(slice(2, 8))
    found, expected = Contributions.load(export(view, tmp_path / "out")), Contributions.of(view)
    assert torch.equal(found.values, expected.values) and found.ids == expected.ids
    assert found.components == expected.components and found.origin == expected.origin


def test_a_part_as_a_table(filled, tmp_path):
    expected = filled.view().select("blocks.1.*").rows([5, 2])
    table = parquet.read_table(export(expected, tmp_path / "deep/out.parquet"))
    assert table["id"].to_pylist() == list(expected.ids) and table["label"].to_pylist() == ["dück", "dück"]
    values = np.stack([np.stack(table[str(one)].to_pylist()) for one in expected.components], 1)
    assert np.array_equal(values, expected.values().numpy())
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        export(expected, tmp_path / "file/out.parquet")


def test_a_summary_counts_the_bytes(filled):
    found = filled.about()
    assert found["rows"] == 9 and found["missing"] == 0 and found["components"] == {"head": 7, "layer": 3}
    lengths = [filled.place.sizes(name) for name in ("contributions/head", "contributions/layer", "representation")]
    lengths = [length for own in (*lengths, filled.place.sizes("logits")) for length in own.values()]
    assert len(lengths) == 12 and 0 < sum(lengths) - found["bytes"] < 12 * 128  # the header of each
    assert json.dumps(found)


@pytest.mark.parametrize("name", ["row", "error", "block"])
def test_a_field_with_a_name_of_the_stores_own_is_refused(place, name):
    writer.create(place, COMPONENTS)
    table = listed(3).append_column(name, pa.array([1, 2, 3]))
    with pytest.raises(StoreError, match=f"a field '{name}', which a store needs"):
        writer.extend(place, MANIFEST, table, Listing("x", None, 3, "f", 0, 0))


def test_agreement_ignores_what_does_not_matter():
    replace(MANIFEST, batch=7, versions={"torch": "9"}).agree(MANIFEST.identity, where="")


# --- version 1


@pytest.fixture
def old(tmp_path):
    shutil.copytree(Path(__file__).parent / "version1", tmp_path / "old")
    return tmp_path / "old"


def test_a_store_of_version_1_is_read(old):
    values, z, logits = truth()
    store = unweave.open_store(old)
    assert store.manifest.version == 1 and store.ids == [f"ü/{n}.png" for n in GOOD]
    assert np.array_equal(store.view().values().numpy(), values["head"][GOOD])
    assert np.array_equal(
        store.view().select("blocks.1.*").rows([5, 2, 8]).values().numpy(), values["head"][[6, 3, 10]][:, 4:]
    )
    assert np.array_equal(store.view("layer").values().numpy(), values["layer"][GOOD])
    assert np.array_equal(store.view().representation.numpy(), z[GOOD]) and np.array_equal(
        store.view().logits, logits[GOOD]
    )
    assert verify(store, rows=0).faults == []
    (old / "index.parquet").unlink()
    assert np.array_equal(Store(old).view().values().numpy(), values["head"][GOOD])


def test_a_store_of_version_1_is_not_written(old):
    with pytest.raises(StoreError, match="no longer written") as caught:
        writer.mend(Place(old), Manifest.load(Place(old)), COMPONENTS, listed(), "f")
    assert "another folder" in str(caught.value)


@pytest.mark.parametrize("damage", ["shifted", "flipped", "gone", "array"])
def test_a_damaged_store_of_version_1_is_an_error(old, damage):
    path = old / ("contributions/head/zarr.json" if damage == "array" else "contributions/head/c/1/0/0")
    content = path.read_bytes()
    match damage:
        case "shifted":
            path.write_bytes(b"7 bytes" + content)
        case "flipped":
            path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
        case "gone":
            path.unlink()
        case "array":
            path.write_bytes(content.replace(b"float16", b"float32"))
    with pytest.raises(StoreError, match=r"not those that were written|missing or damaged"):
        Store(old).view().values()


def test_zarr_that_is_not_installed_is_named(old, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(StoreError, match="pip install zarr"):
        Store(old).view().values()
