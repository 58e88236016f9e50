"""Any vision model's image representation as an exact sum of named components.

    model = unweave.load_model("timm/vit_base_patch16_224.dino")
    plan = unweave.plan(model)             # once per model, from its computational graph
    contributions = plan.run(images)       # [image, component, dim], sums to the representation

The verbs are functions of the same names as on the command line: `decompose`, `extract`, `align`, `score`, `label`,
`ablate`, `search`, `debias`, `heatmap`, `segment`, `explain`, `reproduce`. Each returns a result that shows, draws and
saves itself (see `unweave.results`).

Names are imported when first used, so that `import unweave` and the command line's `--help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unweave import errors as errors
    from unweave import regions as regions
    from unweave.alignment import Aligner as Aligner
    from unweave.alignment import Recipe as Recipe
    from unweave.alignment import align as align
    from unweave.alignment import aligned as aligned
    from unweave.attribution import Names as Names
    from unweave.attribution import Scores as Scores
    from unweave.attribution import label as label
    from unweave.attribution import score as score
    from unweave.components import Component as Component
    from unweave.contributions import Contributions as Contributions
    from unweave.decomposition import Plan as Plan
    from unweave.decomposition import RegionPlan as RegionPlan
    from unweave.decomposition import explain as explain
    from unweave.decomposition import plan as plan
    from unweave.device import device_of as device_of
    from unweave.extraction import Settings as Settings
    from unweave.extraction import decompose as decompose
    from unweave.extraction import extract as extract
    from unweave.figures import save_figure as save_figure
    from unweave.images import ImageSet as ImageSet
    from unweave.images import find_images as find_images
    from unweave.images import open_images as open_images
    from unweave.images import sample_images as sample_images
    from unweave.loading import Loading as Loading
    from unweave.models import Model as Model
    from unweave.models import load_model as load_model
    from unweave.reproduction import reproduce as reproduce
    from unweave.results import Result as Result
    from unweave.store import Store as Store
    from unweave.store import open_store as open_store
    from unweave.tasks import Ablation as Ablation
    from unweave.tasks import Choice as Choice
    from unweave.tasks import Classification as Classification
    from unweave.tasks import Debiasing as Debiasing
    from unweave.tasks import Heatmaps as Heatmaps
    from unweave.tasks import Highest as Highest
    from unweave.tasks import Ranking as Ranking
    from unweave.tasks import Retrieval as Retrieval
    from unweave.tasks import Segmentation as Segmentation
    from unweave.tasks import Sides as Sides
    from unweave.tasks import ablate as ablate
    from unweave.tasks import checkpoint as checkpoint
    from unweave.tasks import search as search
    from unweave.tasks import segment as segment
    from unweave.tasks.debiasing import debias as debias
    from unweave.tasks.heatmaps import heatmap as heatmap
    from unweave.text import TextSpace as TextSpace
    from unweave.text import read_templates as read_templates
    from unweave.text import text_space as text_space
    from unweave.view import View as View

__version__ = "0.1.0"

_HOMES = {
    "Ablation": "unweave.tasks",
    "Aligner": "unweave.alignment",
    "Choice": "unweave.tasks",
    "Classification": "unweave.tasks",
    "Component": "unweave.components",
    "Contributions": "unweave.contributions",
    "Debiasing": "unweave.tasks",
    "Heatmaps": "unweave.tasks",
    "Highest": "unweave.tasks",
    "ImageSet": "unweave.images",
    "Loading": "unweave.loading",
    "Model": "unweave.models",
    "Names": "unweave.attribution",
    "Plan": "unweave.decomposition",
    "Ranking": "unweave.tasks",
    "Recipe": "unweave.alignment",
    "RegionPlan": "unweave.decomposition",
    "Result": "unweave.results",
    "Retrieval": "unweave.tasks",
    "Scores": "unweave.attribution",
    "Segmentation": "unweave.tasks",
    "Settings": "unweave.extraction",
    "Sides": "unweave.tasks",
    "Store": "unweave.store",
    "TextSpace": "unweave.text",
    "View": "unweave.view",
    "ablate": "unweave.tasks",
    "align": "unweave.alignment",
    "aligned": "unweave.alignment",
    "checkpoint": "unweave.tasks",
    "debias": "unweave.tasks",
    "decompose": "unweave.extraction",
    "device_of": "unweave.device",
    "explain": "unweave.decomposition",
    "extract": "unweave.extraction",
    "find_images": "unweave.images",
    "heatmap": "unweave.tasks",
    "label": "unweave.attribution",
    "load_model": "unweave.models",
    "open_images": "unweave.images",
    "open_store": "unweave.store",
    "plan": "unweave.decomposition",
    "read_templates": "unweave.text",
    "reproduce": "unweave.reproduction",
    "sample_images": "unweave.images",
    "save_figure": "unweave.figures",
    "score": "unweave.attribution",
    "search": "unweave.tasks",
    "segment": "unweave.tasks",
    "text_space": "unweave.text",
}

_MODULES = ("errors", "regions")

__all__ = [*_MODULES, *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"unweave.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'unweave' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
