"""The committed notebooks: their form, and their outputs compared with the published records (nbval)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from notebook_hygiene import check_hygiene

from paperlib import Study, paths
from paperlib.atomic_files import checksum, read_json, write_json
from paperlib.pipeline.publish import published_configuration
from paperlib.pipeline.published_format import read_records, write_records
from paperlib.series.catalogue import discover
from paperlib.series.notebook_format import tagged
from paperlib.series.runner import run_series

NOTEBOOKS = [notebook.path for notebook in discover(paths.notebooks_dir())]
COMPARED = "nbval-check-output"


def nbval(notebooks: list[Path], home: Path, published: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run nbval in a home without computed results, so that all outputs come from published records."""
    settings = {"PAPERLIB_HOME": str(home), "PAPERLIB_PROGRESS": "lines", "MPLBACKEND": ""}
    settings |= {"PAPERLIB_PUBLISHED": str(published)} if published else {}
    environment = {key: value for key, value in {**os.environ, **settings}.items() if value}
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, f"--rootdir={paths.ROOT}", *map(str, notebooks)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def code_cells(path: Path) -> int:
    return sum(cell.cell_type == "code" for cell in nbformat.read(path, 4).cells)


def test_every_notebook_has_the_committed_form() -> None:
    assert {path.stem: problems for path in NOTEBOOKS if (problems := check_hygiene(path))} == {}


def test_nbval_compares_numbers_in_every_notebook() -> None:
    for path in NOTEBOOKS:
        nb = nbformat.read(path, 4)
        compared = [nb.cells[i] for i in tagged(nb, COMPARED)]
        printed = "".join(output.get("text", "") for cell in compared for output in cell.outputs)
        assert len(re.findall(r"\d+\.\d+", printed)) >= 2, path.stem


def test_the_numbers_of_the_series_have_no_gap() -> None:
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(13))


def test_nbval_replays_every_notebook_from_published_records(tmp_path: Path) -> None:
    halves = NOTEBOOKS[::2], NOTEBOOKS[1::2]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda i: nbval(halves[i], tmp_path / str(i)), range(2)))
    for half, run in zip(halves, runs, strict=True):
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
        # nbval marks cells after a time-out as expected failures, so the number of passed cells is compared, too.
        assert f"{sum(map(code_cells, half))} passed" in run.stdout
        assert "xfail" not in run.stdout
    assert not any((tmp_path / str(i) / "data" / "store").exists() for i in range(2)), "a notebook computed something"


def test_a_changed_record_fails_nbval(tmp_path: Path) -> None:
    original = paths.ROOT / "data" / "published" / "digits"
    changed = tmp_path / "published" / "digits"
    shutil.copytree(original, changed)
    index = read_json(changed / "index.json")
    records = read_records(changed / "records-seed-0.jsonl")
    name = next(name for name in records if name.startswith("evaluate:plain:pgd"))
    records[name]["record"]["result"]["accuracy"] += 0.01
    write_records(changed / "records-seed-0.jsonl", records)
    index["files"]["records-seed-0.jsonl"] = checksum(changed / "records-seed-0.jsonl")
    write_json(changed / "index.json", index)
    notebook = next(path for path in NOTEBOOKS if path.stem.startswith("02"))
    run = nbval([notebook], tmp_path / "home", tmp_path / "published")
    assert run.returncode == 1, run.stdout[-3000:]
    assert "1 failed" in run.stdout


PUBLISHED = sorted(path.parent.name for path in (paths.ROOT / "data" / "published").glob("*/index.json"))


@pytest.mark.parametrize("profile", [name for name in PUBLISHED if name != "digits"])
def test_every_published_profile_renders_without_data_or_weights(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "none"))  # loading images is an error
    outcomes = run_series(profile, replay=True, jobs=2)
    assert len(outcomes) >= len(NOTEBOOKS) - 2 and all(outcome.ok for outcome in outcomes)
    assert not (tmp_path / "data" / "store").exists(), "a notebook computed something"
    assert not any(re.search(r": epoch +\d+/\d+", line) for line in log_lines), "a notebook trained something"
    for drawn in (tmp_path / "figures" / profile).iterdir():
        if drawn.suffix == ".svg":
            continue  # not committed
        committed = paths.ROOT / "figures" / profile / drawn.name
        assert committed.is_file(), drawn.name
        if drawn.suffix in (".csv", ".md"):  # the numbers equal the committed ones
            assert drawn.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8"), drawn.name


@pytest.mark.parametrize("profile", PUBLISHED)
def test_published_configuration_is_that_of_the_profile(profile: str) -> None:
    study = Study(profile, local=False)
    assert study.published.index["configuration"] == published_configuration(study.profile)
    assert study.missing(list(study.stages)) == []
    assert json.dumps(study.published.index).find("/home") < 0


@pytest.mark.parametrize("profile", PUBLISHED)
def test_every_published_number_has_its_provenance(profile: str) -> None:
    for seed in Study(profile, local=False).published.seeds:
        study = Study(profile, seed, local=False)
        for name in study.stages:
            provenance = study.get(name).record["provenance"]
            expected = {"commit", "created", "device", "threads", "versions", "seconds", "data", "seed", "inputs"}
            assert expected <= provenance.keys(), name
            assert (provenance["data"], provenance["seed"]) == (study.fingerprint, seed)
            assert provenance["profile"] == profile
