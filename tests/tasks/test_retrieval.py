"""Choosing components by hand-made scores, precision against scikit-learn, agreement against scipy, line by line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

import unweave
from stores import SIZE, draw, model, space_of, stored
from unweave.alignment import Aligner
from unweave.attribution import Scores, score
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, DataError, ModelError
from unweave.extraction import Settings
from unweave.tasks import precision as module
from unweave.tasks.choice import Choice, choose, choose_best
from unweave.tasks.index import Index
from unweave.tasks.precision import agreement, precision
from unweave.tasks.retrieval import Retrieval, probe_of, search

WIDTH, DIM = 10, 8
NAMES = (
    *(Component("blocks.0.attn", "head", 0, head) for head in range(4)),
    Component("blocks.0.attn", "bias", 0),
    Component("blocks.0.mlp", "mlp", 0),
)
FEATURES = {"colour": ("red", "green"), "location": ("sea", "city", "sky"), "one": ("cat",)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))


def scored(scores, *, p=0.0, low=None, chance=0.1, components=NAMES):
    """Scores that were made up; intervals 0.05 to either side."""
    values = torch.tensor(scores)
    fill = torch.zeros_like(values)
    features = {name: FEATURES[name] for name in list(FEATURES)[: values.shape[1]]}
    low = values - 0.05 if low is None else torch.tensor(low)
    p = torch.full_like(values, p) if isinstance(p, float) else torch.tensor(p)
    return Scores(components, features, values, low, values + 0.05, fill - chance, fill + chance, p, 100)


SCORES = [[0.9, 0.2], [0.5, 0.6], [0.7, 0.1], [0.3, 0.35], [1.0, 0.0], [0.12, 0.1]]


def test_the_rule_takes_what_is_told_from_chance():
    scores = scored(SCORES)
    # the bias scores highest and is never chosen; the MLP's interval reaches into chance
    assert choose(scores, "colour").places == (0, 2, 1, 3)
    chosen = choose(scores, "colour", by="margin")
    assert chosen.places == (0, 2) and chosen.rule == "interval" and chosen.by == "margin"
    assert chosen.components == (NAMES[0], NAMES[2]) and chosen.values == pytest.approx((0.7, 0.6))
    assert choose(scores, "location", by="margin").places == (1, 3)


def test_a_score_that_chance_reaches_is_not_chosen():
    p = [[0.0, 1.0], [0.9, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    assert choose(scored(SCORES, p=p), "colour").places == (0, 2, 3)


def test_a_number_overrides_the_rule():
    chosen = choose(scored(SCORES, p=1.0), "colour", k=5)
    assert chosen.places == (0, 2, 1, 3, 5) and chosen.rule == "count"
    for k in (0, 6):
        with pytest.raises(ArgumentError, match="there are 5 that are no biases"):
            choose(scored(SCORES), "colour", k=k)


def test_nothing_above_chance_is_an_error():
    with pytest.raises(ArgumentError, match="No component is above chance for 'location'"):
        choose(scored(SCORES, p=1.0), "location")
    with pytest.raises(ArgumentError, match="4 components are above chance for 'colour', but each scores higher"):
        choose(scored([[first, 1.0] for first, _ in SCORES]), "colour", by="margin")


def test_an_unknown_feature_and_a_single_one_are_errors():
    with pytest.raises(ArgumentError, match="no feature 'shape'"):
        choose(scored(SCORES), "shape")
    with pytest.raises(ArgumentError, match="no others"):
        choose(scored([row[:1] for row in SCORES]), "colour", by="margin")


def planted(place, images=60, seed=0, loud=4):
    """Components 0 and 2 write a colour, 1 and 3 a place, all of them with noise; all have a large constant part."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(images, len(NAMES), WIDTH, generator=generator) + 5
    codes = torch.randint(3, (2, images), generator=generator)
    for number, kind in ((0, 0), (2, 0), (1, 1), (3, 1)):
        values[:, number] += loud * torch.randn(3, WIDTH, generator=generator)[codes[kind]]
    colour = [None if row % 7 == 0 else f"c{code}" for row, code in enumerate(codes[0].tolist())]
    return stored(place, values, NAMES, fields={"colour": colour, "place": codes[1].tolist()}), values


def average_precisions(rows, values):
    rows, precisions = rows.double().numpy(), []
    for probe, value in enumerate(values):
        others = [row for row in range(len(rows)) if row != probe]
        relevant = [value is not None and values[row] == value for row in others]
        if any(relevant):
            precisions.append(average_precision_score(relevant, rows[others] @ rows[probe]))
    return precisions


