"""How each network of the zoo learns, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unweave.pocket.views import View

SAME = View()
"""Views for learning from labels and captions: what is said of a scene stays true."""

OTHER = View(zoom=(0.4, 1.0), light=0.4, colour=0.4, grey=0.1, blur=0.2)
"""Views for learning without labels: far enough apart that only the scene is common to them."""


@dataclass(frozen=True)
class Recipe:
    """How a network learns.

    Attributes:
        objective: What it learns from: `labels`, `captions`, or `views` of the same scene alone.
        steps: How many batches it sees.
        batch: Scenes in each.
        rate: How fast matrices learn, at most.
        fall: The last part of the steps, in which the rate falls to zero and no patch is dropped.
        dropped: The share of patches that a ViT does not see until then (Li et al., 2023): twice the scenes an hour.
        easy: The share of easy scenes at the start.
        easing: The number of steps over which that share falls to zero.
        view: How scenes are varied.
        seed: Of everything random.
    """

    objective: Literal["labels", "captions", "views"]
    steps: int
    batch: int = 128
    rate: float = 0.02
    fall: float = 0.25
    dropped: float = 0.5
    easy: float = 0.8
    easing: int = 500
    view: View = SAME
    seed: int = 0

    @property
    def top(self) -> int:
        """The step from which the rate falls."""
        return self.steps - round(self.fall * self.steps)

    def rate_share(self, step: int) -> float:
        """The part of the full rate at a step: it rises over 100 steps, stays, falls."""
        return min(1.0, (step + 1) / 100, (self.steps - step) / (self.steps - self.top + 1))

    def easy_share(self, step: int) -> float:
        """The part of a batch that is easy."""
        return self.easy * max(0.0, 1 - step / self.easing)

    def dropped_share(self, step: int) -> float:
        """The part of the patches that is dropped."""
        return self.dropped if step < self.top else 0.0


RECIPES = {
    "clip": Recipe("captions", steps=1800),
    "deit": Recipe("labels", steps=1200),
    "dino": Recipe("views", steps=300, view=OTHER, easy=0.0),
    "dinov2": Recipe("views", steps=300, view=OTHER, easy=0.0, seed=1),
    "swin": Recipe("labels", steps=450, dropped=0.0),
    "maxvit": Recipe("labels", steps=350, dropped=0.0),
}
