"""TextSpan against numpy, following the algorithm of Gandelsman et al. (2024) line by line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stores import space_of, stored
from unweave.alignment import Aligner
from unweave.attribution.names import Names, clearest, extremes, label
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import ArgumentError, DataError

WIDTH, DIM = 6, 9
NAMES = (
    *(Component("blocks.0.attn", "head", 0, head) for head in range(3)),
    Component("blocks.0.attn", "bias", 0),
    Component("blocks.0.mlp", "mlp", 0),
)
WORDS = [f"word {number}" for number in range(40)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))


def aligner(maps=None, space=None):
    if maps is None:
        maps = torch.randn(len(NAMES), WIDTH, DIM, generator=torch.Generator().manual_seed(0))
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    identity |= {"space": "tiny", "space_hash": (space or space_of(DIM)).weights_hash}
    return Aligner(maps, torch.zeros(DIM), NAMES, identity)


def seen(place, values, maps=None, space=None):
    return stored(place, values, NAMES).view().through(aligner(maps, space))


def named(source, words=WORDS, space=None, **options):
    """The names, without images beside them."""
    return label(source, words, space=space or space_of(DIM), top=0, **options)


def noise(images=80):
    values = torch.randn(images, len(NAMES), WIDTH, generator=torch.Generator().manual_seed(1))
    values[:, 3] = values[:, 3, :1] * torch.arange(1.0, WIDTH + 1)  # one direction
    return values + 3


def naive(aligned, texts, count):
    """C: the contributions, R: the texts; images by images."""
    contributions = aligned - aligned.mean(0)
    _, sizes, right = np.linalg.svd(contributions, full_matrices=False)
    right = right[sizes > 1e-6 * sizes[0]]
    pool = texts @ right.T @ right
    everything = contributions.var(0).sum()
    names, shares = [], []
    for _ in range(count):
        products = pool @ contributions.T
        best = int(products.var(1).argmax())
        direction = pool[best] / np.linalg.norm(pool[best])
        names.append(best)
        shares.append((contributions @ direction).var() / everything)
        contributions = contributions - np.outer(contributions @ direction, direction)
        pool = pool - np.outer(pool @ direction, direction)
    return names, shares


def test_names_are_the_papers(tmp_path):
    values = noise()
    view, space = seen(tmp_path / "s", values), space_of(DIM)
    namings = named(view, phrases=4).namings
    texts = space.encode(WORDS).double().numpy()
    for number in (0, 1, 2, 4):
        aligned = values[:, number].double().numpy() @ view.aligner.maps[number].double().numpy()
        names, shares = naive(aligned, texts, 4)
        assert [name.phrase for name in namings[number].names] == [WORDS[place] for place in names]
        assert [name.explained for name in namings[number].names] == pytest.approx(shares, rel=1e-4)
        assert namings[number].explained == pytest.approx(sum(shares), rel=1e-4)
        assert namings[number].variance == pytest.approx(aligned.var(0).sum(), rel=1e-4)
        centred = aligned - aligned.mean(0)
        alone = (centred @ texts.T).var(0) / centred.var(0).sum()
        assert [name.alone for name in namings[number].names] == pytest.approx(alone[names], rel=1e-4)
        assert namings[number].usual == pytest.approx(np.sort(alone)[19], rel=1e-4)


def test_what_a_component_writes_along_is_its_name(tmp_path):
    texts = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(4))).Q
    known = {f"word {number}": texts[number] for number in range(DIM)}
    values = 0.05 * noise()
    maps = torch.eye(WIDTH, DIM).expand(len(NAMES), -1, -1).clone()
    strength = torch.randn(80, 2, generator=torch.Generator().manual_seed(5))
    maps[0] = texts[:WIDTH]
    values[:, 0, 2] += 3 * strength[:, 0]
    values[:, 0, 5] += 2 * strength[:, 1]
    space = space_of(DIM, known)
    first = named(seen(tmp_path / "s", values, maps, space), list(known), space, phrases=2).namings[0]
    assert [name.phrase for name in first.names] == ["word 2", "word 5"]
    assert first.names[0].alone == pytest.approx(9 / 13, abs=0.12) and first.explained > 0.98


def test_one_direction_is_explained_by_anything_and_alone_says_so(tmp_path):
    naming = named(seen(tmp_path / "s", noise()), phrases=5).namings[3]
    assert len(naming.names) == 1
    assert naming.names[0].explained == pytest.approx(1) and naming.names[0].alone < 0.9


def test_constant_and_empty_components_have_no_names(tmp_path):
    values = noise()
    values[:, 0] = 0
    values[:, 1] = values[0, 1]
    names = named(seen(tmp_path / "s", values), phrases=3)
    namings = names.namings
    assert namings[0].names == namings[1].names == () and namings[0].explained == namings[0].clarity == 0.0
    assert len(namings[2].names) == 3
    rows = names.table().to_pylist()
    assert rows[0]["phrase"] is None and rows[0]["component"] == "blocks.0.attn.head.0"
    assert len(rows) == 1 + 1 + 3 + 1 + 3


def test_one_image_names_nothing(tmp_path):
    assert all(naming.names == () for naming in named(seen(tmp_path / "s", noise(1))).namings)


def test_one_phrase_and_phrases_that_come_twice(tmp_path):
    view = seen(tmp_path / "s", noise())
    (name,) = named(view, ["a"], phrases=5).namings[0].names
    assert name.phrase == "a"
    twice = named(view, ["a", "b", "a", "b", "a"], phrases=5).namings[0]
    assert sorted(name.phrase for name in twice.names) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "count", "what"),
    [([], 5, "no phrases"), (["a"], 0, "must be at least 1, got 0"), ([" ".join("abcdefghijkl")], 5, "14 tokens")],
)
def test_vocabularies_that_cannot_be(tmp_path, words, count, what):
    with pytest.raises(ArgumentError, match=what):
        named(seen(tmp_path / "s", noise()), words, phrases=count)


def test_the_clearest_stand_out_from_a_usual_phrase(tmp_path):
    names = named(seen(tmp_path / "s", noise()))
    shown = clearest(names.namings, 3)
    assert len(shown) == 3 and all(naming.component.kind != "bias" for naming in shown)
    assert [naming.clarity for naming in shown] == sorted((naming.clarity for naming in shown), reverse=True)
    assert names.clearest(3) == shown


def test_the_extremes_are_the_images_that_it_writes_most_and_least_about(tmp_path):
    values = noise()
    view = seen(tmp_path / "s", values)
    direction = torch.randn(1, DIM, generator=torch.Generator().manual_seed(8))
    along = (values[:, 1] @ view.aligner.maps[1] @ direction.T)[:, 0]
    most, least = extremes(view.select([1]), direction, 4, 2)
    assert most == along.argsort(descending=True)[:4].tolist() and least == along.argsort()[:2].tolist()
    few = extremes(view.select([1]).rows([3, 5, 9]), direction, 2, 4)  # rows of the view
    assert sorted(few[0] + few[1]) == [0, 1, 2] and len(few[1]) == 1
    assert [[3, 5, 9][row] for row in few[0]] == sorted([3, 5, 9], key=lambda row: -float(along[row]))[:2]


def test_a_batch_in_memory_is_named_as_a_store(tmp_path, monkeypatch):
    values = noise()
    store = stored(tmp_path / "s", values, NAMES)
    none = torch.zeros(len(values))
    memory = Contributions(values, NAMES, tuple(store.ids), values.sum(1), none, origin=store.view().origin)
    nameless = Contributions(values, NAMES, tuple(store.ids), values.sum(1), none)
    expected = named(store.view().through(aligner())).table()
    for source in (memory, nameless, store):
        assert named(source.view().through(aligner())).table().equals(expected)
    monkeypatch.setattr("unweave.view.BUDGET", 4 * WIDTH * 7)
    pieces = named(store.view().through(aligner())).table()
    assert pieces["phrase"].equals(expected["phrase"])
    assert pieces["alone"].to_pylist() == pytest.approx(expected["alone"].to_pylist(), abs=1e-9)


def test_names_of_a_component_by_its_name(tmp_path):
    names = named(seen(tmp_path / "s", noise()))
    assert names.of("blocks.0.mlp") is names.of(NAMES[4]) is names.namings[4]
    with pytest.raises(ArgumentError, match="no component x"):
        names.of("x")


def test_no_images_name_nothing(tmp_path):
    with pytest.raises(DataError, match="no images"):
        named(seen(tmp_path / "s", noise()).rows([]))


def test_names_are_saved_and_read(tmp_path):
    names = named(seen(tmp_path / "s", noise()))
    names.save(tmp_path / "out")
    again = Names.load(tmp_path / "out")
    assert again.table().equals(names.table()) and again.card == names.card
    assert names.card["phrases"] == 40 and "unweave.label(" in names.code()
    assert "blocks.0" in repr(names)


def test_pictures_that_can_no_longer_be_opened_are_left_out_and_why_is_said(tmp_path):
    view, images = seen(tmp_path / "s", noise()), tmp_path / "moved"
    whole = named(view)
    names = label(view, WORDS, space=space_of(DIM), top=3)
    assert names.shown == () and names.table().equals(whole.table())
    said = names.card["pictures left out"]
    assert said.startswith("The pictures of 3 components were left out: ") and said in " ".join(repr(names).split())
    assert "pictures left out" not in whole.card and not images.exists()
    assert "figure" not in names.save(tmp_path / "out") and Names.load(tmp_path / "out").card == names.card
