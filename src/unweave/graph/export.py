"""A module to its graph: torch.export with a dynamic number of images, tidied, and held against the module itself."""

from __future__ import annotations

import io
import logging
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.attention import SDPBackend, sdpa_kernel

from unweave.errors import CaptureError
from unweave.graph.comparison import TOLERANCE, difference, twins, varied
from unweave.graph.counts import NOT_ONE, SIZES, TORCH, Differs, Merging, conditions_of
from unweave.graph.finite import check_weights
from unweave.graph.graph import Graph, Origin, extents_of
from unweave.graph.original import Original
from unweave.graph.precision import exact
from unweave.graph.randomness import refuse_random
from unweave.graph.tidy import WRAPPED, maps_images, tidied, without_mutation
from unweave.graph.watch import Watch, told

_HERE = str(Path(__file__).parents[1])
_ANY = ({0: torch.export.Dim.AUTO},)
EXPORTING = threading.RLock()
"""While torch.export traces one module it changes how every module is called, so nothing else is run meanwhile."""

_CAUSES = (
    (
        GuardOnDataDependentSymNode,
        "",
        "It makes a Python number, or a decision, of the images' values.",
        "compute with tensors there: `torch.where` for `if`, a tensor of one entry for `float(...)` and `int(...)`, "
        "`gather` or `index_select` for indexing by it",
    ),
    (RuntimeError, ".numpy() is not supported", "It leaves torch.", "use torch's operations in place of numpy's"),
    (
        RuntimeError,
        "data is not allocated yet",
        "It makes a new tensor of the images' values.",
        "use `torch.stack([...])` in place of `torch.tensor([...])`",
    ),
)
"""Errors of torch.export that have a plain cause: their class, a part of their text, what happened, and a cure."""

_SIZED = (
    ("len(", "use `x.shape[0]` in place of `len(x)`"),
    ("for ", "work on all images at once, without a loop over them"),
    ("unbind", "work on all images at once, without taking them apart"),
    ("assert", "leave that assertion out"),
    ("", "use `x.shape[0]` without making a Python number of it (`len`, `int`, `float`, `range`, `math`, `list`)"),
)
"""What a line does with the number of images, and a cure."""


def capture(module: nn.Module, example: Tensor) -> Graph:
    """Captures `module(images) -> representation` as a graph that runs at any batch size.

    The module is then run on one image, as a check that the graph computes the same.

    Args:
        module: In evaluation mode; it is not modified.
        example: Images, `[image, channel, height, width]`; their number does not matter.

    Raises:
        CaptureError: The module does not export (the message holds the line that stopped it), draws random numbers, or
            computes something else than its graph.
        NonFiniteError: A parameter is NaN or infinite.
    """
    images = varied(example)
    original = Original.of(module)
    with EXPORTING, exact(images.device):
        changes = original.caught_up() if original is not None else []
        graph = _captured(module, images)
        if original is not None and changes:
            present = _captured(original.again(), images)
            counterparts = twins(graph, present)
            if counterparts is None:
                raise CaptureError(
                    f"The module has changed since its Model was made: {told(changes)}.",
                    where=changes[0].path or None,
                    cure="make the Model again (`load_model`, `Model.from_module`), and plan again",
                )
            graph.tensors.update({node: present.tensors[counterparts[node]] for node in graph.tensors})
            original.accept(changes, {name: graph.tensors[node] for node, name in graph.names.items()})
    graph.origin = Origin(module, images, Watch(module, graph.tensors.values()))
    graph.versions = versions_of(graph)
    return graph


def versions_of(graph: Graph) -> list[tuple[int, int]]:
    """What changes when a tensor is written to, or another takes its memory; those made in inference mode do not
    count.
    """
    return [(own.data_ptr(), 0 if own.is_inference() else own._version) for own in graph.tensors.values()]


