"""A component: one named piece of the model that writes into its representation, and selections of them.

A component is addressed by the model's own module path and, where the level splits further, by head, token or neuron:
`blocks.9.attn.head.7`, `layers.2.blocks.14.mlp`, `stages.1.blocks.0.conv`, `embed`. The string is a rendering only;
code reads the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias, get_args

from unweave.errors import ArgumentError
from unweave.notation import whole

Kind = Literal["head", "attn", "mlp", "conv", "linear", "embed", "bias", "lumped", "rest"]
"""What a component is made of.

`head` one attention head; `attn` a whole attention branch; `mlp` a branch that ends in a nonlinearity; `conv` a
branch with a spatial convolution; `linear` a branch without any nonlinearity; `embed` what enters the residual
stream; `bias` the bias terms of one branch; `lumped` a part of the path that has no rule or is not linear; `rest` the
sum of all that was not selected.
"""

Level = Literal["layer", "head", "token", "neuron"]
LEVELS: tuple[Level, ...] = get_args(Level)
KINDS: tuple[Kind, ...] = get_args(Kind)


PADDING = -(2**31)
"""The cell of a token that is none: it fills a window at the edge of the grid."""


@dataclass(frozen=True)
class Grid:
    """Where a layer's tokens lie in the image: windows undone, prefix tokens apart.

    Attributes:
        height, width: The layer's own token grid.
        cells: For each token, `row * width + column`; `-1 - k` for the k-th prefix (class, register) token; `PADDING`
            for one that only fills a window.
        times: For each token of a clip, which of its frames, or groups of frames, it comes from; empty for images.
    """

    height: int
    width: int
    cells: tuple[int, ...]
    times: tuple[int, ...] = ()

    @property
    def prefix(self) -> int:
        """How many class and register tokens there are beside the grid."""
        return sum(PADDING < cell < 0 for cell in self.cells)


@dataclass(frozen=True)
class Component:
    """One addressable part of the model that contributes to the representation.

    Attributes:
        path: The module path of the branch, as the model names it (`blocks.9.attn`).
        kind: What it is made of (`Kind`).
        layer: The ordinal of its block in execution order, from 0; None outside the blocks.
        head, token, neuron: The piece of the branch, where the level splits it.
        row, column: The token's cell on the layer's own grid; None for prefix tokens and where there is no token.
        time: Of a token of a clip, which of its frames, or groups of frames, it comes from.
    """

    path: str
    kind: Kind
    layer: int | None = None
    head: int | None = None
    token: int | None = None
    neuron: int | None = None
    row: int | None = None
    column: int | None = None
    time: int | None = None

    def __str__(self) -> str:
        text = f"{self.path}.bias" if self.kind == "bias" and self.path else self.path or self.kind
        for name in ("head", "token", "neuron"):
            value = getattr(self, name)
            if value is not None:
                text += f".{name}.{value}"
        return text

    @property
    def whole(self) -> Component:
        """What a token is a part of: the same component, summed over its tokens."""
        return replace(self, token=None, row=None, column=None, time=None) if self.token is not None else self

    def as_dict(self) -> dict[str, object]:
        """The fields that are set, ready for JSON, with the rendered name under `name`."""
        return {"name": str(self), **{key: value for key, value in asdict(self).items() if value is not None}}


Selection: TypeAlias = "str | Component | Callable[[Component], bool] | Iterable[str | Component] | None"
"""Which components: None (all), a glob on the name, a kind (`kind:head`), the last n layers (`last:4`), a component, a
predicate, or several of these.

A glob matches the component itself or anything below it: `blocks.9` and `blocks.9.*` both take every head of block 9.
"""


def select(components: Sequence[Component], selection: Selection) -> list[int]:
    """The positions of the chosen components, in their order.

    Args:
        components: All components of a plan.
        selection: See `Selection`; several are united. A leading `!` takes away from what is chosen so far.

    Raises:
        ArgumentError: The selection matches nothing, or one part of it matches nothing, or names an unknown kind.
    """
    if selection is None:
        return list(range(len(components)))
    if isinstance(selection, str):
        parts: list[object] = [part.strip() for part in selection.split(",") if part.strip()]
    elif callable(selection) or not isinstance(selection, Iterable):
        parts = [selection]
    else:
        parts = list(selection)
    chosen: set[int] = set()
    for number, part in enumerate(parts):
        text = part if isinstance(part, str) else ""
        without, text = text.startswith("!"), text.removeprefix("!")
        matches = _matcher(components, text or part)
        matching = {index for index, component in enumerate(components) if matches(component)}
        if not matching:
            raise ArgumentError(
                f"The selection {part!s:.80} matches none of the {len(components)} components.",
                cure=f"choose from names such as {', '.join(_examples(components))}, `kind:KIND` or `last:N`",
            )
        if without and number == 0:
            chosen = set(range(len(components)))
        chosen = chosen - matching if without else chosen | matching
    if not chosen:
        raise ArgumentError("The selection leaves no component.", cure="take away less, or select nothing to get all")
    return sorted(chosen)


def _matcher(components: Sequence[Component], part: object) -> Callable[[Component], bool]:
    if isinstance(part, Component):
        return lambda component: component == part
    if callable(part):
        return lambda component: bool(part(component))
    if not isinstance(part, str):
        raise ArgumentError(
            f"{part!r} is not a selection.", cure="give a glob, `kind:KIND`, `last:N`, a Component or a predicate"
        )
    if part.startswith("kind:"):
        kind = part.removeprefix("kind:")
        if kind not in KINDS:
            raise ArgumentError(f"There is no kind {kind!r}.", cure=f"choose one of {', '.join(KINDS)}")
        return lambda component: component.kind == kind
    if part.startswith("last:"):
        number = part.removeprefix("last:")
        count = whole(number, 1)
        if count is None:
            raise ArgumentError(f"{part!r} does not say how many layers.", cure="write `last:4` for the last four")
        layers = sorted({component.layer for component in components if component.layer is not None})
        kept = set(layers[-count:])
        return lambda component: component.layer in kept
    return lambda component: fnmatchcase(str(component), part) or fnmatchcase(str(component), f"{part}.*")


def _examples(components: Sequence[Component]) -> list[str]:
    step = max(1, len(components) // 4)
    return [str(component) for component in components[::step]][:4]
