"""The main job, the recipes and the commands of the documents, at a tiny profile in place of the documented one.

One reproduction computes all stages of the tiny profile. The recipes and commands below use its results.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_model, save_model
from toys import changed, live_in, logged, micro_table, toml_text

from paperlib import Study, load_dataset, load_profile, paths
from paperlib.atomic_files import checksum, read_json, write_json
from paperlib.cli import _parser, main
from paperlib.errors import StoreError
from paperlib.evaluation import headline
from paperlib.pipeline.publish import publish
from paperlib.pipeline.published_format import read_arrays, read_records, write_arrays, write_records
from paperlib.report import benchmarks, figures, outcomes, style, tables
from paperlib.series.catalogue import discover
from paperlib.series.network_loads import network_loads
from paperlib.series.notebook_format import PARAMETERS
from paperlib.series.reproduce import reproduce
from paperlib.systems.registry import COMPARED

NOTEBOOKS = paths.notebooks_dir()
EXECUTED = ("06_main_table", "12_verdicts")  # the tables and the verdicts; nbval replays the others
DOCUMENTS = [paths.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((paths.ROOT / "docs").glob("*.md"))
RECIPES = (paths.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", RECIPES, re.DOTALL))


@dataclass(frozen=True)
class Reproduction:
    """A folder with the tiny profile, its results in ``home``, and the lines that the reproduction logged."""

    folder: Path
    log: str

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def records(self) -> list[dict[str, Any]]:
        """All records computed so far."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in self.home.rglob("record.json")]


def copy_notebooks(folder: Path, *names: str) -> Path:
    """A folder with these notebooks of the series."""
    folder.mkdir()
    for name in names:
        shutil.copy(NOTEBOOKS / f"{name}.ipynb", folder)
    return folder


