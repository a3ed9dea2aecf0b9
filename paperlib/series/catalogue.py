"""The numbered notebooks of the series: what each shows, promises and needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from paperlib import paths
from paperlib.errors import SeriesError
from paperlib.series import notebook_format

_NUMBERED = re.compile(r"\d\d_\w+\.ipynb")


_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Notebook:
    """One notebook of the series; it must write its ``promises``, files in the profile's folder of figures.

    It shows nothing at a profile that leaves out a system it ``needs``.
    """

    path: Path
    title: str
    promises: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``03_experts``."""
        return self.path.stem

    @property
    def number(self) -> int:
        """The 3 of ``03_experts``."""
        return int(self.path.stem[:2])


def discover(folder: Path) -> list[Notebook]:
    """The numbered notebooks in ``folder``, in order.

    Raises:
        SeriesError: there are none, two share a number, one cannot be read, or one promises what it may not.
    """
    notebooks = [_notebook(path) for path in sorted(folder.glob("*.ipynb")) if _NUMBERED.fullmatch(path.name)]
    if not notebooks:
        raise SeriesError(f"no numbered notebook (like 03_experts.ipynb) in {paths.shown(folder)}")
    numbers = [notebook.number for notebook in notebooks]
    if twice := sorted({f"{number:02d}" for number in numbers if numbers.count(number) > 1}):
        raise SeriesError(f"two notebooks share the number {', '.join(twice)}")
    return notebooks


def _notebook(path: Path) -> Notebook:
    nb = notebook_format.read(path)
    headings = (_HEADING.search(cell.source) for cell in nb.cells if cell.cell_type == "markdown")
    title = next((found.group(1) for found in headings if found), path.stem)
    return Notebook(path, title, _promises(nb, path.stem), _listed(nb, path.stem, "needs", "systems"))


def _promises(nb: Any, name: str) -> tuple[str, ...]:
    promises = _listed(nb, name, "promises", "file names")
    for promise in promises:
        if PurePosixPath(promise).is_absolute() or ".." in PurePosixPath(promise).parts:
            raise SeriesError(f"{name}: the promise {promise!r} must lie inside the profile's folder of figures")
    return promises


def _listed(nb: Any, name: str, key: str, what: str) -> tuple[str, ...]:
    values = nb.metadata.get("paperlib", {}).get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise SeriesError(f"{name}: metadata.paperlib.{key} must be a list of {what}, not {values!r}")
    return tuple(values)


def select(notebooks: Sequence[Notebook], only: Sequence[str]) -> list[Notebook]:
    """Those of ``notebooks`` that ``only`` names, by number (``03``) or name (``03_experts``); all if it is empty.

    Raises:
        SeriesError: a selector fits none.
    """
    known = {key: notebook for notebook in notebooks for key in (notebook.name, str(notebook.number))}
    wanted = [selector.removesuffix(".ipynb") for selector in only]
    wanted = [str(int(selector)) if selector.isdecimal() else selector for selector in wanted]
    if unknown := [selector for selector, key in zip(only, wanted, strict=True) if key not in known]:
        names = ", ".join(notebook.name for notebook in notebooks)
        raise SeriesError(f"no notebook {', '.join(unknown)}; there are: {names}")
    chosen = {known[key].name for key in wanted}
    return [notebook for notebook in notebooks if notebook.name in chosen or not wanted]
