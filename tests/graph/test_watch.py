"""What a watch sees of a module tree, and what it lets pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tiny import Vit, ready
from unweave.graph.watch import Watch


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def new_weight(module: Vit) -> None:
    module.norm.weight = nn.Parameter(torch.ones(8).double())


def assigned(module: Vit) -> None:
    module.load_state_dict({"norm.bias": torch.zeros(8).double()}, strict=False, assign=True)


def instance_forward(module: Vit) -> None:
    module.trunk.forward = lambda x: x


def parametrized(module: Vit) -> None:
    parametrize.register_parametrization(module.blocks[0].mlp.fc1, "weight", Doubled())


CHANGES: dict[str, tuple[Callable[[Vit], object], str]] = {
    "weight": (new_weight, "norm.weight (weight, replaced)"),
    "assign": (assigned, "norm.bias (weight, replaced)"),
    "submodule": (lambda m: setattr(m, "trunk", nn.Tanh()), "trunk (submodule, replaced)"),
    "in a list": (lambda m: m.blocks.append(nn.Identity()), "blocks.2 (submodule, added)"),
    "deleted": (lambda m: delattr(m.norm, "bias"), "norm.bias (weight, removed)"),
    "hook": (lambda m: m.norm.register_forward_hook(lambda *_: None), "a forward hook of norm, added"),
    "pre-hook": (lambda m: m.register_forward_pre_hook(lambda *_: None), "a forward pre-hook of the module, added"),
    "forward": (instance_forward, "the forward of trunk"),
    "parametrization": (parametrized, "the class of blocks.0.mlp.fc1"),
    "mode": (lambda m: m.trunk.train(), "trunk.training (attribute, replaced)"),
    "attribute": (lambda m: setattr(m.norm, "eps", 0.5), "norm.eps (attribute, replaced)"),
    "buffer": (lambda m: m.register_buffer("extra", torch.ones(1)), "extra (buffer, added)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen_and_named(name: str) -> None:
    module = ready(Vit())
    watch = Watch(module)
    assert watch.unchanged and not watch.changes()
    change, words = CHANGES[name]
    change(module)
    assert not watch.unchanged
    assert words in map(str, watch.changes())
    watch.look()
    assert watch.unchanged and not watch.changes()


def test_a_forward_of_the_class_and_a_hook_of_all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(ready(Vit()))
    monkeypatch.setattr(Vit, "forward", lambda self, images: images.mean((2, 3)))
    assert not watch.unchanged and str(watch.changes()[0]) == "the forward of the module"
    monkeypatch.undo()
    assert watch.unchanged
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not watch.unchanged and "forward hook of every module" in str(watch.changes()[0])
    finally:
        handle.remove()
    assert watch.unchanged


def test_what_does_not_matter_passes() -> None:
    module = ready(Vit())
    watch = Watch(module)
    with torch.no_grad():
        module.norm.weight.mul_(2)
    module.zero_grad()
    module.requires_grad_(False)
    assert watch.unchanged
    module.norm.eps, module.last = float("1e-5"), torch.ones(3)  # an equal number; what a forward leaves behind
    module.trunk.eval()
    assert not watch.changes()
    watch.look()
    module.last = torch.zeros(3)
    assert watch.unchanged
    module.register_forward_hook(lambda *_: None).remove()
    assert watch.unchanged


def test_a_tensor_that_counts_is_watched_wherever_it_is() -> None:
    module = ready(Vit())
    module.mask = torch.ones(3)
    watch = Watch(module, tensors=[module.mask])
    module.mask = torch.zeros(3)
    assert [change.name for change in Watch(module).changes()] == []
    assert not watch.unchanged


def test_what_was_accepted_may_come_and_go() -> None:
    module = ready(Vit())
    watch = Watch(module)

    def hook(*_: object) -> None:
        pass

    handle = module.norm.register_forward_hook(hook)
    module.calls = 1
    watch.accept(watch.changes())
    assert watch.unchanged
    handle.remove()
    module.calls = 2
    assert not watch.changes()
    module.norm.register_forward_hook(hook)
    assert not watch.changes()
    module.norm.register_forward_hook(lambda *_: None)
    assert len(watch.changes()) == 1


def test_looking_costs_next_to_nothing() -> None:
    """Less than a two-hundredth of a forward pass of one image."""
    module = timm.create_model("vit_base_patch16_224", num_classes=0).eval()
    watch, images = Watch(module), torch.randn(1, 3, 224, 224)

    def seconds(call: Callable[[], object], times: int) -> float:
        call()
        began = time.process_time()
        for _ in range(times):
            call()
        return (time.process_time() - began) / times

    with torch.no_grad():
        assert seconds(lambda: watch.unchanged, 200) < 0.005 * seconds(lambda: module(images), 3)
