"""A `Model`: a module, how images enter it, where its representation is, and which weights it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unweave.graph.original import Original
from unweave.loading import Loading
from unweave.models import preprocessing as preprocessings
from unweave.models.preprocessing import Preprocess, Size
from unweave.models.readout import split
from unweave.models.weights import check_finite, fingerprint


@dataclass(frozen=True, eq=False)
class Model:
    """A vision model, ready to be decomposed.

    Attributes:
        id: What it was loaded as, or what it was called.
        module: The library's or the user's own module, untouched.
        readout: Images `[image, channel, height, width]` to the representation `[image, dim]`. A twin of the module
            (of its image tower, where it has several) with the classifier taken off: its submodules have the module's
            names, its weights are the module's own tensors.
        classifier: Representation to logits; None where there is none, or where no module maps one exactly to the other
            (distilled DeiT classifies its two tokens apart, so their mean does not determine the logits).
        preprocess: One RGB image to `[channel, height, width]`.
        preprocessing: The same in words, ready for JSON.
        input_size: What it takes of one image: channels, height, width; of a clip frames as well.
        loading: How it was loaded; None where it was made of a module.
    """

    id: str
    module: nn.Module
    readout: nn.Module
    classifier: nn.Module | None
    preprocess: Preprocess
    preprocessing: dict[str, Any]
    input_size: Size
    loading: Loading | None = None

    def as_code(self) -> str:
        """The Python that loads it again; a name to fill in for a model that was made of a module."""
        return "model" if self.loading is None else self.loading.as_code()

    def as_options(self, name: str) -> list[str]:
        """The words of a command line that load it again; a word to fill in for a model that was made of a module."""
        return ["MODEL"] if self.loading is None else self.loading.as_options(name)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        preprocess: Preprocess | None = None,
        input_size: Size = (3, 224, 224),
        representation: str | int | None = None,
        classifier: str | Sequence[str] | None = None,
        id: str = "module",
    ) -> Model:
        """Take any module that maps images to a representation or to logits; it is never modified.

        Args:
            module: Returns a tensor; or an output object or mapping that holds `image_embeds`, `logits`,
                `pooler_output` or `last_hidden_state` (transformers); or anything else, with `representation` given.
            preprocess: `PIL image -> tensor of input_size`, as `bands` and `clip` of `unweave.models.preprocessing`
                make one. None: the shorter side is resized to `input_size` (bicubic), the centre is cropped, and the
                channels are normalised with ImageNet's mean and deviation (see `default` there).
            input_size: What the module takes of one image: channels, height, width; of a clip frames as well, before or
                after the channels.
            representation: Field or index of the output that is the representation, where it is not found as above.
            classifier: Path of the submodule (or of several) that makes logits of the representation, such as `head`.
                None: modules with `get_classifier` (timm's) and those that return `logits` are split by themselves; of
                any other module the output is the representation.
            id: What to call it.

        Raises:
            ModelError: The module does not run at this size, cannot be copied, lacks what was named, or returns no
                `[image, dim]`.
            NonFiniteError: A weight is NaN or infinite.
        """
        check_finite(module)
        heads = [classifier] if isinstance(classifier, str) else list(classifier or ())
        parts = split(module, example_for(module, input_size, 1), heads=heads, representation=representation)
        if preprocess is None:
            preprocess, described = preprocessings.default(input_size)
        else:
            described = preprocessings.in_words(preprocess)
        return cls(id, module, parts.body, parts.classifier, preprocess, described, input_size)

    def __post_init__(self) -> None:
        original = Original.of(self.readout)
        if original is not None:
            original.inside(self.module)

    @property
    def weights_hash(self) -> str:
        """The SHA-256 of the readout's state as it is now; reads all weights each time."""
        original = Original.of(self.readout)
        if original is not None:
            original.caught_up()
        return fingerprint(self.readout)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return _kind(self.readout)[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return _kind(self.readout)[1]

    def example(self, batch: int = 2) -> Tensor:
        """Random images of the right size, device and dtype, always the same: `[batch, channel, height, width]`."""
        return example_for(self.readout, self.input_size, batch)

    def __repr__(self) -> str:
        size = " x ".join(str(length) for length in self.input_size)
        head = "no classifier" if self.classifier is None else f"classifier {type(self.classifier).__name__}"
        return f"Model({self.id!r}, {type(self.module).__name__}, {size}, {head})"


def example_for(module: nn.Module, input_size: Size, batch: int) -> Tensor:
    """Standard normal images for a module, always the same: `[batch, channel, height, width]`."""
    device, dtype = _kind(module)
    return torch.randn((batch, *input_size), generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _kind(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    tensors = (tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point())
    first = next(tensors, torch.empty(0))
    return first.device, first.dtype
