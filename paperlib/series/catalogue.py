"""The numbered notebooks of the series, with the files that each must write and the systems that it needs."""

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
    """One notebook of the series.

    ``promises`` are the files that it must write, relative to the profile's folder of figures. At a profile without one
    of the systems in ``needs`` the notebook is not run.
    """

    path: Path
    title: str
    promises: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File name without suffix, such as ``03_experts``."""
        return self.path.stem

    @property
    def number(self) -> int:
        """Number at the start of the name: 3 for ``03_experts``."""
        return int(self.path.stem[:2])


def discover(folder: Path) -> list[Notebook]:
    """The numbered notebooks in ``folder``, in order.

    Raises:
        SeriesError: there is none, two have the same number, one cannot be read, or its ``promises`` or ``needs`` are
            not valid.
    """
    notebooks = [_notebook(path) for path in sorted(folder.glob("*.ipynb")) if _NUMBERED.fullmatch(path.name)]
    if not notebooks:
        raise SeriesError(f"no numbered notebook (like 03_experts.ipynb) in {paths.shown(folder)}")
    numbers = [notebook.number for notebook in notebooks]
    if repeated := sorted({f"{number:02d}" for number in numbers if numbers.count(number) > 1}):
        raise SeriesError(f"two notebooks share the number {', '.join(repeated)}")
    return notebooks


def _notebook(path: Path) -> Notebook:
    nb = notebook_format.read(path)
    headings = (_HEADING.search(cell.source) for cell in nb.cells if cell.cell_type == "markdown")
    title = next((heading.group(1) for heading in headings if heading), path.stem)
    return Notebook(path, title, _promises(nb, path.stem), _string_list(nb, path.stem, "needs", "systems"))


def _promises(nb: Any, name: str) -> tuple[str, ...]:
    promises = _string_list(nb, name, "promises", "file names")
    for promise in promises:
        if PurePosixPath(promise).is_absolute() or ".." in PurePosixPath(promise).parts:
            raise SeriesError(f"{name}: the promised file {promise!r} must be inside the profile's folder of figures")
    return promises


def _string_list(nb: Any, name: str, key: str, contents: str) -> tuple[str, ...]:
    values = nb.metadata.get("paperlib", {}).get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise SeriesError(f"{name}: metadata.paperlib.{key} must be a list of {contents}, not {values!r}")
    return tuple(values)


def select(notebooks: Sequence[Notebook], only: Sequence[str]) -> list[Notebook]:
    """The notebooks that ``only`` selects by number (``03``) or name (``03_experts``); all if ``only`` is empty.

    Raises:
        SeriesError: a selector matches no notebook.
    """
    by_key = {key: notebook for notebook in notebooks for key in (notebook.name, str(notebook.number))}
    keys = [selector.removesuffix(".ipynb") for selector in only]
    keys = [str(int(key)) if key.isdecimal() else key for key in keys]
    if unknown := [selector for selector, key in zip(only, keys, strict=True) if key not in by_key]:
        names = ", ".join(notebook.name for notebook in notebooks)
        raise SeriesError(f"no notebook {', '.join(unknown)}; available: {names}")
    selected = {by_key[key].name for key in keys}
    return [notebook for notebook in notebooks if notebook.name in selected or not keys]
