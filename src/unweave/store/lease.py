"""A lease: the right to work on a part of a store, which is lost by whoever stops to breathe."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType

import psutil

from unweave.errors import StoreError
from unweave.notation import parse_json
from unweave.store.place import Place

BREATH = 10.0
"""Seconds between two signs of life."""

PATIENCE = 60.0
"""Seconds without a sign of life after which a lease is void."""

_FOLDER = "leases"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        host: The machine.
        process: Its number there.
        since: When it began, in seconds since 1970.
        alive: Its last sign of life.
    """

    host: str
    process: int
    since: float
    alive: float

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.process} on {self.host}, since {began}"

    @property
    def lives(self) -> bool:
        """Whether it still works, as far as can be known."""
        if self.host == socket.gethostname() and not _runs(self.process, self.since):
            return False
        return time.time() - self.alive < PATIENCE


def _runs(process: int, since: float) -> bool:
    """Whether a process of this machine is still the one that it was then."""
    try:
        running = psutil.Process(process)
        return bool(running.status() != psutil.STATUS_ZOMBIE and running.create_time() <= since + 1)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


class Lease:
    """Held while it is entered.

        with Lease(place, "1-of-4"): ...

    Args:
        place: The store.
        name: Of the part.
        against: Names of other parts that must not be worked on meanwhile, among those that are.
        wait: Seconds to wait for others to finish.

    Raises:
        StoreError: Somebody else works on it; the message names them.
    """

    def __init__(
        self, place: Place, name: str, *, against: Callable[[str], bool] = lambda other: False, wait: float = 0.0
    ) -> None:
        self._place, self._name, self._against, self._wait = place, name, against, wait
        self._over = threading.Event()
        self._since = time.time()
        self._breathing: threading.Thread | None = None

    def __enter__(self) -> Lease:
        until = time.monotonic() + self._wait
        while (holder := self._taken()) is not None:
            if time.monotonic() >= until:
                raise StoreError(
                    f"The store is being written by {holder[1]} (part {holder[0]}).",
                    where=str(self._place),
                    cure="wait until it has finished, or stop it; `--wait SECONDS` waits",
                )
            time.sleep(0.2)
        self._breathing = threading.Thread(target=self._breathe, daemon=True, name="unweave-lease")
        self._breathing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        assert self._breathing is not None
        self._breathing.join()
        self._place.remove(f"{_FOLDER}/{self._name}.json")

    def _taken(self) -> tuple[str, Holder] | None:
        """Who else is at work, or None once this lease is held."""
        for other, holder in holders(self._place).items():
            if not holder.lives:
                self._place.remove(f"{_FOLDER}/{other}.json")
            elif other == self._name or self._against(other):
                return other, holder
        said = self._said()
        if self._place.claim(f"{_FOLDER}/{self._name}.json", said):
            time.sleep(0.05)  # somebody who found the same void lease may just have removed this one instead
            if holders(self._place).get(self._name) == Holder(**parse_json(said)):
                return None
        return self._name, holders(self._place).get(self._name, Holder("another machine", 0, time.time(), time.time()))

    def _said(self) -> bytes:
        return json.dumps(asdict(Holder(socket.gethostname(), os.getpid(), self._since, time.time()))).encode()

    def _breathe(self) -> None:
        while not self._over.wait(BREATH):
            try:
                self._place.write(f"{_FOLDER}/{self._name}.json", self._said())
            except StoreError:  # the work itself will say what is wrong
                continue


def holders(place: Place) -> dict[str, Holder]:
    """Who works on which part of a store, or did until they stopped without saying so."""
    held = {}
    for name in place.sizes(_FOLDER):
        if name.startswith(".") or not name.endswith(".json"):
            continue
        try:
            held[name.removesuffix(".json")] = Holder(**parse_json(place.read(f"{_FOLDER}/{name}")))
        except (StoreError, ValueError, TypeError):  # it was just given back
            continue
    return held
