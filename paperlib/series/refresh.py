"""The committed notebooks: executed in replay, and rewritten with their outputs."""

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
    """Execute the committed notebooks, replaying, and rewrite them with the new outputs in the committed form.

    None is rewritten unless all of them ran well.

    Raises:
        SeriesError: a notebook's own parameters differ from those of this run, so that its outputs would not be what
            its cells say; one failed; or one was edited while it ran.
    """
    notebooks = select(discover(paths.notebooks_dir()), only)
    wanted = {"profile": profile, "seed": seed, "replay": True}
    for notebook in notebooks:
        own = notebook_format.parameters(notebook_format.read(notebook.path), notebook.name)
        differing = [f"{key} = {own.get(key)!r}, not {wanted[key]!r}" for key in wanted if own.get(key) != wanted[key]]
        if differing:
            raise SeriesError(
                f"{notebook.name}: its parameters cell must say what is run, but says {', '.join(differing)}"
            )
    jobs, before = os.cpu_count() or 1, os.environ.get("PAPERLIB_LOCAL", "")
    try:
        os.environ["PAPERLIB_LOCAL"] = "no"  # the committed outputs show published records, whatever this machine has
        outcomes = run_series(profile, seed=seed, only=only, replay=True, timeout=timeout, jobs=jobs)
    finally:
        os.environ["PAPERLIB_LOCAL"] = before
    texts = {outcome.notebook.path: _refreshed(outcome) for outcome in outcomes}
    for path, text in texts.items():
        notebook_format.write_text(path, text)
    return list(texts)


def _refreshed(outcome: NotebookRun) -> str:
    nb = notebook_format.normalise(notebook_format.read(outcome.executed))
    now = notebook_format.normalise(notebook_format.read(outcome.notebook.path))
    if [cell.source for cell in nb.cells] != [cell.source for cell in now.cells]:
        raise SeriesError(f"{outcome.notebook.name} was edited while it ran; run the refresh again")
    return notebook_format.text_of(nb)
