"""The documents say nothing that the records do not: tables, numbers, links, code and commands are checked."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import yaml
from prose_numbers import FACTS, NOTEBOOK_FACTS, OTHERS, Fact, told

from paperlib import Study, load_profile, paths
from paperlib.cli import _parser, main
from paperlib.config.load import profile_names
from paperlib.config.schema import parse_profile
from paperlib.config.serialise import to_table
from paperlib.errors import ProfileError
from paperlib.series.catalogue import discover

ROOT = paths.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README, SETTINGS = DOCUMENTS["README.md"], DOCUMENTS["docs/settings.md"]
LONGEST, MOST_LINES = 120, 200


@cache
def writer() -> ModuleType:
    """docs/write_results.py."""
    spec = importlib.util.spec_from_file_location("write_results", ROOT / "docs" / "write_results.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_those_of_the_published_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python docs/write_results.py`` would change nothing."""
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    assert [study.seed for study in Study("digits", local=False).runs] == [0, 1, 2]
    written = dict(writer().tables())
    assert written.keys() == {name for _, name in writer().TABLES}
    for document, name in writer().TABLES:
        assert writer().block(DOCUMENTS[document], name) == written[name], f"{document}: {name}"


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


@pytest.mark.parametrize(
    ("document", "fact"),
    [(document, fact) for document, facts in FACTS.items() for fact in facts],
    ids=lambda value: Path(value).stem if isinstance(value, str) else value[0][:40],
)
def test_a_number_in_the_prose_is_that_of_the_records_or_the_profile(document: str, fact: Fact) -> None:
    assert told(fact) in prose(document)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_percentage_in_the_prose_is_checked_or_has_a_source(document: str) -> None:
    text, covered = prose(document), set[int]()
    for sentence in (*map(told, FACTS.get(document, ())), *OTHERS.get(document, {})):
        assert sentence in text, sentence
        covered |= {place for found in re.finditer(re.escape(sentence), text) for place in range(*found.span())}
    # "95 %" is the level of the intervals, [0, 1] the range of pixels
    numbers = re.finditer(r"\d[\d.,]*(?= (%|points\b))|\[-?\d[\d.]*, -?\d[\d.]*\]", text)
    bare = [
        text[max(0, n.start() - 40) : n.end() + 10]
        for n in numbers
        if n[0] not in ("95", "[0, 1]") and n.start() not in covered
    ]
    assert bare == []


def test_checked_sentences_belong_to_documents() -> None:
    assert FACTS.keys() | OTHERS.keys() <= DOCUMENTS.keys()


@pytest.mark.parametrize("name", NOTEBOOK_FACTS)
def test_a_number_in_the_prose_of_a_notebook_is_that_of_the_code_or_the_profile(name: str) -> None:
    cells = nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for fact in NOTEBOOK_FACTS[name]:
        assert told(fact) in text


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_of_prose_and_code_are_readable(document: str) -> None:
    """A row of a table is one line, however long."""
    lines = [line for line in DOCUMENTS[document].splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > LONGEST and " " in line.strip()] == []


def test_every_notebook_stands_in_both_maps_of_the_series() -> None:
    start = (paths.notebooks_dir() / "00_start_here.ipynb").read_text(encoding="utf-8")
    for notebook in discover(paths.notebooks_dir()):
        assert f"| `{notebook.path.stem}` |" in README
        assert notebook.path.stem == "00_start_here" or f"| `{notebook.path.stem}` |" in start


