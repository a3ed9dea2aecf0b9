"""The ways a robust accuracy goes wrong, one check each: what it asks, what it allows, what it found.

Sources of the pitfalls: Carlini et al. 2019 (arXiv 1902.06705), Athalye et al. 2018 (1802.00420), Croce and Hein 2020
(2003.01690) with its flags, Pintor et al. 2022 (2106.09947), He et al. 2017 (1706.04701), Tramer et al. 2020
(2002.08347), and what went wrong in published mixtures of experts. Thresholds are ours unless a source is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paperlib.acceleration.memory import in_batches
from paperlib.arguments import logits_of
from paperlib.attacks.autoattack import CLASSES, STANDARD
from paperlib.attacks.mixture import LAMBDAS
from paperlib.attacks.objectives import cross_entropy_loss, dlr_loss
from paperlib.config.budgets import budget_text
from paperlib.errors import InputError
from paperlib.evaluation.case import CURVE, TAIL, Case, interval, share
from paperlib.evaluation.robustness import AttackSpec, evaluate, fgsm_spec, noise_spec, square_spec
from paperlib.evaluation.training_mode import SAME_ANSWER, Difference, difference_in_training_mode
from paperlib.models.mixture import mixed
from paperlib.models.modes import eval_mode
from paperlib.seeds import cpu_generator, uniform

PASSES, FIRES, NOTED, NOT_RUN, NOT_APPLICABLE = "passes", "FIRES", "noted", "not run", "not applicable"
# Between PGD and AutoAttack on sound, adversarially trained networks lie 2 to 5 points (RobustBench's entries).
ADAPTIVE = 0.05
SQUARE = STANDARD.index("square") + 1  # its number among AutoAttack's attacks, as `Case.by` tells them
SLACK = 2  # images by which one attack may beat another by luck
CIFAR_BEST = 0.59  # of ResNet-18 without further data at 8/255 on CIFAR-10 (RobustBench)


@dataclass(frozen=True)
class Answer:
    """What a check found: its verdict, the numbers behind it, and, unless it passes, why."""

    verdict: str
    value: str
    why: str = ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _lost(case: Case, weaker: float, stronger: float, points: float) -> bool:
    """Whether ``stronger`` lies more than ``points``, and more than luck's few images, below ``weaker``."""
    return round((weaker - stronger) * case.n) > max(points * case.n, SLACK)


def _claimed(case: Case) -> float:
    return case.accuracy(case.pgd) if case.claimed is None else case.claimed


def _judged(fires: bool, value: str, why: str) -> Answer:
    return Answer(FIRES, value, why) if fires else Answer(PASSES, value)


# -- is there an answer at all? ----------------------------------------------------------------------------------------


