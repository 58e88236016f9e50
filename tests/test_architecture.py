"""Imports point one way: the table of rooms in docs/architecture.md is what the source does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import unweave

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/unweave"
MODULES = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py"))
FRONT_DOOR = "__init__.py"


def rooms() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The rows of the table: the files or folders of a room, and the rooms it may import."""
    section = (ROOT / "docs/architecture.md").read_text().partition("## Rooms")[2].partition("\n## ")[0]
    rows = [line.strip().strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [(tuple(re.findall(r"`(.+?)`", row[0])), tuple(re.findall(r"`(.+?)`", row[2]))) for row in rows]


def room_of(module: str) -> int | None:
    """The row of a file or folder (a path below `src/unweave`): the most specific entry that holds it."""
    found = [
        (len(entry), row)
        for row, (entries, _) in enumerate(rooms())
        for entry in entries
        if module == entry or (entry.endswith("/") and module.startswith(entry))
    ]
    return max(found)[1] if found else None


def module_at(name: str) -> str | None:
    """The file that a dotted name under `unweave` is, if it is one."""
    path = "/".join(name.split(".")[1:])
    return next((file for file in (f"{path}.py", f"{path}/__init__.py".lstrip("/")) if (SOURCE / file).is_file()), None)


def imports(module: str) -> Iterator[str]:
    """Every file of unweave that a module imports, anywhere in it; names of the front door stand for their homes."""
    tree = ast.parse((SOURCE / module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names if (node.module or "").split(".")[0] == "unweave" else ():
                inner = module_at(f"{node.module}.{alias.name}")
                outer = module_at(str(node.module))
                yield inner or (home(alias.name) if outer == FRONT_DOOR else outer) or f"{node.module}: no such file"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "unweave" and alias.name != "unweave":
                    yield module_at(alias.name) or f"{alias.name}: no such file"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "unweave" and node.attr in unweave._HOMES:
            yield home(node.attr)


def home(name: str) -> str:
    """The file that defines a name of the front door."""
    return module_at(unweave._HOMES[name]) or f"{name}: no such file"


def test_the_table_lists_every_room_once() -> None:
    entries = [entry for own, _ in rooms() for entry in own]
    assert len(entries) == len(set(entries)) > 10
    assert all((SOURCE / entry).exists() for entry in entries)
    assert [module for module in MODULES if room_of(module) is None] == [FRONT_DOOR]


def test_the_table_itself_only_looks_up() -> None:
    for row, (_, allowed) in enumerate(rooms()):
        for entry in allowed:
            assert any(entry in own for own, _ in rooms()[:row]), f"{entry} is not above row {row}"


@pytest.mark.parametrize("module", [module for module in MODULES if module != FRONT_DOOR])
def test_a_room_imports_only_what_the_table_allows(module: str) -> None:
    row = room_of(module)
    assert row is not None
    may = {row, *(room_of(entry) for entry in rooms()[row][1])}
    wrong = sorted({other for other in imports(module) if room_of(other) not in may})
    assert not wrong, f"{module} may not import {wrong}"


def test_no_room_imports_in_a_circle() -> None:
    """Between modules, too: a module is read after those it imports (a package's own front is left out)."""
    graph = {
        module: {other for other in imports(module) if not other.endswith("__init__.py") and other != module}
        for module in MODULES
        if not module.endswith("__init__.py")
    }
    list(TopologicalSorter(graph).static_order())


def test_the_front_door_names_every_home() -> None:
    for name in unweave.__all__:
        assert getattr(unweave, name) is not None
