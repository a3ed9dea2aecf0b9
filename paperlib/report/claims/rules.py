"""What the paper claims, as data: each claim with the rule that decides it, and the verdict the records give.

The rules were written before the numbers. A verdict is *supported*, *not supported*, *undecided* or *not run*.

A claim that needs all of its comparisons is an intersection-union test: each is held against its own interval, and
their number calls for no correction. One comparison is enough against it, so those are corrected for their number.
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
from paperlib.report.format import points, share, signed
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


LEARNED = 0.25  # of the way from chance to every image right: what a network must reach to have something to lose


INTERVAL = f"{100 * (1 - SIGNIFICANCE_LEVEL):g} % interval"


# Two-sided, so that a claim of one comparison is decided by its interval, in either direction alike.
CORRECTED = f"after correction for their number (Holm, two-sided, {100 * SIGNIFICANCE_LEVEL:g} % in all)"


@dataclass(frozen=True)
class Evidence:
    """One number a verdict rests on, and how the rule reads it."""

    what: str
    value: DifferenceOverSeeds | None  # None for a count that has no interval
    reading: str  # SUPPORTED, REFUTED or UNDECIDED
    shown: str  # the number as text


@dataclass(frozen=True)
class Claim:
    """A sentence that can be tested. Subclasses hold the numbers a rule needs and know how to read them."""

    id: str
    says: str
    source: str  # "v1", "v2", "v1 and v2" (abstracts of arXiv 2512.20821), or "ours"

    @property
    def rule(self) -> str:
        """The rule in words."""
        raise NotImplementedError

    def named(self, study: Study) -> tuple[str, ...]:
        """The systems its rule speaks of; a profile may leave some out."""
        raise NotImplementedError

    def stages(self, study: Study) -> list[str]:
        """The records it needs, of the systems that the profile has."""
        raise NotImplementedError

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        """The numbers of all seeds, each read by the rule; none if too few of its systems are there."""
        raise NotImplementedError

    def there(self, study: Study) -> list[str]:
        """Those of `named` that the profile has."""
        return [name for name in self.named(study) if name == BEST_EXPERT or name in all_recipes(study)]


@dataclass(frozen=True)
class Beats(Claim):
    """The first system keeps more images than each of the others."""

    system: str = "dwf"
    others: tuple[str, ...] = ()
    columns: tuple[str, ...] = (PGD_WORST_CASE,)  # "clean", "FGSM" or the worst of the basic attacks

    @property
    def rule(self) -> str:
        return (
            f"{self.system} minus each of {', '.join(self.others)} ({', '.join(self.columns)}): supported if every "
            f"{INTERVAL} lies above zero, not supported if any lies below {CORRECTED}, else undecided"
        )

    def named(self, study: Study) -> tuple[str, ...]:
        return (self.system, *self.others)

    def stages(self, study: Study) -> list[str]:
        return main_table_stages(study, self.there(study))

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        found = []
        system, *others = self.there(studies[0]) or [""]
        if system != self.system:
            return []
        for column in self.columns:
            ours = outcomes_over_seeds(studies, system, column)
            for other in others:
                value = difference_over_seeds(ours, outcomes_over_seeds(studies, other, column))
                found.append((f"{self.system} - {other}, {column}", value))
        sides = directions([value for _, value in found])
        return [
            Evidence(
                what,
                value,
                SUPPORTED if value.low > 0 else REFUTED if side < 0 else UNDECIDED,
                points(value.difference, value.low, value.high),
            )
            for (what, value), side in zip(found, sides, strict=True)
        ]


@dataclass(frozen=True)
class Collapse(Claim):
    """Each system falls below chance under attack though it was right on clean images."""

    systems: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        return (
            f"{PGD_WORST_CASE} of each of {', '.join(self.systems)}: supported if every {INTERVAL} lies below chance "
            f"(one over the number of classes) and that of clean accuracy above {100 * LEARNED:g} % of the way from "
            "chance to 1, "
            "because only a network that has learned has something to lose; not supported if any lies above chance "
            f"{CORRECTED}, else undecided"
        )

    def named(self, study: Study) -> tuple[str, ...]:
        return self.systems

    def stages(self, study: Study) -> list[str]:
        return ["data", *main_table_stages(study, self.there(study))]

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        chance = 1 / len(studies[0].classes)
        learned = chance + LEARNED * (1 - chance)
        systems = self.there(studies[0])
        left, clean = (
            [accuracy_over_seeds(outcomes_over_seeds(studies, system, column)) for system in systems]
            for column in (PGD_WORST_CASE, "clean")
        )
        found = []
        for system, after, before, side in zip(systems, left, clean, directions(left, chance), strict=True):
            falls = after.high < chance and before.low > learned
            reading = SUPPORTED if falls else REFUTED if side > 0 else UNDECIDED
            shown = f"{share(after)} left of {share(before)}"
            found.append(Evidence(f"{system}, {PGD_WORST_CASE} of clean", after, reading, shown))
        return found


@dataclass(frozen=True)
class Grows(Claim):
    """Training cost rises with the number of experts, an answer's linearly, and an answer stays far cheaper."""

    systems: tuple[str, ...] = ()  # with more and more experts

    @property
    def rule(self) -> str:
        return (
            f"counted for {', '.join(self.systems)}: supported if training passes rise with each, the operations each "
            "further expert adds to an answer lie within 10 % of each other, and answering the training set once costs "
            "less than 1 % of training; not supported if any of the three fails"
        )

    def named(self, study: Study) -> tuple[str, ...]:
        return self.systems

    def stages(self, study: Study) -> list[str]:
        recipes = all_recipes(study)
        return [f"train:{name}" for system in self.there(study) for name in (*recipes[system].starts_from, system)]

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        if len(self.there(studies[0])) < len(self.systems):  # a line needs all of its points
            return []
        rows = [growth(study, self.systems) for study in studies]
        rises = all((row["training cost"].diff().dropna() > 0).all() for row in rows)
        # Steps from one mixture to the next: the gate, the same in all, drops out.
        each = pd.concat([row["inference cost"].diff() / row["experts"].diff() for row in rows]).dropna()
        linear = bool(each.min() > 0 and each.max() <= 1.1 * each.min())
        once = max(float((row["inference cost"] / row["training cost"]).max()) for row in rows)
        costs = ", ".join(f"{cost:.0f}" for cost in rows[0]["training cost"])
        spread = f"{each.min():.2f} to {each.max():.2f} answers of a ResNet-18 for each further expert"
        return [
            Evidence("training cost, clean epochs of one ResNet-18", None, SUPPORTED if rises else REFUTED, costs),
            Evidence("answer", None, SUPPORTED if linear else REFUTED, spread),
            Evidence("answers over training", None, SUPPORTED if once < 0.01 else REFUTED, f"{once:.2%} at most"),
        ]


