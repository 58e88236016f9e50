"""A `Model`: a module, how images enter it, where its representation is, and which weights it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unweave.graph.finite import check_weights
from unweave.graph.original import Original
from unweave.loading import Loading
from unweave.models import preprocessing as preprocessings
from unweave.models.forward import check_supported, device_and_dtype, image_argument, unwrapped
from unweave.models.output import Pool
from unweave.models.preprocessing import Preprocess, Size
from unweave.models.readout import split
from unweave.models.weights import fingerprint


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
        notes: What was assumed, chosen or left out while it was made, in sentences.
    """

    id: str
    module: nn.Module
    readout: nn.Module
    classifier: nn.Module | None
    preprocess: Preprocess
    preprocessing: dict[str, Any]
    input_size: Size
    loading: Loading | None = None
    notes: tuple[str, ...] = ()

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
        input_size: Sequence[int] = (3, 224, 224),
        representation: str | int | None = None,
        pool: Pool | None = None,
        images: str | None = None,
        classifier: str | Sequence[str] | None = None,
        id: str = "module",
    ) -> Model:
        """Take any module that maps images to a representation or to logits; it is never modified.

        Args:
            module: Returns a tensor; or an output object or mapping that holds `image_embeds`, `logits`,
                `pooler_output` or `last_hidden_state` (transformers); or any other mapping, sequence or record of
                tensors, of which the first `[image, dim]` is taken. What `torch.compile` and `DataParallel` wrap is
                taken out of them.
            preprocess: `PIL image -> tensor of input_size`, as `bands` and `clip` of `unweave.models.preprocessing`
                make one. None: the shorter side is resized to `input_size` (bicubic), the centre is cropped, and the
                channels are normalised with ImageNet's mean and deviation (see `default` there).
            input_size: What the module takes of one image: channels, height, width; of a clip frames as well, before or
                after the channels.
            representation: Field or index of the output that is the representation, where it is not found as above;
                with dots between, a place further in (`encoder.0`).
            pool: How tokens `[image, token, dim]` or a map `[image, dim, height, width]` become one vector: `mean` over
                all that come from the image, or the `class` token. None: of tokens the class token, or the mean where
                there is none; a map is refused. `notes` says what was taken.
            images: The argument of its forward that takes the images, where its signature does not tell.
            classifier: Path of the submodule (or of several) that makes logits of the representation, such as `head`.
                None: modules with `get_classifier` (timm's) and those that return `logits` are split by themselves; of
                any other module the output is the representation.
            id: What to call it.

        Raises:
            ModelError: The module does not run at this size, cannot be copied, lacks what was named, or returns no
                `[image, dim]`.
            NonFiniteError: A weight is NaN or infinite.
        """
        inner, size = unwrapped(module), tuple(input_size)
        check_supported(inner)
        check_weights(inner)
        parts = split(
            inner,
            example_for(inner, size, 1, images),
            heads=[classifier] if isinstance(classifier, str) else list(classifier or ()),
            representation=representation,
            pool=pool,
            images=images,
        )
        if preprocess is None:
            preprocess, described = preprocessings.default(size)
        else:
            described = preprocessings.in_words(preprocess)
        return cls(id, module, parts.body, parts.classifier, preprocess, described, size, notes=parts.notes)

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
        return device_and_dtype(self.readout)[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the images: that of the weights that meet them."""
        return device_and_dtype(self.readout, self.input_size)[1]

    def example(self, batch: int = 2) -> Tensor:
        """Random images of the right size, device and dtype, always the same: `[batch, channel, height, width]`."""
        return example_for(self.readout, self.input_size, batch)

    def __repr__(self) -> str:
        size = " x ".join(str(length) for length in self.input_size)
        head = "no classifier" if self.classifier is None else f"classifier {type(self.classifier).__name__}"
        return "\n  ".join([f"Model({self.id!r}, {type(self.module).__name__}, {size}, {head})", *self.notes])


def example_for(module: nn.Module, input_size: Sequence[int], batch: int, images: str | None = None) -> Tensor:
    """Standard normal images for a module, always the same: `[batch, channel, height, width]`.

    Args:
        module: On its device, and of the type of the layer that meets them.
        input_size: Of one image.
        batch: How many.
        images: The argument of its forward that takes them, where its signature does not tell.
    """
    device, dtype = device_and_dtype(module, input_size, image_argument(module, images))
    return torch.randn((batch, *input_size), generator=torch.Generator().manual_seed(0)).to(device, dtype)
