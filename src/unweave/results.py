"""Results: what every verb returns. A result shows, draws, saves and loads itself, and says how to make it again.

    scores = unweave.score(store, space="aligner")
    scores                                 # a table in a terminal, in a notebook too
    scores.table().to_pandas()             # every number
    scores.figure().savefig("scores.svg")
    scores.save("folder")                  # Scores.load("folder") equals it
    print(scores.code())                   # the Python and the command line that make it again

A result is a frozen dataclass of numbers, texts, tensors, components and other such records: `save` and `load` follow
the types of its fields, so that no result writes a format of its own.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import wraps
from importlib import metadata
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from unweave.errors import ArgumentError
from unweave.files import write_table
from unweave.files.fields import record
from unweave.files.pair import Kind, read_pair, write_pair

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = 1
LIBRARIES = ("unweave", "torch", "timm", "numpy")
"""The libraries whose versions a card names."""

P = ParamSpec("P")
R = TypeVar("R", bound="Result")


class Shown:
    """What shows itself, in a terminal and in a notebook."""

    def told(self) -> Iterable[RenderableType]:
        """What a reader wants to know first, as tables and sentences for a terminal."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What it is, ready for JSON."""
        raise NotImplementedError

    def __rich__(self) -> RenderableType:
        return Group(*self.told())

    def __repr__(self) -> str:
        """The same as in a terminal, without colours."""
        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        console = Console(record=True, file=io.StringIO(), width=120)
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