def anchors(document: str) -> set[str]:
    """Anchors of the headings of a document, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", DOCUMENTS[document], flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for link in re.findall(r"\]\(([^)]+)\)", DOCUMENTS[document]):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (folder / file).resolve() if file else ROOT / document
        assert target.is_relative_to(ROOT) and target.is_file(), link
        if anchor:
            assert anchor in anchors(target.relative_to(ROOT).as_posix()), link


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", README))
    assert DOCUMENTS.keys() - {"README.md"} <= linked
    assert len([link for link in linked if link.endswith(".png")]) >= 3


def examples() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(found) == 2
    return found


@pytest.mark.parametrize(
    ("example", "check"),
    [
        (0, "assert x_adv.shape == x.shape and 0 < int(done.fooled.sum()) < 100"),
        (1, "assert not report.believed and 'worst-case' in report.fired"),
    ],
    ids=["library", "audit"],
)
def test_its_examples_run_right_after_a_clone(example: int, check: str, tmp_path: Path) -> None:
    environment = {"PAPERLIB_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    script = f"{examples()[example]}\n{check}\n"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_its_evaluate_command_runs_right_after_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path))
    command = re.search(r"`python -m paperlib (evaluate [^`]+)`", README)
    assert command
    assert main([*command[1].split(), "--images", "40"]) == 0
    assert re.search(r"dwf on digits.*n = 40\)", capsys.readouterr().out)


def commands() -> list[str]:
    """Every command of the documents but the recipes', which test_recipes.py runs: in blocks and in running text."""
    found = []
    for document, text in DOCUMENTS.items():
        if document == "docs/recipes.md":
            continue
        fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        blocks = [block for language, block in fences if not language]
        lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
        found += [line for line in lines if line] + re.findall(r"`((?:python|papermill|make|pre-commit) [^`]+)`", text)
    return list(dict.fromkeys(re.sub(r"^\w+=\S+ ", "", line) for line in found))


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_documents_is_understood(command: str) -> None:
    """It names a verb, options, profiles, stages, notebooks and files that exist; the verbs have tests of their own."""
    words = shlex.split(command)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
        given = dict(word.split("=", 1) for word in words[2:])
        assert given.keys() <= {"PROFILE", "ARGS"}
        if words[1] == "reproduce":
            profile = given.get("PROFILE", "digits")
            _parser().parse_args(["reproduce", "--profile", profile, *shlex.split(given.get("ARGS", ""))])
            load_profile(profile)
    elif words[:3] == ["python", "-m", "paperlib"]:
        options = _parser().parse_args(words[3:])
        profile = load_profile(options.profile)
        if getattr(options, "stage", None):
            assert Study(profile, local=False).graph.matching(*options.stage)
    elif words[0] in ("python", "papermill"):
        assert (ROOT / words[1]).is_file()
        if "profile" in words:
            load_profile(words[words.index("profile") + 1])
    else:
        assert command in (". .venv/bin/activate", "pre-commit install")


def test_every_profile_is_in_its_table() -> None:
    for name in profile_names():
        assert f"| `{name}` |" in README


def test_every_environment_variable_is_in_the_settings() -> None:
    folders = [path for folder in ("paperlib", "tests") for path in (ROOT / folder).rglob("*.py")]
    used = {name for path in folders for name in re.findall(r"PAPERLIB_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))}
    assert used == set(re.findall(r"PAPERLIB_[A-Z_]+[A-Z]", SETTINGS))


def fields() -> dict[str, tuple[str, str]]:
    """Each field of a profile in the settings: what is allowed, and its value at ``digits``."""
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| [^|]+ \| ([^|]+) \| ([^|]*) \|$", SETTINGS, re.MULTILINE)
    return {name: (allowed, value.strip()) for name, allowed, value in rows}


def leaves(table: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= leaves(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def as_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_field_of_a_profile_is_in_the_settings_with_its_value() -> None:
    known = leaves(to_table(load_profile("digits")))
    del known["name"]  # that of the file
    assert {name: value for name, (_, value) in fields().items()} == {n: as_text(value) for n, value in known.items()}


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


@pytest.mark.parametrize("name", fields())
def test_what_the_settings_do_not_allow_is_refused(name: str) -> None:
    allowed, _ = fields()[name]
    *section, key = name.split(".")
    choices = re.findall(r"`([^`]+)`", allowed) if allowed.startswith("one of") else []
    for value in (*refused(allowed), *choices):
        table = to_table(load_profile("digits"))
        part = table[section[0]] if section else table
        assert key in part
        part[key] = value
        if value in choices:
            parse_profile(table)
            continue
        with pytest.raises(ProfileError, match=re.escape(key)):
            parse_profile(table)


def test_the_map_of_changes_names_one_file_each() -> None:
    section = DOCUMENTS["CONTRIBUTING.md"].split("## Where to change what")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!to change)([^|`]+) \| `([^`]+)` \|$", section, re.MULTILINE)
    assert len(rows) == 6
    for what, file in rows:
        assert (ROOT / file).is_file(), f"{what}: {file}"


def test_files_named_in_the_documents_exist() -> None:
    """In backticks, from the root of the repository; what a run writes is not there."""
    for document, text in DOCUMENTS.items():
        for file in re.findall(r"`((?:paperlib|tests|docs|notebooks|figures|data/published)/[\w./-]+)`", text):
            assert (ROOT / file).exists(), f"{document}: {file}"


def test_hooks_run_the_style_and_type_checks_of_make_test() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = " ".join(hook["entry"] for repo in config["repos"] for hook in repo["hooks"])
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ntest:")[1].split("\n\n")[0]
    checks = [c.strip().removesuffix(" .") for c in re.findall(r"python -m ((?:ruff|mypy).*)", recipe)]
    assert len(checks) == 3
    for check in checks:
        assert f"-m {check}" in entries, check


def test_issue_templates_have_a_name_and_a_purpose() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert len(templates) >= 3
    for path in templates:
        head = yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])
        assert head["name"] and head["about"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_document_names_a_machine(document: str) -> None:
    assert not re.search(
        r"(?<![\w.])/(work|home|root|tmp|Users|mnt)/|localhost|\b\d+\.\d+\.\d+\.\d+\b", DOCUMENTS[document]
    )
