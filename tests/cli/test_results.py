"""The files of a verb appear together, or none of them does, and what is said of them is true."""

import os
import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from unweave.cli import _Verbs
from unweave.cli.results import interrupted, results, written
from unweave.errors import StoreError


def write(folder, files, names=("a.json", "b.png")):
    for name in names:
        (folder / name).write_text(name)
        files[name] = str(folder / name)


def test_files_appear_together(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.json").write_text("old")
    written.clear()
    with results(tmp_path / "out") as (folder, files):
        write(folder, files)
        assert (tmp_path / "out/a.json").read_text() == "old" and not (tmp_path / "out/b.png").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "b.png"]
    assert files == {name: str(tmp_path / "out" / name) for name in ("a.json", "b.png")}
    assert (tmp_path / "out/a.json").read_text() == "a.json" and all(path in interrupted() for path in files.values())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_what_went_wrong(tmp_path, error):
    written.clear()
    with pytest.raises(error), results(tmp_path / "deep/out") as (folder, files):
        write(folder, files)
        raise error
    assert not list(tmp_path.iterdir()) and interrupted() == "Interrupted. Nothing was written."


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    code = f"""
import os, pathlib, signal
from unweave.cli.results import results
with results(pathlib.Path({str(tmp_path)!r})) as (folder, files):
    (folder / "a.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    with results(tmp_path) as (folder, files):
        write(folder, files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.png"]


def test_an_interrupt_while_files_take_their_places_changes_nothing(tmp_path, monkeypatch):
    replace = type(tmp_path).replace

    def slowly(path, target):
        os.kill(os.getpid(), signal.SIGINT)
        return replace(path, target)

    with results(tmp_path) as (folder, files):
        write(folder, files)
        monkeypatch.setattr(type(tmp_path), "replace", slowly)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.png"]


def test_an_interrupt_names_what_is_there(tmp_path):
    app = typer.Typer(cls=_Verbs)

    @app.command()
    def verb(late: bool = False):
        with results(tmp_path / "out") as (folder, files):
            write(folder, files)
            if not late:
                raise KeyboardInterrupt
        raise KeyboardInterrupt

    @app.command()
    def other():
        pass

    early = CliRunner().invoke(app, ["verb"])
    assert early.exit_code == 130 and "Nothing was written" in early.stderr and not list(tmp_path.iterdir())
    late = CliRunner().invoke(app, ["verb", "--late"])
    assert late.exit_code == 130 and "What was written" in late.stderr and "b.png" in late.stderr


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_said(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="results cannot be written"), results(tmp_path / place):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
