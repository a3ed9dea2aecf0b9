"""The verdict of the records on each claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paperlib.config.load import profile_names
from paperlib.paths import published_dir
from paperlib.pipeline.published import INDEX
from paperlib.pipeline.study import Study
from paperlib.report.claims.claims import CLAIMS
from paperlib.report.claims.rules import NOT_RUN, REFUTED, SUPPORTED, UNDECIDED, Claim, Comparison
from paperlib.report.format import plural

SEEDS = 3  # the fewest with which an accuracy is decided


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, with its comparisons and, where it needs one, a reason."""

    claim: Claim
    verdict: str
    comparisons: list[Comparison] = field(default_factory=list)
    reason: str = ""
    seeds: int = 0  # their number where it is too small to decide, else 0

    @property
    def text(self) -> str:
        """The verdict as tables print it, such as ``undecided (1 seed)``."""
        return f"{self.verdict} ({plural(self.seeds, 'seed')})" if self.seeds else self.verdict


def decide(claim: Claim, studies: Sequence[Study]) -> Verdict:
    """The verdict of the records of ``studies``, one study for each seed of a profile.

    With fewer than three seeds a claim about accuracies is undecided: where runs differ much, the coverage of the
    interval from two runs is too low.
    """
    if not studies or any(study.missing(claim.stages(study)) for study in studies):
        return Verdict(claim, NOT_RUN, reason="no records of this profile")
    available = claim.available_systems(studies[0])
    absent = [name for name in claim.required_systems(studies[0]) if name not in available]
    comparisons = claim.compare(studies)
    if not comparisons and absent:
        return Verdict(claim, NOT_RUN, reason="its systems are left out of this profile")
    readings = {item.reading for item in comparisons}
    if len(studies) < SEEDS and any(item.value for item in comparisons):
        reason = f"fewer than {SEEDS} seeds cannot tell a method from chance"
        return Verdict(claim, UNDECIDED, comparisons, reason, seeds=len(studies))
    if REFUTED in readings:
        return Verdict(claim, REFUTED, comparisons)
    if absent:
        return Verdict(claim, UNDECIDED, comparisons, f"left out of this profile: {', '.join(absent)}")
    return Verdict(claim, SUPPORTED if readings == {SUPPORTED} else UNDECIDED, comparisons)


def verdicts(studies: Sequence[Study]) -> list[Verdict]:
    """`decide` for every claim."""
    return [decide(claim, studies) for claim in CLAIMS]


def published_profiles() -> list[str]:
    """The profiles that have published records."""
    return [name for name in profile_names() if (published_dir(name) / INDEX).is_file()]


def published_runs() -> dict[str, list[Study]]:
    """The published runs by profile."""
    return {name: Study(name, local=False).runs for name in published_profiles()}


def runs_to_compare(study: Study) -> dict[str, list[Study]]:
    """In replay the published runs of all profiles; without replay the runs of this study only."""
    return published_runs() if study.replay else {study.profile.name: study.runs}
