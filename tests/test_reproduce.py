"""The main job at profile ``smoke``, end to end, in an empty home: computing, papermill, figures, tables, pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from paperlib import Study, paths
from paperlib.atomic_files import checksum, read_json, read_tensors, write_json, write_tensors
from paperlib.errors import StoreError
from paperlib.pipeline.publish import publish
from paperlib.report import benchmarks, outcomes, tables
from paperlib.series.catalogue import discover
from paperlib.series.network_loads import network_loads
from paperlib.series.reproduce import reproduce


def paperlib(home: Path, *arguments: str) -> str:
    environment = {**os.environ, "PAPERLIB_HOME": str(home), "PAPERLIB_PUBLISHED": str(home / "published")}
    done = subprocess.run(
        [sys.executable, "-m", "paperlib", *arguments],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A reproduction beside published files that cannot be read: whoever looks into one of them fails."""
    home = tmp_path_factory.mktemp("smoke")
    for name in ("smoke/index.json", "digits/index.json", "benchmarks/peers.json", "benchmarks/limits.json"):
        path = home / "published" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("altered", encoding="utf-8")
    return home, paperlib(home, "reproduce", "--profile", "smoke")


def test_nothing_published_was_read(smoke: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    home, said = smoke
    assert "published" not in re.sub(r"not published|and not published", "", said)
    monkeypatch.setenv("PAPERLIB_PUBLISHED", str(home / "published"))
    with pytest.raises(StoreError, match=r"index\.json"):  # a reading would have been noticed
        _ = Study("smoke").published.index
    with pytest.raises(StoreError, match=r"peers\.json"):
        benchmarks.benchmark("peers")
    assert benchmarks.benchmark("peers", published=False) is None


def test_published_records_with_altered_numbers_reach_nothing(
    smoke: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valid records of the same keys, all outcomes turned round, and their figures, lie beside a run."""
    home, _ = smoke
    shutil.copytree(home, tmp_path / "run", ignore=shutil.ignore_patterns("published"))
    with monkeypatch.context() as patched:
        patched.setenv("PAPERLIB_HOME", str(home))
        patched.setenv("PAPERLIB_PUBLISHED", str(tmp_path / "run" / "published"))
        publish("smoke")
    turn_round(tmp_path / "run" / "published" / "smoke")
    figures = tmp_path / "run" / "figures" / "smoke"
    before = {path.name: path.read_bytes() for path in figures.iterdir()}
    for name in ("11_peers.png", "11_growth.svg", "06_main.png", "main_table.csv"):
        (figures / name).write_text("altered", encoding="utf-8")
    said = paperlib(tmp_path / "run", "reproduce", "--profile", "smoke")
    assert "computing" not in said.split("00_start_here")[0]
    assert {path.name: path.read_bytes() for path in figures.iterdir()} == before
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("PAPERLIB_PUBLISHED", str(tmp_path / "run" / "published"))
    altered = tables.main_table(Study("smoke"))  # they can be read, and would have been seen
    shown = pd.read_csv(figures / "main_table.csv", dtype=str, keep_default_na=False).set_index("system")
    assert altered.loc["plain", "clean"] != shown.loc["plain", "clean"]


def turn_round(folder: Path) -> None:
    """Turn every outcome of published records round, with checksums that fit."""
    index = read_json(folder / "index.json")
    records = read_json(folder / "records-seed-0.json")
    for entry in records.values():
        result = entry["record"]["result"]
        if "correct" in result:
            result["correct"] = result["n"] - result["correct"]
            result["accuracy"] = result["correct"] / result["n"]
    write_json(folder / "records-seed-0.json", records)
    arrays, _ = read_tensors(folder / "arrays-seed-0.safetensors")
    write_tensors(
        folder / "arrays-seed-0.safetensors",
        {name: ~value if value.dtype == torch.bool else value for name, value in arrays.items()},
    )
    index["files"] |= {name: checksum(folder / name) for name in ("records-seed-0.json", "arrays-seed-0.safetensors")}
    write_json(folder / "index.json", index)


def test_every_seed_is_computed_and_handed_to_the_notebooks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    handed: list[Any] = []
    monkeypatch.setattr(Study, "compute", lambda run, names=None, **how: computed.append(run.seed))
    monkeypatch.setattr("paperlib.series.reproduce.run_series", lambda profile, **how: handed.append(how))
    monkeypatch.setattr("paperlib.series.reproduce.write_site", lambda profile, **how: home / "index.html")
    reproduce("smoke", seeds=[2, 0, 1])
    assert computed == [2, 0, 1]
    assert (handed[0]["seed"], list(handed[0]["seeds"])) == (2, [2, 0, 1])
    assert not handed[0].get("replay", False)


def test_tables_over_seeds_say_that_one_was_computed(smoke: tuple[Path, str]) -> None:
    home, _ = smoke
    verdicts = pd.read_csv(home / "figures/smoke/verdicts.csv")
    decided = verdicts[verdicts["numbers"].str.contains(" for, ") & (verdicts["claim"] != "cost")]
    assert set(decided["verdict"]) == {"undecided (1 seed)"}
    page = (home / "build/smoke/html/index.html").read_text(encoding="utf-8")
    assert page.count("undecided (1 seed)") == len(decided)
    table = (home / "build/smoke/html/06_main_table.html").read_text(encoding="utf-8")
    assert "seed 0, n = 60 images each" in table


def test_nine_experts_and_the_mixture_were_trained(smoke: tuple[Path, str]) -> None:
    _, said = smoke
    for system in [f"expert-{i}" for i in range(9)] + ["frozen", "dwf", "plain", "pgd-at"]:
        assert f"] train:{system}\n" in said
        assert f"{system}: epoch   1/" in said


def test_everything_promised_is_there(smoke: tuple[Path, str]) -> None:
    home, said = smoke
    for notebook in discover(paths.notebooks_dir()):
        assert (home / "build/smoke/notebooks" / notebook.path.name).exists()
        assert notebook.promises
        for promise in notebook.promises:
            assert (home / "figures/smoke" / promise).stat().st_size > 100
    assert "build/smoke/html/index.html" in said
    pages = list((home / "build/smoke/html").glob("*.html"))
    assert len(pages) == len(discover(paths.notebooks_dir())) + 1
    assert [load for page in pages for load in network_loads(page.read_text())] == []


def test_a_second_run_computes_nothing(smoke: tuple[Path, str]) -> None:
    said = paperlib(smoke[0], "run", "--profile", "smoke")
    assert "epoch" not in said
    assert "computing" not in said


def test_replay_and_computation_give_the_same_table(
    smoke: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = smoke
    computed = pd.read_csv(home / "figures/smoke/main_table.csv", dtype=str, keep_default_na=False).set_index("system")
    monkeypatch.setenv("PAPERLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setenv("PAPERLIB_HOME", str(home))
    publish("smoke")
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "empty"))
    study = Study("smoke")
    replayed = tables.main_table(study, outcomes.main_table_systems(study)).astype(str)
    pd.testing.assert_frame_equal(replayed, computed)
    assert {artefact.source for artefact in study.used.values()} == {"published"}


@pytest.mark.parametrize("given", ["{folder}/home", "home", "~/home"])
def test_it_ends_by_naming_where_everything_really_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, log_lines: list[str]
) -> None:
    given = given.format(folder=tmp_path)
    monkeypatch.chdir(tmp_path if given == "home" else paths.ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_HOME", given)
    monkeypatch.setattr(Study, "compute", lambda study, names=None: None)
    monkeypatch.setattr("paperlib.series.reproduce.run_series", lambda *args, **kw: [])
    monkeypatch.setattr("paperlib.series.reproduce.write_site", lambda name: paths.build_dir(name) / "html/index.html")
    said = log_lines
    page = reproduce("smoke")
    assert page == tmp_path / "home/build/smoke/html/index.html"
    for place in ("figures/smoke/", "build/smoke/notebooks/", "build/smoke/html/index.html"):
        assert sum(f" {given}/{place} " in f"{line} " for line in said) == 1, (place, said)


def test_a_folder_for_figures_that_cannot_be_is_told_before_the_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path))
    monkeypatch.setattr(Study, "compute", None)
    (tmp_path / "figures").touch()
    with pytest.raises(StoreError, match="figures/smoke: cannot write there"):
        reproduce("smoke")
