"""Extracts again and again in children that are killed at random moments, until all is there; prints how it went.

    python slaughter.py FOLDER KILLS SEED

The model and its plan are made once and inherited by the children (fork), so that a life takes milliseconds to begin.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

torch.set_num_threads(1)  # threads would not survive a fork

sys.path.insert(0, str(Path(__file__).parent.parent))

from stores import SMALL, draw, model, remembered  # noqa: E402
from unweave.extraction import Part, job  # noqa: E402

IMAGES = 60
job.plans_of = remembered
SETTINGS = replace(SMALL, rows=3, batch=2, levels=("head", "layer"))


def live(photos: Path, store: Path, part: Part) -> None:
    """One life: go on where an earlier one ended."""
    job.prepare(model(), str(photos), store, SETTINGS).run(part)


def born(photos: Path, store: Path, part: Part) -> int:
    """A child's process number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            live(photos, store, part)
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill that many, then let one live; the same for two parts side by side."""
    rng = random.Random(seed)
    photos = draw(folder / "photos", IMAGES)
    (photos / "0007.png").write_bytes(b"broken")
    # One batch here, so that what is made on first use is inherited.
    plans = remembered(model(), SETTINGS.levels, SETTINGS.select, **SETTINGS.walk)
    for plan in plans.values():
        plan.run(model().example(2))
    whole = born(photos, folder / "whole", Part())
    began = time.monotonic()
    _, status = os.waitpid(whole, 0)
    lifetime = time.monotonic() - began
    assert status == 0
    found = {"lifetime": lifetime, "killed": 0, "ended": 0}
    for name, of in (("one", 1), ("two", 2)):
        store, number, lives = folder / name, 0, 0
        while number < kills // 2:
            lives += 1
            children = [born(photos, store, Part(k, of)) for k in range(1, of + 1)]
            time.sleep(rng.uniform(0, 0.4 * lifetime))
            for child in children:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                dead = os.WIFSIGNALED(status)
                found["killed" if dead else "ended"] += 1
                number += dead
                if not dead:
                    assert status == 0, status
            if (store / "index.parquet").exists():  # it got away with it: begin again
                store.rename(folder / f"{name}-{lives}")
        for k in range(1, of + 1):
            assert os.waitpid(born(photos, store, Part(k, of)), 0)[1] == 0
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
