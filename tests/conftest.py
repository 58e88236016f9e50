"""Every test runs with the shapes and types of the signatures checked (jaxtyping + beartype)."""

import os

import torch
from jaxtyping import install_import_hook

# The hook rewrites modules as they are imported: nothing of unweave may be imported before this line.
install_import_hook("unweave", "beartype.beartype")

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))
