"""Checks of the attack: was it strong enough, and aimed at this model?"""

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
    adaptive,
    check,
    claimed,
    judged,
    lost,
    percent,
)
from paperlib.evaluation.auditing.context import CURVE, TAIL, AuditContext, interval, share
from paperlib.evaluation.specs import fgsm_spec, noise_spec, square_spec
from paperlib.models.modes import eval_mode
from paperlib.seeds import cpu_generator, uniform

SQUARE = STANDARD.index("square") + 1  # its number among AutoAttack's attacks, as `AuditContext.fooled_by` tells them


@check(1, "Do many steps beat one?", "0.5 points at every eps (Athalye et al.)")
def iterations(context: AuditContext) -> CheckResult:
    budgets = [context.eps, *(eps for eps in CURVE if eps != context.eps)]
    pairs = {eps: (context.accuracy(fgsm_spec(eps)), context.accuracy(context.at(eps))) for eps in budgets}
    worst = max(pairs, key=lambda eps: pairs[eps][1] - pairs[eps][0])
    one, many = pairs[worst]
    told = f"FGSM {percent(one)}, PGD {percent(many)} at eps {budget_text(worst)}"
    return judged(lost(context, many, one, 0.005), told, "one step does more than many: the gradients mislead")


@check(2, "Had the attack converged?", "1 point below the claim; 5 % of the rise in 10 steps")
def converged(context: AuditContext) -> CheckResult:
    longer = replace(context.pgd, steps=2 * context.pgd.steps, restarts=context.audit_budget.restarts)
    after = context.right_of(longer, context.right(context.pgd))
    context.outcomes.setdefault(longer.name, after)
    claim, left, rise = claimed(context), share(after), 0.0
    if bool(after.any()):
        losses = context.losses(after)
        span = max(losses) - min(losses)
        rise = (losses[-1] - losses[-1 - min(TAIL, len(losses) - 1)]) / span if span > 0 else 0.0
    told = f"{longer.steps} steps and {longer.restarts} starts leave {percent(left)} of {percent(claim)} claimed"
    fails = lost(context, claim, left, 0.01) or rise > 0.05
    return judged(
        fails, f"{told}; last rise {rise:.3f}", "the attack had not converged: more steps or starts still win"
    )


@check(3, "Does accuracy fall with eps, to chance?", "monotone; chance + 2 points at 128/255")
def falls(context: AuditContext) -> CheckResult:
    budgets = sorted({*CURVE, context.eps})
    curve = [share(context.clean), *(context.accuracy(context.at(eps)) for eps in budgets)]
    rises = any(lost(context, after, before, 0.0) for before, after in itertools.pairwise(curve))
    left, chance = curve[-1], 1 / context.classes
    survives = lost(context, left, chance, 0.02)
    told = ", ".join(f"{budget_text(eps)}: {percent(a)}" for eps, a in zip(budgets, curve[1:], strict=True))
    why = (
        "accuracy rises with eps"
        if rises
        else f"{percent(left)} survive eps {budget_text(budgets[-1])}: no attack gets through"
    )
    return judged(rises or survives, told, why)


@check(4, "Do attacks unlike those of training do better?", "claim in AutoAttack's interval")
def autoattack(context: AuditContext) -> CheckResult:
    if not context.audit_budget.autoattack:
        return CheckResult(NOT_RUN, "", "AutoAttack was left out; only attacks like those of training have been tried")
    if context.classes < CLASSES:
        return CheckResult(NOT_RUN, "", f"its targeted losses need {CLASSES} classes or more")
    _ = context.fooled_by  # runs it, unless its outcome is known
    right = context.right(context.autoattack)
    low, high = interval(right)
    told = f"AutoAttack leaves {percent(share(right))} [{100 * low:.1f}, {100 * high:.1f}]"
    if not context.autoattack.standard:
        return CheckResult(NOT_RUN, told, "AutoAttack was cut short of its standard version")
    why = f"AutoAttack leaves less than the {percent(claimed(context))} claimed, beyond its 95 % interval"
    return judged(claimed(context) > high, told, why)


@check(6, "Does an attack without gradients do better?", "0.2 points (AutoAttack's flag)")
def black_box(context: AuditContext) -> CheckResult:
    gradient = torch.stack(
        [context.clean, *(context.outcomes[a] for a in context.attacks() if _sees_gradients(a))]
    ).all(dim=0)
    fooled_by = context.fooled_by if context.audit_budget.autoattack and context.classes >= CLASSES else None
    if fooled_by is not None:
        gradient &= (fooled_by == SQUARE) | (fooled_by < 0)
        left, queries = gradient & (fooled_by != SQUARE), context.audit_budget.queries
    else:
        spec = square_spec(context.eps, context.audit_budget.queries)
        left, queries = context.right_of(spec, gradient), spec.steps
        context.outcomes[spec.name] = left | ~gradient  # it was asked about these images alone
    found = int(gradient.sum()) - int(left.sum())
    told = f"{found} of {context.n} images fell to Square ({queries} queries) and to no gradient attack"
    return judged(
        found > max(0.002 * context.n, CHANCE_IMAGES),
        told,
        "an attack without gradients wins where those with them fail",
    )


def _sees_gradients(name: str) -> bool:
    return not name.startswith(("noise", "square", "autoattack"))


