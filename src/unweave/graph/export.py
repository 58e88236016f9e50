"""A module to its graph: torch.export with a dynamic number of images, tidied, and held against the module itself."""

from __future__ import annotations

import threading
import traceback
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from unweave.errors import CaptureError, NonFiniteError
from unweave.graph.comparison import TOLERANCE, difference, varied
from unweave.graph.graph import Graph
from unweave.graph.randomness import refuse_random
from unweave.graph.tidy import tidied, without_mutation

_TORCH = str(Path(torch.__file__).parent)
_EXPORTING = threading.RLock()
"""While torch.export traces one module it changes how every module is called, so nothing else is run meanwhile."""


def capture(module: nn.Module, example: Tensor) -> Graph:
    """Captures `module(images) -> representation` as a graph that runs at any batch size.

    The module is then run once on two images, as a check that the graph computes the same.

    Args:
        module: In evaluation mode; it is not modified.
        example: Images, `[image, channel, height, width]`; their number does not matter.

    Raises:
        CaptureError: The module does not export (the message holds the line that stopped it), draws random numbers, or
            computes something else than its graph.
        NonFiniteError: A parameter is NaN or infinite.
    """
    _check_finite(module)
    images = varied(example)
    with _EXPORTING, torch.autocast(images.device.type, enabled=False):
        graph = tidied(_exported(module, images), _wrapper(module))
        refuse_random(graph)
        apart, allowed = difference(graph, module, images), TOLERANCE.get(images.dtype, 1e-5)
    if apart > allowed:
        raise CaptureError(
            f"The captured graph of {type(module).__name__} does not compute what the module does: the representations "
            f"differ by {apart:.1e} of their norm, more than {allowed:.0e}.",
            cure="look in its forward for autocast (computed here in the weights' own dtype: use `.to(torch.bfloat16)` "
            "instead), for Python state that changes from call to call (captured as it was), and for random numbers "
            "drawn outside of torch",
        )
    return graph


def _check_finite(module: nn.Module) -> None:
    parameters = dict(module.named_parameters())
    for name, tensor in [*parameters.items(), *module.named_buffers()]:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # an infinite buffer may be a bound that is never reached; an infinite weight is an accident
        extremes = torch.stack(torch.aminmax(tensor.detach()))
        bad = ~torch.isfinite(extremes) if name in parameters else torch.isnan(extremes)
        if bool(bad.any()):
            raise NonFiniteError(f"The weight {name} is not finite.", where=name, cure="check the checkpoint")


def _exported(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)
            if not without_mutation(program.graph):
                program = program.run_decompositions({})  # costs as much again; only where memory is really shared
        except Exception as error:  # torch.export raises whatever the module's own code raises
            raise CaptureError(
                f"torch.export could not capture {type(module).__name__}: {_first_line(error)}",
                where=_user_line(error),
                cure="rewrite that line without data-dependent control flow, or wrap the part that exports",
            ) from error
    return program


def _wrapper(module: nn.Module) -> str:
    """The path of the model inside wrappers that hold nothing else."""
    path: list[str] = []
    while len(children := list(module.named_children())) == 1 and not list(module.parameters(recurse=False)):
        name, module = children[0]
        if name.isdigit():
            break
        path.append(name)
    return ".".join(path)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _user_line(error: BaseException) -> str | None:
    """The innermost line of the traceback that is neither torch's nor this file's."""
    frames: list[traceback.FrameSummary] = []
    current: BaseException | None = error
    while current is not None:
        frames += traceback.extract_tb(current.__traceback__)
        current = current.__cause__
    theirs = [frame for frame in frames if not frame.filename.startswith((_TORCH, "<")) and frame.filename != __file__]
    return f"{theirs[-1].filename}:{theirs[-1].lineno} in {theirs[-1].name}: {theirs[-1].line}" if theirs else None
