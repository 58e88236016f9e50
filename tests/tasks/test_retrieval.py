"""Choosing components by hand-made scores, precision against scikit-learn, agreement against scipy, line by line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

import unweave
from stores import SIZE, draw, model, space_of, stored
from unweave.alignment import Aligned, Aligner
from unweave.attribution.scores import Attribution, attribute
from unweave.components import Component
from unweave.errors import ArgumentError, DataError, StoreError
from unweave.extraction import Settings, extractor
from unweave.tasks import retrieval
from unweave.tasks.index import Index
from unweave.tasks.retrieval import agreement, by_image, by_text, choose, choose_best, precision, probe_of, table

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
    own = torch.tensor(scores)
    fill = torch.zeros_like(own)
    features = {name: FEATURES[name] for name in list(FEATURES)[: own.shape[1]]}
    low = own - 0.05 if low is None else torch.tensor(low)
    p = torch.full_like(own, p) if isinstance(p, float) else torch.tensor(p)
    return Attribution(components, features, own, low, own + 0.05, fill - chance, fill + chance, p, 100)


SCORES = [[0.9, 0.2], [0.5, 0.6], [0.7, 0.1], [0.3, 0.35], [1.0, 0.0], [0.12, 0.1]]


def test_the_rule_takes_what_is_told_from_chance():
    found = scored(SCORES)
    # the bias scores highest and is never chosen; the MLP's interval reaches into chance
    assert choose(found, "colour").places == (0, 2, 1, 3)
    one = choose(found, "colour", by="margin")
    assert one.places == (0, 2) and one.rule == "interval" and one.by == "margin"
    assert one.components == (NAMES[0], NAMES[2]) and one.values == pytest.approx((0.7, 0.6))
    assert choose(found, "location", by="margin").places == (1, 3)


def test_a_score_that_chance_reaches_is_not_chosen():
    p = [[0.0, 1.0], [0.9, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    assert choose(scored(SCORES, p=p), "colour").places == (0, 2, 3)


def test_a_number_overrides_the_rule():
    one = choose(scored(SCORES, p=1.0), "colour", k=5)
    assert one.places == (0, 2, 1, 3, 5) and one.rule == "count"
    for k in (0, 6):
        with pytest.raises(ArgumentError, match="there are 5 that are no biases"):
            choose(scored(SCORES), "colour", k=k)


def test_nothing_above_chance_is_an_error():
    with pytest.raises(ArgumentError, match="No component is above chance for 'location'"):
        choose(scored(SCORES, p=1.0), "location")
    with pytest.raises(ArgumentError, match="4 components are above chance for 'colour', but each scores higher"):
        choose(scored([[own, 1.0] for own, _ in SCORES]), "colour", by="margin")


def test_an_unknown_feature_and_a_single_one_are_errors():
    with pytest.raises(ArgumentError, match="no feature 'shape'"):
        choose(scored(SCORES), "shape")
    with pytest.raises(ArgumentError, match="no others"):
        choose(scored([own[:1] for own in SCORES]), "colour", by="margin")


def planted(place, images=60, seed=0, loud=4):
    """Components 0 and 2 write a colour, 1 and 3 a place, all of them with noise; all have a large constant part."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(images, len(NAMES), WIDTH, generator=generator) + 5
    codes = torch.randint(3, (2, images), generator=generator)
    for number, own in ((0, 0), (2, 0), (1, 1), (3, 1)):
        values[:, number] += loud * torch.randn(3, WIDTH, generator=generator)[codes[own]]
    colour = [None if row % 7 == 0 else f"c{code}" for row, code in enumerate(codes[0].tolist())]
    return stored(place, values, NAMES, fields={"colour": colour, "place": codes[1].tolist()}), values


def average_precisions(rows, values):
    rows, found = rows.double().numpy(), []
    for probe, value in enumerate(values):
        others = [row for row in range(len(rows)) if row != probe]
        relevant = [value is not None and values[row] == value for row in others]
        if any(relevant):
            found.append(average_precision_score(relevant, rows[others] @ rows[probe]))
    return found


