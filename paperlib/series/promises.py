"""Whether an executed notebook did all that it should: every cell ran, and every promised file was written."""

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
    """The first cell that did not run, or ran into an error, whatever papermill says."""
    if not partial.exists():
        return Failure("NoNotebook", "the process ended well but wrote no notebook")
    for at, cell in enumerate(notebook_format.read(partial).cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        place, source = at - (at > parameters_at), first_line(cell.source)
        for output in cell.outputs:
            if output.output_type == "error":
                return Failure(output.ename, first_line(output.evalue), place, source)
        if cell.execution_count is None:
            return Failure("NotExecuted", "the run ended without this cell", place, source)
    return None


def file_signatures(notebook: Notebook, profile: str) -> Signatures:
    """What tells a rewritten file from an old one, without asking a clock."""
    found: Signatures = {}
    for promise in notebook.promises:
        with contextlib.suppress(FileNotFoundError):
            stat = (paths.figures_dir(profile) / promise).stat()
            found[promise] = (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
    return found


def broken_promise(notebook: Notebook, profile: str, before: Signatures) -> Failure | None:
    after = file_signatures(notebook, profile)
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
