"""PGD as an evaluation: an image that is misclassified leaves the batch, and the outcome of each image is counted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded
from paperlib.acceleration.memory import smaller_batch
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import check_logits, check_settings, check_whole
from paperlib.attacks.ball import Ball
from paperlib.attacks.input_gradient import check_finite_gradient, input_gradient
from paperlib.attacks.inputs import admit
from paperlib.attacks.logits import logits_in_batches
from paperlib.attacks.objectives import Objective, cross_entropy
from paperlib.attacks.pgd import check_targets, first_iterate, folded_if_worthwhile
from paperlib.config.budgets import Budget, as_budget
from paperlib.models.modes import eval_mode, outside_inference_mode
from paperlib.shapes import Images, Labels

NEVER = -1  # in place of a step: the attack never succeeded

# Steps after which the CPU reads which images are finished; each time it waits for the GPU.
SYNC_EVERY = {"cpu": 1, "cuda": 4}


@dataclass(frozen=True)
class Attacked:
    """The result of an attack on N images."""

    images: Images  # the first iterate that fooled the model, else the last one
    fooled: Tensor  # (N,) bool: misclassified at any iterate, the random start and the clean image (step 0) included
    first_success: Tensor  # (N,) int64: the step at which that happened in the first restart, or NEVER
    passes: int  # forward passes, with or without a backward pass, counted per image


@outside_inference_mode()
@tensor_float32(False)
def attack(
    model: nn.Module | Folded,
    x: Images,
    y: Labels,
    *,
    eps: Budget,
    step_size: Budget,
    steps: int,
    random_start: bool = True,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    objective: Objective = cross_entropy,
    targets: Tensor | None = None,
    start: Images | None = None,
    batch_size: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Attacked:
    """PGD as an evaluation: an image counts as fooled if *any* iterate of any restart is misclassified.

    An image that is misclassified leaves the batch, and the next one takes its place; this changes no outcome. A
    folded copy finds the adversarial images, and the model itself confirms each. TensorFloat-32 is off. Further
    arguments and errors as in `pgd`; with ``start`` every restart begins there, so one restart is enough.

    Args:
        batch_size: images attacked at once, all if None; halved when memory runs out.
        progress: called repeatedly with the share of the work that is done, in [0, 1].
    """
    budget, alpha = as_budget(eps, "eps"), as_budget(step_size, "step_size")
    steps, restarts = check_whole("steps", steps), check_whole("restarts", restarts)
    check_settings(generator=generator, objective=objective, progress=progress)
    if batch_size is not None:
        batch_size = check_whole("batch_size", batch_size)
    inputs = admit(model, x, y, gradient=objective is cross_entropy)
    x, y = inputs.x, inputs.y
    ball = Ball(budget)
    settings = _Settings(ball, alpha, steps, objective, max(len(x), 1) if batch_size is None else batch_size)
    targets = y if targets is None else check_targets(targets, x)
    folded = folded_if_worthwhile(inputs.model, x, steps * restarts)
    with eval_mode(folded.model):
        fooled = misclassified(folded, x, y, settings.batch_size)
        images, passes = x.clone(), len(x)
        first_success = torch.where(fooled, 0, NEVER)
        for restart in range(restarts):
            # Drawn for all images, so that the outcome of one image never changes the start of another.
            begin = first_iterate(ball, x, start, random_start=random_start, generator=generator)
            surviving = (~fooled).nonzero().squeeze(1)
            report = functools.partial(_report_share, progress, restart, restarts)
            batch = _Batch(x[surviving], y[surviving], targets[surviving], begin[surviving])
            last, success, used = _attack_and_confirm(folded, batch, settings, report)
            images[surviving], fooled[surviving] = last, success != NEVER
            first_success[surviving] = success if restart == 0 else NEVER
            passes += used
    return Attacked(images, fooled, first_success, passes)


def _report_share(progress: Callable[[float], None], restart: int, restarts: int, share: float) -> None:
    progress((restart + share) / restarts)


@tensor_float32(False)
def misclassified(
    model: nn.Module | Folded, x: Images, y: Labels, batch_size: int | None = None, name: str = "model"
) -> Tensor:
    """Which images (N,) the model misclassifies, as a bool tensor; its mode does not change, and TensorFloat-32 is off.

    Batches are halved when memory runs out. ``name`` is the name of the model in messages.
    """
    folded = model if isinstance(model, Folded) else Folded(model, model)
    result = torch.zeros_like(y, dtype=torch.bool)
    batch_size = max(len(x), 1) if batch_size is None else batch_size
    check_whole("batch_size", batch_size)
    for part, logits in logits_in_batches(folded.model, x, batch_size, folded, name):
        check_logits(logits, y[part], name)
        result[part] = logits.argmax(dim=1) != y[part]
    return result


@dataclass(frozen=True)
class _Settings:
    """The settings of an attack, checked."""

    ball: Ball
    step_size: float
    steps: int
    objective: Objective
    batch_size: int  # images at once, if memory allows


@dataclass(frozen=True)
class _Batch:
    """Images to attack, their labels, the targets of the objective and the first iterates; a row for each image."""

    x: Tensor
    y: Tensor
    targets: Tensor
    start: Tensor

    def __getitem__(self, rows: Tensor) -> _Batch:
        return _Batch(self.x[rows], self.y[rows], self.targets[rows], self.start[rows])


def _attack_and_confirm(
    folded: Folded, batch: _Batch, settings: _Settings, progress: Callable[[float], None]
) -> tuple[Tensor, Tensor, int]:
    """The images, the step at which each fooled the model (or NEVER), and the forward passes used.

    The folded copy finds adversarial images, and the model itself confirms each. Near a decision boundary rounding can
    make the two disagree; those images are attacked once more, on the model itself.
    """
    images, first_success, passes = _attack_until_fooled(folded, folded.network, batch, settings, progress)
    fooled = (first_success != NEVER).nonzero().squeeze(1)
    if folded.network is folded.model or len(fooled) == 0:
        return images, first_success, passes
    unconfirmed = fooled[~misclassified(folded, images[fooled], batch.y[fooled], settings.batch_size)]
    passes += len(fooled)
    if len(unconfirmed):
        again = batch[unconfirmed]
        last, success, used = _attack_until_fooled(folded, folded.model, again, settings, lambda share: None)
        images[unconfirmed], first_success[unconfirmed], passes = last, success, passes + used
    return images, first_success, passes


def _attack_until_fooled(
    folded: Folded, network: nn.Module, batch: _Batch, settings: _Settings, progress: Callable[[float], None]
) -> tuple[Tensor, Tensor, int]:
    """PGD on ``network`` in which each image stops at the first iterate that is misclassified."""
    x, y, steps = batch.x, batch.y, settings.steps
    current, first_success = batch.start.clone(), torch.full_like(y, NEVER)
    steps_done = torch.zeros_like(y)
    waiting = torch.arange(len(x), device=x.device)  # images not finished; the first ones form the batch
    largest, passes, rounds = x.new_zeros(()), 0, 0
    sync_every = SYNC_EVERY.get(x.device.type, 1)
    gradient_needed = True
    while len(waiting):
        active = waiting[: min(settings.batch_size, folded.max_batch or settings.batch_size)]
        images, labels, step = current[active], y[active], steps_done[active]
        sync = rounds % sync_every == 0
        if sync:
            gradient_needed = bool((step < steps).any())
        try:
            targets = batch.targets[active]
            logits, gradient = input_gradient(network, images, targets, settings.objective, needed=gradient_needed)
        except Exception as error:
            folded.max_batch = smaller_batch(len(active), error)
            continue
        passes += len(active)
        if sync:
            check_logits(logits, labels)
        fooled = logits.argmax(dim=1) != labels
        # A finished image that is still in the batch does not move, so a further pass does not change its outcome.
        finished = fooled | (step >= steps)
        first_success[active] = torch.where(fooled, step, NEVER)
        if gradient_needed:
            largest = torch.maximum(largest, gradient.abs().amax())
            moved = settings.ball.step(x[active], images, gradient, settings.step_size)
            current[active] = torch.where(finished.view(-1, 1, 1, 1), images, moved)
            steps_done[active] = torch.where(finished, step, step + 1)
        rounds += 1
        if rounds % sync_every == 0 or not gradient_needed:
            waiting = torch.cat([active[~finished], waiting[len(active) :]])
            rounds = rounds if gradient_needed else 0  # images that enter after a last pass must be checked
            progress(1 - float((steps + 1 - steps_done[waiting]).sum()) / (len(x) * (steps + 1)))
    check_finite_gradient(largest)
    return current, first_success, passes