def finite(case: Case) -> Answer:
    named = [
        part
        for part, value in (*case.model.named_parameters(), *case.model.named_buffers())
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if named:
        return Answer(FIRES, f"{named[0]} and {len(named) - 1} more", f"{named[0]} holds NaN or infinity")
    found = {"answers": case.logits()}
    if case.mixture:
        found["gate scores"] = case.evidence("scores", case.x)
    found["input gradients"] = case.gradient(case.x, cross_entropy_loss)
    broken = [what for what, value in found.items() if not bool(torch.isfinite(value).all())]
    why = f"its {' and '.join(broken)} hold NaN or infinity: nothing about it can be reported"
    return _judged(bool(broken), f"weights, {', '.join(found)}", why)


def steady(case: Case) -> Answer:
    first = case.logits()
    apart = max(float((case.logits() - first).abs().max()) for _ in range(2)) / max(1.0, float(first.abs().max()))
    why = "its answer changes from one call to the next: attack it in expectation (EoT, AutoAttack's rand version)"
    return _judged(apart > 1e-6, f"{apart:.1e} of the largest logit", why)


def alone(case: Case) -> Answer:
    training = [name or "the model" for name, module in case.model.named_modules() if module.training]
    if training:
        return Answer(FIRES, f"{training[0]} in training mode", f"{training[0]} is in training mode: call eval() on it")
    some = min(case.n, 16)
    together = case.logits()[:some]
    one_by_one = torch.cat([case.logits(case.x[i : i + 1]) for i in range(some)])
    size = max(1.0, float(together.abs().max()))
    apart = float((together - one_by_one).abs().max()) / size
    if apart > 1e-4:
        return Answer(
            FIRES, f"{apart:.1e} of the largest logit", "its answer to an image depends on the images beside it"
        )
    moved, moved_text = max(_in_training_mode(case, case.x[:some], together, size))
    if moved > SAME_ANSWER:
        why = "its own code reads the training flag: an attack run in the other mode meets another network"
        return Answer(FIRES, moved_text, why)

    def when_a_gradient_is_asked_for(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return logits_of(case.model, x.requires_grad_()).detach()

    watched = case.over(when_a_gradient_is_asked_for, case.x[:some])
    peeks = float((watched - together).abs().max()) / size
    why = "its answer changes when a gradient is asked for: it notices that it is attacked"
    return _judged(peeks > 1e-4, f"{max(apart, moved, peeks):.1e} of the largest logit", why)


def _in_training_mode(case: Case, x: Tensor, together: Tensor, size: float) -> list[Difference]:
    """`difference_in_training_mode` of each batch."""

    def of(rows: slice) -> Difference:
        return difference_in_training_mode(case.model, x[rows], together[rows], size)

    return [found for _, found in in_batches(len(x), case.batch_size, case.asked, of)]


def logits(case: Case) -> Answer:
    answer = case.logits()
    total = float((answer.sum(dim=1) - 1).abs().max())
    within = bool((answer >= -1e-5).all()) and bool((answer <= 1 + 1e-5).all())
    span = f"{float(answer.min()):.3g} to {float(answer.max()):.3g}"
    why = "it returns probabilities where attacks expect logits: return the layer before the softmax, or log(p)"
    return _judged(within and total < 1e-4, span, why)


def gradients(case: Case) -> Answer:
    losses = {"cross-entropy": cross_entropy_loss} | ({"DLR": dlr_loss} if case.classes >= 3 else {})
    told, fires, right = [], False, case.clean
    for name, loss in losses.items():
        # Of images it gets right: DLR is constant where the true class comes third.
        sizes = case.gradient(case.x, loss).flatten(1).abs().sum(dim=1)[right]
        none, median = int((sizes == 0).sum()), float(sizes.median()) if len(sizes) else 1.0
        told.append(f"{name}: {none} of {len(sizes)} zero, median {median:.1e}")
        fires = fires or none > 0 or median <= 1e-8
    why = "input gradients vanish, so gradient attacks go nowhere: remove what blocks them, or attack a stand-in (BPDA)"
    return _judged(fires, "; ".join(told), why)


def smooth(case: Case) -> Answer:
    x = case.last
    noise = uniform(x.shape, cpu_generator(case.seed), x) * 2 - 1
    near = (x + noise * float(case.eps) / 100).clamp(0, 1)
    with eval_mode(case.model):
        here, there = (cross_entropy_loss(case.logits(images), case.y) for images in (x, near))
    change = float((there - here).abs().mean() / here.mean().clamp_min(1e-12))
    why = "the loss jumps under noise a hundredth of eps: gradients of it point nowhere; average them over noise"
    return _judged(change > 0.1, f"{change:.1%} of the loss", why)


# -- does the attack work? ---------------------------------------------------------------------------------------------


def iterations(case: Case) -> Answer:
    budgets = [case.eps, *(eps for eps in CURVE if eps != case.eps)]
    pairs = {eps: (case.accuracy(fgsm_spec(eps)), case.accuracy(case.at(eps))) for eps in budgets}
    worst = max(pairs, key=lambda eps: pairs[eps][1] - pairs[eps][0])
    one, many = pairs[worst]
    told = f"FGSM {_percent(one)}, PGD {_percent(many)} at eps {budget_text(worst)}"
    return _judged(_lost(case, many, one, 0.005), told, "one step does more than many: the gradients mislead")


def converged(case: Case) -> Answer:
    longer = replace(case.pgd, steps=2 * case.pgd.steps, restarts=case.effort.restarts)
    after = case.right_of(longer, case.right(case.pgd))
    case.known.setdefault(longer.name, after)
    claimed, left, rise = _claimed(case), share(after), 0.0
    if bool(after.any()):
        losses = case.losses(after)
        span = max(losses) - min(losses)
        rise = (losses[-1] - losses[-1 - min(TAIL, len(losses) - 1)]) / span if span > 0 else 0.0
    told = f"{longer.steps} steps and {longer.restarts} starts leave {_percent(left)} of {_percent(claimed)} claimed"
    fires = _lost(case, claimed, left, 0.01) or rise > 0.05
    return _judged(
        fires, f"{told}; last rise {rise:.3f}", "the attack had not converged: more steps or starts still win"
    )


def falls(case: Case) -> Answer:
    budgets = sorted({*CURVE, case.eps})
    curve = [share(case.clean), *(case.accuracy(case.at(eps)) for eps in budgets)]
    rises = any(_lost(case, after, before, 0.0) for before, after in itertools.pairwise(curve))
    left, chance = curve[-1], 1 / case.classes
    survives = _lost(case, left, chance, 0.02)
    told = ", ".join(f"{budget_text(eps)}: {_percent(a)}" for eps, a in zip(budgets, curve[1:], strict=True))
    why = (
        "accuracy rises with eps"
        if rises
        else f"{_percent(left)} survive eps {budget_text(budgets[-1])}: no attack gets through"
    )
    return _judged(rises or survives, told, why)


def autoattack(case: Case) -> Answer:
    if not case.effort.autoattack:
        return Answer(NOT_RUN, "", "AutoAttack was left out; only attacks like those of training have been tried")
    if case.classes < CLASSES:
        return Answer(NOT_RUN, "", f"its targeted losses need {CLASSES} classes or more")
    _ = case.by  # runs it, unless its outcome is known
    right = case.right(case.autoattack)
    low, high = interval(right)
    told = f"AutoAttack leaves {_percent(share(right))} [{100 * low:.1f}, {100 * high:.1f}]"
    if not case.autoattack.standard:
        return Answer(NOT_RUN, told, "AutoAttack was cut short of its standard version")
    why = f"AutoAttack leaves less than the {_percent(_claimed(case))} claimed, beyond its 95 % interval"
    return _judged(_claimed(case) > high, told, why)


def black_box(case: Case) -> Answer:
    gradient = torch.stack([case.clean, *(case.known[a] for a in case.attacks() if _sees_gradients(a))]).all(dim=0)
    by = case.by if case.effort.autoattack and case.classes >= CLASSES else None
    if by is not None:
        gradient &= (by == SQUARE) | (by < 0)
        left, queries = gradient & (by != SQUARE), case.effort.queries
    else:
        spec = square_spec(case.eps, case.effort.queries)
        left, queries = case.right_of(spec, gradient), spec.steps
        case.known[spec.name] = left | ~gradient  # it was asked about these images alone
    found = int(gradient.sum()) - int(left.sum())
    told = f"{found} of {case.n} images fell to Square ({queries} queries) and to no gradient attack"
    return _judged(
        found > max(0.002 * case.n, SLACK), told, "an attack without gradients wins where those with them fail"
    )


def _sees_gradients(name: str) -> bool:
    return not name.startswith(("noise", "square", "autoattack"))


def transfer(case: Case) -> Answer:
    named = [
        objective for objective in case.objectives if objective.startswith(("transfer", "expert ", "gate uniform"))
    ]
    if not named:
        return Answer(NOT_RUN, "", "no other network was given to craft examples on (transfer_from)")
    found = {objective: case.accuracy(case.with_objective(objective)) for objective in named}
    best = min(found, key=found.__getitem__)
    ours = case.accuracy(case.pgd)
    told = f"PGD {_percent(ours)}; crafted on {best.removeprefix('transfer ')} {_percent(found[best])}"
    why = "examples made on another network do better than those made on this one"
    return _judged(_lost(case, ours, found[best], 0.01), told, why)


def worst_case(case: Case) -> Answer:
    right = case.standing()
    low, high = interval(right)
    claimed, left = _claimed(case), share(right)
    told = f"claimed {_percent(claimed)}, left {_percent(left)} [{100 * low:.1f}, {100 * high:.1f}]"
    why = f"of {_percent(claimed)} claimed, the worst case over {len(case.attacks())} attacks leaves {_percent(left)}"
    return _judged(claimed > high, told, why)


def noise(case: Case) -> Answer:
    noise, ours = case.accuracy(noise_spec(case.eps, case.effort.draws)), case.accuracy(case.pgd)
    told = f"best of {case.effort.draws} draws {_percent(noise)}, PGD {_percent(ours)}"
    return _judged(_lost(case, ours, noise, 0.0), told, "random noise does better than the attack")


def one_step(case: Case) -> Answer:
    one, many, clean = case.accuracy(fgsm_spec(case.eps)), case.accuracy(case.pgd), share(case.clean)
    noise = (uniform(case.x.shape, cpu_generator(case.seed), case.x) * 2 - 1) * float(case.eps)
    here, there = (case.gradient(x, cross_entropy_loss).flatten(1) for x in (case.x, (case.x + noise).clamp(0, 1)))
    aligned = float(nn.functional.cosine_similarity(here, there, dim=1).mean())
    told = f"clean {_percent(clean)}, FGSM {_percent(one)}, PGD {_percent(many)}; gradients aligned {aligned:.2f}"
    # An undefended network has the gap too, at a low FGSM accuracy nobody would claim.
    collapsed = one > clean / 3 and _lost(case, one, many, 0.2) and many < one / 2
    fires = collapsed or _lost(case, one, clean, 0.005)
    return _judged(fires, told, "robust to one step and to nothing else: catastrophic overfitting to FGSM")


def target(case: Case) -> Answer:
    ours = case.right(case.pgd)
    low, high = interval(ours)
    told = f"PGD on this very module leaves {_percent(share(ours))} [{100 * low:.1f}, {100 * high:.1f}]"
    if case.adversarial is None and case.claimed is None:
        return Answer(PASSES, f"{told}, and is what is claimed")
    given = _claimed(case)
    why = f"{_percent(given)} is claimed, PGD on this very module leaves less, as if another network had been attacked"
    return _judged(given > high + 0.01, told, why)


def loss(case: Case) -> Answer:
    found = {
        objective: case.accuracy(case.with_objective(objective))
        for objective in case.objectives
        if objective in ("margin", "dlr")
    }
    return _adaptive(case, found, "another loss than the claim's does much better")


def budget(case: Case) -> Answer:
    checked = {"our attack": case.headline.images} | (
        {} if case.adversarial is None else {"the images handed in": case.adversarial}
    )
    told = []
    for what, images in checked.items():
        if images.shape != case.x.shape:
            raise InputError(
                f"adversarial: shape {tuple(images.shape)} is not that of the images {tuple(case.x.shape)}"
            )
        moved, low, high = float((images - case.x).abs().max()), float(images.min()), float(images.max())
        told.append(f"{what}: moved by at most {moved:.4f}, in [{low:.3g}, {high:.3g}]")
        if not (moved <= float(case.eps) + 1e-6 and low >= 0 and high <= 1):  # NaN included
            left = f"{what} leave the ball of eps {budget_text(case.eps)} or the range [0, 1]"
            why = f"{left}: eps in another space, or no clipping"
            return Answer(FIRES, told[-1], why)
    return Answer(PASSES, "; ".join(told))


def any_iterate(case: Case) -> Answer:
    fooled = case.headline.fooled
    with eval_mode(case.model):
        right = case.logits(case.last).argmax(dim=1) == case.y
    lost = int((fooled & right).sum())
    told = f"{lost} of {case.n} images wrong at some iterate and right at the last; any iterate counts here"
    return (
        Answer(NOTED, told, "who looks at last iterates alone reports more")
        if lost > 0.05 * case.n
        else Answer(PASSES, told)
    )


# -- attacks made for a mixture ----------------------------------------------------------------------------------------


def _adaptive(case: Case, found: dict[str, float], why: str) -> Answer:
    best, claimed = min(found, key=found.__getitem__), _claimed(case)
    told = f"{best}: {_percent(found[best])} of {_percent(claimed)} claimed"
    return _judged(_lost(case, claimed, found[best], ADAPTIVE), told, f"{why} ({best})")


def _among(case: Case, wanted: Callable[[str], bool], why: str) -> Answer:
    found = {
        objective: case.accuracy(case.with_objective(objective)) for objective in case.objectives if wanted(objective)
    }
    if not found:
        return Answer(NOT_APPLICABLE, "no such part")
    return _adaptive(case, found, why)


def experts(case: Case) -> Answer:
    return _among(
        case, lambda objective: objective.startswith("expert"), "attacking its experts directly does much better"
    )


def gate(case: Case) -> Answer:
    names = ("gate to", "two-stage", *(f"joint {weight:g}" for weight in LAMBDAS))
    return _among(case, lambda objective: objective.startswith(names), "steering its gate does much better")


def past_gate(case: Case) -> Answer:
    return _among(
        case, lambda objective: objective in ("gate held", "gate uniform"), "attacking past its gate does much better"
    )


def choice(case: Case) -> Answer:
    why = "its experts are picked by a choice no gradient passes; through a soft stand-in little is left"
    return _among(case, lambda objective: objective.startswith("soft"), why)


def collapse(case: Case) -> Answer:
    if not case.mixture:
        return Answer(NOT_APPLICABLE, "no gate")
    means = torch.cat([case.evidence("gate_weights", x) for x in (case.x, case.headline.images)]).mean(dim=0)
    told = f"mean weights {float(means.min()):.3f} to {float(means.max()):.3f}"
    quiet = int((means < 0.01).sum())
    if float(means.max()) > 0.95:
        return Answer(FIRES, told, f"expert {int(means.argmax())} answers for all: the mixture is one network")
    return Answer(NOTED, told, f"{quiet} of its experts are never heard") if quiet else Answer(PASSES, told)


class _Other(nn.Module):
    """A mixture with some experts unheard, or with all heard alike."""

    def __init__(self, model: nn.Module, without: int | None) -> None:
        super().__init__()
        self.model, self.without = model, without

    def forward(self, x: Tensor) -> Tensor:
        seen = self.model.evidence(x)  # type: ignore[operator]
        scores = torch.zeros_like(seen.scores) if self.without is None else seen.scores
        kept = [i for i in range(scores.shape[1]) if i != self.without]
        return mixed(self.model, seen.expert_logits[:, kept], torch.log_softmax(scores[:, kept], dim=1))


def _kept(case: Case, model: nn.Module, spec: AttackSpec) -> float:
    found = evaluate(
        model, case.split, spec, seed=case.seed, batch_size=case.batch_size, label=case.label, say=case.say
    )
    return share(found.correct)


def weak_link(case: Case) -> Answer:
    if not case.mixture or case.benign is None:
        return Answer(NOT_APPLICABLE, "no expert is known as benign")
    rest, ours = _kept(case, _Other(case.model, case.benign), case.pgd), case.accuracy(case.pgd)
    told = f"without it PGD leaves {_percent(rest)}, with it {_percent(ours)}"
    if _lost(case, rest, ours, 0.01):
        return Answer(NOTED, told, "without its benign expert the mixture is more robust")
    return Answer(PASSES, told)


def compared(case: Case) -> Answer:
    size = sum(parameter.numel() for parameter in case.model.parameters())
    if not case.mixture:
        return Answer(NOT_APPLICABLE, f"{size:,} parameters", "compare it with what as much training and size can do")
    even, ours = _kept(case, _Other(case.model, None), case.pgd), case.accuracy(case.pgd)
    told = f"{size:,} parameters; PGD leaves {_percent(ours)}, of its experts' plain average {_percent(even)}"
    return Answer(NOTED if ours <= even else PASSES, told, "the gate adds nothing here" if ours <= even else "")


# -- is the number told honestly? --------------------------------------------------------------------------------------


def selection(case: Case) -> Answer:
    if case.selected_on is None:
        return Answer(NOT_RUN, "", "the images that chose the checkpoint were not given (selected_on)")
    chosen = {image.numpy().tobytes() for image in case.selected_on.detach().cpu().float()}
    shared = sum(image.numpy().tobytes() in chosen for image in case.x.cpu().float())
    told = f"{shared} of {case.n} images also chose the checkpoint"
    return _judged(shared > 0.01 * case.n, told, "the checkpoint was chosen on the images it is judged on")


def sample(case: Case) -> Answer:
    low, high = interval(case.standing())
    told = f"n = {case.n}, interval of {100 * (high - low):.1f} points"
    return Answer(NOTED, told, "smoke: fewer than 1,000 images") if case.n < 1000 else Answer(PASSES, told)


def too_good(case: Case) -> Answer:
    cifar = tuple(case.x.shape[1:]) == (3, 32, 32) and case.classes == 10 and budget_text(case.eps) == "8/255"
    if not cifar:
        return Answer(NOT_APPLICABLE, "known for CIFAR-10 at 8/255")
    left = share(case.standing())
    why = "more than any ResNet-18 without further data is known to keep: find the mistake first"
    return _judged(left > CIFAR_BEST, f"{_percent(left)} left; the best known keep {_percent(CIFAR_BEST)}", why)
