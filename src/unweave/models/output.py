"""What a module returns, and what of it is the representation: which tensor, and how its tokens or places are pooled.

A tensor `[image, dim]` is taken as it is. Of tokens and of maps one vector is made, and for that it has to be known
which axes are places, and which tokens belong to no place (class tokens, registers). Both are told by behaviour: the
module is given an image, another one, and the first with one corner changed. As long as nothing has mixed all places,
the corner changes few of them, but all channels; and what no image changes is no patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unweave.errors import ArgumentError, ModelError
from unweave.loading import Pool as Pool

FIELDS = ("image_embeds", "logits", "pooler_output", "last_hidden_state")
"""The fields of an output object that may hold the representation; the first that is there is taken."""

Field = str | int | None
"""Where in an output a tensor is: a name or an index, or several of them with dots between; None for the output
itself."""


@dataclass(frozen=True)
class Reading:
    """How the representation is read from what a module returns.

    Attributes:
        field: Where it is.
        taken: Along which axes a mean is taken; or, if `token` is given, along which that one token is.
        token: The one token that is read.
        kept: Of the tokens, those over which the mean is taken; None for all.
        notes: What was chosen, in sentences.
    """

    field: Field = None
    taken: tuple[int, ...] = ()
    token: int | None = None
    kept: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it is the whole output as it stands."""
        return self.field is None and not self.taken

    def __call__(self, output: object) -> Tensor:
        """The representation, `[image, dim]`."""
        value = picked(output, self.field)
        if not self.taken:
            return value
        if self.token is not None:
            return value.select(self.taken[0], self.token)
        if self.kept is not None:
            first, last = self.kept[0], self.kept[-1]
            whole = len(self.kept) == last - first + 1
            value = value[:, first : last + 1] if whole else value[:, list(self.kept)]
        return value.mean(self.taken)


def reading(
    output: object,
    representation: Field,
    pool: Pool | None,
    run: Callable[[Tensor], object],
    example: Tensor,
) -> Reading:
    """How the representation is read from an output.

    Args:
        output: What the module returned of the example.
        representation: Where the representation is, if the caller says so.
        pool: How tokens or a map are pooled, if the caller says so. None: of tokens the class token, or the mean where
            there is none.
        run: Calls the module.
        example: Images, `[1, channel, height, width]`.

    Raises:
        ArgumentError: There is no such way of pooling.
        ModelError: The output holds nothing that could be a representation, or several that could; or it is a map, and
            it is not said how it is pooled; or there is nothing to pool.
    """
    if pool not in (None, "mean", "class"):
        raise ArgumentError(f"There is no pooling {pool!r}.", cure="choose 'mean' or 'class'")
    field, notes = (representation, ()) if representation is not None else _field(output, pool)
    value = picked(output, field)
    name = "what the model returns" if field is None else f"the output `{field}`"
    what = f"{name[0].upper()}{name[1:]} is {list(value.shape)}"
    if value.ndim < 2 or not value.is_floating_point():
        raise ModelError(
            f"{what}, not a representation [image, dim].",
            cure="name the output that is the representation (`representation=`)",
        )
    if value.ndim == 2:
        if pool is not None:
            raise ModelError(
                f"{what}, which has neither tokens nor places to be pooled.",
                cure="leave `pool` out, or name an output that has some (`representation=`)",
            )
        return Reading(field, notes=notes)
    if value.ndim > 3 and pool is None:
        if all(size == 1 for size in value.shape[2:]):
            return Reading(field, tuple(range(2, value.ndim)), notes=notes)
        raise ModelError(
            f"{what}, a map, and not a representation [image, dim].",
            cure="take the mean over its places (`pool='mean'`), or name another output (`representation=`)",
        )
    if value.ndim > 3 and pool == "class":
        raise ModelError(f"{what}, a map, which has no class token.", cure="use `pool='mean'`")

    layout = Layout(value.shape)
    layout.look(run, example)
    own = _pooled(name, value, pool, layout)
    return replace(own, field=field, notes=(*notes, *own.notes))


