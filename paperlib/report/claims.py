"""What the paper claims, as data: each claim with the rule that decides it, and the verdict the records give.

The rules were written before the numbers. A verdict is *supported*, *not supported*, *undecided* or *not run*.

A claim that needs all of its comparisons is an intersection-union test: each is held against its own interval, and
their number calls for no correction. One comparison is enough against it, so those are corrected for their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from paperlib.config.load import profile_names
from paperlib.evaluation import LEVEL, OverSeeds, directions, headline, over_runs, over_seeds
from paperlib.paths import published_dir
from paperlib.pipeline.published import INDEX
from paperlib.pipeline.stages import facing
from paperlib.pipeline.study import Study
from paperlib.report import tables
from paperlib.report.outcomes import BASIC, BEST, WORST
from paperlib.systems.experts import EXPERTS
from paperlib.systems.singles import BACKBONES, STRONGEST

SUPPORTED, REFUTED, UNDECIDED, NOT_RUN = "supported", "not supported", "undecided", "not run"
SEEDS = 3  # an accuracy is decided by no fewer
LEARNED = 0.25  # of the way from chance to every image right: what a network must reach to have something to lose
INTERVAL = f"{100 * (1 - LEVEL):g} % interval"
# Two-sided, so that a claim of one comparison is decided by its interval, in either direction alike.
CORRECTED = f"after correction for their number (Holm, two-sided, {100 * LEVEL:g} % in all)"
PLAIN = ("plain", *(f"plain-{name}" for name in BACKBONES))
MOE_DEFENCES = ("soe", "soe-own", "soe-moe", "advmoe", "advmoe-own", "more", "more-own")


@dataclass(frozen=True)
class Evidence:
    """One number a verdict rests on, and how the rule reads it."""

    what: str
    value: OverSeeds | None  # None for a count that has no interval
    reading: str  # SUPPORTED, REFUTED or UNDECIDED
    shown: str  # the number as text


@dataclass(frozen=True)
class Verdict:
    """A claim, what the records say about it, and why."""

    claim: Claim
    verdict: str
    evidence: list[Evidence] = field(default_factory=list)
    why: str = ""
    seeds: int = 0  # where they are too few to decide: how many there are

    @property
    def text(self) -> str:
        """The verdict as tables print it, such as ``undecided (1 seed)``."""
        return f"{self.verdict} ({tables.so_many(self.seeds, 'seed')})" if self.seeds else self.verdict


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
        return [name for name in self.named(study) if name == BEST or name in tables.known(study)]


@dataclass(frozen=True)
class Beats(Claim):
    """The first system keeps more images than each of the others."""

    system: str = "dwf"
    others: tuple[str, ...] = ()
    columns: tuple[str, ...] = (BASIC,)  # "clean", "FGSM" or the worst of the basic attacks

    @property
    def rule(self) -> str:
        return (
            f"{self.system} minus each of {', '.join(self.others)} ({', '.join(self.columns)}): supported if every "
            f"{INTERVAL} lies above zero, not supported if any lies below {CORRECTED}, else undecided"
        )

    def named(self, study: Study) -> tuple[str, ...]:
        return (self.system, *self.others)

    def stages(self, study: Study) -> list[str]:
        return tables.stages_of(study, self.there(study))

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        found = []
        system, *others = self.there(studies[0]) or [""]
        if system != self.system:
            return []
        for column in self.columns:
            ours = tables.outcomes(studies, system, column)
            for other in others:
                value = over_seeds(ours, tables.outcomes(studies, other, column))
                found.append((f"{self.system} - {other}, {column}", value))
        sides = directions([value for _, value in found])
        return [
            Evidence(
                what,
                value,
                SUPPORTED if value.low > 0 else REFUTED if side < 0 else UNDECIDED,
                tables.points(value.difference, value.low, value.high),
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
            f"{BASIC} of each of {', '.join(self.systems)}: supported if every {INTERVAL} lies below chance (one over "
            f"the number of classes) and that of clean accuracy above {100 * LEARNED:g} % of the way from chance to 1, "
            "because only a network that has learned has something to lose; not supported if any lies above chance "
            f"{CORRECTED}, else undecided"
        )

    def named(self, study: Study) -> tuple[str, ...]:
        return self.systems

    def stages(self, study: Study) -> list[str]:
        return ["data", *tables.stages_of(study, self.there(study))]

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        chance = 1 / len(studies[0].classes)
        learned = chance + LEARNED * (1 - chance)
        systems = self.there(studies[0])
        left, clean = (
            [over_runs(tables.outcomes(studies, system, column)) for system in systems] for column in (BASIC, "clean")
        )
        found = []
        for system, after, before, side in zip(systems, left, clean, directions(left, chance), strict=True):
            falls = after.high < chance and before.low > learned
            reading = SUPPORTED if falls else REFUTED if side > 0 else UNDECIDED
            shown = f"{tables.share(after)} left of {tables.share(before)}"
            found.append(Evidence(f"{system}, {BASIC} of clean", after, reading, shown))
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
        known = tables.known(study)
        return [f"train:{name}" for system in self.there(study) for name in (*known[system].starts_from, system)]

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        if len(self.there(studies[0])) < len(self.systems):  # a line needs all of its points
            return []
        rows = [tables.growth(study, self.systems) for study in studies]
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
            f"if the {WORST} separates every one in the same direction ({INTERVAL} off zero), not supported if any in "
            "the other after the same correction, else undecided"
        )

    def named(self, study: Study) -> tuple[str, ...]:
        faced = [BEST if name == tables.stress_name(BEST) else name for name in facing(study.profile)]
        return (self.system, *(name for name in faced if name != self.system))

    def stages(self, study: Study) -> list[str]:
        experts = [f"train:{name}" for name in EXPERTS]
        if study.missing(experts):  # which of them is the best is not known yet
            return experts
        return tables.stress_stages_of(study, self.named(study))

    def read(self, studies: Sequence[Study]) -> list[Evidence]:
        pgd = tables.column_of(headline(studies[0].profile.evaluation))
        others = self.named(studies[0])[1:]

        def differences(column: str, others: Sequence[str]) -> list[OverSeeds]:
            ours = tables.outcomes(studies, self.system, column)
            return [over_seeds(ours, tables.outcomes(studies, other, column)) for other in others]

        first = differences(pgd, others)
        # What PGD separates by luck has no ranking to lose, so here too the number of comparisons counts.
        apart = [(o, was, side) for o, was, side in zip(others, first, directions(first), strict=True) if side]
        worst = differences(WORST, [other for other, _, _ in apart])
        found = []
        for (other, was, side), now, then in zip(apart, worst, directions(worst), strict=True):
            same = now.low > 0 if side > 0 else now.high < 0
            reading = SUPPORTED if same else REFUTED if then == -side else UNDECIDED
            shown = f"{tables.points(now.difference, now.low, now.high)} ({pgd} {tables.signed(was.difference)})"
            found.append(Evidence(f"{self.system} - {other}, {WORST}", now, reading, shown))
        return found


CLAIMS: tuple[Claim, ...] = (
    Collapse("collapse", "Plain networks collapse under small perturbations", "v1 and v2", PLAIN),
    Beats(
        "beats-moe-defences",
        "DWF beats other mixture-of-experts defences under FGSM and PGD",
        "v1 and v2",
        others=MOE_DEFENCES,
        columns=("FGSM", BASIC),
    ),
    Beats(
        "beats-bigger-backbones",
        "DWF beats plain classifiers with bigger backbones",
        "v1",
        others=PLAIN[1:],
        columns=("FGSM", BASIC),
    ),
    Beats(
        "clean-accuracy-too",
        "DWF is also the more accurate on clean images",
        "v1 (as summarised)",
        others=PLAIN[1:],
        columns=("clean",),
    ),
    Beats(
        "joint-training",
        "Training experts and gate jointly improves on frozen experts",
        "v1 and v2",
        others=("frozen",),
    ),
    Beats(
        "randomised-training",
        "Drawing eps and iterations per batch beats fixing them",
        "v2",
        system="ablation-base",
        others=("ablation-fixed",),
    ),
    Grows(
        "cost",
        "Training cost rises with the experts; an answer's grows linearly and stays far cheaper",
        "v1 and v2",
        ("ablation-1", "ablation-3", "ablation-5", "ablation-base"),
    ),
    Beats("pre-training", "Phase 1 pays: DWF beats joint training from scratch", "ours", others=("joint-scratch",)),
    Beats(
        "gate-adds",
        "The gate adds something over the uniform average and the best expert",
        "ours",
        system="frozen",
        others=("uniform", "best expert"),
    ),
    Beats("beats-one-network", "DWF beats one adversarially trained ResNet-18", "ours", others=("pgd-at", "trades")),
    Beats(
        "beats-equal-size",
        "DWF beats adversarially trained networks of its size",
        "ours",
        others=("pgd-at-wide", "pgd-at-ensemble", f"pgd-at-{STRONGEST}"),
    ),
    Survives("survives", "The ranking survives AutoAttack and attacks on gate and experts", "ours"),
)


def decide(claim: Claim, studies: Sequence[Study]) -> Verdict:
    """The verdict of the records of ``studies``, one study for each seed of a profile.

    Accuracies need at least three seeds: fewer runs cannot tell a method from chance (the interval of two covers too
    seldom where runs differ much), so the verdict stays undecided.
    """
    if not studies or any(study.missing(claim.stages(study)) for study in studies):
        return Verdict(claim, NOT_RUN, why="no records of this profile")
    evidence = claim.read(studies)
    if not evidence and claim.there(studies[0]) != list(claim.named(studies[0])):
        return Verdict(claim, NOT_RUN, why="its systems are left out of this profile")
    readings = {item.reading for item in evidence}
    if len(studies) < SEEDS and any(item.value for item in evidence):
        why = f"fewer than {SEEDS} seeds cannot tell a method from chance"
        return Verdict(claim, UNDECIDED, evidence, why, seeds=len(studies))
    if REFUTED in readings:
        return Verdict(claim, REFUTED, evidence)
    if absent := [name for name in claim.named(studies[0]) if name not in claim.there(studies[0])]:
        return Verdict(claim, UNDECIDED, evidence, f"left out of this profile: {', '.join(absent)}")
    return Verdict(claim, SUPPORTED if readings == {SUPPORTED} else UNDECIDED, evidence)


def verdicts(studies: Sequence[Study]) -> list[Verdict]:
    """`decide` for every claim."""
    return [decide(claim, studies) for claim in CLAIMS]


def published_profiles() -> list[str]:
    """The profiles that have published records."""
    return [name for name in profile_names() if (published_dir(name) / INDEX).is_file()]


def published_runs() -> dict[str, list[Study]]:
    """Every published run, by profile."""
    return {name: Study(name, local=False).runs for name in published_profiles()}


def runs_to_compare(study: Study) -> dict[str, list[Study]]:
    """In replay every published run, by profile; without replay the runs of this study alone."""
    return published_runs() if study.replay else {study.profile.name: study.runs}


def side_by_side(runs: Mapping[str, Sequence[Study]]) -> pd.DataFrame:
    """The verdict of each claim by profile, over all runs of each; the heading names the data and counts the seeds."""
    columns: dict[str, dict[str, str]] = {}
    for name, studies in runs.items():
        label = studies[0].fingerprint.split(":")[0] if studies else "no records"
        found = verdicts(studies)
        columns[f"{name} ({label}, {tables.so_many(len(studies), 'seed')})"] = {v.claim.id: v.text for v in found}
    told = {key: {claim.id: getattr(claim, key) for claim in CLAIMS} for key in ("says", "source")}
    return pd.DataFrame({**told, **columns}).rename_axis("claim")


def description(found: Verdict) -> str:
    """A claim told in full: sentence, source, rule, numbers, verdict."""
    claim = found.claim
    lines = [f"{claim.id}: {claim.says} ({claim.source})", f"  rule     {claim.rule}"]
    lines += [f"  {item.reading:<13}  {item.what}: {item.shown}" for item in found.evidence]
    return "\n".join([*lines, f"  VERDICT  {found.text}{found.why and ' (' + found.why + ')'}"])


def differences_frame(found: Sequence[Verdict]) -> pd.DataFrame:
    """The differences behind the verdicts, for a figure: one row each."""
    rows = [
        {
            "claim": v.claim.id,
            "compared": item.what.removesuffix(f", {BASIC}"),
            "difference": item.value.difference,
            "low": item.value.low,
            "high": item.value.high,
        }
        for v in found
        for item in v.evidence
        if item.value and isinstance(v.claim, Beats)
    ]
    return pd.DataFrame(rows, columns=["claim", "compared", "difference", "low", "high"]).set_index("compared")


def verdicts_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """One row per claim: what it says, where it is from, the verdict, and how many of its numbers speak for it."""
    rows = []
    for v in found:
        count = {r: sum(item.reading == r for item in v.evidence) for r in (SUPPORTED, REFUTED, UNDECIDED)}
        told = f"{count[SUPPORTED]} for, {count[REFUTED]} against, {count[UNDECIDED]} open" if v.evidence else v.why
        rows.append(
            {"claim": v.claim.id, "says": v.claim.says, "source": v.claim.source, "verdict": v.text, "numbers": told}
        )
    return pd.DataFrame(rows).set_index("claim")


def evidence_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """Every number every verdict rests on, with seeds and n."""
    rows = [
        {
            "claim": v.claim.id,
            "compared": item.what,
            "result": item.shown,
            "seeds": item.value.seeds if item.value else "",
            "n": item.value.n if item.value else "",
            "reading": item.reading,
        }
        for v in found
        for item in v.evidence
    ]
    columns = ["claim", "compared", "result", "seeds", "n", "reading"]
    return pd.DataFrame(rows, columns=columns).set_index(["claim", "compared"])


def power_note(studies: Sequence[Study], others: Sequence[str]) -> str:
    """Which differences from DWF the records can resolve: the halves of the intervals, and what they are made of."""
    ours = tables.outcomes(studies, "dwf", BASIC)
    found = [over_seeds(ours, tables.outcomes(studies, other, BASIC)) for other in others]
    halves = pd.Series([(value.high - value.low) / 2 for value in found])
    images = pd.Series([value.from_images for value in found])
    runs = pd.Series([value.from_runs for value in found])
    # 80 % power at 5 %: the true difference must lie a half-width and 0.84 standard errors away from zero.
    total = (images**2 + runs.fillna(0) ** 2) ** 0.5
    spread = f"{100 * runs.median():.1f}" if len(studies) > 1 else "unknown with one seed"
    return (
        f"{tables.so_many(found[0].seeds, 'seed')}, n = {found[0].n} images each. Half-widths of the 95 % intervals of "
        f"{len(found)} differences: {100 * halves.min():.1f} to {100 * halves.max():.1f} points, median "
        f"{100 * halves.median():.1f}. Standard error from the images {100 * images.median():.1f} points, from the "
        f"training runs {spread} (medians). A true difference of {100 * (halves + 0.84 * total).median():.1f} points "
        "would be found four times out of five; a smaller one is likely to read as undecided, whatever its sign."
    )
