"""Operations at which the walk stops: they are not linear, whatever is held."""

from __future__ import annotations

from unweave.rules.registry import source

source("aten.softmax", "aten._softmax", "aten._safe_softmax", normalises=True)
source(
    *(
        f"aten.{name}"
        for name in [
            "gelu",
            "relu",
            "relu6",
            "silu",
            "sigmoid",
            "tanh",
            "hardswish",
            "hardsigmoid",
            "hardtanh",
            "elu",
            "selu",
            "celu",
            "leaky_relu",
            "prelu",
            "mish",
            "softplus",
            "log_sigmoid",
            "exp",
            "expm1",
            "log",
            "log1p",
            "pow",
            "sqrt",
            "rsqrt",
            "square",
            "abs",
            "reciprocal",
            "clamp",
            "clamp_min",
            "clamp_max",
            "erf",
            "sin",
            "cos",
            "maximum",
            "minimum",
            "where",
            "softsign",
            "threshold",
            "rrelu_with_noise",
            "sign",
            "linalg_vector_norm",
            "norm",
            "var",
            "std",
            "var_mean",
            "cumsum",
            "topk",
            "sort",
            "max",
            "min",
            "argmax",
            "grid_sampler",
            "atan",
            "log_softmax",
            "lstm",
            "masked_fill",
        ]
    )
)
