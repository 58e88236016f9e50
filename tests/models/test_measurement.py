"""The table of models that is shipped: what it promises, and how it is searched."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from unweave import models
from unweave.errors import ModelError

ROOT = Path(__file__).parents[2]
BOUNDS = {"float32": 1e-5, "float64": 1e-10}


def test_every_sum_of_the_table_is_exact():
    rows = models.measurements().rows
    assert len({row.id for row in rows}) == len(rows) > 100
    for row in rows:
        assert row.error is None or row.error <= BOUNDS[row.dtype], row
        assert not row.regions.startswith(("inexact", "fails")), row


def test_every_miss_of_the_table_has_its_reason():
    for row in models.measurements().rows:
        assert row.whole or row.reason, row
        assert row.regions or row.error is None, row


@pytest.mark.parametrize(
    ("wanted", "found"), [("dinov3", "timm/vit_base_patch16_dinov3"), ("SigLIP2", "hf/Siglip2Model")]
)
def test_a_model_is_found_by_its_name_however_it_is_written(wanted, found):
    assert found in [row.id for row in models.search(wanted)]


def test_a_model_is_found_by_the_name_that_it_is_listed_under():
    assert {row.group for row in models.search("v-jepa 2")} == {"V-JEPA 2"}


def test_a_name_that_no_row_has_gets_the_nearest():
    with pytest.raises(ModelError, match=r"(?s)'rasnet10t'.*resnet10t.*--random-weights"):
        models.search("rasnet10t")
    with pytest.raises(ModelError):
        models.search(" ")


def test_the_page_is_the_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page, table = import_module("publishing").page, models.measurements()
    shown = (ROOT / "docs" / "models.md").read_text("utf-8")
    head, _, _ = shown.partition("\n## Not measured yet")
    assert page(table.rows, table.versions, []).strip() == head.strip()
