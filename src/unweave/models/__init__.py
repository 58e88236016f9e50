"""A model id, or any `torch.nn.Module`, becomes a `Model`: what maps images to a representation."""

from unweave.models.library import available, load_model, opened
from unweave.models.measurement import Measurement, Measurements, measurements, search
from unweave.models.model import Model

__all__ = [
    "Measurement",
    "Measurements",
    "Model",
    "available",
    "load_model",
    "measurements",
    "opened",
    "search",
]
