"""A model and a plan in place of real ones: the command line is tested apart from the mathematics."""

from dataclasses import asdict, dataclass, field

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import unweave
from unweave.cli import app
from unweave.components import Component
from unweave.contributions import Contributions

COMPONENTS = (
    Component("patch_embed", "embed"),
    *(
        component
        for layer in range(2)
        for component in (
            *(Component(f"blocks.{layer}.attn", "head", layer=layer, head=head) for head in range(3)),
            Component(f"blocks.{layer}.mlp", "mlp", layer=layer),
        )
    ),
)


@dataclass
class FakeModel:
    id: str = "timm/fake"
    weights_hash: str = "f00d"
    preprocessing: dict = field(default_factory=lambda: {"size": 8})

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255


@dataclass
class Coverage:
    attention_layers: int = 3
    resolved: int = 2
    passed: tuple = ("class_attention",)
    unresolved: tuple = ("pool: it reads [one] token",)


@dataclass
class Lump:
    operation: str = "aten.cumsum"
    module: str = "neck"
    line: str = "model.py:7"
    reason: str = "there is no rule for [aten.cumsum]"


@dataclass
class FakePlan:
    level: str = "head"
    components: tuple = COMPONENTS
    dim: int = 16
    coverage: Coverage = field(default_factory=Coverage)
    lumps: tuple = (Lump(),)
    memory_per_image: int = 1_234_567
    constant_bytes: int = 999
    before: object = None
    arguments: dict = field(default_factory=dict)
    batches: list = field(default_factory=list)

    def report(self):
        return {
            "components": [component.as_dict() for component in self.components],
            "operations": [
                {"operation": "aten.linear", "rule": "linear", "count": 12, "modules": ["", "blocks.0.mlp"]}
            ],
            "lumps": [{**asdict(lump), "rule": "@rule(aten.cumsum) ..."} for lump in self.lumps],
            "dense": ["blocks.0.mlp"],
        }

    def run(self, images, ids=None):
        print("a library that prints")
        self.batches.append((tuple(images.shape), images.dtype))
        if self.before:
            self.before(self)
        weights = torch.linspace(-0.4, 1, len(self.components), dtype=images.dtype)
        values = weights[None, :, None] * images.flatten(1)[:, None, : self.dim]
        z = values.sum(1)
        error = (values.sum(1) - z).norm(dim=-1) + 1e-7
        return Contributions(values, self.components, tuple(ids), z, error)


@pytest.fixture
def plan(monkeypatch):
    fake = FakePlan()

    def make(model, **arguments):
        fake.arguments.update(arguments)
        fake.level = arguments["level"]
        return fake

    def load(id, **arguments):
        fake.arguments.update(arguments)
        return FakeModel(id)

    monkeypatch.setitem(unweave.__dict__, "plan", make)
    monkeypatch.setitem(unweave.__dict__, "load_model", load)
    return fake


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])
