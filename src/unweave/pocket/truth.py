"""What a component carries, judged by what is known to be in each scene.

On real photographs one can only ask a model of words what a component stands for. In the pocket world every factor is
known, so it can be measured: how much of what a component writes, over many scenes, goes by the object, the colour,
the location. Other ways of naming components can be held against it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.errors import DataError


def explained(
    values: Float[Tensor, "image component dim"], codes: Int[Tensor, " image"]
) -> Float[Tensor, " component"]:
    """The share of each component's variance over the images that lies between the values of a factor.

    Corrected for the number of values (epsilon squared; Kelley, 1935): a component that knows nothing of the factor is
    at 0 on average, and may lie below; one that is the same for all images of a value is at 1. Components that do not
    vary are at 0.

    Args:
        values: Contributions.
        codes: The factor's value in each image; images where it is negative are left out.

    Raises:
        DataError: There are fewer than two values, or no more images than values.
    """
    seen = codes >= 0
    _, groups = codes[seen].unique(return_inverse=True)
    count, kinds = len(groups), int(groups.max()) + 1 if len(groups) else 0
    if kinds < 2 or count <= kinds:
        raise DataError(
            f"A factor with {kinds} values in {count} images explains nothing.",
            cure="give more images, of two values at least",
        )
    rows = values[seen].double()
    rows = rows - rows.mean(0)
    total = rows.square().sum((0, 2))
    sums = rows.new_zeros(kinds, *rows.shape[1:]).index_add_(0, groups, rows)
    between = (sums.square().sum(-1) / groups.bincount()[:, None]).sum(0)
    within = (total - between) / (count - kinds) * (count - 1)
    return torch.where(total > 0, 1 - within / total.clamp_min(1e-300), 0.0)
