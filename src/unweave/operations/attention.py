"""Attention whose weights are never shown by the kernel: they are recomputed, only in the rows that the map needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.adjoint.operand import Axis, Operand, Runtime, fresh
from unweave.adjoint.term import Term
from unweave.graph.graph import Extent
from unweave.operations.table import Reads, Step, rule


@rule(
    "aten.scaled_dot_product_attention",
    kind="frozen",
    mixes="axes",
    held=("query", "key", "attn_mask"),
    attends=("query", "key", "value"),
)
def attention(step: Step, term: Term) -> Reads:
    """`softmax(Q K^T) V` with the probabilities held: linear in V."""
    out, keys = step.output, step.extents("value")
    if step["enable_gqa"] and out[-3] != keys[-3]:  # several query heads read one value head
        repeats = Extent(out[-3].size // keys[-3].size)
        split = term.regrouped([*out[:-3], keys[-3], repeats, *out[-2:]])
        lead = split.axes[:-4]
        shared, query_heads = split.axes[-4], Axis(split.axes[-4].indices + split.axes[-3].indices)
    else:
        split, lead = term, term.axes[:-3]
        shared = query_heads = term.axes[-3] if len(term.axes) > 2 else Axis()
    heads = [shared] if len(out) > 2 else []
    tokens = Axis(fresh(keys[-2].size))
    rows = split.axes[-2]
    given = step.given

    options = {name: given[name] for name in ("is_causal", "scale", "enable_gqa")}

    def held(query: Tensor, key: Tensor, *others: Any) -> Tensor:
        *mask, positions = others
        return probabilities(query, key, mask[0] if mask else None, **options, rows=positions[-2])

    inputs = tuple(node for node in (given["query"], given["key"], given["attn_mask"]) if node is not None)
    leading = [*lead, query_heads] if len(out) > 2 else [*lead]
    factor = Operand(Runtime("attention", step.node, inputs, held, (-2,)), (*leading, rows, tokens))
    value = [
        Axis() if extent == Extent(1) else axis
        for axis, extent in zip([*lead, *heads, tokens, split.axes[-1]], keys, strict=True)
    ]
    yield step["value"], split.times(factor).read(value)


def probabilities(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    rows: Sequence[int] | None = None,
    **_: Any,
) -> Float[Tensor, "*lead query key"]:
    """What fused attention multiplies its values by.

    Args:
        query, key, attn_mask, is_causal, scale, enable_gqa: As `scaled_dot_product_attention` takes them; its other
            arguments are taken too, and not looked at.
        rows: The queries whose probabilities are wanted; all if not given.
    """
    chosen = slice(None) if rows is None else list(rows)
    whole = query.shape[-2]
    query = query[..., chosen, :]
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(whole, key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        if attn_mask.shape[-2] > 1:
            attn_mask = attn_mask[..., chosen, :]
        boolean = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, float("-inf")) if boolean else logits + attn_mask
    return logits.softmax(-1)
