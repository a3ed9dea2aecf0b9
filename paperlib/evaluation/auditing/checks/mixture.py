"""Checks of mixtures of experts: attacks on experts and gate, and what the gate contributes."""

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
    adaptive,
    check,
    lost,
    percent,
)
from paperlib.evaluation.auditing.context import AuditContext, share
from paperlib.evaluation.robustness import evaluate
from paperlib.evaluation.specs import AttackSpec
from paperlib.models.mixture import mixed


def _among(context: AuditContext, wanted: Callable[[str], bool], why: str) -> CheckResult:
    found = {
        objective: context.accuracy(context.with_objective(objective))
        for objective in context.objectives
        if wanted(objective)
    }
    if not found:
        return CheckResult(NOT_APPLICABLE, "no such part")
    return adaptive(context, found, why)


@check(16, "Do attacks on the experts do better?", "5 points below the claim (RA-E)")
def experts(context: AuditContext) -> CheckResult:
    return _among(
        context, lambda objective: objective.startswith("expert"), "attacking its experts directly does much better"
    )


@check(17, "Do attacks on the gate do better?", "5 points below the claim (RA-R)")
def gate(context: AuditContext) -> CheckResult:
    names = ("gate to", "two-stage", *(f"joint {weight:g}" for weight in LAMBDAS))
    return _among(context, lambda objective: objective.startswith(names), "steering its gate does much better")


@check(18, "Do attacks that ignore the gate do better?", "5 points below the claim (He et al.)")
def past_gate(context: AuditContext) -> CheckResult:
    return _among(
        context,
        lambda objective: objective in ("gate held", "gate uniform"),
        "attacking past its gate does much better",
    )


@check(20, "Do attacks through a hard choice do better?", "5 points below the claim (BPDA)")
def choice(context: AuditContext) -> CheckResult:
    why = "its experts are picked by a choice no gradient passes; through a soft stand-in little is left"
    return _among(context, lambda objective: objective.startswith("soft"), why)


@check(13, "Does the gate use its experts?", "none above 0.95; noted below 0.01")
def collapse(context: AuditContext) -> CheckResult:
    if not context.mixture:
        return CheckResult(NOT_APPLICABLE, "no gate")
    means = torch.cat([context.mixture_output("gate_weights", x) for x in (context.x, context.headline.images)]).mean(
        dim=0
    )
    told = f"mean weights {float(means.min()):.3f} to {float(means.max()):.3f}"
    quiet = int((means < 0.01).sum())
    if float(means.max()) > 0.95:
        return CheckResult(FAILS, told, f"expert {int(means.argmax())} answers for all: the mixture is one network")
    return CheckResult(NOTED, told, f"{quiet} of its experts are never heard") if quiet else CheckResult(PASSES, told)


class _Other(nn.Module):
    """A mixture with some experts unheard, or with all heard alike."""

    def __init__(self, model: nn.Module, without: int | None) -> None:
        super().__init__()
        self.model, self.without = model, without

    def forward(self, x: Tensor) -> Tensor:
        seen = self.model.forward_with_experts(x)  # type: ignore[operator]
        gate_logits = torch.zeros_like(seen.gate_logits) if self.without is None else seen.gate_logits
        kept = [i for i in range(gate_logits.shape[1]) if i != self.without]
        return mixed(self.model, seen.expert_logits[:, kept], torch.log_softmax(gate_logits[:, kept], dim=1))


def _kept(context: AuditContext, model: nn.Module, spec: AttackSpec) -> float:
    found = evaluate(
        model,
        context.split,
        spec,
        seed=context.seed,
        batch_size=context.batch_size,
        label=context.label,
    )
    return share(found.correct)


@check(19, "Is the benign expert a weak link?", "noted if leaving it out helps by 1 point")
def weak_link(context: AuditContext) -> CheckResult:
    if not context.mixture or context.benign is None:
        return CheckResult(NOT_APPLICABLE, "no expert is known as benign")
    rest, ours = _kept(context, _Other(context.model, context.benign), context.pgd), context.accuracy(context.pgd)
    told = f"without it PGD leaves {percent(rest)}, with it {percent(ours)}"
    if lost(context, rest, ours, 0.01):
        return CheckResult(NOTED, told, "without its benign expert the mixture is more robust")
    return CheckResult(PASSES, told)


@check(27, "Does the gate beat a plain average of the experts?", "noted if not")
def compared(context: AuditContext) -> CheckResult:
    size = sum(parameter.numel() for parameter in context.model.parameters())
    if not context.mixture:
        return CheckResult(
            NOT_APPLICABLE, f"{size:,} parameters", "compare it with what as much training and size can do"
        )
    even, ours = _kept(context, _Other(context.model, None), context.pgd), context.accuracy(context.pgd)
    told = f"{size:,} parameters; PGD leaves {percent(ours)}, of its experts' plain average {percent(even)}"
    return CheckResult(NOTED if ours <= even else PASSES, told, "the gate adds nothing here" if ours <= even else "")
