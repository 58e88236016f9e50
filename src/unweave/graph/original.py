"""What a twin was made of, so that it can be kept up with it.

A twin of a module has copies of its parts and the very same tensors, so what is written into a tensor is in both. What
takes the place of a tensor in the module does not reach the twin by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from unweave.graph.watch import Change, Watch

_PLACE = "unweave_original"


class Original:
    """The module that a twin was made of.

    Args:
        module: The module.
        twin: A copy of its whole tree, to which it will belong; whatever is taken off the twin later is still kept up.
        make: The twin of a module, as this one was made.

    Attributes:
        graphs: Those that the twin was captured as, by the size, type and device of its images.
    """

    def __init__(self, module: nn.Module, twin: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
        self.module, self.make = module, make
        self.outer: tuple[nn.Module, str] | None = None
        self.graphs: dict[Any, Any] = {}
        twins = dict(twin.named_modules())
        self._pairs = [(part, twins[path]) for path, part in module.named_modules() if path in twins]
        self._watch = Watch(module, unwatched=("training",))
        vars(twin)[_PLACE] = self

    @classmethod
    def of(cls, twin: nn.Module) -> Original | None:
        """What a module is a twin of."""
        return vars(twin).get(_PLACE)

    def inside(self, outer: nn.Module) -> None:
        """Notes that the module is a part of another one, where it may be replaced."""
        path = next((path for path, part in outer.named_modules() if part is self.module and path), None)
        self.outer = None if path is None else (outer, path)

    @property
    def unchanged(self) -> bool:
        """Whether nothing in the module was replaced."""
        return self._watch.unchanged and self.present is self.module

    @property
    def present(self) -> nn.Module:
        """What is now where the module was; an identity for nothing."""
        if self.outer is None:
            return self.module
        try:
            return self.outer[0].get_submodule(self.outer[1])
        except AttributeError:
            return nn.Identity()

    def caught_up(self) -> list[Change]:
        """Gives the module's present tensors to the twin.

        Returns:
            What else has changed.
        """
        if self.present is not self.module:
            assert self.outer is not None
            return [Change(self.outer[1], "submodule", "", self.module, self.present, {})]
        changes = self._watch.changes()
        twins = {
            id(vars(part)[slot]): vars(twin)[slot] for part, twin in self._pairs for slot in ("_parameters", "_buffers")
        }
        others = []
        for change in changes:
            place = twins.get(id(change.place))
            if change.tensor and place is not None and place.get(change.name) is not None:
                place[change.name] = change.new
            else:
                others.append(change)
        if not others:
            self._watch.look()
        return others

    def again(self) -> nn.Module:
        """A twin of the module as it is now."""
        return self.make(self.present)

    def accept(self, changes: Sequence[Change], tensors: Mapping[str, Tensor]) -> None:
        """Takes changes for harmless, and tensors for those of the twin, by their names in it."""
        for name, tensor in tensors.items():
            path, _, last = name.rpartition(".")
            part = vars(self._pairs[0][1].get_submodule(path))
            next(part[slot] for slot in ("_parameters", "_buffers") if last in part[slot])[last] = tensor
        if self.present is not self.module:
            self.module = self.present
            self._watch = Watch(self.module, unwatched=("training",))
        self._watch.accept(changes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Original | None:
        """A twin that is copied with its module is a twin of the copy; copied alone, it is a module of its own."""
        module = memo.get(id(self.module))
        if module is None:
            return None
        new = object.__new__(type(self))
        new.module, new.make, new.graphs = module, self.make, {}
        new.outer = None if self.outer is None else copy.deepcopy(self.outer, memo)
        new._pairs = [(copy.deepcopy(part, memo), copy.deepcopy(twin, memo)) for part, twin in self._pairs]
        new._watch = Watch(module, unwatched=("training",))
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled alone, a twin is a module of its own."""
        return type(None), ()
