"""What may be asked of a module's weights: which are they, and random ones that leave no path dead.

Random weights serve offline use and tests, and there a library's own initialisation hides mistakes: LayerScale of
1e-6, biases and relative positions of zero or norms of one make whole branches vanish from the sum. `randomise` keeps
what the library made where it is alive and replaces the rest at scales at which deep models stay finite and of order
one.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

_MULTIPLIERS = ("weight", "gamma", "gain", "scale", "ls", "lambda")
"""How the names of parameters that multiply begin or end; a vector of zeros under another name is added."""


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise, in place, every parameter and batch statistic that is constant or nearly zero.

    Matrices and filters too small to carry a signal, or large enough to blow it up layer by layer, are scaled to a
    gain of one. Vectors: what is near one (norms) varies by a tenth; a multiplier near zero (LayerScale, a norm that
    starts at zero) becomes 0.1 to 1; what is added becomes normal, with a deviation of 0.02 for biases and 0.1 for
    tokens, positions and position tables. Batch means are normal with deviation 0.1, batch variances lie in 0.5 to 1.5.
    No random state but the function's own is used.

    Args:
        module: Changed in place.
        seed: The same seed gives the same weights.

    Returns:
        The module.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator).mul(high - low).add(low).to(like)

    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            size = float(parameter.abs().max())
            constant = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
            matrix = name.endswith("weight") and parameter.ndim > 1 and not isinstance(part, nn.Embedding)
            if matrix:
                fan_in = math.prod(parameter.shape[1:])
                gain = float(parameter.square().mean().sqrt()) * math.sqrt(fan_in)
                if gain < 1e-3 or constant:
                    parameter.copy_(normal(parameter) / math.sqrt(fan_in))
                elif not 0.3 <= gain <= 1:
                    parameter.div_(gain)
            elif size >= 0.05 and (constant or parameter.numel() == 1):
                parameter.mul_(1 + 0.1 * normal(parameter))
            elif size < 0.05 and (constant or size < 1e-3 or parameter.numel() == 1):
                multiplies = (size > 0 and constant) or name.startswith(_MULTIPLIERS) or name.endswith(_MULTIPLIERS)
                deviation = 0.02 if name.endswith("bias") else 0.1
                parameter.copy_(uniform(parameter, 0.1, 1.0) if multiplies else deviation * normal(parameter))
        mean, variance = getattr(part, "running_mean", None), getattr(part, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            mean.copy_(0.1 * normal(mean))
            variance.copy_(uniform(variance, 0.5, 1.5))
    return module


def fingerprint(module: nn.Module) -> str:
    """The SHA-256 of a module's state: sorted names with their dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
