"""How one operation acts on a pending map: one file for each family of operations, one table of them all."""

from unweave.operations import affine, attention, convolution, nonlinear, norm, pooling, regions, shape  # noqa: F401
from unweave.operations.table import TABLE, Row, Step, rule, source

__all__ = ["TABLE", "Row", "Step", "rule", "source"]