@pytest.mark.parametrize("pairs", [1, 200, 2**24])
def test_precision_is_scikit_learns(tmp_path, monkeypatch, pairs):
    monkeypatch.setattr(module, "_PAIRS", pairs)
    store, _ = planted(tmp_path / "s")
    index = Index.build(store.view().select([0, 1]))
    for field in ("colour", "place"):
        expected = average_precisions(index.rows, store.field(field))
        measured = precision(index, store.field(field))
        assert measured.mean == pytest.approx(np.mean(expected), abs=1e-6) and measured.probes == len(expected)
        rng = np.random.default_rng(1)
        draws = [np.mean(rng.choice(expected, len(expected))) for _ in range(3000)]
        assert (measured.low, measured.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.01)


def test_a_random_order_has_the_precision_of_chance():
    rng = np.random.default_rng(0)
    values = [None, *rng.integers(4, size=39).tolist()]
    means = []
    for seed in range(150):
        rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(seed))
        rows = torch.nn.functional.normalize(rows, dim=1)
        measured = precision(Index(rows, torch.zeros(30), tuple(map(str, range(40))), {}), values, samples=20)
        means.append(measured.mean)
    assert measured.chance == pytest.approx(np.mean(means), abs=4 * np.std(means) / 150**0.5)


@pytest.mark.parametrize(
    ("values", "error", "what"),
    [([1, 2, 3, None], DataError, "No two images"), ([1, 1], ArgumentError, "2 values")],
)
def test_what_precision_cannot_be_measured_on(values, error, what):
    index = Index(torch.eye(4), torch.zeros(4), ("a", "b", "c", "d"), {})
    with pytest.raises(error, match=what):
        precision(index, values)


@pytest.mark.parametrize("by", ["score", "margin"])
def test_the_best_number_is_the_one_that_retrieves_best(tmp_path, by):
    store, values = planted(tmp_path / "s", loud=1)
    scores = scored([[0.3, 0.1], [0.2, 0.8], [0.9, 0.2], [0.1, 0.6], [1.0, 0.0], [0.15, 0.5]])
    chosen = choose_best(scores, "colour", store.view(), "colour", by=by)
    order = [2, 0, 1, 5, 3] if by == "score" else [2, 0, 5, 3, 1]
    path = []
    for k in range(1, 6):
        total = values[:, order[:k]].double().sum(1)
        total = torch.nn.functional.normalize(total - total.mean(0), dim=1)
        path.append(np.mean(average_precisions(total, store.field("colour"))))
    assert chosen.path == pytest.approx(path, abs=1e-6)
    assert chosen.places == (2, 0) == tuple(order[: int(np.argmax(path)) + 1]) and chosen.rule == "best"
    assert choose_best(scores, "colour", store.view(), "colour", by=by, most=1).places == (2,)
    aligned = choose_best(scores, "colour", seen_of(store), "colour", by=by)  # before alignment all the same
    assert aligned.path == chosen.path


def test_the_best_number_on_some_images(tmp_path):
    store, values = planted(tmp_path / "s")
    view = store.view()
    other = stored(tmp_path / "t", values[10:], NAMES, fields={"colour": store.field("colour")[10:]}).view()
    some = choose_best(scored(SCORES), "colour", view.rows(np.arange(10, 60)), "colour")
    assert some.path == choose_best(scored(SCORES), "colour", other, "colour").path
    few = choose_best(scored(SCORES), "colour", view, "colour", probes=5)
    assert few.path != some.path and choose_best(scored(SCORES), "colour", view, "colour", probes=5).path == few.path
    with pytest.raises(DataError, match="no field 'shape'"):
        choose_best(scored(SCORES), "colour", view, "shape")
    with pytest.raises(ArgumentError, match="9 components"):
        choose_best(scored(SCORES), "colour", view, "colour", most=9)
    with pytest.raises(DataError, match="other components"):
        choose_best(scored(SCORES[:4], components=NAMES[:4]), "colour", view, "colour")


def in_memory(store, values):
    """The same contributions as a batch."""
    none = torch.zeros(len(values))
    return Contributions(values, NAMES, tuple(store.ids), values.sum(1), none, origin=store.view().origin)


