"""The house style stands in one file: nothing else that draws names a colour, a colour map or a size of type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib import colormaps, colors

import unweave
from unweave.figures import style

SOURCE = Path(unweave.__file__).parent
DRAWING = sorted(
    str(path.relative_to(SOURCE))
    for path in SOURCE.rglob("*.py")
    if "matplotlib" in path.read_text() and path.name != "style.py"
)
OWN = re.compile(
    r"""["'](\#[0-9a-fA-F]{3,8}|white|black|gr[ae]y|RdBu_r|YlGnBu|viridis)["']|(font|label)_?size=\d|rcParams|dpi=\d"""
)


@pytest.mark.parametrize("module", DRAWING)
def test_what_draws_has_no_style_of_its_own(module):
    found = [line for line in (SOURCE / module).read_text().splitlines() if OWN.search(line)]
    assert not found


def test_the_pattern_finds_what_it_looks_for():
    assert len(OWN.findall("x(color='#3d6fb0', fontsize=9); rcParams; savefig(dpi=30); imshow(a, cmap=\"gray\")")) == 5
    assert len(DRAWING) >= 7 and "figures/share.py" in DRAWING


def test_the_style_is_what_matplotlib_knows():
    inks = (style.PAPER, style.INK, style.FAINT, style.PALE, style.RULE, style.EDGE, style.EMPTY, style.OUTLINE)
    assert all(colors.is_color_like(ink) for ink in (*inks, *style.SERIES, *style.KINDS.values()))
    assert {style.SIGNED, style.POSITIVE, style.PICTURE} <= set(colormaps)
