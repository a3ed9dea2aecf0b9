"""A check of the audit: its question, its threshold, and how its result is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paperlib.evaluation.auditing.context import AuditContext

PASSES, FAILS, NOTED, NOT_RUN, NOT_APPLICABLE = "passes", "FAILS", "noted", "not run", "not applicable"
# PGD and AutoAttack differ by 2 to 5 points on sound, adversarially trained networks (RobustBench's entries).
ADAPTIVE = 0.05
CHANCE_IMAGES = 2  # images by which one attack may beat another by chance


@dataclass(frozen=True)
class CheckResult:
    """The verdict of a check, the numbers behind it, and, unless it passes, the reason."""

    verdict: str
    value: str
    why: str = ""


@dataclass(frozen=True)
class Check:
    """One check of the audit.

    Attributes:
        row: its number in the list of pitfalls (docs/audit.md).
        name: such as ``one-step``.
        question: what it asks, in one sentence.
        threshold: what it allows. Thresholds are ours unless a source is named.
        run: the check itself.
    """

    row: int
    name: str
    question: str
    threshold: str
    run: Callable[[AuditContext], CheckResult]

    def __call__(self, context: AuditContext) -> CheckResult:
        return self.run(context)


def check(row: int, question: str, threshold: str) -> Callable[[Callable[[AuditContext], CheckResult]], Check]:
    """Make a function a `Check` of the same name; `paperlib.evaluation.auditing.checks` lists them in order."""

    def decorate(run: Callable[[AuditContext], CheckResult]) -> Check:
        return Check(row, run.__name__.replace("_", "-"), question, threshold, run)

    return decorate


def percent(value: float) -> str:
    """Such as ``62.8 %``."""
    return f"{100 * value:.1f} %"


def lost(context: AuditContext, weaker: float, stronger: float, points: float) -> bool:
    """Whether accuracy ``stronger`` is below ``weaker`` by more than ``points`` and more than `CHANCE_IMAGES`."""
    return round((weaker - stronger) * context.n) > max(points * context.n, CHANCE_IMAGES)


def claimed(context: AuditContext) -> float:
    """The accuracy claimed under attack; without a claim, the accuracy under PGD."""
    return context.accuracy(context.pgd) if context.claimed is None else context.claimed


def judged(fails: bool, value: str, why: str) -> CheckResult:
    """A result that fails with a reason, or passes."""
    return CheckResult(FAILS, value, why) if fails else CheckResult(PASSES, value)


def adaptive(context: AuditContext, accuracies: dict[str, float], why: str) -> CheckResult:
    """Fail if the strongest of several attacks leaves more than `ADAPTIVE` less than is claimed."""
    best, ours = min(accuracies, key=accuracies.__getitem__), claimed(context)
    value = f"{best}: {percent(accuracies[best])} of {percent(ours)} claimed"
    return judged(lost(context, ours, accuracies[best], ADAPTIVE), value, f"{why} ({best})")
