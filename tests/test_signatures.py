"""The core with the shapes and types of all its signatures checked, which the other tests leave out to be quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from jaxtyping import install_import_hook

install_import_hook("unweave", "beartype.beartype")

import torch
import unweave
from random_networks import images_of, network_of

torch.set_num_threads(1)
for name in sys.argv[1:]:
    if name.isdecimal():
        network = network_of(int(name))
        images = images_of(network)
        plan = unweave.plan(network, images)
    else:
        model = unweave.load_model(f"pocket/{name}")
        images, plan = model.example(2), unweave.plan(model)
    direction = torch.randn(1, plan.dim, dtype=images.dtype)
    for level in ("layer", "head", "token", "neuron"):
        finer = plan.at(level)
        assert finer.run(images).error.max() < 1e-4 and finer.project(images, direction).error.max() < 1e-4
    assert str(plan.explanation())
    if not name.isdecimal():
        unweave.plan(model, regions=True).run(images, "token 0,0")
        unweave.plan(model, nonlinear="freeze", attention="stop").run(images)
"""


@pytest.mark.parametrize("names", [["deit", "maxvit", "0"], pytest.param(["swin", "1"], marks=pytest.mark.sweep)])
def test_the_core_keeps_to_its_signatures(names: list[str]) -> None:
    path = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, check=False, env={"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr[-3000:]
