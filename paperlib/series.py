"""The numbered notebooks as one series: found, executed one process each, and believed only when their promises lie there."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from paperlib import notebook_files, paths
from paperlib.errors import SeriesError
from paperlib.notebook_process import MARK, end_everything, first_line
from paperlib.progress import Say, say

_NUMBERED = re.compile(r"\d\d_\w+\.ipynb")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
# Names of folders that the kernel, started elsewhere, must find where the runner finds them.
_FOLDERS = ("PAPERLIB_HOME", "PAPERLIB_PUBLISHED", "PAPERLIB_DATA")


@dataclass(frozen=True)
class Notebook:
    """One notebook of the series; it must write its ``promises``, files in the profile's folder of figures."""

    path: Path
    title: str
    promises: tuple[str, ...]

    @property
    def name(self) -> str:
        """``03_experts``."""
        return self.path.stem

    @property
    def number(self) -> int:
        """The 3 of ``03_experts``."""
        return int(self.path.stem[:2])


@dataclass(frozen=True)
class Failure:
    """Why a notebook failed, and where: ``cell`` counts from 0 in the notebook as committed."""

    error: str
    message: str
    cell: int | None = None
    source: str = ""

    def __str__(self) -> str:
        where = f"cell {self.cell} `{self.source[:80]}`: " if self.cell is not None else ""
        return f"{where}{self.error}: {self.message[:300]}"


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
    return Notebook(path, title, _promises(nb, path.stem))


def _promises(nb: Any, name: str) -> tuple[str, ...]:
    promises = nb.metadata.get("paperlib", {}).get("promises", [])
    if not isinstance(promises, list) or not all(isinstance(promise, str) and promise for promise in promises):
        raise SeriesError(f"{name}: metadata.paperlib.promises must be a list of file names, not {promises!r}")
    for promise in promises:
        if PurePosixPath(promise).is_absolute() or ".." in PurePosixPath(promise).parts:
            raise SeriesError(f"{name}: the promise {promise!r} must lie inside the profile's folder of figures")
    return tuple(promises)


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
    profile: str, *, seed: int = 0, only: Sequence[str] = (), replay: bool = False, timeout: float = 3600, say: Say = say
) -> list[Outcome]:
    """Execute the series at ``profile``; the executed notebooks lie in ``paths.build_dir(profile)/notebooks``.

    A notebook that fails does not keep the others from running. ``timeout`` is in seconds and holds for each notebook.

    Raises:
        SeriesError: before anything runs, for an unknown selector or a notebook that does not take the parameters;
            after everything ran, if a notebook failed: it names each, the cell, the reason and what the notebook left.
    """
    notebooks = select(discover(paths.notebooks_dir()), only)
    parameters = {"profile": profile, "seed": seed, "replay": replay}
    places = {notebook.name: _check_parameters(notebook, parameters) for notebook in notebooks}
    outcomes = []
    for count, notebook in enumerate(notebooks, start=1):
        say(f"{notebook.name}: started ({count} of {len(notebooks)})")
        outcomes.append(_run(notebook, parameters, places[notebook.name], timeout, say))
        ended = "done" if outcomes[-1].ok else f"FAILED, {outcomes[-1].failure}"
        say(f"{notebook.name}: {ended} ({outcomes[-1].seconds:.1f} s)")
    _raise_for(outcomes, profile)
    return outcomes


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
            left = paths.shown(outcome.executed) if outcome.executed.exists() else "nothing"
            lines.append(f"  {outcome.notebook.name}: {outcome.failure} (it left {left})")
        raise SeriesError("\n".join(lines))


def _run(notebook: Notebook, parameters: dict[str, Any], parameters_at: int, timeout: float, say: Say) -> Outcome:
    started = time.monotonic()
    profile = parameters["profile"]
    folder = paths.build_dir(profile) / "notebooks"
    executed, partial = folder / f"{notebook.name}.ipynb", folder / f"{notebook.name}.partial.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    before = _signatures(notebook, profile)
    with tempfile.TemporaryDirectory(prefix="paperlib-", ignore_cleanup_errors=True) as scratch:
        job = {
            "source": str(notebook.path.resolve()),
            "output": str(partial),
            "folder": str(notebook.path.resolve().parent),
            "parameters": parameters,
            "parameters_at": parameters_at,
            "notes": str(Path(scratch) / "notes.json"),
        }
        failure = _in_a_process(job, Path(scratch), timeout, say)
    failure = failure or _unexecuted(partial, parameters_at) or _broken_promise(notebook, profile, before)
    if failure is None:
        os.replace(partial, executed)
    else:
        executed.unlink(missing_ok=True)  # what an earlier run gave would pass for this one's
    return Outcome(notebook, time.monotonic() - started, partial if failure else executed, failure)


# ---------------------------------------------------------------------------------------------- one notebook's process


