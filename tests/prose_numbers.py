"""Sentences with numbers in documents and notebooks, and how each number follows from profiles and published records.

A fact is a template of a sentence and a function that returns the numbers for its braces. If the records change,
`tests/test_readme.py` fails and shows the sentence with the new numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from paperlib import Study, load_profile
from paperlib.config.budgets import budget_text
from paperlib.evaluation import CLEAN, difference_over_seeds
from paperlib.evaluation.auditing.checks import CHECKS
from paperlib.pipeline.stages.nan_router import REPORTED_GAP
from paperlib.report import claims, outcomes, tables
from paperlib.training.validation import COLLAPSE_GAP

PGD, PGD_WORST_CASE, WORST_CASE = "PGD-50", outcomes.PGD_WORST_CASE, outcomes.WORST_CASE


@dataclass(frozen=True)
class Records:
    """The published records of one profile, all seeds; accuracies and differences in percent and points."""

    profile: str
    cache: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)

    @cached_property
    def studies(self) -> list[Study]:
        return Study(self.profile, local=False).runs

    @property
    def slow(self) -> int:
        """Number of images that the slow attacks use."""
        return self.studies[0].profile.stress.images

    def outcomes(self, system: str, column: str) -> torch.Tensor:
        if (system, column) not in self.cache:
            self.cache[system, column] = outcomes.outcomes_over_seeds(self.studies, system, column)
        return self.cache[system, column]

    def accuracy(self, system: str, column: str, n: int | None = None) -> float:
        """Accuracy on the first n images, the mean over seeds."""
        return 100 * float(self.outcomes(system, column)[:, :n].double().mean())

    def autoattack(self, system: str) -> float:
        by_seed = [outcomes.autoattack_outcome(study, system) for study in self.studies]
        return 100 * float(torch.stack([correct for correct in by_seed if correct is not None]).double().mean())

    def interval(self, first: str, second: str, column: str) -> tuple[float, float, float]:
        """Accuracy of the first system minus that of the second, and the ends of the interval, in points."""
        value = difference_over_seeds(self.outcomes(first, column), self.outcomes(second, column))
        return 100 * value.difference, 100 * value.low, 100 * value.high

    def minus(self, first: str, second: str, column: str) -> float:
        return self.interval(first, second, column)[0]

    def overstated(self) -> list[float]:
        """PGD minus the worst case on the same images, of each defended system that selects no expert by argmax."""
        recipes = outcomes.all_recipes(self.studies[0])
        systems = [
            outcomes.display_name(name)
            for name in outcomes.main_table_systems(self.studies[0])
            if not name.startswith("plain") and not recipes[name].hard_routing
        ]
        return [self.accuracy(name, PGD, self.slow) - self.accuracy(name, WORST_CASE) for name in systems]

    def ablation(self, name: str) -> tuple[float, float, float]:
        return self.interval(f"ablation-{name}", "ablation-base", PGD_WORST_CASE)

    def leading(self) -> list[tuple[float, float]]:
        """Per trained gate, the share of images on which one expert leads: lowest and highest over attacks."""
        rows = [study.record(f"gate:{name}")["rows"] for study in self.studies for name in ("frozen", "dwf")]
        shares = [[100 * row["favourite_share"] for row in gate] for gate in rows]
        return sorted((min(gate), max(gate)) for gate in shares)

    def swept(self, systems: Sequence[str], eps: str) -> list[float]:
        """PGD accuracy at another eps, of each system and seed."""
        frames = [tables.results(study, systems, swept=True) for study in self.studies]
        return [100 * a for f in frames for a in f[(f.attack == "pgd") & (f.eps == float(eps))].accuracy]


DIGITS, LITE = Records("digits"), Records("cifar10_lite")
TRAINED = ("pgd-at", "uniform", "frozen", "dwf")


def spread(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def resolved() -> str:
    """The difference in points that three seeds detect four times out of five, from the note in `12_verdicts`."""
    names = [outcomes.display_name(name) for name in outcomes.main_table_systems(DIGITS.studies[0]) if name != "dwf"]
    match = re.search(r"A true difference of ([\d.]+) points", claims.power_note(DIGITS.studies, names))
    assert match
    return match[1]


def benign_weight() -> float:
    return 100 * LITE.studies[0].record("gate:dwf")["rows"][0]["mean_weights"][0]


def inference_cost() -> str:
    claim = next(claim for claim in claims.CLAIMS if claim.id == "cost")
    return claims.decide(claim, DIGITS.studies).comparisons[-1].text.removesuffix("% at most")


def eps(profile: str, section: str, name: str) -> str:
    return budget_text(getattr(getattr(load_profile(profile), section), name))


Fact = tuple[str, Callable[[], Sequence[object]]]

# By document, in the order of its sentences. The template rounds the numbers.
FACTS: dict[str, tuple[Fact, ...]] = {
    "README.md": (
        (
            "at `digits` the worst case is {:.0f} and {:.0f} points below PGD-50",
            lambda: [DIGITS.accuracy(o, PGD, DIGITS.slow) - DIGITS.accuracy(o, WORST_CASE) for o in ("advmoe", "soe")],
        ),
        ("`audit` runs {} checks", lambda: [len(CHECKS)]),
        ("tiny networks on {} digits", lambda: [load_profile("smoke").data.train]),
        (
            "real CIFAR-10, narrow ResNet-18, {:,} training images",
            lambda: [load_profile("cifar10_lite").data.train],
        ),
        (
            "CIFAR-10, full-width ResNet-18, {:,} training images",
            lambda: [load_profile("cifar10_h100").data.train],
        ),
        (
            "PGD uses eps {} and step size {} on CIFAR-10",
            lambda: [eps("cifar10", "threat", "pgd_eps"), eps("cifar10", "threat", "pgd_step")],
        ),
        ("measured on {} images for each seed", lambda: [DIGITS.slow]),
    ),
    "docs/results-digits.md": (
        ("so they use the first {} test images", lambda: [DIGITS.slow]),
        ("**{}** (the headline)", lambda: [WORST_CASE.capitalize()]),
        (
            "**{}**: the image is correct under FGSM and PGD-50, on all {} test images",
            lambda: [PGD_WORST_CASE, load_profile("digits").evaluation.images],
        ),
        (
            "both keep {:.0f} to {:.0f} points more than DWF, and in the worst case {:.0f} to {:.0f} points",
            lambda: [
                x
                for column in (PGD, WORST_CASE)
                for x in spread([DIGITS.minus(o, "dwf", column) for o in ("pgd-at", "trades")])
            ],
        ),
        (
            "is significantly ahead under PGD-50, by {:.0f} points",
            lambda: [DIGITS.minus("pgd-at-wrn28-10", "dwf", PGD)],
        ),
        (
            "AutoAttack lower the accuracy by another {:.0f} to {:.0f} points",
            lambda: spread(DIGITS.overstated()),
        ),
        (
            "PGD-AT falls from {:.0f} to {:.0f} %, DWF from {:.0f} to {:.0f} %",
            lambda: [
                x
                for o in ("pgd-at", "dwf")
                for x in (DIGITS.accuracy(o, PGD, DIGITS.slow), DIGITS.accuracy(o, WORST_CASE))
            ],
        ),
        (
            "ADVMoE with nine pathways keeps {:.0f} % under PGD-50 and {:.0f} % under AutoAttack. It keeps {:.0f} %",
            lambda: [
                DIGITS.accuracy("advmoe", PGD, DIGITS.slow),
                DIGITS.autoattack("advmoe"),
                DIGITS.accuracy("advmoe", WORST_CASE),
            ],
        ),
        (
            "SoE falls from {:.0f} to {:.0f} %. AutoAttack alone leaves SoE at {:.0f} %",
            lambda: [
                DIGITS.accuracy("soe", PGD, DIGITS.slow),
                DIGITS.accuracy("soe", WORST_CASE),
                DIGITS.autoattack("soe"),
            ],
        ),
        ("1 + 4 + 4 gain {:.0f} points [{:.0f}, {:.0f}]", lambda: DIGITS.ablation("pgd")),
        (
            "PGD batches alone in phase 2 gain {:.0f} [{:.0f}, {:.0f}] points",
            lambda: DIGITS.ablation("pgd-batches"),
        ),
        ("Nine benign experts lose {:.0f} points", lambda: [-DIGITS.ablation("benign")[0]]),
        (
            "joint training is {:.0f} to {:.0f} points worse",
            lambda: spread([DIGITS.minus("dwf", "joint-scratch", column) for column in (PGD_WORST_CASE, WORST_CASE)]),
        ),
        ("ADVMoE's lead of {:.0f} points disappears", lambda: [DIGITS.minus("advmoe", "dwf", PGD)]),
        ("one expert leads on {:.0f} to {:.0f} % of the images", lambda: DIGITS.leading()[0]),
        ("resolve differences of about {} points", lambda: [round(float(resolved()))]),
        ("with this short schedule costs {} % at most", lambda: [inference_cost()]),
        (
            "At `digits`, PGD is trained at eps {} and the headline eps is {}",
            lambda: [eps("digits", "threat", "pgd_eps"), eps("digits", "evaluation", "eps")],
        ),
        (
            "DWF, its parts and PGD adversarial training keep {:.0f} to {:.0f} %",
            lambda: spread(DIGITS.swept(TRAINED, "0.1")),
        ),
        ("At eps 0.2 they keep {:.0f} to {:.0f} %", lambda: spread(DIGITS.swept(TRAINED, "0.2"))),
        (
            "PGD adversarial training keeps about {:.0f} %",
            lambda: [round(DIGITS.accuracy("pgd-at", PGD), -1)],
        ),
        ("used by all attacks on a system ({} in each of three seeds)", lambda: [DIGITS.slow]),
    ),
    "docs/results-cifar10.md": (
        ("here the slow attacks use the first {} images", lambda: [LITE.slow]),
        (
            "Under PGD-50, DWF keeps {:.0f} points more than a plain ResNet-18 or WideResNet-28-10",
            lambda: [LITE.minus("dwf", "plain", PGD)],
        ),
        ("and {:.0f} points more than the uniform average", lambda: [LITE.minus("dwf", "uniform", PGD)]),
        ("keep {:.1f} points *more* than DWF on the same images", lambda: [LITE.minus("pgd-at", "dwf", PGD)]),
        (
            "DWF has {:.1f} points [{:.1f}, {:.1f}] more than PGD-AT",
            lambda: LITE.interval("dwf", "pgd-at", "clean"),
        ),
        (
            "and {:.1f} [{:.1f}, {:.1f}] points fewer than TRADES",
            lambda: LITE.interval("trades", "dwf", "clean"),
        ),
        (
            "DWF keeps {:.1f} %, PGD-AT {:.0f} and TRADES {:.1f}",
            lambda: [LITE.accuracy(name, WORST_CASE) for name in ("dwf", "pgd-at", "trades")],
        ),
        (
            "the lead of PGD-AT, {:.1f} points [{:.1f}, {:.1f}]",
            lambda: LITE.interval("pgd-at", "dwf", WORST_CASE),
        ),
        (
            "PGD-50 leaves {:.0f} % of DWF and {} attacks with AutoAttack {:.1f} %",
            lambda: [
                LITE.accuracy("dwf", PGD, LITE.slow),
                len(outcomes.all_outcomes(LITE.studies[0], "dwf")) - 1,  # without the clean images
                LITE.accuracy("dwf", WORST_CASE),
            ],
        ),
        (
            "similar to PGD-AT ({:.0f} and {:.0f} %)",
            lambda: [LITE.accuracy("pgd-at", PGD, LITE.slow), LITE.accuracy("pgd-at", WORST_CASE)],
        ),
        (
            "SoE falls from {:.1f} to {:.1f} %",
            lambda: [LITE.accuracy("soe", PGD, LITE.slow), LITE.accuracy("soe", WORST_CASE)],
        ),
        (
            "ADVMoE from {:.0f} to {:.1f} %; AutoAttack alone leaves ADVMoE at {:.1f} %",
            lambda: [
                LITE.accuracy("advmoe", PGD, LITE.slow),
                LITE.accuracy("advmoe", WORST_CASE),
                LITE.autoattack("advmoe"),
            ],
        ),
        ("ADVMoE leads DWF by {:.0f} points under PGD-50", lambda: [LITE.minus("advmoe", "dwf", PGD)]),
        (
            "In the column *{}*, which includes PGD on a surrogate of the selection, ADVMoE is {:.0f} points behind",
            lambda: [PGD_WORST_CASE, LITE.minus("dwf", "advmoe", PGD_WORST_CASE)],
        ),
        (
            "which learned little in six epochs ({:.0f} to {:.0f} % clean)",
            lambda: spread(
                [
                    100 * float(LITE.studies[0].outcome(f"expert-{i}", CLEAN).arrays["correct"].double().mean())
                    for i in range(1, 5)
                ]
            ),
        ),
        ("to give the benign expert {:.0f} %", lambda: [benign_weight()]),
        ("Joint training costs {:.1f} points under PGD-50", lambda: [LITE.minus("frozen", "dwf", PGD)]),
        ("and gains {:.0f} points on clean images", lambda: [LITE.minus("dwf", "frozen", "clean")]),
    ),
    "docs/audit.md": (("It runs {} checks", lambda: [len(CHECKS)]),),
    "docs/known-issues.md": (
        ("The slow attacks use {} images for each seed", lambda: [DIGITS.slow]),
        ("narrow networks, {:,} training images, one seed", lambda: [load_profile("cifar10_lite").data.train]),
    ),
    "docs/recipes.md": (
        ("the `validation` images ({}, from the base)", lambda: [load_profile("digits").data.validation]),
    ),
    "CHANGELOG.md": (("The audit with {} checks", lambda: [len(CHECKS)]),),
}

# Percentages and points that do not follow from published records of this version, with their sources.
OTHERS: dict[str, dict[str, str]] = {
    "docs/results-digits.md": {
        "DWF kept 59 % and PGD-AT 62 %": "an earlier commit, named in the text",
        "moved by 3.5 points, and that of its smaller form by 4.5 points": "earlier commits, named in the text",
        "costs less than 1 % of training": "the claim's rule, tested in test_claims.py",
        "clean accuracy above 90 %": "the former rule",
    },
    "docs/results-cifar10.md": {
        "(17 % clean, n = 200, where chance is 10 %)": "test_audit.py tests the control itself",
        "82.9 % clean and 53.5 % under PGD-10": "the linked logs",
    },
    "docs/speed.md": {
        "Against DWF at eps 0.15, where 59 % of the images remain correct": "networks of the benchmark, of an "
        "earlier commit",
    },
}

NOTEBOOK_FACTS: dict[str, tuple[Fact, ...]] = {
    "03_experts": (("more than {:.0f} points above the PGD accuracy is flagged", lambda: [100 * COLLAPSE_GAP]),),
    "05_baselines": (("until its scores lie {:.0f} apart", lambda: [REPORTED_GAP]),),
    "07_sweeps": (("Training used FGSM up to eps {}", lambda: [float(max(load_profile("digits").threat.fgsm_eps))]),),
    "09_stress": (("an audit of {} checks", lambda: [len(CHECKS)]),),
}


def expected_sentence(fact: Fact) -> str:
    """The sentence with the numbers of the records."""
    template, values = fact
    return template.format(*values())
