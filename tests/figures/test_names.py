"""Named components: a row for each, with its phrases and its images."""

import numpy as np
import pytest

from unweave.components import Component
from unweave.errors import UnweaveError
from unweave.figures import NamedComponent, factors_figure, names_figure


def row(name, phrases=(("a bird", 0.4), ("a bus", 0.1))):
    images = np.random.default_rng(0).integers(0, 255, (5, 12, 12, 3), np.uint8)
    return NamedComponent(name, list(phrases), 0.02, images[:3], images[3:])


def test_every_component_has_a_row():
    figure = names_figure([row("blocks.0.attn.head.1"), row("blocks.1.mlp")], title="a model")
    images = [axes for axes in figure.axes if axes.images]
    assert len(images) == 2 * 5
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"blocks.0.attn.head.1", "blocks.1.mlp", "a bird", "a bus", "40 %", "10 %"} <= set(texts)
    assert [axes.get_title(loc="left") for axes in images if axes.get_title(loc="left")] == ["most", "least"]


def test_nothing_to_draw():
    with pytest.raises(UnweaveError, match="nothing to draw"):
        names_figure([], title="")


def test_what_is_not_told_from_chance_is_grey():
    components = [Component("blocks.0.attn", "head", 0, head) for head in range(3)]
    scores, told = {"red": [0.9, 0.8, 0.1]}, {"red": [True, False, True]}
    figure = factors_figure(components, scores, title="", told=told)
    colours = [patch.get_facecolor() for patch in figure.axes[0].patches]
    plain = [patch.get_facecolor() for patch in factors_figure(components, scores, title="").axes[0].patches]
    assert colours[0] == plain[0] and colours[2] == plain[2] and colours[1] != plain[1]
    assert [text.get_text() for text in figure.legends[0].texts] == ["not told from chance"]


def test_many_features_stand_in_rows():
    components = [Component(f"blocks.{layer}.attn", "head", layer, head) for layer in range(3) for head in range(12)]
    figure = factors_figure(components, {f"f{number}": [0.5] * 36 for number in range(9)}, title="")
    places = {axes.get_position().y0 for axes in figure.axes if axes.get_title(loc="left")}
    assert len(places) > 1 and figure.get_figwidth() < 17
