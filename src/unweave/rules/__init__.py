"""How one operation acts on a pending map: one file for each family of operations, one table of them all."""

from unweave.rules import affine, attention, convolution, nonlinear, norm, pooling, shape
from unweave.rules.registry import TABLE, Rule, Step, find, missing, rule, source

__all__ = [
    "TABLE",
    "Rule",
    "Step",
    "affine",
    "attention",
    "convolution",
    "find",
    "missing",
    "nonlinear",
    "norm",
    "pooling",
    "rule",
    "shape",
    "source",
]
