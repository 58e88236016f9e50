"""Attention whose weights are never shown by the kernel: they are recomputed, only in the rows that the map needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unweave.adjoint.pending import Axis, Operand, Runtime, Term, fresh
from unweave.graph.capture import Extent
from unweave.operations.table import Reads, Step, rule


@rule("aten.scaled_dot_product_attention", kind="frozen", mixes="axes", held=("query", "key", "attn_mask"))
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

    def probabilities(*values: object) -> Tensor:
        *tensors, positions = values
        return _probabilities(tensors, positions, given)  # type: ignore[arg-type]

    inputs = tuple(node for node in (given["query"], given["key"], given["attn_mask"]) if node is not None)
    leading = [*lead, query_heads] if len(out) > 2 else [*lead]
    factor = Operand(Runtime("attention", step.node, inputs, probabilities, (-2,)), (*leading, rows, tokens))
    value = [
        Axis() if extent == Extent(1) else axis
        for axis, extent in zip([*lead, *heads, tokens, split.axes[-1]], keys, strict=True)
    ]
    yield step["value"], split.times(factor).read(value)


def _probabilities(
    tensors: Sequence[Tensor], positions: Sequence[Sequence[int] | None], given: dict[str, object]
) -> Tensor:
    """Rows of the attention probabilities, `[..., row, key]`."""
    query, key = tensors[:2]
    rows = positions[-2]
    whole = query.shape[-2]
    if rows is not None:
        query = query[..., list(rows), :]
    if given["enable_gqa"]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = given["scale"]
    logits = query @ key.transpose(-2, -1)
    logits = logits * (query.shape[-1] ** -0.5 if scale is None else float(scale))  # type: ignore[arg-type]
    chosen = slice(None) if rows is None else list(rows)
    if given["is_causal"]:
        causal = torch.ones(whole, key.shape[-2], dtype=torch.bool, device=query.device).tril()
        logits = logits.masked_fill(~causal[chosen], float("-inf"))
    if given["attn_mask"] is not None:
        mask = tensors[2]
        if mask.shape[-2] > 1:
            mask = mask[..., chosen, :]
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)
