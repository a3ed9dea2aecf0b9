"""One loop for every gradient attack: projected gradient ascent in a ball around the image; FGSM is its single step.

Sources: FGSM, Goodfellow et al. 2015 (arXiv 1412.6572); PGD, Madry et al. 2018 (arXiv 1706.06083).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from paperlib.checks import check_logits, check_settings, check_shape, check_whole, logits_of, outside_graph
from paperlib.config.budgets import as_budget
from paperlib.errors import InputError, NotFiniteError
from paperlib.memory import in_batches, smaller_batch
from paperlib.models import Folded, fold
from paperlib.models.inputs import admit
from paperlib.models.logits import logits_in_batches
from paperlib.models.modes import eval_mode, outside_inference_mode
from paperlib.precision import tensor_float32
from paperlib.seeds import normal, uniform

Budget = float | str | Fraction
# An objective maps the model, the images (N, C, H, W) and the labels (N,), or other targets with a row per image, to
# the logits (N, classes) and to one value per image (N,) that the attack climbs.
Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
NEVER = -1
FOLD_FROM = 2000  # images x steps from which making a folded copy pays
# Steps between the moments at which the host asks the device which images are done: to a GPU each is a wait.
LOOK_EVERY = {"cpu": 1, "cuda": 4}


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The objective of FGSM and PGD: the loss the classifier is trained on."""
    logits = logits_of(model, x)
    try:
        # Autocast may hand over bfloat16; the loss is computed in float32.
        return logits, nn.functional.cross_entropy(logits.float(), y, reduction="none")
    except (IndexError, RuntimeError, ValueError):
        check_logits(logits, y)  # says what is wrong with labels or logits, if that is the reason
        raise


@dataclass(frozen=True)
class Attacked:
    """What an attack did to a batch of N images."""

    images: Tensor  # (N, C, H, W): the first iterate that fooled the model, else the last one
    fooled: Tensor  # (N,) bool: misclassified at any iterate, the random start and the clean image (step 0) included
    first_success: Tensor  # (N,) int64: the step at which that happened in the first restart, or NEVER
    passes: int  # forward passes, with or without a backward pass, counted per image


undisturbed = eval_mode


@outside_inference_mode()
def pgd(
    model: nn.Module | Folded,
    x: Tensor,
    y: Tensor,
    *,
    eps: Budget,
    step_size: Budget,
    steps: int,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    objective: Objective = cross_entropy,
    targets: Tensor | None = None,
    start: Tensor | None = None,
    norm: str = "linf",
) -> Tensor:
    """The last iterate of projected gradient descent: the inner maximisation of adversarial training.

    TensorFloat-32 is as the caller has it, because training may use it; `attack`, which counts, computes without.

    Args:
        model: a module, pixels to logits; see `paperlib.models.inputs` for what is taken and what is refused. Attacked
            in evaluation mode; its modes, buffers and parameter gradients are left exactly as they were. Where it pays,
            a folded copy does the work (`paperlib.models.fold`); pass the copy itself to use it again.
        x: images (N, C, H, W), pixels in [0, 1], of any float dtype.
        y: labels (N,), int64.
        eps, step_size: budget and step in pixels of [0, 1]; floats or text such as ``"8/255"``.
        steps: iterations, at least 1.
        random_start: begin at a draw from the ball: each pixel uniform for ``linf``, direction and length uniform for
            ``l2``.
        generator: of the random start, drawn where the generator lives and moved to the images, so that a seed of a
            CPU generator means the same on every device; None for torch's global generator of the CPU.
        objective: what to climb, per image.
        targets: what the objective is given in place of the labels, a row per image.
        start: images to begin at instead, moved into the ball and into [0, 1].
        norm: ``"linf"``, steps along the gradient's sign; or ``"l2"``, steps along the gradient.

    Returns:
        Images of x's shape, within eps of x and within [0, 1]: float32, or float64 if images and weights are.

    Raises:
        InputError: a model, pixels, labels or settings that cannot be worked with. NotFiniteError: NaN or infinity
            in the model's answer.
    """
    budgets, norm = _budgets(eps, step_size, steps=steps), _checked_norm(norm)
    check_settings(generator=generator, objective=objective)
    given = admit(model, x, y, gradient=objective is cross_entropy, remember=True)
    x, y = given.x, given.y
    how = _How(*budgets, steps, objective, max(len(x), 1), norm)
    start = how.start(x, random_start, generator) if start is None else how.project(x, _as_start(start, x))
    wanted = y if targets is None else _as_targets(targets, x)
    folded = _prepared(given.model, x, steps)

    def every_step(part: slice) -> Tensor:
        return _every_step(folded.network, x[part], y[part], wanted[part], start[part], how)

    images = torch.empty_like(start)
    with undisturbed(folded.model):
        for part, found in in_batches(len(x), how.batch_size, folded, every_step):
            images[part] = found
    return images


