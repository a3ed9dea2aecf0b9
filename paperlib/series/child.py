"""What runs inside a notebook's own process: papermill, one notebook, and nothing that outlives either.

:mod:`paperlib.series.process` starts this file as a script, with the path of a JSON file that describes the job. It
imports nothing of the package, so that starting it costs no more than papermill does.
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


def first_line(text: str) -> str:
    """The first line of ``text`` that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def end_everything(run: str) -> bool:
    """Kill each process that carries ``run``, but not this one; True if there were any.

    A kernel leads a session of its own, so killing the process group of its parent would leave it running.
    """
    import psutil  # type: ignore[import-untyped]

    found = False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or somebody else's
            if process.pid != os.getpid() and process.environ().get(MARK) == run:
                process.kill()
                found = True
    return found


def connection(scratch: str) -> dict[str, str]:
    """How to talk to the kernel: through sockets in ``scratch``, with no port to race for; where that fails, TCP."""
    import zmq

    sockets = os.path.join(os.path.realpath(scratch), "k")  # left to itself, Jupyter puts them beside the notebook
    fits = len(sockets) + len("-99") < _SOCKET_PATH_LIMIT
    return {"transport": "ipc", "ip": sockets} if fits and zmq.has("ipc") and sys.platform != "win32" else {}


class Notes:
    """What the runner must know if this process does not live to tell: the cell at work, and what went wrong."""

    def __init__(self, path: Path, parameters_at: int) -> None:
        self.path, self.parameters_at = path, parameters_at
        self.known: dict[str, Any] = {}

    def cell(self, cell: Any, cell_index: int, **_: Any) -> None:
        """Note the cell that starts, by its place as committed: papermill adds one after the parameters."""
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


def execute(job: dict[str, Any], notes: Notes) -> None:
    """Run the notebook of ``job``; what its cells print goes to this process's output as it comes."""
    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the runner reports, once
    papermill.execute_notebook(
        _literal_path(job["source"]),
        _literal_path(job["output"]),
        parameters=job["parameters"],
        kernel_name="python3",
        language="python",
        cwd=str(Path(job["source"]).parent),  # as in JupyterLab
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stdout,
        on_cell_execute=notes.cell,
        iopub_timeout=60,  # papermill makes it an error, and the default of 4 s is short for a busy machine
        config=Config(KernelManager=connection(os.environ["JUPYTER_RUNTIME_DIR"])),
    )


def _literal_path(path: str) -> str:
    """Papermill formats paths with the parameters, so a brace in a folder's name must be doubled."""
    return path.replace("{", "{{").replace("}", "}}")


def _follow(run: str, scratch: Path) -> None:
    """End everything when the runner does: it holds the other end of our standard input."""
    while os.read(0, 1):  # not sys.stdin, whose lock would be held when this process ends
        pass
    end_everything(run)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def main(job_file: str) -> int:
    """Entry point of the process; 0 when papermill got to the end."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    threading.Thread(target=_follow, args=(os.environ[MARK], Path(job_file).parent), daemon=True).start()
    notes = Notes(Path(job_file).with_name("notes.json"), job["parameters_at"])
    try:
        execute(job, notes)
    except Exception as error:  # a cell's, nbclient's or the file system's: the runner turns each into an outcome
        notes.error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
