"""Operations that draw random numbers: a sum over components of one draw is true of no other, so they are refused."""

from __future__ import annotations

import torch
from torch import fx

from unweave.errors import CaptureError
from unweave.graph.graph import Graph, arguments, line_of, operation

_SWITCHES = ("train", "training")
_CHANCES = ("p", "dropout_p")


def refuse_random(graph: Graph) -> None:
    """Refuses a graph whose output depends on random numbers.

    Raises:
        CaptureError: Names the first such operation, its module and line, and how to switch it off.
    """
    for node in graph.nodes:
        if _draws(node) and graph.depends(graph.output, node):
            raise CaptureError(
                f"The representation is random: it depends on {operation(node)}.",
                where=", ".join(filter(None, (graph.module(node), line_of(node)))) or None,
                cure=_cure(node),
            )


def _draws(node: fx.Node) -> bool:
    """Whether an operation draws random numbers as it is called here."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = arguments(node)
    off = any(given.get(name) is False for name in _SWITCHES) or any(given.get(name) == 0 for name in _CHANCES)
    return not off


def _cure(node: fx.Node) -> str:
    given = arguments(node)
    if "dropout_p" in given:
        return "pass `dropout_p=0.0` there, or `self.p if self.training else 0.0` and call `.eval()` on the module"
    if "dropout" in operation(node) or any(name in given for name in _SWITCHES):
        return "call `.eval()` on the module; if it is called there whatever the mode, set p=0"
    return (
        "switch the masking or noise off (`mask_ratio=0`); where tokens are shuffled even so, put in place of the "
        "method that draws one that returns them all in order. Or draw once, in `__init__`, and keep it as a buffer; "
        "or wrap the module so that it is given a fixed tensor (`noise=torch.zeros(...)` for transformers' masked "
        "autoencoders)"
    )