@check(7, "Do examples of other networks do better?", "1 point (Carlini et al.)")
def transfer(context: AuditContext) -> CheckResult:
    named = [
        objective for objective in context.objectives if objective.startswith(("transfer", "expert ", "gate uniform"))
    ]
    if not named:
        return CheckResult(NOT_RUN, "", "no other network was given to craft examples on (transfer_from)")
    found = {objective: context.accuracy(context.with_objective(objective)) for objective in named}
    best = min(found, key=found.__getitem__)
    ours = context.accuracy(context.pgd)
    told = f"PGD {percent(ours)}; crafted on {best.removeprefix('transfer ')} {percent(found[best])}"
    why = "examples made on another network do better than those made on this one"
    return judged(lost(context, ours, found[best], 0.01), told, why)


@check(8, "Does the claim stand in the worst case?", "claim in the worst case's interval")
def worst_case(context: AuditContext) -> CheckResult:
    right = context.surviving()
    low, high = interval(right)
    claim, left = claimed(context), share(right)
    told = f"claimed {percent(claim)}, left {percent(left)} [{100 * low:.1f}, {100 * high:.1f}]"
    why = f"of {percent(claim)} claimed, the worst case over {len(context.attacks())} attacks leaves {percent(left)}"
    return judged(claim > high, told, why)


@check(9, "Does the attack beat blind luck?", "no image more to noise than to PGD (Athalye et al.)")
def noise(context: AuditContext) -> CheckResult:
    noise, ours = context.accuracy(noise_spec(context.eps, context.audit_budget.draws)), context.accuracy(context.pgd)
    told = f"best of {context.audit_budget.draws} draws {percent(noise)}, PGD {percent(ours)}"
    return judged(lost(context, ours, noise, 0.0), told, "random noise does better than the attack")


@check(5, "Is it robust to more than one step?", "PGD takes 20 points and half of FGSM's rest")
def one_step(context: AuditContext) -> CheckResult:
    one, many, clean = context.accuracy(fgsm_spec(context.eps)), context.accuracy(context.pgd), share(context.clean)
    noise = (uniform(context.x.shape, cpu_generator(context.seed), context.x) * 2 - 1) * float(context.eps)
    here, there = (
        context.gradient(x, cross_entropy_loss).flatten(1) for x in (context.x, (context.x + noise).clamp(0, 1))
    )
    aligned = float(nn.functional.cosine_similarity(here, there, dim=1).mean())
    told = f"clean {percent(clean)}, FGSM {percent(one)}, PGD {percent(many)}; gradients aligned {aligned:.2f}"
    # An undefended network has the gap too, at a low FGSM accuracy nobody would claim.
    collapsed = one > clean / 3 and lost(context, one, many, 0.2) and many < one / 2
    fails = collapsed or lost(context, one, clean, 0.005)
    return judged(fails, told, "robust to one step and to nothing else: catastrophic overfitting to FGSM")


@check(14, "Was the attack aimed at this model?", "claim in the interval of our PGD (MoRE's code)")
def target(context: AuditContext) -> CheckResult:
    ours = context.right(context.pgd)
    low, high = interval(ours)
    told = f"PGD on this very module leaves {percent(share(ours))} [{100 * low:.1f}, {100 * high:.1f}]"
    if context.adversarial is None and context.claimed is None:
        return CheckResult(PASSES, f"{told}, and is what is claimed")
    given = claimed(context)
    why = f"{percent(given)} is claimed, PGD on this very module leaves less, as if another network had been attacked"
    return judged(given > high + 0.01, told, why)


@check(15, "Do other losses do better?", "5 points below the claim (ADVMoE's side loss)")
def loss(context: AuditContext) -> CheckResult:
    found = {
        objective: context.accuracy(context.with_objective(objective))
        for objective in context.objectives
        if objective in ("margin", "dlr")
    }
    return adaptive(context, found, "another loss than the claim's does much better")


@check(23, "Do adversarial images keep to the ball and to [0, 1]?", "eps + 1e-6")
def budget(context: AuditContext) -> CheckResult:
    checked = {"our attack": context.headline.images} | (
        {} if context.adversarial is None else {"the images handed in": context.adversarial}
    )
    told = []
    for what, images in checked.items():
        if images.shape != context.x.shape:
            raise InputError(
                f"adversarial: shape {tuple(images.shape)} is not that of the images {tuple(context.x.shape)}"
            )
        moved, low, high = float((images - context.x).abs().max()), float(images.min()), float(images.max())
        told.append(f"{what}: moved by at most {moved:.4f}, in [{low:.3g}, {high:.3g}]")
        if not (moved <= float(context.eps) + 1e-6 and low >= 0 and high <= 1):  # NaN included
            left = f"{what} leave the ball of eps {budget_text(context.eps)} or the range [0, 1]"
            why = f"{left}: eps in another space, or no clipping"
            return CheckResult(FAILS, told[-1], why)
    return CheckResult(PASSES, "; ".join(told))


@check(24, "Are successes lost at the last step?", "noted above 5 % (Pintor et al.)")
def any_iterate(context: AuditContext) -> CheckResult:
    fooled = context.headline.fooled
    with eval_mode(context.model):
        right = context.logits(context.last).argmax(dim=1) == context.y
    lost = int((fooled & right).sum())
    told = f"{lost} of {context.n} images wrong at some iterate and right at the last; any iterate counts here"
    return (
        CheckResult(NOTED, told, "who looks at last iterates alone reports more")
        if lost > 0.05 * context.n
        else CheckResult(PASSES, told)
    )
