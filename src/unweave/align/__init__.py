"""CompAlign: one linear map for each component, into a text space."""

from unweave.align.aligned import Aligned, open_aligned
from unweave.align.aligner import Aligner
from unweave.align.alignment import align
from unweave.align.solvers import Recipe, Solution
from unweave.align.state import Point
from unweave.align.targets import embeddings

__all__ = ["Aligned", "Aligner", "Point", "Recipe", "Solution", "align", "embeddings", "open_aligned"]
