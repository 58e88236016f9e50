"""What takes one image takes many: a function of one image mapped over them, as `torch.export` can capture it.

Models of images and text lay the patches of all images end to end, cut what comes out into lists, and look up sizes in
tensors (`grid.tolist()`), all of which is a program for each number of images. For one image of one size it is one
program, in which these tensors are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

PACKED = "flash_attention_of_constant_lengths"
"""What transformers calls the attention below: by `flash` it knows one that takes all sequences laid end to end."""


def mapped(function: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor) -> dict[str, Tensor]:
    """A function of one image `[channel, height, width]` for each of many, `[image, channel, height, width]`."""
    with Constants(), sdpa_kernel(SDPBackend.MATH):  # of the kernels that attend, the one that can be mapped
        return dict(torch.vmap(function)(images))


class Constants(TorchFunctionMode):
    """While it lasts, what does not depend on images or weights has its values also where only shapes are traced.

    Two more things are settled, so that no decision is left to the images' values: none of them is blank, as padding
    is (`pixels == 0`), and an index that is a constant mask is the places that it picks.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(map(_traced, tensors)):
            return _settled(func, args, kwargs)
        if func in (torch.eq, Tensor.eq, Tensor.__eq__) and _of_an_image(args[0]) and _is_zero(args[-1]):
            return _settled(torch.zeros, (tuple(args[0].shape),), {"dtype": torch.bool, "device": args[0].device})
        if func is Tensor.__getitem__ and _is_mask(args[1]):
            return args[0][_settled(torch.Tensor.nonzero, (args[1],), {"as_tuple": True})]
        return func(*args, **kwargs)


def _of_an_image(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _traced(tensor: Tensor) -> bool:
    """Whether a tensor depends on an image, or is a weight, or has a shape and no values."""
    return isinstance(tensor, (nn.Parameter, FakeTensor)) or tensor.is_meta or _of_an_image(tensor)


def _settled(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with unset_fake_temporarily(), disable_proxy_modes_tracing():
        return func(*args, **kwargs)


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and not _traced(index)


def _is_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and value == 0


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention within sequences that are laid end to end; as many at a time as are equally long.

    Args:
        module: Whose attention it is.
        query, key, value: `[1, head, token, channel]`.
        attention_mask: Added to the scores.
        scaling: Of the scores.
        cu_seq_lens_q: Where each sequence begins, and the last ends; None for a single one.

    Returns:
        `[1, token, head, channel]`, and None in place of the probabilities.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (own.repeat_interleave(groups, dim=1) for own in (key, value))
    starts = [0, query.shape[2]] if cu_seq_lens_q is None else [int(start) for start in cu_seq_lens_q.tolist()]
    lengths = [end - start for start, end in pairwise(starts) if end > start]
    alike = len(set(lengths)) == 1
    pieces = []
    for queries, keys, values in zip(
        *((own,) if alike else own.split(lengths, dim=2) for own in (query, key, value)), strict=True
    ):
        if alike:  # [1, head, sequence x token, channel] to [sequence, head, token, channel]
            queries, keys, values = (
                own[0].unflatten(1, (len(lengths), lengths[0])).transpose(0, 1) for own in (queries, keys, values)
            )
        scores = queries @ keys.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if attention_mask is not None:
            scores = scores + attention_mask
        found = scores.softmax(-1) @ values
        pieces.append(found.transpose(0, 1).flatten(1, 2)[None] if alike else found)
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def attend_packed(model: Any) -> None:
    """Has a model of transformers attend by `packed_attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    model.config._attn_implementation = PACKED
