"""How benchmarks measure: two calls in turn in one process, and memory to the byte.

On a shared machine seconds drift by tens of percent within a minute, but they drift for both calls alike. So two calls
are timed in turn (A B A B ...), each pair gives one ratio, and the median of the ratios is what is reported.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Two calls timed in turn.

    Attributes:
        plain, other: Seconds of each call, in the order of the rounds.
    """

    plain: tuple[float, ...]
    other: tuple[float, ...]


def in_turn(plain: Call, other: Call, device: torch.device, *, repeats: int, seconds: float) -> Timing:
    """Times two calls in turn; both have run before. Stops after a round once `seconds` have passed."""
    times: tuple[list[float], list[float]] = ([], [])
    start = perf_counter()
    while len(times[0]) < repeats and (not times[0] or perf_counter() - start < seconds):
        for call, own in zip((plain, other), times, strict=True):
            own.append(seconds_of(call, device))
    return Timing(tuple(times[0]), tuple(times[1]))


def seconds_of(call: Call, device: torch.device) -> float:
    """How long one call takes, its work on the device included."""
    _wait(device)
    start = perf_counter()
    call()
    _wait(device)
    return perf_counter() - start


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most memory that a call holds at once beyond what was held before it, its result included.

    On the CPU this is the running sum of every allocation and release that torch makes, as its profiler records them;
    on CUDA the allocator's own peak.
    """
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        _wait(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        result = call()
    del result
    events = (event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]")
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def free_bytes(device: torch.device) -> int:
    """Memory that can be had."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return 2**62


def machine(device: torch.device) -> str:
    """What the figures were measured on, in one line."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{chip}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device.type}, float32"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return median(values), min(values), max(values)


def _processor() -> str:
    try:
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return lines[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
