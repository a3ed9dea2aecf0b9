"""Starts one notebook in a separate process, logs its output, and ends it with all processes that it started.

The process is separate because a kernel can crash, hang or leave orphans, and the series must continue. The script that
it runs is :mod:`paperlib.series.child`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from paperlib import paths
from paperlib.log import logger
from paperlib.series import child
from paperlib.series.notebook_format import NOISE

# Variables with folders. They are made absolute, because the kernel starts in another folder.
_FOLDERS = ("PAPERLIB_HOME", "PAPERLIB_PUBLISHED", "PAPERLIB_DATA")


@dataclass(frozen=True)
class Job:
    """The notebook to execute, the file to write while it runs, its parameters, and the index of the cell that sets
    their defaults.
    """

    source: Path
    output: Path
    parameters: dict[str, Any]
    parameters_at: int


@dataclass(frozen=True)
class Failure:
    """The error of a notebook; ``cell`` is its index in the committed notebook, from 0."""

    error: str
    message: str
    cell: int | None = None
    source: str = ""

    def __str__(self) -> str:
        place = f"cell {self.cell} `{self.source[:80]}`: " if self.cell is not None else ""
        return f"{place}{self.error}: {self.message[:300]}"


def run_in_process(job: Job, timeout: float, prefix: str = "") -> Failure | None:
    """Run ``job`` and log the output of its cells, with ``prefix`` before each line.

    When this function returns or raises, no process of the notebook is running. ``timeout`` is in seconds and holds for
    the whole notebook. None means that papermill ended without an error; the outputs are not checked here.
    """
    with tempfile.TemporaryDirectory(prefix="paperlib-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        _write_job(job, scratch)
        process = _start(scratch)
        try:
            in_time = _log_output(process, time.monotonic() + timeout, prefix)
        finally:
            _end(process, scratch)
        return _failure(_read_notes(scratch), timeout if not in_time else None, process.returncode)


def _start(scratch: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # Started as a file and not as a module: it needs papermill, and nothing that the package imports.
        [sys.executable, "-P", child.__file__, str(scratch / "job.json")],
        cwd=scratch,
        env=_environment(scratch),
        stdin=subprocess.PIPE,  # the process ends when the runner ends and closes this pipe
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches only the runner, which then ends this process
    )


def _failure(notes: dict[str, Any], stopped_after: float | None, status: int) -> Failure | None:
    cell, source = notes.get("cell"), notes.get("source", "")
    if stopped_after is not None:
        return Failure("TimeLimit", f"stopped after {stopped_after:g} s", cell, source)
    if "error" in notes:
        return Failure(notes["error"], notes["message"], cell, source)
    if status != 0:
        return Failure("ProcessDied", f"the notebook's process ended with status {status}", cell, source)
    return None


def _write_job(job: Job, scratch: Path) -> None:
    """Write the files that the process reads: the job, and a kernel ``python3`` that runs this interpreter.

    ``JUPYTER_PATH`` has priority over the kernels of the user and of the machine, which may run other interpreters.
    """
    (scratch / "job.json").write_text(json.dumps(dataclasses.asdict(job), default=str), encoding="utf-8")
    folder = scratch / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3 (ipykernel)", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def _environment(scratch: Path) -> dict[str, str]:
    """The user's environment, changed so that the result of a notebook does not depend on user and current folder."""
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # figures need the inline backend
    env |= {name: str(Path(env[name]).expanduser().resolve()) for name in _FOLDERS if env.get(name)}
    env.setdefault("PYTHONHASHSEED", "0")
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before the kernel starts
    python_path = [str(Path(entry).resolve()) for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    jupyter_path = [entry for entry in env.get("JUPYTER_PATH", "").split(os.pathsep) if entry]
    return env | {
        child.MARK: scratch.name,
        "PAPERLIB_PROGRESS": "lines",
        "PYTHONPATH": os.pathsep.join([str(paths.ROOT), *python_path]),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "JUPYTER_PATH": os.pathsep.join([str(scratch), *jupyter_path]),
        "JUPYTER_RUNTIME_DIR": str(scratch),
        "IPYTHONDIR": str(scratch / "ipython"),  # without start-up files and history
    }


def _log_output(process: subprocess.Popen[bytes], deadline: float, prefix: str) -> bool:
    """Log each line that the notebook prints until its process ends; False if the deadline passed first."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
    reader.start()
    while (remaining := deadline - time.monotonic()) > 0 and process.poll() is None:
        _log_next(lines, min(0.2, remaining), prefix)
    in_time = process.poll() is not None
    if in_time:
        reader.join(timeout=1)  # returns at once, unless an orphan keeps the output open
    while _log_next(lines, 0, prefix):
        pass
    return in_time


def _log_next(lines: queue.SimpleQueue[str], wait: float, prefix: str) -> bool:
    try:
        line = lines.get(timeout=wait) if wait else lines.get_nowait()
    except queue.Empty:
        return False
    if not NOISE.search(line):
        logger.info(prefix + line)
    return True


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[str]) -> None:
    with stream:
        for raw in stream:
            text = raw.decode(errors="replace").rstrip()
            lines.put(text.rsplit("\r", 1)[-1])  # of a line that was redrawn, the last version


def _end(process: subprocess.Popen[bytes], scratch: Path) -> None:
    """Kill the process and every process that it started: kernel, workers, orphans."""
    if process.poll() is None:
        process.kill()
    for _ in range(20):  # repeated, because a process may have started another one meanwhile
        if not child.end_everything(scratch.name):
            break
        time.sleep(0.05)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _read_notes(scratch: Path) -> dict[str, Any]:
    notes = scratch / "notes.json"
    return json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
