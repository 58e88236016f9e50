"""TextSpan against numpy, following the algorithm of Gandelsman et al. (2024) line by line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stores import space_of, stored
from unweave.alignment import Aligned, Aligner
from unweave.attribution.names import clearest, extremes, table, textspan
from unweave.components import Component
from unweave.errors import ArgumentError

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


def seen(place, values, maps=None):
    if maps is None:
        maps = torch.randn(len(NAMES), WIDTH, DIM, generator=torch.Generator().manual_seed(0))
    identity = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}
    return Aligned(stored(place, values, NAMES), Aligner(maps, torch.zeros(DIM), NAMES, identity))


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
    own, space = seen(tmp_path / "s", values), space_of(DIM)
    found = textspan(own, space, WORDS, count=4)
    texts = space.encode(WORDS).double().numpy()
    for number in (0, 1, 2, 4):
        aligned = values[:, number].double().numpy() @ own.aligner.maps[number].double().numpy()
        names, shares = naive(aligned, texts, 4)
        assert [name.phrase for name in found[number].names] == [WORDS[place] for place in names]
        assert [name.explained for name in found[number].names] == pytest.approx(shares, rel=1e-4)
        assert found[number].explained == pytest.approx(sum(shares), rel=1e-4)
        assert found[number].variance == pytest.approx(aligned.var(0).sum(), rel=1e-4)
        centred = aligned - aligned.mean(0)
        alone = (centred @ texts.T).var(0) / centred.var(0).sum()
        assert [name.alone for name in found[number].names] == pytest.approx(alone[names], rel=1e-4)
        assert found[number].usual == pytest.approx(np.sort(alone)[19], rel=1e-4)


def test_what_a_component_writes_along_is_its_name(tmp_path):
    texts = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(4))).Q
    known = {f"word {number}": texts[number] for number in range(DIM)}
    values = 0.05 * noise()
    maps = torch.eye(WIDTH, DIM).expand(len(NAMES), -1, -1).clone()
    strength = torch.randn(80, 2, generator=torch.Generator().manual_seed(5))
    maps[0] = texts[:WIDTH]
    values[:, 0, 2] += 3 * strength[:, 0]
    values[:, 0, 5] += 2 * strength[:, 1]
    first = textspan(seen(tmp_path / "s", values, maps), space_of(DIM, known), list(known), count=2)[0]
    assert [name.phrase for name in first.names] == ["word 2", "word 5"]
    assert first.names[0].alone == pytest.approx(9 / 13, abs=0.12) and first.explained > 0.98


def test_one_direction_is_explained_by_anything_and_alone_says_so(tmp_path):
    found = textspan(seen(tmp_path / "s", noise()), space_of(DIM), WORDS, count=5)[3]
    assert len(found.names) == 1
    assert found.names[0].explained == pytest.approx(1) and found.names[0].alone < 0.9


def test_constant_and_empty_components_have_no_names(tmp_path):
    values = noise()
    values[:, 0] = 0
    values[:, 1] = values[0, 1]
    found = textspan(seen(tmp_path / "s", values), space_of(DIM), WORDS, count=3)
    assert found[0].names == found[1].names == () and found[0].explained == found[0].clarity == 0.0
    assert len(found[2].names) == 3
    rows = table(found).to_pylist()
    assert rows[0]["phrase"] is None and rows[0]["component"] == "blocks.0.attn.head.0"
    assert len(rows) == 1 + 1 + 3 + 1 + 3


def test_one_image_names_nothing(tmp_path):
    assert all(own.names == () for own in textspan(seen(tmp_path / "s", noise(1)), space_of(DIM), WORDS))


def test_one_phrase_and_phrases_that_come_twice(tmp_path):
    own = seen(tmp_path / "s", noise())
    (name,) = textspan(own, space_of(DIM), ["a"], count=5)[0].names
    assert name.phrase == "a"
    twice = textspan(own, space_of(DIM), ["a", "b", "a", "b", "a"], count=5)[0]
    assert sorted(name.phrase for name in twice.names) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "count", "what"),
    [([], 5, "no phrases"), (["a"], 0, "0 phrases"), ([" ".join("abcdefghijkl")], 5, "14 tokens")],
)
def test_vocabularies_that_cannot_be(tmp_path, words, count, what):
    with pytest.raises(ArgumentError, match=what):
        textspan(seen(tmp_path / "s", noise()), space_of(DIM), words, count=count)


def test_the_clearest_stand_out_from_a_usual_phrase(tmp_path):
    found = textspan(seen(tmp_path / "s", noise()), space_of(DIM), WORDS)
    shown = clearest(found, 3)
    assert len(shown) == 3 and all(own.component.kind != "bias" for own in shown)
    assert [own.clarity for own in shown] == sorted((own.clarity for own in shown), reverse=True)


def test_the_extremes_are_the_images_that_it_writes_most_and_least_about(tmp_path):
    values = noise()
    own = seen(tmp_path / "s", values)
    direction = torch.randn(1, DIM, generator=torch.Generator().manual_seed(8))
    along = (values[:, 1] @ own.aligner.maps[1] @ direction.T)[:, 0]
    most, least = extremes(own, 1, direction, 4, 2)
    assert most == along.argsort(descending=True)[:4].tolist() and least == along.argsort()[:2].tolist()
    few = extremes(Aligned(own.store, own.aligner, [3, 5, 9]), 1, direction, 2, 4)
    assert sorted(few[0] + few[1]) == [3, 5, 9] and len(few[1]) == 1
