"""How one operation acts on a pending map: one file for each family of operations, one table of them all."""

from unweave.operations import affine, attention, convolution, nonlinear, norm, pooling, regions, shape
from unweave.operations.table import TABLE, Row, Step, find, missing, row, rule, source

__all__ = [
    "TABLE",
    "Row",
    "Step",
    "affine",
    "attention",
    "convolution",
    "find",
    "missing",
    "nonlinear",
    "norm",
    "pooling",
    "regions",
    "row",
    "rule",
    "shape",
    "source",
]