def _in_a_process(job: dict[str, Any], scratch: Path, timeout: float, say: Say) -> Failure | None:
    """Run ``job`` in a process of its own; when this returns or raises, nothing of it is left running."""
    job_file = scratch / "job.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    _write_kernelspec(scratch)
    process = subprocess.Popen(
        [sys.executable, "-m", "paperlib.notebook_process", str(job_file)],
        cwd=scratch,
        env=_environment(scratch),
        stdin=subprocess.PIPE,  # its other end: the process notices when the runner is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C comes to the runner alone, which then ends the rest in order
    )
    try:
        in_time = _relay(process, time.monotonic() + timeout, say)
    finally:
        _end(process, scratch)
    notes = _read_notes(Path(job["notes"]))
    place = {"cell": notes.get("cell"), "source": notes.get("source", "")}
    if not in_time:
        return Failure("TimeLimit", f"stopped after {timeout:g} s", **place)
    if "error" in notes:
        return Failure(notes["error"], notes["message"], **place)
    if process.returncode != 0:
        return Failure("ProcessDied", f"the notebook's process ended with status {process.returncode}", **place)
    return None


def _write_kernelspec(scratch: Path) -> None:
    """Make ``python3`` mean this interpreter: ``JUPYTER_PATH`` comes before the user's and the machine's kernels."""
    folder = scratch / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3 (ipykernel)", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def _environment(scratch: Path) -> dict[str, str]:
    """The environment of a notebook's process: the user's, less what would make the run depend on user or folder."""
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # or figures would not show
    env |= {name: str(Path(env[name]).expanduser().resolve()) for name in _FOLDERS if env.get(name)}
    env.setdefault("PYTHONHASHSEED", "0")
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be there before the kernel starts
    python_path = [str(Path(entry).resolve()) for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    jupyter_path = [entry for entry in env.get("JUPYTER_PATH", "").split(os.pathsep) if entry]
    return env | {
        MARK: scratch.name,
        "PAPERLIB_PROGRESS": "lines",
        "PYTHONPATH": os.pathsep.join([str(paths.ROOT), *python_path]),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "JUPYTER_PATH": os.pathsep.join([str(scratch), *jupyter_path]),
        "JUPYTER_RUNTIME_DIR": str(scratch),
        "IPYTHONDIR": str(scratch / "ipython"),  # no start-up files, no history
    }


def _relay(process: subprocess.Popen[bytes], deadline: float, say: Say) -> bool:
    """Say, indented, each line the notebook prints, until its process ends; False if the deadline came first."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
    reader.start()
    while (left := deadline - time.monotonic()) > 0 and process.poll() is None:
        _say_next(lines, min(0.2, left), say)
    in_time = process.poll() is not None
    if in_time:
        reader.join(timeout=1)  # ends at once, unless an orphan holds the output open
    while _say_next(lines, 0, say):
        pass
    return in_time


def _say_next(lines: queue.SimpleQueue[str], wait: float, say: Say) -> bool:
    try:
        line = lines.get(timeout=wait) if wait else lines.get_nowait()
    except queue.Empty:
        return False
    if not notebook_files.NOISE.search(line):
        say(f"    {line}")
    return True


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed by the runner, which has heard enough
        for raw in stream:
            text = raw.decode(errors="replace").rstrip()
            lines.put(text.rsplit("\r", 1)[-1])  # of a bar that redraws its line, the last drawing


def _end(process: subprocess.Popen[bytes], scratch: Path) -> None:
    """End the process and all it started: kernel, workers, orphans."""
    if process.poll() is None:
        process.kill()
    for _ in range(20):  # again, for one may have started another meanwhile
        if not end_everything(scratch.name):
            break
        time.sleep(0.05)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _read_notes(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# -------------------------------------------------------------------------------------------------- believing the run


def _unexecuted(partial: Path, parameters_at: int) -> Failure | None:
    """The first cell that did not run, or ran into an error, whatever papermill says."""
    if not partial.exists():
        return Failure("NoNotebook", "the process ended well but wrote no notebook")
    for at, cell in enumerate(notebook_files.read(partial).cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        place = {"cell": at - (at > parameters_at), "source": first_line(cell.source)}
        for output in cell.outputs:
            if output.output_type == "error":
                return Failure(output.ename, first_line(output.evalue), **place)
        if cell.execution_count is None:
            return Failure("NotExecuted", "the run ended without this cell", **place)
    return None


def _signatures(notebook: Notebook, profile: str) -> dict[str, tuple[int, ...]]:
    """What tells a rewritten file from an old one, without asking a clock."""
    found = {}
    for promise in notebook.promises:
        with contextlib.suppress(FileNotFoundError):
            stat = (paths.figures_dir(profile) / promise).stat()
            found[promise] = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
    return found


def _broken_promise(notebook: Notebook, profile: str, before: dict[str, tuple[int, ...]]) -> Failure | None:
    after = _signatures(notebook, profile)
    broken = [f"{promise} {why}" for promise, why in _broken(notebook.promises, before, after)]
    return Failure("BrokenPromise", "; ".join(broken)) if broken else None


def _broken(
    promises: Sequence[str], before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, str]]:
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
        if differing := [f"{key} = {own.get(key)!r}, not {value!r}" for key, value in wanted.items() if own.get(key) != value]:
            raise SeriesError(f"{notebook.name}: the parameters cell must say what is run; it says {'; '.join(differing)}")
    outcomes = run_series(profile, seed=seed, only=only, replay=True, timeout=timeout, say=say)
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
