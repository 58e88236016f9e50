"""The figure shows every component once, whatever the model's shape, and says what the shares add up to."""

import random

import pytest
from matplotlib.image import imread

from unweave.components import Component
from unweave.errors import UnweaveError
from unweave.figures import save_figure, share_figure


def vit(layers=12, heads=12):
    yield Component("patch_embed", "embed")
    for layer in range(layers):
        for head in range(heads):
            yield Component(f"blocks.{layer}.attn", "head", layer=layer, head=head)
        yield Component(f"blocks.{layer}.attn", "bias", layer=layer)
        yield Component(f"blocks.{layer}.mlp", "mlp", layer=layer)
        yield Component(f"blocks.{layer}.mlp", "bias", layer=layer)
    yield Component("norm", "bias")
    yield Component("", "rest")


def swin(depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)):
    layer = 0
    yield Component("patch_embed", "embed")
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        for block in range(depth):
            path = f"layers.{stage}.blocks.{block}"
            for head in range(count):
                yield Component(f"{path}.attn", "head", layer=layer, head=head)
            yield Component(f"{path}.mlp", "mlp", layer=layer)
            yield Component(f"{path}.mlp", "bias", layer=layer)
            layer += 1


def maxvit(depths=(2, 2, 5, 2), heads=(3, 6, 12, 24)):
    layer = 0
    yield Component("stem", "embed")
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        for block in range(depth):
            path = f"stages.{stage}.blocks.{block}"
            yield Component(f"{path}.conv", "conv", layer=layer)
            for kind in ("attn_block", "attn_grid"):
                for head in range(count):
                    yield Component(f"{path}.{kind}.attn", "head", layer=layer, head=head)
                yield Component(f"{path}.{kind}.mlp", "mlp", layer=layer)
                yield Component(f"{path}.{kind}.mlp", "bias", layer=layer)
            layer += 1
    yield Component("norm", "bias")


def convnext():
    yield Component("stem", "embed")
    for layer in range(9):
        yield Component(f"stages.{layer // 3}.blocks.{layer % 3}", "conv", layer=layer)
    yield Component("head.norm", "lumped")


def shares(components, seed=0):
    """Mostly small, larger towards the end, some negative; they sum to one."""
    draw = random.Random(seed)
    depth = max(component.layer or 0 for component in components) + 1
    raw = [
        draw.gauss(0.35, 1)
        * (0.25 + 2 * ((component.layer or 0) / depth) ** 2)
        * (1 if component.kind == "head" else 5)
        for component in components
    ]
    return [value / sum(raw) for value in raw]


@pytest.mark.parametrize("family, rows", [(vit, 15), (swin, 25), (maxvit, 24), (convnext, 11)])
def test_every_family_can_be_drawn(tmp_path, family, rows):
    components = list(family())
    figure = share_figure(components, shares(components), title=f"timm/{family.__name__}", images=100)
    path = save_figure(figure, tmp_path / "share.png")
    assert imread(path).shape[0] > 400
    assert [file.name for file in tmp_path.iterdir()] == ["share.png"]
    assert figure.axes[0].get_ylim() == (rows - 0.5, -0.5)
    assert "= 100.0 %" in figure.texts[-1].get_text().replace("\n", " ")


def test_cells_hold_their_own_heads():
    components = list(swin())
    share = shares(components)
    figure = share_figure(components, share, title="swin")
    cells = figure.axes[0].collections[0]
    expected = {
        (component.layer + 1, component.head): 100 * value
        for component, value in zip(components, share, strict=True)
        if component.kind == "head"
    }
    centres = [path.get_extents() for path in cells.get_paths()]
    got = {
        (round((box.y0 + box.y1) / 2), round((box.x0 + box.x1) / 2)): value
        for box, value in zip(centres, cells.get_array().tolist(), strict=True)
    }
    assert got == pytest.approx(expected)
    norm = figure.axes[0].collections[0].norm
    assert norm.vmin == -norm.vmax and norm.vcenter == 0


def test_bars_are_all_of_the_representation():
    for family in (vit, maxvit, convnext):
        components = list(family())
        figure = share_figure(components, shares(components), title="all")
        bars = next(axes for axes in figure.axes if axes.patches)
        assert sum(patch.get_width() for patch in bars.patches) == pytest.approx(100)


def test_tokens_are_summed_into_their_head():
    components = [Component("b.attn", "head", layer=0, head=0, token=token) for token in range(4)]
    figure = share_figure(components, [0.25] * 4, title="tokens")
    assert figure.axes[0].collections[0].get_array().tolist() == [100]


def test_all_zero_and_a_hundred_rows():
    components = list(vit(layers=100, heads=2))
    share_figure(components, [0.0] * len(components), title="nothing").canvas.draw()


def test_nothing_to_draw(tmp_path):
    with pytest.raises(UnweaveError, match="cannot be drawn"):
        share_figure([], [], title="none")
    figure = share_figure([Component("", "rest")], [1.0], title="rest")
    (tmp_path / "file").touch()
    with pytest.raises(UnweaveError, match="cannot be written"):
        save_figure(figure, tmp_path / "file" / "share.png")
