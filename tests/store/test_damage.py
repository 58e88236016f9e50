"""Whatever happens to the files of a store, what is read is what was written, or an error that names the file."""

from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from stores import stored
from unweave.components import Component
from unweave.errors import StoreError, UnweaveError
from unweave.saving import ContributionsWriter
from unweave.store import Place, Store, writer
from unweave.store.manifest import FILE

COMPONENTS = [Component("blocks.0.attn", "head", 0, head) for head in range(3)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = tmp_path_factory.mktemp("whole") / "s"
    values = torch.randn(210, 3, 4, generator=torch.Generator().manual_seed(0))
    stored(place, values, COMPONENTS, fields={"label": ["swan", "duck"] * 105, "size": list(range(210))})
    return place


@pytest.fixture
def store(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    return tmp_path / "s"


def content(place):
    store = Store(place, check=True)
    return store.ids, store.view().values().numpy().tobytes(), store.view().representation.numpy().tobytes()


def hurt(data, rng):
    """A byte changed, some lost, some put in, or the end cut off."""
    at = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + data[at + rng.randint(1, 9) :]
        case 2:
            return data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]
    return data[:at]


@pytest.mark.parametrize("index", ["with its index", "without"])
def test_random_damage_of_any_file_is_an_error_or_changes_nothing(store, index):
    if index == "without":
        (store / "index.parquet").unlink()
    expected, rng, refused = content(store), random.Random(7), 0
    files = sorted(path for path in store.rglob("*") if path.is_file())
    assert len(files) >= 12
    for path in files:
        data = path.read_bytes()
        for _ in range(25):
            path.write_bytes(hurt(data, rng))
            try:
                assert content(store) == expected, path
            except StoreError as error:
                assert str(store) in str(error)
                refused += 1
        path.write_bytes(data)
    assert refused > 100 and content(store) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", "x"),
        ("dim", -5),
        ("dim", 10**12),
        ("dim", 8),
        ("dim", 2**24),
        ("dim", 4.0),
        ("dim", True),
        ("dtype", "object"),
        ("dtype", "float16"),
        ("rows", 0),
        ("rows", 10**12),
        ("rows", 50),
        ("classes", 0),
        ("batch", None),
        ("tolerance", "1"),
        ("tolerance", -1.0),
        ("tolerance", float("nan")),
        ("levels", []),
        ("levels", "head"),
        ("levels", ["head", "head"]),
        ("levels", ["heads"]),
        ("levels", ["layer"]),
        ("selection", "x"),
        ("selection", [1]),
        ("loading", []),
        ("preprocessing", None),
        ("versions", {"torch": 2}),
        ("attention", "around"),
        ("computed_in", "float8"),
        ("version", 0),
        ("version", "2"),
        ("version", 3),
        ("format", None),
        ("listings", {}),
        ("listings", [{}]),
        ("strange", 1),
    ],
)
def test_a_field_that_cannot_be_is_named_before_anything_is_read(store, field, value):
    known = json.loads((store / FILE).read_text())
    (store / FILE).write_text(json.dumps(known | {field: value}))
    with pytest.raises(StoreError) as caught:
        Store(store).view().values()
    assert str(store) in str(caught.value) and "try: " in str(caught.value)


@pytest.mark.parametrize("index", ["with its index", "without"])
@pytest.mark.parametrize(
    "change",
    [
        {"images": 10**12, "blocks": 10**10},
        {"images": 10**12},
        {"blocks": 10**12},
        {"first": 1},
        {"images": -1},
        {"images": "many"},
        {"images": 211},
    ],
)
def test_a_listing_that_cannot_be_is_named(store, change, index):
    if index == "without":
        (store / "index.parquet").unlink()
    known = json.loads((store / FILE).read_text())
    known["listings"][0] |= change
    (store / FILE).write_text(json.dumps(known))
    with pytest.raises(StoreError, match=r"listing|images"):
        Store(store, partial=True)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"preprocessing": ' + '{"a":' * 900 + "1" + "}" * 901, "null", "\udcff"]
)
def test_json_that_is_deep_or_none_is_an_error(store, text):
    (store / FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StoreError, match="manifest is damaged"):
        Store(store)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", [FILE, "index.parquet", "contributions/head/00000001.safetensors"])
def test_a_pipe_is_no_file(store, name):
    (store / name).unlink()
    os.mkfifo(store / name)
    with pytest.raises(StoreError, match=r"no file|missing"):
        Store(store).view().values()


def test_a_manifest_without_end_is_not_read(store):
    with (store / FILE).open("r+b") as file:
        file.truncate(10**10)
    with pytest.raises(StoreError, match="longer than"):
        Store(store)


def test_an_empty_partial_store_keeps_the_fields(store):
    for name in ("index.parquet", *(writer.record_file(block) for block in range(3))):
        (store / name).unlink()
    found = Store(store, partial=True)
    assert len(found) == 0 and found.missing == [0, 1, 2] and found.view().values().shape == (0, 3, 4)
    assert found.fields() == {"label": "string", "size": "int64"} and found.field("label") == []


def test_tables_that_say_the_same_are_the_same_however_they_lie_in_memory(tmp_path):
    from unweave.store.tables import read_table, write_table

    columns = {
        "text": pa.array(["a", None, "ü\n", ""]),
        "number": pa.array([1, None, 3, 4]),
        "share": pa.array([0.5, float("nan"), None, 1.0], pa.float32()),
        "told": pa.array([True, None, False, True]),
        "list": pa.array([["a"], [], None, ["b", None]]),
    }
    whole = pa.table(columns)
    parts = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 0), whole.slice(1)])
    for number, table in enumerate((whole, parts)):
        write_table(Place(tmp_path), f"{number}.parquet", table, {"a": [1]})
        found, known = read_table(Place(tmp_path), f"{number}.parquet", version=2)
        assert str(found.to_pydict()) == str(whole.to_pydict()) and known == {"a": [1]}


@pytest.mark.parametrize(
    ("field", "value"),
    [("ids", "abc"), ("ids", [1, 2]), ("components", [{"path": 3, "kind": "head"}]), ("components", [1]),
     ("tolerance", "x"), ("skipped", [1]), ("model", 7), ("dim", "4")],
)  # fmt: skip
def test_a_card_whose_fields_are_of_other_types_is_refused(tmp_path, monkeypatch, field, value):
    from unweave import Contributions
    from unweave.contributions import Origin

    values = torch.zeros(2, 3, 4)
    given = Contributions(values, tuple(COMPONENTS), ("a", "b"), values.sum(1), torch.zeros(2))
    with ContributionsWriter(tmp_path, COMPONENTS, images=2, dim=4) as files:
        files.append(given)
        finish = files._files.finish
        monkeypatch.setattr(files._files, "finish", lambda card: finish(card | {field: value}))
        files.finish(Origin("m", "h", {}, "head"))
    with pytest.raises(UnweaveError, match="cannot be read, or is damaged"):
        Contributions.load(tmp_path)


def test_numbers_of_a_store_that_is_checked_are_those_of_one_that_is_not(store):
    checked, other = Store(store, check=True), Store(store)
    for _ in range(2):
        assert np.array_equal(checked.view().rows([5, 150, 3]).values(), other.view().rows([5, 150, 3]).values())
