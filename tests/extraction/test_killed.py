"""Killed at any moment and run again, an extraction has every row once, equal to the last bit to one left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from unweave.extraction import verify
from unweave.files.atomic import PARTIAL
from unweave.store import Place, Store, writer
from unweave.store.lease import holders

SCRIPT = Path(__file__).with_name("slaughter.py")


def same(one: Store, other: Store) -> None:
    assert one.ids == other.ids and len(set(one.ids)) == len(one.ids) == 59
    assert one.skipped == other.skipped == [("0007.png", other.skipped[0][1])]
    assert one.table.equals(other.table)
    for level in other.manifest.levels:
        assert np.array_equal(one.view(level).values().numpy(), other.view(level).values().numpy())
    assert np.array_equal(one.view().representation.numpy(), other.view().representation.numpy())
    assert np.array_equal(one.view().logits.numpy(), other.view().logits.numpy())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.sweep)])
def test_killed_at_random_moments(tmp_path, kills):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(kills), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["killed"] >= kills
    whole = Store(tmp_path / "whole")
    stores = [path for path in tmp_path.iterdir() if path.name.startswith(("one", "two"))]
    assert len(stores) >= 2
    for path in stores:
        same(Store(path), whole)
        assert verify(Store(path), rows=0).faults == []
        assert not list(path.rglob(PARTIAL))
        assert not any(holder.lives for holder in holders(Place(path)).values())


@pytest.mark.sweep
def test_a_parent_that_is_killed_takes_its_processes_with_it(tmp_path):
    def command(store: str, launcher: str) -> list[str]:
        given = "--limit", "200", "--block", "8", "--batch-size", "4", "--device", "cpu", "--launcher", launcher
        return [sys.executable, "-m", "unweave", "extract", "pocket/deit", "pocket/evaluation", "-o", store, *given]

    parent = subprocess.Popen(command("s", "processes"), cwd=tmp_path, stderr=subprocess.DEVNULL)
    place = Place(tmp_path / "s")
    while not writer.done(place):
        time.sleep(0.05)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    _, left = psutil.wait_procs(children, timeout=60)
    assert len(children) >= 2 and not left
    assert 0 < len(writer.done(place)) < 25
    subprocess.run(command("s", "here"), cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(command("whole", "here"), cwd=tmp_path, check=True, capture_output=True)
    one, whole = Store(tmp_path / "s"), Store(tmp_path / "whole")
    assert one.ids == whole.ids and np.array_equal(one.view().values().numpy(), whole.view().values().numpy())
