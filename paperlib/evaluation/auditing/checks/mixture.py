"""Checks of mixtures of experts: attacks on experts and gate, and the contribution of the gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paperlib.attacks.mixture import LAMBDAS
from paperlib.evaluation.auditing.checks.check import (
    FAILS,
    NOT_APPLICABLE,
    NOTED,
    PASSES,
    CheckResult,
    check,
    fail_if_stronger,
    is_lower,
    percent,
)
from paperlib.evaluation.auditing.context import AuditContext, share
from paperlib.evaluation.robustness import evaluate
from paperlib.evaluation.specs import AttackSpec
from paperlib.models.mixture import mixed


def _attacks_where(context: AuditContext, selects: Callable[[str], bool], why: str) -> CheckResult:
    """Fail if one of the attacks with the selected objectives is much stronger than the claim."""
    accuracies = {
        objective: context.accuracy(context.with_objective(objective))
        for objective in context.objectives
        if selects(objective)
    }
    if not accuracies:
        return CheckResult(NOT_APPLICABLE, "no such part")
    return fail_if_stronger(context, accuracies, why)


@check(16, "Do attacks on the experts do better?", "5 points below the claim (RA-E)")
def experts(context: AuditContext) -> CheckResult:
    return _attacks_where(
        context, lambda objective: objective.startswith("expert"), "attacking its experts directly is much stronger"
    )


@check(17, "Do attacks on the gate do better?", "5 points below the claim (RA-R)")
def gate(context: AuditContext) -> CheckResult:
    names = ("gate to", "two-stage", *(f"joint {weight:g}" for weight in LAMBDAS))
    return _attacks_where(context, lambda objective: objective.startswith(names), "attacking its gate is much stronger")


@check(18, "Do attacks that ignore the gate do better?", "5 points below the claim (He et al.)")
def past_gate(context: AuditContext) -> CheckResult:
    return _attacks_where(
        context,
        lambda objective: objective in ("gate held", "gate uniform"),
        "attacks that ignore its gate are much stronger",
    )


@check(20, "Do attacks through a hard choice do better?", "5 points below the claim (BPDA)")
def choice(context: AuditContext) -> CheckResult:
    why = "its hard routing blocks gradients, and attacks on a differentiable surrogate are much stronger"
    return _attacks_where(context, lambda objective: objective.startswith("soft"), why)


@check(13, "Does the gate use its experts?", "none above 0.95; noted below 0.01")
def collapse(context: AuditContext) -> CheckResult:
    if not context.has_experts:
        return CheckResult(NOT_APPLICABLE, "no gate")
    means = torch.cat([context.gate_output("gate_weights", x) for x in (context.x, context.pgd_result.images)]).mean(
        dim=0
    )
    value = f"mean weights {float(means.min()):.3f} to {float(means.max()):.3f}"
    unused = int((means < 0.01).sum())
    if float(means.max()) > 0.95:
        return CheckResult(FAILS, value, f"expert {int(means.argmax())} has nearly all weight, as if it were alone")
    return CheckResult(NOTED, value, f"{unused} of its experts are unused") if unused else CheckResult(PASSES, value)


class _Variant(nn.Module):
    """A mixture without the expert ``without``, or with equal weights of all experts if it is None."""

    def __init__(self, model: nn.Module, without: int | None) -> None:
        super().__init__()
        self.model, self.without = model, without

    def forward(self, x: Tensor) -> Tensor:
        output = self.model.forward_with_experts(x)  # type: ignore[operator]
        gate_logits = torch.zeros_like(output.gate_logits) if self.without is None else output.gate_logits
        used = [i for i in range(gate_logits.shape[1]) if i != self.without]
        return mixed(self.model, output.expert_logits[:, used], torch.log_softmax(gate_logits[:, used], dim=1))


def _accuracy(context: AuditContext, model: nn.Module, spec: AttackSpec) -> float:
    result = evaluate(model, context.split, spec, seed=context.seed, batch_size=context.batch_size, label=context.label)
    return share(result.correct)


@check(19, "Is the benign expert a weak link?", "noted if leaving it out helps by 1 point")
def weak_link(context: AuditContext) -> CheckResult:
    if not context.has_experts or context.benign is None:
        return CheckResult(NOT_APPLICABLE, "no expert is named as benign")
    without = _accuracy(context, _Variant(context.model, context.benign), context.pgd)
    complete = context.accuracy(context.pgd)
    value = f"PGD without it {percent(without)}, with it {percent(complete)}"
    if is_lower(context, complete, without, 0.01):
        return CheckResult(NOTED, value, "without its benign expert the mixture is more robust")
    return CheckResult(PASSES, value)


@check(27, "Does the gate beat a plain average of the experts?", "noted if not")
def compared(context: AuditContext) -> CheckResult:
    size = sum(parameter.numel() for parameter in context.model.parameters())
    if not context.has_experts:
        return CheckResult(
            NOT_APPLICABLE, f"{size:,} parameters", "compare it with a system of equal size and training cost"
        )
    average = _accuracy(context, _Variant(context.model, None), context.pgd)
    gated = context.accuracy(context.pgd)
    value = f"{size:,} parameters; PGD {percent(gated)}, with equal weights {percent(average)}"
    if gated <= average:
        return CheckResult(NOTED, value, "the gate does not increase the accuracy under PGD")
    return CheckResult(PASSES, value)
