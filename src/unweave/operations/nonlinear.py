"""Operations at which the walk stops: they are not linear, whatever is held."""

from __future__ import annotations

from unweave.operations.table import source

ELEMENTWISE = """
    gelu relu relu6 silu sigmoid tanh hardswish hardsigmoid hardtanh elu selu celu leaky_relu prelu mish softplus
    log_sigmoid threshold rrelu rrelu_with_noise hardshrink softshrink exp expm1 log log1p pow sqrt rsqrt square abs
    reciprocal clamp clamp_min clamp_max erf sin cos atan sign maximum minimum
"""
MIXING = "glu linalg_vector_norm norm var std var_mean topk sort max min argmax grid_sampler log_softmax lstm"

source("aten.softmax", "aten._softmax", "aten._safe_softmax", softmax=True, mixes="axes")
source(*(f"aten.{name}" for name in ELEMENTWISE.split()))
source(*(f"aten.{name}" for name in MIXING.split()), mixes="axes")
