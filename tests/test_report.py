"""Tables and figures say what the records say: checked against the published digits records, recounted by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from paperlib import Study
from paperlib.evaluation import battery, headline
from paperlib.files import read_json
from paperlib.paths import published_dir
from paperlib.report import figures, style, tables
from paperlib.training.recipes import EXPERTS


@pytest.fixture(scope="module")
def study() -> Study:
    return Study("digits", local=False)


@pytest.fixture(scope="module")
def records(study: Study) -> dict[str, dict[str, dict[str, object]]]:
    table: dict[str, dict[str, dict[str, object]]] = read_json(published_dir("digits") / "records-seed-0.json")
    return table


def test_the_main_table_repeats_the_records(study: Study, records: dict) -> None:
    table = tables.main_table(study)
    assert list(table.index) == tables.compared(study)
    for system, row in table.iterrows():
        for spec in battery(study.profile.evaluation):
            result = records[f"evaluate:{system}:{spec.name}"]["record"]["result"]
            shown = row[tables.column(spec.kind, spec.steps)]
            assert shown.startswith(f"{100 * result['correct'] / result['n']:.1f} [")
            assert row["n"] == result["n"] == 360


def test_the_worst_case_is_counted_per_image(study: Study) -> None:
    for system in ("plain", "dwf"):
        outcomes = [study.outcome(system, spec).arrays["correct"].bool() for spec in battery(study.profile.evaluation)]
        by_hand = sum(all(bool(o[i]) for o in outcomes) for i in range(360))
        worst = tables.worst_case(study, system)
        assert int(worst.sum()) == by_hand
        assert by_hand <= min(int(o.sum()) for o in outcomes)


def test_the_best_expert_is_chosen_on_validation_alone(study: Study, records: dict) -> None:
    kept = {}
    for name in EXPERTS:
        history = records[f"train:{name}"]["record"]["result"]["history"]
        kept[name] = history["epochs"][history["best"]]["pgd"]
    assert kept[tables.best_expert(study)] == max(kept.values())


def test_paired_differences_are_those_of_the_outcomes(study: Study) -> None:
    spec = headline(study.profile.evaluation)
    ours, other = (study.outcome(name, spec).arrays["correct"].bool() for name in ("dwf", "pgd-at"))
    row = tables.paired_table(study).loc["dwf - pgd-at"]
    assert row["only dwf right"] == int((ours & ~other).sum())
    assert row["only the other"] == int((~ours & other).sum())
    assert row["points"].startswith(f"{100 * (int(ours.sum()) - int(other.sum())) / 360:+.1f} [")


def test_costs_add_up_what_a_system_is_built_from(study: Study) -> None:
    alone = [tables.cost(study, name) for name in EXPERTS]
    uniform, dwf = tables.cost(study, "uniform"), tables.cost(study, "dwf")
    assert uniform["parameters"] == sum(c["parameters"] for c in alone)
    assert uniform["inference cost"] == dwf["inference cost"] == 9
    assert abs(uniform["training cost"] - sum(c["training cost"] for c in alone)) <= 9  # each rounded
    assert dwf["training cost"] > uniform["training cost"]
    # (iterations + 1) passes a batch: PGD-10 adversarial training costs eleven clean epochs an epoch.
    epochs = study.profile.phase1.epochs + study.profile.phase2.epochs
    assert tables.cost(study, "pgd-at")["training cost"] == 11 * epochs


def test_seeds_are_summarised_over_seeds(study: Study) -> None:
    studies = tables.published_studies(study)
    spec = headline(study.profile.evaluation)
    values = [s.outcome("dwf", spec).record["result"]["accuracy"] for s in studies]
    mean, low, high = sum(values) / 3, min(values), max(values)
    shown = tables.seeds_table(studies).loc["dwf", f"PGD-{spec.steps}"]
    assert shown == f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def test_accuracy_by_iteration_ends_at_the_headline_number(study: Study) -> None:
    frame = tables.by_steps(study, ["dwf"])
    result = study.outcome("dwf", headline(study.profile.evaluation)).record["result"]
    assert frame["accuracy"].is_monotonic_decreasing
    assert frame["accuracy"].iloc[-1] == pytest.approx(result["accuracy"])


def test_markdown_tables_have_as_many_cells_in_each_line() -> None:
    lines = tables.markdown(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})).splitlines()
    assert lines == ["| index | a | b |", "| --- | --- | --- |", "| 0 | 1 | x |", "| 1 | 2 | y |"]


def test_expectations_are_said_when_they_fail(capsys: pytest.CaptureFixture[str]) -> None:
    tables.expect("two is more than one", 2 > 1)
    tables.expect("one is more than two", 1 > 2)
    assert capsys.readouterr().out == "as expected: two is more than one\nNOT AS EXPECTED: one is more than two\n"


def test_provenance_names_data_device_versions_and_code_but_no_place(study: Study) -> None:
    tables.main_table(study)
    line = tables.provenance_line(study)
    assert re.search(r"\d+ records of profile digits, seed 0: \d+ published", line)
    assert study.fingerprint in line
    assert "torch 2." in line
    assert not re.search(r"/home|/root|/tmp|/work", line)


@pytest.mark.parametrize("draw", ["architecture", "main", "eps", "gate"])
def test_figures_are_the_same_bytes_each_time(draw: str, study: Study, tmp_path: Path, home: Path) -> None:
    style.use_style()

    def figure():
        if draw == "architecture":
            return figures.architecture()
        if draw == "main":
            return figures.main_figure(tables.battery_frame(study, tables.compared(study)))
        if draw == "eps":
            return figures.accuracy_by_eps(tables.results(study, ["plain", "dwf"], swept=True), "title")
        return figures.gate_by_attack(tables.gate_rows(study, "dwf"), "title")

    first = style.save(figure(), "figure", "digits").read_bytes()
    assert first == style.save(figure(), "figure", "digits").read_bytes()
    assert first.startswith(b"\x89PNG")


def test_random_signs_use_the_whole_budget() -> None:
    images = torch.full((3, 1, 4, 4), 0.5)
    for eps, moved in zip((0.05, 0.2), figures.random_signs(images, (0.05, 0.2), seed=0), strict=True):  # type: ignore[arg-type]
        assert torch.allclose((moved - images).abs(), torch.full_like(images, eps))
    assert len(set(moved.flatten().tolist())) == 2
