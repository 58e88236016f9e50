"""Exact search against numpy in float64, sums of components against a plain loop, and files that belong to a store."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stores import stored
from unweave.alignment import Aligner
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, DataError, StoreError, UnweaveError
from unweave.tasks import index as module
from unweave.tasks.index import Index

WIDTH, DIM = 10, 8
NAMES = (*(Component("blocks.0.attn", "head", 0, head) for head in range(4)), Component("blocks.0.attn", "bias", 0))


def values(images=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, len(NAMES), WIDTH, generator=generator) + torch.linspace(3, 5, WIDTH)


def aligned(store, seed=1, **known):
    generator = torch.Generator().manual_seed(seed)
    maps, bias = torch.randn(len(NAMES), WIDTH, DIM, generator=generator), torch.randn(DIM, generator=generator)
    about = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    identity = about | {"space": "words", "space_hash": "w"} | known
    return store.view().through(Aligner(maps, bias, NAMES, identity))


def drawn(images, dim=16, seed=0):
    rows = torch.randn(images, dim, generator=torch.Generator().manual_seed(seed))
    rows = torch.nn.functional.normalize(rows, dim=1)
    return Index(rows, torch.zeros(dim), tuple(map(str, range(images))), {"components": None, "level": "head"})


def naive(rows, queries, count):
    """One product at a time, in float64; of equals, the first."""
    rows, queries = rows.double().numpy(), queries.double().numpy()
    near = [[float((row * query).sum() / np.linalg.norm(query)) for row in rows] for query in queries]
    order = [sorted(range(len(rows)), key=lambda row: (-each[row], row))[:count] for each in near]
    return order, [[each[row] for row in best] for each, best in zip(near, order, strict=True)]


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("at_once", [1, 5, 64, 1000])
def test_search_finds_what_comparing_one_by_one_finds(monkeypatch, count, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    monkeypatch.setattr(module, "_QUERIES", 2)
    index, queries = drawn(150), 3 * torch.randn(5, 16, generator=torch.Generator().manual_seed(8))
    hits = index.search(queries, count)
    order, near = naive(index.rows, queries, count)
    assert hits.rows.tolist() == order
    assert np.allclose(hits.similarity, near, atol=1e-6)


def test_equal_rows_come_in_their_order_however_they_are_cut(monkeypatch):
    """Float32 products of equal rows differ with their place in a block; the order does not follow them."""
    index = drawn(40, dim=333)
    rows = index.rows[torch.arange(2000) % 40]  # every row fifty times
    index, queries = Index(rows, index.mean, tuple(map(str, range(2000))), {}), index.rows[:3] + 0.1
    first = index.search(queries, 120)
    for near in first.rows:
        assert all((np.diff(near[start : start + 50]) == 40).all() for start in (0, 50))
    for at_once in (7, 64, 501):
        monkeypatch.setattr(module, "_AT_ONCE", at_once)
        hits = index.search(queries, 120)
        assert np.array_equal(hits.rows, first.rows) and np.array_equal(hits.similarity, first.similarity)


def test_rows_that_float32_cannot_tell_apart_are_told_apart(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    base = torch.nn.functional.normalize(torch.randn(1, 64, generator=generator), dim=1)
    rows = base + 1e-8 * torch.randn(500, 64, generator=generator)
    index = Index(rows, torch.zeros(64), tuple(map(str, range(500))), {})
    assert index.search(base, 20).rows.tolist() == naive(rows, base, 20)[0]


def test_asking_for_more_than_there_is_gives_all():
    assert drawn(5).search(torch.ones(1, 16), 9).rows.shape == (1, 5)


@pytest.mark.parametrize(("queries", "count", "what"), [((1, 16), 0, "0 images"), ((1, 9), 1, "9 numbers")])
def test_what_cannot_be_searched_for(queries, count, what):
    with pytest.raises(ArgumentError, match=what):
        drawn(5).search(torch.ones(queries), count)


def chosen(view, places):
    """Some components; all of them, and the representation itself, for none."""
    return view if places is None else view.select(places)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("places", [[2], [3, 0], None])
@pytest.mark.parametrize("size", [1, 4 * WIDTH * 7, 2**20])
def test_rows_are_sums_of_length_one(tmp_path, monkeypatch, centred, places, size):
    monkeypatch.setattr(module, "_BYTES", size)
    numbers = values()
    store = stored(tmp_path / "s", numbers, NAMES)
    none = torch.zeros(len(numbers))
    memory = Contributions(numbers, NAMES, tuple(store.ids), numbers.sum(1), none, origin=store.view().origin)
    aligner = aligned(store).aligner
    columns = range(len(NAMES)) if places is None else places
    for view in (store.view(), memory.view(), aligned(store), aligned(memory)):
        expected = []
        for image in numbers.double():
            parts = [image[place] @ aligner.maps[place].double() for place in columns]
            bias = aligner.bias.double() if places is None else 0
            expected.append(sum(parts) + bias if view.aligner is not None else image[list(columns)].sum(0))
        total = torch.stack(expected)
        total = total - total.mean(0) if centred else total
        index = Index.build(chosen(view, places), representation=places is None, centred=centred)
        assert torch.allclose(index.rows.double(), torch.nn.functional.normalize(total, dim=1), atol=2e-6)
        assert index.ids == tuple(store.ids) and index.identity["centred"] is centred
        assert index.components == (None if places is None else tuple(NAMES[place] for place in places))


def test_an_image_of_the_index_is_nearest_to_itself(tmp_path):
    numbers = values()
    index = Index.build(stored(tmp_path / "s", numbers, NAMES).view().select([0, 2]))
    hits = index.search(index.query(numbers[:, [0, 2]].sum(1)), 1)
    assert hits.rows[:, 0].tolist() == list(range(30)) and np.allclose(hits.similarity, 1)


def test_rows_of_a_store_can_be_chosen(tmp_path):
    numbers = values()
    store = stored(tmp_path / "s", numbers, NAMES)
    some = Index.build(store.view().select([1]).rows(np.arange(0, 30, 3)))
    other = Index.build(stored(tmp_path / "t", numbers[::3], NAMES).view().select([1]))
    assert torch.equal(some.rows, other.rows) and some.ids == tuple(store.ids[::3])


def test_a_constant_component_says_nothing_of_any_image(tmp_path):
    numbers = values()
    numbers[:, 1] = numbers[0, 1]
    index = Index.build(stored(tmp_path / "s", numbers, NAMES).view().select([1]))
    assert not bool(index.rows.any()) and index.search(torch.ones(1, WIDTH), 3).rows.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(("images", "what"), [(1, "one image only"), (0, "no images")])
def test_one_image_has_nothing_to_be_compared_with(tmp_path, images, what):
    store = stored(tmp_path / "s", values(), NAMES)
    with pytest.raises(DataError, match=what):
        Index.build(store.view().select([0]).rows(np.arange(images)))


def test_no_components_are_an_error(tmp_path):
    with pytest.raises(ArgumentError, match="No component"):
        Index.build(stored(tmp_path / "s", values(), NAMES).view().select([]))


def test_progress_is_told_in_both_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BYTES", 4 * WIDTH * 20)
    told, view = [], stored(tmp_path / "s", values(), NAMES).view()
    Index.build(view, on_progress=lambda *what: told.append(what))
    assert told == [("summing components", done, 60) for done in (20, 30, 50, 60)]
    Index.build(view, centred=False, on_progress=lambda *what: told.append(what))
    assert told[4:] == [("summing components", done, 30) for done in (20, 30)]


def test_what_is_saved_is_loaded_without_being_read(tmp_path):
    store = stored(tmp_path / "s", values(), NAMES)
    index = Index.build(store.view().select([0, 3]))
    index.save(tmp_path / "i")
    streamed = Index.build(store.view().select([0, 3]), path=tmp_path / "j")
    for name in ("index.safetensors", "index.json"):
        assert (tmp_path / "i" / name).read_bytes() == (tmp_path / "j" / name).read_bytes()
    for loaded in (Index.load(tmp_path / "i", store.view()), streamed):
        assert torch.equal(loaded.rows, index.rows) and torch.equal(loaded.mean, index.mean)
        assert loaded.ids == index.ids and loaded.identity == index.identity and loaded.components == index.components
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == ["index.json", "index.safetensors"]


def test_an_index_of_something_else_is_refused_by_its_field(tmp_path):
    store = stored(tmp_path / "s", values(), NAMES)
    Index.build(store.view().select([0])).save(tmp_path / "i")
    Index.build(aligned(store).select([0])).save(tmp_path / "a")
    Index.load(tmp_path / "a", aligned(store))
    for known, field in (({"model": "other"}, "model"), ({"weights_hash": "no"}, "weights_hash")):
        with pytest.raises(StoreError, match=f"field `{field}`"):
            Index.load(tmp_path / "i", stored(tmp_path / field, values(), NAMES, **known).view())
    for place, other in (("i", aligned(store)), ("a", store.view()), ("a", aligned(store, seed=2))):
        with pytest.raises(StoreError, match="field `aligner`"):
            Index.load(tmp_path / place, other)


@pytest.mark.parametrize("damage", ["no card", "no rows", "torn", "edited", "newer", "strange"])
def test_damaged_files_are_refused(tmp_path, damage):
    Index.build(stored(tmp_path / "s", values(), NAMES).view().select([0])).save(tmp_path / "i")
    card, rows = tmp_path / "i/index.json", tmp_path / "i/index.safetensors"
    match damage:
        case "no card":
            card.unlink()
        case "no rows":
            rows.unlink()
        case "torn":
            rows.write_bytes(rows.read_bytes()[:-8])
        case "edited":
            card.write_text(card.read_text().replace('"1"', '"one"'))
        case "newer":
            card.write_text(json.dumps(json.loads(card.read_text()) | {"version": 2}))
        case "strange":
            card.write_text("[]")
    with pytest.raises(StoreError, match="version 2" if damage == "newer" else "cannot be read"):
        Index.load(tmp_path / "i")


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path):
    index = Index.build(stored(tmp_path / "s", values(), NAMES).view().select([0]))
    (tmp_path / "file").touch()
    with pytest.raises(UnweaveError, match="index cannot be written"):
        index.save(tmp_path / "file/i")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "s"]


def test_what_breaks_off_leaves_the_old_index(tmp_path, monkeypatch):
    store = stored(tmp_path / "s", values(), NAMES)
    Index.build(store.view().select([0])).save(tmp_path / "i")
    before = (tmp_path / "i/index.safetensors").read_bytes()

    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.build(store.view().select([1]), path=tmp_path / "i", centred=False, on_progress=stop)
    assert (tmp_path / "i/index.safetensors").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == ["index.json", "index.safetensors"]


def test_faiss_finds_the_same():
    pytest.importorskip("faiss")
    index, queries = drawn(300), torch.randn(7, 16, generator=torch.Generator().manual_seed(4))
    exact, quick = index.search(queries, 9), index.faiss().search(queries, 9)
    assert np.array_equal(exact.rows, quick.rows) and np.array_equal(exact.similarity, quick.similarity)
    some = index.faiss("IVF8,Flat").search(queries, 300)  # one cell of eight is looked through
    assert (some.rows[:, -1] == -1).all() and (some.similarity[some.rows == -1] == -1).all()
    assert all(len(set(rows[rows >= 0])) == (rows >= 0).sum() for rows in some.rows)


def test_faiss_that_is_not_there_or_not_meant(monkeypatch):
    pytest.importorskip("faiss")
    with pytest.raises(ArgumentError, match="'Square'"):
        drawn(20).faiss("Square")
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ArgumentError, match=r"unweave\[search\]"):
        drawn(20).faiss()