@pytest.mark.parametrize("memory", [False, True])
def test_by_image_ranks_by_what_was_chosen(tmp_path, memory):
    store, values = planted(tmp_path / "s")
    source = in_memory(store, values) if memory else store
    chosen = [choose(scored(SCORES), "colour", by="margin"), choose(scored(SCORES), "location", by="margin")]
    retrieval = search(source, image="8", choice=chosen, count=10)
    colour, location, whole = retrieval.rows
    assert (colour.feature, location.feature, whole.feature) == ("colour", "location", None)
    for row, places in ((colour, [0, 2]), (location, [1, 3]), (whole, list(range(len(NAMES))))):
        total = values[:, places].double().sum(1)
        total = torch.nn.functional.normalize(total - total.mean(0), dim=1)
        near = total @ total[8]
        order = [place for place in near.argsort(descending=True).tolist() if place != 8][:10]
        assert row.ids == tuple(map(str, order)) and row.similarity == pytest.approx(near[order].tolist(), abs=1e-5)
    known = dict(zip(store.ids, store.field("place"), strict=True))
    assert [known[name] for name in location.ids] == [known["8"]] * 10
    rows = retrieval.table().to_pylist()
    assert len(rows) == 30 and rows[11]["feature"] == "location" and rows[11]["rank"] == 2
    assert rows[0]["components"] == 2 and rows[29]["components"] is None
    assert retrieval.chosen == tuple(chosen) and (retrieval.text, retrieval.image) == (None, "8")
    assert all(len(row.pictures) == 0 for row in retrieval.rows) and retrieval.probe is None  # there are no images


def test_contributions_can_be_searched_for(tmp_path):
    store, values = planted(tmp_path / "s")
    memory = in_memory(store, values)
    chosen = [choose(scored(SCORES), "colour", by="margin")]
    new = Contributions(values[8:9], NAMES, ("new",), values[8:9].sum(1), torch.zeros(1), origin=memory.origin)
    of_it, by_id = search(store, image=new, choice=chosen, count=5), search(store, image="8", choice=chosen, count=5)
    for ours, theirs in zip(of_it.rows, by_id.rows, strict=True):
        assert ours.ids == ("8", *theirs.ids[:4]) and ours.similarity[0] == pytest.approx(1)
    assert of_it.image == "new"


def test_by_image_searches_only_what_was_chosen(tmp_path):
    store, _ = planted(tmp_path / "s")
    view, chosen = store.view().rows(np.arange(20, 40)), [choose(scored(SCORES), "colour")]
    row, _ = search(view, image="3", choice=chosen, count=100).rows
    assert set(row.ids) == set(view.ids)  # the probe is not among them, so none is left out
    row, _ = search(view, image="30", choice=chosen, count=100, centred=False).rows
    assert len(row.ids) == 19 and min(row.similarity) > 0.5  # the constant part makes all alike


def test_searches_that_cannot_be(tmp_path):
    store, _ = planted(tmp_path / "s")
    for asked in ({}, {"text": "red", "image": "3"}):
        with pytest.raises(ArgumentError, match="for a text, or for an image"):
            search(store, **asked)
    with pytest.raises(ArgumentError, match="count must be at least 1, got 0"):
        search(store, image="3", count=0)
    with pytest.raises(ArgumentError, match="Words need a text space"):
        search(store, text="red")
    with pytest.raises(DataError, match="one image only"):
        search(store.view().rows([1]), image="3")


def seen_of(source, seed=1):
    generator = torch.Generator().manual_seed(seed)
    maps, bias = torch.randn(len(NAMES), WIDTH, DIM, generator=generator), torch.randn(DIM, generator=generator)
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    identity |= {"space": "words", "space_hash": space_of(DIM).weights_hash, "space_loading": {}}
    return source.view().through(Aligner(maps, bias, NAMES, identity))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("memory", [False, True])
def test_by_text_ranks_by_cosine_with_the_words(tmp_path, memory, centred):
    store, values = planted(tmp_path / "s")
    seen, space = seen_of(in_memory(store, values) if memory else store), space_of(DIM)
    chosen = [choose(scored(SCORES), "colour", k=2)]
    rows = search(seen, text="red", choice=chosen, space=space, count=60, centred=centred).rows
    query = space.encode(["red"])[0].double()
    maps = seen.aligner.maps.double()
    for row, places in zip(rows, ([0, 2], range(len(NAMES))), strict=True):
        total = sum(values[:, place].double() @ maps[place] for place in places)
        total = total + (seen.aligner.bias.double() if row.feature is None else 0)
        total = total - (total.mean(0) if centred else 0)
        near = torch.nn.functional.normalize(total, dim=1) @ query
        order = near.argsort(descending=True)
        assert row.ids == tuple(map(str, order.tolist()))
        assert row.similarity == pytest.approx(near[order].tolist(), abs=1e-5)


