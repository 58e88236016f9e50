"""Aligning: the same from a store, a view and a batch in memory; and what leads contributions to a text space."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import unweave
from stores import SMALL, Words, draw, model, remembering, space_of
from tiny import SIZE, WIDTH, Vit, ready
from unweave import Contributions
from unweave.alignment import Aligner, Recipe, align, aligned, embeddings, view_card
from unweave.alignment.fitting import identical
from unweave.alignment.pairs import Pairs
from unweave.errors import AlignmentError, ArgumentError, DataError
from unweave.text import TextSpace

RECIPE = Recipe(rounds=2, held_out=0.3, random_images=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitting")
    with remembering(folder / "cache"):
        yield unweave.extract(model(), draw(folder / "images", 24), folder / "store", SMALL)


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def space():
    """A space whose image encoder is another model."""
    module = ready(Vit(), torch.float32)
    with torch.no_grad():
        module.embed.weight.mul_(1.5)
    images = unweave.Model.from_module(module, input_size=(3, SIZE, SIZE), id="other")
    return TextSpace("other", images, Words(WIDTH), "w", ("{}",))


def test_a_store_a_view_and_a_batch_in_memory_are_aligned_alike(store, space):
    from_store, from_view, from_memory = (
        align(source, space, RECIPE) for source in (store, store.view(), Contributions.of(store.view()))
    )
    assert from_store.identity == from_view.identity == from_memory.identity
    for other in (from_view, from_memory):
        assert torch.equal(from_store.maps, other.maps) and torch.equal(from_store.bias, other.bias)
    assert from_store.measured["images"]["train"] + from_store.measured["images"]["held out"] == 24
    assert [row["step"] for row in from_store.table().to_pylist()][:2] == ["one map", "blocks 1"]


def test_images_that_are_given_are_those_that_are_known(store, space, tmp_path):
    images = unweave.open_images(str(store.manifest.listings[0].data))
    contributions = Contributions.of(store.view())
    known = replace(contributions, origin=replace(contributions.origin, images=()))
    with pytest.raises(DataError, match="can no longer be opened"):
        align(known, space, RECIPE)
    assert torch.equal(embeddings(known.view(), space, [images]), embeddings(store.view(), space))
    assert torch.equal(align(known, space, RECIPE, images=[images]).maps, align(store, space, RECIPE).maps)


def test_embeddings_come_in_the_order_of_the_view(store, space):
    whole = embeddings(store.view(), space)
    assert torch.allclose(embeddings(store.view().rows([5, 2, 9]), space), whole[[5, 2, 9]], atol=1e-6)


def test_progress_is_told_and_points_are_handed_on(store, space):
    told, points = [], []
    align(store, space, RECIPE, on_progress=lambda *what: told.append(what), on_point=points.append)
    assert told[-1] == ("embedding images in other", 24, 24)
    assert [point.step for point in points][:3] == ["one map", "blocks 1", "blocks 2"]


def test_only_some_components_are_aligned_where_only_some_are_chosen(store, space):
    part = store.view().select("kind:head")
    aligner = align(part, space, RECIPE)
    assert aligner.components == part.components
    assert torch.allclose(
        part.through(aligner).values(), aligner(Contributions.of(store.view().select("kind:head"))), atol=1e-5
    )


def test_the_own_encoder_of_a_space_gets_the_identity(store):
    space = space_of(WIDTH)
    aligner = align(store, space, RECIPE)
    assert aligner.measured["identity"] and torch.equal(aligner.maps[0], torch.eye(WIDTH))
    view, words = aligned(store, space)
    assert words is space and torch.allclose(view.values(), store.view().values())
    assert torch.allclose(view.representation, store.view().representation, atol=2e-3)
    assert torch.equal(identical(store.view(), space).maps, aligner.maps)


def test_an_identity_is_saved_without_a_picture_and_read(store, tmp_path):
    aligner = align(store, space_of(WIDTH), RECIPE)
    files = aligner.save(tmp_path / "a")
    assert "figure" not in files and torch.equal(Aligner.load(tmp_path / "a").maps, aligner.maps)
    with pytest.raises(ArgumentError, match="no curves"):
        aligner.figure()


def test_too_few_images_and_fields_that_there_are_not(store, space):
    with pytest.raises(DataError, match="too few on one side"):
        align(store.view().rows([0, 1, 2]), space, RECIPE)
    with pytest.raises(DataError, match="no field 'kind'"):
        align(store, space, RECIPE, classes=["kind"])


def test_contributions_of_no_known_model_cannot_be_aligned(store, space):
    with pytest.raises(AlignmentError, match="do not say of which model"):
        align(replace(Contributions.of(store.view()), origin=None), space, RECIPE)


def test_pairs_are_taken_row_by_row(store):
    pairs = Pairs.of(store.view(), torch.randn(24, 5, generator=torch.Generator().manual_seed(0)))
    some = pairs.take(np.array([7, 3]))
    assert some.view.ids == (store.ids[7], store.ids[3])
    assert torch.equal(some.targets, pairs.targets[[7, 3]])
    assert torch.allclose(pairs.targets.norm(dim=1), torch.ones(24))


def test_pairs_come_in_pieces_that_fit_into_the_budget(store, monkeypatch):
    pairs = Pairs.of(store.view(), torch.randn(24, 5, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr("unweave.view.BUDGET", 4 * len(pairs.view.components) * WIDTH * 7)
    sizes, values, targets = zip(*((len(part), part, target) for part, target in pairs.batches()), strict=True)
    assert sizes == (7, 7, 7, 3)
    assert torch.equal(torch.cat(values), pairs.view.values()) and torch.equal(torch.cat(targets), pairs.targets)


# -- what leads to a text space ----------------------------------------------------------------------------------------


def test_an_aligner_its_folder_and_a_view_through_it_lead_to_the_same(store, space, tmp_path, monkeypatch):
    aligner = align(store, space, RECIPE)
    aligner.save(tmp_path / "a", figure=False)
    monkeypatch.setattr("unweave.alignment.spaces.text_space", lambda name, **options: space)
    expected = store.view().through(aligner).values()
    for source, leading in (
        (store, aligner),
        (store, tmp_path / "a"),
        (store, str(tmp_path / "a")),
        (store.view().through(aligner), None),
        (store.view().through(aligner), space),
        (Contributions.of(store.view()), aligner),
        (replace(Contributions.of(store.view()), origin=None), aligner),
    ):
        view, words = aligned(source, leading)
        assert words is space and torch.allclose(view.values(), expected, atol=1e-6)
    assert view_card(store.view().through(aligner), space) == {
        "source": str(store.place),
        "images": 24,
        "model": "tiny",
        "weights_hash": model().weights_hash,
        "level": "head",
        "space": "other",
        "space_hash": "w",
    }


def test_what_does_not_lead_to_a_text_space(store, space, monkeypatch):
    with pytest.raises(ArgumentError, match="Words need a text space"):
        aligned(store)
    with pytest.raises(AlignmentError, match="not the image encoder of other"):
        aligned(store, space)
    aligner = align(store, space, RECIPE)
    moved = replace(space, weights_hash="x")
    monkeypatch.setattr("unweave.alignment.spaces.text_space", lambda name, **options: moved)
    with pytest.raises(AlignmentError, match="other weights"):
        aligned(store, aligner)
    with pytest.raises(AlignmentError, match="another weights hash"):
        other = replace(aligner, identity={**aligner.identity, "weights_hash": "x", "space_hash": "x"})
        aligned(store, other)
