"""The form of a check of the audit, its result, and the comparisons that several checks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paperlib.evaluation.auditing.context import AuditContext

PASSES, FAILS, NOTED, NOT_RUN, NOT_APPLICABLE = "passes", "FAILS", "noted", "not run", "not applicable"
# By how much an adaptive attack may be stronger than the claim. On adversarially trained networks without gradient
# masking, AutoAttack is 2 to 5 points stronger than PGD (entries of RobustBench).
ADAPTIVE = 0.05
CHANCE_IMAGES = 2  # a difference of so many images between two attacks may be due to chance


@dataclass(frozen=True)
class CheckResult:
    """The verdict of a check, the measured numbers, and, unless it passes, the reason."""

    verdict: str
    value: str
    why: str = ""


@dataclass(frozen=True)
class Check:
    """One check of the audit.

    Attributes:
        row: the number of the check, from 1; reports list the checks in this order.
        name: such as ``one-step``.
        question: what the check tests, as a question.
        threshold: the condition for passing. It is our choice unless a source is named.
        run: the function that computes the result.
    """

    row: int
    name: str
    question: str
    threshold: str
    run: Callable[[AuditContext], CheckResult]

    def __call__(self, context: AuditContext) -> CheckResult:
        return self.run(context)


def check(row: int, question: str, threshold: str) -> Callable[[Callable[[AuditContext], CheckResult]], Check]:
    """Decorator that makes a function a `Check` with its name, "_" replaced by "-"; add it to `checks.CHECKS`."""

    def decorate(run: Callable[[AuditContext], CheckResult]) -> Check:
        return Check(row, run.__name__.replace("_", "-"), question, threshold, run)

    return decorate


def percent(value: float) -> str:
    """A fraction as text, such as ``62.8 %``."""
    return f"{100 * value:.1f} %"


def is_lower(context: AuditContext, accuracy: float, reference: float, margin: float) -> bool:
    """Whether ``accuracy`` is below ``reference`` by more than ``margin`` (all fractions) and than `CHANCE_IMAGES`."""
    return round((reference - accuracy) * context.n) > max(margin * context.n, CHANCE_IMAGES)


def claimed_accuracy(context: AuditContext) -> float:
    """The accuracy claimed under attack; without a claim, the accuracy under PGD."""
    return context.accuracy(context.pgd) if context.claimed is None else context.claimed


def fail_if(fails: bool, value: str, why: str) -> CheckResult:
    """The result of a check that fails for the reason ``why``, or passes."""
    return CheckResult(FAILS, value, why) if fails else CheckResult(PASSES, value)


def fail_if_stronger(context: AuditContext, accuracies: dict[str, float], why: str) -> CheckResult:
    """Fail if the accuracy under the strongest of several attacks is more than `ADAPTIVE` below the claim."""
    strongest, claim = min(accuracies, key=accuracies.__getitem__), claimed_accuracy(context)
    value = f"{strongest}: {percent(accuracies[strongest])} of {percent(claim)} claimed"
    return fail_if(is_lower(context, accuracies[strongest], claim, ADAPTIVE), value, f"{why} ({strongest})")
