"""CompAlign: one linear map for each component, into a text space."""

from unweave.align.aligner import Aligner
from unweave.align.alignment import align, embeddings
from unweave.align.solvers import Point, Recipe, Solution

__all__ = ["Aligner", "Point", "Recipe", "Solution", "align", "embeddings"]
