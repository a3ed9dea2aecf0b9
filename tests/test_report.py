"""Tables and figures agree with the published digits records, from which the tests count again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from paperlib import Study
from paperlib.errors import StoreError
from paperlib.evaluation import basic_attacks, headline, surrogate_attacks
from paperlib.paths import ROOT, figures_dir
from paperlib.pipeline.stages import ROUTED, audited_systems, autoattack_systems
from paperlib.report import figures, outcomes, style, tables
from paperlib.report.figures.stress import LAYERS
from paperlib.report.tables import stress as stress_tables
from paperlib.systems.experts import EXPERTS


@pytest.fixture(scope="module")
def study() -> Study:
    return Study("digits", local=False)


@pytest.fixture(scope="module")
def records(study: Study) -> dict[str, dict[str, dict[str, object]]]:
    table: dict[str, dict[str, dict[str, object]]] = study.published.records(0)
    return table


def test_the_main_table_agrees_with_the_records(study: Study, records: dict) -> None:
    assert list(tables.main_table(study).index) == outcomes.compared_systems(study)
    table = tables.main_table(study, outcomes.main_table_systems(study))
    assert len(table) >= 24
    for system, row in table.iterrows():
        assert row["parameters"] > 0 < row["training cost"]
        assert row["inference cost"] > 0
        assert row["seed"] == 0
        for spec in basic_attacks(study.profile.evaluation):
            result = records[f"evaluate:{system}:{spec.name}"]["record"]["result"]
            text = row[outcomes.attack_column(spec.kind, spec.steps)]
            assert text.startswith(f"{100 * result['correct'] / result['n']:.1f} [")
            assert row["n"] == result["n"] == 360


def test_the_basic_worst_case_is_counted_for_each_image(study: Study) -> None:
    specs = basic_attacks(study.profile.evaluation)
    surrogates = surrogate_attacks(study.profile.evaluation)
    for system, attacks in (("plain", specs), ("soe", [*specs, *surrogates])):
        correct = [study.outcome(system, spec).arrays["correct"].bool() for spec in attacks]
        expected = [all(bool(c[i]) for c in correct) for i in range(360)]
        assert outcomes.basic_worst_case(study, system).tolist() == expected


def test_the_worst_case_is_at_most_every_attack_on_every_system(study: Study, records: dict) -> None:
    n = study.profile.stress.images
    for system in outcomes.main_table_systems(study):
        name = outcomes.display_name(system)
        rows = [*records[f"stress:{name}"]["record"]["result"]["rows"]]
        if name in autoattack_systems(study.profile):
            rows.append(records[f"autoattack:{name}"]["record"]["result"])
            assert (rows[-1]["attack"]["steps"], rows[-1]["attack"]["queries"]) == (100, 5000)
        worst = outcomes.worst_case(study, system)
        assert len(worst) == n
        for result in rows:
            assert int(worst.sum()) <= result["correct"] <= result["n"] == n
            low, high = result["interval"]
            assert low <= result["correct"] / n <= high
        for spec, correct in outcomes.basic_outcomes(study, system).items():
            assert int(worst.sum()) <= int(correct[:n].sum()), spec.name
        attacks = torch.stack(list(outcomes.all_outcomes(study, system).values()))
        assert worst.tolist() == [bool(attacks[:, i].all()) for i in range(n)]
    assert {"dwf", "pgd-at", "best-expert"} <= set(autoattack_systems(study.profile))
    assert len(records["stress:dwf"]["record"]["result"]["rows"]) >= 25


def test_the_new_errors_of_all_attacks_sum_to_the_loss_of_accuracy(study: Study) -> None:
    for system in ("plain", "dwf", "advmoe"):
        table = tables.every_attack(study, system)
        worst = outcomes.worst_case(study, system)
        assert table["n"].iloc[0] - table["new errors"].sum() == table["remaining"].iloc[-1] == int(worst.sum())
        assert (table["new errors"] >= 0).all()
        assert table["remaining"].is_monotonic_decreasing
        assert set(table["family"]) <= set(stress_tables.FAMILIES)
    assert "surrogate" not in set(tables.every_attack(study, "dwf")["family"])
    losses = tables.losses_by_family([study], ["dwf", "advmoe"])
    assert losses.sum(axis=1).to_numpy() == pytest.approx(1)
    assert losses.loc["advmoe", "surrogate"] > 0.1


@pytest.mark.parametrize(
    ("attack", "family", "label"),
    [
        ("clean", "clean", "clean"),
        ("fgsm@8/255", "FGSM", "FGSM"),
        ("pgd-50@0.15", "PGD", "PGD-50"),
        ("pgd-100x5@0.15", "longer PGD", "PGD-100x5"),
        ("pgd-50-dlr@0.15", "other losses", "PGD-50, DLR"),
        ("pgd-50-soft-5@0.15", "surrogate", "PGD-50, soft 5"),
        ("pgd-50-expert-3@0.15", "experts", "PGD-50, expert 3"),
        ("pgd-50-experts-margin@0.15", "experts", "PGD-50, experts margin"),
        ("pgd-50-gate-to-worst@0.15", "gate", "PGD-50, gate to worst"),
        ("pgd-50-joint-0.1@0.15", "gate", "PGD-50, joint 0.1"),
        ("pgd-50-two-stage-benign@0.15", "gate", "PGD-50, two stage benign"),
        ("pgd-50-gate-held@8/255", "gate bypassed", "PGD-50, gate held"),
        ("pgd-50-transfer-pgd-at@0.15", "transfer", "PGD-50, transfer from PGD-AT ResNet-18"),
        ("pgd-50-transfer-pgd-at-0@0.15", "transfer", "PGD-50, transfer from PGD-AT ResNet-18, 0"),
        ("noise-1000@0.15", "noise", "noise-1000"),
        ("autoattack-2-10@0.15", "AutoAttack", "AutoAttack-2-10"),
    ],
)
def test_every_attack_has_a_family_and_a_label(attack: str, family: str, label: str) -> None:
    assert stress_tables.family_of(attack) == family
    assert figures.stress.attack_label(attack) == label


def test_an_attack_without_a_family_is_an_error() -> None:
    with pytest.raises(ValueError, match="no family fits"):
        stress_tables.family_of("deepfool@0.1")


def test_the_recorded_audits_agree_with_the_records(study: Study) -> None:
    for system in audited_systems(study.profile):
        report = tables.audit_of(study, system)
        assert report.n == study.profile.stress.images
        # The attack on the surrogate has other random starts in the main table than in the audit.
        attacks = {name: c for name, c in outcomes.all_outcomes(study, system).items() if "-soft@" not in name}
        assert set(report.attacks) >= set(attacks) - {"clean"}
        assert report.worst == int(torch.stack(list(attacks.values())).all(dim=0).sum())
        assert int(outcomes.worst_case(study, system).sum()) <= report.worst
        assert report.worst <= min(report.attacks.values())
    assert set(tables.audits(study).index) == set(audited_systems(study.profile))


def test_every_recorded_control_has_the_expected_verdict(study: Study) -> None:
    table = tables.controls_verdicts(study)
    assert len(table) == 12
    assert table["as expected"].all()
    assert sorted(table.index[table["credible"]]) == ["defended", "undefended"]
    marks = tables.controls_table(study)
    assert marks.shape == (12, 29)
    for control, row in table.iterrows():
        if row["must fail"] != "none":
            assert marks.loc[control, row["must fail"]] == "[F]"


def test_the_best_expert_is_selected_on_validation_data(study: Study, records: dict) -> None:
    accuracies = {}
    for name in EXPERTS:
        history = records[f"train:{name}"]["record"]["result"]["history"]
        accuracies[name] = history["epochs"][history["best"]]["pgd"]
    assert accuracies[outcomes.best_expert(study)] == max(accuracies.values())


def test_paired_differences_are_those_of_the_outcomes(study: Study) -> None:
    spec = headline(study.profile.evaluation)
    ours, other = (study.outcome(name, spec).arrays["correct"].bool() for name in ("dwf", "pgd-at"))
    row = tables.paired_table(study).loc["dwf - pgd-at"]
    assert row["only dwf correct"] == int((ours & ~other).sum())
    assert row["only the other correct"] == int((~ours & other).sum())
    assert row["points"].startswith(f"{100 * (int(ours.sum()) - int(other.sum())) / 360:+.1f} [")


def test_the_cost_of_a_system_is_that_of_its_parts(study: Study) -> None:
    experts = [tables.cost(study, name) for name in EXPERTS]
    uniform, dwf = tables.cost(study, "uniform"), tables.cost(study, "dwf")
    assert uniform["parameters"] == sum(c["parameters"] for c in experts)
    assert uniform["inference cost"] == 9
    assert 9 < dwf["inference cost"] < 10  # the gate
    assert abs(uniform["training cost"] - sum(c["training cost"] for c in experts)) <= 9  # each rounded
    assert dwf["training cost"] > uniform["training cost"]
    # iterations + 1 passes for each batch: an epoch of PGD-10 adversarial training costs eleven clean epochs.
    epochs = study.profile.phase1.epochs + study.profile.phase2.epochs
    assert tables.cost(study, "pgd-at")["training cost"] == 11 * epochs


def test_the_table_over_seeds_gives_mean_lowest_and_highest(study: Study) -> None:
    studies = study.runs
    spec = headline(study.profile.evaluation)
    values = [s.outcome("dwf", spec).record["result"]["accuracy"] for s in studies]
    mean, low, high = sum(values) / 3, min(values), max(values)
    table = tables.seeds_table(studies, lambda s: ["plain", outcomes.best_expert(s), "dwf", "advmoe"])
    assert table.loc["dwf", f"PGD-{spec.steps}"] == f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    assert not table.isna().any().any()
    worst = [float(outcomes.basic_worst_case(s, "advmoe").float().mean()) for s in studies]
    assert table.loc["advmoe", "PGD worst case"].startswith(f"{100 * sum(worst) / 3:.1f} (")


def test_differences_over_seeds_are_those_of_the_outcomes(study: Study) -> None:
    studies = study.runs
    row = tables.differences(studies, lambda study: ["dwf", outcomes.best_expert(study)], "dwf").loc["best-expert"]
    differences = [
        outcomes.basic_worst_case(s, "dwf").float() - outcomes.basic_worst_case(s, outcomes.best_expert(s)).float()
        for s in studies
    ]
    assert row["difference"] == pytest.approx(float(torch.stack(differences).mean()))
    assert row["low"] < row["difference"] < row["high"]
    assert (row["seeds"], row["n"]) == (3, 360)


def test_ablations_are_compared_with_their_base(study: Study) -> None:
    studies = study.runs
    table = tables.ablations(studies)
    assert table.index[0] == "ablation-base"
    assert table["difference"].isna().sum() == 1  # that of the base
    for system in ("ablation-fixed", "ablation-top1"):
        ours, base = (
            torch.stack([outcomes.basic_worst_case(s, n).float() for s in studies]) for n in (system, "ablation-base")
        )
        assert table.loc[system, "difference"] == pytest.approx(float((ours - base).mean()))
    assert (table["n"] == 360).all()


def test_the_cost_of_phase_two_follows_from_the_recipe(study: Study) -> None:
    # PAPER: nine experts, a third each of clean (1), FGSM (2) and PGD batches (31 on average)
    assert tables.arithmetic(study, 9) == pytest.approx(9 * (1 + 2 + 31) / 3)
    growth = tables.growth(study, ["ablation-1", "ablation-3", "ablation-5", "ablation-base"])
    assert list(growth["experts"]) == [1, 3, 5, 9]
    assert growth["training cost"].is_monotonic_increasing
    # All share their random draws, so the passes are equal and only the size of the mixture differs.
    passes = growth["phase 2, units an epoch"] / growth["inference cost"]
    assert passes.max() / passes.min() < 1.01


def test_routes_are_distributions(study: Study) -> None:
    shares = tables.routes(study, ROUTED)
    assert set(shares["system"]) == set(ROUTED)
    assert shares.groupby(["system", "attack"])["weight"].sum().to_numpy() == pytest.approx(1, abs=1e-3)


def test_accuracy_by_iteration_ends_at_the_headline_number(study: Study) -> None:
    frame = tables.by_steps(study, ["dwf"])
    result = study.outcome("dwf", headline(study.profile.evaluation)).record["result"]
    assert frame["accuracy"].is_monotonic_decreasing
    assert frame["accuracy"].iloc[-1] == pytest.approx(result["accuracy"])


def test_markdown_tables_have_as_many_cells_in_each_line() -> None:
    lines = tables.markdown(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})).splitlines()
    assert lines == ["| index | a | b |", "| --- | --- | --- |", "| 0 | 1 | x |", "| 1 | 2 | y |"]


def test_failed_expectations_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    tables.expect("two is more than one", 2 > 1)
    tables.expect("one is more than two", 1 > 2)
    assert capsys.readouterr().out == "as expected: two is more than one\nNOT AS EXPECTED: one is more than two\n"


def test_provenance_gives_data_device_versions_and_code_but_no_path(study: Study) -> None:
    tables.paired_table(study)
    line = tables.provenance_line(study)
    assert re.search(r"\d+ records of profile digits, seed 0: \d+ published", line)
    assert study.fingerprint in line
    assert "torch 2." in line
    assert not re.search(r"/home|/root|/tmp|/work", line)


def test_provenance_of_several_seeds_counts_the_records_of_all(study: Study) -> None:
    studies = study.runs
    tables.differences(studies, outcomes.compared_systems, "dwf")
    line = tables.provenance_line(*studies)
    assert f"{sum(len(s.used) for s in studies)} records of profile digits, seed 0, 1, 2: " in line
    assert tables.provenance_line(Study("digits", local=False)) == "no records used"


DRAWINGS = {
    "architecture": lambda study: figures.architecture(),
    "main": lambda study: figures.main_figure(tables.main_frame(study, ["plain", "uniform", "dwf"])),
    "eps": lambda study: figures.accuracy_by_eps(tables.results(study, ["plain", "dwf"], swept=True), "title"),
    "gate": lambda study: figures.gate_by_attack(tables.gate_rows(study, "dwf"), "title"),
    "forest": lambda study: figures.forest(
        tables.differences([study], lambda s: ["plain", "pgd-at", "dwf"], "dwf"), {}, "title", "points"
    ),
    "growth": lambda study: figures.growth(tables.growth(study, ["ablation-1", "ablation-base"]), [11, 102]),
    "routes": lambda study: figures.routes(tables.routes(study, ROUTED[:3])),
    "layers": lambda study: figures.layers(tables.losses_by_family([study], ["plain", "dwf"]), "PGD-50", "title"),
    "attacks": lambda study: figures.every_attack(tables.every_attack(study, "dwf"), "title"),
    "controls": lambda study: figures.control_matrix(
        tables.controls_table(study),
        {name: expected for name, (_, expected, _) in tables.control_reports(study).items()},
        "title",
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_equal_figures_are_equal_bytes(name: str, study: Study, home: Path) -> None:
    style.use_style()
    first, again = (saved(DRAWINGS[name](study)) for _ in range(2))
    assert again == first
    assert first[0].startswith(b"\x89PNG") and first[1].startswith(b"<?xml")
    assert len(first[1]) < 250_000 and b"<dc:date>" not in first[1]


def saved(figure: Figure) -> tuple[bytes, bytes]:
    """A figure's bytes as PNG and as SVG."""
    path = style.save(figure, "figure", "digits")
    assert path.suffix == ".png"
    return path.read_bytes(), path.with_suffix(".svg").read_bytes()