@dataclass(frozen=True)
class Survives(Claim):
    """What PGD decides between the first system and each of the others, everything together decides as well."""

    system: str = "dwf"

    @property
    def rule(self) -> str:
        return (
            f"of the systems that face AutoAttack, those that PGD separates from {self.system} {CORRECTED}: supported "
            f"if the {WORST_CASE} separates every one in the same direction ({INTERVAL} off zero), not supported if "
            "any in the other after the same correction, else undecided"
        )

    def named(self, study: Study) -> tuple[str, ...]:
        faced = autoattack_systems(study.profile)
        return (self.system, *(name for name in faced if name != self.system))

    def stages(self, study: Study) -> list[str]:
        experts = [f"train:{name}" for name in EXPERTS]
        if study.missing(experts):  # which of them is the best is not known yet
            return experts
        return stress_stages(study, self.named(study))

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        pgd = column_of(headline(studies[0].profile.evaluation))
        others = self.named(studies[0])[1:]

        def differences(column: str, others: Sequence[str]) -> list[DifferenceOverSeeds]:
            ours = outcomes_over_seeds(studies, self.system, column)
            return [difference_over_seeds(ours, outcomes_over_seeds(studies, other, column)) for other in others]

        first = differences(pgd, others)
        # What PGD separates by luck has no ranking to lose, so here too the number of comparisons counts.
        apart = [(o, was, side) for o, was, side in zip(others, first, directions(first), strict=True) if side]
        worst = differences(WORST_CASE, [other for other, _, _ in apart])
        found = []
        for (other, was, side), now, then in zip(apart, worst, directions(worst), strict=True):
            same = now.low > 0 if side > 0 else now.high < 0
            reading = SUPPORTED if same else REFUTED if then == -side else UNDECIDED
            shown = f"{points(now.difference, now.low, now.high)} ({pgd} {signed(was.difference)})"
            found.append(Evidence(f"{self.system} - {other}, {WORST_CASE}", now, reading, shown))
        return found
