"""Files that are whole or not there, and tables in three forms."""

from __future__ import annotations

import contextlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from unweave.errors import StoreError, UnweaveError
from unweave.files import markdown, replacing, write_table
from unweave.files.pair import Kind, PairWriter, read_pair, write_pair

TABLE = pa.table({"name": ["a|b", None], "count": [3, 4], "share": [0.12345, None], "told": [True, False]})


def test_a_table_is_the_same_in_all_forms(tmp_path):
    files = write_table(TABLE, tmp_path / "new/folder", "rows")
    assert pq.read_table(files["parquet"]).equals(TABLE)
    assert (tmp_path / "new/folder/rows.md").read_text() == markdown(TABLE)
    assert len(list((tmp_path / "new/folder").iterdir())) == 2


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
        write_table(TABLE, tmp_path / "file/folder", "rows")


def test_what_breaks_off_takes_the_folders_with_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "new/deep/x.txt", "file") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_claimed_once(tmp_path):
    path = tmp_path / "x.txt"
    for text in ("first", "second"):
        with contextlib.suppress(FileExistsError), replacing(path, "file", error=None, claim=True) as partial:
            partial.write_text(text)
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_pair_belongs_together_and_is_as_it_was_if_writing_breaks_off(tmp_path):
    kind, files = Kind("thing", "a thing", 1, "make it again"), (tmp_path / "t.safetensors", tmp_path / "t.json")
    write_pair(*files, kind, {"a": torch.arange(3)}, {"names": ["x", "y"]})
    card, tensors = read_pair(*files, kind)
    assert card == {"names": ["x", "y"]} and tensors["a"].tolist() == [0, 1, 2]
    with (
        pytest.raises(KeyboardInterrupt),
        PairWriter(*files, kind, {"a": (torch.float32, (5, 2))}) as writer,
    ):
        writer.append("a", torch.zeros(2, 2))
        raise KeyboardInterrupt
    assert read_pair(*files, kind)[0] == card and len(list(tmp_path.iterdir())) == 2
    files[1].write_text(files[1].read_text().replace("x", "z"))
    with pytest.raises(StoreError, match=r"thing cannot be read, or is damaged: the card and the tensors"):
        read_pair(*files, kind)
