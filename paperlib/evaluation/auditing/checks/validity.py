"""Checks of the model itself: whether its accuracy under attack can be measured."""

from __future__ import annotations

import torch
from torch import Tensor

from paperlib.acceleration.memory import in_batches
from paperlib.arguments import logits_of
from paperlib.attacks.objectives import cross_entropy_loss, dlr_loss
from paperlib.evaluation.auditing.checks.check import FAILS, CheckResult, check, fail_if
from paperlib.evaluation.auditing.context import AuditContext
from paperlib.evaluation.auditing.training_mode import SAME_LOGITS, Difference, difference_in_training_mode
from paperlib.models.modes import eval_mode
from paperlib.seeds import cpu_generator, uniform
from paperlib.shapes import Images, Logits


@check(12, "Are weights, answers and gradients numbers?", "all finite (ADVMoE's NaN router)")
def finite(context: AuditContext) -> CheckResult:
    broken = [
        name
        for name, value in (*context.model.named_parameters(), *context.model.named_buffers())
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        return CheckResult(FAILS, f"{broken[0]} and {len(broken) - 1} more", f"{broken[0]} holds NaN or infinity")
    outputs = {"logits": context.logits()}
    if context.has_experts:
        outputs["gate logits"] = context.gate_output("gate_logits", context.x)
    outputs["input gradients"] = context.gradient(context.x, cross_entropy_loss)
    broken = [name for name, value in outputs.items() if not bool(torch.isfinite(value).all())]
    why = f"its {' and '.join(broken)} hold NaN or infinity: no accuracy can be reported"
    return fail_if(bool(broken), f"weights, {', '.join(outputs)}", why)


@check(21, "Does it answer the same twice?", "1e-6 of the largest logit (AutoAttack's flag)")
def steady(context: AuditContext) -> CheckResult:
    first = context.logits()
    scale = max(1.0, float(first.abs().max()))
    difference = max(float((context.logits() - first).abs().max()) for _ in range(2)) / scale
    why = "its logits change from call to call: attack their expectation (EoT, AutoAttack's rand version)"
    return fail_if(difference > 1e-6, f"{difference:.1e} of the largest logit", why)


@check(22, "Does an answer depend on its batch or on being attacked?", "1e-4 of the largest logit")
def alone(context: AuditContext) -> CheckResult:
    training = [name or "the model" for name, module in context.model.named_modules() if module.training]
    if training:
        return CheckResult(
            FAILS, f"{training[0]} in training mode", f"{training[0]} is in training mode: call eval() on it"
        )
    count = min(context.n, 16)
    batched = context.logits()[:count]
    single = torch.cat([context.logits(context.x[i : i + 1]) for i in range(count)])
    scale = max(1.0, float(batched.abs().max()))
    batch_effect = float((batched - single).abs().max()) / scale
    if batch_effect > 1e-4:
        return CheckResult(
            FAILS, f"{batch_effect:.1e} of the largest logit", "its logits for an image depend on the rest of the batch"
        )
    mode_effect, text = max(_in_training_mode(context, context.x[:count], batched, scale))
    if mode_effect > SAME_LOGITS:
        why = "its own code reads the training flag: in training mode an attack is run on another network"
        return CheckResult(FAILS, text, why)

    def logits_with_gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return logits_of(context.model, x.requires_grad_()).detach()

    tracked = context.apply_in_batches(logits_with_gradient, context.x[:count])
    gradient_effect = float((tracked - batched).abs().max()) / scale
    why = "its logits change when input gradients are computed: it detects attacks"
    largest = max(batch_effect, mode_effect, gradient_effect)
    return fail_if(gradient_effect > 1e-4, f"{largest:.1e} of the largest logit", why)


def _in_training_mode(context: AuditContext, x: Images, logits: Logits, scale: float) -> list[Difference]:
    """`difference_in_training_mode` of each batch."""

    def compare(rows: slice) -> Difference:
        return difference_in_training_mode(context.model, x[rows], logits[rows], scale)

    return [difference for _, difference in in_batches(len(x), context.batch_size, context.unfolded, compare)]


@check(11, "Does it return logits?", "rows in [0, 1] that sum to 1 (AutoAttack's flag)")
def logits(context: AuditContext) -> CheckResult:
    output = context.logits()
    sum_error = float((output.sum(dim=1) - 1).abs().max())
    within = bool((output >= -1e-5).all()) and bool((output <= 1 + 1e-5).all())
    span = f"{float(output.min()):.3g} to {float(output.max()):.3g}"
    why = "it returns probabilities where attacks expect logits: return the layer before the softmax, or log(p)"
    return fail_if(within and sum_error < 1e-4, span, why)


@check(10, "Are there gradients to follow?", "none zero, median above 1e-8 (AutoAttack's flag)")
def gradients(context: AuditContext) -> CheckResult:
    losses = {"cross-entropy": cross_entropy_loss} | ({"DLR": dlr_loss} if context.classes >= 3 else {})
    texts, fails, correct = [], False, context.clean
    for name, loss in losses.items():
        # Of correct images only, because DLR is constant where the true class has the third largest logit.
        sizes = context.gradient(context.x, loss).flatten(1).abs().sum(dim=1)[correct]
        zeros, median = int((sizes == 0).sum()), float(sizes.median()) if len(sizes) else 1.0
        texts.append(f"{name}: {zeros} of {len(sizes)} zero, median {median:.1e}")
        fails = fails or zeros > 0 or median <= 1e-8
    why = "input gradients vanish, so gradient attacks fail: remove the cause, or attack a surrogate model (BPDA)"
    return fail_if(fails, "; ".join(texts), why)


@check(29, "Is the loss smooth around an image?", "10 % under noise of eps / 100 (Pintor et al.)")
def smooth(context: AuditContext) -> CheckResult:
    x = context.last_iterates
    noise = uniform(x.shape, cpu_generator(context.seed), x) * 2 - 1
    near = (x + noise * float(context.eps) / 100).clamp(0, 1)
    with eval_mode(context.model):
        loss, loss_near = (cross_entropy_loss(context.logits(images), context.y) for images in (x, near))
    change = float((loss_near - loss).abs().mean() / loss.mean().clamp_min(1e-12))
    why = "the loss jumps under noise of eps / 100, so its gradients are useless; average them over noise"
    return fail_if(change > 0.1, f"{change:.1%} of the loss", why)