@pytest.mark.parametrize("pairs", [1, 200, 2**24])
def test_precision_is_scikit_learns(tmp_path, monkeypatch, pairs):
    monkeypatch.setattr(retrieval, "_PAIRS", pairs)
    store, _ = planted(tmp_path / "s")
    index = Index.build(store, [0, 1])
    for field in ("colour", "place"):
        expected = average_precisions(index.rows, store.field(field))
        found = precision(index, store.field(field))
        assert found.mean == pytest.approx(np.mean(expected), abs=1e-6) and found.probes == len(expected)
        rng = np.random.default_rng(1)
        draws = [np.mean(rng.choice(expected, len(expected))) for _ in range(3000)]
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.01)


def test_a_random_order_has_the_precision_of_chance():
    rng = np.random.default_rng(0)
    values = [None, *rng.integers(4, size=39).tolist()]
    found = []
    for seed in range(150):
        rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(seed))
        rows = torch.nn.functional.normalize(rows, dim=1)
        own = precision(Index(rows, torch.zeros(30), tuple(map(str, range(40))), {}), values, samples=20)
        found.append(own.mean)
    assert own.chance == pytest.approx(np.mean(found), abs=4 * np.std(found) / 150**0.5)


@pytest.mark.parametrize(("values", "what"), [([1, 2, 3, None], "No two images"), ([1, 1], "2 values")])
def test_what_precision_cannot_be_measured_on(values, what):
    index = Index(torch.eye(4), torch.zeros(4), ("a", "b", "c", "d"), {})
    with pytest.raises(StoreError, match=what):
        precision(index, values)


@pytest.mark.parametrize("by", ["score", "margin"])
def test_the_best_number_is_the_one_that_retrieves_best(tmp_path, by):
    store, values = planted(tmp_path / "s", loud=1)
    found = scored([[0.3, 0.1], [0.2, 0.8], [0.9, 0.2], [0.1, 0.6], [1.0, 0.0], [0.15, 0.5]])
    one = choose_best(found, "colour", store, "colour", by=by)
    order = [2, 0, 1, 5, 3] if by == "score" else [2, 0, 5, 3, 1]
    path = []
    for k in range(1, 6):
        total = values[:, order[:k]].double().sum(1)
        total = torch.nn.functional.normalize(total - total.mean(0), dim=1)
        path.append(np.mean(average_precisions(total, store.field("colour"))))
    assert one.path == pytest.approx(path, abs=1e-6)
    assert one.places == (2, 0) == tuple(order[: int(np.argmax(path)) + 1]) and one.rule == "best"
    assert choose_best(found, "colour", store, "colour", by=by, most=1).places == (2,)


def test_the_best_number_on_some_images(tmp_path):
    store, values = planted(tmp_path / "s")
    other = stored(tmp_path / "t", values[10:], NAMES, fields={"colour": store.field("colour")[10:]})
    some = choose_best(scored(SCORES), "colour", store, "colour", rows=np.arange(10, 60))
    assert some.path == choose_best(scored(SCORES), "colour", other, "colour").path
    few = choose_best(scored(SCORES), "colour", store, "colour", probes=5)
    assert few.path != some.path and choose_best(scored(SCORES), "colour", store, "colour", probes=5).path == few.path
    with pytest.raises(StoreError, match="no field 'shape'"):
        choose_best(scored(SCORES), "colour", store, "shape")
    with pytest.raises(ArgumentError, match="9 components"):
        choose_best(scored(SCORES), "colour", store, "colour", most=9)
    with pytest.raises(StoreError, match="other components"):
        choose_best(scored(SCORES[:4], components=NAMES[:4]), "colour", store, "colour")


