"""Reads notebook files, and brings them into the form in which they are committed."""

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
_CELL_METADATA = {"jupyter", "tags"}  # the keys that stay in a committed notebook
_PAPERMILL_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# Without "version", which differs between machines; every record contains the versions.
_LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
# Messages of the kernel that differ between machines and are of no use to a reader.
NOISE = re.compile(r"Kernel is running over TCP without encryption|^\d+\.\d\ds - ")


def read(path: Path) -> Any:
    """The notebook in ``path``, upgraded to the current notebook format.

    Raises:
        SeriesError: the file is missing or is not a notebook.
    """
    import nbformat

    try:
        return _upgraded(nbformat.reads(path.read_text(encoding="utf-8"), as_version=4))
    except (OSError, ValueError, AttributeError, KeyError) as error:  # nbformat raises any of these for invalid content
        raise SeriesError(f"{path.name} cannot be read as a notebook: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically.

    Raises:
        StoreError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def tagged(nb: Any, tag: str) -> list[int]:
    """Indices of the cells with ``tag``."""
    return [index for index, cell in enumerate(nb.cells) if tag in cell.metadata.get("tags", [])]


def parameters(nb: Any, name: str) -> dict[str, Any]:
    """The names and values that the cell tagged ``parameters`` assigns; ``name`` is the notebook's, for messages.

    Raises:
        SeriesError: there is not exactly one such cell, or it contains anything but assignments of literals to names.
    """
    indices = tagged(nb, "parameters")
    if len(indices) != 1 or nb.cells[indices[0]].cell_type != "code":
        raise SeriesError(f"{name}: exactly one code cell must have the tag 'parameters', found {len(indices)}")
    try:
        return dict(_literal(statement) for statement in ast.parse(nb.cells[indices[0]].source).body)
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
        raise ValueError(f"line {statement.lineno} assigns a value that is not a literal") from None


def normalise(nb: Any) -> Any:
    """A copy of ``nb`` in the committed form: equal cells and outputs give equal bytes on every machine.

    Sources, outputs, tags and ``metadata.paperlib`` stay. Kernel, language, cell ids (by position) and execution counts
    (1 to n) are set. All other metadata, cells that papermill inserted, widget views and messages of the kernel are
    removed.
    """
    import nbformat

    nb = _upgraded(copy.deepcopy(nb))
    nb.nbformat_minor = 5
    ours = {"paperlib": nb.metadata.paperlib} if "paperlib" in nb.metadata else {}
    nb.metadata = nbformat.from_dict({"kernelspec": _KERNEL, "language_info": _LANGUAGE, **ours})
    nb.cells = [cell for cell in nb.cells if not _PAPERMILL_TAGS & set(cell.metadata.get("tags", []))]
    executed = 0
    for index, cell in enumerate(nb.cells):
        cell.id = f"cell-{index:02d}"
        cell.source = cell.source.rstrip()
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in _CELL_METADATA if cell.metadata.get(key)}
        )
        if cell.cell_type == "code":
            clean_outputs(cell)
            was_executed = cell.get("execution_count") is not None
            executed += was_executed
            _set_execution_count(cell, executed if was_executed else None)
    return nb


def _upgraded(nb: Any) -> Any:
    """``nb`` in the current format; nbformat's ``upgrade`` returns None if there is nothing to change."""
    import nbformat

    return nbformat.v4.upgrade(nb) or nb


def _set_execution_count(cell: Any, count: int | None) -> None:
    cell.execution_count = count
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = count


def clean_outputs(cell: Any) -> None:
    """Remove widget views and kernel messages from a code cell's outputs, in place, and join parts of one stream."""
    outputs: list[Any] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            output.text = _stream_text(output)
            if outputs and outputs[-1].output_type == "stream" and outputs[-1].name == output.name:
                outputs[-1].text += output.text
            elif output.text:
                outputs.append(output)
        elif not _is_only_widget(output):
            outputs.append(output)
    for output in outputs:
        if output.output_type == "stream":
            output.text = _final_text(output.text)
    cell.outputs = [output for output in outputs if output.output_type != "stream" or output.text]


def _stream_text(output: Any) -> str:
    text = str(output.text)
    if output.name != "stderr":
        return text
    return "".join(line for line in text.splitlines(keepends=True) if not NOISE.search(line))


def _final_text(text: str) -> str:
    """``text`` as a terminal shows it in the end: of a line that was redrawn, the last version."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def _is_only_widget(output: Any) -> bool:
    """Remove the widget view from ``output``; True if only its repr remains, which is of no use without a kernel."""
    data = output.get("data", {})
    return data.pop(WIDGET_VIEW, None) is not None and set(data) <= {"text/plain"}


def text_of(nb: Any) -> str:
    """The text of the notebook file: JSON with indent 1, sorted keys, and one newline at the end."""
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