def _pooled(name: str, value: Tensor, pool: Pool | None, layout: Layout) -> Reading:
    """How tokens or a map become one vector, and what is said of it."""
    if pool == "class" and layout.known and not layout.classes:
        raise ModelError(f"No token of {name} is a class token: each comes from the image.", cure="use `pool='mean'`")
    if pool == "class" or (pool is None and layout.classes):
        token = next(iter(layout.classes), 0)
        said = f"The representation is the class token of {name}: token {token} of {value.shape[1]}."
        return Reading(taken=(1,), token=token, notes=(said,))
    places = layout.places
    count = math.prod(value.shape[axis] for axis in places)
    kept = tuple(place for place in range(count) if place not in layout.prefix)
    size = f"{count} tokens" if value.ndim == 3 else f"{' x '.join(str(value.shape[axis]) for axis in places)} places"
    said = f"The representation is the mean over the {size if len(kept) == count else f'{len(kept)} tokens'} of {name}"
    if len(kept) < count:
        said += f" that come from the image (of {count})"
    elif pool is None:
        said += ", for there is no class token among them" if layout.known else ", for none is known as class token"
    return Reading(taken=places, kept=kept if len(kept) < count else None, notes=(f"{said}.",))


# --- the tensors of an output


def leaves(output: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in an output, with its path: in mappings, sequences, dataclasses and other plain records."""
    if isinstance(output, Tensor):
        yield path, output
        return
    if isinstance(output, Mapping):
        inside: list[tuple[Any, Any]] = list(output.items())
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        inside = list(zip(output._fields, output, strict=True))
    elif isinstance(output, (list, tuple)):
        inside = list(enumerate(output))
    elif is_dataclass(output):
        inside = [(own.name, getattr(output, own.name)) for own in fields(output)]
    else:
        inside = list(getattr(output, "__dict__", {}).items())
    for name, value in inside:
        if isinstance(value, (Tensor, Mapping, list, tuple)) or is_dataclass(value):
            yield from leaves(value, f"{path}.{name}" if path else str(name))


def picked(output: object, field: Field) -> Tensor:
    """The tensor at a place in an output.

    Raises:
        ModelError: There is none.
    """
    value = output
    if isinstance(output, Tensor) and field == 0:
        field = None  # the first of one
    if isinstance(field, str) and _at(output, field) is None:
        for name in field.split("."):
            value = _at(value, name)
    elif field is not None:
        value = _at(output, field)
    if isinstance(value, Tensor):
        return value
    inside = [name for name, _ in leaves(output) if name]
    raise ModelError(
        f"The model's output ({type(output).__name__}) holds no tensor{'' if field is None else f' {field!r}'}"
        + (f"; it holds {_listed(inside)}." if inside else "."),
        cure="name the output that is the representation (`representation=`)",
    )


def _at(output: object, field: str | int) -> object:
    if isinstance(field, str) and not isinstance(output, (Mapping, list, tuple)):
        return getattr(output, field, None)
    try:
        if isinstance(output, (list, tuple)) and isinstance(field, str):
            return getattr(output, field) if hasattr(output, "_fields") else output[int(field)]
        return output[field]  # type: ignore[index]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None


def _field(output: object, pool: Pool | None) -> tuple[Field, tuple[str, ...]]:
    """Where in an output the representation is, and what has to be said of that."""
    if isinstance(output, Tensor):
        return None, ()
    least = 2 if pool is None else 3
    for name in FIELDS:
        value = _at(output, name)
        if isinstance(value, Tensor) and value.ndim >= least:
            return name, ()
    inside = {name: value for name, value in leaves(output) if value.ndim >= 2 and value.is_floating_point()}
    vectors = [name for name, value in inside.items() if value.ndim == 2] if pool is None else []
    candidates = vectors or [name for name, value in inside.items() if value.ndim > 2]
    if not candidates:
        picked(output, None)  # which refuses it
    if len(candidates) > 1 and not vectors:
        raise ModelError(
            f"The module returns several tensors that could be the representation: {_listed(candidates)}.",
            cure=f"name one of them, such as `representation={candidates[-1]!r}`",
        )
    others = [name for name in inside if name != candidates[0]]
    said = f"Of what the module returns `{candidates[0]}` is taken; it returns {_listed(others)} as well."
    return candidates[0], ((said,) if others else ())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


# --- which axes are places


class Layout(TorchDispatchMode):
    """Looks, in one forward pass over three images, at whatever has the shape of an output.

    Attributes:
        shape: Of the output.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self._seen: tuple[int, ...] | None = None
        self._behind = False
        self._apart: tuple[int, ...] | None = None
        self._still: tuple[int, ...] = ()
        self._image = (1, 1)

    @property
    def known(self) -> bool:
        """Whether it was seen which axes are places."""
        return self._seen is not None or self._behind

    @property
    def places(self) -> tuple[int, ...]:
        """The axes of the output that are places.

        Where none were seen, tokens lie along the first axis after the images, and maps are `[image, channel, height,
        width]`; `[image, height, width, channel]` if only then they have the proportions of the image.
        """
        axes = range(1, len(self.shape))
        if self._seen is not None:
            return self._seen
        if len(self.shape) == 3:
            return (2,) if self._behind else (1,)
        last = self._proportionate(*self.shape[-2:]) or not self._proportionate(*self.shape[-3:-1])
        return tuple(axes[1:] if last else axes[:-1])

    def _proportionate(self, height: int, width: int) -> bool:
        return abs(height * self._image[1] - width * self._image[0]) < max(self._image)

    @property
    def prefix(self) -> tuple[int, ...]:
        """Of tokens, those that come from no part of the image."""
        return self._apart or () if self.places == (1,) else ()

    @property
    def classes(self) -> tuple[int, ...]:
        """Of those, the ones that tell of the image in the end: the others separate tokens."""
        return tuple(token for token in self.prefix if token not in self._still)

    def look(self, run: Callable[[Tensor], object], example: Tensor) -> None:
        """Runs the module; leaves all as assumed where it does not take three images."""
        images = torch.randn((3, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
        self._image = (images.shape[-2], images.shape[-1])
        height, width = (max(1, length // 8) for length in self._image)
        corner = images[2, ..., :height, :width].clone()
        images[2] = images[0]
        images[2, ..., :height, :width] = corner
        with torch.no_grad(), self, suppress(Exception):  # of another's forward
            run(images.to(example.device, example.dtype))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What an operation makes of its arguments, looked at."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.ndim == len(self.shape):
            same = tuple(result.shape[1:]) == self.shape[1:]
            if len(result) == 3 and (same or (result.ndim == 3 and result.shape[1] in self.shape[1:])):
                self._note(result, same)
        return result

    def _note(self, value: Tensor, same: bool) -> None:
        """Which axes of a value are places, if it can be seen."""
        wide = value.detach().float()
        allowed = float(wide.abs().amax()) * (1e-4 if value.dtype in (torch.float32, torch.float64) else 1e-2)
        by_image, by_corner = (wide[1] - wide[0]).abs() > allowed, (wide[2] - wide[0]).abs() > allowed
        if not bool(by_corner.any()):
            return
        changed = {axis: (_along(by_image, axis), _along(by_corner, axis)) for axis in range(1, value.ndim)}
        places = tuple(axis for axis, (image, corner) in changed.items() if bool((image & ~corner).any()))
        if value.ndim == 3:
            apart = tuple((~changed[1][0]).nonzero().flatten().tolist())
            if 1 in places or (apart and bool(changed[2][0].all())):
                if value.shape[1] != self.shape[1]:  # as many tokens as the output's last axis is long
                    self._behind = True
                    return
                places = (1,)
                self._apart = apart if self._apart is None else self._apart
            if same and (places == (1,) or not apart):
                self._still = apart
        if len(places) == value.ndim - 2 and (same or places == (1,)):
            self._seen = places


def _along(changed: Tensor, axis: int) -> Tensor:
    """Which entries of an axis (counted with that of the images, which is gone) have changed anywhere."""
    return changed.movedim(axis - 1, 0).flatten(1).any(1)
