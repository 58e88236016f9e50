"""What a run holds on to: nothing from batch to batch, nothing large for the sake of a slice, nothing after its use."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import unweave
from tiny import WIDTH, Vit, pictures, ready
from unweave.decomposition.contraction import Value
from unweave.decomposition.program import Program

pytestmark = pytest.mark.xdist_group("memory")

CHUNK = 4096
"""Bytes that a small thing may take."""


@cache
def plan_of(level: str) -> unweave.Plan:
    if level == "head":
        return unweave.plan(ready(Vit(readout="late")), pictures(2))
    return plan_of("head").at(level=level)


class Allocated(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation makes, for as long as anything holds its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        for own in tree_leaves(result):
            if isinstance(own, Tensor):
                self.live[StorageWeakRef(own.untyped_storage())] = own.untyped_storage().nbytes()
        self.peak = max(self.peak, self.now())
        return result

    def now(self) -> int:
        self.live = {storage: size for storage, size in self.live.items() if not storage.expired()}
        return sum(self.live.values())


def allocations(call: Callable[[], object]) -> tuple[int, int]:
    """The most bytes that were held at once during a call, and what is left when its result is gone."""
    with Allocated() as measured:
        call()
    gc.collect()
    return measured.peak, measured.now()


def test_twenty_batches_need_what_one_needs() -> None:
    plan, images = plan_of("head"), pictures(8)
    directions = torch.ones(2, WIDTH).double()
    for call in (lambda: plan.run(images), lambda: plan.project(images, directions)):
        call()
        one, left = allocations(call)
        twenty, more = allocations(lambda call=call: [call().ids for _ in range(20)])
        assert twenty <= 1.25 * one
        assert more <= left + CHUNK  # constants are kept, once


def test_no_tensor_outlives_its_run() -> None:
    plan = plan_of("head")
    plan.run(pictures())

    def count() -> int:
        gc.collect()
        return sum(type(own) is Tensor for own in gc.get_objects())

    before = count()
    for _ in range(5):
        plan.run(pictures())
    assert count() <= before


def watched(program: Program, look: Callable[[int, dict[object, Tensor]], None], images: Tensor) -> None:
    """Runs a program and looks at what it holds after every instruction."""
    honest = [instruction.run for instruction in program.instructions]

    def seen(number: int) -> Callable[..., None]:
        def run(environment: dict[object, Tensor], state: object) -> None:
            look(number, environment)
            honest[number](environment, state)

        return run

    for number, instruction in enumerate(program.instructions):
        instruction.run = seen(number)
    try:
        program.run(images)
    finally:
        for instruction, run in zip(program.instructions, honest, strict=True):
            instruction.run = run


@pytest.mark.parametrize("level", ["head", "token"])
def test_values_are_freed_at_their_last_use(level: str) -> None:
    program = plan_of(level)._program(None)
    needed: list[set[object]] = []
    later: set[object] = set()
    for instruction in reversed(program.instructions):
        later = later | set(instruction.reads)
        needed.append(later)
    needed.reverse()

    def look(number: int, environment: dict[object, Tensor]) -> None:
        held = set(environment) - {program.graph.input}
        assert held <= needed[number]

    watched(program, look, pictures())


@pytest.mark.parametrize("level", ["head", "token"])
def test_no_view_keeps_a_large_tensor_alive(level: str) -> None:
    """What waits for its contraction owns no more memory than it has entries.

    The model's own views last for as long as the model needs them.
    """
    program = plan_of(level)._program(None)
    ahead: dict[fx.Node, int] = {}
    for number, instruction in enumerate(program.instructions):
        if any(isinstance(name, fx.Node) for name in instruction.makes):
            for source in instruction.reads:
                ahead[source] = number

    def look(number: int, environment: dict[object, Tensor]) -> None:
        held: dict[int, list[object]] = {}
        for name, tensor in environment.items():
            if isinstance(tensor, Tensor) and name is not program.graph.input:
                held.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
        for names in held.values():
            if any(isinstance(name, fx.Node) and ahead.get(name, -1) >= number for name in names):
                continue
            owned = environment[names[0]].untyped_storage().nbytes()
            used = sum(environment[name].numel() * environment[name].element_size() for name in names)
            assert owned <= 1.5 * used, (number, names, owned, used)

    watched(program, look, pictures(4))


def test_a_class_token_readout_waits_with_rows_not_with_tokens() -> None:
    """Of an MLP that only the class token is read of, one row is kept."""
    program = unweave.plan(ready(Vit()), pictures(2))._program(None)
    last = [node for node in program.graph.nodes if "gelu" in str(node.target)][-1]
    waiting: list[int] = []

    def look(number: int, environment: dict[object, Tensor]) -> None:
        if number == len(program.instructions) - 1:
            waiting.extend(
                tensor.untyped_storage().nbytes()
                for name, tensor in environment.items()
                if isinstance(name, Value) and name.operand is not None and name.operand.source is last
            )
        if last in environment:
            assert environment[last].shape[1] == 5

    watched(program, look, pictures(4))
    assert all(size <= 4 * 6 * 8 for size in waiting)


def test_the_plan_says_what_a_run_costs() -> None:
    """The peak beside the forward pass is of the size that the plan announces."""
    plan, images = plan_of("token"), pictures(64)
    module = ready(Vit(readout="late"))
    plan.run(images)
    with torch.no_grad():
        plain, _ = allocations(lambda: module(images))
    run, _ = allocations(lambda: plan.run(images))
    announced = 64 * plan.memory_per_image
    assert run - plain <= 2 * announced + 16 * CHUNK