def test_components_are_chosen_as_part_of_a_search(tmp_path):
    """By margin for an image, by score for a text; on other images, if they are given."""
    store, values = planted(tmp_path / "s")
    seen, space = seen_of(store), space_of(DIM)
    other = seen_of(stored(tmp_path / "t", values[:40], NAMES))
    for asked, by in (({"image": "3"}, "margin"), ({"text": "red"}, "score")):
        for scored_on in (None, other):
            choice = Choice(["colour"], among=FEATURES, k=2, samples=20, scored_on=scored_on)
            retrieval = search(seen, choice=choice, space=space, **asked)
            scores = score(seen if scored_on is None else other, FEATURES, space=space, samples=20)
            expected = choose(scores, "colour", by=by, k=2)
            (chosen,) = retrieval.chosen
            assert (chosen.places, chosen.by, chosen.rule) == (expected.places, by, "count")
            given = search(seen, choice=[chosen], space=space, **asked)
            assert given.table().equals(retrieval.table())
    best = Choice(["colour"], among=FEATURES, best={"colour": "colour"}, samples=20)
    (chosen,) = search(seen, image="3", choice=best, space=space).chosen
    assert chosen.rule == "best" and len(chosen.path) == 5
    with pytest.raises(ArgumentError, match="No components are chosen for 'location'"):
        search(seen, image="3", choice=Choice(["colour"], among=FEATURES, best={"location": "place"}), space=space)


def test_components_of_contributions_of_no_known_model_are_chosen(tmp_path):
    store, values = planted(tmp_path / "s")
    nameless = Contributions(values, NAMES, tuple(store.ids), values.sum(1), torch.zeros(60))
    choice = Choice(["colour"], among=FEATURES, k=2, samples=20)
    ours, theirs = (
        search(seen_of(source), text="red", choice=replace(choice, scored_on=seen_of(source)), space=space_of(DIM))
        for source in (nameless, store)
    )
    assert ours.table().equals(theirs.table()) and ours.chosen[0].places == theirs.chosen[0].places


