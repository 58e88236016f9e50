"""A module to its graph: torch.export with a dynamic number of images, then tidied."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from unweave.errors import CaptureError, NonFiniteError
from unweave.graph.graph import Graph
from unweave.graph.tidy import tidied, without_mutation


def capture(module: nn.Module, example: Tensor) -> Graph:
    """Captures `module(images) -> representation` as a graph that runs at any batch size.

    Args:
        module: In evaluation mode; it is not modified.
        example: Images, `[image, channel, height, width]`; their number does not matter.

    Raises:
        CaptureError: The module does not export; the message holds the line that stopped it.
        NonFiniteError: A parameter is NaN or infinite.
    """
    parameters = dict(module.named_parameters())
    for name, tensor in [*parameters.items(), *module.named_buffers()]:
        # an infinite buffer may be a bound that is never reached; an infinite weight is an accident
        bad = ~torch.isfinite(tensor) if name in parameters else torch.isnan(tensor)
        if tensor.is_floating_point() and bool(bad.any()):
            raise NonFiniteError(f"The weight {name} is not finite.", where=name, cure="check the checkpoint")
    if example.shape[0] < 2:
        example = torch.cat([example, example])
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
            if not without_mutation(program.graph):
                program = program.run_decompositions({})  # costs as much again; only where memory is really shared
        except Exception as error:  # torch.export raises whatever the module's own code raises
            raise CaptureError(
                f"torch.export could not capture {type(module).__name__}: {_first_line(error)}",
                where=_user_line(error),
                cure="rewrite that line without data-dependent control flow, or wrap the part that exports",
            ) from error
    return tidied(program, _wrapper(module))


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
    """The innermost line of the traceback that is not torch's own."""
    frames = []
    current: BaseException | None = error
    while current is not None:
        traceback = current.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            frames.append((code.co_filename, traceback.tb_lineno, code.co_name))
            traceback = traceback.tb_next
        current = current.__cause__
    own = [frame for frame in frames if "/torch/" not in frame[0] and not frame[0].endswith("graph/export.py")]
    return f"{own[-1][0]}:{own[-1][1]} in {own[-1][2]}" if own else None
