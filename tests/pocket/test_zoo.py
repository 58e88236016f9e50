"""The shipped zoo: every network loads, decomposes exactly under its own names, and is as good as its card says."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import unweave
from unweave.errors import ModelError, UnweaveError
from unweave.models import available
from unweave.pocket import encoder, evaluation, shelf, text
from unweave.pocket.measure import named, represent
from unweave.pocket.networks import NETWORKS
from unweave.pocket.probes import accuracy
from unweave.pocket.scenes import NAMES, WORDS, coded
from unweave.pocket.world import OBJECTS

BRANCH = r"(attn\.(head\.\d|bias)|mlp|mlp\.bias)"
VIT = rf"embed|norm\.bias|blocks\.\d\.{BRANCH}"
FORMS = {
    "clip": (6, 24, VIT),
    "deit": (6, 24, VIT),
    "dino": (6, 24, VIT),
    "dinov2": (6, 24, VIT),
    "swin": (8, 44, rf"embed|norm\.bias|layers\.\d\.(blocks\.\d\.{BRANCH}|downsample\.norm\.bias)"),
    "maxvit": (8, 44, rf"embed|norm\.bias|stages\.\d\.blocks\.\d\.(conv.*|attn_(block|grid)\.{BRANCH})"),
}
"""For each network its attention layers, its heads, and what its components are called."""

SUBSET = range(0, 1600, 3)
TOLERANCE = 0.06
"""Between the accuracy on 534 scenes, a third of which have a pattern, and the card's on 1,600."""


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return unweave.load_model(f"pocket/{request.param}")


@pytest.fixture(scope="module")
def plan(model):
    return unweave.plan(model)


@pytest.fixture(scope="module")
def inputs(model):
    return torch.stack([model.preprocess(Image.fromarray(image)) for image in evaluation().images[:4]])


def name_of(model):
    return model.id.partition("/")[2]


def test_every_network_decomposes_exactly_with_all_its_attention(model, plan, inputs):
    layers, heads, _ = FORMS[name_of(model)]
    contributions = plan.run(inputs)
    assert float(contributions.error.max()) <= 1e-5
    with torch.no_grad():
        torch.testing.assert_close(contributions.values.sum(1), model.readout(inputs), rtol=1e-4, atol=1e-4)
    assert plan.coverage.attention_layers == plan.coverage.resolved == layers
    assert sum(component.kind == "head" for component in plan.components) == heads >= 24
    assert not plan.lumps


def test_components_are_called_as_the_modules_are(model, plan):
    components = [str(component) for component in plan.components]
    wrong = [component for component in components if not re.fullmatch(FORMS[name_of(model)][2], component)]
    assert not wrong
    assert components[0] == "embed"
    assert len(set(components)) == len(components)


def test_every_network_is_as_good_as_its_card_says(model):
    scenes = evaluation()
    features = represent(model, scenes.images[SUBSET.start : SUBSET.stop : SUBSET.step])
    codes = np.array([coded(scenes.factors[place]) for place in SUBSET])
    card = shelf.card(name_of(model))["measured"]["named"]
    found = named(model, features)
    assert found.keys() == card.keys()
    for factor, values in found.items():
        assert accuracy(values, codes[:, list(NAMES).index(factor)]) >= card[factor] - TOLERANCE


def test_a_card_says_how_its_network_came_about(model):
    card = shelf.card(name_of(model))
    assert card["name"] == name_of(model)
    assert card["images"] == card["recipe"]["steps"] * card["recipe"]["batch"]
    assert card["seconds"] > 0
    assert len(card["measured"]["birds"]) == 3
    expected = {"clip": list(WORDS.words), "dino": [], "dinov2": []}
    assert card["names"] == expected.get(name_of(model), [thing.name for thing in OBJECTS])


def test_what_learned_from_labels_classifies_and_nothing_else_does(model):
    has_classifier = model.classifier is not None
    assert has_classifier == (name_of(model) in ("deit", "swin", "maxvit"))
    if has_classifier:
        assert model.classifier(model.readout(model.example())).shape == (2, len(OBJECTS))


def test_the_zoo_is_small():
    assert sum(path.stat().st_size for path in shelf.WEIGHTS.iterdir()) < 25e6
    assert {path.stem for path in shelf.WEIGHTS.iterdir()} == set(NETWORKS)


def test_the_zoo_is_listed_with_the_libraries():
    (entry,) = [entry for entry in available() if entry["prefix"] == "pocket"]
    assert all(name in entry["meaning"] for name in NETWORKS)


# --- texts


def test_texts_are_directions_in_the_space_of_images():
    model = unweave.load_model("pocket/clip")
    directions = text(model).encode(["a red heart", "A red heart!", "something on the beach"])
    assert directions.shape == (3, 128)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(directions[0], directions[1])
    torch.testing.assert_close(text().encode(["a red heart"])[0], directions[0])
    assert not directions.requires_grad


def test_the_words_of_a_text_alone_count_and_not_its_neighbours():
    found = text().encode(["a car", "a photo of a striped and purple triangle in the snow"])
    torch.testing.assert_close(found[:1], text().encode(["a car"]))


def test_an_unknown_word_is_answered_with_the_nearest():
    with pytest.raises(UnweaveError, match=r"(?s)no word 'elephants'.*one of elephant"):
        text().encode(["some elephants"])


def test_only_clip_reads_texts():
    with pytest.raises(ModelError, match=r"(?s)no text encoder.*pocket/deit.*pocket/clip"):
        text("pocket/deit")


def test_the_text_encoder_knows_the_words_that_its_card_names():
    assert encoder.text().vocabulary.words == WORDS.words


# --- what can be wrong


@pytest.mark.parametrize(
    ("id", "options", "says"),
    [
        ("pocket/clap", {}, "(?s)no pocket model 'clap'.*nearest: clip"),
        ("pocket/", {}, "names no model"),
        ("pockets/clip", {}, "(?s)does not begin with a library.*`pocket/clip`"),
        ("pocket/deit", {"image_size": 96}, "(?s)no other image size.*pocket/deit"),
    ],
)
def test_a_wrong_id_says_what_to_type_instead(id, options, says):
    with pytest.raises(ModelError, match=says):
        unweave.load_model(id, **options)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A shelf that may be damaged, with one network on it."""
    for suffix in ("json", "safetensors"):
        (tmp_path / f"deit.{suffix}").write_bytes((shelf.WEIGHTS / f"deit.{suffix}").read_bytes())
    monkeypatch.setattr(shelf, "WEIGHTS", tmp_path)
    return tmp_path


def test_damaged_weights_are_refused(copied):
    path = copied / "deit.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"(?s)weights are damaged.*deit\.safetensors.*unweave\.pocket\.train deit"):
        unweave.load_model("pocket/deit")
    path.unlink()
    with pytest.raises(ModelError, match=r"(?s)weights are missing.*install unweave again"):
        unweave.load_model("pocket/deit")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"names": []', json.dumps({"names": []})])
def test_a_damaged_card_is_refused(content, copied):
    (copied / "deit.json").write_text(content)
    with pytest.raises(ModelError, match=r"(?s)card cannot be read.*deit\.json.*install unweave again"):
        unweave.load_model("pocket/deit")


def test_random_weights_need_none_that_are_shipped(copied):
    (copied / "deit.safetensors").unlink()
    assert unweave.load_model("pocket/deit", random_weights=True).classifier is not None
