"""Killed at any moment and run again, an extraction has every row once, equal to the last bit to one left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unweave.extraction import verify
from unweave.store import Place, Store
from unweave.store.lease import holders

SCRIPT = Path(__file__).with_name("slaughter.py")


def same(one: Store, other: Store) -> None:
    assert one.ids == other.ids and len(set(one.ids)) == len(one.ids) == 59
    assert one.skipped == other.skipped == [("0007.png", other.skipped[0][1])]
    assert one.table.equals(other.table)
    for level in other.manifest.levels:
        assert np.array_equal(one.read(level=level).values.numpy(), other.read(level=level).values.numpy())
    assert np.array_equal(one.representation().numpy(), other.representation().numpy())
    assert np.array_equal(one.logits().numpy(), other.logits().numpy())


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
        assert not list(path.rglob("*.partial")) and not list(path.rglob("*.writing"))
        assert not any(holder.lives for holder in holders(Place(path)).values())
