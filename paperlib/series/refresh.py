"""Executes the committed notebooks from published records, and rewrites them with the new outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from paperlib import paths
from paperlib.errors import SeriesError
from paperlib.series import notebook_format
from paperlib.series.catalogue import discover, select
from paperlib.series.runner import NotebookRun, run_series


def refresh(profile: str = "digits", only: Sequence[str] = (), *, seed: int = 0, timeout: float = 3600) -> list[Path]:
    """Execute the committed notebooks from published records, and rewrite them with the new outputs.

    Returns the paths that were written. No notebook is rewritten if one of them fails. ``timeout`` is in seconds and
    holds for each notebook.

    Raises:
        SeriesError: the parameters cell of a notebook has other values than this run, so that its outputs would not
            belong to its cells; a notebook failed; or a notebook was edited while it ran.
    """
    notebooks = select(discover(paths.notebooks_dir()), only)
    expected = {"profile": profile, "seed": seed, "replay": True}
    for notebook in notebooks:
        cell = notebook_format.parameters(notebook_format.read(notebook.path), notebook.name)
        differing = [
            f"{key} = {cell.get(key)!r}, not {expected[key]!r}" for key in expected if cell.get(key) != expected[key]
        ]
        if differing:
            raise SeriesError(
                f"{notebook.name}: the parameters cell must set the values of this run, but has {', '.join(differing)}"
            )
    jobs, before = os.cpu_count() or 1, os.environ.get("PAPERLIB_LOCAL", "")
    try:
        os.environ["PAPERLIB_LOCAL"] = "no"  # the committed outputs show published records only
        outcomes = run_series(profile, seed=seed, only=only, replay=True, timeout=timeout, jobs=jobs)
    finally:
        os.environ["PAPERLIB_LOCAL"] = before
    texts = {outcome.notebook.path: _refreshed(outcome) for outcome in outcomes}
    for path, text in texts.items():
        notebook_format.write_text(path, text)
    return list(texts)


def _refreshed(outcome: NotebookRun) -> str:
    nb = notebook_format.normalise(notebook_format.read(outcome.executed))
    committed = notebook_format.normalise(notebook_format.read(outcome.notebook.path))
    if [cell.source for cell in nb.cells] != [cell.source for cell in committed.cells]:
        raise SeriesError(f"{outcome.notebook.name} was edited while it ran; run the refresh again")
    return notebook_format.text_of(nb)
