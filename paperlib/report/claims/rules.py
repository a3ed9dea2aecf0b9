"""The rules that decide claims from records. They were written before the records existed.

A verdict is *supported*, *not supported*, *undecided* or *not run*.

A claim that needs all of its comparisons is an intersection-union test: each comparison uses its own interval, without
correction for their number. One comparison is enough to refute a claim, so refutations are corrected for their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from paperlib.evaluation import (
    SIGNIFICANCE_LEVEL,
    DifferenceOverSeeds,
    accuracy_over_seeds,
    difference_over_seeds,
    directions,
    headline,
)
from paperlib.pipeline.stages import autoattack_systems
from paperlib.pipeline.study import Study
from paperlib.report.format import percent_over_seeds, points, signed
from paperlib.report.outcomes import (
    BEST_EXPERT,
    PGD_WORST_CASE,
    WORST_CASE,
    all_recipes,
    column_of,
    main_table_stages,
    outcomes_over_seeds,
    stress_stages,
)
from paperlib.report.tables.cost import growth
from paperlib.systems.experts import EXPERTS

SUPPORTED, REFUTED, UNDECIDED, NOT_RUN = "supported", "not supported", "undecided", "not run"
# A network has learned if its clean accuracy lies above chance by this share of the distance from chance to 1.
LEARNED = 0.25
INTERVAL = f"{100 * (1 - SIGNIFICANCE_LEVEL):g} % interval"
# Two-sided, so that a claim of one comparison is decided by its interval, in both directions alike.
CORRECTED = f"after correction for their number (Holm, two-sided, {100 * SIGNIFICANCE_LEVEL:g} % in all)"


@dataclass(frozen=True)
class Comparison:
    """One number behind a verdict, and the reading that the rule gives to it."""

    label: str
    value: DifferenceOverSeeds | None  # None for a count, which has no interval
    reading: str  # SUPPORTED, REFUTED or UNDECIDED
    text: str  # the number


@dataclass(frozen=True)
class Claim:
    """A statement that can be tested. Subclasses hold the settings of a rule and apply it."""

    id: str
    statement: str
    source: str  # "v1", "v2", "v1 and v2" (abstracts of arXiv 2512.20821), or "ours"

    @property
    def rule(self) -> str:
        """The rule in words."""
        raise NotImplementedError

    def required_systems(self, study: Study) -> tuple[str, ...]:
        """The systems that the rule compares; a profile may leave some out."""
        raise NotImplementedError

    def stages(self, study: Study) -> list[str]:
        """The stages whose records the rule needs, of the systems that the profile has."""
        raise NotImplementedError

    def compare(self, studies: Sequence[Study]) -> list[Comparison]:
        """The comparisons over all seeds, each with its reading; none if too few systems are available."""
        raise NotImplementedError

    def available_systems(self, study: Study) -> list[str]:
        """Those of `required_systems` that the profile has."""
        return [name for name in self.required_systems(study) if name == BEST_EXPERT or name in all_recipes(study)]


@dataclass(frozen=True)
class Beats(Claim):
    """The first system has a higher accuracy than each of the others."""

    system: str = "dwf"
    others: tuple[str, ...] = ()
    columns: tuple[str, ...] = (PGD_WORST_CASE,)  # "clean", "FGSM" or the worst case of the basic attacks

    @property
    def rule(self) -> str:
        return (
            f"{self.system} minus each of {', '.join(self.others)} ({', '.join(self.columns)}): supported if every "
            f"{INTERVAL} lies above zero, not supported if any lies below {CORRECTED}, else undecided"
        )

    def required_systems(self, study: Study) -> tuple[str, ...]:
        return (self.system, *self.others)

    def stages(self, study: Study) -> list[str]:
        return main_table_stages(study, self.available_systems(study))

    def compare(self, studies: Sequence[Study]) -> list[Comparison]:
        system, *others = self.available_systems(studies[0]) or [""]
        if system != self.system:
            return []
        differences = {}
        for column in self.columns:
            ours = outcomes_over_seeds(studies, system, column)
            for other in others:
                value = difference_over_seeds(ours, outcomes_over_seeds(studies, other, column))
                differences[f"{self.system} - {other}, {column}"] = value
        return [
            Comparison(
                label,
                value,
                SUPPORTED if value.low > 0 else REFUTED if direction < 0 else UNDECIDED,
                points(value.difference, value.low, value.high),
            )
            for (label, value), direction in zip(
                differences.items(), directions(list(differences.values())), strict=True
            )
        ]


@dataclass(frozen=True)
class Collapse(Claim):
    """Each system has learned, and falls below chance under attack."""

    systems: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        return (
            f"{PGD_WORST_CASE} of each of {', '.join(self.systems)}: supported if every {INTERVAL} lies below chance "
            f"(one over the number of classes) and that of clean accuracy above {100 * LEARNED:g} % of the way from "
            "chance to 1, because only a network that has learned can collapse; not supported if any lies above chance "
            f"{CORRECTED}, else undecided"
        )

    def required_systems(self, study: Study) -> tuple[str, ...]:
        return self.systems

    def stages(self, study: Study) -> list[str]:
        return ["data", *main_table_stages(study, self.available_systems(study))]

    def compare(self, studies: Sequence[Study]) -> list[Comparison]:
        chance = 1 / len(studies[0].classes)
        learned = chance + LEARNED * (1 - chance)
        systems = self.available_systems(studies[0])
        attacked, clean = (
            [accuracy_over_seeds(outcomes_over_seeds(studies, system, column)) for system in systems]
            for column in (PGD_WORST_CASE, "clean")
        )
        comparisons = []
        for system, after, before, direction in zip(
            systems, attacked, clean, directions(attacked, chance), strict=True
        ):
            collapses = after.high < chance and before.low > learned
            reading = SUPPORTED if collapses else REFUTED if direction > 0 else UNDECIDED
            text = f"{percent_over_seeds(after)}, clean {percent_over_seeds(before)}"
            comparisons.append(Comparison(f"{system}, {PGD_WORST_CASE}", after, reading, text))
        return comparisons


@dataclass(frozen=True)
class Grows(Claim):
    """Training cost rises with the number of experts; inference cost grows linearly and stays far lower."""

    systems: tuple[str, ...] = ()  # in the order of their number of experts

    @property
    def rule(self) -> str:
        return (
            f"counted for {', '.join(self.systems)}: supported if training passes rise with each, the operations that "
            "each further expert adds to inference lie within 10 % of each other, and inference on the training set "
            "costs less than 1 % of training; not supported if one of the three fails"
        )

    def required_systems(self, study: Study) -> tuple[str, ...]:
        return self.systems

    def stages(self, study: Study) -> list[str]:
        recipes = all_recipes(study)
        return [
            f"train:{name}"
            for system in self.available_systems(study)
            for name in (*recipes[system].starts_from, system)
        ]

    def compare(self, studies: Sequence[Study]) -> list[Comparison]:
        if len(self.available_systems(studies[0])) < len(self.systems):  # the comparison needs all mixtures
            return []
        tables = [growth(study, self.systems) for study in studies]
        rises = all((table["training cost"].diff().dropna() > 0).all() for table in tables)
        # Differences from one mixture to the next: the gate, which is the same in all, cancels.
        per_expert = pd.concat([t["inference cost"].diff() / t["experts"].diff() for t in tables]).dropna()
        linear = bool(per_expert.min() > 0 and per_expert.max() <= 1.1 * per_expert.min())
        share = max(float((table["inference cost"] / table["training cost"]).max()) for table in tables)
        costs = ", ".join(f"{cost:.0f}" for cost in tables[0]["training cost"])
        spread = f"{per_expert.min():.2f} to {per_expert.max():.2f} ResNet-18 forward passes for each further expert"
        return [
            Comparison("training cost, clean epochs of one ResNet-18", None, SUPPORTED if rises else REFUTED, costs),
            Comparison("inference cost", None, SUPPORTED if linear else REFUTED, spread),
            Comparison("inference over training", None, SUPPORTED if share < 0.01 else REFUTED, f"{share:.2%} at most"),
        ]


@dataclass(frozen=True)
class Survives(Claim):
    """Where PGD separates the first system from another, the worst case over all attacks separates them as well."""

    system: str = "dwf"

    @property
    def rule(self) -> str:
        return (
            f"of the systems attacked by AutoAttack, those that PGD separates from {self.system} {CORRECTED}: "
            f"supported if the {WORST_CASE} separates each in the same direction ({INTERVAL} without zero), not "
            "supported if it separates one in the other direction after the same correction, else undecided"
        )

    def required_systems(self, study: Study) -> tuple[str, ...]:
        return (self.system, *(name for name in autoattack_systems(study.profile) if name != self.system))

    def stages(self, study: Study) -> list[str]:
        experts = [f"train:{name}" for name in EXPERTS]
        if study.missing(experts):  # the best one is not known yet
            return experts
        return stress_stages(study, self.required_systems(study))

    def compare(self, studies: Sequence[Study]) -> list[Comparison]:
        pgd = column_of(headline(studies[0].profile.evaluation))
        others = self.required_systems(studies[0])[1:]

        def differences(column: str, others: Sequence[str]) -> list[DifferenceOverSeeds]:
            ours = outcomes_over_seeds(studies, self.system, column)
            return [difference_over_seeds(ours, outcomes_over_seeds(studies, other, column)) for other in others]

        under_pgd = differences(pgd, others)
        # A pair that PGD separates by chance has no ranking to lose, so this too is corrected for the number of pairs.
        separated = [
            (other, value, direction)
            for other, value, direction in zip(others, under_pgd, directions(under_pgd), strict=True)
            if direction
        ]
        worst = differences(WORST_CASE, [other for other, _, _ in separated])
        comparisons = []
        for (other, before, direction), after, now in zip(separated, worst, directions(worst), strict=True):
            same = after.low > 0 if direction > 0 else after.high < 0
            reading = SUPPORTED if same else REFUTED if now == -direction else UNDECIDED
            text = f"{points(after.difference, after.low, after.high)} ({pgd} {signed(before.difference)})"
            comparisons.append(Comparison(f"{self.system} - {other}, {WORST_CASE}", after, reading, text))
        return comparisons
