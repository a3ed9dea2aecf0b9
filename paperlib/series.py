"""The numbered notebooks as one series: found, executed one by one, and believed only when their promises are kept."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from paperlib import notebook_files, paths
from paperlib.atomic_files import make_folder, temporary_for
from paperlib.errors import SeriesError
from paperlib.notebook_process import Failure, Job, run_apart
from paperlib.papermill_child import first_line
from paperlib.progress import Say, say

_NUMBERED = re.compile(r"\d\d_\w+\.ipynb")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
Signatures = dict[str, tuple[int, ...]]


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


@dataclass(frozen=True)
class Outcome:
    """How one notebook fared; ``executed`` is what it left, in full or up to the failure."""

    notebook: Notebook
    seconds: float
    executed: Path
    failure: Failure | None = None

    @property
    def ok(self) -> bool:
        """True if every cell ran and every promise was kept."""
        return self.failure is None


# ---------------------------------------------------------------------------------------------------- what there is


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
    nb = notebook_files.read(path)
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


# ------------------------------------------------------------------------------------------------- running the series


def run_series(
    profile: str,
    *,
    seed: int = 0,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    replay: bool = False,
    timeout: float = 3600,
    jobs: int = 1,
    say: Say = say,
) -> list[Outcome]:
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
    notebooks = _showing(chosen, profile, say)
    if not replay:  # what an earlier or a published run left would pass for this one's
        _discard(set(chosen) - set(notebooks), profile)
    parameters: dict[str, Any] = {"profile": profile, "seed": seed, "replay": replay}
    if len(seeds) > 1:
        parameters["seeds"] = list(seeds)
    places = {notebook.name: _check_parameters(notebook, parameters) for notebook in notebooks}

    def execute(notebook: Notebook) -> Outcome:
        def tell(line: str) -> None:
            say(f"{notebook.name[:2]} | {line}")

        say(f"{notebook.name}: started")
        outcome = _run(notebook, parameters, places[notebook.name], timeout, tell)
        say(f"{notebook.name}: {'done' if outcome.ok else f'FAILED, {outcome.failure}'} ({outcome.seconds:.1f} s)")
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(pool.map(execute, notebooks))
    _raise_for(outcomes, profile)
    return outcomes


def _showing(notebooks: Sequence[Notebook], profile: str, say: Say) -> list[Notebook]:
    """Those that have something to show at this profile; says why of the others."""
    if not any(notebook.needs for notebook in notebooks):
        return list(notebooks)
    from paperlib.config.load import load_profile
    from paperlib.systems.registry import recipes

    known, showing = recipes(load_profile(profile)), []
    for notebook in notebooks:
        if absent := [system for system in notebook.needs if system not in known]:
            say(f"{notebook.name}: not run, profile {profile} leaves out {', '.join(absent)}")
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
    nb = notebook_files.read(notebook.path)
    known = notebook_files.parameters(nb, notebook.name)
    if unknown := [name for name in wanted if name not in known]:
        raise SeriesError(
            f"{notebook.name} does not take the parameter {', '.join(unknown)}; its parameters cell sets: "
            f"{', '.join(known) or 'nothing'}"
        )
    if notebook_files.tagged(nb, "injected-parameters"):
        raise SeriesError(f"{notebook.name} holds an injected-parameters cell of an earlier run; remove it")
    return notebook_files.tagged(nb, "parameters")[0]


def _raise_for(outcomes: Sequence[Outcome], profile: str) -> None:
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if failed:
        lines = [f"{len(failed)} of {len(outcomes)} notebooks failed at profile {profile}:"]
        for outcome in failed:
            left = outcome.executed if outcome.executed.exists() else "no notebook"
            lines.append(f"  {outcome.notebook.name}: {outcome.failure} (it left {left})")
        raise SeriesError("\n".join(lines))


def _run(notebook: Notebook, parameters: dict[str, Any], parameters_at: int, timeout: float, say: Say) -> Outcome:
    started = time.monotonic()
    profile = parameters["profile"]
    # Apart from those that show this machine's own results, of which the HTML site is made.
    folder = paths.build_dir(profile) / ("replayed" if parameters["replay"] else "notebooks")
    executed, partial = folder / f"{notebook.name}.ipynb", folder / f"{notebook.name}.partial.ipynb"
    make_folder(folder)
    partial.unlink(missing_ok=True)
    before = _signatures(notebook, profile)
    running = temporary_for(partial).with_suffix(".ipynb")  # another run at this profile may be under way
    failure: Failure | None = Failure("Interrupted", "the run was broken off")
    try:
        failure = run_apart(Job(notebook.path.resolve(), running, parameters, parameters_at), timeout, say)
        failure = failure or _unexecuted(running, parameters_at) or _broken_promise(notebook, profile, before)
    finally:
        if failure:
            executed.unlink(missing_ok=True)  # what an earlier run gave would pass for this one's
        if running.exists():
            os.replace(running, partial if failure else executed)
    return Outcome(notebook, time.monotonic() - started, partial if failure else executed, failure)


# -------------------------------------------------------------------------------------------------- believing the run


def _unexecuted(partial: Path, parameters_at: int) -> Failure | None:
    """The first cell that did not run, or ran into an error, whatever papermill says."""
    if not partial.exists():
        return Failure("NoNotebook", "the process ended well but wrote no notebook")
    for at, cell in enumerate(notebook_files.read(partial).cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        place, source = at - (at > parameters_at), first_line(cell.source)
        for output in cell.outputs:
            if output.output_type == "error":
                return Failure(output.ename, first_line(output.evalue), place, source)
        if cell.execution_count is None:
            return Failure("NotExecuted", "the run ended without this cell", place, source)
    return None


def _signatures(notebook: Notebook, profile: str) -> Signatures:
    """What tells a rewritten file from an old one, without asking a clock."""
    found: Signatures = {}
    for promise in notebook.promises:
        with contextlib.suppress(FileNotFoundError):
            stat = (paths.figures_dir(profile) / promise).stat()
            found[promise] = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
    return found


def _broken_promise(notebook: Notebook, profile: str, before: Signatures) -> Failure | None:
    after = _signatures(notebook, profile)
    broken = [f"{promise} {why}" for promise, why in _broken(notebook.promises, before, after)]
    return Failure("BrokenPromise", "; ".join(broken)) if broken else None


def _broken(promises: Sequence[str], before: Signatures, after: Signatures) -> Iterator[tuple[str, str]]:
    for promise in promises:
        if promise not in after:
            yield promise, "is missing"
        elif after[promise][-1] == 0:
            yield promise, "is empty"
        elif after[promise] == before.get(promise):
            yield promise, "was not written by this run"


# ------------------------------------------------------------------------------------------- the committed notebooks


def refresh(
    profile: str = "digits", only: Sequence[str] = (), *, seed: int = 0, timeout: float = 3600, say: Say = say
) -> list[Path]:
    """Execute the committed notebooks, replaying, and rewrite them with the new outputs in the committed form.

    None is rewritten unless all of them ran well.

    Raises:
        SeriesError: a notebook's own parameters differ from those of this run, so that its outputs would not be what
            its cells say; one failed; or one was edited while it ran.
    """
    notebooks = select(discover(paths.notebooks_dir()), only)
    wanted = {"profile": profile, "seed": seed, "replay": True}
    for notebook in notebooks:
        own = notebook_files.parameters(notebook_files.read(notebook.path), notebook.name)
        differing = [f"{key} = {own.get(key)!r}, not {wanted[key]!r}" for key in wanted if own.get(key) != wanted[key]]
        if differing:
            raise SeriesError(
                f"{notebook.name}: its parameters cell must say what is run, but says {', '.join(differing)}"
            )
    jobs, before = os.cpu_count() or 1, os.environ.get("PAPERLIB_LOCAL", "")
    try:
        os.environ["PAPERLIB_LOCAL"] = "no"  # the committed outputs show published records, whatever this machine has
        outcomes = run_series(profile, seed=seed, only=only, replay=True, timeout=timeout, jobs=jobs, say=say)
    finally:
        os.environ["PAPERLIB_LOCAL"] = before
    texts = {outcome.notebook.path: _refreshed(outcome) for outcome in outcomes}
    for path, text in texts.items():
        notebook_files.write_text(path, text)
    return list(texts)


def _refreshed(outcome: Outcome) -> str:
    nb = notebook_files.normalise(notebook_files.read(outcome.executed))
    now = notebook_files.normalise(notebook_files.read(outcome.notebook.path))
    if [cell.source for cell in nb.cells] != [cell.source for cell in now.cells]:
        raise SeriesError(f"{outcome.notebook.name} was edited while it ran; run the refresh again")
    return notebook_files.text_of(nb)
