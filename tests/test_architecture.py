"""The house: a room imports only from the rooms above it, and every file has a room in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from paperlib import paths

PACKAGE = paths.ROOT / "paperlib"
PAGE = (paths.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \| [^|]+\|$", PAGE.split("## Modules")[1].split("##")[0], re.MULTILINE)
ROOMS = [[name.rstrip("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", row)] for row in ROWS]


def floor(name: str) -> int:
    return next(i for i, room in enumerate(ROOMS) if name in room)


def files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "paperlib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paperlib."):
            found.add(str(node.module).split(".")[1])
    return found


def test_every_file_has_a_room() -> None:
    known = {name for room in ROOMS for name in room}
    assert {room_of(path) for path in files()} <= known


def test_a_room_imports_only_from_rooms_above_it_or_its_own() -> None:
    below = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files()
        for name in imported(path)
        if floor(name) > floor(room_of(path))
    ]
    assert below == []
    assert sum(len(imported(path)) for path in files()) > 80  # the search finds what is there
