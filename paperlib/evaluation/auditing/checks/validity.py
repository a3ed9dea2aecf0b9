"""Checks of the model itself: is there an accuracy to measure at all?"""

from __future__ import annotations

import torch
from torch import Tensor

from paperlib.acceleration.memory import in_batches
from paperlib.arguments import logits_of
from paperlib.attacks.objectives import cross_entropy_loss, dlr_loss
from paperlib.evaluation.auditing.checks.check import FAILS, CheckResult, check, judged
from paperlib.evaluation.auditing.context import AuditContext
from paperlib.evaluation.auditing.training_mode import SAME_ANSWER, Difference, difference_in_training_mode
from paperlib.models.modes import eval_mode
from paperlib.seeds import cpu_generator, uniform


@check(12, "Are weights, answers and gradients numbers?", "all finite (ADVMoE's NaN router)")
def finite(context: AuditContext) -> CheckResult:
    named = [
        part
        for part, value in (*context.model.named_parameters(), *context.model.named_buffers())
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if named:
        return CheckResult(FAILS, f"{named[0]} and {len(named) - 1} more", f"{named[0]} holds NaN or infinity")
    found = {"answers": context.logits()}
    if context.mixture:
        found["gate scores"] = context.mixture_output("gate_logits", context.x)
    found["input gradients"] = context.gradient(context.x, cross_entropy_loss)
    broken = [what for what, value in found.items() if not bool(torch.isfinite(value).all())]
    why = f"its {' and '.join(broken)} hold NaN or infinity: nothing about it can be reported"
    return judged(bool(broken), f"weights, {', '.join(found)}", why)


@check(21, "Does it answer the same twice?", "1e-6 of the largest logit (AutoAttack's flag)")
def steady(context: AuditContext) -> CheckResult:
    first = context.logits()
    apart = max(float((context.logits() - first).abs().max()) for _ in range(2)) / max(1.0, float(first.abs().max()))
    why = "its answer changes from one call to the next: attack it in expectation (EoT, AutoAttack's rand version)"
    return judged(apart > 1e-6, f"{apart:.1e} of the largest logit", why)


@check(22, "Does an answer depend on its batch or on being attacked?", "1e-4 of the largest logit")
def alone(context: AuditContext) -> CheckResult:
    training = [name or "the model" for name, module in context.model.named_modules() if module.training]
    if training:
        return CheckResult(
            FAILS, f"{training[0]} in training mode", f"{training[0]} is in training mode: call eval() on it"
        )
    some = min(context.n, 16)
    together = context.logits()[:some]
    one_by_one = torch.cat([context.logits(context.x[i : i + 1]) for i in range(some)])
    size = max(1.0, float(together.abs().max()))
    apart = float((together - one_by_one).abs().max()) / size
    if apart > 1e-4:
        return CheckResult(
            FAILS, f"{apart:.1e} of the largest logit", "its answer to an image depends on the images beside it"
        )
    moved, moved_text = max(_in_training_mode(context, context.x[:some], together, size))
    if moved > SAME_ANSWER:
        why = "its own code reads the training flag: an attack run in the other mode meets another network"
        return CheckResult(FAILS, moved_text, why)

    def when_a_gradient_is_asked_for(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return logits_of(context.model, x.requires_grad_()).detach()

    watched = context.over(when_a_gradient_is_asked_for, context.x[:some])
    peeks = float((watched - together).abs().max()) / size
    why = "its answer changes when a gradient is asked for: it notices that it is attacked"
    return judged(peeks > 1e-4, f"{max(apart, moved, peeks):.1e} of the largest logit", why)


def _in_training_mode(context: AuditContext, x: Tensor, together: Tensor, size: float) -> list[Difference]:
    """`difference_in_training_mode` of each batch."""

    def of(rows: slice) -> Difference:
        return difference_in_training_mode(context.model, x[rows], together[rows], size)

    return [found for _, found in in_batches(len(x), context.batch_size, context.asked, of)]


@check(11, "Does it return logits?", "rows in [0, 1] that sum to 1 (AutoAttack's flag)")
def logits(context: AuditContext) -> CheckResult:
    answer = context.logits()
    total = float((answer.sum(dim=1) - 1).abs().max())
    within = bool((answer >= -1e-5).all()) and bool((answer <= 1 + 1e-5).all())
    span = f"{float(answer.min()):.3g} to {float(answer.max()):.3g}"
    why = "it returns probabilities where attacks expect logits: return the layer before the softmax, or log(p)"
    return judged(within and total < 1e-4, span, why)


@check(10, "Are there gradients to follow?", "none zero, median above 1e-8 (AutoAttack's flag)")
def gradients(context: AuditContext) -> CheckResult:
    losses = {"cross-entropy": cross_entropy_loss} | ({"DLR": dlr_loss} if context.classes >= 3 else {})
    told, fails, right = [], False, context.clean
    for name, loss in losses.items():
        # Of images it gets right: DLR is constant where the true class comes third.
        sizes = context.gradient(context.x, loss).flatten(1).abs().sum(dim=1)[right]
        none, median = int((sizes == 0).sum()), float(sizes.median()) if len(sizes) else 1.0
        told.append(f"{name}: {none} of {len(sizes)} zero, median {median:.1e}")
        fails = fails or none > 0 or median <= 1e-8
    why = "input gradients vanish, so gradient attacks go nowhere: remove what blocks them, or attack a stand-in (BPDA)"
    return judged(fails, "; ".join(told), why)


@check(29, "Is the loss smooth around an image?", "10 % under noise of eps / 100 (Pintor et al.)")
def smooth(context: AuditContext) -> CheckResult:
    x = context.last
    noise = uniform(x.shape, cpu_generator(context.seed), x) * 2 - 1
    near = (x + noise * float(context.eps) / 100).clamp(0, 1)
    with eval_mode(context.model):
        here, there = (cross_entropy_loss(context.logits(images), context.y) for images in (x, near))
    change = float((there - here).abs().mean() / here.mean().clamp_min(1e-12))
    why = "the loss jumps under noise a hundredth of eps: gradients of it point nowhere; average them over noise"
    return judged(change > 0.1, f"{change:.1%} of the loss", why)
