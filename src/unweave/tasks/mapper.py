"""A mapper: the scores of a plan's components for a target, laid where their tokens lie in the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.components import Grid, Selection, select
from unweave.decomposition import Plan
from unweave.errors import ArgumentError
from unweave.tasks.maps import Heatmaps
from unweave.tasks.target import Target


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where the columns of one component lie.

    Attributes:
        grid: Of its layer; None where it is not known.
        placed: Columns of tokens that have a cell.
        cells: Their cells.
        prefix: Columns of tokens that have none.
        placeless: The column that is not split by token.
    """

    grid: Grid | None
    placed: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    prefix: list[int] = field(default_factory=list)
    placeless: list[int] = field(default_factory=list)


class Mapper:
    """Maps of some of a plan's components; made once, used for any images and targets.

    A call costs a forward pass and little more; components that are not chosen are not split by token.

    Args:
        plan: Of the model, at level `head`.
        chosen: Which components are mapped; all heads if not given.

    Raises:
        ArgumentError: The selection matches nothing, or nothing that reads tokens at known places.
    """

    def __init__(self, plan: Plan, chosen: Selection = None) -> None:
        whole = plan if plan.level == "head" else plan.at("head")
        picked = "kind:head" if chosen is None else chosen
        self.components = tuple(whole.components[place] for place in select(whole.components, picked))
        self.plan = whole.split(self.components)
        self._layouts = {component: _Layout(self.plan.grids.get(component.path)) for component in self.components}
        self._others: dict[str, list[int]] = {}
        for column, part in enumerate(self.plan.components):
            own = self._layouts.get(part.whole)
            if own is None:
                self._others.setdefault(part.kind, []).append(column)
            elif part.token is None:
                own.placeless.append(column)
            elif own.grid is not None and part.row is not None and part.column is not None:
                own.placed.append(column)
                own.cells.append(part.row * own.grid.width + part.column)
            else:
                own.prefix.append(column)
        if not any(own.placed for own in self._layouts.values()):
            some = ", ".join(map(str, self.components[:3]))
            text = f"None of the {len(self.components)} chosen components reads tokens at known places ({some})."
            place = next(iter(self.plan.unplaced.values()), None)
            if place is None:
                raise ArgumentError(text, where=plan.name, cure="choose heads, such as `kind:head` or `last:4`")
            raise ArgumentError(
                f"{text} Where they lie in the image is lost at {place}.",
                where=plan.name,
                cure="write that step with operations that move tokens or convolve them, or report the operation",
            )

    def __call__(
        self,
        images: Float[Tensor, "image channel height width"],
        target: Target,
        ids: Sequence[str] | None = None,
        regions: Float[Tensor, "image 1 token"] | None = None,
    ) -> Heatmaps:
        """The maps of a batch for every direction of a target.

        Memory: `image x column x direction` numbers, where columns are tokens of the chosen components.

        Args:
            images: Preprocessed.
            target: What the scores are for.
            ids: Names of the images.
            regions: Weights of tokens, where the plan is of regions (`RegionPlan.of(1)`).

        Raises:
            StoreError: The target's aligner has no map for a component.
            UnweaveError: As for `Plan.project`.
        """
        scores = self.plan.project(images, target.along(self.plan.wholes), ids, regions=regions)
        values = scores.values.transpose(1, 2).cpu()

        def summed(columns: Sequence[int]) -> Tensor:
            return values[..., list(columns)].sum(-1)

        maps = {}
        for component, own in self._layouts.items():
            if own.grid is not None and own.placed:
                flat = values.new_zeros(*values.shape[:2], own.grid.height * own.grid.width)
                flat.index_add_(-1, torch.tensor(own.cells), values[..., own.placed])
                maps[component] = flat.unflatten(-1, (own.grid.height, own.grid.width))
        return Heatmaps(
            tuple(scores.ids),
            target.names,
            maps,
            {component: summed(own.prefix) for component, own in self._layouts.items()},
            {component: summed(own.placeless) for component, own in self._layouts.items()},
            {kind: summed(columns) for kind, columns in self._others.items()},
            target.constants.to(values.dtype),
            scores.error.cpu(),
        )
