"""Where a model's representation is, and how to read it without touching the model.

Problem. A decomposition needs a module that maps images to the representation, what enters the classifier. Models
return logits, output objects, or a representation that has already gone through a nonlinear head.

Idea. Make a *twin* of the module: its submodules are copies, its tensors are the same objects. In the twin the
classifier is replaced by identities, so the twin's own forward returns the representation, every submodule keeps the
name that the model gives it, and the user's module is never written to.

The rule for what the classifier is, the same for every library: **the maximal tail of linear layers, elementwise
functions and dropout that acts on one vector per image**. Where the library names the classifier, the tail begins
there and is extended towards the input; what the user names is taken as it is. Where a model has none, a tail is
taken off only if it holds a nonlinearity (a tanh pooler), for a purely linear one (CLIP's projection) is part of the
representation. So the representation is always the last one before a nonlinear head. The tail is observed, not looked
up: one forward pass of the twin over one random image. A nonlinearity that is not a module (`torch.tanh` inside a
forward) cannot be taken off, and stays.
"""

from __future__ import annotations

import copy
import types
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unweave.errors import ModelError, UnweaveError
from unweave.graph.comparison import output_of, varied
from unweave.graph.export import user_line
from unweave.graph.finite import check_buffers
from unweave.graph.original import Original
from unweave.models.forward import check_supported, image_argument, unwrapped
from unweave.models.output import FIELDS, Pool, Reading, reading

Returns = Literal["representation", "features", "logits"]
"""What the tensor is that a module returns."""

_RECENT = 64
"""How many of the last module calls are kept while looking for the tail; it is a handful in every known model."""


@dataclass(frozen=True, eq=False)
class Readout:
    """A model split at its representation.

    Attributes:
        body: Images to representation, `[image, dim]`; shares the tensors of the module it was made from.
        classifier: Representation to logits; None where there are none, or no module maps one exactly to the other.
        notes: What was chosen of the module's output, in sentences.
    """

    body: nn.Module
    classifier: nn.Module | None
    notes: tuple[str, ...] = ()