def fgsm(
    model: nn.Module | Folded, x: Tensor, y: Tensor, *, eps: Budget, objective: Objective = cross_entropy
) -> Tensor:
    """The fast gradient sign method: one step of PGD, as long as the budget, from the image itself.

    x_adv = clip(x + eps * sign(grad_x L(x, y)), 0, 1). Arguments, result and errors as in `pgd`.
    """
    return pgd(model, x, y, eps=eps, step_size=eps, steps=1, random_start=False, objective=objective)


@outside_inference_mode()
@tensor_float32(False)
def attack(
    model: nn.Module | Folded,
    x: Tensor,
    y: Tensor,
    *,
    eps: Budget,
    step_size: Budget,
    steps: int,
    random_start: bool = True,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    objective: Objective = cross_entropy,
    targets: Tensor | None = None,
    start: Tensor | None = None,
    batch_size: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Attacked:
    """PGD as an evaluation: an image counts as fooled if *any* iterate of any restart is misclassified.

    An image already fooled needs no further step, so it leaves the batch and one that waits takes its place; this
    changes no outcome. A folded copy finds the adversarial images, and the model itself confirms each. Further
    arguments and errors as in `pgd`; with ``start`` every restart begins there, so one is enough.

    What is counted is computed without TensorFloat-32.

    Args:
        batch_size: images attacked at once, all if None; halved when memory does not suffice.
        progress: told the share of the work that is done, now and then.
    """
    budgets = _budgets(eps, step_size, steps=steps, restarts=restarts)
    check_settings(generator=generator, objective=objective, progress=progress)
    if batch_size is not None:
        batch_size = check_whole("batch_size", batch_size)
    given = admit(model, x, y, gradient=objective is cross_entropy)
    x, y = given.x, given.y
    how = _How(*budgets, steps, objective, max(len(x), 1) if batch_size is None else batch_size)
    wanted = y if targets is None else _as_targets(targets, x)
    start = None if start is None else _as_start(start, x)
    folded = _prepared(given.model, x, steps * restarts)
    with undisturbed(folded.model):
        fooled = misclassified(folded, x, y, how.batch_size)
        images, passes = x.clone(), len(x)
        first = torch.where(fooled, 0, NEVER)
        for restart in range(restarts):
            # Drawn for all images, so that the fate of one never changes the start of another.
            begin = how.start(x, random_start, generator) if start is None else how.project(x, start)
            left = (~fooled).nonzero().squeeze(1)
            share = functools.partial(_share, progress, restart, restarts)
            batch = _Batch(x[left], y[left], wanted[left], begin[left])
            found, success, cost = _until_fooled(folded, batch, how, share)
            images[left], fooled[left] = found, success != NEVER
            first[left] = success if restart == 0 else NEVER
            passes += cost
    return Attacked(images, fooled, first, passes)


def _share(progress: Callable[[float], None], before: int, runs: int, share: float) -> None:
    progress((before + share) / runs)


@tensor_float32(False)
def misclassified(
    model: nn.Module | Folded, x: Tensor, y: Tensor, batch_size: int | None = None, name: str = "model"
) -> Tensor:
    """Which images (N,) the model gets wrong, asked in the mode it is in and without TensorFloat-32.

    Batches are halved when memory runs out. ``name`` is that of the model in messages.
    """
    folded = model if isinstance(model, Folded) else Folded(model, model)
    wrong = torch.zeros_like(y, dtype=torch.bool)
    batch_size = max(len(x), 1) if batch_size is None else batch_size
    check_whole("batch_size", batch_size)
    for part, logits in logits_in_batches(folded.model, x, batch_size, folded, name):
        check_logits(logits, y[part], name)
        wrong[part] = logits.argmax(dim=1) != y[part]
    return wrong


@dataclass(frozen=True)
class _How:
    """The settings of an attack, checked."""

    eps: float
    step_size: float
    steps: int
    objective: Objective
    batch_size: int  # images at once, if memory allows
    norm: str = "linf"

    def room(self, folded: Folded) -> int:
        return min(self.batch_size, folded.room or self.batch_size)

    def start(self, x: Tensor, random: bool, generator: torch.Generator | None) -> Tensor:
        if not random:
            return x
        if self.norm == "linf":
            return (x + (2 * uniform(x.shape, generator, x) - 1) * self.eps).clamp(0, 1)
        noise = normal(x.shape, generator, x)
        length = uniform((len(x), 1, 1, 1), generator, x)
        return (x + noise / _lengths(noise) * length * self.eps).clamp(0, 1)

    def advance(self, x: Tensor, current: Tensor, gradient: Tensor) -> Tensor:
        # x_{k+1} = clip_[0,1]( P_{B(x, eps)}( x_k + alpha * d ) ),  d = sign(g) in L-infinity, g / |g|_2 in L2
        if self.norm == "linf":
            return self.project(x, torch.add(current, gradient.sign(), alpha=self.step_size))
        # Brought to size first: the squares of a very sure network's gradient underflow.
        largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        sized = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
        return self.project(x, torch.add(current, sized / _lengths(sized), alpha=self.step_size))

    def project(self, x: Tensor, moved: Tensor) -> Tensor:
        if self.norm == "linf":
            return torch.minimum(torch.maximum(moved, x - self.eps), x + self.eps).clamp_(0, 1)
        # Clipping to [0, 1] afterwards only brings the image nearer to x.
        offset = moved - x
        return (x + offset * (self.eps / _lengths(offset)).clamp(max=1)).clamp_(0, 1)


def _lengths(offsets: Tensor) -> Tensor:
    """Euclidean length of each image's offset (N, 1, 1, 1), never zero."""
    return torch.linalg.vector_norm(offsets, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


def _every_step(network: nn.Module, x: Tensor, y: Tensor, targets: Tensor, start: Tensor, how: _How) -> Tensor:
    """The last of ``steps`` iterates. Nothing is asked that the gradient does not need, and the host never waits."""
    current, steepest = start, start.new_zeros(())
    for step in range(how.steps):
        logits, gradient = _input_gradient(network, current, targets, how.objective)
        if step == 0:
            check_logits(logits, y)
        steepest = torch.maximum(steepest, gradient.abs().amax())
        current = how.advance(x, current, gradient)
    _check_gradient(steepest)
    return current


@dataclass(frozen=True)
class _Batch:
    """Images to attack, a row each: clean, their labels, what the objective is given, and where to begin."""

    x: Tensor
    y: Tensor
    targets: Tensor
    start: Tensor

    def __getitem__(self, rows: Tensor) -> _Batch:
        return _Batch(self.x[rows], self.y[rows], self.targets[rows], self.start[rows])


def _until_fooled(
    folded: Folded, batch: _Batch, how: _How, progress: Callable[[float], None]
) -> tuple[Tensor, Tensor, int]:
    """The images, the step at which each fooled the model (or NEVER), and the passes it took.

    The folded copy finds adversarial images. Rounding may tell copy and model apart at the border of a class, so the
    model itself confirms each, and is attacked itself with those on which it disagrees.
    """
    images, first, passes = _drop_fooled(folded, folded.network, batch, how, progress)
    won = (first != NEVER).nonzero().squeeze(1)
    if folded.network is folded.model or len(won) == 0:
        return images, first, passes
    doubtful = won[~misclassified(folded, images[won], batch.y[won], how.batch_size)]
    passes += len(won)
    if len(doubtful):
        found, success, cost = _drop_fooled(folded, folded.model, batch[doubtful], how, lambda share: None)
        images[doubtful], first[doubtful], passes = found, success, passes + cost
    return images, first, passes


def _drop_fooled(
    folded: Folded, network: nn.Module, batch: _Batch, how: _How, progress: Callable[[float], None]
) -> tuple[Tensor, Tensor, int]:
    """As `_until_fooled`, asking ``network`` alone."""
    x, y, start = batch.x, batch.y, batch.start
    current, first = start.clone(), torch.full_like(y, NEVER)
    taken = torch.zeros_like(y)  # steps each image has taken
    waiting = torch.arange(len(x), device=x.device)  # unfinished; the first ones are in the batch
    steepest, passes, rounds = start.new_zeros(()), 0, 0
    look_every = LOOK_EVERY.get(x.device.type, 1)
    further = True
    while len(waiting):
        active = waiting[: how.room(folded)]
        images, labels, step = current[active], y[active], taken[active]
        looking = rounds % look_every == 0
        if looking:
            further = bool((step < how.steps).any())
        try:
            logits, gradient = _input_gradient(network, images, batch.targets[active], how.objective, needed=further)
        except Exception as error:
            folded.room = smaller_batch(len(active), error)
            continue
        passes += len(active)
        if looking:
            check_logits(logits, labels)
        wrong = logits.argmax(dim=1) != labels
        # Finished images that have not left the batch yet stand still, so asking them again changes nothing.
        over = wrong | (step >= how.steps)
        first[active] = torch.where(wrong, step, NEVER)
        if further:
            steepest = torch.maximum(steepest, gradient.abs().amax())
            moved = how.advance(x[active], images, gradient)
            current[active] = torch.where(over.view(-1, 1, 1, 1), images, moved)
            taken[active] = torch.where(over, step, step + 1)
        rounds += 1
        if rounds % look_every == 0 or not further:
            waiting = torch.cat([active[~over], waiting[len(active) :]])
            rounds = rounds if further else 0  # images that come in after a last pass want to be looked at
            progress(1 - float((how.steps + 1 - taken[waiting]).sum()) / (len(x) * (how.steps + 1)))
    _check_gradient(steepest)
    return current, first, passes


def _prepared(model: nn.Module | Folded, x: Tensor, steps: int) -> Folded:
    if isinstance(model, Folded):
        return model
    if steps * len(x) < FOLD_FROM:
        return Folded(model, model, reason="too little work for a copy to pay")
    return fold(model, x)


def _check_gradient(steepest: Tensor) -> None:
    # sign(NaN) is 0: an image with a bad gradient would stand still and look robust. NaN survives a maximum, so one
    # look at the end finds it at any step.
    if not bool(torch.isfinite(steepest)):
        raise NotFiniteError("attack: the gradient held NaN or infinity; this model is not robust, it is broken")


def _input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective, needed: bool = True
) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(needed):
        x = x.detach().requires_grad_(needed)
        # A copy: a model may edit its input in place, which a leaf forbids, and the caller goes on with the images.
        logits, values = _logits_and_values(objective(model, x.clone(), y))
        # autograd.grad, not backward: parameter gradients are neither computed nor touched.
        gradient: Tensor | None = x
        if needed:
            gradient = torch.autograd.grad(values.sum(), x, allow_unused=True)[0] if values.requires_grad else None
    if gradient is None:
        raise InputError("attack: the objective has no gradient with respect to the pixels; is something detached?")
    return logits.detach(), gradient


def _logits_and_values(found: object) -> tuple[Tensor, Tensor]:
    if isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found):
        return found
    raise InputError(
        f"objective: returned a {type(found).__name__}; expected a pair of tensors, the model's logits (N, classes) "
        "and one value per image (N,)"
    )


def _budgets(eps: Budget, step_size: Budget, **counts: int) -> tuple[float, float]:
    for name, value in counts.items():
        check_whole(name, value)
    return as_budget(eps, "eps"), as_budget(step_size, "step_size")


def _as_start(start: Tensor, x: Tensor) -> Tensor:
    return outside_graph(check_shape("start", start, tuple(x.shape))).to(x)


def _as_targets(targets: Tensor, x: Tensor) -> Tensor:
    if not isinstance(targets, Tensor) or targets.shape[:1] != x.shape[:1]:
        found = tuple(targets.shape) if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
        raise InputError(f"targets: expected a tensor with a row for each of {len(x)} images, got {found}")
    return outside_graph(targets)


def _checked_norm(norm: str) -> str:
    if norm not in ("linf", "l2"):
        raise InputError(f"norm={norm!r}: expected 'linf' or 'l2'")
    return norm
