"""The numbered notebooks as one series: found, executed one by one, and believed only when their promises are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paperlib import paths
from paperlib.atomic_files import make_folder, temporary_for
from paperlib.errors import SeriesError
from paperlib.log import logger
from paperlib.series import notebook_format
from paperlib.series.catalogue import Notebook, discover, select
from paperlib.series.process import Failure, Job, run_in_process
from paperlib.series.promises import broken_promise, file_signatures, unexecuted_cell


@dataclass(frozen=True)
class NotebookRun:
    """How one notebook fared; ``executed`` is what it left, in full or up to the failure."""

    notebook: Notebook
    seconds: float
    executed: Path
    failure: Failure | None = None

    @property
    def ok(self) -> bool:
        """True if every cell ran and every promise was kept."""
        return self.failure is None


def run_series(
    profile: str,
    *,
    seed: int = 0,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    replay: bool = False,
    timeout: float = 3600,
    jobs: int = 1,
) -> list[NotebookRun]:
    """Execute the series at ``profile``; the executed notebooks lie in ``paths.build_dir(profile)/notebooks``.

    With ``replay`` they lie beside it, in ``replayed``. Without, ``seeds`` are the runs that tables over seeds show.

    A notebook that fails does not keep the others from running. ``timeout`` is in seconds and holds for each notebook;
    ``jobs`` notebooks run side by side, which pays once their records are there.

    Raises:
        SeriesError: before anything runs, for an unknown selector or a notebook that does not take the parameters;
            after everything ran, if a notebook failed: it names each, the cell, the reason and what the notebook left.
    """
    if profile.endswith(".toml"):  # a notebook runs in another folder
        profile = str(Path(profile).resolve())
    chosen = select(discover(paths.notebooks_dir()), only)
    notebooks = _showing(chosen, profile)
    if not replay:  # what an earlier or a published run left would pass for this one's
        _discard(set(chosen) - set(notebooks), profile)
    parameters: dict[str, Any] = {"profile": profile, "seed": seed, "replay": replay}
    if len(seeds) > 1:
        parameters["seeds"] = list(seeds)
    places = {notebook.name: _check_parameters(notebook, parameters) for notebook in notebooks}

    def execute(notebook: Notebook) -> NotebookRun:
        logger.info(f"{notebook.name}: started")
        outcome = _run(notebook, parameters, places[notebook.name], timeout)
        logger.info(
            f"{notebook.name}: {'done' if outcome.ok else f'FAILED, {outcome.failure}'} ({outcome.seconds:.1f} s)"
        )
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(execute, notebooks))
    _raise_for(outcomes, profile)
    return outcomes


def _showing(notebooks: Sequence[Notebook], profile: str) -> list[Notebook]:
    """Those that have something to show at this profile; says why of the others."""
    if not any(notebook.needs for notebook in notebooks):
        return list(notebooks)
    from paperlib.config.load import load_profile
    from paperlib.systems.registry import recipes

    known, showing = recipes(load_profile(profile)), []
    for notebook in notebooks:
        if absent := [system for system in notebook.needs if system not in known]:
            logger.info(f"{notebook.name}: not run, profile {profile} leaves out {', '.join(absent)}")
        else:
            showing.append(notebook)
    return showing


def _discard(notebooks: Collection[Notebook], profile: str) -> None:
    """Remove the promised files of notebooks that are not run, and the SVG beside each figure."""
    for promise in (promise for notebook in notebooks for promise in notebook.promises):
        path = paths.figures_dir(profile) / promise
        for file in (path, path.with_suffix(".svg")) if path.suffix == ".png" else (path,):
            file.unlink(missing_ok=True)


def _check_parameters(notebook: Notebook, wanted: dict[str, Any]) -> int:
    """The place of the parameters cell. Papermill only logs a parameter that no notebook knows; here it is an error."""
    nb = notebook_format.read(notebook.path)
    known = notebook_format.parameters(nb, notebook.name)
    if unknown := [name for name in wanted if name not in known]:
        raise SeriesError(
            f"{notebook.name} does not take the parameter {', '.join(unknown)}; its parameters cell sets: "
            f"{', '.join(known) or 'nothing'}"
        )
    if notebook_format.tagged(nb, "injected-parameters"):
        raise SeriesError(f"{notebook.name} holds an injected-parameters cell of an earlier run; remove it")
    return notebook_format.tagged(nb, "parameters")[0]


def _raise_for(outcomes: Sequence[NotebookRun], profile: str) -> None:
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if failed:
        lines = [f"{len(failed)} of {len(outcomes)} notebooks failed at profile {profile}:"]
        for outcome in failed:
            left = outcome.executed if outcome.executed.exists() else "no notebook"
            lines.append(f"  {outcome.notebook.name}: {outcome.failure} (it left {left})")
        raise SeriesError("\n".join(lines))


def _run(notebook: Notebook, parameters: dict[str, Any], parameters_at: int, timeout: float) -> NotebookRun:
    started = time.monotonic()
    profile = parameters["profile"]
    # Apart from those that show this machine's own results, of which the HTML site is made.
    folder = paths.build_dir(profile) / ("replayed" if parameters["replay"] else "notebooks")
    executed, partial = folder / f"{notebook.name}.ipynb", folder / f"{notebook.name}.partial.ipynb"
    make_folder(folder)
    partial.unlink(missing_ok=True)
    before = file_signatures(notebook, profile)
    running = temporary_for(partial).with_suffix(".ipynb")  # another run at this profile may be under way
    failure: Failure | None = Failure("Interrupted", "the run was broken off")
    try:
        failure = run_in_process(
            Job(notebook.path.resolve(), running, parameters, parameters_at), timeout, prefix=f"{notebook.name[:2]} | "
        )
        failure = failure or unexecuted_cell(running, parameters_at) or broken_promise(notebook, profile, before)
    finally:
        if failure:
            executed.unlink(missing_ok=True)  # what an earlier run gave would pass for this one's
        if running.exists():
            os.replace(running, partial if failure else executed)
    return NotebookRun(notebook, time.monotonic() - started, partial if failure else executed, failure)
