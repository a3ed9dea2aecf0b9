"""docs/architecture.md names every file, the layers hold, and no private jargon remains."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from paperlib import paths

PACKAGE = paths.ROOT / "paperlib"
TESTS = paths.ROOT / "tests"
DOCUMENTS = [paths.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((paths.ROOT / "docs").glob("*.md"))
# No part of a name, a docstring, a comment, a cell of Markdown or a document.
JARGON = {"strike", "strikes", "diet", "diets", "player", "players", "luck", "taps", "undisturbed", "battery", "mended"}
JARGON |= {"fires", "pitfall", "pitfalls", "aim", "aims"}
NAMES = {"told", "menu", "menus"}  # no name; part of a longer name and of a sentence, where they have their usual sense
PHRASES = ("reading copy", "soft stand-in", "basic worst")


def python_files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(paths.ROOT / "docs").glob("*.py"), *TESTS.rglob("*.py")])


def jargon_in_name(name: str) -> set[str]:
    """Of ``PGDPlayer`` and ``pgd_player`` the word ``player``."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return (words & JARGON) | ({name.strip("_")} & NAMES)


def jargon_in_prose(text: str) -> set[str]:
    plain = " ".join(text.lower().split())
    return (JARGON & set(re.findall(r"[a-z]+", plain))) | {phrase for phrase in PHRASES if phrase in plain}


def problems_of_source(source: str) -> Iterator[str]:
    """Jargon in identifiers, comments and docstrings; other strings are data."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and (words := jargon_in_name(token.string)):
            yield f"{token.start[0]}: {token.string} ({', '.join(words)})"
        if token.type == tokenize.COMMENT and (words := jargon_in_prose(token.string)):
            yield f"{token.start[0]}: comment ({', '.join(words)})"
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and (words := jargon_in_prose(ast.get_docstring(node) or "")):
            yield f"docstring of {getattr(node, 'name', 'the module')} ({', '.join(words)})"


def cells() -> Iterator[tuple[str, str, str]]:
    """Place, kind and source of every cell of the notebooks."""
    for path in sorted(paths.notebooks_dir().glob("*.ipynb")):
        for i, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            yield f"{path.stem}, cell {i}", cell["cell_type"], "".join(cell["source"])


def test_no_jargon_remains() -> None:
    problems = []
    for path in python_files():
        if path != Path(__file__):
            found = problems_of_source(path.read_text(encoding="utf-8"))
            problems += [f"{path.relative_to(paths.ROOT)}: {problem}" for problem in found]
    for place, kind, source in cells():
        if kind == "code":
            problems += [f"{place}: {problem}" for problem in problems_of_source(source)]
        elif words := jargon_in_prose(source):
            problems.append(f"{place}: {', '.join(words)}")
    for document in DOCUMENTS:
        if words := jargon_in_prose(document.read_text(encoding="utf-8")):
            problems.append(f"{document.name}: {', '.join(words)}")
    assert problems == [], "\n".join(problems)


def test_the_search_finds_jargon_and_accepts_data_and_parts_of_words() -> None:
    for source in ("pgd_player = 1", "class PGDPlayer: pass", "x = 1  # the diet", '"""Basic\nworst."""', "told = 1"):
        assert len(list(problems_of_source(source))) == 1, source
    assert list(problems_of_source('claimed = hash_seed(0, "strike")  # aimed, fired\n')) == []


def test_every_file_of_the_package_is_in_the_document() -> None:
    """The row of a package names its files; a package in a package has a row or stands in that of its parent."""
    page = (paths.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"`([\w./]+)`", page.split("## Modules")[1].split("\n## ")[0])
    expected = {path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    expected |= {f"{path.parent.relative_to(PACKAGE).name}/" for path in PACKAGE.rglob("*/__init__.py")}
    files = {name for name in names if name.endswith(".py")}
    folders = {f"{name.rstrip('/').split('/')[-1]}/" for name in names if name.endswith("/")}
    assert expected == files | (folders - {"profiles/"})


def test_packages_import_only_from_lower_layers() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