def test_scores_of_other_components_are_refused(tmp_path):
    store, _ = planted(tmp_path / "s")
    other = tuple(Component("x", "head", 0, head) for head in range(9))
    chosen = [choose(scored([*SCORES, *SCORES[:3]], components=other), "colour")]
    for source, asked in ((store, {"image": "1"}), (seen_of(store), {"text": "red", "space": space_of(DIM)})):
        with pytest.raises(DataError, match="other components than were scored for 'colour'"):
            search(source, choice=chosen, **asked)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A store of a tiny model, whose contributions are computed."""
    folder = tmp_path_factory.mktemp("photos")
    store = unweave.extract(model(), str(draw(folder / "images", 6)), folder / "s", Settings(rows=4, batch=3))
    return store, folder


def load(monkeypatch, loaded):
    monkeypatch.setattr("unweave.tasks.classifier.opened", lambda model, **options: loaded)


def test_a_new_image_is_decomposed_as_the_store_was(photos, monkeypatch):
    store, folder = photos
    load(monkeypatch, model())
    inside, new = (probe_of(store.view(), name) for name in ("0002.png", folder / "images/0002.png"))
    assert inside.ids == ("0002.png",) and new.components == inside.components == store.components()
    assert torch.allclose(new.values(), inside.values(), atol=2e-3)
    assert new.source.dtype == inside.source.dtype
    ranked = [search(store, image=name, count=3).rows[0] for name in (folder / "images/0002.png", "0002.png")]
    assert ranked[0].ids[0] == "0002.png" and ranked[0].similarity[0] == pytest.approx(1, abs=1e-4)
    assert "0002.png" not in ranked[1].ids and ranked[0].ids[1:] == ranked[1].ids[:2]


def test_a_search_shows_what_it_found(photos, tmp_path):
    store, _ = photos
    retrieval = search(store, image="0002.png", count=3)
    assert retrieval.rows[0].pictures.shape[0] == 3 and retrieval.probe.ndim == 3
    assert "figure" in retrieval.save(tmp_path / "out")
    again = Retrieval.load(tmp_path / "out")
    assert again.table().equals(retrieval.table()) and again.card == retrieval.card
    assert np.array_equal(again.probe, retrieval.probe)
    assert "whole: all components" in " ".join(repr(retrieval).split()) and "image='0002.png'" in retrieval.code()


def test_where_images_are_gone_the_search_is_left(photos, tmp_path, monkeypatch):
    def gone(view):
        raise DataError("An image can no longer be opened.")

    expected = search(photos[0], image="0002.png", count=3)
    monkeypatch.setattr("unweave.tasks.retrieval.pictures", gone)
    retrieval = search(photos[0], image="0002.png", count=3)
    assert retrieval.table().equals(expected.table()) and retrieval.probe is None
    assert "figure" not in retrieval.save(tmp_path / "out")


def test_probes_that_cannot_be(photos, monkeypatch, tmp_path):
    store, _ = photos
    load(monkeypatch, model())
    with pytest.raises(DataError, match="neither among the contributions nor as a file") as error:
        probe_of(store.view(), "nowhere.png")
    assert error.value.where == "nowhere.png"
    (tmp_path / "broken.png").write_bytes((photos[1] / "images/0001.png").read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (1, 900)).save(tmp_path / "narrow.png")
    for name, what in (("broken", "cannot be decoded"), ("empty", "empty"), ("narrow", "narrow")):
        with pytest.raises(DataError, match=what) as error:
            probe_of(store.view(), tmp_path / f"{name}.png")
        assert error.value.where == str(tmp_path / f"{name}.png")


def test_a_model_with_other_weights_is_refused(photos, monkeypatch):
    store, folder = photos
    other = unweave.Model.from_module(torch.nn.Flatten(), input_size=(3, SIZE, SIZE), id="tiny")
    load(monkeypatch, other)
    with pytest.raises(ModelError, match="not those that the contributions were made with"):
        probe_of(store.view(), folder / "images/0002.png")


def test_agreement_is_spearmans(tmp_path, monkeypatch):
    store, values = planted(tmp_path / "s")
    values[:, 5] = 1  # a component that does not vary ranks nothing
    store = stored(tmp_path / "t", values, NAMES)
    seen, space = seen_of(store), space_of(DIM)
    theirs = 3 * torch.randn(60, DIM, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(module, "embeddings", lambda view, space: theirs[view.numbers])
    view = seen.rows(np.arange(50))
    scores = score(view, FEATURES, space=space, samples=20)
    told = []
    result = agreement(view, space, scores, on_progress=lambda *what: told.append(what))
    unit = torch.nn.functional.normalize(theirs[:50].double(), dim=1).numpy()
    expected = np.full((len(NAMES), 3), np.nan)
    for number in range(5):
        for column, phrases in enumerate(FEATURES.values()):
            same = []
            for direction in space.encode(phrases).double().numpy():
                along = values[:50, number].double().numpy() @ seen.aligner.maps[number].double().numpy() @ direction
                same.append(spearmanr(along, unit @ direction).statistic)
            expected[number, column] = np.mean(same)
    assert np.allclose(result.agreement, expected, atol=1e-6, equal_nan=True)
    values = scores.values.numpy()
    rows = [spearmanr(*pair).statistic for pair in zip(expected[:5], values[:5], strict=True)]
    columns = [spearmanr(*pair).statistic for pair in zip(expected[:5].T, values[:5].T, strict=True)]
    assert result.within_components[:5] == pytest.approx(rows) and np.isnan(result.within_components[5])
    assert result.within_features == pytest.approx(columns)
    summary = result.summary()
    assert summary["within_components"]["values"] == 5
    assert told == [("ranking images", count, 6) for count in range(1, 7)]
    assert summary["within_features"]["median"] == pytest.approx(np.median(columns))


def test_agreement_needs_three_features(tmp_path, monkeypatch):
    store, _ = planted(tmp_path / "s")
    monkeypatch.setattr(module, "embeddings", lambda view, space: torch.ones(60, DIM) + torch.eye(60)[:, :DIM])
    seen, space = seen_of(store), space_of(DIM)
    scores = score(seen, {"red": ("red",), "sea": ("sea",)}, space=space, samples=20)
    result = agreement(seen, space, scores)
    assert np.isnan(result.within_components).all() and np.isnan(result.summary()["within_components"]["median"])
    with pytest.raises(DataError, match="other components"):
        agreement(seen, space, scored(SCORES[:4], components=NAMES[:4]))
