"""Maps over images: signed, one scale centred at zero."""

import numpy as np
import pytest

from unweave.errors import UnweaveError
from unweave.figures import heatmap_figure


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
