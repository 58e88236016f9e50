"""Surgery: mean ablation written into a model's own weights.

    edit = mean_ablated(model, ["blocks.5.attn.head.0", "blocks.4.mlp"], batches)
    edit.state                       # the weights that change, by their names in model.module.state_dict()
    debiased = edit.apply()          # a Model; the one that was given is as it was
    edit.save("debiased.safetensors")

A mean-ablated component writes the same into the residual stream whatever the image. What is the same for every image
can be a bias, so the ablated model is a checkpoint of the same architecture:

* for a *head*, with W its slice of the output projection and m the mean of its output: W becomes 0, and the bias gains
  W m;
* for an *MLP or convolution branch*, or all heads of a layer: the last affine operation of the branch (linear layer,
  convolution, or norm with weight and bias) gets weight 0, and its mean output as bias.

This is the **total** intervention: all later layers see the constant, and answer to it. The **direct** one, which the
decomposition makes (a contribution is replaced by its mean, and everything else held), is no function of weights. The
two are the same where nothing reads the component but the representation, linearly.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

import unweave
from unweave.components import Component, Selection, select
from unweave.decomposition.branches import Walk
from unweave.decomposition.pieces import Job
from unweave.decomposition.program import Program
from unweave.decomposition.walk import walk
from unweave.errors import ArgumentError, DataError, ModelError, NonFiniteError, StoreError
from unweave.files.pair import Kind, write_pair
from unweave.graph.following import follow, graph_of
from unweave.graph.graph import operation
from unweave.graph.interpret import ValueOf, applied, interpret
from unweave.models import Model
from unweave.surgery.means import Average, readings
from unweave.surgery.outlets import Outlet, Refused, known, outlets

KIND = Kind("edit", "unweave edit", 1, "make the edit again")


@dataclass(frozen=True, eq=False)
class Cut:
    """Components whose output is replaced by a constant, at one operation.

    Attributes:
        components: Which.
        module: The operation's module.
        operation: `aten.linear`.
        weight, bias: The names of what changes, in the module's state.
        mean: What is put in their place: the mean of the operation's input channels that are theirs, `[channel]`; or of
            its whole output.
        whole: Which of the two.
    """

    components: tuple[Component, ...]
    module: str
    operation: str
    weight: str
    bias: str
    mean: Float[Tensor, " channel"]
    whole: bool


@dataclass(frozen=True, eq=False)
class Edit:
    """A mean ablation, as weights.

    Attributes:
        model: The model that it is made for; never changed.
        state: The tensors that change, by their names in `model.module.state_dict()`.
        cuts: Where components are replaced by what, in execution order.
        refused: Components that weights alone cannot ablate, and why.
        average: How means were taken over tokens (see `mean_ablated`).
        images: How many images the means are over.
        source: What those images are, if said.
    """

    model: Model
    state: dict[str, Tensor] = field(repr=False)
    cuts: tuple[Cut, ...]
    refused: tuple[Refused, ...]
    average: Average
    images: int
    source: str | None
    _walk: Walk = field(repr=False)
    _outlets: tuple[Outlet, ...] = field(repr=False)

    @property
    def expressed(self) -> tuple[Component, ...]:
        """The components that the weights ablate, in execution order of the operations."""
        return tuple(component for cut in self.cuts for component in cut.components)

    def apply(self) -> Model:
        """The model with the weights edited: a whole copy, which shares nothing that can be changed with the original.

        Memory: the model's weights once more.

        Raises:
            ModelError: The module holds something that Python cannot copy.
        """
        parts = (self.model.module, self.model.readout, self.model.classifier)
        memo: dict[int, Any] = {}
        for part in (own for module in parts if module is not None for own in module.modules()):
            for value in vars(
                part
            ).values():  # tensors that are neither parameters nor buffers; some refuse a deep copy
                if isinstance(value, Tensor):
                    memo[id(value)] = value.detach().clone()
        originals = self.model.module.state_dict(keep_vars=True)
        names = {tensor.data_ptr(): name for name, tensor in originals.items() if name in self.state}
        for module in parts:
            for tensor in (*module.parameters(), *module.buffers()) if module is not None else ():
                if tensor.data_ptr() in names and tensor.numel():
                    changed = self.state[names[tensor.data_ptr()]].clone()
                    memo.setdefault(
                        id(tensor),
                        nn.Parameter(changed, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else changed,
                    )
        try:
            module, readout, classifier = copy.deepcopy(parts, memo)
        except Exception as error:
            raise ModelError(
                f"The module cannot be copied, and unweave never works on the original: {error}",
                where=type(self.model.module).__qualname__,
                cure="keep what cannot be copied (locks, open files, handles) out of the module",
            ) from error
        own = self.model
        return Model(own.id, module, readout, classifier, own.preprocess, own.preprocessing, own.input_size)

    @torch.no_grad()
    def total(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image dim"]:
        """The representation of the *original* model if, inside it, the outputs of the expressed components are
        replaced by their means: what the edited weights amount to, computed without them.

        The captured graph is interpreted, and at each cut the operation gets its input with the components' channels
        replaced, or its output is replaced as a whole.
        """
        graph = self._walk.graph
        follow(graph)
        cuts = {outlet.node: (outlet, cut.mean) for outlet, cut in zip(self._outlets, self.cuts, strict=True)}

        def ablated(node: fx.Node, value_of: ValueOf) -> Any:
            if node not in cuts:
                return applied(node, value_of)
            outlet, mean = cuts[node]
            if outlet.inputs is None:
                value = applied(node, value_of)
                shape = [-1 if axis == outlet.channel else 1 for axis in range(value.dim())]
                return mean.to(value).reshape(shape).expand_as(value)
            read = value_of(outlet.input).movedim(outlet.channel, -1).clone()
            channels = outlet.inputs.to(read.device)
            read[..., channels] = mean.to(read)[channels]
            replaced = read.movedim(-1, outlet.channel)
            return applied(node, lambda source: replaced if source is outlet.input else value_of(source))

        return interpret(graph.nodes, {**graph.tensors, graph.input: images}, ablated)[graph.output]

    def table(self) -> pa.Table:
        """One row for each component that was asked for."""
        rows = [
            {
                "component": str(component),
                "expressed": True,
                "module": cut.module,
                "operation": cut.operation,
                "weight": cut.weight,
                "bias": cut.bias,
                "reason": None,
            }
            for cut in self.cuts
            for component in cut.components
        ]
        rows += [
            {"component": str(own.component), "expressed": False, "module": own.module, "reason": own.reason}
            for own in self.refused
        ]
        names = ("component", "expressed", "module", "operation", "weight", "bias", "reason")
        kinds = [pa.string(), pa.bool_(), *[pa.string()] * 5]
        return pa.Table.from_pylist(rows, schema=pa.schema(list(zip(names, kinds, strict=True))))

    @cached_property
    def card(self) -> dict[str, Any]:
        """What the edit is, ready for JSON; `weights` before and after as in `Model.weights_hash`."""
        return {
            "model": self.model.id,
            "weights": {"before": self.model.weights_hash, "after": self.apply().weights_hash},
            "intervention": "total mean ablation",
            "means": {"average": self.average, "images": self.images, "source": self.source},
            "components": [component.as_dict() for component in self.expressed],
            "cuts": [
                {
                    "components": [str(component) for component in cut.components],
                    "module": cut.module,
                    "operation": cut.operation,
                    "weight": cut.weight,
                    "bias": cut.bias,
                }
                for cut in self.cuts
            ],
            "refused": [
                {"component": str(own.component), "module": own.module, "reason": own.reason} for own in self.refused
            ],
            "versions": {"unweave": unweave.__version__, "torch": torch.__version__},
        }

    def save(self, path: str | Path) -> Path:
        """Write the whole edited state dict as safetensors, under the module's own names, and a card beside it.

        `unweave.load_model(id, checkpoint=path)` loads it, and so does `module.load_state_dict` after
        `safetensors.torch.load_file`. Weights that the module holds under several names are written under each.

        Args:
            path: A name that ends in `.safetensors`; the card is beside it, in JSON.

        Raises:
            ArgumentError: The name ends otherwise, or the place cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ArgumentError(
                "Weights are written as safetensors.", where=str(path), cure="give a name that ends in .safetensors"
            )
        state = {
            # a copy each: safetensors refuses memory that is shared
            name: self.state.get(name, tensor).detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in self.model.module.state_dict().items()
        }
        return write_pair(path, path.with_suffix(".json"), KIND, state, self.card)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the edited model as its own library does (transformers), and the card beside it as `edit.json`.

        Raises:
            UnweaveError: The module has no `save_pretrained`, or the folder is there already or cannot be written.
        """
        folder = Path(folder)
        module = self.apply().module
        if not callable(getattr(module, "save_pretrained", None)):
            raise ModelError(
                "The module has no `save_pretrained`.",
                where=type(module).__qualname__,
                cure="save a state dict, under a name that ends in .safetensors",
            )
        if folder.exists():
            raise ArgumentError("There is something at this place.", where=str(folder), cure="choose another folder")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as room:
                whole = Path(room) / folder.name
                module.save_pretrained(whole)  # type: ignore[operator]
                (whole / "edit.json").write_bytes(KIND.text(self.card))
                whole.rename(folder)
        except OSError as error:
            raise StoreError(f"The model cannot be written: {error.strerror or error}.", where=str(folder)) from error
        return folder


@torch.no_grad()
def mean_ablated(
    model: Model,
    components: Selection,
    batches: Tensor | Iterable[Tensor],
    *,
    average: Average = "readout",
    source: str | None = None,
    attention: Literal["through", "stop"] = "through",
    nonlinear: Literal["stop", "freeze"] = "stop",
    on_images: Callable[[int], None] = lambda count: None,
) -> Edit:
    """Replace components by their means, in the weights.

    All means are of the model as it is; later components are not averaged behind earlier ones that are ablated.

    A constant is the same for all tokens of a layer, so the mean is over tokens as well as images:

    * `readout`: a token counts as much as the representation reads of it directly (of a class-token model the class
      token alone, each image weighted by 1/std of the norm behind it; of a mean-pooled one all patches). So, wherever
      one matrix leads from all tokens to the representation, a head's mean *direct* contribution is kept exactly.
    * `tokens`: all tokens count alike. It disturbs the later layers less where they read other tokens than the
      representation does.

    Takes one pass of a plan over the images, and a few vectors of memory beside it.

    Args:
        model: A model with a representation.
        components: A selection (see `unweave.components.Selection`) from components of the levels `layer` and `head`.
        batches: Preprocessed images, `[image, channel, height, width]`: one tensor, or several.
        average: See above.
        source: What the images are, for the card.
        attention, nonlinear: How components are told apart (see `unweave.plan`).
        on_images: Called with the number of images that are done.

    Raises:
        ArgumentError: The selection matches nothing.
        CaptureError: The module does not export.
        NonFiniteError: A weight or a mean is NaN or infinite.
        UnweaveError: There are no images, or they are not of the model's size, device or type.
    """
    found = walk(graph_of(model.readout, model.example()), passing=attention == "through", freeze=nonlinear == "freeze")
    everything = known(found)
    chosen = [everything[place] for place in select(everything, components)]
    named: dict[int, list[str]] = {}
    for name, tensor in model.module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            named.setdefault(tensor.data_ptr(), []).append(name)
    places, refused = outlets(found, chosen, lambda tensor: named.get(tensor.data_ptr(), ()))
    means, images = _means(found, places, average, batches, on_images)
    state: dict[str, Tensor] = {}
    held = model.module.state_dict()
    for outlet, mean in zip(places, means, strict=True):
        state |= _edited(outlet, mean, held)
    cuts = tuple(
        Cut(
            outlet.components,
            outlet.module,
            operation(outlet.node),
            outlet.weight.name,
            outlet.bias.name,
            mean,
            outlet.inputs is None,
        )
        for outlet, mean in zip(places, means, strict=True)
    )
    return Edit(model, state, cuts, refused, average, images, source, found, places)


def _means(
    found: Walk,
    places: tuple[Outlet, ...],
    average: Average,
    batches: Tensor | Iterable[Tensor],
    on_images: Callable[[int], None],
) -> tuple[list[Tensor], int]:
    """The mean at each outlet, in float64, and over how many images."""
    jobs: list[Job] = []
    spans: list[tuple[int, int]] = []
    columns = 0
    for outlet in places:
        values, shares = readings(found, outlet, average)
        end = columns + outlet.width
        jobs += [Job(values, tuple(range(columns, end))), Job(shares, (end,))]
        spans.append((columns, end))
        columns = end + 1
    program = Program(found.graph, jobs, columns, 1)  # one "direction" of length one: what is read are plain numbers
    expected = found.graph.input.meta["val"]
    total, images = torch.zeros(columns, dtype=torch.float64), 0
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        if batch.dim() != 4 or batch.shape[1:] != expected.shape[1:]:
            raise DataError(
                f"The model takes images {list(expected.shape[1:])}, these are {list(batch.shape)}.",
                cure="give batches [image, channel, height, width] of the model's own preprocessing",
            )
        if batch.dtype != expected.dtype or batch.device != expected.device:
            raise DataError(
                f"The model is in {expected.dtype} on {expected.device}; these images are in {batch.dtype} on "
                f"{batch.device}.",
                cure="move the images to the model's device and type",
            )
        if len(batch):
            result, _ = program.run(batch, torch.ones(1, 1, 1, device=batch.device))
            total += result[..., 0].sum(0, dtype=torch.float64).cpu()
            images += len(batch)
            on_images(images)
    if not images:
        raise ArgumentError("There are no images to take means of.", cure="give one batch at least")
    means = [total[start:end] / total[end] for start, end in spans]
    for outlet, mean in zip(places, means, strict=True):
        if not bool(torch.isfinite(mean).all()):
            raise NonFiniteError(
                "The mean of what a component writes is not finite.",
                where=str(outlet.components[0]),
                cure="check the images and the weights for NaN or infinity",
            )
    return means, images


def _edited(outlet: Outlet, mean: Float[Tensor, " channel"], held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weight and the bias of an outlet, changed."""
    weight, bias = (
        held[own.name].detach().clone(memory_format=torch.contiguous_format) for own in (outlet.weight, outlet.bias)
    )
    flat, shift = weight.view(-1), bias.view(-1)
    entries = outlet.weight.entries.to(weight.device)
    places = outlet.bias.entries.to(bias.device)
    mean = mean.to(weight.device)
    if outlet.inputs is None:
        flat[entries.flatten()] = 0
        shift[places] = mean.to(shift)
    else:
        # which input channel each entry of the matrix reads: its own group's
        rows, inner = entries.shape[:2]
        group = torch.arange(rows, device=weight.device) // (rows // outlet.groups)
        channels = group[:, None] * inner + torch.arange(inner, device=weight.device)
        own = outlet.inputs.to(weight.device)[channels]
        matrix = flat[entries].double().reshape(rows, inner)
        shift[places] = (shift[places].double() + (matrix * mean[channels] * own).sum(1)).to(shift)
        flat[entries.reshape(rows, inner)[own]] = 0
    return {outlet.weight.name: weight, outlet.bias.name: bias}
