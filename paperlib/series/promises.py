"""Checks of an executed notebook: every cell was executed, and every promised file was written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from paperlib import paths
from paperlib.series import notebook_format
from paperlib.series.catalogue import Notebook
from paperlib.series.child import first_line
from paperlib.series.process import Failure

Signatures = dict[str, tuple[int, ...]]


def unexecuted_cell(partial: Path, parameters_at: int) -> Failure | None:
    """The first cell of ``partial`` that was not executed or has an error, whether or not papermill reported it."""
    if not partial.exists():
        return Failure("NoNotebook", "the process ended without an error but wrote no notebook")
    for executed_index, cell in enumerate(notebook_format.read(partial).cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        index, source = executed_index - (executed_index > parameters_at), first_line(cell.source)
        for output in cell.outputs:
            if output.output_type == "error":
                return Failure(output.ename, first_line(output.evalue), index, source)
        if cell.execution_count is None:
            return Failure("NotExecuted", "the run ended before this cell", index, source)
    return None


def file_signatures(notebook: Notebook, profile: str) -> Signatures:
    """Inode, times and size of each promised file that exists; a rewritten file has another signature."""
    signatures: Signatures = {}
    for promise in notebook.promises:
        with contextlib.suppress(FileNotFoundError):
            stat = (paths.figures_dir(profile) / promise).stat()
            signatures[promise] = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
    return signatures


def broken_promise(notebook: Notebook, profile: str, before: Signatures) -> Failure | None:
    """The promised files that are missing, empty, or unchanged since ``before``; None if there is none."""
    after = file_signatures(notebook, profile)
    problems = [f"{promise} {problem}" for promise, problem in _problems(notebook.promises, before, after)]
    return Failure("BrokenPromise", "; ".join(problems)) if problems else None


def _problems(promises: Sequence[str], before: Signatures, after: Signatures) -> Iterator[tuple[str, str]]:
    for promise in promises:
        if promise not in after:
            yield promise, "is missing"
        elif after[promise][-1] == 0:
            yield promise, "is empty"
        elif after[promise] == before.get(promise):
            yield promise, "was not written by this run"
