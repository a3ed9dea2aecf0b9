"""The tables, numbers, links and examples of the documents. `test_reproduce.py` runs their commands."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import torch
import yaml
from prose_numbers import FACTS, NOTEBOOK_FACTS, OTHERS, expected_sentence

from paperlib import Study, load_dataset, load_profile, paths
from paperlib.config.load import profile_names
from paperlib.config.schema import parse_profile
from paperlib.config.serialise import to_table
from paperlib.errors import ProfileError
from paperlib.series.catalogue import discover

ROOT = paths.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README, SETTINGS = DOCUMENTS["README.md"], DOCUMENTS["docs/settings.md"]
LONGEST_LINE, MOST_LINES = 120, 200


@cache
def writer() -> ModuleType:
    """docs/write_results.py."""
    spec = importlib.util.spec_from_file_location("write_results", ROOT / "docs" / "write_results.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_changes_no_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of ``docs/write_results.py`` beside copies of the documents: all tables are those of the records."""
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    assert [study.seed for study in Study("digits", local=False).runs] == [0, 1, 2]
    (tmp_path / "docs").mkdir()
    for document, text in DOCUMENTS.items():
        (tmp_path / document).write_text(text, encoding="utf-8")
    script = tmp_path / "docs" / "write_results.py"
    script.write_text((ROOT / "docs" / "write_results.py").read_text(encoding="utf-8"), encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out == ""
    for document, text in DOCUMENTS.items():
        assert (tmp_path / document).read_text(encoding="utf-8") == text, document


def test_every_marked_table_is_written_by_the_script() -> None:
    marked = [(document, n) for document, text in DOCUMENTS.items() for n in re.findall(r"<!-- (\w+): begin -->", text)]
    assert sorted(marked) == sorted(writer().TABLES)


@pytest.mark.parametrize("text", ["nothing", "<!-- other: begin -->\n<!-- other: end -->"])
def test_a_missing_table_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no table verdicts"):
        writer().block(text, "verdicts")


def test_the_script_writes_every_table_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_LOCAL", "")
    monkeypatch.setattr(writer(), "ROOT", tmp_path)
    monkeypatch.setattr(writer(), "tables", lambda: ((name, f"| {name} |\n") for _, name in writer().TABLES))
    (tmp_path / "docs").mkdir()
    for document, text in DOCUMENTS.items():
        (tmp_path / document).write_text(text, encoding="utf-8")
    writer().main()
    for document, text in DOCUMENTS.items():
        for name in (name for owner, name in writer().TABLES if owner == document):
            text = text.replace(writer().block(text, name), f"| {name} |\n")
        assert (tmp_path / document).read_text(encoding="utf-8") == text
    assert "wrote README.md" in capsys.readouterr().out
    writer().main()  # nothing to change
    assert capsys.readouterr().out == ""


@cache
def prose(document: str) -> str:
    """A document without generated tables and code, with single spaces."""
    text = re.sub(r"<!-- (\w+): begin -->.*?<!-- \1: end -->|```.*?```", "", DOCUMENTS[document], flags=re.DOTALL)
    return " ".join(text.split())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_numbers_in_the_prose_are_those_of_the_records_or_have_a_source(document: str) -> None:
    text, covered = prose(document), set[int]()
    for sentence in (*map(expected_sentence, FACTS.get(document, ())), *OTHERS.get(document, {})):
        assert sentence in text, sentence
        covered |= {place for match in re.finditer(re.escape(sentence), text) for place in range(*match.span())}
    # "95 %" is the level of the intervals, [0, 1] the range of pixels.
    numbers = re.finditer(r"\d[\d.,]*(?= (%|points\b))|\[-?\d[\d.]*, -?\d[\d.]*\]", text)
    unchecked = [
        text[max(0, n.start() - 40) : n.end() + 10]
        for n in numbers
        if n[0] not in ("95", "[0, 1]") and n.start() not in covered
    ]
    assert unchecked == []


def test_checked_sentences_belong_to_documents() -> None:
    assert FACTS.keys() | OTHERS.keys() <= DOCUMENTS.keys()


@pytest.mark.parametrize("name", NOTEBOOK_FACTS)
def test_a_number_in_the_prose_of_a_notebook_is_that_of_the_code_or_the_profile(name: str) -> None:
    cells = nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for fact in NOTEBOOK_FACTS[name]:
        assert expected_sentence(fact) in text


def test_the_readme_and_all_lines_are_short() -> None:
    """A row of a table is one line of any length."""
    assert len(README.splitlines()) <= MOST_LINES
    lines = [line for text in DOCUMENTS.values() for line in text.splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > LONGEST_LINE and " " in line.strip()] == []


def test_every_notebook_is_in_both_lists_of_the_series() -> None:
    start = (paths.notebooks_dir() / "00_start_here.ipynb").read_text(encoding="utf-8")
    for notebook in discover(paths.notebooks_dir()):
        assert f"| `{notebook.path.stem}` |" in README
        assert notebook.path.stem == "00_start_here" or f"| `{notebook.path.stem}` |" in start


def anchors(document: str) -> set[str]:
    """Anchors of the headings of a document, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", DOCUMENTS[document], flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_links_and_pictures_have_a_target() -> None:
    for document, text in DOCUMENTS.items():
        for link in re.findall(r"\]\(([^)]+)\)", text):
            if link.startswith("http"):
                continue
            file, _, anchor = link.partition("#")
            target = ((ROOT / document).parent / file).resolve() if file else ROOT / document
            assert target.is_relative_to(ROOT) and target.is_file(), f"{document}: {link}"
            if anchor:
                assert anchor in anchors(target.relative_to(ROOT).as_posix()), f"{document}: {link}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", README))
    assert DOCUMENTS.keys() - {"README.md"} <= linked
    assert len([link for link in linked if link.endswith(".png")]) >= 3


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_example_of_the_library_runs_right_after_a_clone(tmp_path: Path) -> None:
    library, _ = python_blocks(README)
    script = f"{library}\nassert x_adv.shape == x.shape and 0 < int(result.fooled.sum()) < 100\n"
    environment = {"PAPERLIB_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_audit_is_that_of_the_recipes() -> None:
    """`test_reproduce.py` runs the recipe; comments may differ."""
    _, audit = python_blocks(README)
    recipe = re.search(r"```python\n# audit_mine.py\n(.*?)```", DOCUMENTS["docs/recipes.md"], re.DOTALL)
    assert recipe and ast.dump(ast.parse(audit)) == ast.dump(ast.parse(recipe[1]))


def test_the_example_of_the_audit_page_runs() -> None:
    """It is also the last example of notebook 09."""
    [example] = python_blocks(DOCUMENTS["docs/audit.md"])
    cells = nbformat.read(paths.notebooks_dir() / "09_stress.ipynb", 4).cells
    [shown] = [block for cell in cells for block in python_blocks(cell.source)]
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse(example))
    test = load_dataset(load_profile("smoke")).test.first(8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    names: dict[str, Any] = {"model": model, "images": test.images, "labels": test.labels}
    exec(example, names)
    assert not names["report"].believed and "worst-case" in names["report"].failed


def test_every_profile_is_in_its_table() -> None:
    for name in profile_names():
        assert f"| `{name}` |" in README


def test_every_environment_variable_is_in_the_settings() -> None:
    folders = [path for folder in ("paperlib", "tests") for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in folders for name in re.findall(r"PAPERLIB_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))}
    assert used == set(re.findall(r"PAPERLIB_[A-Z_]+[A-Z]", SETTINGS))


def settings_table() -> dict[str, tuple[str, str]]:
    """What the settings allow for each field of a profile, and its value at ``digits``."""
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| [^|]+ \| ([^|]+) \| ([^|]*) \|$", SETTINGS, re.MULTILINE)
    return {name: (allowed, value.strip()) for name, allowed, value in rows}


def leaves(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in table.items():
        values |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values


def as_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_field_of_a_profile_is_in_the_settings_with_its_value() -> None:
    expected = leaves(to_table(load_profile("digits")))
    del expected["name"]  # that of the file
    documented = {name: value for name, (_, value) in settings_table().items()}
    assert documented == {name: as_text(value) for name, value in expected.items()}


def refused(allowed: str) -> list[Any]:
    """Values just outside what the settings allow."""
    kind = allowed.removeprefix("list, ")
    if low := re.fullmatch(r"(\d) or more", kind):
        outside: list[Any] = [int(low[1]) - 1]
    elif kind == "0 to 1":
        outside = [-1, 2]
    elif kind.startswith("one of"):
        outside = ["nonsense"]
    else:
        assert kind in ("true or false", "text", "list of text"), kind
        outside = [7]
    return [[value] for value in outside] if allowed.startswith("list") else outside


def test_profiles_refuse_the_values_that_the_settings_do_not_allow() -> None:
    for name, (allowed, _) in settings_table().items():
        *section, key = name.split(".")
        choices = re.findall(r"`([^`]+)`", allowed) if allowed.startswith("one of") else []
        for value in (*refused(allowed), *choices):
            table = to_table(load_profile("digits"))
            part = table[section[0]] if section else table
            assert key in part, name
            part[key] = value
            if value in choices:
                parse_profile(table)
                continue
            with pytest.raises(ProfileError, match=re.escape(key)):
                parse_profile(table)


def test_the_table_of_changes_names_existing_files() -> None:
    section = DOCUMENTS["CONTRIBUTING.md"].split("## Where to change what")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!to change)([^|`]+) \| `([^`]+)` \|$", section, re.MULTILINE)
    assert len(rows) == 6
    for change, file in rows:
        assert (ROOT / file).is_file(), f"{change}: {file}"


def test_files_named_in_the_documents_exist() -> None:
    """Those in backticks, relative to the root of the repository."""
    for document, text in DOCUMENTS.items():
        for file in re.findall(r"`((?:paperlib|tests|docs|notebooks|figures|data/published)/[\w./-]+)`", text):
            assert (ROOT / file).exists(), f"{document}: {file}"


def test_hooks_run_the_style_and_type_checks_of_make() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = " ".join(hook["entry"] for repo in config["repos"] for hook in repo["hooks"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    checks = {c.strip().removesuffix(" .") for c in re.findall(r"python -m ((?:ruff|mypy).*)", makefile)}
    assert len(checks) == 3
    for check in checks:
        assert f"-m {check}" in entries, check


def test_issue_templates_have_a_name_and_a_purpose() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert len(templates) >= 3
    for path in templates:
        head = yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])
        assert head["name"] and head["about"]


def test_no_document_names_a_machine() -> None:
    pattern = r"(?<![\w.])/(work|home|root|tmp|Users|mnt)/|localhost|\b\d+\.\d+\.\d+\.\d+\b"
    assert [document for document, text in DOCUMENTS.items() if re.search(pattern, text)] == []