def work_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make ``folder`` the current one, with everything computed below it, in this process."""
    live_in(folder, patch)
    patch.setenv("PAPERLIB_WORKERS", "1")
    patch.chdir(folder)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    """A reproduction in a folder with published files that cannot be read: reading one of them is an error."""
    folder = tmp_path_factory.mktemp("tiny")
    table = changed(micro_table(), "study.systems", list(COMPARED))
    table["evaluation"]["eps_sweep"] = [table["evaluation"]["eps"]]
    (folder / "tiny.toml").write_text(toml_text(table), encoding="utf-8")
    for name in ("tiny/index.json", "digits/index.json", "benchmarks/peers.json", "benchmarks/limits.json"):
        path = folder / "published" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("altered", encoding="utf-8")
    notebooks = copy_notebooks(folder / "series", *EXECUTED)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch, logged(lines.append):
        work_in(folder, patch)
        patch.setattr(paths, "notebooks_dir", lambda: notebooks)
        assert main(["reproduce", "--profile", "tiny.toml"]) == 0
    for name, text in FILES.items():
        (folder / name).write_text(text.replace('base = "digits"', 'base = "tiny.toml"'), encoding="utf-8")
    (folder / "notebooks").symlink_to(NOTEBOOKS)
    return Reproduction(folder, "\n".join(lines) + "\n")


@pytest.fixture
def tiny(reproduced: Reproduction, monkeypatch: pytest.MonkeyPatch) -> Reproduction:
    """The reproduction, with its folder as the current one and the published records of the repository."""
    work_in(reproduced.folder, monkeypatch)
    monkeypatch.delenv("PAPERLIB_PUBLISHED")
    return reproduced


# -- the main job ------------------------------------------------------------------------------------------------------


def test_no_published_file_was_read(reproduced: Reproduction, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "published" not in re.sub(r"not published|and not published", "", reproduced.log)
    work_in(reproduced.folder, monkeypatch)
    with pytest.raises(StoreError, match=r"index\.json"):  # reading it would have raised
        _ = Study("tiny.toml").published.index
    with pytest.raises(StoreError, match=r"peers\.json"):
        benchmarks.benchmark("peers")


def test_the_cost_notebook_reads_no_published_benchmark_without_replay(
    reproduced: Reproduction, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work_in(reproduced.folder, monkeypatch)
    names: dict[str, Any] = {"benchmarks": benchmarks, "figures": figures, "style": style, "tables": tables}
    names |= {"profile": "tiny.toml", "replay": False, "missing": "not measured", "display": None}
    cells = nbformat.read(NOTEBOOKS / "11_cost.ipynb", 4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code" and "benchmarks.benchmark(" in cell.source]
    for source in sources:
        exec(source, names)
    assert len(sources) == 4 and capsys.readouterr().out.count("not measured") == 4


def test_altered_published_records_and_figures_change_nothing(
    reproduced: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    """Valid records of the same keys with inverted outcomes, and altered figures, are present during a run."""
    run = tmp_path / "run"
    shutil.copytree(reproduced.folder, run, ignore=shutil.ignore_patterns("published", "notebooks"))
    work_in(run, monkeypatch)
    publish("tiny.toml")
    invert_outcomes(run / "published" / "tiny")
    figures_folder = run / "home" / "figures" / "tiny"
    before = {path.name: path.read_bytes() for path in figures_folder.iterdir()}
    for name in ("06_main.png", "main_table.csv"):
        (figures_folder / name).write_text("altered", encoding="utf-8")
    log_lines.clear()
    notebooks = copy_notebooks(run / "one", "06_main_table")
    monkeypatch.setattr(paths, "notebooks_dir", lambda: notebooks)
    assert main(["reproduce", "--profile", "tiny.toml"]) == 0
    assert not [line for line in log_lines if "computing" in line and "notebooks" not in line]
    assert {path.name: path.read_bytes() for path in figures_folder.iterdir()} == before
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "empty"))
    altered = tables.main_table(Study("tiny.toml"))  # they can be read, and would have changed the table
    shown = pd.read_csv(figures_folder / "main_table.csv", dtype=str, keep_default_na=False).set_index("system")
    assert altered.loc["plain", "clean"] != shown.loc["plain", "clean"]


def invert_outcomes(folder: Path) -> None:
    """Invert every outcome of published records, and renew the checksums."""
    index = read_json(folder / "index.json")
    records = read_records(folder / "records-seed-0.jsonl")
    for entry in records.values():
        result = entry["record"]["result"]
        if "correct" in result:
            result["correct"] = result["n"] - result["correct"]
            result["accuracy"] = result["correct"] / result["n"]
    write_records(folder / "records-seed-0.jsonl", records)
    arrays = read_arrays(folder / "arrays-seed-0.safetensors")
    write_arrays(
        folder / "arrays-seed-0.safetensors",
        {name: ~value if value.dtype == torch.bool else value for name, value in arrays.items()},
    )
    index["files"] |= {name: checksum(folder / name) for name in ("records-seed-0.jsonl", "arrays-seed-0.safetensors")}
    write_json(folder / "index.json", index)


def test_every_seed_is_computed_and_passed_to_the_notebooks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    passed: list[Any] = []
    monkeypatch.setattr(Study, "compute", lambda run, names=None, **settings: computed.append(run.seed))
    monkeypatch.setattr("paperlib.series.reproduce.run_series", lambda profile, **settings: passed.append(settings))
    monkeypatch.setattr("paperlib.series.reproduce.write_site", lambda profile, **settings: home / "index.html")
    reproduce("smoke", seeds=[2, 0, 1])
    assert computed == [2, 0, 1]
    assert (passed[0]["seed"], list(passed[0]["seeds"])) == (2, [2, 0, 1])
    assert not passed[0].get("replay", False)


def test_tables_over_seeds_state_that_one_seed_was_computed(reproduced: Reproduction) -> None:
    verdicts = pd.read_csv(reproduced.home / "figures/tiny/verdicts.csv")
    decided = verdicts[verdicts["comparisons"].str.contains(" supported, ") & (verdicts["claim"] != "cost")]
    assert set(decided["verdict"]) == {"undecided (1 seed)"}
    page = (reproduced.home / "build/tiny/html/index.html").read_text(encoding="utf-8")
    assert page.count("undecided (1 seed)") == len(decided)
    table = (reproduced.home / "build/tiny/html/06_main_table.html").read_text(encoding="utf-8")
    assert "seed 0, n = 30 images each" in table


def test_nine_experts_and_the_mixture_were_trained(reproduced: Reproduction) -> None:
    for system in [f"expert-{i}" for i in range(9)] + ["frozen", "dwf", "plain", "pgd-at"]:
        assert f"] train:{system}\n" in reproduced.log
        assert f"{system}: epoch   1/" in reproduced.log


def test_every_promised_file_was_written(reproduced: Reproduction) -> None:
    build = reproduced.home / "build" / "tiny"
    for notebook in discover(reproduced.folder / "series"):
        assert (build / "notebooks" / notebook.path.name).exists()
        assert notebook.promises
        for promise in notebook.promises:
            assert (reproduced.home / "figures" / "tiny" / promise).stat().st_size > 100
    assert "build/tiny/html/index.html" in reproduced.log
    pages = list((build / "html").glob("*.html"))
    assert len(pages) == len(EXECUTED) + 1
    assert [load for page in pages for load in network_loads(page.read_text(encoding="utf-8"))] == []


def test_every_notebook_of_the_series_promises_files() -> None:
    assert all(notebook.promises for notebook in discover(NOTEBOOKS))


def test_replay_and_computation_give_the_same_table(
    reproduced: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = reproduced.home / "figures/tiny/main_table.csv"
    computed = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("system")
    work_in(reproduced.folder, monkeypatch)
    monkeypatch.setenv("PAPERLIB_PUBLISHED", str(tmp_path / "published"))
    publish("tiny.toml")
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "empty"))
    study = Study("tiny.toml")
    replayed = tables.main_table(study, outcomes.main_table_systems(study)).astype(str)
    pd.testing.assert_frame_equal(replayed, computed)
    assert {artefact.source for artefact in study.used.values()} == {"published"}


@pytest.mark.parametrize("setting", ["{folder}/home", "home", "~/home"])
def test_the_last_lines_name_the_places_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, log_lines: list[str]
) -> None:
    setting = setting.format(folder=tmp_path)
    monkeypatch.chdir(tmp_path if setting == "home" else paths.ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_HOME", setting)
    monkeypatch.setattr(Study, "compute", lambda study, names=None: None)
    monkeypatch.setattr("paperlib.series.reproduce.run_series", lambda *args, **settings: [])
    monkeypatch.setattr("paperlib.series.reproduce.write_site", lambda name: paths.build_dir(name) / "html/index.html")
    page = reproduce("smoke")
    assert page == tmp_path / "home/build/smoke/html/index.html"
    for place in ("figures/smoke/", "build/smoke/notebooks/", "build/smoke/html/index.html"):
        assert sum(f" {setting}/{place} " in f"{line} " for line in log_lines) == 1, (place, log_lines)


def test_a_folder_of_figures_that_cannot_be_written_is_an_error_before_the_computation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path))
    monkeypatch.setattr(Study, "compute", None)
    (tmp_path / "figures").touch()
    with pytest.raises(StoreError, match="figures/smoke: cannot write there"):
        reproduce("smoke")


# -- the commands of the documents ------------------------------------------------------------------------------------


def commands() -> list[str]:
    """The commands in blocks and in the text of all documents except the recipes, which have tests of their own."""
    lines: list[str] = []
    for document in DOCUMENTS:
        if document.name == "recipes.md":
            continue
        text = document.read_text(encoding="utf-8")
        blocks = [
            b for language, b in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if not language
        ]
        lines += [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`((?:python|papermill|make|pre-commit|conda) [^`]+)`", text)
    return list(dict.fromkeys(filter(None, lines)))


COMMANDS = commands()
OF_PAPERLIB = [command for command in COMMANDS if "python -m paperlib" in command]
# These read published records or nothing, so they run without a change.
CHEAP = ("--list", " doctor ", " audit ", " schema ")


@pytest.mark.parametrize("command", OF_PAPERLIB)
def test_a_command_of_the_documents_runs(
    command: str,
    tiny: Reproduction,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(command)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    arguments = words[3:]
    if " refresh " in command:  # one notebook in place of the series
        (tmp_path / "series").mkdir()
        write_small_notebook(tmp_path / "series" / "00_small.ipynb")
        monkeypatch.setattr(paths, "notebooks_dir", lambda: tmp_path / "series")
    elif " evaluate " in command:
        monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path))  # DWF has published weights
        arguments += ["--images", "40"]
    elif not any(option in f"{command} " for option in CHEAP):
        assert Study(load_profile(arguments[arguments.index("--profile") + 1]), local=False).graph.matching(
            *(_parser().parse_args(arguments).__dict__.get("stage") or [])
        )
        arguments = at_tiny_scale(arguments)
    if " publish " in command:
        monkeypatch.setenv("PAPERLIB_PUBLISHED", str(tmp_path / "published"))
    assert main(arguments) == 0
    output = capsys.readouterr().out
    if " evaluate " in command:
        assert re.search(r"dwf on digits.*n = 40\)", output)
    if arguments[0] == "run" and "--fresh" not in arguments and "--seeds" not in arguments:
        assert "epoch" not in output and "computing" not in output  # the reproduction has computed everything


def at_tiny_scale(arguments: list[str]) -> list[str]:
    """The same command at the tiny profile, whose headline attack is shorter; `publish` with one seed."""
    attack = headline(load_profile("tiny.toml").evaluation).name
    tiny = [re.sub(r"pgd-50@\S+", attack, argument) for argument in arguments]
    tiny[tiny.index("--profile") + 1] = "tiny.toml"
    if tiny[0] == "publish":
        tiny[tiny.index("--seeds") + 1] = "0"
    return tiny


def write_small_notebook(path: Path) -> None:
    values = {"profile": '"digits"', "seed": "0", "replay": "True", "seeds": "[]"}
    assert values.keys() == set(PARAMETERS)
    source = "\n".join(f"{name} = {value}" for name, value in values.items())
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


@pytest.mark.skipif(shutil.which("make") is None and not os.environ.get("CI"), reason="no make on this machine")
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_a_make_command_expands_to_valid_commands(command: str) -> None:
    done = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for arguments in re.findall(r"-m paperlib (.*)", done.stdout):
        load_profile(_parser().parse_args(shlex.split(arguments)).profile)
    for file in re.findall(r"\b(?:tests|docs)/[\w./]+\.(?:py|txt)\b", done.stdout):
        assert (paths.ROOT / file).is_file(), file


def test_the_other_commands_of_the_documents_run(tiny: Reproduction, tmp_path: Path) -> None:
    rest = [c for c in COMMANDS if c not in OF_PAPERLIB and not c.startswith("make ")]
    setup = [". .venv/bin/activate", "pre-commit install", "conda env create -f environment.yml"]
    scripts = ["python docs/write_results.py", "python tests/micro_numbers.py"]  # tests/test_readme.py, and below
    [papermill] = [command for command in rest if command.startswith("papermill ")]
    assert sorted(rest) == sorted([*setup, *scripts, papermill])
    for name in ("environment.yml", ".pre-commit-config.yaml"):
        assert (paths.ROOT / name).is_file()
    # Parameters and paths are checked; tests/test_notebooks.py executes every notebook at this profile.
    words = [str(tmp_path / "out.ipynb") if word == "out.ipynb" else word for word in shlex.split(papermill)]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--prepare-only"], cwd=tiny.folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and "cifar10_lite" in (tmp_path / "out.ipynb").read_text(encoding="utf-8")


def test_the_script_of_the_micro_numbers_runs(
    tiny: Reproduction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one stage: the data. A copy of the script writes its file beside the copy."""
    study = Study("tiny.toml", replay=False)
    monkeypatch.setattr(
        "paperlib.pipeline.study.Study",
        lambda *args, **settings: SimpleNamespace(
            stages={"data": study.stages["data"]}, compute=lambda: study.get("data"), get=study.get
        ),
    )
    script = shutil.copy(paths.ROOT / "tests" / "micro_numbers.py", tmp_path)
    monkeypatch.setattr(sys, "path", [str(paths.ROOT / "tests"), *sys.path])
    runpy.run_path(str(script), run_name="__main__")
    assert list(read_json(tmp_path / "micro_numbers.json")["stages"]) == ["data"]


