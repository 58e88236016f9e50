"""Maps over images: signed, one scale centred at zero."""

import numpy as np
import pytest

from unweave.errors import UnweaveError
from unweave.figures import MapRow, heatmap_figure, maps_figure


def test_maps_lie_over_their_images_on_one_scale():
    images = np.zeros((3, 16, 16, 3), np.uint8)
    maps = np.zeros((3, 4, 4))
    maps[0, 0, 0], maps[1, 3, 3] = 2.0, -1.0
    figure = heatmap_figure(images, maps, ["one", "two", "three"], title="maps", columns=2)
    plain = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in plain] == ["one", "two", "three"]
    over = [axes.images[1].get_array() for axes in figure.axes if len(axes.images) == 2]
    red, blue, nothing = (np.asarray(array, float) for array in over)
    assert red[0, 0, 0] > red[0, 0, 2] and red[0, 0, 3] > 0.5
    assert blue[-1, -1, 2] > blue[-1, -1, 0] and 0 < blue[-1, -1, 3] < red[0, 0, 3]
    assert nothing[..., 3].max() == 0


def test_all_zero_maps_are_drawn_without_colour():
    figure = heatmap_figure(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2, 2)), ["a"], title="")
    assert np.asarray(figure.axes[1].images[1].get_array())[..., 3].max() == 0


@pytest.mark.parametrize("count", [0, 2])
def test_what_does_not_fit_together_is_refused(count):
    with pytest.raises(UnweaveError, match="cannot be drawn"):
        heatmap_figure(np.zeros((count, 8, 8, 3), np.uint8), np.zeros((1, 2, 2)), ["a"] * count, title="")


def row(*maps, **more):
    return MapRow(
        np.zeros((16, 16, 3), np.uint8), "an image", [None if own is None else np.array(own) for own in maps], **more
    )


def opacity(axes):
    return float(np.asarray(axes.images[1].get_array())[..., 3].max())


def test_all_maps_share_one_scale_unless_their_units_differ():
    rows = [row([[4.0, 0.0]], [[1.0, 0.0]]), row([[-2.0, 0.0]], None)]
    panels = [axes for axes in maps_figure(rows, ["sum", "head"], title="", label="").axes if len(axes.images) == 2]
    sum_, head, second = map(opacity, panels)
    assert sum_ > second > head > 0
    own = maps_figure(rows, ["sum", "head"], title="", label="", own_scales=True)
    assert opacity(own.axes[2]) == pytest.approx(opacity(own.axes[1]))


def test_notes_and_the_edge_of_a_mask_are_drawn():
    mask = np.zeros((16, 16), bool)
    mask[4:9, 4:9] = True
    figure = maps_figure([row([[1.0]], notes=[("score", -1.5)], mask=mask)], ["sum"], title="", label="")
    assert [text.get_text() for text in figure.axes[0].texts] == ["score  -1.50"]
    assert all(len(axes.collections) == 1 for axes in figure.axes[:2])


@pytest.mark.parametrize("rows", [[], [row([[1.0]], [[1.0]])]])
def test_rows_that_do_not_fit_their_headings_are_refused(rows):
    with pytest.raises(UnweaveError, match="cannot be drawn"):
        maps_figure(rows, ["sum"], title="", label="")
