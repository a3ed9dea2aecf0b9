"""Notebook files on disk: reading them, their one committed form, and what may not be committed."""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path
from typing import Any

from paperlib.atomic_files import replacing
from paperlib.errors import SeriesError

PARAMETERS = ("profile", "seed", "replay", "seeds")


WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


_KEPT = {"jupyter", "tags"}


_RUNNER_TAGS = {"injected-parameters", "papermill-error-cell-tag"}


_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


# Without "version": it changes with each machine and says nothing a record does not say better.
_LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


# Said by the kernel about itself, different from machine to machine, and nothing a reader can use.
NOISE = re.compile(r"Kernel is running over TCP without encryption|^\d+\.\d\ds - ")


def read(path: Path) -> Any:
    """The notebook in ``path``, in today's format.

    Raises:
        SeriesError: the file is missing or is not a notebook.
    """
    import nbformat

    try:
        return _today(nbformat.reads(path.read_text(encoding="utf-8"), as_version=4))
    except (OSError, ValueError, AttributeError, KeyError) as error:  # nbformat answers odd JSON with any of these
        raise SeriesError(f"{path.name} cannot be read as a notebook: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as a whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="\n")


def tagged(nb: Any, tag: str) -> list[int]:
    """Positions of the cells that carry ``tag``."""
    return [at for at, cell in enumerate(nb.cells) if tag in cell.metadata.get("tags", [])]


def parameters(nb: Any, name: str) -> dict[str, Any]:
    """What the one cell tagged ``parameters`` assigns; ``name`` is the notebook's, for the message.

    Raises:
        SeriesError: there is not exactly one such cell, or it does more than assign literals to names.
    """
    at = tagged(nb, "parameters")
    if len(at) != 1 or nb.cells[at[0]].cell_type != "code":
        raise SeriesError(f"{name}: exactly one code cell must carry the tag 'parameters', found {len(at)}")
    try:
        return dict(_literal(statement) for statement in ast.parse(nb.cells[at[0]].source).body)
    except (ValueError, SyntaxError) as error:
        raise SeriesError(f"{name}: the parameters cell may only assign literals to names: {error}") from None


def _literal(statement: ast.stmt) -> tuple[str, Any]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
    if value is None or len(targets) != 1 or not isinstance(targets[0], ast.Name):
        raise ValueError(f"line {statement.lineno} is not `name = literal`")
    try:
        return targets[0].id, ast.literal_eval(value)
    except (ValueError, TypeError):
        raise ValueError(f"line {statement.lineno} computes its value") from None


def normalise(nb: Any) -> Any:
    """A copy of ``nb`` in the committed form: the same cells and outputs give the same bytes on every machine.

    Kept: sources, outputs, tags and ``metadata.paperlib``. Set: kernel, language, cell ids (by position) and execution
    counts (1 to n). Dropped: every other metadata, cells the runner put in, widget views and the kernel's own noise.
    """
    import nbformat

    nb = _today(copy.deepcopy(nb))
    nb.nbformat_minor = 5
    kept = {"paperlib": nb.metadata.paperlib} if "paperlib" in nb.metadata else {}
    nb.metadata = nbformat.from_dict({"kernelspec": _KERNEL, "language_info": _LANGUAGE, **kept})
    nb.cells = [cell for cell in nb.cells if not _RUNNER_TAGS & set(cell.metadata.get("tags", []))]
    executed = 0
    for at, cell in enumerate(nb.cells):
        cell.id = f"cell-{at:02d}"
        cell.source = cell.source.rstrip()
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in _KEPT if cell.metadata.get(key)})
        if cell.cell_type == "code":
            clean_outputs(cell)
            ran = cell.get("execution_count") is not None
            executed += ran
            _number(cell, executed if ran else None)
    return nb


def _today(nb: Any) -> Any:
    """nbformat's ``upgrade`` answers None for a notebook that needs none."""
    import nbformat

    return nbformat.v4.upgrade(nb) or nb


def _number(cell: Any, count: int | None) -> None:
    cell.execution_count = count
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = count


def clean_outputs(cell: Any) -> None:
    """Drop widget views and noise from a code cell's outputs, in place, and join neighbouring pieces of one stream."""
    outputs: list[Any] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            output.text = _stream_text(output)
            if outputs and outputs[-1].output_type == "stream" and outputs[-1].name == output.name:
                outputs[-1].text += output.text
            elif output.text:
                outputs.append(output)
        elif not _only_a_widget(output):
            outputs.append(output)
    for output in outputs:
        if output.output_type == "stream":
            output.text = _last_written(output.text)
    cell.outputs = [output for output in outputs if output.output_type != "stream" or output.text]


def _stream_text(output: Any) -> str:
    text = str(output.text)
    if output.name != "stderr":
        return text
    return "".join(line for line in text.splitlines(keepends=True) if not NOISE.search(line))


def _last_written(text: str) -> str:
    """What a terminal would still show: a bar that redraws its line leaves the last drawing."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def _only_a_widget(output: Any) -> bool:
    """Take the live view out; True if nothing but its repr is left, for a page without a kernel can show neither."""
    data = output.get("data", {})
    return data.pop(WIDGET_VIEW, None) is not None and set(data) <= {"text/plain"}


def text_of(nb: Any) -> str:
    """The file's text: indent 1, sorted keys, one newline at the end."""
    import nbformat

    return nbformat.writes(nb, indent=1, ensure_ascii=False, sort_keys=True).rstrip("\n") + "\n"


def normalise_file(path: Path) -> bool:
    """Bring ``path`` into the committed form; True if that changed it.

    Raises:
        SeriesError: the file is missing or is not a notebook.
    """
    text = text_of(normalise(read(path)))
    changed = path.read_text(encoding="utf-8") != text
    if changed:
        write_text(path, text)
    return changed
