"""Checks of the reported number: selection, sample size, plausibility."""

from __future__ import annotations

from paperlib.config.budgets import budget_text
from paperlib.evaluation.auditing.checks.check import (
    NOT_APPLICABLE,
    NOT_RUN,
    NOTED,
    PASSES,
    CheckResult,
    check,
    judged,
    percent,
)
from paperlib.evaluation.auditing.context import AuditContext, interval, share

CIFAR_BEST = 0.59  # of ResNet-18 without further data at 8/255 on CIFAR-10 (RobustBench)


@check(25, "Was the checkpoint chosen on these images?", "1 % of the images (ADVMoE's code)")
def selection(context: AuditContext) -> CheckResult:
    if context.selected_on is None:
        return CheckResult(NOT_RUN, "", "the images that chose the checkpoint were not given (selected_on)")
    chosen = {image.numpy().tobytes() for image in context.selected_on.detach().cpu().float()}
    shared = sum(image.numpy().tobytes() in chosen for image in context.x.cpu().float())
    told = f"{shared} of {context.n} images also chose the checkpoint"
    return judged(shared > 0.01 * context.n, told, "the checkpoint was chosen on the images it is judged on")


@check(26, "Are there images enough?", "noted below 1,000")
def sample(context: AuditContext) -> CheckResult:
    low, high = interval(context.surviving())
    told = f"n = {context.n}, interval of {100 * (high - low):.1f} points"
    return CheckResult(NOTED, told, "smoke: fewer than 1,000 images") if context.n < 1000 else CheckResult(PASSES, told)


@check(28, "Is it too good to be true?", "59 % on CIFAR-10 at 8/255 (RobustBench)")
def too_good(context: AuditContext) -> CheckResult:
    cifar = tuple(context.x.shape[1:]) == (3, 32, 32) and context.classes == 10 and budget_text(context.eps) == "8/255"
    if not cifar:
        return CheckResult(NOT_APPLICABLE, "known for CIFAR-10 at 8/255")
    left = share(context.surviving())
    why = "more than any ResNet-18 without further data is known to keep: find the mistake first"
    return judged(left > CIFAR_BEST, f"{percent(left)} left; the best known keep {percent(CIFAR_BEST)}", why)
