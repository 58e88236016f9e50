"""Linear heads on frozen representations: what they can read, and how far a background misleads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from unweave.pocket.birds import DIFFICULTY, Birds, Difficulty

Images = UInt8[np.ndarray, "scene 64 64 3"]
Features = Float[np.ndarray, "scene dim"]
Classes = Int[np.ndarray, " scene"]


def fitted(features: Features, classes: Classes, *, softness: float = 0.1) -> Pipeline:
    """A linear head that tells classes apart.

    Args:
        features: Representations; each of their dimensions is brought to mean 0 and deviation 1.
        classes: What to tell.
        softness: scikit-learn's `C`: the smaller, the smaller the weights.
    """
    head = make_pipeline(StandardScaler(), LogisticRegression(C=softness, max_iter=1000))
    return head.fit(features, classes)


def accuracy(found: Classes, true: Classes) -> float:
    """Balanced accuracy: the mean over classes of the share that is right; scenes without a class (-1) do not count."""
    return float(np.mean([(found[true == one] == one).mean() for one in np.unique(true[true >= 0])]))


SOFTNESS = 0.04
"""Of the heads that tell birds; chosen together with the birds' difficulty, on validation birds of seed 100."""


@dataclass(frozen=True, eq=False)
class Flock:
    """Birds side by side.

    Attributes:
        images: RGB, 0 ... 255.
        groups: 0 ... 3, see `BirdFactors.group`.
    """

    images: Images
    groups: Classes

    @property
    def kinds(self) -> Classes:
        """0 for land birds, 1 for water birds."""
        return self.groups // 2


def flock(birds: Birds, count: int) -> Flock:
    """The first birds of a supply."""
    scenes = [birds.scene(number) for number in range(count)]
    return Flock(np.stack([scene.image for scene in scenes]), np.array([scene.factors.group for scene in scenes]))


@dataclass(frozen=True, eq=False)
class Trial:
    """Birds to learn from, twice, and birds to be tested on.

    Attributes:
        biased: Where the background tells the bird in 95 % of the scenes.
        balanced: Where it tells nothing.
        test: Balanced, of another split.
    """

    biased: Flock
    balanced: Flock
    test: Flock


def trial(
    seed: int, *, split: str = "test", difficulty: Difficulty = DIFFICULTY, learned: int = 2000, tested: int = 1000
) -> Trial:
    """Draw the birds of one seed."""
    return Trial(
        flock(Birds(seed, "train", difficulty=difficulty), learned),
        flock(Birds(seed, "train", balanced=True, difficulty=difficulty), learned),
        flock(Birds(seed, split, difficulty=difficulty), tested),
    )


def misled(birds: Trial, represent: Callable[[Images], Features], *, softness: float = SOFTNESS) -> dict[str, float]:
    """How a head fares that has learned from biased birds, and the same head that has learned from balanced ones.

    Returns:
        For each, the accuracy of its worst group (`worst biased`, `worst balanced`) and the mean over the four groups.
    """
    features = represent(birds.test.images)
    found: dict[str, float] = {}
    for name, learned in (("biased", birds.biased), ("balanced", birds.balanced)):
        head = fitted(represent(learned.images), learned.kinds, softness=softness)
        right = head.predict(features) == birds.test.kinds
        groups = [float(right[birds.test.groups == group].mean()) for group in range(4)]
        found |= {f"worst {name}": min(groups), f"average {name}": sum(groups) / 4}
    return found
