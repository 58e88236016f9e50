"""Figures: pictures of results, drawn from plain numbers and shown or saved by the caller.

They use matplotlib's objects and not its global state, so that they can be drawn in any thread beside anyone's own
plots.
"""

from unweave.figures.curves import Curve, curves_figure
from unweave.figures.factors import factors_figure
from unweave.figures.heatmap import MapRow, heatmap_figure, maps_figure
from unweave.figures.names import NamedComponent, names_figure
from unweave.figures.retrieval import RetrievedRow, retrieval_figure
from unweave.figures.share import save_figure, share_figure

__all__ = [
    "Curve",
    "MapRow",
    "NamedComponent",
    "RetrievedRow",
    "curves_figure",
    "factors_figure",
    "heatmap_figure",
    "maps_figure",
    "names_figure",
    "retrieval_figure",
    "save_figure",
    "share_figure",
]