class Mean(nn.Module):
    """The mean of what several heads make of the same representation (models trained by distillation)."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, representation: Tensor) -> Tensor:
        """`[image, dim]` to `[image, class]`."""
        return torch.stack([head(representation) for head in self.heads]).mean(0)


def twin(module: nn.Module) -> nn.Module:
    """A copy of the module tree, in evaluation mode, whose parameters and buffers are the very same tensors.

    Raises:
        ModelError: The module holds something that Python cannot copy.
    """
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors}).eval()
    except Exception as error:
        raise ModelError(
            f"The module cannot be copied, and unweave never works on the original: {first_line(error)}",
            where=type(module).__qualname__,
            cure="keep what cannot be copied (locks, open files, handles) out of the module",
        ) from error


def _uncompile(body: nn.Module) -> None:
    """Puts what was compiled in the place of what `torch.compile` wrapped around it; it computes the same."""
    for parent in list(body.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and "_orig_mod" in child._modules:
                setattr(parent, name, unwrapped(child))


@torch.no_grad()
def split(
    module: nn.Module,
    example: Tensor,
    *,
    heads: Sequence[str] | None = (),
    representation: str | int | None = None,
    pool: Pool | None = None,
    images: str | None = None,
    returns: Returns = "representation",
) -> Readout:
    """Split a module at its representation.

    Args:
        module: Maps images to a tensor, or to an output object, mapping or tuple that holds one. Not modified.
        example: Images, `[image, channel, height, width]`, on the module's device and of its dtype.
        heads: Names of the submodules that are the classifier. Empty: a module that names its own (`get_classifier`,
            as timm's do) is asked. None: nothing is taken off.
        representation: Field or index of the output that is the representation; None for the first of `FIELDS`, or
            else the first `[image, dim]`.
        pool: How tokens or a map are made one vector (see `unweave.models.output`).
        images: The argument of its forward that takes the images, where its signature does not tell.
        returns: What a tensor that the module returns is, where no head is named: the representation itself, features
            from which a nonlinear tail is taken off, or logits.

    Raises:
        ModelError: The module does not run on the example, lacks the named head, output or argument, returns nothing
            that `[image, dim]` can be made of, or is none that can be captured.
        NonFiniteError: The representation is not finite, for a buffer is not.
    """
    module = unwrapped(module)
    check_supported(module)
    argument = image_argument(module, images)
    body = twin(module)
    options: dict[str, Any] = {
        "heads": heads,
        "representation": representation,
        "pool": pool,
        "images": images,
        "returns": returns,
    }
    Original(module, body, partial(_again, size=tuple(example.shape), options=options))
    _uncompile(body)
    if argument is not None:
        _call_with(body, _reader(argument))
    asked = _own_heads(body) if heads is not None and not heads else []
    ends = asked or [_submodule(body, name) for name in heads or ()]
    with _running(module, example):
        calls, output = _observe(body, example, ends)
        if asked and any(call.input[0].numel() > call.input.shape[1] for call in calls if call.module in asked):
            # What is named pools as well as classifies: the classifier is only its tail.
            asked, ends, returns = [], [], "logits"
            calls, output = _observe(body, example, ends)
    own = reading(output, representation, pool, body, example)
    value = own(output)

    above = [call for call in calls if any(call.module is end for end in ends)]
    same_input = bool(above) and len(above) == len(ends) and all(call.input is above[0].input for call in above)
    if representation is None and own.field in FIELDS and heads is not None:
        returns = "logits" if own.field == "logits" else "features"
    elif (
        representation is None and hasattr(body, "get_classifier") and returns == "representation" and heads is not None
    ):
        returns = "features"
    if ends:
        tail = _chain(calls, above[0].input) if same_input and asked else []
    else:
        tail = [] if returns == "representation" else _chain(calls, value)
        if returns == "features" and not any(_pointwise(call.module) == "bends" for call in tail):
            tail = []
    for part in [*(call.module for call in tail), *ends]:
        _take_off(body, part)

    parts = [call.module for call in tail] + ([Mean(ends)] if len(ends) > 1 else ends)
    if parts and same_input and above[0].input.ndim == 4:
        parts = [nn.Unflatten(1, (-1, 1, 1)), *parts, nn.Flatten(1)]  # a convolution that sees one cell
    known = bool(parts) and (same_input if ends else returns == "logits")
    reads: list[_Read | None] = [None if own.plain else _reader(argument, own)]
    if asked and hasattr(body, "forward_head"):
        # For heads that do more than classify one representation, timm says what it is that they classify.
        reads.append(_pre_logits)
    classifier = None
    for read in reads:
        if read is not None:
            _call_with(body, read)
        try:
            found = _represent(body, module, example)
        except ModelError:
            if read is reads[-1]:
                raise
            continue
        classifier = _classifier(parts, found, value) if known else None
        if classifier is not None:
            break
    check_buffers(body, found)
    return Readout(body, classifier, own.notes)


def whole(module: nn.Module, example: Tensor) -> Readout:
    """A module as it stands, heads and all, so that it takes images alone and returns `[image, dim]`.

    Args:
        module: Where it does both as it is, it is returned itself; else a twin of it.
        example: Images, `[image, channel, height, width]`.

    Raises:
        ModelError: As for `split`.
    """
    module = unwrapped(module)
    check_supported(module)
    compiled = any("_orig_mod" in part._modules for part in module.modules())
    if image_argument(module) is None and not compiled:
        try:
            output = output_of(module, varied(example))
        except Exception:  # which capture explains, with the line
            return Readout(module, None)
        if isinstance(output, Tensor) and output.ndim == 2:
            return Readout(module, None)
    return split(module, varied(example), heads=None)


def _again(module: nn.Module, size: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    """The body of a module, split as before."""
    weight = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), torch.empty(0))
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    return split(module, drawn, **options).body


def _represent(body: nn.Module, module: nn.Module, example: Tensor) -> Tensor:
    with _running(module, example):
        found = body(example)
    if isinstance(found, Tensor) and found.ndim == 2 and found.shape[0] == example.shape[0]:
        return found
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise ModelError(
        f"What the model returns is {shape}, not a representation [image, dim].",
        where=type(module).__qualname__,
        cure="name the output that is the representation (`representation=`), or say how it is pooled (`pool='mean'`)",
    )


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _running(module: nn.Module, example: Tensor) -> Iterator[None]:
    """Turns whatever a module raises on an example into a `ModelError` that says what was tried."""
    try:
        yield
    except UnweaveError:
        raise
    except Exception as error:
        size = " x ".join(str(length) for length in example.shape[1:])
        raise ModelError(
            f"The model does not run on images of {size}: {first_line(error)}",
            where=", ".join(filter(None, (type(module).__qualname__, user_line(error)))),
            cure=_cure(module),
        ) from error


def _cure(module: nn.Module) -> str:
    cures = ["give the size it was made for (`image_size`, `input_size`)", "give a module that takes images alone"]
    if len({weight.dtype for weight in module.parameters() if weight.is_floating_point()}) > 1:
        cures.insert(0, "cast its weights to one type (`module.float()`)")
    if image_argument(module) is not None:
        cures.insert(0, "name the argument that takes the images (`images=`)")
    return ", or ".join(cures)


# --- which submodules are the classifier


def _own_heads(body: nn.Module) -> list[nn.Module]:
    """What a module says is its classifier; empty where it says nothing or has none."""
    ask = getattr(body, "get_classifier", None)
    answer = ask() if callable(ask) else None
    heads = list(answer) if isinstance(answer, (tuple, list, nn.ModuleList)) else [answer]
    return [head for head in heads if isinstance(head, nn.Module) and not isinstance(head, nn.Identity)]


def _submodule(body: nn.Module, name: str) -> nn.Module:
    try:
        return body.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(name for name, _ in body.named_children())
        raise ModelError(
            f"There is no submodule {name!r} to take for the classifier.",
            where=type(body).__qualname__,
            cure=f"name one by its path; the module holds {children}",
        ) from error


@dataclass(frozen=True, eq=False)
class _Call:
    module: nn.Module
    input: Tensor
    output: Tensor


def _observe(body: nn.Module, example: Tensor, ends: Sequence[nn.Module]) -> tuple[list[_Call], object]:
    """Run the twin once; the recent calls of its leaves and ends, in order, of those that are called only once."""
    inside = {id(part) for end in ends for part in end.modules()}
    leaves = [part for part in body.modules() if not any(part.children()) and id(part) not in inside]
    recent: deque[_Call] = deque(maxlen=_RECENT)
    times: Counter[int] = Counter()

    def note(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        times[id(module)] += 1
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            recent.append(_Call(module, args[0], output))

    handles = [part.register_forward_hook(note) for part in (*leaves, *ends)]
    try:
        output = body(example)
    finally:
        for handle in handles:
            handle.remove()
    return [call for call in recent if times[id(call.module)] == 1], output


def _chain(calls: Sequence[_Call], value: Tensor) -> list[_Call]:
    """The maximal run of linear layers, elementwise functions and dropout that ends in `value`, first call first.

    A norm belongs to it where a nonlinearity lies below: it then norms a hidden layer of the head, not the
    representation.
    """
    chain: list[_Call] = []
    for call in reversed(calls):
        if call.output is not value:
            continue
        if call.input.ndim != 2 or not (isinstance(call.module, (nn.Linear, *_NORMS)) or _pointwise(call.module)):
            break
        chain.insert(0, call)
        value = call.input
    for place, call in reversed(list(enumerate(chain))):
        if isinstance(call.module, _NORMS) and not any(_pointwise(own.module) == "bends" for own in chain[:place]):
            chain = chain[place + 1 :]
            break
    while chain and _pointwise(chain[0].module) == "keeps":
        chain.pop(0)
    return chain


_NORMS = (nn.LayerNorm, nn.BatchNorm1d)


def _pointwise(module: nn.Module) -> str | None:
    """`keeps` for an identity, `bends` for an elementwise nonlinearity, None for anything else.

    Judged by behaviour, so that every library's own activations are known: elementwise is what commutes with a
    permutation of all entries.
    """
    if any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        return None
    probe = torch.linspace(-2.0, 2.0, 35).reshape(5, 7)
    order = torch.arange(35).mul(12).remainder(35)
    try:
        plain, shuffled = module(probe.clone()), module(probe.flatten()[order].reshape(5, 7))
        if plain.shape != probe.shape or not torch.equal(plain.flatten()[order], shuffled.flatten()):
            return None
    except Exception:
        return None
    return "keeps" if torch.equal(plain, probe) else "bends"


def _take_off(body: nn.Module, part: nn.Module) -> None:
    for parent in list(body.modules()):
        for name in [name for name, child in parent._modules.items() if child is part]:
            setattr(parent, name, nn.Identity())
    for piece in part.modules():
        if getattr(piece, "inplace", False) is True:
            piece.inplace = False  # type: ignore[assignment]  # or the classifier would overwrite the representation


def _classifier(parts: Sequence[nn.Module], representation: Tensor, logits: Tensor) -> nn.Module | None:
    """The parts as one module, if it makes the model's own logits of the representation."""
    classifier = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    try:
        found = classifier.eval()(representation)
    except Exception:
        return None
    tolerance = max(1e-5, 4 * torch.finfo(logits.dtype).eps)
    close = found.shape == logits.shape and (found - logits).norm() <= tolerance * logits.norm()
    return classifier if close else None


# --- how to call the twin

_Read = Callable[[nn.Module, Tensor], Tensor]
_FORWARD = "unweave_forward"


def _call_with(body: nn.Module, read: _Read) -> None:
    # A bound method, not a closure: a deep copy of the twin (to float64, say) then calls the copy.
    # What somebody put in the place of the class's own; the second time it is ours.
    vars(body).setdefault(_FORWARD, vars(body).pop("forward", None))
    body.forward = types.MethodType(read, body)


def _pre_logits(self: Any, images: Tensor) -> Tensor:
    return self.forward_head(self.forward_features(images), pre_logits=True)


def _reader(argument: str | None, own: Reading = Reading()) -> _Read:  # noqa: B008
    """A forward that takes images alone, and returns what is read of the module's own."""

    def read(self: nn.Module, images: Tensor) -> Any:  # whatever the module returns, where it is all of it
        forward = vars(self).get(_FORWARD) or types.MethodType(type(self).forward, self)
        output = forward(images) if argument is None else forward(**{argument: images})
        return output if own.plain else own(output)

    return read
