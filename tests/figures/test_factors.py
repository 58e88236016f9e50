"""Panels of layers by heads, one for each factor, whatever the model's shape."""

import pytest

from unweave.components import Component
from unweave.errors import UnweaveError
from unweave.figures import factors_figure


def swin(heads=(2, 4)):
    yield Component("patch_embed", "embed")
    for layer, count in enumerate(heads):
        yield from (Component(f"layers.{layer}.attn", "head", layer=layer, head=head) for head in range(count))
        yield Component(f"layers.{layer}.attn", "bias", layer=layer)
        yield Component(f"layers.{layer}.mlp", "mlp", layer=layer)


def cells(axes):
    return {(round(box.get_x() + 0.47, 2), round(box.get_y() + 0.47, 2)): box.get_facecolor() for box in axes.patches}


def test_every_working_component_has_a_cell_in_every_panel():
    components = list(swin())
    figure = factors_figure(components, {"object": [0.1] * 11, "location": [0.2] * 11}, title="a model")
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["object", "location"]
    # heads stand at 0 ... 3, the embedding at 4.5, MLPs at 5.5; biases are not drawn
    heads = {(0, 1), (1, 1), (0, 2), (1, 2), (2, 2), (3, 2)}
    assert all(set(cells(axes)) == heads | {(4.5, 0), (5.5, 1), (5.5, 2)} for axes in panels)


def test_all_panels_share_one_scale_and_nothing_below_zero_is_coloured():
    components = list(swin((1,)))
    carried = {"object": [0.0, 0.4, 0.0, 0.0], "location": [0.0, 0.8, 0.0, -0.3]}
    first, second = factors_figure(components, carried, title="").axes[:2]
    assert cells(first)[0, 1] != cells(second)[0, 1]
    assert cells(second)[2.5, 1] == cells(second)[1.5, 0] == cells(first)[2.5, 1]


@pytest.mark.parametrize("carried", [{}, {"object": [0.1]}])
def test_what_does_not_fit_together_is_refused(carried):
    with pytest.raises(UnweaveError, match="cannot be drawn"):
        factors_figure(list(swin()), carried, title="")


def test_a_model_of_biases_alone_is_refused():
    with pytest.raises(UnweaveError, match="place"):
        factors_figure([Component("norm", "bias")], {"object": [0.0]}, title="")
