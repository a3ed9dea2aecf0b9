"""The script that executes one notebook by papermill in a separate process.

:mod:`paperlib.series.process` starts this file as a script, with the path of a JSON file that describes the job. It
imports nothing from the package, so that it starts as fast as papermill alone.
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

# Environment variable with the name of the run. Every process that a notebook starts inherits it, so that all of them
# can be found and killed, orphans included.
MARK = "PAPERLIB_RUN"
_SOCKET_PATH_LIMIT = 104  # macOS; Linux allows 108


def first_line(text: str) -> str:
    """The first line of ``text`` that is not blank; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def end_everything(run: str) -> bool:
    """Kill every process of the run named ``run``, except this process; True if there was any.

    A kernel is the leader of its own session, so killing the process group of its parent would leave it running.
    """
    import psutil  # type: ignore[import-untyped]

    killed_any = False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or belongs to another user
            if process.pid != os.getpid() and process.environ().get(MARK) == run:
                process.kill()
                killed_any = True
    return killed_any


def connection(scratch: str) -> dict[str, str]:
    """Settings of the connection to the kernel: sockets in ``scratch``, which need no free port, or else TCP."""
    import zmq

    sockets = os.path.join(os.path.realpath(scratch), "k")  # by default Jupyter puts them beside the notebook
    fits = len(sockets) + len("-99") < _SOCKET_PATH_LIMIT
    return {"transport": "ipc", "ip": sockets} if fits and zmq.has("ipc") and sys.platform != "win32" else {}


class Notes:
    """A JSON file with the running cell and the error, which the runner can read even if this process is killed."""

    def __init__(self, path: Path, parameters_at: int) -> None:
        self.path, self.parameters_at = path, parameters_at
        self.contents: dict[str, Any] = {}

    def cell(self, cell: Any, cell_index: int, **_: Any) -> None:
        """Write the index of the cell that starts, in the committed notebook: papermill inserts one cell."""
        index = cell_index - (cell_index > self.parameters_at)
        self._write(cell=index, source=first_line(cell.source))

    def error(self, error: BaseException) -> None:
        """Write the name and message of ``error``; papermill's own exception wraps the one that a cell raised."""
        if type(error).__name__ == "PapermillExecutionError":
            name, message = getattr(error, "ename", ""), getattr(error, "evalue", "")
        else:
            name, message = type(error).__name__, str(error)
        self._write(error=name, message=first_line(message))

    def _write(self, **contents: Any) -> None:
        self.contents |= contents
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.contents), encoding="utf-8")
        os.replace(temporary, self.path)


def execute(job: dict[str, Any], notes: Notes) -> None:
    """Run the notebook of ``job``; the output of its cells goes to the standard output of this process at once."""
    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the runner logs failures
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
        iopub_timeout=60,  # papermill raises an error beyond it; its default of 4 s is too short on a busy machine
        config=Config(KernelManager=connection(os.environ["JUPYTER_RUNTIME_DIR"])),
    )


def _literal_path(path: str) -> str:
    """``path`` with doubled braces: papermill treats paths as format strings of the parameters."""
    return path.replace("{", "{{").replace("}", "}}")


def _follow(run: str, scratch: Path) -> None:
    """Kill all processes of the run when the runner ends, which closes the standard input of this process."""
    while os.read(0, 1):  # not sys.stdin: its lock would be held when this process exits
        pass
    end_everything(run)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def main(job_file: str) -> int:
    """Entry point of the process; returns 0 if papermill executed all cells."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    threading.Thread(target=_follow, args=(os.environ[MARK], Path(job_file).parent), daemon=True).start()
    notes = Notes(Path(job_file).with_name("notes.json"), job["parameters_at"])
    try:
        execute(job, notes)
    except Exception as error:  # from a cell, nbclient or the file system: the runner reports it as a failure
        notes.error(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
