"""Launchers: whose hands compute the blocks of an extraction. All of them write the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from unweave.errors import ArgumentError, DeviceError, UnweaveError
from unweave.extraction.extractor import Extractor, OnImages
from unweave.store import Manifest, Place, writer

_ATTEMPTS = 3
"""How often a block is given to an actor before it counts as impossible."""


def here(extractor: Extractor, blocks: list[int], workers: int | None, on_images: OnImages) -> None:
    """In this process."""
    extractor.run(blocks, on_images)


def processes(extractor: Extractor, blocks: list[int], workers: int | None, on_images: OnImages) -> None:
    """In several processes of this machine, each with a model of its own, and its share of the cores or a GPU.

    Raises:
        DeviceError: One of them failed; the message says why. What the others have done is kept.
    """
    count = min(_hands(extractor, workers), len(blocks))
    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    team = [
        context.Process(
            target=_process,
            args=(extractor.place.url, blocks[number::count], _device(extractor, number), count, said),
            kwargs={"on_error": extractor.on_error},
            daemon=True,
        )
        for number in range(count)
    ]
    for process in team:
        process.start()
    try:
        while any(process.is_alive() for process in team) or not said.empty():
            if said.empty():
                time.sleep(0.05)
                continue
            word = said.get()
            if isinstance(word, str):
                raise DeviceError(f"A process failed. {word}", where=str(extractor.place))
            on_images(word)
    finally:
        for process in team:
            process.terminate()
            process.join()
    missing = sorted(set(blocks) - writer.done(extractor.place))
    if missing:
        raise DeviceError(
            f"A process ended before its work was done: block {missing[0]} is not there.",
            where=str(extractor.place),
            cure="run the same command again, with fewer workers if the memory was short",
        )


def _process(url: str, blocks: list[int], device: str, count: int, said: Any, *, on_error: str) -> None:
    parent = multiprocessing.parent_process()

    def on_images(number: int) -> None:
        if parent is not None and not parent.is_alive():
            os._exit(1)  # nobody waits for it, and whoever comes next should find the store free
        said.put(number)

    try:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
        place = Place(url)
        Extractor(place, Manifest.load(place), device=device, on_error=on_error).run(blocks, on_images)
    except UnweaveError as error:
        said.put(str(error))
    except KeyboardInterrupt:
        pass


def ray(extractor: Extractor, blocks: list[int], workers: int | None, on_images: OnImages) -> None:
    """On a Ray cluster, or on a local Ray where there is none: actors with one model each, which are given blocks.

    Only numbers of blocks and of images travel; images are read, and blocks written, where they are computed, so the
    images and the store must be reachable from there. An actor that is lost is replaced, and its block given again.

    Raises:
        ArgumentError: Ray is not installed, an actor failed, or a block was lost several times.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray as cluster
    except ImportError as error:
        raise ArgumentError("Ray is not installed.", cure="pip install 'unweave[ray]'") from error
    place = extractor.place  # actors have working folders of their own
    url = place.url if place.local is None else str(place.local.resolve())
    started = not cluster.is_initialized()
    if started:
        cluster.init(
            address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    try:
        count = min(_hands(extractor, workers), len(blocks))
        device = _device(extractor, 0).partition(":")[0]
        cores = max(1, int(cluster.cluster_resources().get("CPU", 1)) // count)
        actor = cluster.remote(num_cpus=cores, num_gpus=int(device == "cuda"))(_Actor)
        _dealt(cluster, lambda: actor.remote(url, device, extractor.on_error, cores), blocks, count, on_images)
    finally:
        if started:
            cluster.shutdown()


class _Actor:
    """An extractor somewhere on a cluster."""

    def __init__(self, url: str, device: str, on_error: str, cores: int) -> None:
        torch.set_num_threads(cores)
        place = Place(url)
        self.extractor = Extractor(place, Manifest.load(place), device=device, on_error=on_error)

    def block(self, number: int) -> int:
        """Compute a block; says how many images it had."""
        counts: list[int] = []
        self.extractor.run([number], counts.append)
        return sum(counts)

    def process(self) -> int:
        """The number of its process."""
        return os.getpid()


def _dealt(cluster: Any, hired: Callable[[], Any], blocks: list[int], count: int, on_images: OnImages) -> None:
    waiting, attempts = deque(blocks), dict.fromkeys(blocks, 0)
    idle = [hired() for _ in range(count)]
    working: dict[Any, tuple[Any, int]] = {}
    while waiting or working:
        while waiting and idle:
            actor, block = idle.pop(), waiting.popleft()
            attempts[block] += 1
            working[actor.block.remote(block)] = actor, block
        (ready, *_), _ = cluster.wait(list(working), num_returns=1)
        actor, block = working.pop(ready)
        try:
            on_images(cluster.get(ready))
            idle.append(actor)
        except cluster.exceptions.RayActorError as error:
            if attempts[block] == _ATTEMPTS:
                raise DeviceError(
                    f"Block {block} was lost with its actor {_ATTEMPTS} times: {error}",
                    cure="look at the machine's memory; use fewer workers or a smaller batch",
                ) from error
            waiting.appendleft(block)
            idle.append(hired())
        except cluster.exceptions.RayTaskError as error:
            if isinstance(error.cause, UnweaveError):
                raise error.cause from None
            raise


def _hands(extractor: Extractor, workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise ArgumentError(f"{workers} workers do nothing.", cure="use 1 or more")
    cuda = _device(extractor, 0).startswith("cuda")
    return workers or (torch.cuda.device_count() if cuda else 2)


def _device(extractor: Extractor, number: int) -> str:
    example = extractor.device
    return f"cuda:{number % torch.cuda.device_count()}" if example.startswith("cuda") else example


LAUNCHERS: dict[str, Callable[[Extractor, list[int], int | None, OnImages], None]] = {
    "here": here,
    "processes": processes,
    "ray": ray,
}
