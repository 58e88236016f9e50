"""A view against plain numpy: on a store of several blocks and on a batch in memory, which give the same numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import unweave
from stores import SMALL, draw, model, remembering, stored
from unweave.alignment import Aligner
from unweave.components import Component
from unweave.contributions import Contributions
from unweave.errors import AlignmentError, ArgumentError, DataError, ModelError, StoreError
from unweave.source import numbered
from unweave.view import View

IMAGES, WIDTH, DIM = 230, 5, 4
"""Three blocks of a hundred images at most."""

NAMES = (
    *(Component(f"blocks.{layer}.attn", "head", layer, head) for layer in range(2) for head in range(2)),
    Component("blocks.1.mlp", "mlp", 1),
    Component("norm", "bias"),
)
IDS = tuple(f"{number:03}.png" for number in range(IMAGES))
FIELDS = {
    "label": [None if number % 10 == 9 else f"c{number % 3}" for number in range(IMAGES)],
    "size": [number % 4 for number in range(IMAGES)],
}
KNOWN = {"model": "tiny", "weights_hash": "hash", "preprocessing": {"size": 1}, "level": "head"}


def drawn():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, len(NAMES), WIDTH, generator=generator) + torch.linspace(-2, 6, WIDTH)


def aligner(seed=1):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(len(NAMES), WIDTH, DIM, generator=generator)
    return Aligner(maps, torch.randn(DIM, generator=generator), NAMES, KNOWN | {"space": "s", "space_hash": "h"})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("view") / "s", drawn(), NAMES, ids=IDS, fields=FIELDS)


@pytest.fixture(scope="module")
def batch(store):
    values = drawn()
    return Contributions(
        values,
        NAMES,
        IDS,
        values.sum(1),
        torch.zeros(IMAGES),
        origin=store.view().origin,
        fields=FIELDS,
        logits=values.sum(1)[:, :3],
    )


@pytest.fixture(params=["store", "memory"])
def view(request, store, batch):
    return {"store": store, "memory": batch}[request.param].view()


@pytest.fixture(params=["all at once", "a piece at a time"])
def budget(request, monkeypatch):
    """Whether all contributions fit into the memory, or one image of one component."""
    if request.param == "a piece at a time":
        monkeypatch.setattr("unweave.view.BUDGET", 1)


@pytest.fixture(params=["its own space", "a text space"])
def mapped(request):
    return aligner() if request.param == "a text space" else None


def expected(mapped, rows=slice(None), columns=slice(None)):
    """The contributions, a component at a time, in float64."""
    values = drawn().double().numpy()
    if mapped is not None:
        maps = mapped.maps.double().numpy()
        values = np.stack([values[:, place] @ maps[place] for place in range(len(NAMES))], 1)
    return values[rows][:, columns]


def near(ours, theirs, most=1e-5):
    return np.abs(ours.double().numpy() - theirs).max(initial=0) < most * max(1, np.abs(theirs).max(initial=0))


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [slice(None), [200, 3, 3, 117], slice(90, 215, 7)], ids=["all", "some", "steps"])
@pytest.mark.parametrize("columns", [list(range(len(NAMES))), [4, 0], [5]], ids=["all", "two", "one"])
def test_numbers_are_those_of_the_contributions(view, mapped, budget, rows, columns):
    chosen = view.through(mapped).rows(rows).select(columns)
    values = expected(mapped, rows, columns)
    assert near(chosen.values(), values) and chosen.values().dtype == torch.float32
    assert near(chosen.sum(), values.sum(1))
    assert near(chosen.mean(), values.mean(0))
    directions = torch.randn(3, chosen.dim, generator=torch.Generator().manual_seed(2))
    assert near(chosen.along(directions), values @ directions.double().numpy().T)
    centred = values - values.mean(0)
    assert near(chosen.covariance(), np.einsum("nci,ncj->cij", centred, centred) / len(values))
    assert chosen.covariance().dtype == torch.float64


def test_the_sum_of_a_selection_is_that_of_the_selected(view, mapped, budget):
    chosen = view.through(mapped).rows(slice(5, 120))
    assert near(chosen.sum("kind:head"), expected(mapped, slice(5, 120), slice(0, 4)).sum(1))
    assert near(chosen.select("last:1").sum("kind:mlp"), expected(mapped, slice(5, 120), [4]).sum(1))
    with pytest.raises(ArgumentError, match="matches none"):
        chosen.select("last:1").sum("kind:bias")


def test_the_representation_is_of_all_components_whichever_are_chosen(view, mapped, budget):
    values = expected(mapped, [7, 150]).sum(1)
    values = values if mapped is None else values + mapped.bias.double().numpy()
    chosen = view.through(mapped).rows([7, 150])
    directions = torch.randn(3, chosen.dim, generator=torch.Generator().manual_seed(2))
    for some in (chosen, chosen.select([2])):
        assert near(some.representation, values)
        assert near(some.representation_along(directions), values @ directions.double().numpy().T)
    told = []
    chosen.select([2]).representation_along(directions, lambda *what: told.append(what))
    assert told == ([] if mapped is None else [("summing components", count, 6) for count in range(1, 7)])


def test_a_large_mean_does_not_take_the_digits_of_the_covariance(tmp_path):
    values = drawn()[:, :1] + 1e4
    numbers = values.double().numpy()
    chosen = stored(tmp_path / "s", values, NAMES[:1]).view()
    centred = numbers - numbers.mean(0)
    assert near(chosen.covariance(), np.einsum("nci,ncj->cij", centred, centred) / IMAGES, 1e-8)


def test_half_precision_is_read_as_float32_and_summed_with_its_digits(tmp_path):
    values = drawn().half()
    contributions = Contributions(values, NAMES, IDS, values.float().sum(1), torch.zeros(IMAGES))
    chosen = contributions.view()
    assert chosen.values().dtype == torch.float32 and near(chosen.mean(), values.double().numpy().mean(0), 1e-6)
    assert near(chosen.sum(), values.double().numpy().sum(1), 1e-6)


def test_logits_are_those_of_the_source(batch, store):
    assert torch.equal(batch.view().rows([4, 1]).logits, batch.logits[[4, 1]])
    with pytest.raises(ModelError, match="not known"):
        replace(batch, logits=None).view().logits  # noqa: B018
    with pytest.raises(ModelError, match="no classifier"):
        store.view().logits  # noqa: B018


# -- choosing components -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "places"),
    [
        ("kind:head", [0, 1, 2, 3]),
        ("last:1", [2, 3, 4]),
        ("blocks.0.*, norm.bias", [0, 1, 5]),
        (["blocks.1.mlp", NAMES[0]], [0, 4]),
        (lambda component: component.head == 1, [1, 3]),
        (None, [0, 1, 2, 3, 4, 5]),
        ([3, 1], [3, 1]),
        (range(2, 4), [2, 3]),
    ],
)
def test_components_are_selected_by_selection_and_by_places(view, selection, places):
    chosen = view.select(selection)
    assert chosen.components == tuple(NAMES[place] for place in places)
    assert torch.equal(chosen.values(), drawn()[:, places])
    assert chosen.is_whole is (len(places) == len(NAMES)) and chosen.whole().components == NAMES


def test_places_are_among_those_that_are_chosen(view):
    assert view.select([4, 2, 0]).select([0, 2]).components == (NAMES[4], NAMES[0])
    assert view.select("kind:head").select("last:1").components == NAMES[2:4]


@pytest.mark.parametrize(
    ("selection", "what"),
    [
        ([6], "no component 6 among 6"),
        ([0, -1], "no component -1"),
        ([], "No component was chosen"),
        ("nothing", "matches none"),
        ("kind:nothing", "no kind"),
        ("kind:head, !kind:head", "leaves no component"),
    ],
)
def test_components_that_there_are_not(view, selection, what):
    with pytest.raises(ArgumentError, match=what):
        view.select(selection)


def test_each_component_is_a_view(view, mapped):
    parts = list(view.through(mapped).select([4, 1]).each())
    assert [part.components for part in parts] == [(NAMES[4],), (NAMES[1],)]
    assert near(torch.cat([part.values() for part in parts], 1), expected(mapped, columns=[4, 1]))


# -- choosing images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "values", "kept"),
    [
        (["label=c1"], {}, lambda number: number % 3 == 1 and number % 10 != 9),
        (["size=2"], {}, lambda number: number % 4 == 2),
        ([], {"size": 2}, lambda number: number % 4 == 2),
        (["label=c1"], {"size": 0}, lambda number: number % 3 == 1 and number % 10 != 9 and number % 4 == 0),
        (["label=None"], {}, lambda number: number % 10 == 9),
        ([], {}, lambda number: True),
    ],
)
def test_images_are_chosen_by_what_is_known_of_them(view, conditions, values, kept):
    rows = [number for number in range(IMAGES) if kept(number)]
    chosen = view.where(*conditions, **values)
    assert chosen.ids == tuple(IDS[row] for row in rows) and torch.equal(chosen.values(), drawn()[rows])
    assert chosen.field("size") == [FIELDS["size"][row] for row in rows]


def test_conditions_that_no_image_meets(view):
    with pytest.raises(ArgumentError, match="'label' is not a condition"):
        view.where("label")
    with pytest.raises(DataError, match="No image has the label 'c7'") as caught:
        view.where("label=c7")
    assert "use one of c0, c1, c2" in str(caught.value)
    with pytest.raises(DataError, match="No image has the label 'c1'"):
        view.rows([0, 3]).where("label=c1")
    with pytest.raises(DataError, match="No image has label=c0 and label=c1 at once"):
        view.where("label=c0", "label=c1")
    for ask in (lambda: view.where("colour=red"), lambda: view.where(colour="red"), lambda: view.field("colour")):
        with pytest.raises(DataError, match="no field 'colour'") as caught:
            ask()
        assert "label, size" in str(caught.value)


MASK = np.arange(IMAGES) % 50 == 1


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [
        (slice(10, 20, 3), [10, 13, 16, 19]),
        (None, list(range(IMAGES))),
        ([220, 3], [220, 3]),
        ([-1], [IMAGES - 1]),
        (np.array([5, 105]), [5, 105]),
        (torch.tensor([5, 105]), [5, 105]),
        (["205.png", "001.png"], [205, 1]),
        (np.array(["205.png", "001.png"]), [205, 1]),
        (MASK, [1, 51, 101, 151, 201]),
        (torch.from_numpy(MASK), [1, 51, 101, 151, 201]),
        (MASK.tolist(), [1, 51, 101, 151, 201]),
        ([], []),
    ],
    ids=str,
)
def test_images_are_chosen_by_number_id_and_truth_value(view, rows, numbers):
    chosen = view.rows(rows)
    assert len(chosen) == len(numbers) and chosen.ids == tuple(IDS[row] for row in numbers)
    assert torch.equal(chosen.values(), drawn()[numbers])
    assert numbered(rows, IDS, "here").tolist() == numbers


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([230], "none with the number 230"),
        ([-231], "none with the number -231"),
        (["001.png", "cat.png"], "no image 'cat.png'"),
        (MASK[:-1], "229 truth values do not choose among 230"),
    ],
)
def test_images_that_there_are_not(view, rows, what):
    with pytest.raises(DataError, match=what):
        view.rows(rows)


def test_rows_are_among_those_that_are_chosen(view):
    assert view.rows([9, 8, 7]).rows([2, 0]).ids == ("007.png", "009.png")
    with pytest.raises(DataError, match=r"no image '001\.png'"):
        view.rows([9, 8, 7]).rows(["001.png"])


def test_the_images_of_another_view_are_left_out(view, batch):
    some = batch.view().rows(slice(0, 225))
    assert view.without(some).ids == IDS[225:]
    assert view.without(view.rows([])).ids == IDS and len(view.without(view)) == 0


def test_the_sides_of_a_split_have_no_image_in_common(view, tmp_path):
    first, second = view.split()
    assert not set(first.ids) & set(second.ids) and set(first.ids) | set(second.ids) == set(IDS)
    assert 90 < len(first) < 140
    assert 25 < len(view.split(0.2)[1]) < 70
    assert view.split(seed=1)[0].ids != first.ids
    other = stored(tmp_path / "s", drawn()[:60], NAMES, ids=IDS[100:160][::-1]).view()
    assert set(other.split()[0].ids) == set(first.ids) & set(IDS[100:160])
    assert len(view.split(0.0)[1]) == 0 and len(view.split(1.0)[0]) == 0


@pytest.mark.parametrize("size", [1, 70, 1000])
def test_batches_are_views_of_consecutive_images(view, size):
    parts = list(view.rows(slice(0, 140)).batches(size))
    assert [name for part in parts for name in part.ids] == list(IDS[:140])
    assert [len(part) for part in parts] == {1: [1] * 140, 70: [70, 70], 1000: [140]}[size]


def test_batches_fit_into_the_budget(view, monkeypatch):
    monkeypatch.setattr("unweave.view.BUDGET", 4 * len(NAMES) * WIDTH * 100)
    assert [len(part) for part in view.batches()] == [100, 100, 30]
    assert [len(part) for part in view.select([0, 1]).batches()] == [230]


def test_views_without_images(view, mapped, budget):
    none = view.through(mapped).rows([])
    dim = WIDTH if mapped is None else DIM
    assert len(none) == 0 and none.ids == () and none.field("label") == [] and list(none.batches()) == []
    assert none.values().shape == (0, 6, dim) and none.sum().shape == (0, dim) == none.representation.shape
    assert none.along(torch.zeros(3, dim)).shape == (0, 6, 3)
    assert none.representation_along(torch.zeros(3, dim)).shape == (0, 3)
    for ask in (none.mean, none.covariance):
        with pytest.raises(DataError, match="no images"):
            ask()
    with pytest.raises(DataError, match="No image has the label"):
        none.where("label=c0")


# -- levels and spaces -------------------------------------------------------------------------------------------------


def test_another_level_has_the_same_images_and_its_own_components(tmp_path):
    with remembering(tmp_path / "cache"):
        settings = replace(SMALL, levels=("head", "layer"))
        whole = unweave.extract(model(), draw(tmp_path / "images", 6), tmp_path / "s", settings)
    view = whole.view().rows([4, 1]).select("kind:head")
    other = view.level("layer")
    assert other.components == whole.components("layer") and other.ids == view.ids and other.is_whole
    assert other.origin.level == "layer" and view.level("head") is view
    assert torch.equal(other.values(), whole.view("layer").rows([4, 1]).values())
    with pytest.raises(StoreError, match="no level 'token'"):
        view.level("token")
    for asked in (other, other.select([1]), whole.view("layer"), other.level("head")):
        again = eval(asked.as_code(), {"unweave": unweave})
        assert again.ids == asked.ids and again.components == asked.components
    for asked, rows in ((other, ["--rows", "4,1"]), (whole.view("layer"), [])):
        assert asked.as_options("source") == [str(whole.place), "--level", "layer", *rows]


def test_a_batch_in_memory_has_one_level(batch):
    view = batch.view().rows([0])
    assert view.level("head") is view
    with pytest.raises(StoreError, match="one level"):
        view.level("layer")
    unknown = replace(batch, origin=None).view()
    assert unknown.level("layer") is unknown and unknown.model == "a model"


def test_through_goes_to_a_text_space_and_back(view):
    there = view.select([1, 3]).through(aligner())
    assert (there.dim, view.dim) == (DIM, WIDTH) and there.components == (NAMES[1], NAMES[3])
    assert torch.equal(there.through(None).values(), view.select([1, 3]).values())


def test_an_aligner_that_does_not_belong_to_the_contributions(view):
    made = aligner()
    with pytest.raises(AlignmentError, match="another weights hash"):
        view.through(replace(made, identity={**made.identity, "weights_hash": "other"}))
    fewer = replace(made, maps=made.maps[:-1], components=NAMES[:-1])
    with pytest.raises(AlignmentError, match=r"no map for the component norm\.bias"):
        view.through(fewer)
    more = replace(made, maps=torch.cat([made.maps, made.maps[:1]]), components=(*NAMES, Component("x", "mlp")))
    with pytest.raises(AlignmentError, match="6 of the aligner's 7 components"):
        view.through(more).representation  # noqa: B018
    assert near(view.select([0]).through(fewer).sum(), expected(made, columns=[0]).sum(1))


# -- what it says of itself --------------------------------------------------------------------------------------------


def test_a_view_says_what_it_is(view):
    assert view.view() is view and view.model == "tiny" and view.origin.level == "head"
    assert list(view.fields) == ["label", "size"] and "label" in view.fields
    assert repr(view.rows([0]).select([1, 2]).through(aligner())).endswith("1 images, 2 components, 4 dim, aligned)")


def test_a_view_opens_itself_again(store):
    view = store.view().select("kind:head").where("label=c1").rows([3, 0]).select([2])
    again = eval(view.as_code(), {"unweave": unweave})
    assert isinstance(again, View) and again.ids == view.ids and again.components == view.components
    assert torch.equal(again.values(), view.values())
    whole = eval(store.view().rows(MASK).split(0.3, 4)[1].as_code(), {"unweave": unweave})
    assert whole.ids == store.view().rows(MASK).split(0.3, 4)[1].ids
    rows = ",".join(map(str, view.numbers))
    assert view.as_options("source") == [str(store.place), "--rows", rows, "--select", str(view.components[0])]


def test_a_command_line_says_the_same_images_and_components(store):
    whole = store.view()
    place = str(store.place)
    for view, words in (
        (whole, []),
        (whole.where("label=c1").split(0.3, 4)[1], ["--where", "label=c1", "--side", "0.3,4,1"]),
        (whole.where("label=c1").rows(slice(2)), ["--where", "label=c1", "--limit", "2"]),
        (whole.rows(slice(2)).where(label=whole.field("label")[0]), ["--rows", None]),
        (whole.rows([4, 1, 2, 3, 4]), ["--rows", "4,1:5"]),
        (whole.select("kind:head").rows(slice(1, 3)), ["--rows", "1:3", "--select", "kind:head"]),
        (whole.select(["kind:head", "!last:1"]), ["--select", "kind:head", "--select", "!last:1"]),
        (whole.select([1, 3]), [word for place in (1, 3) for word in ("--select", str(NAMES[place]))]),
        (whole.select(lambda part: part.kind == "bias"), ["--select", "norm.bias"]),
    ):
        said = view.as_options("source")
        assert said[0] == place and len(said) == len(words) + 1
        assert all(word in (None, own) for own, word in zip(said[1:], words, strict=True)), said
        assert eval(view.as_code(), {"unweave": unweave}).ids == view.ids
    assert whole.where("label=c1").as_options("fitted") == ["--fitted", place, "--fitted-where", "label=c1"]
    for view, name in (
        (whole.rows([1]), "fitted"),
        (whole.where("label=c1"), "scored_on"),
        (whole.select([3, 1]), "source"),
    ):
        with pytest.raises(ArgumentError, match=r"[Nn]o option"):
            view.as_options(name)
    with pytest.raises(ArgumentError, match="in no store"):
        Contributions.of(whole).view().as_options("source")
