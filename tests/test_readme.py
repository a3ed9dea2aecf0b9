"""The README says nothing the records do not: its tables, pictures, code and commands are checked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from prose_numbers import NOTEBOOK_FACTS, README_FACTS, README_OTHERS, Fact, told

from paperlib import Study, paths
from paperlib.__main__ import main
from paperlib.profiles import profile_names
from paperlib.report import claims, cost, scales, stress, tables
from paperlib.series import discover

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", README, re.DOTALL)
    assert found, f"README has no block {name}"
    return found[1]


def test_its_tables_are_those_of_the_published_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path))
    studies = Study("digits", local=False).runs
    assert [study.seed for study in studies] == [0, 1, 2]
    assert block("seeds_table") == tables.markdown(tables.seeds_table(studies, tables.everyone))
    together = tables.worst_differences(studies, tables.everyone, "dwf")
    assert block("differences") == tables.markdown(together)
    names = [tables.called(name) for name in tables.everyone(studies[0])]
    assert block("shrinkage") == tables.markdown(stress.shrinkage(studies, names))
    controls = stress.controls_verdicts(studies[0]).drop(columns=["n"])
    assert block("controls") == tables.markdown(controls)
    lite = Study("cifar10_lite", local=False)
    assert block("scales") == tables.markdown(scales.scales([studies, [lite]]))
    table = tables.main_table(lite, tables.everyone(lite)).drop(columns=["what it is", "n", "attacks", "seed"])
    assert block("lite_table") == tables.markdown(table)
    shown = ("clean", "PGD-50", "basic worst", "worst case")
    assert block("lite_differences") == tables.markdown(tables.worst_differences([lite], tables.everyone, "dwf", shown))
    assert block("verdicts") == tables.markdown(claims.side_by_side(claims.published_runs()))


def prose() -> str:
    """The README without its generated blocks and without code."""
    return re.sub(r"<!-- (\w+): begin -->.*?<!-- \1: end -->|```.*?```", "", README, flags=re.DOTALL)


@pytest.mark.parametrize("fact", README_FACTS, ids=lambda fact: fact[0][:40])
def test_a_number_in_its_prose_is_that_of_the_records_or_the_profile(fact: Fact) -> None:
    assert told(fact) in prose()


def test_every_percentage_in_its_prose_is_checked_or_says_whence_it_is() -> None:
    text, covered = prose(), set[int]()
    for sentence in (*map(told, README_FACTS), *README_OTHERS):
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


@pytest.mark.parametrize("name", NOTEBOOK_FACTS)
def test_a_number_in_the_prose_of_a_notebook_is_that_of_the_code_or_the_profile(name: str) -> None:
    cells = nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for fact in NOTEBOOK_FACTS[name]:
        assert told(fact) in text


def test_its_table_of_speed_is_that_of_the_published_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    record = cost.benchmark("peers")
    assert record is not None
    assert block("peers_summary") == tables.markdown(cost.peers_summary(record))


def test_every_notebook_stands_in_both_maps_of_the_series() -> None:
    start = (paths.notebooks_dir() / "00_start_here.ipynb").read_text(encoding="utf-8")
    for notebook in discover(paths.notebooks_dir()):
        assert f"| `{notebook.path.stem}` |" in README
        assert notebook.path.stem == "00_start_here" or f"| `{notebook.path.stem}` |" in start


def test_its_pictures_and_files_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len([link for link in links if link.endswith(".png")]) >= 4
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for link in links:
        assert link in anchors or (paths.ROOT / link).is_file(), link


def test_its_example_runs_right_after_a_clone(tmp_path: Path) -> None:
    code = re.search(r"```python\n(from paperlib import .*?)```", README, re.DOTALL)
    assert code
    script = code[1] + "\nassert x_adv.shape == x.shape and 0 < int(done.fooled.sum()) < 100\n"
    environment = {"PAPERLIB_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=paths.ROOT, capture_output=True, text=True
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


def test_every_profile_is_in_its_table() -> None:
    for name in profile_names():
        assert f"| `{name}` |" in README
