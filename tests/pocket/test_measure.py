"""Measuring: what is counted is what is said to be counted, and tables say what cards say."""

from dataclasses import fields
from functools import partial

import numpy as np
import pytest

from unweave.pocket import evaluation, measure, shelf, text
from unweave.pocket.birds import Birds
from unweave.pocket.measure import markdown, prompts, tables, zero_shot
from unweave.pocket.networks import NETWORKS
from unweave.pocket.probes import Flock, Trial, accuracy, fitted, flock, misled, trial
from unweave.pocket.scenes import NAMES, WORDS
from unweave.pocket.shipped import Evaluation
from unweave.pocket.world import COLOURS, World


def test_accuracy_counts_every_class_alike_and_leaves_out_what_has_none():
    true = np.array([0, 0, 0, 0, 1, -1, -1])
    assert accuracy(np.array([0, 0, 0, 0, 0, 0, 1]), true) == 0.5
    assert accuracy(np.array([0, 0, 1, 1, 1, 0, 1]), true) == 0.75


def test_a_head_reads_what_is_linear():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 5)) * [1, 100, 1e-3, 1, 1] + 7
    classes = np.searchsorted([-0.5, 0.5], (features[:, 2] - 7) / 1e-3)
    head = fitted(features[:200], classes[:200], softness=10.0)
    assert accuracy(head.predict(features[200:]), classes[200:]) > 0.85


@pytest.mark.parametrize("factor", NAMES)
def test_prompts_name_one_factor_in_words_that_are_known(factor):
    for value in NAMES[factor]:
        texts = prompts(factor, value)
        assert len(texts) == len(set(texts)) >= 7
        WORDS.encode(texts)
    if factor != "location":
        assert all(value in text for text in texts)


def test_zero_shot_takes_the_nearest_texts():
    encoder = text()
    features = encoder.encode([f"we see something {colour}" for colour in COLOURS]).numpy()
    np.testing.assert_array_equal(zero_shot(encoder, features * 7, "colour"), np.arange(len(COLOURS)))


def bird_trial(background: float):
    """Birds whose representation is the kind, faintly, and the background, as strongly as said."""

    def some(seed, shares):
        rng = np.random.default_rng(seed)
        groups = rng.choice(4, size=400, p=shares)
        return Flock(np.tile(groups[:, None, None, None], (1, 64, 64, 3)).astype(np.uint8), groups)

    def represent(images):
        groups = images[:, 0, 0, 0].astype(int)
        noise = np.random.default_rng(len(images)).normal(size=(len(images), 2))
        signal = np.stack([groups // 2 * 2.0, groups % 2 * background], 1)
        return (signal + noise).astype(np.float32)

    even = [0.25] * 4
    return Trial(some(0, [0.475, 0.025, 0.025, 0.475]), some(1, even), some(2, even)), represent


def test_a_tempting_background_costs_the_worst_group_of_the_biased_head_alone():
    birds, represent = bird_trial(background=6.0)
    tempted = misled(birds, represent)
    assert tempted["worst biased"] < tempted["worst balanced"] - 0.2
    assert tempted["average biased"] < tempted["average balanced"]
    assert tempted["worst biased"] < tempted["average biased"]
    birds, represent = bird_trial(background=0.0)
    calm = misled(birds, represent)
    assert abs(calm["worst biased"] - calm["worst balanced"]) < 0.1


def test_a_trial_holds_the_birds_that_it_says():
    birds = trial(5, learned=40, tested=40)
    assert np.bincount(birds.biased.groups).tolist() == [19, 1, 1, 19]
    assert np.bincount(birds.balanced.groups).tolist() == [10, 10, 10, 10]
    assert np.bincount(birds.test.groups).tolist() == [10, 10, 10, 10]
    np.testing.assert_array_equal(birds.test.images, flock(Birds(5, "test"), 40).images)
    assert not np.array_equal(birds.balanced.images, birds.test.images)
    np.testing.assert_array_equal(birds.test.kinds, birds.test.groups // 2)


def test_measuring_writes_the_card_and_the_page(tmp_path, monkeypatch, capsys):
    for name in NETWORKS:
        shelf.write(name, shelf.card(name), tmp_path)
        (tmp_path / f"{name}.safetensors").write_bytes((shelf.WEIGHTS / f"{name}.safetensors").read_bytes())
    monkeypatch.setattr(shelf, "WEIGHTS", tmp_path)
    shipped = evaluation()
    few = {field.name: getattr(shipped, field.name)[::20] for field in fields(Evaluation)}
    monkeypatch.setattr(measure, "evaluation", lambda: Evaluation(**few))
    monkeypatch.setattr(measure, "PROBE", (World(2), range(120)))
    monkeypatch.setattr(measure, "trial", partial(trial, learned=40, tested=40))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- zoo:begin -->\nold\n<!-- zoo:end -->\nafter\n")
    measure.main(["clip"], docs=page)
    card, before = shelf.card("clip"), shelf.card("clip", shelf.Path(measure.__file__).parent / "weights")
    assert card["measured"].keys() == before["measured"].keys()
    assert card["measured"]["named"].keys() == before["measured"]["named"].keys() == NAMES.keys()
    assert card["measured"]["birds"] != before["measured"]["birds"]
    assert card | {"measured": None} == before | {"measured": None}
    written = page.read_text()
    assert written.startswith("before\n<!-- zoo:begin -->\n\n| network | object |")
    assert written.endswith("\n\n<!-- zoo:end -->\nafter\n")
    assert "old" not in written
    assert "dinov2" in written
    assert f"{card['measured']['named']['object']:.2f}" in capsys.readouterr().out


def test_tables_leave_empty_what_a_network_cannot_say():
    birds = [{"worst biased": 0.5 + step, "worst balanced": 0.8, "average biased": 0.9} for step in (0, 0.1, 0.2)]
    probed = {"object": 0.4, "location": 0.95}
    plain = {
        "named, held-out style": {},
        "probe": probed,
        "probe, untrained": probed,
        "probe, random": probed,
        "birds": birds,
    }
    cards = {
        "one": {"measured": plain | {"named": {}}},
        "two": {"measured": plain | {"named": {"object": 0.876}}},
    }
    said, read = tables(cards)
    assert [row[0] for row in said] == ["network", "two"]
    assert said[1][1:3] == ["0.88", ""]
    assert read[1][-3:] == ["0.60 ± 0.10", "0.80 ± 0.00", "0.90 ± 0.00"]
    assert markdown(said).splitlines()[1] == "|" + "---|" * len(said[0]) or "---" in markdown(said)