def _captured(module: nn.Module, images: Tensor) -> Graph:
    check_weights(module)
    graph = _exported(module, images)
    refuse_random(graph)
    if not extents_of(graph.input)[0].batch:
        graph = _for_any_count(module, images, graph)
        _check_same(graph, module, torch.cat([images] * 3)[:5])
    try:
        _check_same(graph, module, images[:1])
    except CaptureError:  # of a single image many a forward drops the axis, on purpose or not
        _check_same(graph, module, images)
        graph.conditions += (NOT_ONE,)
    return graph


def _check_same(graph: Graph, module: nn.Module, images: Tensor) -> None:
    """Refuses a graph that does not compute what its module does."""
    apart, allowed = difference(graph, module, images), TOLERANCE.get(images.dtype, 1e-5)
    if apart > allowed:
        raise CaptureError(
            f"The captured graph of {type(module).__name__} does not compute what the module does: the representations "
            f"differ by {apart:.1e} of their norm, more than {allowed:.0e}.",
            cure="look in its forward for autocast (computed here in the weights' own dtype: use `.to(torch.bfloat16)` "
            "instead), for Python state that changes from call to call (captured as it was), and for random numbers "
            "drawn outside of torch",
        )


def _exported(module: nn.Module, images: Tensor) -> Graph:
    """The graph of a module; its number of images is a symbol, unless the forward makes a Python number of it."""
    with _quiet():
        try:
            program = torch.export.export(_Wrapper(module), (images,), dynamic_shapes=_ANY, strict=False)
            conditions = conditions_of(program)
            if not without_mutation(program.graph) or maps_images(program.graph):
                # Costs as much again; only where memory is really shared, or images are mapped one by one. Of kernels
                # that attend there is none for what is mapped.
                with sdpa_kernel(SDPBackend.MATH):
                    program = program.run_decompositions({})
        except Exception as error:  # torch.export raises whatever the module's own code raises
            what, cure = _first_line(error), "rewrite that line with tensor operations, or wrap the part that exports"
            for kind, text, *cause in _CAUSES:
                if isinstance(error, kind) and text in str(error):
                    what, cure = cause
            what = f"torch.export could not capture {type(module).__name__}: {what}"
            raise CaptureError(what, where=user_line(error), cure=cure) from error
    return tidied(program, _prefix(module), conditions)


def _for_any_count(module: nn.Module, images: Tensor, graph: Graph) -> Graph:
    """The graph of a module that makes a Python number of the number of images."""
    line = next((condition.line for condition in graph.conditions if condition.line), "")
    counting = torch.export.export(nn.Identity(), (images,), dynamic_shapes=_ANY).graph
    try:
        other = _exported(module, torch.cat([images, images])[: SIZES[1]])
        return Merging(graph, other, next(iter(counting.nodes)).meta["val"].shape[0]).run()
    except (CaptureError, Differs) as error:
        line = line or (error.where or "" if isinstance(error, CaptureError) else str(error))
        raise CaptureError(
            f"The forward of {type(module).__name__} is another program for each number of images.",
            where=line or None,
            cure=next(cure for text, cure in _SIZED if text in line.partition(": ")[2]),
        ) from error


class _Wrapper(nn.Module):
    """A module that takes images, whatever the signature of the one inside; `tidied` takes its name off again."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.add_module(WRAPPED, module)

    def forward(self, images: Tensor) -> Any:
        """What the module inside returns."""
        return self.get_submodule(WRAPPED)(images)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.export's warnings, and without what it logs and prints of a failure that an error tells anyway."""
    logger = logging.getLogger(GuardOnDataDependentSymNode.__module__)

    def serious(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    logger.addFilter(serious)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.removeFilter(serious)


def _prefix(module: nn.Module) -> str:
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


def user_line(error: BaseException) -> str | None:
    """The innermost line of the traceback that is neither torch's nor of this package."""
    frames: list[traceback.FrameSummary] = []
    current: BaseException | None = error
    while current is not None:
        frames += traceback.extract_tb(current.__traceback__)
        current = current.__cause__
    theirs = [f for f in frames if not f.filename.startswith((TORCH, _HERE, "<"))]
    return f"{theirs[-1].filename}:{theirs[-1].lineno} in {theirs[-1].name}: {theirs[-1].line}" if theirs else None
