"""What benchmarks found: read from where it lies, told with its spread, and held against what was promised."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
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
    """A network on which the peers take just as long as promised."""
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


def kept(**records: Any) -> dict[str, bool]:
    found = {"peers": None, "limits": None, "trained": None, **records}
    return dict(benchmarks.promises(found["peers"], found["limits"], found["trained"]))


# -- promises --------------------------------------------------------------------------------------------------------


def test_promises_that_are_just_kept_are_kept() -> None:
    found = kept(peers=peers(), limits=limits(), trained=trained())
    assert len(found) == 4 + 1 + 3 + 1 + 1
    assert all(found.values())


@pytest.mark.parametrize(
    ("row", "seconds", "word"), [(3, 7.9, "torchattacks"), (4, 8.9, "foolbox"), (1, 5.8, "all images to the end")]
)
def test_a_peer_that_is_faster_breaks_the_promise(row: int, seconds: float, word: str) -> None:
    record = peers()
    record["rows"][row]["seconds"] = [seconds] * 3
    broken = [text for text, holds in kept(peers=record).items() if not holds]
    assert broken
    assert all(word in text for text in broken)


def test_the_ratio_is_taken_round_by_round() -> None:
    record = peers()
    record["rows"][0]["seconds"] = [1.0, 10.0, 1.0]  # a machine that was slow for everybody in one round
    record["rows"][3]["seconds"] = [8.0, 80.0, 8.0]
    assert all(holds for text, holds in kept(peers=record).items() if "torchattacks takes" in text)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda p, k, t: p["rows"][0].update(differing_images=2), "unlike"),
        (lambda p, k, t: k["step"][0].update(ratio=[1.11, 1.0, 1.2]), "bare passes"),
        (lambda p, k, t: k["growth"][1].update(exponent=1.06), "against steps"),
        (lambda p, k, t: k["growth"][0].update(exponent=0.89), "against images"),
        (lambda p, k, t: k["memory"][1].update(added_bytes=60_000_000), "memory"),
        (lambda p, k, t: t["rows"][1].update(seconds=4.9), "phase 2"),
    ],
)
def test_each_promise_can_be_broken(change: Any, word: str) -> None:
    records = peers(), limits(), trained()
    change(*records)
    broken = [text for text, holds in benchmarks.promises(*records) if not holds]
    assert len(broken) == 1
    assert word in broken[0]


def test_what_was_not_measured_is_not_promised() -> None:
    assert kept() == {}


# -- tables and figures ----------------------------------------------------------------------------------------------


def test_tables_tell_medians_with_their_spread_and_accuracies_with_n() -> None:
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


def test_ways_that_lost_or_failed_stay_in_the_table() -> None:
    size = {"networks": "nine experts", "width": 8, "side": 8, "images": 128}
    rows = [{**size, "way": "as it is", "ratio": [1.0, 1.0, 1.0]}, {**size, "way": "vmap", "ratio": [0.5, 0.4, 0.6]}]
    rows.append({**size, "way": "compile", "failed": "no compiler"})
    table = tables.ways_table({"rows": rows})
    assert table.loc["nine experts", "vmap"].tolist() == ["0.50 [0.40, 0.60]"]
    assert table.loc["nine experts", "compile"].tolist() == ["failed: no compiler"]


@pytest.mark.parametrize("draw", [lambda: figures.peers_figure(peers()), lambda: figures.growth_figure(limits())])
def test_figures_are_drawn(draw: Any) -> None:
    figure = draw()
    assert isinstance(figure, Figure)
    assert all(ax.get_title() or ax.get_xlabel() for ax in figure.axes)


def test_the_setting_names_machine_versions_and_date() -> None:
    text = benchmarks.setting(peers())
    assert text == "cpu, 1 of 2 cores, torch 2.15, foolbox 3.3.4; 2026-01-02, code abc"


# -- where they lie --------------------------------------------------------------------------------------------------


def test_own_measurements_come_first_unless_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PAPERLIB_PUBLISHED", str(tmp_path / "published"))
    assert benchmarks.benchmark("peers") is None
    write_json(tmp_path / "published/benchmarks/peers.json", {"section": "peers", "from": "published"})
    assert (benchmarks.benchmark("peers") or {})["from"] == "published"
    write_json(tmp_path / "home/data/store/benchmarks/peers.json", {"section": "peers", "from": "here"})
    assert (benchmarks.benchmark("peers") or {})["from"] == "here"
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    assert (benchmarks.benchmark("peers") or {})["from"] == "published"


def test_another_sections_results_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_PUBLISHED", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    write_json(tmp_path / "benchmarks/limits.json", {"section": "peers"})
    with pytest.raises(StoreError, match="limits"):
        benchmarks.benchmark("limits")


# -- the benchmarks themselves ---------------------------------------------------------------------------------------


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmarks, which stand outside the tests' own path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("contender", ["paperlib", "paperlib-all", "textbook", "foolbox"])
def test_contenders_attack_the_same_ball(contender: str, toy: ToyNet, digits: Dataset, benchmark_modules: Any) -> None:
    module = benchmark_modules("contenders")
    seen: list[Tensor] = []
    handle = toy.register_forward_pre_hook(lambda model, args: seen.append(args[0].detach().clone()))
    x, y = digits.test.images[:40], digits.test.labels[:40]
    how = module.Settings(eps=0.1, step_size=0.025, steps=10, seed=0)
    wrong = module.CONTENDERS[contender](toy, x, y, how)
    handle.remove()
    assert wrong.shape == (40,) and wrong.dtype == torch.bool
    inside = [z for z in seen if z.shape == x.shape]
    assert inside
    assert all(float((z - x).abs().max()) <= 0.1 + 1e-6 for z in inside)
    assert abs(int(wrong.sum()) - int(module.CONTENDERS["textbook"](toy, x, y, how).sum())) <= 2


def test_ours_and_the_textbook_agree_image_by_image(toy: ToyNet, digits: Dataset, benchmark_modules: Any) -> None:
    module = benchmark_modules("contenders")
    how = module.Settings(eps=0.1, step_size=0.025, steps=30, seed=3)
    x, y = digits.test.images, digits.test.labels
    ours, theirs = (module.CONTENDERS[name](toy, x, y, how) for name in ("paperlib", "textbook"))
    assert 10 < int(theirs.sum()) < 75
    assert torch.equal(ours, theirs)


def test_ratios_are_medians_and_exponents_are_slopes(benchmark_modules: Any) -> None:
    arena, limits_ = benchmark_modules("arena"), benchmark_modules("limits")
    assert arena.spread([3.0, 1.0, 2.0]) == [2.0, 1.0, 3.0]
    update_steps: list[str] = []
    seconds = arena.interleave({name: lambda name=name: update_steps.append(name) or 1.0 for name in "ab"}, rounds=2)
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert update_steps == ["a", "b", "b", "a", "a", "b"]  # one round to warm up, and each starts with another
    assert limits_._slope([0.0, 1.0, 2.0], [5.0, 6.5, 8.0]) == pytest.approx(1.5)


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "peer"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "unknown section peer; known: limits, ways, peers, training" in done.stderr


def test_tables_figures_and_promises_come_from_the_published_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_LOCAL", "no")
    found = {section: benchmarks.benchmark(section) or {} for section in benchmarks.SECTIONS}
    assert all(record["provenance"]["threads"] >= 1 for record in found.values())
    assert set(tables.peers_table(found["peers"]).reset_index()["data"]) == {"digits", "cifar10-jpeg"}
    assert len(tables.step_table(found["limits"])) == 6
    assert set(tables.ways_table(found["ways"]).reset_index()["networks"]) == {"nine experts", "one network"}
    assert len(tables.training_table(found["training"])) == 15
    kept = benchmarks.promises(found["peers"], found["limits"], found["training"])
    assert any("phase 2" in text and holds for text, holds in kept)
    # Training takes longer than the attack that judges it: the seconds are those of training.
    assert min(row["seconds"] for row in found["training"]["rows"]) > 10
