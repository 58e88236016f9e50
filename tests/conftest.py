"""Every test runs with the shapes and types of the signatures checked (jaxtyping + beartype).

But those of the core, which are called a million times: with them checked a plan takes twice as long, and its first run
twenty times. `test_signatures.py` runs the core with all of them checked.
"""

import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

CORE = ("adjoint", "decomposition", "graph", "operations", "structure")
PACKAGE = Path(str(find_spec("unweave").origin)).parent  # type: ignore[union-attr]
CHECKED = [f"unweave.{path.stem}" for path in PACKAGE.iterdir() if path.stem not in CORE and path.stem[0] not in "._"]
CHECKED += ["unweave.decomposition.planning", "unweave.decomposition.regions"]  # what users call of it

# The hook rewrites modules as they are imported: nothing of unweave may be imported before this line.
install_import_hook(CHECKED, "beartype.beartype")

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of one family on one worker: they share its plan, which costs more than all runs of it."""
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if family is not None:
            item.add_marker(pytest.mark.xdist_group(str(getattr(family, "name", family))))


@pytest.fixture(autouse=True, scope="session")
def shipped_networks() -> Iterator[list[Any]]:
    """Networks that are shipped are loaded and captured once in a process: nothing that reads them changes them."""
    from unweave import Loading
    from unweave.models import library
    from unweave.pocket import shelf

    place = shelf.WEIGHTS
    load, loaded = library._loaded, []

    @cache
    def once(id: str, device: str, dtype: torch.dtype) -> Any:
        loaded.append(load(Loading(id), device, dtype))
        return loaded[-1]

    def known(loading: Loading, device: Any, dtype: torch.dtype) -> Any:
        shipped = loading == Loading(loading.id) and loading.id.startswith("pocket/") and place == shelf.WEIGHTS
        return once(loading.id, str(device), dtype) if shipped else load(loading, device, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_loaded", known)
        yield loaded


@pytest.fixture(autouse=True)
def shipped_networks_stay_as_they_are(shipped_networks: list[Any]) -> Iterator[None]:
    """A test that changes a network which others read fails."""

    def written() -> list[int]:
        return [
            weight._version for model in shipped_networks for weight in model.module.state_dict(keep_vars=True).values()
        ]

    before, known = written(), len(shipped_networks)
    yield
    after = written()[: len(before)]
    assert after == before, f"one of the {known} shipped networks was changed"
