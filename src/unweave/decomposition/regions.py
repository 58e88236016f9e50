"""Plans of regions: what is explained need not be the whole image.

    plan = unweave.plan(model, regions=True)
    parts = plan.run(images, [regions.token(3, 4), regions.box(10, 20, 60, 80)])
    parts.values                                    # [image, region, component, dim]

What the model pools its representation of is pooled by the region instead (see `unweave.structure.regions`); all else
is the same: the sum holds for each region, and is checked. For a number of regions there is a plan, made when it is
first asked for; which regions they are is known only when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from jaxtyping import Float
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from unweave.components import Component, Grid, Level, Selection
from unweave.contributions import Contributions, Projections
from unweave.decomposition.planning import Plan, Planner
from unweave.errors import ArgumentError, CaptureError
from unweave.graph.graph import Graph, line_of, operation
from unweave.graph.precision import exact
from unweave.regions import Region, tokens, weights_of
from unweave.results import Shown
from unweave.structure.places import lost
from unweave.structure.regions import Tokens, regional, tokens_of

Regions: TypeAlias = (
    "str | Region | Sequence[Region | str] | Sequence[Sequence[Region | str]] | Float[Tensor, '*image region token']"
)
"""`tokens` for every token of the grid; regions or their names, the same for all images or as many for each; or weights
of tokens.
"""


@dataclass(frozen=True, eq=False)
class Regional:
    """What each component adds to what the model makes of regions, as vectors or as inner products.

    Attributes:
        rows: The same with a row for each region of each image, which views, scores and searches take; its fields are
            `image` and `region`.
        images: The names of the images.
        names: The names of the regions of each image.
    """

    rows: Contributions | Projections
    images: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def values(self) -> Float[Tensor, "image region component _"]:
        """Contributions, `[image, region, component, dim]`, or their inner products, `[image, region, component,
        direction]`.
        """
        return self._apart(self.rows.values)

    @property
    def representation(self) -> Float[Tensor, "image region dim"]:
        """What the model makes of each region."""
        return self._apart(self.rows.representation)

    @property
    def error(self) -> Float[Tensor, "image region"]:
        """The relative error of each sum."""
        return self._apart(self.rows.error)

    @property
    def components(self) -> tuple[Component, ...]:
        """The components, in the order of their columns."""
        return self.rows.components

    def _apart(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (len(self.images), -1))


@dataclass(frozen=True, eq=False, repr=False)
class RegionPlan(Shown):
    """Everything about a decomposition of regions that does not depend on the images.

    Attributes:
        name: What the plan is of.
        level: How far branches are split.
        tokens: Where the model's tokens are, and how it pools them.
        size: Height and width of the model's images, in pixels.
    """

    name: str
    level: Level
    tokens: Tokens
    size: tuple[int, int]
    _graph: Graph = field(repr=False)
    _planned: Planner = field(repr=False)
    _select: Selection = None
    _plans: dict[int, Plan] = field(default_factory=dict, repr=False)

    def run(
        self,
        images: Float[Tensor, "image ..."],
        regions: Regions = "tokens",
        ids: Sequence[str] | None = None,
        *,
        tolerance: float | None = None,
    ) -> Regional:
        """Every component's contribution to what the model makes of each region.

        Memory: `image x region x component x dim` numbers. For many regions `project` is the way.

        Args:
            images: Preprocessed images, as for `Plan.run`.
            regions: `tokens` for every token of the grid; regions (see `unweave.regions`), the same for all images or a
                list for each; or weights of tokens, `[region, token]` or `[image, region, token]`.
            ids: The images' names; their row numbers if not given.
            tolerance: The largest relative error of a sum, as for `Plan.run`.

        Returns:
            `values` are `[image, region, component, dim]`.

        Raises:
            ArgumentError: There are no such regions.
            ConservationError, NonFiniteError, CaptureError, UnweaveError: As for `Plan.run`.
        """
        weights, named = self._weighed(images, regions, ids)
        rows = self.of(weights.shape[1]).run(images, named.rows, tolerance=tolerance, regions=weights)
        return named.apart(rows)

    def project(
        self,
        images: Float[Tensor, "image ..."],
        directions: Float[Tensor, "direction dim"] | Float[Tensor, "whole direction dim"],
        regions: Regions = "tokens",
        ids: Sequence[str] | None = None,
        *,
        tolerance: float | None = None,
    ) -> Regional:
        """Inner products of every contribution to what the model makes of each region, without the contributions: with
        all tokens as regions, a dense map for each component and direction.

        Memory: `image x region x component x direction` numbers (see `memory_per_image`).

        Args:
            images, regions, ids, tolerance: As for `run`.
            directions: As for `Plan.project`.

        Returns:
            `values` are `[image, region, component, direction]`.

        Raises:
            UnweaveError: As for `run` and `Plan.project`.
        """
        weights, named = self._weighed(images, regions, ids)
        plan = self.of(weights.shape[1])
        return named.apart(plan.project(images, directions, named.rows, tolerance=tolerance, regions=weights))

    def of(self, count: int) -> Plan:
        """The plan for so many regions; its `run` and `project` take their weights, and have a row for each region.

        Raises:
            ArgumentError: There cannot be so many.
            CaptureError: What follows the pooling cannot be done for several regions at once.
        """
        if count < 1:
            raise ArgumentError(f"There cannot be {count} regions.", cure="use 1 or more")
        if count not in self._plans:
            graph = regional(self._graph, self.tokens, count)
            self._plans[count] = self._planned(graph, self.level, self._select)
        return self._plans[count]

    def at(self, level: Level | None = None, select: Selection = None) -> RegionPlan:
        """The same model at another level or with another selection."""
        return replace(self, level=level or self.level, _select=select, _plans={})

    @property
    def grid(self) -> Grid:
        """Where the tokens lie in the image.

        Raises:
            CaptureError: That is lost on the way; the message names the operation.
        """
        if self.tokens.grid is None:
            node = lost(self._graph, self.tokens.node)
            raise CaptureError(
                f"Where tokens lie in the image is lost at {operation(node)} in "
                f"{self._graph.module(node) or 'the model'}.",
                where=line_of(node) or None,
                cure=f"give weights of its {self.tokens.count} tokens, [region, token]",
            )
        return self.tokens.grid

    @property
    def everywhere(self) -> tuple[str, ...]:
        """The names of all tokens of the grid, for `ImageSet.at`; raises a CaptureError as `grid` does."""
        return tuple(region.name for region in tokens(self.grid))

    @property
    def components(self) -> tuple[Component, ...]:
        """The columns of the result, in execution order."""
        return self.of(1).components

    @property
    def dim(self) -> int:
        """The width of what the model makes of a region."""
        return self.of(1).dim

    def memory_per_image(self, regions: int, directions: int | None = None) -> int:
        """Bytes that one image adds beside the model's own forward pass, for so many regions.

        Args:
            regions: How many.
            directions: For inner products, how many directions; None for vectors.
        """
        return self.of(regions).bytes_per_image(directions)

    @property
    def readout(self) -> str:
        """What a region is read by, in words."""
        tokens, grid = self.tokens, self.tokens.grid
        at = f"{tokens.count} tokens of {self._graph.module(tokens.node) or 'the model'}"
        if grid is not None:
            at += f" ({grid.height} x {grid.width}{f' and {grid.prefix} beside' if grid.prefix else ''})"
        if tokens.weights is None:
            after = next(iter(tokens.node.users), tokens.node)
            what = f"regions are sums of the {at}; what follows them does not weigh tokens alike"
            return f"{what}: {line_of(after) or after}"
        read = tokens.weights.abs() > 1e-6
        own = "one of them" if int(read.sum()) == 1 else f"{int(read.sum())} of them"
        return f"regions are pooled of the {at} in place of the model's own pooling, which reads {own}"

    def told(self) -> list[RenderableType]:
        """How regions are read, and the components."""
        return [Text(self.readout), Text(), *self.of(1).told()]

    def _weighed(self, images: Tensor, regions: Regions, ids: Sequence[str] | None) -> tuple[Tensor, _Names]:
        """Weights `[image, region, token]`, and the names of images and their regions."""
        count = len(images)
        named = tuple(str(number) for number in range(count)) if ids is None else tuple(map(str, ids))
        if len(named) != count:
            raise ArgumentError(f"{len(named)} ids for {count} images.", cure="give one id for each image")
        if isinstance(regions, Tensor):
            weights = regions if regions.dim() == 3 else regions[None].expand(count, -1, -1)
            if regions.dim() not in (2, 3) or weights.shape != (count, weights.shape[1], self.tokens.count):
                raise ArgumentError(
                    f"Weights of tokens should be [region, {self.tokens.count}] or [{count}, region, "
                    f"{self.tokens.count}], not {list(regions.shape)}.",
                    cure="give one weight for each token, class and register tokens too",
                )
            names = (tuple(str(number) for number in range(weights.shape[1])),) * count
        else:
            listed = tokens(self.grid) if isinstance(regions, str) and regions == "tokens" else regions
            weights, names = weights_of(listed, self.grid, self.size, count)
        return weights.to(images.device, images.dtype).contiguous(), _Names(named, names)


@dataclass(frozen=True)
class _Names:
    """The names of images, and those of the regions of each."""

    images: tuple[str, ...]
    regions: tuple[tuple[str, ...], ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(image, name) for image, names in zip(self.images, self.regions, strict=True) for name in names]

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(f"{image} {region}" for image, region in self.pairs)

    def apart(self, rows: Contributions | Projections) -> Regional:
        if isinstance(rows, Contributions):
            image, region = zip(*self.pairs, strict=True)
            rows = replace(rows, fields={"image": list(image), "region": list(region)})
        return Regional(rows, self.images, self.regions)


def region_plan(
    graph: Graph, planner: Planner, size: tuple[int, int], level: Level, selection: Selection
) -> RegionPlan:
    """The plan of regions of a captured graph, in which the tokens that its representation is made of are looked for.

    Args:
        graph: Of the whole model.
        planner: What makes the plan for each number of regions.
        size: Height and width of the model's images, in pixels.
        level: How far branches are split.
        selection: Which components to compute.

    Raises:
        CaptureError: It cannot be told where the tokens are.
    """
    with exact(graph.input.meta["val"].device):
        return RegionPlan(planner.name, level, tokens_of(graph), size, graph, planner, selection)
