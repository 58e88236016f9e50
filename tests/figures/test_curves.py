"""Curves: a panel for each group, a band where there is one, and what cannot be drawn."""

import pytest

from unweave.errors import UnweaveError
from unweave.figures import Curve, curves_figure


def test_every_curve_is_drawn_and_named():
    one = Curve("ours", [0.1, 0.5, 0.9], [0.0, 0.4, 0.8], [0.2, 0.6, 1.0], mark=1)
    other = Curve("at random", [0.1, 0.1], faint=True)
    figure = curves_figure({"worst": [one, other], "average": [one]}, title="t", across="steps", up="accuracy")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["worst", "average"]
    first = figure.axes[0]
    assert [text.get_text() for text in first.get_legend().texts] == ["ours", "at random"]
    assert [line.get_ydata().tolist() for line in first.lines] == [[0.1, 0.5, 0.9], [0.5], [0.1, 0.1]]
    assert len(first.collections) == 1


@pytest.mark.parametrize("panels", [{}, {"a": []}, {"a": [Curve("x", [1.0], [1.0, 2.0], [1.0])]}])
def test_what_cannot_be_drawn(panels):
    with pytest.raises(UnweaveError):
        curves_figure(panels, title="", across="", up="")
