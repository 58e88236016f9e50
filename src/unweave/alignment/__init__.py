"""CompAlign: one linear map for each component, into a text space."""

from unweave.alignment.aligner import Aligner
from unweave.alignment.fitting import align
from unweave.alignment.solvers import Recipe, Solution
from unweave.alignment.spaces import Space, aligned, aligner_of, space_of, view_card
from unweave.alignment.state import Point
from unweave.alignment.targets import embeddings

__all__ = [
    "Aligner",
    "Point",
    "Recipe",
    "Solution",
    "Space",
    "align",
    "aligned",
    "aligner_of",
    "embeddings",
    "space_of",
    "view_card",
]
