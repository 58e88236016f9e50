"""Any vision model's image representation as an exact sum of named components.

    model = unweave.load_model("timm/vit_base_patch16_224.dino")
    plan = unweave.plan(model)             # once per model, from its computational graph
    contributions = plan.run(images)       # [image, component, dim], sums to the representation

Names are imported when first used, so that `import unweave` and the command line's `--help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unweave import errors as errors
    from unweave.components import Component as Component
    from unweave.contributions import Contributions as Contributions
    from unweave.decomposition import decompose as decompose
    from unweave.decomposition import explain as explain
    from unweave.decomposition import plan as plan
    from unweave.decomposition import score as score
    from unweave.extraction import extract as extract
    from unweave.images import open_images as open_images
    from unweave.models import Model as Model
    from unweave.models import load_model as load_model
    from unweave.store import Store as Store
    from unweave.store import open_store as open_store
    from unweave.text import TextSpace as TextSpace
    from unweave.text import text_space as text_space

__version__ = "0.1.0"

_HOMES = {
    "Component": "unweave.components",
    "Contributions": "unweave.contributions",
    "Model": "unweave.models",
    "Store": "unweave.store",
    "TextSpace": "unweave.text",
    "decompose": "unweave.decomposition",
    "explain": "unweave.decomposition",
    "extract": "unweave.extraction",
    "load_model": "unweave.models",
    "open_images": "unweave.images",
    "open_store": "unweave.store",
    "plan": "unweave.decomposition",
    "score": "unweave.decomposition",
    "text_space": "unweave.text",
}

__all__ = ["errors", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("unweave.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'unweave' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