def test_by_image_ranks_by_what_was_chosen(tmp_path):
    store, values = planted(tmp_path / "s")
    chosen = [choose(scored(SCORES), "colour", by="margin"), choose(scored(SCORES), "location", by="margin")]
    colour, location, whole = by_image(store, "8", chosen, count=10)
    assert (colour.feature, location.feature, whole.feature) == ("colour", "location", None)
    for one, places in ((colour, [0, 2]), (location, [1, 3]), (whole, list(range(len(NAMES))))):
        total = values[:, places].double().sum(1)
        total = torch.nn.functional.normalize(total - total.mean(0), dim=1)
        near = total @ total[8]
        order = [row for row in near.argsort(descending=True).tolist() if row != 8][:10]
        assert one.ids == tuple(map(str, order)) and one.similarity == pytest.approx(near[order].tolist(), abs=1e-5)
    known = dict(zip(store.ids, store.field("place"), strict=True))
    assert [known[name] for name in location.ids] == [known["8"]] * 10
    rows = table((colour, location, whole)).to_pylist()
    assert len(rows) == 30 and rows[11]["feature"] == "location" and rows[11]["rank"] == 2
    assert rows[0]["components"] == 2 and rows[29]["components"] is None


def test_by_image_searches_only_what_was_chosen(tmp_path):
    store, _ = planted(tmp_path / "s")
    rows = np.arange(20, 40)
    one, _ = by_image(store, "3", [choose(scored(SCORES), "colour")], rows=rows, count=100)
    assert set(one.ids) == set(map(str, rows))  # the probe is not among them, so none is left out
    one, _ = by_image(store, "30", [choose(scored(SCORES), "colour")], rows=rows, count=100, centred=False)
    assert len(one.ids) == 19 and min(one.similarity) > 0.5  # the constant part makes all alike


def seen_of(store, seed=1):
    generator = torch.Generator().manual_seed(seed)
    maps, bias = torch.randn(len(NAMES), WIDTH, DIM, generator=generator), torch.randn(DIM, generator=generator)
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    return Aligned(store, Aligner(maps, bias, NAMES, identity | {"space": "words", "space_hash": "w"}))


@pytest.mark.parametrize("centred", [True, False])
def test_by_text_ranks_by_cosine_with_the_words(tmp_path, centred):
    store, values = planted(tmp_path / "s")
    seen, space = seen_of(store), space_of(DIM)
    found = by_text(seen, space, "red", [choose(scored(SCORES), "colour", k=2)], count=60, centred=centred)
    query = space.encode(["red"])[0].double()
    maps = seen.aligner.maps.double()
    for one, places in zip(found, ([0, 2], range(len(NAMES))), strict=True):
        total = sum(values[:, place].double() @ maps[place] for place in places)
        total = total + (seen.aligner.bias.double() if one.feature is None else 0)
        total = total - (total.mean(0) if centred else 0)
        near = torch.nn.functional.normalize(total, dim=1) @ query
        order = near.argsort(descending=True)
        assert one.ids == tuple(map(str, order.tolist()))
        assert one.similarity == pytest.approx(near[order].tolist(), abs=1e-5)


