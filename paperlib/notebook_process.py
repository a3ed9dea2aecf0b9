"""What runs inside a notebook's own process: papermill, one notebook, and nothing that outlives either.

The runner in :mod:`paperlib.series` starts it as ``python -m paperlib.notebook_process JOB``, JOB being a JSON file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

# Every process a notebook starts inherits it, so all of them can be found again, even those that left their parents.
MARK = "PAPERLIB_RUN"
_SOCKET_PATH_LIMIT = 104  # macOS; Linux allows 108
_SOCKET_NAME = len("/kernel-") + 36 + len("-ipc-5")


def end_everything(run: str) -> bool:
    """Kill each process that carries ``run``, but not this one; True if there were any.

    A kernel leads a session of its own, so killing the process group of its parent would leave it running.
    """
    import psutil

    found = False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or somebody else's
            if process.pid != os.getpid() and process.environ().get(MARK) == run:
                process.kill()
                found = True
    return found


def transport(runtime_dir: str) -> str:
    """``ipc`` where it works: no ports to race for and nothing on the network; else ``tcp``."""
    import zmq

    fits = len(os.path.realpath(runtime_dir)) + _SOCKET_NAME < _SOCKET_PATH_LIMIT
    return "ipc" if zmq.has("ipc") and sys.platform != "win32" and fits else "tcp"


class Notes:
    """What the runner must know if this process does not live to tell: the cell at work, and what went wrong."""

    def __init__(self, path: Path, parameters_at: int) -> None:
        self.path, self.parameters_at = path, parameters_at
        self.known: dict[str, Any] = {}

    def cell(self, cell: Any, cell_index: int, **_: Any) -> None:
        """Note the cell that starts, by its place in the notebook as committed: papermill adds one after the parameters."""
        at = cell_index - (cell_index > self.parameters_at)
        self._write(cell=at, source=first_line(cell.source))

    def error(self, error: BaseException) -> None:
        """Note the exception; papermill's own wraps the one the cell raised."""
        if type(error).__name__ == "PapermillExecutionError":
            name, message = getattr(error, "ename", ""), getattr(error, "evalue", "")
        else:
            name, message = type(error).__name__, str(error)
        self._write(error=name, message=first_line(message))

    def _write(self, **known: Any) -> None:
        self.known |= known
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.known), encoding="utf-8")
        os.replace(fresh, self.path)


def first_line(text: str) -> str:
    """The first line of ``text`` that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def execute(job: dict[str, Any], notes: Notes) -> None:
    """Run the notebook of ``job``; what its cells print goes to this process's output as it comes."""
    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the runner reports, once
    config = Config()
    config.KernelManager.transport = transport(os.environ["JUPYTER_RUNTIME_DIR"])
    papermill.execute_notebook(
        _literal_path(job["source"]),
        _literal_path(job["output"]),
        parameters=job["parameters"],
        kernel_name="python3",
        language="python",
        cwd=job["folder"],
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stdout,
        on_cell_execute=notes.cell,
        iopub_timeout=60,  # papermill makes it an error, and the default of 4 s is short for a busy machine
        config=config,
    )


def _literal_path(path: str) -> str:
    """Papermill formats paths with the parameters, so a brace in a folder's name must be doubled."""
    return path.replace("{", "{{").replace("}", "}}")


def _follow(runner: Any, run: str, scratch: Path) -> None:
    """End everything when the runner does: it holds the other end of our standard input."""
    runner.read()
    end_everything(run)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def main(job_file: str) -> int:
    """Entry point of the process; 0 when papermill got to the end."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    follow = (sys.stdin.buffer, os.environ[MARK], Path(job_file).parent)
    threading.Thread(target=_follow, args=follow, daemon=True).start()
    notes = Notes(Path(job["notes"]), job["parameters_at"])
    try:
        execute(job, notes)
    except Exception as error:  # a cell's, nbclient's or the file system's: the runner turns each into an outcome
        notes.error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
