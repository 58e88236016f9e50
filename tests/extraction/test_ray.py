"""Ray: actors that compute blocks, and are replaced when they die."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch

from unweave.extraction import Settings, extract, prepare
from unweave.images import open_images
from unweave.store import Store, writer

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)

SETTINGS = Settings(rows=8, batch=4, device="cpu")
ON_RAY = replace(SETTINGS, launcher="ray", workers=1)


def actors():
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "ray::_Actor" in line:
            found.append(process)
    return found


def test_an_actor_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path):
    here = extract("pocket/deit", open_images("pocket/evaluation", limit=64), tmp_path / "here", SETTINGS)
    extraction = prepare("pocket/deit", open_images("pocket/evaluation", limit=64), tmp_path / "ray", ON_RAY)
    killed = []

    def kill():
        while not writer.done(extraction.place):
            time.sleep(0.02)
        victim = actors()[0]
        victim.kill()
        killed.append(victim.pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    extracted = extraction.run()
    killer.join(10)
    assert killed and extracted.images == 64
    there = Store(tmp_path / "ray")
    assert there.ids == here.ids and torch.equal(there.view().values(), here.view().values())
    _, left = psutil.wait_procs(actors(), timeout=30)
    assert not left
