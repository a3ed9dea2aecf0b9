"""Checks of the reported accuracy: checkpoint selection, sample size, plausibility."""

from __future__ import annotations

from paperlib.config.budgets import budget_text
from paperlib.evaluation.auditing.checks.check import (
    NOT_APPLICABLE,
    NOT_RUN,
    NOTED,
    PASSES,
    CheckResult,
    check,
    fail_if,
    percent,
)
from paperlib.evaluation.auditing.context import AuditContext, interval, share

CIFAR_BEST = 0.59  # best accuracy of ResNet-18 without extra data, CIFAR-10 at 8/255 (RobustBench)


@check(25, "Was the checkpoint chosen on these images?", "1 % of the images (ADVMoE's code)")
def selection(context: AuditContext) -> CheckResult:
    if context.selected_on is None:
        return CheckResult(NOT_RUN, "", "the images used to select the checkpoint were not passed in (selected_on)")
    selection_images = {image.numpy().tobytes() for image in context.selected_on.detach().cpu().float()}
    shared = sum(image.numpy().tobytes() in selection_images for image in context.x.cpu().float())
    value = f"{shared} of {context.n} images were also used to select the checkpoint"
    return fail_if(shared > 0.01 * context.n, value, "the checkpoint was selected on the images it is evaluated on")


@check(26, "Are there images enough?", "noted below 1,000")
def sample(context: AuditContext) -> CheckResult:
    low, high = interval(context.surviving())
    value = f"n = {context.n}, interval of {100 * (high - low):.1f} points"
    return CheckResult(NOTED, value, "fewer than 1,000 images") if context.n < 1000 else CheckResult(PASSES, value)


@check(28, "Is it too good to be true?", "59 % on CIFAR-10 at 8/255 (RobustBench)")
def too_good(context: AuditContext) -> CheckResult:
    cifar = tuple(context.x.shape[1:]) == (3, 32, 32) and context.classes == 10 and budget_text(context.eps) == "8/255"
    if not cifar:
        return CheckResult(NOT_APPLICABLE, "reference values exist for CIFAR-10 at 8/255 only")
    worst = share(context.surviving())
    value = f"worst case {percent(worst)}, best published {percent(CIFAR_BEST)}"
    why = "higher than any published ResNet-18 without extra data: look for an error in the evaluation first"
    return fail_if(worst > CIFAR_BEST, value, why)