# -- the recipes -------------------------------------------------------------------------------------------------------


def recipe_sections() -> dict[str, list[str]]:
    """The commands of each section of the recipes, by heading."""
    pattern = r"^(?:\w+=\S+ )?(?:python -m paperlib|papermill) .*$|(?<=`)python \w+\.py(?=`)"
    sections = re.split(r"^## (.*)$", RECIPES, flags=re.MULTILINE)[1:]
    return {
        heading: re.findall(pattern, text, re.MULTILINE)
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    }


def run(line: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line of the recipes; returns its output."""
    words = shlex.split(line)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        patch.setenv(name, value)
    if words[0] == "papermill":
        environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
        done = subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout
    if words[1] == "-m":
        assert main(words[3:]) == 0
    else:
        patch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
    return capsys.readouterr().out


def write_weights() -> None:
    torch.manual_seed(5)
    save_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), "mine.safetensors")
    Path("brought.toml").write_text('base = "tiny.toml"\n[study]\nextension = "brought.py"\n', encoding="utf-8")


def write_pets() -> None:
    rng = np.random.default_rng(1)
    for name, brightness in (("cats", 60), ("dogs", 120), ("owls", 180)):
        Path("pets", name).mkdir(parents=True)
        for i in range(45):
            pixels = rng.normal(brightness, 20, (8, 8)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(Path("pets", name, f"{i}.png"))


def write_shapes() -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 120), ("test", 60)):
        images = rng.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8)
        arrays |= {f"{part}_images": images, f"{part}_labels": np.arange(n) % 3}
    Path("my-files").mkdir()
    np.savez(Path("my-files", "shapes.npz"), **arrays)


def check_logits(tiny: Reproduction, output: str) -> None:
    of_logits = [r for r in tiny.records() if r["provenance"]["profile"] == "logits"]
    [trained] = [r for r in of_logits if r["provenance"]["stage"] == "train:dwf"]
    assert trained["config"]["architecture"]["mixing"] == "logits"
    assert (tiny.home / "figures" / "logits" / "04_curves.png").is_file()


def check_own_audit(tiny: Reproduction, output: str) -> None:
    assert len(FILES["audit_mine.py"].strip().splitlines()) <= 10
    assert "Not to be believed: 50.0 %" in output, output  # the model is untrained


def check_new_system(tiny: Reproduction, output: str) -> None:
    table = pd.read_csv(tiny.home / "figures" / "smooth" / "main_table.csv", index_col="system")
    assert table.loc["smooth", "description"] == "PGD-AT with smoothed labels"
    assert table.loc["smooth"].notna().all()  # AutoAttack, the worst case and the cost included
    assert {"pgd-at", "dwf"} <= {*table.index} and any(name.startswith("AutoAttack") for name in table.columns)
    assert re.search(r"worst case of \d+ attacks", output)


def check_own_weights(tiny: Reproduction, output: str) -> None:
    assert main(["run", "--profile", "brought.toml", "--stage", "evaluate:mine:clean", "stress:mine"]) == 0
    [record] = [r for r in tiny.records() if r["provenance"]["stage"] == "evaluate:mine:clean"]
    mine = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    load_model(mine, "mine.safetensors")
    test = load_dataset(load_profile("tiny.toml")).test.first(30)
    with torch.no_grad():
        correct = int((mine(test.images).argmax(dim=1) == test.labels).sum())
    assert (record["result"]["correct"], record["result"]["n"]) == (correct, 30)
    [trained] = [r for r in tiny.records() if r["provenance"]["stage"] == "train:mine"]
    assert trained["result"]["training_units"] is None  # the cost of its training is unknown


def check_pets(tiny: Reproduction, output: str) -> None:
    assert "Not to be believed" in output and "autoattack" in output
    assert any(record["provenance"]["data"].startswith("images") for record in tiny.records())


def check_shapes(tiny: Reproduction, output: str) -> None:
    data = [r["provenance"]["data"] for r in tiny.records() if r["provenance"]["profile"] == "shapes"]
    assert data and all(fingerprint.startswith("shapes:") for fingerprint in data)


def check_margin(tiny: Reproduction, output: str) -> None:
    correct = {name: int(count) for name, count in re.findall(r"^(.+): (\d+) of 100 correct", output, re.MULTILINE)}
    assert correct["either"] <= min(correct["PGD-50"], correct["margin"]) and 0 < correct["either"] < 100


# By heading: what a reader prepares, and what the commands must give.
CHECKS: dict[str, tuple[Callable[[], None] | None, Callable[[Reproduction, str], None]]] = {
    "Change one thing": (None, check_logits),
    "Audit your own model in ten lines": (None, check_own_audit),
    "Add a system to the table": (None, check_new_system),
    "Bring a network with its weights": (write_weights, check_own_weights),
    "Use images of your own": (write_pets, check_pets),
    "Add a data set": (write_shapes, check_shapes),
    "Try an attack of your own": (None, check_margin),
}


@pytest.mark.parametrize(("heading", "lines"), recipe_sections().items())
def test_a_recipe_works_as_written(
    heading: str,
    lines: list[str],
    tiny: Reproduction,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, check = CHECKS[heading]
    if prepare:
        prepare()
    check(tiny, "".join(run(line, monkeypatch, capsys) for line in lines))
