"""The verdict of the records on each claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paperlib.config.load import profile_names
from paperlib.paths import published_dir
from paperlib.pipeline.published import INDEX
from paperlib.pipeline.study import Study
from paperlib.report.claims.claims import CLAIMS
from paperlib.report.claims.rules import NOT_RUN, REFUTED, SUPPORTED, UNDECIDED, Claim, Evidence
from paperlib.report.format import so_many

SEEDS = 3  # an accuracy is decided by no fewer


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
        return f"{self.verdict} ({so_many(self.seeds, 'seed')})" if self.seeds else self.verdict


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
