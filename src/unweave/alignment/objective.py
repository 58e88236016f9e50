"""CompAlign's objective (method: one linear map for each component, fitted on images alone).

    minimise over W_i, b    mean over images of [ 1 - cos( sum_i c_i W_i + b, t ) ]  +  weight * sum_i penalty(W_i)

`t` is the image's embedding in the text space. The penalty keeps each map near an isometry, so that the sizes of
contributions relative to each other survive. Where a component's width D differs from the space's, an isometry has the
identity on the smaller side.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

Form = Literal["mean-squared", "frobenius"]
"""`mean-squared`: the mean of the squared entries of the defect, as in the published code; `frobenius`: its norm, as in
the paper's equation.
"""


def cosine_loss(aligned: Float[Tensor, "image dim"], target: Float[Tensor, "image dim"]) -> Float[Tensor, ""]:
    """One less the mean cosine."""
    return 1 - cosine_similarity(aligned, target, dim=-1).mean()


def defect(maps: Float[Tensor, "component width dim"]) -> Float[Tensor, "component side side"]:
    """How far each map is from an isometry: its Gram matrix on the smaller side, less the identity."""
    gram = maps @ maps.mT if maps.shape[1] <= maps.shape[2] else maps.mT @ maps
    return gram - torch.eye(gram.shape[-1], dtype=maps.dtype, device=maps.device)


def penalties(maps: Float[Tensor, "component width dim"], form: Form) -> Float[Tensor, " component"]:
    """The penalty of each map."""
    found = defect(maps)
    if form == "mean-squared":
        return found.square().mean((1, 2))
    return torch.linalg.matrix_norm(found)


def objective(
    contributions: Float[Tensor, "image component width"],
    maps: Float[Tensor, "component width dim"],
    bias: Float[Tensor, " dim"],
    target: Float[Tensor, "image dim"],
    *,
    weight: float = 1.0,
    form: Form = "mean-squared",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Both terms, the second with its weight."""
    aligned = torch.einsum("ncw,cwd->nd", contributions, maps) + bias
    return cosine_loss(aligned, target), weight * penalties(maps, form).sum()
