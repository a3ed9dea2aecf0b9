"""Verdicts follow from the rules and the records, and change when the records change."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t
from torch import Tensor

from paperlib import load_profile
from paperlib.config.schema import StudyConfig
from paperlib.errors import MissingError
from paperlib.evaluation import AttackSpec, DifferenceOverSeeds, difference_over_seeds
from paperlib.paths import published_dir
from paperlib.pipeline.published import INDEX
from paperlib.pipeline.stages import autoattack_systems, stages
from paperlib.report import claims, format, outcomes
from paperlib.report.claims import rules
from paperlib.report.claims.claims import CLAIMS
from paperlib.report.claims.rules import (
    NOT_RUN,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Beats,
    Claim,
    Collapse,
    Grows,
    Survives,
)
from paperlib.report.claims.verdicts import Verdict, decide
from paperlib.systems.experts import EXPERTS
from paperlib.systems.registry import COMPARED, recipes

DIGITS = load_profile("digits")
KNOWN = recipes(DIGITS)
STAGES = stages(DIGITS)
N = 400
SLOW = 200  # images of the slow attacks
ATTACKS = ("clean", "fgsm", "pgd")
BEATS = [claim for claim in CLAIMS if isinstance(claim, Beats)]
MIXTURES = ("ablation-1", "ablation-3", "ablation-5", "ablation-base")
COST = Grows("cost", "It grows", "ours", MIXTURES)
LAST = next(name for name in KNOWN["ablation-base"].starts_from if name not in KNOWN["ablation-5"].starts_from)


def shares(*accuracies: float) -> dict[str, Tensor]:
    """Outcomes of N images with these accuracies clean, under FGSM and under PGD, or with one for all three."""
    each = accuracies * len(ATTACKS) if len(accuracies) == 1 else accuracies
    return {kind: torch.arange(N) < round(N * accuracy) for kind, accuracy in zip(ATTACKS, each, strict=True)}


class Records:
    """A study with all records of the digits profile except those in ``absent``; the default accuracy is a half."""

    profile, classes, fingerprint = DIGITS, [str(digit) for digit in range(10)], "digits:0"

    def __init__(
        self,
        seed: int = 0,
        correct: Mapping[str, Mapping[str, Tensor]] | None = None,
        *,
        units: Mapping[str, float] | None = None,
        inference: Mapping[str, float] | None = None,
        best: str = "expert-8",
        absent: tuple[str, ...] = (),
        autoattack: Mapping[str, float] | None = None,
    ) -> None:
        self.seed, self.best, self.absent = seed, best, absent
        self.autoattack = dict(autoattack or {})  # accuracies
        self.correct = dict(correct or {})
        self.units = {"ablation-1": 1000, "ablation-3": 3000, "ablation-5": 5000, "ablation-base": 9000} | dict(
            units or {}
        )
        self.inference = {name: KNOWN[name].network.experts + 0.05 for name in KNOWN} | dict(inference or {})
        self.used: set[str] = set()

    def missing(self, names: list[str]) -> list[str]:
        if unknown := set(names) - set(STAGES):
            raise MissingError(f"unknown stages {unknown}")
        return [name for name in names if name in self.absent]

    def record(self, name: str) -> dict[str, Any]:
        self.used.add(name)
        system = name.removeprefix("train:")
        epoch = {"pgd": 0.9 if system == self.best else 0.1}
        costs = {"training_units": self.units.get(system, 0), "inference_cost": self.inference[system]}
        return costs | {"parameters": 1, "history": {"epochs": [epoch, epoch], "best": 1}}

    def get(self, name: str) -> SimpleNamespace:
        kind, system = name.split(":", 1)
        if kind == "train":
            return SimpleNamespace(record={"result": self.record(name)})
        self.used.add(name)
        if kind == "stress":
            return SimpleNamespace(arrays={"pgd-50-margin@0.15": torch.ones(SLOW, dtype=torch.uint8)})
        correct = torch.arange(SLOW) < round(SLOW * self.autoattack.get(system, 0.5))
        return SimpleNamespace(arrays={"correct": correct}, record={"result": {"name": "autoattack@0.15"}})

    def outcome(self, system: str, spec: AttackSpec) -> SimpleNamespace:
        self.used.add(f"evaluate:{system}:{spec.name}")
        outcomes = self.correct.get(system) or shares(0.5)
        kind = "soft" if spec.objective == "soft" and "soft" in outcomes else spec.kind
        return SimpleNamespace(arrays={"correct": outcomes[kind].to(torch.uint8)})


def series(seeds: int = 3, **settings: Any) -> Any:
    """A study for each seed, all with the same records."""
    return [Records(seed, **settings) for seed in range(seeds)]


def over(low: float, high: float) -> DifferenceOverSeeds:
    """A difference with this interval, as image sampling alone would give it."""
    return DifferenceOverSeeds(3, N, (low + high) / 2, low, high, (high - low) / 2 / t.ppf(0.975, N - 1), 0.0)


# -- differences -----------------------------------------------------------------------------------------------------

LISTED = tuple(n for n, r in KNOWN.items() if r.family in ("single", "mixture", "defence") and n != "dwf")
PAIR = Beats("pair", "DWF beats two", "ours", others=("frozen", "pgd-at"))


@pytest.mark.parametrize(
    ("frozen", "pgd_at", "verdict", "readings"),
    [
        (0.3, 0.4, SUPPORTED, [SUPPORTED, SUPPORTED]),
        (0.3, 0.6, UNDECIDED, [SUPPORTED, UNDECIDED]),
        (0.8, 0.9, REFUTED, [REFUTED, REFUTED]),
        (0.3, 0.9, REFUTED, [SUPPORTED, REFUTED]),
        (0.6, 0.9, REFUTED, [UNDECIDED, REFUTED]),
    ],
)
def test_a_system_beats_others_if_it_beats_each(
    frozen: float, pgd_at: float, verdict: str, readings: list[str]
) -> None:
    found = decide(PAIR, series(correct={"dwf": shares(0.6), "frozen": shares(frozen), "pgd-at": shares(pgd_at)}))
    assert found.verdict == verdict
    assert [item.reading for item in found.comparisons] == readings
    assert [item.value.difference for item in found.comparisons if item.value] == pytest.approx(
        [0.6 - frozen, 0.6 - pgd_at]
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1e-9, 0.2, SUPPORTED), (0.0, 0.2, UNDECIDED), (-0.2, 0.0, UNDECIDED), (-0.2, -1e-9, REFUTED)],
)
def test_an_interval_that_touches_zero_decides_nothing(
    low: float, high: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "difference_over_seeds", lambda first, second: over(low, high))
    single = dataclasses.replace(PAIR, others=("frozen",))
    assert decide(single, series()).verdict == verdict


@pytest.mark.parametrize(
    ("highs", "readings"),
    [
        # The upper ends of intervals of half-width 0.1, and their readings after Holm's correction.
        ((-0.001,), [REFUTED]),
        ((-0.001, 0.2001), [UNDECIDED, SUPPORTED]),  # p = 0.047; twice that is above 0.05
        ((-0.001, -0.1), [REFUTED, REFUTED]),  # the smaller one counts twice, the other once
        ((-0.02, *[0.05] * 13), [UNDECIDED] * 14),
        ((-0.06, *[0.05] * 13), [REFUTED, *[UNDECIDED] * 13]),
        ((*[0.2001] * 14,), [SUPPORTED] * 14),  # all are needed, so nothing is corrected
    ],
)
def test_one_of_many_comparisons_refutes_only_after_correction_for_their_number(
    highs: tuple[float, ...], readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([over(high - 0.2, high) for high in highs])
    monkeypatch.setattr(rules, "difference_over_seeds", lambda first, second: next(values))
    many = Beats("many", "DWF beats many", "ours", others=LISTED[: len(highs)])
    found = decide(many, series())
    assert [item.reading for item in found.comparisons] == readings
    assert found.verdict == (REFUTED if REFUTED in readings else UNDECIDED if UNDECIDED in readings else SUPPORTED)


def test_differences_are_taken_in_each_column_of_a_claim() -> None:
    correct = {"dwf": shares(0.5, 0.9, 0.5), "frozen": shares(0.9, 0.5, 0.9), "pgd-at": shares(0.9, 0.9, 0.2)}
    both = dataclasses.replace(PAIR, columns=("clean", "FGSM", outcomes.PGD_WORST_CASE))
    found = {item.label: item for item in decide(both, series(correct=correct)).comparisons}
    expected = {
        "dwf - frozen, clean": (-0.4, REFUTED),
        "dwf - pgd-at, clean": (-0.4, REFUTED),
        "dwf - frozen, FGSM": (0.4, SUPPORTED),
        "dwf - pgd-at, FGSM": (0.0, UNDECIDED),
        "dwf - frozen, PGD worst case": (0.0, UNDECIDED),
        "dwf - pgd-at, PGD worst case": (0.3, SUPPORTED),
    }
    assert list(found) == list(expected)
    for label, (difference, reading) in expected.items():
        assert found[label].reading == reading
        assert found[label].value.difference == pytest.approx(difference, abs=1e-9)  # type: ignore[union-attr]


def test_a_comparison_is_the_difference_of_the_stacked_outcomes() -> None:
    accuracies = np.random.default_rng(0).uniform(0.2, 0.8, (3, 2))
    studies: Any = [
        Records(seed, {"dwf": shares(ours), "frozen": shares(other)}) for seed, (ours, other) in enumerate(accuracies)
    ]
    comparison = decide(dataclasses.replace(PAIR, others=("frozen",)), studies).comparisons[0]
    first, second = (torch.stack([s.correct[name]["pgd"] for s in studies]) for name in ("dwf", "frozen"))
    assert comparison.value == difference_over_seeds(first, second)
    value = difference_over_seeds(first, second)
    text = f"{100 * value.difference:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
    assert comparison.text == format.points(value.difference, value.low, value.high) == text


def test_large_variation_between_seeds_leaves_a_claim_undecided() -> None:
    equal, varied = [0.6, 0.6, 0.6], [0.9, 0.5, 0.4]
    verdicts = []
    for ours in (equal, varied):
        studies: Any = [Records(seed, {"dwf": shares(share)}) for seed, share in enumerate(ours)]
        verdicts.append(decide(PAIR, studies).verdict)
    assert verdicts == [SUPPORTED, UNDECIDED]


def test_the_best_expert_is_another_one_with_each_seed() -> None:
    claim = Beats("best", "The average beats the best expert", "ours", system="uniform", others=("best-expert",))
    experts = {name: shares(0.1) for name in EXPERTS}
    studies: Any = [
        Records(seed, experts | {best: shares(0.9)}, best=best) for seed, best in enumerate(EXPERTS[3:6], start=0)
    ]
    found = decide(claim, studies)
    assert found.verdict == REFUTED
    assert found.comparisons[0].value.difference == pytest.approx(-0.4)  # type: ignore[union-attr]
    assert {outcomes.resolve_system(study, "best-expert") for study in studies} == set(EXPERTS[3:6])
    for expert in EXPERTS:
        assert f"train:{expert}" in claim.stages(studies[0])
        assert f"evaluate:{expert}:clean" in claim.stages(studies[0])


def test_the_worst_case_is_over_every_basic_attack_on_a_system() -> None:
    # Each attack takes another tenth of the images; the soft one exists only for hard routing.
    images = torch.arange(N)
    tenths = {kind: (images >= 40 * i) & (images < 40 * (i + 1)) for i, kind in enumerate((*ATTACKS, "soft"))}
    correct = {kind: ~tenth for kind, tenth in tenths.items()}
    study: Any = Records(correct={"soe": correct, "dwf": correct})
    assert int(outcomes.basic_worst_case(study, "soe").sum()) == 240
    assert int(outcomes.basic_worst_case(study, "dwf").sum()) == 280
    for column, kind in (("clean", "clean"), ("FGSM", "fgsm"), ("PGD-50", "pgd")):
        assert torch.equal(outcomes.outcome(study, "soe", column), correct[kind])
    assert torch.equal(outcomes.outcome(study, "soe", outcomes.PGD_WORST_CASE), outcomes.basic_worst_case(study, "soe"))


# -- collapse --------------------------------------------------------------------------------------------------------

FALL = Collapse("fall", "They collapse", "ours", ("plain", "plain-vgg16"))


@pytest.mark.parametrize(
    ("plain", "vgg", "verdict"),
    [
        ((0.99, 0.3, 0.01), (0.95, 0.01, 0.02), SUPPORTED),
        ((0.99, 0.3, 0.01), (0.4, 0.01, 0.02), SUPPORTED),  # as in small CIFAR-10 profiles
        ((0.99, 0.3, 0.01), (0.325, 0.01, 0.02), UNDECIDED),  # a quarter of the distance from chance to 1
        ((0.99, 0.3, 0.01), (0.95, 0.5, 0.1), UNDECIDED),  # at chance
        ((0.99, 0.3, 0.01), (0.95, 0.5, 0.4), REFUTED),
        ((0.5, 0.3, 0.01), (0.5, 0.5, 0.4), REFUTED),
    ],
)
def test_networks_collapse_if_each_falls_below_chance(
    plain: tuple[float, ...], vgg: tuple[float, ...], verdict: str
) -> None:
    found = decide(FALL, series(correct={"plain": shares(*plain), "plain-vgg16": shares(*vgg)}))
    assert found.verdict == verdict
    assert [item.label for item in found.comparisons] == ["plain, PGD worst case", "plain-vgg16, PGD worst case"]
    assert f", clean {100 * plain[0]:.1f} [" in found.comparisons[0].text


@pytest.mark.parametrize(
    ("low", "high", "clean", "classes", "verdict"),
    [
        (0.0, 0.0999, 0.95, 10, SUPPORTED),
        (0.0, 0.1, 0.95, 10, UNDECIDED),
        (0.1001, 0.2, 0.95, 10, UNDECIDED),  # one network alone would refute; of two it may be chance
        (0.11, 0.2, 0.95, 10, REFUTED),
        (0.11, 0.2, 0.95, 2, SUPPORTED),  # chance is 1/2
        (0.51, 0.6, 0.95, 2, REFUTED),
        # The lower end of clean accuracy must pass 1/10 + 9/40 or 1/2 + 1/8.
        (0.0, 0.05, 0.324, 10, UNDECIDED),
        (0.0, 0.05, 0.326, 10, SUPPORTED),
        (0.0, 0.05, 0.624, 2, UNDECIDED),
        (0.0, 0.05, 0.626, 2, SUPPORTED),
    ],
)
def test_chance_and_clean_accuracy_bound_a_collapse(
    low: float, high: float, clean: float, classes: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(outcomes: Tensor) -> DifferenceOverSeeds:
        return over(clean, clean + 0.02) if outcomes.all() else over(low, high)

    monkeypatch.setattr(rules, "accuracy_over_seeds", read)
    monkeypatch.setattr(Records, "classes", ["a class"] * classes)
    assert decide(FALL, series(correct=dict.fromkeys(FALL.systems, shares(1, 0, 0)))).verdict == verdict


# -- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "inference", "readings"),
    [
        ({}, {}, [SUPPORTED, SUPPORTED, SUPPORTED]),
        ({"ablation-base": 4999}, {}, [REFUTED, SUPPORTED, SUPPORTED]),
        ({"ablation-base": 5000}, {}, [REFUTED, SUPPORTED, SUPPORTED]),
        ({}, {"ablation-base": 1.05}, [SUPPORTED, REFUTED, SUPPORTED]),
        # Each further expert costs 1, 1, and 1.09 or 1.11 forward passes.
        ({}, {"ablation-base": 5.05 + 4 * 1.09}, [SUPPORTED, SUPPORTED, SUPPORTED]),
        ({}, {"ablation-base": 5.05 + 4 * 1.11}, [SUPPORTED, REFUTED, SUPPORTED]),
        ({}, {"ablation-base": 5.05 + 4 * 0.9}, [SUPPORTED, REFUTED, SUPPORTED]),
        # One forward pass of 100 units of training is 1 %.
        ({"ablation-1": 100}, {"ablation-1": 1}, [SUPPORTED, SUPPORTED, REFUTED]),
        ({"ablation-1": 101}, {"ablation-1": 1}, [SUPPORTED, SUPPORTED, SUPPORTED]),
        # The training of a mixture includes that of its experts.
        ({"ablation-base": 4000}, {}, [REFUTED, SUPPORTED, SUPPORTED]),
        ({"ablation-base": 4000, LAST: 1001}, {}, [SUPPORTED, SUPPORTED, SUPPORTED]),
    ],
)
def test_one_seed_decides_a_claim_about_cost(
    units: dict[str, float], inference: dict[str, float], readings: list[str]
) -> None:
    found = decide(COST, series(1, units=units, inference=inference))
    assert [item.reading for item in found.comparisons] == readings
    assert found.verdict == (REFUTED if REFUTED in readings else SUPPORTED)
    assert all(item.value is None for item in found.comparisons)


@pytest.mark.parametrize(
    ("third", "refuted"),
    [
        ({"units": {"ablation-base": 4999}}, 0),
        ({"inference": {"ablation-3": 3.5}}, 1),
        ({"units": {"ablation-1": 100}}, 2),
    ],
)
def test_one_seed_of_three_refutes_a_claim_about_cost(third: dict[str, Any], refuted: int) -> None:
    studies: Any = [Records(0), Records(1), Records(2, **third)]
    found = decide(COST, studies)
    assert found.verdict == REFUTED
    assert [i for i, item in enumerate(found.comparisons) if item.reading == REFUTED] == [refuted]


def test_costs_are_those_of_the_records() -> None:
    texts = [item.text for item in decide(COST, series(1)).comparisons]
    assert texts[0] == "1000, 3000, 5000, 9000"
    assert texts[1].startswith("1.00 to 1.00 ResNet-18 forward passes")
    assert texts[2] in ("0.10% at most", "0.11% at most")  # 1.05 of 1000


# -- verdicts without numbers ----------------------------------------------------------------------------------------


def test_a_claim_is_not_run_if_a_seed_lacks_one_of_its_records() -> None:
    complete: Any = Records()
    for claim in CLAIMS:
        needed = claim.stages(complete)
        for absent in (needed[0], needed[len(needed) // 2], needed[-1]):
            studies: Any = [complete, Records(1, absent=(absent,)), Records(2)]
            found = decide(claim, studies)
            assert (found.verdict, found.comparisons) == (NOT_RUN, []) and found.reason
        assert decide(claim, []).verdict == NOT_RUN
        others: Any = [Records(seed, absent=tuple(set(STAGES) - set(needed))) for seed in range(2)]
        assert decide(claim, others).verdict != NOT_RUN


def test_a_claim_reads_only_the_records_of_its_stages() -> None:
    for claim in CLAIMS:
        studies = series(2)
        decide(claim, studies)
        for study in studies:
            assert study.used and study.used <= set(claim.stages(study)), claim.id


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_no_difference(seeds: int) -> None:
    correct = {name: shares(0.99, 0, 0) for name in claims.PLAIN} | {"dwf": shares(1.0)}
    for claim in CLAIMS:
        if not isinstance(claim, Grows):
            found = decide(claim, series(seeds, correct=correct))
            assert found.verdict == UNDECIDED and found.comparisons and "fewer than 3 seeds" in found.reason


# -- the ranking -----------------------------------------------------------------------------------------------------

RANKING = Survives("rank", "It survives", "ours")
OTHERS = [outcomes.display_name(name) for name in outcomes.main_table_systems(Records()) if name != "dwf"]  # type: ignore[arg-type]


def ranked(pgd: Mapping[str, float], autoattack: Mapping[str, float]) -> Verdict:
    """The verdict on the ranking with these accuracies; those of other systems are a half."""
    return decide(RANKING, series(correct={name: shares(a) for name, a in pgd.items()}, autoattack=autoattack))


def test_a_ranking_survives_if_the_worst_case_separates_the_same_pairs() -> None:
    found = ranked({"plain": 0.26, "pgd-at": 0.8}, {"plain": 0.1, "pgd-at": 0.9})
    assert found.verdict == SUPPORTED
    assert [item.label for item in found.comparisons] == ["dwf - plain, worst case", "dwf - pgd-at, worst case"]
    assert [item.value.n for item in found.comparisons if item.value] == [SLOW, SLOW]
    assert found.comparisons[0].text.startswith("+40.0 [")
    assert found.comparisons[0].text.endswith("(PGD-50 +24.0)")


@pytest.mark.parametrize(
    ("worst", "verdict"), [(0.1, SUPPORTED), (0.49, UNDECIDED), (0.5, UNDECIDED), (0.51, UNDECIDED), (0.9, REFUTED)]
)
def test_a_pair_in_reversed_order_refutes_the_ranking(worst: float, verdict: str) -> None:
    assert ranked({"plain": 0.26, "pgd-at": 0.4}, {"plain": 0.1, "pgd-at": worst}).verdict == verdict


NEAR, FAR = over(-0.21, -0.01), over(-0.3, -0.1)  # below zero: as a single comparison, and after any correction
OPEN = over(-0.1, 0.1)


def negated(value: DifferenceOverSeeds) -> DifferenceOverSeeds:
    return over(-value.high, -value.low)


@pytest.mark.parametrize(
    ("pgd", "worst", "readings"),
    [
        ([NEAR], [], []),  # one of seven below zero is chance: no ranking to lose
        ([FAR], [NEAR], [SUPPORTED]),
        ([FAR], [negated(NEAR)], [REFUTED]),
        ([FAR, FAR], [FAR, negated(NEAR)], [SUPPORTED, REFUTED]),
        ([FAR] * 3, [OPEN, OPEN, negated(NEAR)], [UNDECIDED] * 3),  # one of three reversed may be chance
        ([FAR] * 3, [OPEN, OPEN, negated(FAR)], [UNDECIDED, UNDECIDED, REFUTED]),
    ],
)
def test_a_ranking_is_corrected_for_the_number_of_its_systems(
    pgd: list[DifferenceOverSeeds],
    worst: list[DifferenceOverSeeds],
    readings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = len(RANKING.required_systems(Records())) - 1  # type: ignore[arg-type]
    values = iter([*pgd, *[OPEN] * (others - len(pgd)), *worst])
    monkeypatch.setattr(rules, "difference_over_seeds", lambda first, second: next(values))
    assert [item.reading for item in RANKING.compare(series())] == readings
    assert next(values, None) is None


def test_systems_that_pgd_does_not_separate_have_no_ranking_to_lose() -> None:
    found = ranked({"plain": 0.26, "trades": 0.5}, {"plain": 0.1, "trades": 0.9})
    assert found.verdict == SUPPORTED
    assert len(found.comparisons) == 1
    assert ranked({}, {"trades": 0.9}).comparisons == []


def test_the_ranking_needs_the_worst_case_of_every_system() -> None:
    study: Any = Records()
    names = RANKING.stages(study)
    expected = {f"{kind}:{name}" for name in autoattack_systems(DIGITS) for kind in ("stress", "autoattack")}
    assert {name for name in names if name.startswith(("stress", "autoattack"))} == expected
    assert {"dwf", "pgd-at", "best-expert"} <= set(autoattack_systems(DIGITS)) < {*OTHERS, "dwf"}
    assert decide(RANKING, [Records(absent=("autoattack:soe",))]).verdict == NOT_RUN  # type: ignore[list-item]
    assert decide(RANKING, [Records(absent=("train:expert-3",))]).verdict == NOT_RUN  # type: ignore[list-item]


def test_only_the_best_expert_has_a_worst_case() -> None:
    study: Any = Records(best="expert-4", autoattack={"best-expert": 0.3})
    assert int(outcomes.worst_case(study, "expert-4").sum()) == 0.3 * SLOW
    with pytest.raises(MissingError, match="expert-3: of the experts only the best one, expert-4"):
        outcomes.worst_case(study, "expert-3")


# -- the claims of the series ----------------------------------------------------------------------------------------


def test_claims_have_unique_names_a_statement_and_a_source() -> None:
    names = [claim.id for claim in CLAIMS]
    assert len(set(names)) == len(names) >= 10
    for claim in CLAIMS:
        assert re.fullmatch(r"[a-z-]+", claim.id)
        assert claim.statement
        assert not claim.statement.endswith(".")
        assert re.fullmatch(r"v1|v2|v1 and v2|v1 \(as summarised\)|ours", claim.source)
    assert {"v1 and v2", "v1", "v2", "ours"} <= {claim.source for claim in CLAIMS}


def test_claims_compare_known_systems_and_columns() -> None:
    study: Any = Records()
    for claim in CLAIMS:
        systems = claim.required_systems(study)
        assert len(set(systems)) == len(systems) and set(systems) <= {*KNOWN, outcomes.BEST_EXPERT}
        assert set(claim.stages(study)) <= set(STAGES) and claim.rule
        if isinstance(claim, Beats):
            assert set(claim.columns) <= {"clean", "FGSM", outcomes.PGD_WORST_CASE}


def test_the_mixtures_of_the_claim_about_cost_have_increasing_numbers_of_experts() -> None:
    (cost,) = (claim for claim in CLAIMS if isinstance(claim, Grows))
    experts = [KNOWN[name].network.experts for name in cost.systems]
    assert experts == sorted(set(experts))


def test_every_other_defence_of_the_series_is_compared() -> None:
    (claim,) = (claim for claim in BEATS if claim.id == "beats-moe-defences")
    assert set(claim.others) == {recipe.system for recipe in KNOWN.values() if recipe.family == "defence"}
    assert {name for name in KNOWN if name.split("-")[0] == "plain"} == set(claims.PLAIN)


def test_changed_records_change_the_verdict_of_each_difference() -> None:
    for claim in BEATS:
        weak: dict[str, Mapping[str, Tensor]] = {name: shares(0.3) for name in KNOWN if name != claim.system}
        best = {name: "expert-8" if name == outcomes.BEST_EXPERT else name for name in claim.others}
        assert decide(claim, series(correct=weak)).verdict == SUPPORTED
        for other in claim.others:
            assert decide(claim, series(correct=weak | {best[other]: shares(0.8)})).verdict == REFUTED
            assert decide(claim, series(correct=weak | {best[other]: shares(0.5)})).verdict == UNDECIDED
        assert decide(claim, series(correct={claim.system: shares(0.3)})).verdict == REFUTED


def test_plain_networks_that_withstand_attack_change_the_verdict() -> None:
    (claim,) = (claim for claim in CLAIMS if isinstance(claim, Collapse))
    fallen: dict[str, Mapping[str, Tensor]] = {name: shares(0.98, 0.2, 0.01) for name in claims.PLAIN}
    assert decide(claim, series(correct=fallen)).verdict == SUPPORTED
    for name in claims.PLAIN:
        assert decide(claim, series(correct=fallen | {name: shares(0.98, 0.6, 0.5)})).verdict == REFUTED


def test_inverted_outcomes_invert_every_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    studies = series(2, correct={name: shares(*generator.uniform(0.2, 0.8, 3)) for name in KNOWN})
    before, original = [decide(claim, studies) for claim in BEATS], outcomes.outcome
    monkeypatch.setattr(outcomes, "outcome", lambda *arguments: ~original(*arguments))
    after = [decide(claim, studies) for claim in BEATS]
    # A refutation is corrected for the number of comparisons, a support is not.
    inverse = {SUPPORTED: {REFUTED, UNDECIDED}, REFUTED: {SUPPORTED}, UNDECIDED: {UNDECIDED, SUPPORTED}}
    pairs = [p for v, w in zip(before, after, strict=True) for p in zip(v.comparisons, w.comparisons, strict=True)]
    assert len(pairs) > 30
    for one, other in pairs:
        assert one.label == other.label and other.reading in inverse[one.reading]
        assert one.value and other.value
        assert (other.value.low, other.value.high) == pytest.approx((-one.value.high, -one.value.low))


# -- tables and text -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decided() -> list[Verdict]:
    """Verdicts of every kind: one plain network and one defence are as good as DWF, one of equal size is better."""
    plain: dict[str, Mapping[str, Tensor]] = {name: shares(0.99, 0.1, 0.02) for name in claims.PLAIN}
    correct = plain | {
        "dwf": shares(0.95, 0.7, 0.6),
        "more": shares(0.9, 0.7, 0.6),
        "pgd-at-wide": shares(0.95, 0.8, 0.7),
    }
    return claims.verdicts(series(correct=correct))


def test_every_claim_gets_one_verdict_in_the_order_of_the_claims(decided: list[Verdict]) -> None:
    assert [v.claim for v in decided] == list(CLAIMS)
    verdict = {v.claim.id: v.verdict for v in decided}
    assert verdict["collapse"] == verdict["beats-bigger-backbones"] == verdict["joint-training"] == SUPPORTED
    assert verdict["beats-moe-defences"] == verdict["gate-adds"] == UNDECIDED
    assert verdict["clean-accuracy-too"] == verdict["beats-equal-size"] == REFUTED
    assert verdict["survives"] == UNDECIDED
    assert verdict["cost"] == SUPPORTED


def test_the_table_of_verdicts_counts_the_readings(decided: list[Verdict]) -> None:
    table = claims.verdicts_table(decided)
    assert list(table.index) == [claim.id for claim in CLAIMS]
    assert list(table.columns) == ["statement", "source", "verdict", "comparisons"]
    assert table.loc["beats-moe-defences", "comparisons"] == "12 supported, 0 not supported, 2 undecided"
    assert table.loc["beats-equal-size", "comparisons"] == "2 supported, 1 not supported, 0 undecided"
    assert table.loc["cost", "comparisons"] == "3 supported, 0 not supported, 0 undecided"
    for v in decided:
        row = table.loc[v.claim.id, ["statement", "source", "verdict"]]
        assert tuple(row) == (v.claim.statement, v.claim.source, v.verdict)


def test_a_description_gives_rule_comparisons_and_verdict(decided: list[Verdict]) -> None:
    for v in decided:
        text = claims.describe(v)
        lines = text.splitlines()
        assert lines[0] == f"{v.claim.id}: {v.claim.statement} ({v.claim.source})"
        assert lines[1].split(maxsplit=1) == ["rule", v.claim.rule]
        assert len(lines) == 3 + len(v.comparisons)
        for line, item in zip(lines[2:], v.comparisons, strict=False):
            assert line.strip().startswith(item.reading)
            assert line.endswith(f"{item.label}: {item.text}")
        assert lines[-1].startswith(f"  VERDICT  {v.verdict}")
        assert v.reason in lines[-1]
    single = decide(PAIR, series(1))
    assert claims.describe(single).endswith(f"VERDICT  undecided (1 seed) ({single.reason})")


def test_the_frame_of_differences_has_no_other_numbers(decided: list[Verdict]) -> None:
    frame = claims.differences_frame(decided)
    numbers = {item.label: item.value for v in decided if isinstance(v.claim, Beats) for item in v.comparisons}
    assert list(frame.index) == [label.removesuffix(", PGD worst case") for label in numbers]
    assert frame.index.is_unique
    assert list(frame.columns) == ["claim", "difference", "low", "high"]
    for value, (_, row) in zip(numbers.values(), frame.iterrows(), strict=True):
        assert value
        assert (row["difference"], row["low"], row["high"]) == (value.difference, value.low, value.high)
    assert frame.loc["dwf - pgd-at-wide", "difference"] == pytest.approx(-0.1)
    assert {"dwf - more", "dwf - more, FGSM", "frozen - best-expert", "dwf - plain-vgg16, clean"} <= set(frame.index)
    assert set(frame["claim"]) == {claim.id for claim in BEATS}


# -- power -----------------------------------------------------------------------------------------------------------

NOTE = re.compile(
    r"(?P<seeds>\d+) seeds?, n = (?P<n>\d+) images each. Half-widths of the 95 % intervals of (?P<count>\d+) "
    r"differences: (?P<least>[\d.]+) to (?P<most>[\d.]+) points, median (?P<median>[\d.]+). Standard error from the "
    r"images (?P<images>[\d.]+) points, from the training runs (?P<runs>[\w. ]+?) \(medians\). "
    r"A true difference of (?P<found>[\d.]+) points"
)


def random_studies(seeds: int, spread: float) -> Any:
    """Studies whose systems differ by chance: images independently, seeds with standard deviation ``spread``."""
    generator = np.random.default_rng(7)

    def outcomes() -> dict[str, Tensor]:
        correct = torch.tensor(generator.random(N) < 0.5 + spread * generator.normal())
        return dict.fromkeys(ATTACKS, correct)

    systems = ("dwf", "frozen", "pgd-at", "trades")
    return [Records(seed, {name: outcomes() for name in systems}) for seed in range(seeds)]


def test_the_note_on_power_gives_intervals_both_standard_errors_and_the_difference_that_is_found() -> None:
    studies, others = random_studies(3, 0.1), ("frozen", "pgd-at", "trades")
    note = NOTE.match(claims.power_note(studies, others))
    assert note
    assert (note["seeds"], note["n"], note["count"]) == ("3", str(N), "3")
    ours = outcomes.outcomes_over_seeds(studies, "dwf", outcomes.PGD_WORST_CASE)
    values = [
        difference_over_seeds(ours, outcomes.outcomes_over_seeds(studies, other, outcomes.PGD_WORST_CASE))
        for other in others
    ]
    halves = sorted(100 * (value.high - value.low) / 2 for value in values)
    assert [float(note[key]) for key in ("least", "median", "most")] == pytest.approx(halves, abs=0.051)
    images, runs = sorted(v.from_images for v in values)[1], sorted(v.from_runs for v in values)[1]
    assert float(note["images"]) == pytest.approx(100 * images, abs=0.051)
    assert float(note["runs"]) == pytest.approx(100 * runs, abs=0.051)
    both = sorted(math.hypot(value.from_images, value.from_runs) for value in values)
    assert float(note["found"]) >= 280 * both[1] - 0.051  # 1.96 + 0.84 standard errors
    assert float(note["found"]) > float(note["median"])


def test_one_seed_has_no_standard_error_over_runs() -> None:
    note = claims.power_note(random_studies(1, 0.0), ("frozen", "pgd-at"))
    assert note.startswith("1 seed, n = ") and "unknown with one seed" in note and "nan" not in note


def test_published_profiles_are_those_with_an_index(home: Path) -> None:
    assert claims.published_profiles() == []
    for name in ("digits", "smoke"):
        published_dir(name).mkdir(parents=True)
    (published_dir("digits") / INDEX).write_text("{}")
    assert claims.published_profiles() == ["digits"]


def test_verdicts_without_comparisons_make_an_empty_table() -> None:
    assert len(claims.differences_frame(claims.verdicts([]))) == 0


# -- profiles that leave systems out -----------------------------------------------------------------------------------


class Few(Records):
    """The study of a profile with few systems."""

    profile = dataclasses.replace(DIGITS, study=StudyConfig((*COMPARED, "soe", "plain-wrn28-10")))


def few(**settings: Any) -> Any:
    return [Few(seed, **settings) for seed in range(3)]


DEFENCES = Beats("some", "DWF beats some", "ours", others=("soe", "more"))


@pytest.mark.parametrize(("soe", "verdict"), [(0.2, UNDECIDED), (0.5, UNDECIDED), (0.8, REFUTED)])
def test_a_claim_with_systems_left_out_can_be_refuted_but_not_supported(soe: float, verdict: str) -> None:
    found = decide(DEFENCES, few(correct={"soe": shares(soe)}))
    assert found.verdict == verdict and [item.label for item in found.comparisons] == ["dwf - soe, PGD worst case"]
    assert ("more" in found.reason) is (verdict == UNDECIDED)
    assert decide(DEFENCES, series(correct={"soe": shares(0.2), "more": shares(0.2)})).verdict == SUPPORTED


@pytest.mark.parametrize(
    "claim",
    [
        Beats("others", "DWF beats those left out", "ours", others=("more", "advmoe")),
        Beats("itself", "One left out beats", "ours", system="more", others=("dwf",)),
        Collapse("collapse", "One collapses", "ours", ("plain-vgg16",)),
        COST,
    ],
    ids=lambda claim: claim.id,
)
def test_a_claim_about_systems_left_out_is_not_run(claim: Claim) -> None:
    found = decide(claim, few())
    assert found.verdict == NOT_RUN and not found.comparisons and "left out" in found.reason


def test_networks_left_out_do_not_collapse() -> None:
    collapsed = {name: shares(0.95, 0.0, 0.0) for name in ("plain", "plain-wrn28-10", "plain-vgg16")}
    both = Collapse("collapse", "They collapse", "ours", ("plain", "plain-vgg16"))
    assert decide(both, series(correct=collapsed)).verdict == SUPPORTED
    assert decide(both, few(correct=collapsed)).verdict == UNDECIDED


def test_the_ranking_is_that_of_the_available_systems() -> None:
    survives = next(claim for claim in CLAIMS if isinstance(claim, Survives))
    assert survives.required_systems(few()[0]) == ("dwf", "plain", "pgd-at", "soe", "best-expert")
    assert {item.label.split(" - ")[1] for item in decide(survives, few()).comparisons} <= {"plain, worst case"}


def test_every_claim_has_a_verdict_in_a_profile_with_few_systems() -> None:
    absent = set(KNOWN) - set(recipes(Few.profile))
    for claim in CLAIMS:
        found = decide(claim, few())
        assert {word.strip(",") for item in found.comparisons for word in item.label.split()}.isdisjoint(absent)
        complete = claim.available_systems(few()[0]) == list(claim.required_systems(few()[0]))
        assert found.verdict != SUPPORTED or complete


def test_verdicts_of_all_profiles_are_columns_of_one_table() -> None:
    frame = claims.verdicts_by_profile({"digits": series(), "svhn": []})
    assert list(frame.index) == [claim.id for claim in CLAIMS]
    assert list(frame.columns) == ["statement", "source", "digits (digits, 3 seeds)", "svhn (no records, 0 seeds)"]
    assert set(frame["svhn (no records, 0 seeds)"]) == {NOT_RUN}
    assert list(frame["digits (digits, 3 seeds)"]) == [verdict.text for verdict in claims.verdicts(series())]
