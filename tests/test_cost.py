"""Benchmarks: where their results are read from, their tables and figures, and the targets of speed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import ToyNet

from paperlib import Dataset
from paperlib.atomic_files import write_json
from paperlib.errors import StoreError
from paperlib.paths import ROOT
from paperlib.report import benchmarks, figures, tables

BENCHMARKS = ROOT / "tests" / "benchmarks"
FACTS = {
    "device": "cpu",
    "threads": 1,
    "cores": 2,
    "versions": {"torch": "2.15", "foolbox": "3.3.4"},
    "created": "2026-01-02T03:04:05",
    "commit": "abc",
}


def peers() -> dict[str, Any]:
    """A network on which the other libraries take exactly as long as the targets demand."""
    rows = []
    times = {"paperlib": 1.0, "paperlib-all": 5.0, "textbook": 7.0, "torchattacks": 8.0, "foolbox": 9.0}
    for name, seconds in times.items():
        row = {"contender": name, "data": "cifar10", "system": "plain", "eps": "8/255", "n": 200, "correct": 3}
        row |= {"interval": [0.005, 0.04], "differing_images": 1, "version": "", "seconds": [seconds] * 3}
        rows.append({**row, "ratio": [seconds, seconds - 0.5, seconds + 0.5]})
    return {"section": "peers", "rows": rows, "notes": [], "steps": 20, "rounds": 3, "provenance": FACTS}


def limits() -> dict[str, Any]:
    step = {"width": 8, "side": 8, "experts": 1, "images": 128, "dtype": "float32", "ratio": [1.05, 1.0, 1.1]}
    step |= {"images_x_steps_per_second": 9000.0, "matrix_peak_flops": 2e11, "share_of_peak": 0.25}
    axes = ("images", "steps", "experts", "experts, side by side", "width")
    growth = [{"axis": a, "points": [1, 2, 4], "seconds": [[1.0], [2.0], [4.0]], "exponent": 1.0} for a in axes]
    memory = [{"steps": k, "added_bytes": 50_000_000} for k in (5, 20)]
    return {"section": "limits", "step": [step], "growth": growth, "memory": memory, "provenance": FACTS}


def trained() -> dict[str, Any]:
    rows = []
    for variant, seconds, images in (("engine", 4.0, "1101"), ("plain loop", 5.0, "1001")):
        row = {"system": "dwf", "seed": 0, "variant": variant, "seconds": seconds, "correct_images": images, "n": 4}
        rows.append({**row, "attack": "pgd-50@0.15", "accuracy": 0.75, "interval": [0.3, 0.95]})
    return {"section": "training", "rows": rows, "provenance": FACTS}


# -- targets ---------------------------------------------------------------------------------------------------------


def test_targets_that_are_met_exactly_are_met() -> None:
    targets = benchmarks.speed_targets(peers(), limits(), trained())
    assert len(targets) == 4 + 1 + 3 + 1 + 1
    assert all(met for _, met in targets)
    assert benchmarks.speed_targets(None, None, None) == []  # a section that was not measured has no targets


def test_ratios_are_taken_within_each_round() -> None:
    record = peers()
    record["rows"][0]["seconds"] = [1.0, 10.0, 1.0]  # the machine was slow for all libraries in one round
    record["rows"][3]["seconds"] = [8.0, 80.0, 8.0]
    targets = benchmarks.speed_targets(record, None, None)
    assert all(met for text, met in targets if "torchattacks takes" in text)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda p, k, t: p["rows"][3].update(seconds=[7.9] * 3), "torchattacks"),
        (lambda p, k, t: p["rows"][4].update(seconds=[8.9] * 3), "foolbox"),
        (lambda p, k, t: p["rows"][1].update(seconds=[5.8] * 3), "all images for all steps"),
        (lambda p, k, t: p["rows"][0].update(differing_images=2), "differ from the plain loop's"),
        (lambda p, k, t: k["step"][0].update(ratio=[1.11, 1.0, 1.2]), "bare passes"),
        (lambda p, k, t: k["growth"][1].update(exponent=1.06), "against steps"),
        (lambda p, k, t: k["growth"][0].update(exponent=0.89), "against images"),
        (lambda p, k, t: k["memory"][1].update(added_bytes=60_000_000), "memory"),
        (lambda p, k, t: t["rows"][1].update(seconds=4.9), "phase 2"),
    ],
)
def test_each_target_can_be_missed(change: Any, word: str) -> None:
    records = peers(), limits(), trained()
    change(*records)
    missed = [text for text, met in benchmarks.speed_targets(*records) if not met]
    assert len(missed) == 1 and word in missed[0]


# -- tables and figures ----------------------------------------------------------------------------------------------


def test_tables_show_medians_with_their_spread_and_accuracies_with_n() -> None:
    table = tables.peers_table(peers()).reset_index()
    assert table["times as long"].tolist()[3] == "8.00 [7.50, 8.50]"
    assert table["robust accuracy"].tolist()[0] == "1.5 [0.5, 4.0]"
    assert set(table["n"]) == {200}
    assert tables.step_table(limits())["share of matrix peak"].tolist() == ["25%"]
    assert tables.growth_table(limits()).loc["steps", "exponent"] == "1.00"
    rows = tables.training_table(trained()).reset_index()
    assert rows["times faster"].tolist() == ["1.25", "1.00"]
    assert rows["points against plain loop"].tolist()[0].startswith("+25.0 [")
    assert rows["points against plain loop"].tolist()[1] == ""


def test_slower_and_failed_algorithms_stay_in_the_table() -> None:
    size = {"networks": "nine experts", "width": 8, "side": 8, "images": 128}
    rows = [{**size, "algorithm": "as it is", "ratio": [1.0, 1.0, 1.0]}]
    rows.append({**size, "algorithm": "vmap", "ratio": [0.5, 0.4, 0.6]})
    rows.append({**size, "algorithm": "compile", "failed": "no compiler"})
    table = tables.algorithms_table({"rows": rows})
    assert table.loc["nine experts", "vmap"].tolist() == ["0.50 [0.40, 0.60]"]
    assert table.loc["nine experts", "compile"].tolist() == ["failed: no compiler"]


def test_figures_have_labels() -> None:
    for figure in (figures.peers_figure(peers()), figures.growth_figure(limits())):
        assert all(ax.get_title() or ax.get_xlabel() for ax in figure.axes)


def test_the_setting_names_machine_versions_and_date() -> None:
    text = benchmarks.setting(peers())
    assert text == "cpu, 1 of 2 cores, torch 2.15, foolbox 3.3.4; 2026-01-02, code abc"


# -- files -----------------------------------------------------------------------------------------------------------


def test_results_of_this_machine_come_first_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PAPERLIB_PUBLISHED", str(tmp_path / "published"))
    assert benchmarks.benchmark("peers") is None
    write_json(tmp_path / "published/benchmarks/peers.json", {"section": "peers", "from": "published"})
    assert (benchmarks.benchmark("peers") or {})["from"] == "published"
    write_json(tmp_path / "home/data/store/benchmarks/peers.json", {"section": "peers", "from": "local"})
    assert (benchmarks.benchmark("peers") or {})["from"] == "local"
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    assert (benchmarks.benchmark("peers") or {})["from"] == "published"


def test_results_of_another_section_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_PUBLISHED", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    write_json(tmp_path / "benchmarks/limits.json", {"section": "peers"})
    with pytest.raises(StoreError, match="limits"):
        benchmarks.benchmark("limits")


# -- the benchmarks themselves ---------------------------------------------------------------------------------------


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmarks, which are not on the path of the tests."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("contender", ["paperlib", "paperlib-all", "textbook", "foolbox"])
def test_contenders_stay_within_eps_and_agree(
    contender: str, toy: ToyNet, digits: Dataset, benchmark_modules: Any
) -> None:
    module = benchmark_modules("contenders")
    inputs: list[Tensor] = []
    handle = toy.register_forward_pre_hook(lambda model, args: inputs.append(args[0].detach().clone()))
    x, y = digits.test.images[:40], digits.test.labels[:40]
    settings = module.Settings(eps=0.1, step_size=0.025, steps=10, seed=0)
    fooled = module.CONTENDERS[contender](toy, x, y, settings)
    handle.remove()
    assert fooled.shape == (40,) and fooled.dtype == torch.bool
    batches = [z for z in inputs if z.shape == x.shape]
    assert batches
    assert all(float((z - x).abs().max()) <= 0.1 + 1e-6 for z in batches)
    assert abs(int(fooled.sum()) - int(module.CONTENDERS["textbook"](toy, x, y, settings).sum())) <= 2


def test_ours_and_the_textbook_loop_have_equal_outcomes(toy: ToyNet, digits: Dataset, benchmark_modules: Any) -> None:
    module = benchmark_modules("contenders")
    settings = module.Settings(eps=0.1, step_size=0.025, steps=30, seed=3)
    x, y = digits.test.images, digits.test.labels
    ours, textbook = (module.CONTENDERS[name](toy, x, y, settings) for name in ("paperlib", "textbook"))
    assert 10 < int(textbook.sum()) < 75
    assert torch.equal(ours, textbook)


def test_ratios_are_medians_and_exponents_are_slopes(benchmark_modules: Any) -> None:
    arena, limits_ = benchmark_modules("arena"), benchmark_modules("limits")
    assert arena.spread([3.0, 1.0, 2.0]) == [2.0, 1.0, 3.0]
    calls: list[str] = []
    seconds = arena.interleave({name: lambda name=name: calls.append(name) or 1.0 for name in "ab"}, rounds=2)
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert calls == ["a", "b", "b", "a", "a", "b"]  # one round of warm-up; each round starts with another one
    assert limits_._slope([0.0, 1.0, 2.0], [5.0, 6.5, 8.0]) == pytest.approx(1.5)


def test_an_unknown_section_is_an_error() -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "peer"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "unknown section peer; known: limits, algorithms, peers, training" in done.stderr


def test_the_published_results_have_tables_and_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    results = {section: benchmarks.benchmark(section) or {} for section in benchmarks.SECTIONS}
    assert all(record["provenance"]["threads"] >= 1 for record in results.values())
    assert set(tables.peers_table(results["peers"]).reset_index()["data"]) == {"digits", "cifar10-jpeg"}
    assert len(tables.step_table(results["limits"])) == 6
    algorithms = tables.algorithms_table(results["algorithms"]).reset_index()
    assert set(algorithms["networks"]) == {"nine experts", "one network"}
    assert len(tables.training_table(results["training"])) == 15
    targets = benchmarks.speed_targets(results["peers"], results["limits"], results["training"])
    assert any("phase 2" in text and met for text, met in targets)
    # Training takes longer than the attack that evaluates it, so these are the seconds of training.
    assert min(row["seconds"] for row in results["training"]["rows"]) > 10
