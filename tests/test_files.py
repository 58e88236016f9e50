"""Files that are whole or not there, and tables in three forms."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unweave.errors import UnweaveError
from unweave.files import markdown, replacing, write_table

TABLE = pa.table({"name": ["a|b", None], "count": [3, 4], "share": [0.12345, None], "told": [True, False]})


def test_a_table_is_the_same_in_all_forms(tmp_path):
    files = write_table(TABLE, {"of": "this"}, tmp_path / "new/folder", "rows")
    assert pq.read_table(files["parquet"]).equals(TABLE)
    known = json.loads((tmp_path / "new/folder/rows.json").read_text())
    assert known == {"of": "this", "rows": TABLE.to_pylist()}
    assert (tmp_path / "new/folder/rows.md").read_text() == markdown(TABLE)
    assert len(list((tmp_path / "new/folder").iterdir())) == 3


def test_markdown():
    head, sides, first, second = markdown(TABLE).splitlines()
    assert head == "| name | count | share | told |" and sides == "| --- | --: | --: | --- |"
    assert first == "| a\\|b | 3 | 0.123 | True |" and second == "|  | 4 |  | False |"


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path, "file") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path, "file") as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnweaveError, match="The table cannot be written"):
        write_table(TABLE, {}, tmp_path / "file/folder", "rows")