def test_scores_of_other_components_are_refused(tmp_path):
    store, _ = planted(tmp_path / "s")
    other = tuple(Component("x", "head", 0, head) for head in range(9))
    one = choose(scored([*SCORES, *SCORES[:3]], components=other), "colour")
    for search in (lambda: by_image(store, "1", [one]), lambda: by_text(seen_of(store), space_of(DIM), "red", [one])):
        with pytest.raises(StoreError, match="other components than were scored for 'colour'"):
            search()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A store of a tiny model, whose contributions are computed."""
    folder = tmp_path_factory.mktemp("photos")
    store = unweave.extract(model(), str(draw(folder / "images", 6)), folder / "s", Settings(rows=4, batch=3))
    return store, folder


def load(monkeypatch, own):
    monkeypatch.setattr(extractor.unweave, "load_model", lambda id, **options: own, raising=False)


def test_a_new_image_is_decomposed_as_the_store_was(photos, monkeypatch):
    store, folder = photos
    load(monkeypatch, model())
    inside, new = probe_of(store, "0002.png"), probe_of(store, folder / "images/0002.png")
    assert inside.ids == ("0002.png",) and new.components == inside.components == store.components()
    assert torch.allclose(new.values.float(), inside.values.float(), atol=2e-3)
    assert new.values.dtype == inside.values.dtype
    ranked = [by_image(store, one, [], count=3)[0] for one in (new, "0002.png")]
    assert ranked[0].ids[0] == "0002.png" and ranked[0].similarity[0] == pytest.approx(1, abs=1e-4)
    assert "0002.png" not in ranked[1].ids and ranked[0].ids[1:] == ranked[1].ids[:2]


def test_probes_that_cannot_be(photos, monkeypatch, tmp_path):
    store, _ = photos
    load(monkeypatch, model())
    with pytest.raises(DataError, match="neither in the store nor as a file") as error:
        probe_of(store, "nowhere.png")
    assert error.value.where == "nowhere.png"
    (tmp_path / "broken.png").write_bytes((photos[1] / "images/0001.png").read_bytes()[:60])
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (1, 900)).save(tmp_path / "narrow.png")
    for name, what in (("broken", "cannot be decoded"), ("empty", "empty"), ("narrow", "narrow")):
        with pytest.raises(DataError, match=what) as error:
            probe_of(store, tmp_path / f"{name}.png")
        assert error.value.where == str(tmp_path / f"{name}.png")


def test_a_model_with_other_weights_is_refused(photos, monkeypatch):
    store, folder = photos
    other = unweave.Model.from_module(torch.nn.Flatten(), input_size=(3, SIZE, SIZE), id="tiny")
    load(monkeypatch, other)
    with pytest.raises(StoreError, match="field `weights_hash`"):
        probe_of(store, folder / "images/0002.png")


def test_agreement_is_spearmans(tmp_path, monkeypatch):
    store, values = planted(tmp_path / "s")
    values[:, 5] = 1  # a component that does not vary ranks nothing
    store = stored(tmp_path / "t", values, NAMES)
    seen, space = seen_of(store), space_of(DIM)
    theirs = 3 * torch.randn(60, DIM, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(retrieval, "embeddings", lambda own, other: theirs)
    chosen = Aligned(store, seen.aligner, np.arange(50))
    found = attribute(chosen, space, FEATURES, samples=20)
    counts = []
    result = agreement(chosen, space, found, on_component=counts.append)
    unit = torch.nn.functional.normalize(theirs[:50].double(), dim=1).numpy()
    expected = np.full((len(NAMES), 3), np.nan)
    for number in range(5):
        for column, phrases in enumerate(FEATURES.values()):
            own = []
            for direction in space.encode(phrases).double().numpy():
                along = values[:50, number].double().numpy() @ seen.aligner.maps[number].double().numpy() @ direction
                own.append(spearmanr(along, unit @ direction).statistic)
            expected[number, column] = np.mean(own)
    assert np.allclose(result.agreement, expected, atol=1e-6, equal_nan=True)
    scores = found.scores.numpy()
    rows = [spearmanr(one, two).statistic for one, two in zip(expected[:5], scores[:5], strict=True)]
    columns = [spearmanr(one[:5], two[:5]).statistic for one, two in zip(expected.T, scores.T, strict=True)]
    assert result.within_components[:5] == pytest.approx(rows) and np.isnan(result.within_components[5])
    assert result.within_features == pytest.approx(columns)
    summary = result.summary()
    assert summary["within_components"]["values"] == 5 and counts == list(range(1, 7))
    assert summary["within_features"]["median"] == pytest.approx(np.median(columns))


def test_agreement_needs_three_features(tmp_path, monkeypatch):
    store, _ = planted(tmp_path / "s")
    monkeypatch.setattr(retrieval, "embeddings", lambda own, other: torch.ones(60, DIM) + torch.eye(60)[:, :DIM])
    seen, space = seen_of(store), space_of(DIM)
    found = attribute(seen, space, {"red": ("red",), "sea": ("sea",)}, samples=20)
    result = agreement(seen, space, found)
    assert np.isnan(result.within_components).all() and np.isnan(result.summary()["within_components"]["median"])
    with pytest.raises(StoreError, match="other components"):
        agreement(seen, space, scored(SCORES[:4], components=NAMES[:4]))
