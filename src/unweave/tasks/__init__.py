"""What contributions are good for: each task is a function that returns a result."""

from unweave.tasks.ablation import Ablation, ablate
from unweave.tasks.checkpoints import Checkpoint, checkpoint
from unweave.tasks.choice import Choice, Chosen, choose
from unweave.tasks.classifier import Classification, Classifier
from unweave.tasks.debiasing import Debiasing, Ranking, Sides, debias
from unweave.tasks.heatmaps import Highest, heatmap
from unweave.tasks.maps import Heatmaps
from unweave.tasks.retrieval import Retrieval, search
from unweave.tasks.segmentation import segment
from unweave.tasks.segments import Segmentation

__all__ = [
    "Ablation",
    "Checkpoint",
    "Choice",
    "Chosen",
    "Classification",
    "Classifier",
    "Debiasing",
    "Heatmaps",
    "Highest",
    "Ranking",
    "Retrieval",
    "Segmentation",
    "Sides",
    "ablate",
    "checkpoint",
    "choose",
    "debias",
    "heatmap",
    "search",
    "segment",
]
