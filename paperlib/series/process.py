"""One notebook in a process of its own: how it is started, heard and ended.

Apart, because a kernel can die, hang or leave orphans, and the series must outlive it. What runs inside is
:mod:`paperlib.series.child`.
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

# Names of folders that the kernel, started elsewhere, must find where the runner finds them.
_FOLDERS = ("PAPERLIB_HOME", "PAPERLIB_PUBLISHED", "PAPERLIB_DATA")


@dataclass(frozen=True)
class Job:
    """What to execute, where to write it while it runs, with which parameters, and which cell holds their defaults."""

    source: Path
    output: Path
    parameters: dict[str, Any]
    parameters_at: int


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


def run_in_process(job: Job, timeout: float, prefix: str = "") -> Failure | None:
    """Run ``job`` and log what its cells print, with ``prefix`` before each line.

    When this returns or raises, nothing of it is left running.

    ``timeout`` is in seconds and holds for the whole notebook. None means that papermill got to the end, no more.
    """
    with tempfile.TemporaryDirectory(prefix="paperlib-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        _describe(job, scratch)
        process = _start(scratch)
        try:
            in_time = _relay(process, time.monotonic() + timeout, prefix)
        finally:
            _end(process, scratch)
        return _failure(_read_notes(scratch), timeout if not in_time else None, process.returncode)


def _start(scratch: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # By its file and not as a module of the package: it needs papermill, and none of what the package imports.
        [sys.executable, "-P", child.__file__, str(scratch / "job.json")],
        cwd=scratch,
        env=_environment(scratch),
        stdin=subprocess.PIPE,  # its other end: the process notices when the runner is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C comes to the runner alone, which then ends the rest in order
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


def _describe(job: Job, scratch: Path) -> None:
    """Write what the process reads: its job, and a kernel ``python3`` that is this interpreter.

    ``JUPYTER_PATH`` comes before the kernels of the user and of the machine, which may be other interpreters.
    """
    (scratch / "job.json").write_text(json.dumps(dataclasses.asdict(job), default=str), encoding="utf-8")
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
        child.MARK: scratch.name,
        "PAPERLIB_PROGRESS": "lines",
        "PYTHONPATH": os.pathsep.join([str(paths.ROOT), *python_path]),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "JUPYTER_PATH": os.pathsep.join([str(scratch), *jupyter_path]),
        "JUPYTER_RUNTIME_DIR": str(scratch),
        "IPYTHONDIR": str(scratch / "ipython"),  # no start-up files, no history
    }


def _relay(process: subprocess.Popen[bytes], deadline: float, prefix: str) -> bool:
    """Log each line that the notebook prints until its process ends; False if the deadline came first."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
    reader.start()
    while (left := deadline - time.monotonic()) > 0 and process.poll() is None:
        _log_next(lines, min(0.2, left), prefix)
    in_time = process.poll() is not None
    if in_time:
        reader.join(timeout=1)  # ends at once, unless an orphan holds the output open
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
            lines.put(text.rsplit("\r", 1)[-1])  # of a bar that redraws its line, the last drawing


def _end(process: subprocess.Popen[bytes], scratch: Path) -> None:
    """End the process and all it started: kernel, workers, orphans."""
    if process.poll() is None:
        process.kill()
    for _ in range(20):  # again, for one may have started another meanwhile
        if not child.end_everything(scratch.name):
            break
        time.sleep(0.05)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _read_notes(scratch: Path) -> dict[str, Any]:
    notes = scratch / "notes.json"
    return json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
