"""Checks of the attack: whether it was strong enough, and run on this model."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import nn

from paperlib.attacks.autoattack import CLASSES, STANDARD
from paperlib.attacks.objectives import cross_entropy_loss
from paperlib.config.budgets import budget_text
from paperlib.errors import InputError
from paperlib.evaluation.auditing.checks.check import (
    CHANCE_IMAGES,
    FAILS,
    NOT_RUN,
    NOTED,
    PASSES,
    CheckResult,
    check,
    claimed_accuracy,
    fail_if,
    fail_if_stronger,
    is_lower,
    percent,
)
from paperlib.evaluation.auditing.context import CURVE, TAIL, AuditContext, interval, share
from paperlib.evaluation.specs import fgsm_spec, noise_spec, square_spec
from paperlib.models.modes import eval_mode
from paperlib.seeds import cpu_generator, uniform

SQUARE = STANDARD.index("square") + 1  # the number of Square in `AuditContext.fooled_by`


@check(1, "Do many steps beat one?", "0.5 points at every eps (Athalye et al.)")
def iterations(context: AuditContext) -> CheckResult:
    budgets = [context.eps, *(eps for eps in CURVE if eps != context.eps)]
    pairs = {eps: (context.accuracy(fgsm_spec(eps)), context.accuracy(context.at(eps))) for eps in budgets}
    worst = max(pairs, key=lambda eps: pairs[eps][1] - pairs[eps][0])
    fgsm, pgd = pairs[worst]
    value = f"FGSM {percent(fgsm)}, PGD {percent(pgd)} at eps {budget_text(worst)}"
    why = "one step is stronger than many steps, so the gradients are misleading"
    return fail_if(is_lower(context, fgsm, pgd, 0.005), value, why)


@check(2, "Had the attack converged?", "1 point below the claim; 5 % of the rise in 10 steps")
def converged(context: AuditContext) -> CheckResult:
    longer = replace(context.pgd, steps=2 * context.pgd.steps, restarts=context.audit_budget.restarts)
    surviving = context.correct_among(longer, context.correct(context.pgd))
    context.outcomes.setdefault(longer.name, surviving)
    claim, accuracy, rise = claimed_accuracy(context), share(surviving), 0.0
    if bool(surviving.any()):
        losses = context.losses(surviving)
        span = max(losses) - min(losses)
        rise = (losses[-1] - losses[-1 - min(TAIL, len(losses) - 1)]) / span if span > 0 else 0.0
    settings = f"{longer.steps} steps, {longer.restarts} starts"
    value = f"{settings}: {percent(accuracy)} of {percent(claim)} claimed; last rise of the loss {rise:.3f}"
    why = "the attack had not converged: more steps or restarts are stronger"
    return fail_if(is_lower(context, accuracy, claim, 0.01) or rise > 0.05, value, why)


@check(3, "Does accuracy fall with eps, to chance?", "monotone; chance + 2 points at 128/255")
def falls(context: AuditContext) -> CheckResult:
    budgets = sorted({*CURVE, context.eps})
    curve = [share(context.clean), *(context.accuracy(context.at(eps)) for eps in budgets)]
    rises = any(is_lower(context, at_smaller, at_larger, 0.0) for at_smaller, at_larger in itertools.pairwise(curve))
    last, chance = curve[-1], 1 / context.classes
    above_chance = is_lower(context, chance, last, 0.02)
    value = ", ".join(f"{budget_text(eps)}: {percent(a)}" for eps, a in zip(budgets, curve[1:], strict=True))
    why = (
        "accuracy rises with eps"
        if rises
        else f"{percent(last)} are correct at eps {budget_text(budgets[-1])}, above chance, so the attacks fail"
    )
    return fail_if(rises or above_chance, value, why)


@check(4, "Do attacks unlike those of training do better?", "claim in AutoAttack's interval")
def autoattack(context: AuditContext) -> CheckResult:
    if not context.audit_budget.autoattack:
        return CheckResult(NOT_RUN, "", "AutoAttack is off; the other attacks resemble those of training")
    if context.classes < CLASSES:
        return CheckResult(NOT_RUN, "", f"its targeted losses need at least {CLASSES} classes")
    _ = context.fooled_by  # runs AutoAttack, unless its outcome is stored
    correct = context.correct(context.autoattack)
    low, high = interval(correct)
    value = f"AutoAttack {percent(share(correct))} [{100 * low:.1f}, {100 * high:.1f}]"
    if not context.autoattack.standard:
        return CheckResult(NOT_RUN, value, "AutoAttack ran with fewer steps or queries than its standard version")
    claim = claimed_accuracy(context)
    why = f"the claimed {percent(claim)} are above the 95 % interval of the accuracy under AutoAttack"
    return fail_if(claim > high, value, why)


@check(6, "Does an attack without gradients do better?", "0.2 points (AutoAttack's flag)")
def black_box(context: AuditContext) -> CheckResult:
    gradient_based = [context.outcomes[name] for name in context.attacks() if _uses_gradients(name)]
    surviving = torch.stack([context.clean, *gradient_based]).all(dim=0)  # of all attacks with gradients
    fooled_by = context.fooled_by if context.audit_budget.autoattack and context.classes >= CLASSES else None
    if fooled_by is not None:
        surviving &= (fooled_by == SQUARE) | (fooled_by < 0)
        after_square, queries = surviving & (fooled_by != SQUARE), context.audit_budget.queries
    else:
        spec = square_spec(context.eps, context.audit_budget.queries)
        after_square, queries = context.correct_among(spec, surviving), spec.steps
        context.outcomes[spec.name] = after_square | ~surviving  # Square ran on the surviving images only
    by_square = int(surviving.sum()) - int(after_square.sum())
    value = f"{by_square} of {context.n} images are fooled by Square ({queries} queries) and by no gradient attack"
    why = "an attack without gradients succeeds where attacks with gradients fail"
    return fail_if(by_square > max(0.002 * context.n, CHANCE_IMAGES), value, why)


def _uses_gradients(name: str) -> bool:
    return not name.startswith(("noise", "square", "autoattack"))


@check(7, "Do examples of other networks do better?", "1 point (Carlini et al.)")
def transfer(context: AuditContext) -> CheckResult:
    prefixes = ("transfer", "expert ", "gate uniform")
    objectives = [objective for objective in context.objectives if objective.startswith(prefixes)]
    if not objectives:
        return CheckResult(NOT_RUN, "", "no other network was passed in to craft examples on (transfer_from)")
    accuracies = {objective: context.accuracy(context.with_objective(objective)) for objective in objectives}
    strongest = min(accuracies, key=accuracies.__getitem__)
    transferred, pgd = accuracies[strongest], context.accuracy(context.pgd)
    value = f"PGD {percent(pgd)}; crafted on {strongest.removeprefix('transfer ')} {percent(transferred)}"
    why = "examples crafted on another network are stronger than those crafted on this one"
    return fail_if(is_lower(context, transferred, pgd, 0.01), value, why)


@check(8, "Does the claim stand in the worst case?", "claim in the worst case's interval")
def worst_case(context: AuditContext) -> CheckResult:
    surviving = context.surviving()
    low, high = interval(surviving)
    claim, accuracy = claimed_accuracy(context), share(surviving)
    value = f"claimed {percent(claim)}, worst case {percent(accuracy)} [{100 * low:.1f}, {100 * high:.1f}]"
    attacks = len(context.attacks())
    why = f"{percent(claim)} are claimed, and the worst case over {attacks} attacks is {percent(accuracy)}"
    return fail_if(claim > high, value, why)


@check(9, "Is the attack stronger than random noise?", "no image more to noise than to PGD (Athalye et al.)")
def noise(context: AuditContext) -> CheckResult:
    draws = context.audit_budget.draws
    noisy, pgd = context.accuracy(noise_spec(context.eps, draws)), context.accuracy(context.pgd)
    value = f"worst of {draws} draws {percent(noisy)}, PGD {percent(pgd)}"
    return fail_if(is_lower(context, noisy, pgd, 0.0), value, "random noise is stronger than the attack")


@check(5, "Is it robust to more than one step?", "PGD takes 20 points and half of FGSM's rest")
def one_step(context: AuditContext) -> CheckResult:
    fgsm, pgd, clean = context.accuracy(fgsm_spec(context.eps)), context.accuracy(context.pgd), share(context.clean)
    noise = (uniform(context.x.shape, cpu_generator(context.seed), context.x) * 2 - 1) * float(context.eps)
    gradient, gradient_near = (
        context.gradient(x, cross_entropy_loss).flatten(1) for x in (context.x, (context.x + noise).clamp(0, 1))
    )
    # Gradient alignment (Andriushchenko and Flammarion 2020): low after catastrophic overfitting.
    alignment = float(nn.functional.cosine_similarity(gradient, gradient_near, dim=1).mean())
    value = f"clean {percent(clean)}, FGSM {percent(fgsm)}, PGD {percent(pgd)}; gradient alignment {alignment:.2f}"
    # An undefended network shows a gap between FGSM and PGD too, but at an FGSM accuracy below a third of clean.
    overfitted = fgsm > clean / 3 and is_lower(context, pgd, fgsm, 0.2) and pgd < fgsm / 2
    fails = overfitted or is_lower(context, clean, fgsm, 0.005)
    return fail_if(fails, value, "robust to a single step only: catastrophic overfitting to FGSM")


@check(14, "Was the attack aimed at this model?", "claim in the interval of our PGD (MoRE's code)")
def target(context: AuditContext) -> CheckResult:
    correct = context.correct(context.pgd)
    low, high = interval(correct)
    value = f"PGD on this module {percent(share(correct))} [{100 * low:.1f}, {100 * high:.1f}]"
    if context.adversarial is None and context.claimed is None:
        return CheckResult(PASSES, f"{value}, which is the claim")
    claim = claimed_accuracy(context)
    why = f"{percent(claim)} are claimed, but PGD on this module is stronger, as if another network had been attacked"
    return fail_if(claim > high + 0.01, value, why)


@check(15, "Do other losses do better?", "5 points below the claim (ADVMoE's side loss)")
def loss(context: AuditContext) -> CheckResult:
    accuracies = {
        objective: context.accuracy(context.with_objective(objective))
        for objective in context.objectives
        if objective in ("margin", "dlr")
    }
    return fail_if_stronger(context, accuracies, "an attack with another loss is much stronger")


@check(23, "Do adversarial images keep to the ball and to [0, 1]?", "eps + 1e-6")
def budget(context: AuditContext) -> CheckResult:
    sources = {"images of our attack": context.pgd_result.images}
    if context.adversarial is not None:
        sources["images of the claim"] = context.adversarial
    texts = []
    for source, images in sources.items():
        if images.shape != context.x.shape:
            raise InputError(
                f"adversarial: shape {tuple(images.shape)} is not that of the images {tuple(context.x.shape)}"
            )
        distance, low, high = float((images - context.x).abs().max()), float(images.min()), float(images.max())
        texts.append(f"{source}: changed by at most {distance:.4f}, in [{low:.3g}, {high:.3g}]")
        if not (distance <= float(context.eps) + 1e-6 and low >= 0 and high <= 1):  # also if any is NaN
            place = f"outside the ball of eps {budget_text(context.eps)} or the range [0, 1]"
            why = f"{source} are {place}: eps was applied to normalised pixels, or clipping is missing"
            return CheckResult(FAILS, texts[-1], why)
    return CheckResult(PASSES, "; ".join(texts))


@check(24, "Are successes lost at the last step?", "noted above 5 % (Pintor et al.)")
def any_iterate(context: AuditContext) -> CheckResult:
    fooled = context.pgd_result.fooled
    with eval_mode(context.model):
        correct_at_last = context.logits(context.last_iterates).argmax(dim=1) == context.y
    count = int((fooled & correct_at_last).sum())
    value = f"{count} of {context.n} images misclassified at some iterate, but correct at the last; any iterate counts"
    if count > 0.05 * context.n:
        return CheckResult(NOTED, value, "an evaluation of the last iterates only would report a higher accuracy")
    return CheckResult(PASSES, value)
