"""Checks of a notebook before it is committed: form, size, outputs, absolute paths and length of code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paperlib.errors import SeriesError
from paperlib.series.notebook_format import PARAMETERS, WIDGET_VIEW, normalise, parameters, read, text_of

MAX_BYTES = 1_500_000
MAX_LINES = 25  # of a code cell and of a function
_ABSOLUTE_PATH = re.compile(r"(?<![\w.~}-])/(?:home|root|work|tmp|Users)(?![\w-])|(?<!\w)(?:C:|[A-Z]:(?=\\+Users))\\")
_MEMORY_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}")
_DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")


def check_hygiene(path: Path) -> list[str]:
    """The reasons why the notebook in ``path`` must not be committed, one text each; empty if there is none."""
    try:
        nb = read(path)
    except SeriesError as error:
        return [str(error)]
    problems = list(_file_problems(path, nb))
    for index, cell in enumerate(nb.cells):
        of_cell = [*_text_problems(cell), *(_code_problems(cell) if cell.cell_type == "code" else ())]
        problems += [f"cell {index}: {problem}" for problem in of_cell]
    return problems


def _file_problems(path: Path, nb: Any) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if (size := len(text.encode())) > MAX_BYTES:
        yield f"the file has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.1f} MB"
    if text != text_of(normalise(nb)):
        yield "not in the committed form (paperlib.series.notebook_format.normalise_file writes that form)"
    if "widgets" in nb.metadata:
        yield "widget state in the metadata"
    try:
        missing = [name for name in PARAMETERS if name not in parameters(nb, path.stem)]
    except SeriesError as error:
        yield str(error)
    else:
        if missing:
            yield f"the parameters cell does not set {', '.join(missing)}"


def _text_problems(cell: Any) -> Iterator[str]:
    texts = [cell.source, *(text for output in cell.get("outputs", []) for text in _texts(output))]
    paths = {_path_at(text, match.start()) for text in texts if (match := _ABSOLUTE_PATH.search(text))}
    if paths:
        yield f"an absolute path: {', '.join(sorted(paths))}"
    if any(_MEMORY_ADDRESS.search(text) for text in texts[1:]):
        yield "a memory address in an output, different in every run"


def _texts(output: Any) -> Iterator[str]:
    """The texts of an output, without pictures: base64 may contain any string by chance."""
    yield str(output.get("text", ""))
    for mime, value in output.get("data", {}).items():
        if not mime.startswith("image/") or mime == "image/svg+xml":
            yield _DATA_URI.sub("", value if isinstance(value, str) else repr(value))
    yield from map(str, output.get("traceback", []))


def _path_at(text: str, start: int) -> str:
    return text[start:].split()[0].strip("\"'`,;)]}")[:60]


def _code_problems(cell: Any) -> Iterator[str]:
    if cell.get("execution_count") is None:
        yield "never executed" if cell.source.strip() else "an empty code cell"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"a traceback: {output.ename}: {output.evalue}"
        elif "Traceback (most recent call last)" in output.get("text", ""):
            yield "a traceback in the printed output"
        elif WIDGET_VIEW in output.get("data", {}):
            yield "a widget view, which needs a running kernel"
    if (lines := len(cell.source.splitlines())) > MAX_LINES:
        yield f"{lines} lines of code, more than {MAX_LINES}"
    yield from _function_problems(cell.source)


def _function_problems(source: str) -> Iterator[str]:
    python = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    try:
        tree = ast.parse(python)
    except SyntaxError as error:
        yield f"is not Python: {error.msg} (line {error.lineno})"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_LINES:
                yield f"function {node.name} has {lines} lines, more than {MAX_LINES}"