def test_figures_are_equal_bytes_in_another_process(home: Path, tmp_path: Path) -> None:
    script = "from paperlib.report import figures, style; import torch; style.use_style()\n"
    script += "style.save(figures.image_grid([torch.full((2, 3, 4, 4), 0.5)], ['row'], ['a', 'b']), 'figure', 'digits')"
    environment = {"PAPERLIB_HOME": str(tmp_path / "other"), "PYTHONHASHSEED": "1", "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, **environment}, cwd=ROOT)
    path = tmp_path / "other" / "figures" / "digits" / "figure.png"
    plt.rcdefaults()
    style.use_style()
    figure = saved(figures.image_grid([torch.full((2, 3, 4, 4), 0.5)], ["row"], ["a", "b"]))
    assert figure == (path.read_bytes(), path.with_suffix(".svg").read_bytes())


def test_an_svg_that_cannot_be_written_leaves_the_older_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    style.use_style()
    first = saved(figures.architecture())

    def full(*arguments: object, **settings: object) -> None:
        raise OSError("no space left")

    other = figures.image_grid([torch.zeros(1, 1, 2, 2)], [""], ["a"])
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_text", full)
        with pytest.raises(StoreError, match=r"figure\.svg: cannot write"):
            style.save(other, "figure", "digits")
    folder = figures_dir("digits")
    assert (folder / "figure.svg").read_bytes() == first[1]
    assert sorted(path.name for path in folder.iterdir()) == ["figure.png", "figure.svg"]


# -- systems and classes of extensions -------------------------------------------------------------------------------


def test_a_system_without_a_label_is_drawn_by_its_name() -> None:
    assert style.label_of("dwf") == "DWF (joint)" and style.label_of("mine") == "mine"
    assert style.colour_of("mine") == style.colour_of("mine") != style.colour_of("pgd-at")
    rows = [
        {"system": system, "column": column, "attack": attack, "eps": eps, "steps": 50, "n": 40}
        | {"accuracy": 0.5, "low": 0.4, "high": 0.6}
        for system in ("mine", "dwf", "theirs")
        for column, attack, eps in (("clean", "clean", 0.0), ("FGSM", "fgsm", 0.1), ("PGD-50", "pgd", 0.1))
    ]
    frame = pd.DataFrame(rows)
    main = figures.main_figure(frame)
    assert [tick.get_text() for tick in main.axes[0].get_yticklabels()] == ["mine", "DWF (joint)", "theirs"]
    assert [ax.get_title(loc="left") for ax in main.axes] == ["clean\nn = 40", "FGSM\nn = 40", "PGD-50\nn = 40"]
    ax = plt.figure().add_subplot()
    figures.lines_with_intervals(ax, frame[frame["attack"] != "fgsm"], "eps")
    lines = {line.get_label(): (line.get_color(), line.get_marker()) for line in ax.get_lines()}
    assert list(lines) == ["mine", "DWF (joint)", "theirs"] and len(set(lines.values())) == 3
    figures.trace([{"system": "mine", "loss": [0.1, 0.2], "accuracy_at_iterate": [1.0, 0.5], "n": 40}])
    history = {"system": "mine", "epoch": 0, "best": 0, "loss": 1.0, "pgd": 0.5, "clean": 0.9}
    figures.curves(pd.DataFrame([history]), ["mine"])
    shares = {"system": "mine", "attack": "clean", "expert": [0, 1], "weight": 0.5}
    figures.routes(pd.DataFrame(shares))
    forest = figures.forest(
        pd.DataFrame({"difference": 0.1, "low": 0.0, "high": 0.2}, index=["dwf - mine"]), {}, "", ""
    )
    assert forest.axes[0].get_yticklabels()[0].get_text() == "DWF (joint) \N{MINUS SIGN} mine"
    losses = pd.DataFrame(1 / 13, columns=[f for families in LAYERS.values() for f in families], index=["mine"])
    assert figures.layers(losses, "PGD-50", "").axes[0].get_yticklabels()[0].get_text() == "mine"


def test_a_system_on_which_an_attack_was_not_run_is_marked(study: Study) -> None:
    frame = tables.main_frame(study, ["uniform", "dwf"])
    columns = frame[frame["system"] == "uniform"]["column"]
    assert not any(name.startswith("AutoAttack") for name in columns)
    panel = next(ax for ax in figures.main_figure(frame).axes if ax.get_title(loc="left").startswith("AutoAttack"))
    assert [(text.get_text(), text.get_position()[1]) for text in panel.texts] == [("\N{EN DASH}", 0)]


@pytest.mark.parametrize("names", ["0123456789", [f"class number {i}" for i in range(10)]])
def test_class_names_do_not_overlap(names: Sequence[str]) -> None:
    style.use_style()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(10, 3, 32, 32, generator=generator)
    arrays = {"labels": torch.arange(10)}
    for kind in ("clean", "fgsm", "pgd"):
        arrays |= {f"{kind}/images": images, f"{kind}/logits": torch.rand(10, 10, generator=generator)}
    drawn = figures.predictions(arrays, names, {"eps": "8/255", "pgd_steps": 5})
    drawn.canvas.draw()
    for row in range(3):
        boxes = [ax.xaxis.label.get_window_extent() for ax in drawn.axes[10 * row : 10 * row + 10]]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert boxes[-1].x1 <= drawn.bbox.x1
    drawn = figures.class_counts({"train": [5] * 10, "test": [2] * 10}, names)
    drawn.canvas.draw()
    ticks = [tick.get_window_extent() for tick in drawn.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(ticks))


def test_labels_become_smaller_before_they_are_cut() -> None:
    assert style.fit_labels(["a", "b"], 1.0) == (["a", "b"], 8.5)
    assert style.fit_labels([], 1.0) == ([], 8.5) and style.fit_labels(["", ""], 1.0) == (["", ""], 8.5)
    names, size = style.fit_labels(["automobile", "cat"], 0.6)
    assert names == ["automobile", "cat"] and 7 <= size < 8.5
    names, size = style.fit_labels(["automobile", "cat"], 0.3)
    assert names[0].endswith("\N{HORIZONTAL ELLIPSIS}") and (names[1], size) == ("cat", 7)


def test_no_colour_is_both_a_kind_of_expert_and_a_system() -> None:
    kinds = set(style.KINDS.values())
    assert not kinds & {style.colour_of(system) for system in style.LABELS}
    assert len({style.colour_of(system) for system in style.MARKERS}) == len(style.MARKERS)


def test_random_signs_use_the_whole_budget() -> None:
    images = torch.full((3, 1, 4, 4), 0.5)
    for eps, moved in zip((0.05, 0.2), figures.random_signs(images, (0.05, 0.2), seed=0), strict=True):  # type: ignore[arg-type]
        assert torch.allclose((moved - images).abs(), torch.full_like(images, eps))
    assert len(set(moved.flatten().tolist())) == 2
