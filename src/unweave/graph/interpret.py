"""The one interpreter of a captured graph: operations on values that somebody supplies.

Whoever needs the values of nodes (all of them, or one at a time, or numbers in their place) says what each argument of
an operation is, and gets what the operation makes of it. Nothing here knows what a value is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import fx

ValueOf: TypeAlias = Callable[[fx.Node], Any]
"""The value of a node that an operation takes."""


def applied(node: fx.Node, value_of: ValueOf) -> Any:
    """What a node's operation makes of the values of its arguments."""
    given: Any = fx.map_arg((node.args, node.kwargs), value_of)
    args, kwargs = given
    return node.target(*args, **kwargs)  # type: ignore[operator]


def interpret(
    nodes: Iterable[fx.Node], values: dict[fx.Node, Any], step: Callable[[fx.Node, ValueOf], Any] = applied
) -> dict[fx.Node, Any]:
    """Computes nodes in order.

    Args:
        nodes: Operations, each after those it takes values from.
        values: What is there before (images, weights); what is computed is added to it.
        step: What to do for each operation, in place of applying it.

    Returns:
        `values`.
    """
    for node in nodes:
        values[node] = step(node, values.__getitem__)
    return values


def length(value: Any, images: int) -> Any:
    """A length at a number of images: of a symbolic one its number, of anything else that itself."""
    if not isinstance(value, torch.SymInt):
        return value
    expression = value.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, images)))
