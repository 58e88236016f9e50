"""Tokens pooled by regions: the one operation that is not the model's own (see `unweave.structure.regions`)."""

from __future__ import annotations

import torch

from unweave.adjoint.term import Term
from unweave.graph.graph import extents_of
from unweave.operations.affine import Factor, contraction, frozen
from unweave.operations.table import Reads, Step, rule

_LIBRARY = torch.library.Library("unweave", "DEF")
_LIBRARY.define("pool(Tensor regions, Tensor tokens) -> Tensor")
_LIBRARY.impl("pool", torch.bmm, "CompositeImplicitAutograd")

pool = torch.ops.unweave.pool.default
"""Sums of tokens `[image, token, channel]`, weighed by regions `[image, region, token]`."""


@rule("unweave.pool", kind="frozen", mixes="axes", held=("regions",))
def pooled(step: Step, term: Term) -> Reads:
    """The weights of regions are held, as those of attention are."""
    regions, tokens = step["regions"], step["tokens"]
    held = Factor(frozen(regions, step), "irt", extents_of(regions))
    yield tokens, contraction(term, "irc", Factor(tokens, "itc", extents_of(tokens)), [held])
