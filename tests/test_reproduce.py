"""The main job at profile ``smoke``, end to end, in an empty home: computing, papermill, figures, tables, pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from paperlib import Study, paths
from paperlib.errors import StoreError
from paperlib.reading_copy import network_loads
from paperlib.report import tables
from paperlib.reproduce import reproduce
from paperlib.series import discover
from paperlib.study import publish


def paperlib(home: Path, *arguments: str) -> str:
    environment = {**os.environ, "PAPERLIB_HOME": str(home), "PAPERLIB_PUBLISHED": str(home / "published")}
    done = subprocess.run(
        [sys.executable, "-m", "paperlib", *arguments],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("smoke")
    return home, paperlib(home, "reproduce", "--profile", "smoke")


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
    replayed = tables.main_table(study, tables.everyone(study)).astype(str)
    pd.testing.assert_frame_equal(replayed, computed)
    assert {artefact.source for artefact in study.used.values()} == {"published"}


@pytest.mark.parametrize("given", ["{folder}/home", "home", "~/home"])
def test_it_ends_by_naming_where_everything_really_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    given = given.format(folder=tmp_path)
    monkeypatch.chdir(tmp_path if given == "home" else paths.ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_HOME", given)
    monkeypatch.setattr(Study, "compute", lambda study: None)
    monkeypatch.setattr("paperlib.reproduce.run_series", lambda *args, **kw: [])
    monkeypatch.setattr("paperlib.reproduce.reading_copy", lambda name, say: paths.build_dir(name) / "html/index.html")
    said: list[str] = []
    page = reproduce("smoke", say=said.append)
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
