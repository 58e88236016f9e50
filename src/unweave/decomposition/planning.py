"""A plan: what a model's representation is made of, and how to compute it; made once, run on any batch.

Making a plan captures the model, walks back from the representation, names the components and chooses what to
compute; it touches no images. Running it is pure: the model's operations are interpreted over its own weights, and
nothing is left in the model.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console, RenderableType
from torch import Tensor

from unweave.components import LEVELS, Component, Grid, Level, Selection
from unweave.components import select as places_of
from unweave.contributions import Contributions, Projections
from unweave.decomposition.branches import Lump, Walk
from unweave.decomposition.coverage import Coverage, coverage_of
from unweave.decomposition.explanation import Explanation
from unweave.decomposition.pieces import pieces_of
from unweave.decomposition.program import Program
from unweave.decomposition.selection import Request, chosen_and_rest, split_by_token
from unweave.decomposition.walk import walk
from unweave.errors import ArgumentError, ConservationError, DataError, NonFiniteError, RuleError
from unweave.graph.comparison import TOLERANCE as TOLERANCE
from unweave.graph.graph import Graph, extents_of
from unweave.graph.precision import exact
from unweave.results import Shown

_UNFOLDED = 10_000
"""Characters to a line of a plan as text: enough that no path is broken."""


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Shown):
    """Everything about a decomposition that does not depend on the images.

    Attributes:
        name: What the plan is of.
        components: The columns of the result, in execution order; `rest` last, if something was not selected.
        level: How far branches are split.
        grids: The token grid of each path where it is known (token level).
        unplaced: For each other path, the operation at which it was lost where its tokens lie (token level).
        coverage: How far attention was resolved.
        lumps: Operations that could not be followed; what lies below them is one component.
        notes: What was assumed or chosen of the model, in sentences.
    """

    name: str
    components: tuple[Component, ...]
    level: Level
    grids: dict[str, Grid]
    unplaced: dict[str, str]
    coverage: Coverage
    lumps: tuple[Lump, ...]
    _walk: Walk = field(repr=False)
    _request: Request = field(repr=False)
    notes: tuple[str, ...] = ()
    _programs: dict[tuple[int | None, bool], Program] = field(default_factory=dict, repr=False)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self,
        images: Float[Tensor, "image ..."],
        ids: Sequence[str] | None = None,
        *,
        tolerance: float | None = None,
        regions: Float[Tensor, "image region token"] | None = None,
    ) -> Contributions:
        """Every component's contribution to the representation of a batch.

        Args:
            images: Preprocessed images on the model's device and in its dtype; any number of them.
            ids: Their names; their row numbers if not given.
            tolerance: The largest relative error of the sum; by default 1e-5 in float32, 1e-10 in float64, 5e-2 in
                bfloat16.
            regions: What each region weighs tokens by, where the plan is of regions (see `RegionPlan`); there is then a
                row for each region of each image.

        Raises:
            ConservationError: The contributions do not add up to the representation.
            NonFiniteError: A weight or an activation is NaN or infinite.
            CaptureError: The module is no longer what was planned, or computes something else for so many images.
            UnweaveError: The images are on another device, in another dtype, or of another size.
        """
        names, allowed = self._checked(images, ids, tolerance, regions)

        def error_of(values: Tensor, z: Tensor) -> Tensor:
            return (values.sum(1) - z).norm(dim=-1) / z.norm(dim=-1).clamp_min(torch.finfo(z.dtype).tiny)

        values, representation, error = self._computed(self._program(None), (images, None, regions), error_of, allowed)
        self._conserved(error, allowed, names, values)
        return Contributions(values, self.components, names, representation, error, allowed)

    def project(
        self,
        images: Float[Tensor, "image ..."],
        directions: Float[Tensor, "direction dim"] | Float[Tensor, "whole direction dim"],
        ids: Sequence[str] | None = None,
        *,
        tolerance: float | None = None,
        regions: Float[Tensor, "image region token"] | None = None,
    ) -> Projections:
        """Every contribution's inner product with given directions, without forming the contributions.

        Components that have directions of their own (an aligner has a map for each) do not add up to the
        representation along any of them. Then the sum is checked along one direction more, the mean of all.

        Args:
            images: As for `run`.
            directions: `[direction, dim]`, or some for each of `wholes`, `[whole, direction, dim]`.
            ids: Names of the images.
            tolerance: The largest error of the sum, relative to the norms of the representation and the direction.
            regions: As for `run`.

        Raises:
            ConservationError, NonFiniteError, CaptureError, UnweaveError: As for `run`.
        """
        names, allowed = self._checked(images, ids, tolerance, regions)
        if not isinstance(directions, Tensor):
            raise ArgumentError(
                f"Directions are a tensor, not a {type(directions).__name__}.",
                cure="for words, give unweave.text_space(id).encode(words), where the model is the space's own",
            )
        apart, dim = directions.dim() == 3, self.dim
        if directions.shape[-1] != dim or not directions.numel() or (apart and len(directions) != len(self.wholes)):
            wanted = f"[direction, {dim}] or [{len(self.wholes)}, direction, {dim}]"
            raise ArgumentError(
                f"Directions should be {wanted}, not {list(directions.shape)}.", cure="one row for each direction"
            )
        if apart and any(component.kind == "rest" for component in self.components):
            raise ArgumentError(
                "What was not selected has no directions of its own.",
                where=self.name,
                cure="plan without a selection, and `split` what is chosen",
            )
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        given = directions.to(images.device, dtype).clone()  # what is held must not change with the caller's
        shared = given.flatten(0, -2).mean(0, keepdim=True) if apart else given
        sets = torch.cat([given, shared.expand(len(given), 1, dim)], 1) if apart else given[None]

        def error_of(values: Tensor, z: Tensor) -> Tensor:
            norms = z.norm(dim=-1, keepdim=True) * shared.norm(dim=-1)
            total = values.sum(1)[:, -len(shared) :]
            return ((total - z @ shared.T).abs() / norms.clamp_min(torch.finfo(z.dtype).tiny)).amax(-1)

        program = self._program(sets.shape[1], apart)
        values, representation, error = self._computed(program, (images, sets, regions), error_of, allowed)
        self._conserved(error, allowed, names, values)
        kept = values[..., : given.shape[-2]]
        return Projections(kept, self.components, names, representation, error, allowed)

    def at(self, level: Level | None = None, select: Selection = None) -> Plan:
        """The same model at another level or with another selection, without capturing it again.

        Raises:
            ArgumentError: There is no such level, or the selection matches nothing.
        """
        return _planned(self.name, self.notes, self._walk, level or self.level, select)

    def split(self, select: Selection = None) -> Plan:
        """The chosen components by token, and all others as they are, so that nothing has to be summed to a `rest`.

        Args:
            select: Of the components at level `head`.

        Raises:
            ArgumentError: The selection matches nothing.
        """
        heads, _, _ = pieces_of(self._walk, "head")
        tokens, grids, unplaced = pieces_of(self._walk, "token")
        everything = [component for piece in heads for component in piece.components]
        chosen = {everything[place] for place in places_of(everything, select)}
        request = split_by_token(heads, tokens, chosen)
        parts = request.components
        return replace(
            self, components=parts, level="token", grids=grids, unplaced=unplaced, _request=request, _programs={}
        )

    @cached_property
    def wholes(self) -> tuple[Component, ...]:
        """The components with the tokens of each taken together, in order."""
        return tuple(dict.fromkeys(component.whole for component in self.components))

    def drop(self) -> None:
        """Forgets the weight-only matrices, which the next run makes again."""
        self._programs.clear()

    @property
    def dim(self) -> int:
        """The width of the representation."""
        return extents_of(self._walk.graph.output)[-1].size

    def _program(self, directions: int | None, apart: bool = False) -> Program:
        """What computes vectors, or scores along so many directions, which components may have apart."""
        if (directions, apart) not in self._programs:
            place = {whole: number for number, whole in enumerate(self.wholes)} if apart else {}
            sets = [place[component.whole] for component in self.components] if apart else None
            program = Program(self._walk.graph, self._request.jobs, len(self.components), directions, sets)
            self._programs[directions, apart] = program
        return self._programs[directions, apart]

    def _computed(
        self,
        program: Program,
        batch: tuple[Tensor, Tensor | None, Tensor | None],
        error_of: Callable[[Tensor, Tensor], Tensor],
        allowed: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The result, the representation, and the error of the sum, for each image or each region of each.

        What is written into a weight through `.data` or numpy is not counted by it. So where the sum does not hold,
        the weights are read anew before anybody is blamed.
        """
        generation = program.generation
        with exact(batch[0].device):
            values, representation = program.run(*batch)
            for column, chosen in self._request.subtractions:
                values[:, column] -= values[:, list(chosen)].sum(1)
            if batch[2] is not None:
                values = values.unflatten(2, (program.regions, -1)).transpose(1, 2).flatten(0, 1)
                representation = representation.flatten(0, 1)
            error = error_of(values, representation.to(values.dtype))
        if generation != program.generation or bool((error <= allowed).all()):
            return values, representation, error
        self._walk.graph.forget()
        return self._computed(program, batch, error_of, allowed)

    def _checked(
        self, images: Tensor, ids: Sequence[str] | None, tolerance: float | None, regions: Tensor | None
    ) -> tuple[tuple[str, ...], float]:
        expected = self._walk.graph.input.meta["val"]
        shape = f"[image, {', '.join(map(str, expected.shape[1:]))}]"
        if not isinstance(images, Tensor):
            raise ArgumentError(
                f"A plan runs on a batch of preprocessed images, a tensor {shape}, not on a {type(images).__name__}.",
                cure="unweave.decompose(model, images) preprocesses a set of images; "
                "for pictures of your own, torch.stack([model.preprocess(picture) for picture in pictures])",
            )
        if images.shape == expected.shape[1:]:
            raise ArgumentError(f"The plan is for {shape}, and a batch is missing.", cure="images[None]")
        if isinstance(ids, str):
            raise ArgumentError("The ids are one text.", cure=f"give a list, such as [{ids!r}]")
        if tolerance is not None and not tolerance >= 0:
            raise ArgumentError(f"The tolerance cannot be {tolerance}.", cure="use a number from 0 on")
        if images.dim() != expected.dim() or tuple(images.shape[1:]) != tuple(expected.shape[1:]):
            raise DataError(
                f"The plan is for images {list(expected.shape[1:])}, these are {list(images.shape)}.",
                cure="preprocess them with the model's own preprocessing, or plan for this size",
            )
        if images.dtype != expected.dtype or images.device != expected.device:
            raise DataError(
                f"The plan is for {expected.dtype} on {expected.device}, not {images.dtype} on {images.device}.",
                cure="move the images, or plan again after moving the model",
            )
        rows, what = (len(images), "image") if regions is None else (regions.shape[:2].numel(), "region of each image")
        names = tuple(map(str, ids)) if ids is not None else tuple(str(row) for row in range(rows))
        if len(names) != rows:
            raise ArgumentError(f"{len(names)} ids for {len(images)} images.", cure=f"give one id for each {what}")
        return names, TOLERANCE.get(images.dtype, 1e-5) if tolerance is None else tolerance

    def _conserved(self, error: Tensor, allowed: float, names: Sequence[str], values: Tensor) -> None:
        if not error.numel():
            return
        if not bool(torch.isfinite(error).all()):
            row = int((~torch.isfinite(error)).nonzero()[0])
            bad = (~torch.isfinite(values[row]).all(-1)).nonzero().flatten().tolist()
            where = str(self.components[bad[0]]) if bad else "the representation"
            raise NonFiniteError(
                f"The contributions of image {names[row]} are not finite.",
                where=where,
                cure="check the image and the weights for NaN or infinity",
            )
        worst = int(error.argmax())
        if float(error[worst]) > allowed:
            raise ConservationError(
                f"The contributions of image {names[worst]} miss the representation by {float(error[worst]):.2e}, "
                f"more than {allowed:.0e} of its norm.",
                where=self.name,
                cure="compute in float64, or report the model: a rule of unweave may be wrong for it",
            )

    # -- explaining ------------------------------------------------------------------------------------------------

    @cached_property
    def operations(self) -> tuple[tuple[str, str, int, tuple[str, ...]], ...]:
        """What fired: `(operation, kind of its rule, how often, some modules)`, most frequent first."""
        modules: dict[tuple[str, str], list[str]] = {}
        for node, rule in self._walk.fired:
            modules.setdefault((rule.operation, rule.kind), []).append(self._walk.graph.module(node))
        fired = sorted(modules.items(), key=lambda item: -len(item[1]))
        return tuple((name, kind, len(paths), tuple(dict.fromkeys(paths))[:3]) for (name, kind), paths in fired)

    @property
    def memory_per_image(self) -> int:
        """Bytes that one image adds beside the model's own forward pass: what is kept for the contractions, and the
        result.
        """
        return self.bytes_per_image()

    def bytes_per_image(self, directions: int | None = None) -> int:
        """The same for inner products with so many directions; for vectors if not given."""
        return self._program(directions).bytes_per_image

    @property
    def constant_bytes(self) -> int:
        """Bytes of the weight-only matrices that the plan keeps once it has run."""
        return self._program(None).constant_bytes

    def report(self) -> dict[str, Any]:
        """The plan as data, ready for JSON."""
        kinds = Counter(component.kind for component in self.components)
        return {
            "model": self.name,
            "dim": self.dim,
            "level": self.level,
            "components": [component.as_dict() for component in self.components],
            "kinds": dict(kinds),
            "operations": [
                {"operation": name, "rule": kind, "count": count, "modules": list(modules)}
                for name, kind, count, modules in self.operations
            ],
            "coverage": {name: list(t) if isinstance(t, tuple) else t for name, t in vars(self.coverage).items()},
            "lumps": [
                {name: getattr(lump, name) for name in ("operation", "module", "line", "reason", "rule")}
                for lump in self.lumps
            ],
            "dense": list(self.dense),
            "memory_per_image": self.memory_per_image,
            "constant_bytes": self.constant_bytes,
            "unplaced": self.unplaced,
            "notes": list(self.notes),
            "grids": {
                path: {name: getattr(grid, name) for name in ("height", "width", "prefix")}
                for path, grid in self.grids.items()
            },
        }

    @property
    def dense(self) -> tuple[str, ...]:
        """Components whose pending map depends on the image in every channel, so that their contraction is as large
        as the value itself.
        """
        return tuple(str(self.components[column]) for column in self._program(None).dense)

    def explanation(self, frozen: Plan | None = None) -> Explanation:
        """What the plan consists of, as a result: it shows, draws and saves itself.

        Args:
            frozen: The plan of the same model with `nonlinear="freeze"`, to be told of beside it.
        """
        report = self.report()
        if frozen is not None:
            told = frozen.report()
            report["frozen"] = {name: told[name] for name in ("kinds", "coverage", "memory_per_image")}
        return Explanation(self.components, report, card={"model": self.name, "level": self.level})

    def told(self) -> list[RenderableType]:
        """The same as `explanation` shows."""
        return self.explanation().told()

    def __repr__(self) -> str:
        kinds = ", ".join(
            f"{count} {kind}" for kind, count in Counter(part.kind for part in self.components).most_common()
        )
        return (
            f"Plan({self.name}, level {self.level}, {len(self.components)} components ({kinds}), {self.dim} dim, "
            f"{self.coverage.resolved} of {self.coverage.attention_layers} attention layers resolved)"
        )

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_UNFOLDED, color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Planner:
    """Plans of captured graphs, made in one way: what decides their components, beside the level and the selection.

    Attributes:
        name: What the plan is of.
        passing: Whether attention that pools another stream is passed through.
        freeze: Whether nonlinearities on the trunk are passed with their slope held.
        strict: Whether an operation that cannot be followed is an error.
        notes: What was assumed or left out on the way to the graph.
    """

    name: str = "module"
    passing: bool = True
    freeze: bool = False
    strict: bool = False
    notes: tuple[str, ...] = ()

    def __call__(self, graph: Graph, level: Level = "head", selection: Selection = None) -> Plan:
        """Walks back from the graph's output, and decides what to compute.

        Raises:
            RuleError: Under `strict`, an operation on the path cannot be followed; it names the rule to write.
            ArgumentError: There is no such level, or the selection matches nothing.
        """
        with exact(graph.input.meta["val"].device):
            walked = walk(graph, passing=self.passing, freeze=self.freeze)
        if self.strict and walked.lumps:
            lump = walked.lumps[0]
            rule = f"write its rule:\n{lump.rule}" if lump.rule else ""
            raise RuleError(
                f"{lump.operation} cannot be followed: {lump.reason}.",
                where=f"{lump.module} ({lump.line})",
                cure=rule or "decompose without `strict`; what lies below is one component",
            )
        return _planned(self.name, self.notes, walked, level, selection)


def _planned(name: str, notes: tuple[str, ...], walk: Walk, level: Level, selection: Selection) -> Plan:
    """A plan from a finished walk."""
    if level not in LEVELS:
        raise ArgumentError(f"There is no level {level!r}.", cure=f"choose one of {', '.join(LEVELS)}")
    pieces, grids, unplaced = pieces_of(walk, level)
    chosen = places_of([component for piece in pieces for component in piece.components], selection)
    request = chosen_and_rest(pieces, chosen, walk.branches)
    return Plan(name, request.components, level, grids, unplaced, coverage_of(walk), walk.lumps, walk, request, notes)