@dataclass(frozen=True, eq=False, repr=False)
class Result(Shown):
    """What a verb returns.

    Attributes:
        card: What it is, ready for JSON: the verb and its arguments, the model, versions, and what else belongs to it.
    """

    name: ClassVar[str]
    """The stem of the files that it is saved to."""

    width: ClassVar[int] = 0
    """The least width at which it is printed."""

    card: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def table(self) -> pa.Table:
        """Every number, as an Arrow table (`.to_pandas()` gives a frame)."""
        raise NotImplementedError

    def figure(self) -> Figure:
        """The picture of it, which matplotlib shows and saves."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What it is, ready for JSON: the card, and what a program wants to know beside the table."""
        return dict(self.card)

    def code(self) -> str:
        """The Python that makes it again, and the command line below it."""
        call = self.card.get("call")
        if call is None:
            return "# This result was not made by a verb of unweave."
        python = ", ".join(
            [*call["positional"].values(), *(f"{name}={text}" for name, text in call["keywords"].items())]
        )
        if call["command"] is None:
            command = f"# no command line makes it: {call['unsaid']}"
        else:
            output = [] if call["verb"] == "explain" else ["-o", self.name]
            command = f"# on the command line: {shlex.join(['unweave', call['verb'], *call['command'], *output])}"
        return f"import unweave\n\nresult = unweave.{call['verb']}({python})\n\n{command}\n"

    def save(self, folder: str | PathLike[str], *, figure: bool = True) -> dict[str, str]:
        """Write it: `NAME.safetensors` and `NAME.json`, which `load` reads; a table as `NAME.parquet` and `NAME.md`;
        and the picture as `NAME.png`, where there is something to draw.

        Args:
            folder: The folder, which is made where there is none.
            figure: Whether the picture is drawn.

        Returns:
            The files by their kind.

        Raises:
            UnweaveError: They cannot be written.
        """
        place, drawn = Path(folder), None
        if figure:
            with contextlib.suppress(ArgumentError):  # there is nothing to draw
                drawn = self.figure()
        files = self._write(place)
        files |= write_table(self.table(), place, self.name)
        if drawn is not None:
            from unweave.figures import save_figure

            files["figure"] = str(save_figure(drawn, place / f"{self.name}.png"))
        return files

    def _write(self, folder: Path) -> dict[str, str]:
        """The two files that `load` reads."""
        tensors = dict[str, Tensor]()
        saved = [part.name for part in fields(self) if part.metadata.get("saved", True)]
        content = {name: packed(getattr(self, name), tensors, name) for name in saved}
        pair = write_pair(*self._files(folder), self._kind(), tensors, content)
        return {"tensors": str(pair), "card": str(pair.with_suffix(".json"))}

    @classmethod
    def load(cls: type[R], folder: str | PathLike[str]) -> R:
        """Read what `save` wrote.

        Raises:
            StoreError: A file is missing, damaged, of a newer version, or not of this kind of result.
        """
        tensors_file, card_file = cls._files(Path(folder))
        content, tensors = read_pair(tensors_file, card_file, cls._kind())
        with cls._kind().reading(card_file):
            return record(cls, unpacked(content, tensors))

    @classmethod
    def _files(cls, folder: Path) -> tuple[Path, Path]:
        return folder / f"{cls.name}.safetensors", folder / f"{cls.name}.json"

    @classmethod
    def _kind(cls) -> Kind:
        return Kind(f"result {cls.name!r}", f"unweave {cls.name}", VERSION, "make it again with this version")


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose result says how it was called: `card["call"]` has the verb, its arguments as Python, and the
    words of the command line.
    """
    signature = inspect.signature(function)
    keywords = {name for name, part in signature.parameters.items() if part.kind is part.KEYWORD_ONLY}

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        result = function(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        given = {name: value for name, value in given.items() if not name.startswith("on_") and name != "kept"}
        call: dict[str, Any] = {
            "verb": function.__name__,
            "positional": {name: _python(value, name) for name, value in given.items() if name not in keywords},
            "keywords": {name: _python(value, name) for name, value in given.items() if name in keywords},
            "command": None,
        }
        try:
            call["command"] = _command(given)
        except ArgumentError as error:
            call["unsaid"] = error.what
        versions = {name: metadata.version(name) for name in LIBRARIES}
        return replace(result, card={"call": call, "versions": versions, **result.card})

    return called


def _python(value: Any, name: str) -> str:
    """The Python that makes an argument again; its name to fill in, where nothing does."""
    if hasattr(value, "as_code"):
        return str(value.as_code())
    if isinstance(value, PathLike):
        return repr(fspath(value))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_python(key, name)}: {_python(part, name)}' for key, part in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_python(part, name) for part in value)}]"
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{part}={_python(entry, part)}" for part, entry in _changed(value).items())
        return f"unweave.{type(value).__name__}({inside})"
    return repr(value) if value is None or isinstance(value, (str, int, float, bool)) else name


def _command(given: Mapping[str, Any]) -> list[str]:
    """The words of a command line for all arguments.

    Raises:
        ArgumentError: No words say one of them.
    """
    if "model" not in given and given.get("images"):
        raise ArgumentError("No option says where images lie that contributions do not know.")
    words: list[str] = []
    for name, value in given.items():
        said = _words(name, value)
        # What goes through an aligner has its text space by that.
        words += [] if said[:1] == ["--space"] and "--space" in words else said
    return words


def _words(name: str, value: Any) -> list[str]:
    """An argument as words of the command line.

    Raises:
        ArgumentError: No words say it.
    """
    if hasattr(value, "as_options"):
        return list(value.as_options(name))
    if value is None or value is False:
        return []
    if is_dataclass(value) and not isinstance(value, (type, Result)):
        changed = _changed(value)
        unsaid = next(
            (part.name for part in fields(value) if part.name in changed and part.metadata.get("unsaid")), None
        )
        if unsaid is not None:
            raise ArgumentError(f"No option says `{unsaid}`.")
        # Verbs differ in what tells classes where that is not said.
        always = {part.name: getattr(value, part.name) for part in fields(value) if part.name == "by"}
        return [word for part, entry in (always | changed).items() for word in _words(part, entry)]
    if isinstance(value, (list, tuple)) and name not in _FILES:
        return [word for entry in value for word in _words(_SINGULAR.get(name, name), entry)]
    if isinstance(value, Mapping) and name in _PAIRED:
        pairs = ((key, part) for key, entry in value.items() for part in ([entry] if isinstance(entry, str) else entry))
        return [word for key, part in pairs for word in _words(_SINGULAR.get(name, name), f"{key}={part}")]
    if not isinstance(value, (str, int, float, PathLike)):
        raise ArgumentError(f"No words say `{name}`, a {type(value).__name__}.")
    dashes = "-" if len(name) == 1 else "--"
    option = [] if name in _PLACED else [f"{dashes}{_OPTIONS.get(name, name).replace('_', '-')}"]
    return option if value is True else [*option, fspath(value) if isinstance(value, PathLike) else str(value)]


_PLACED = ("model", "images", "source", "which")
"""Arguments that are known by their place on the command line."""

_SINGULAR = {"texts": "text", "classes": "class", "features": "feature", "methods": "method", "phrases": "call"}
"""What an option is called that is given once for each entry."""

_PAIRED, _FILES = ("phrases", "best"), ("vocabulary", "among")
"""Arguments whose entries are said as NAME=VALUE, and those that a command line takes from a file only."""

_OPTIONS = {"among": "features", "texts": "text", "classes": "class"}
"""What an option is called that has another name than the argument."""


def _changed(value: Any) -> dict[str, Any]:
    """The fields of a record that are not as they are if nothing is said."""
    changed = {}
    for part in fields(value):
        usual = part.default_factory() if part.default_factory is not MISSING else part.default
        entry = getattr(value, part.name)
        if entry is not usual and not (isinstance(entry, (str, int, float, tuple, Mapping)) and entry == usual):
            changed[part.name] = entry
    return changed


def packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A field of a result as JSON, with its tensors apart.

    Args:
        value: The field.
        tensors: The tensors by name, to which those of the field are added.
        name: The name of the field.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        tensors[name] = torch.as_tensor(value).detach().cpu().contiguous().clone()
        return {"$array" if isinstance(value, np.ndarray) else "$tensor": name}
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: packed(getattr(value, part.name), tensors, f"{name}.{part.name}") for part in fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: packed(entry, tensors, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, Mapping):
        entries = enumerate(value.items())
        return [
            [packed(key, tensors, f"{name}.{row}"), packed(entry, tensors, f"{name}.{row}")]
            for row, (key, entry) in entries
        ]
    if isinstance(value, (list, tuple)):
        return [packed(entry, tensors, f"{name}.{row}") for row, entry in enumerate(value)]
    if isinstance(value, float) and not np.isfinite(value):
        return {"$number": str(value)}
    return fspath(value) if isinstance(value, PathLike) else value


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """JSON with its tensors in their places again.

    Args:
        value: What `packed` made of a field.
        tensors: The tensors by name.
    """
    if isinstance(value, dict):
        if set(value) == {"$tensor"}:
            return tensors[value["$tensor"]]
        if set(value) == {"$array"}:
            return tensors[value["$array"]].numpy()
        return {key: unpacked(entry, tensors) for key, entry in value.items()}
    return [unpacked(entry, tensors) for entry in value] if isinstance(value, list) else value


def rich_table(title: str, columns: Mapping[str, str], rows: Iterable[Sequence[str | Text]]) -> RenderableType:
    """A plain table for a terminal.

    Args:
        title: The title above it.
        columns: Each column's heading, and `left` or `right` for how its cells stand.
        rows: The cells, one for each column.
    """
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for heading, side in columns.items():
        drawn.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return Group(Text(title, "bold"), drawn)  # a title of the table's own would be broken at its width


def in_bytes(count: int) -> str:
    """A number of bytes as people say it: `3.2 MB`."""
    if count < 1000:
        return f"{count} B"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def left_out(skipped: Sequence[tuple[str, str]], most: int = 20) -> RenderableType:
    """The images that were left out, and why, for a terminal: the first so many."""
    return rich_table(f"{len(skipped)} images were left out", {"image": "left", "why": "left"}, skipped[:most])
