"""CompAttribute: what components have to do with features, and what they stand for in words."""

from unweave.attribution.names import Name, Names, Naming, label
from unweave.attribution.scores import Scores, score

__all__ = ["Name", "Names", "Naming", "Scores", "label", "score"]
