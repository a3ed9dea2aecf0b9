"""Executes the numbered notebooks of the series, and checks that each wrote the files that it promises."""

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
    """The result of one notebook; ``executed`` is the executed file, complete or up to the failure."""

    notebook: Notebook
    seconds: float
    executed: Path
    failure: Failure | None = None

    @property
    def ok(self) -> bool:
        """True if every cell was executed and every promised file was written."""
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
    """Execute the series at ``profile``; the executed notebooks go to ``paths.build_dir(profile)/notebooks``.

    With ``replay`` they go to the folder ``replayed`` beside it. Without ``replay``, ``seeds`` are the seeds of the
    tables over seeds. If a notebook fails, the others still run. ``timeout`` is in seconds and holds for each notebook.
    ``jobs`` notebooks run in parallel, which is useful once their records are computed.

    Raises:
        SeriesError: before the first notebook runs, for an unknown selector or a notebook without one of the
            parameters; after the last one, if a notebook failed. The message names each failed notebook with the cell,
            the reason and the file that it left.
    """
    if profile.endswith(".toml"):  # the notebooks run in another folder
        profile = str(Path(profile).resolve())
    selected = select(discover(paths.notebooks_dir()), only)
    notebooks = _with_their_systems(selected, profile)
    if not replay:  # otherwise files of an earlier or published run could be mistaken for results of this one
        _discard(set(selected) - set(notebooks), profile)
    parameters: dict[str, Any] = {"profile": profile, "seed": seed, "replay": replay}
    if len(seeds) > 1:
        parameters["seeds"] = list(seeds)
    parameters_at = {notebook.name: _check_parameters(notebook, parameters) for notebook in notebooks}

    def execute(notebook: Notebook) -> NotebookRun:
        logger.info(f"{notebook.name}: started")
        outcome = _run(notebook, parameters, parameters_at[notebook.name], timeout)
        logger.info(
            f"{notebook.name}: {'done' if outcome.ok else f'FAILED, {outcome.failure}'} ({outcome.seconds:.1f} s)"
        )
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(execute, notebooks))
    _raise_for(outcomes, profile)
    return outcomes


def _with_their_systems(notebooks: Sequence[Notebook], profile: str) -> list[Notebook]:
    """The notebooks whose systems the profile contains; logs the names of the others."""
    if not any(notebook.needs for notebook in notebooks):
        return list(notebooks)
    from paperlib.config.load import load_profile
    from paperlib.systems.registry import recipes

    available, complete = recipes(load_profile(profile)), []
    for notebook in notebooks:
        if absent := [system for system in notebook.needs if system not in available]:
            logger.info(f"{notebook.name}: not run, profile {profile} does not contain {', '.join(absent)}")
        else:
            complete.append(notebook)
    return complete


def _discard(notebooks: Collection[Notebook], profile: str) -> None:
    """Remove the promised files of ``notebooks``, and the SVG file beside each figure."""
    for promise in (promise for notebook in notebooks for promise in notebook.promises):
        path = paths.figures_dir(profile) / promise
        for file in (path, path.with_suffix(".svg")) if path.suffix == ".png" else (path,):
            file.unlink(missing_ok=True)


def _check_parameters(notebook: Notebook, parameters: dict[str, Any]) -> int:
    """The index of the parameters cell, which must set all ``parameters``: papermill only logs an unknown name."""
    nb = notebook_format.read(notebook.path)
    defaults = notebook_format.parameters(nb, notebook.name)
    if unknown := [name for name in parameters if name not in defaults]:
        raise SeriesError(
            f"{notebook.name} does not take the parameter {', '.join(unknown)}; its parameters cell sets: "
            f"{', '.join(defaults) or 'nothing'}"
        )
    if notebook_format.tagged(nb, "injected-parameters"):
        raise SeriesError(f"{notebook.name} contains an injected-parameters cell of an earlier run; remove it")
    return notebook_format.tagged(nb, "parameters")[0]


def _raise_for(outcomes: Sequence[NotebookRun], profile: str) -> None:
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if failed:
        lines = [f"{len(failed)} of {len(outcomes)} notebooks failed at profile {profile}:"]
        for outcome in failed:
            partial = outcome.executed if outcome.executed.exists() else "none"
            lines.append(f"  {outcome.notebook.name}: {outcome.failure} (partial notebook: {partial})")
        raise SeriesError("\n".join(lines))


def _run(notebook: Notebook, parameters: dict[str, Any], parameters_at: int, timeout: float) -> NotebookRun:
    started = time.monotonic()
    profile = parameters["profile"]
    # Replayed notebooks have a separate folder: the HTML site is made from results of this machine.
    folder = paths.build_dir(profile) / ("replayed" if parameters["replay"] else "notebooks")
    executed, partial = folder / f"{notebook.name}.ipynb", folder / f"{notebook.name}.partial.ipynb"
    make_folder(folder)
    partial.unlink(missing_ok=True)
    before = file_signatures(notebook, profile)
    running = temporary_for(partial).with_suffix(".ipynb")  # another run of this profile may be active
    failure: Failure | None = Failure("Interrupted", "the run was interrupted")
    try:
        failure = run_in_process(
            Job(notebook.path.resolve(), running, parameters, parameters_at), timeout, prefix=f"{notebook.name[:2]} | "
        )
        failure = failure or unexecuted_cell(running, parameters_at) or broken_promise(notebook, profile, before)
    finally:
        if failure:
            executed.unlink(missing_ok=True)  # a file of an earlier run could be mistaken for a result of this one
        if running.exists():
            os.replace(running, partial if failure else executed)
    return NotebookRun(notebook, time.monotonic() - started, partial if failure else executed, failure)
