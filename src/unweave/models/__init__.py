"""A model id, or any `torch.nn.Module`, becomes a `Model`: module, preprocessing, representation, classifier, hash of its weights."""

from unweave.models.library import available, load_model
from unweave.models.model import Model

__all__ = ["Model", "available", "load_model"]
