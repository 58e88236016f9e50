"""Every test runs with the shapes and types of the signatures checked (jaxtyping + beartype)."""

import os

import pytest
import torch
from jaxtyping import install_import_hook

# The hook rewrites modules as they are imported: nothing of unweave may be imported before this line.
install_import_hook("unweave", "beartype.beartype")

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps the tests of one family on one worker: they share its plan, which costs more than all runs of it."""
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if family is not None:
            item.add_marker(pytest.mark.xdist_group(str(getattr(family, "name", family))))
