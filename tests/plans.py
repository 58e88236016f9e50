"""One plan for each tiny model, shared by the tests of a process: capturing a model costs more than all runs of it."""

from __future__ import annotations

from functools import cache

import torch

import unweave
from families import Family


@cache
def plan_of(family: Family, dtype: torch.dtype = torch.float64, level: str = "head"):
    if level != "head":
        return plan_of(family, dtype).at(level)
    return unweave.plan(family.make(dtype), family.images(2, dtype))
