"""Rows of pictures below what was asked for."""

import numpy as np
import pytest

from unweave.errors import UnweaveError
from unweave.figures import RetrievedRow, retrieval_figure


def row(label, images, shade=0):
    return RetrievedRow(label, "9 components", np.full((images, 8, 8, 3), shade, np.uint8), [-0.5] * images)


def shown(figure):
    return [axes.images[0].get_array() for axes in figure.axes]


def says(figure):
    return [text.get_text() for text in figure.texts]


def test_a_row_for_each_feature_below_the_text():
    figure = retrieval_figure([row("colour", 3, 1), row("whole", 2, 2)], title="a model", text="something red")
    assert [int(image.max()) for image in shown(figure)] == [1, 1, 1, 2, 2]
    places = [axes.get_position() for axes in figure.axes]
    assert places[0].y0 == places[2].y0 > places[3].y1 and places[0].x0 == places[3].x0 < places[1].x0
    assert {"a model", "\u201csomething red\u201d", "colour", "whole", "9 components"} <= set(says(figure))
    assert says(figure).count("\N{MINUS SIGN}0.50") == 5


def test_the_probe_stands_above():
    probe = np.full((8, 8, 3), 7, np.uint8)
    figure = retrieval_figure([row("colour", 1)], title="a model", probe=probe, caption="me.png")
    assert int(shown(figure)[0].max()) == 7 and "me.png" in says(figure)
    first, second = (axes.get_position() for axes in figure.axes)
    assert first.y0 > second.y1 and 0 < second.x0 < second.x1 < 1 and second.y0 > 0


@pytest.mark.parametrize("rows", [[], [row("colour", 0)], [RetrievedRow("a", "", row("a", 2).images, [0.1])]])
def test_nothing_to_draw_is_an_error(rows):
    with pytest.raises(UnweaveError, match="nothing to draw"):
        retrieval_figure(rows, title="", text="red")
