"""One loop for every gradient attack: projected gradient ascent in an L-infinity ball; FGSM is its single step.

Sources: FGSM, Goodfellow et al. 2015 (arXiv 1412.6572); PGD, Madry et al. 2018 (arXiv 1706.06083).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral

import torch
from torch import Tensor, nn

from paperlib.checks import as_budget, check_images, check_labels, check_logits
from paperlib.errors import InputError, NotFiniteError

Budget = float | str | Fraction
# An objective maps the model, the images (N, C, H, W) and the labels (N,) to the logits (N, classes) and to one
# value per image (N,) that the attack climbs.
Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
NEVER = -1


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The objective of FGSM and PGD: the loss the classifier is trained on."""
    logits = model(x)
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


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of an attack; every module gets its own mode back, and no buffer changes."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Budget,
    step_size: Budget,
    steps: int,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    objective: Objective = cross_entropy,
) -> Tensor:
    """The last iterate of projected gradient descent: the inner maximisation of adversarial training.

    Args:
        model: pixels to logits. Attacked in evaluation mode; its modes, buffers and parameter gradients are left
            exactly as they were.
        x: images (N, C, H, W), pixels in [0, 1].
        y: labels (N,), int64.
        eps, step_size: L-infinity budget and step in pixels of [0, 1]; floats or text such as ``"8/255"``.
        steps: iterations, at least 1.
        random_start: begin at a uniform draw from the ball, from ``generator`` (torch's global one if None).
        objective: what to climb, per image.

    Returns:
        Images of x's shape, within eps of x and within [0, 1].

    Raises:
        InputError: pixels, labels or settings out of range. NotFiniteError: NaN or infinity in the model's answer.
    """
    eps, step_size = _checked(x, y, eps, step_size, steps)
    x = x.detach()
    with undisturbed(model):
        start = _start(x, eps, random_start, generator)
        images, _, _ = _climb(model, x, y, start, eps, step_size, steps, objective, until_fooled=False)
    return images


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, eps: Budget, objective: Objective = cross_entropy) -> Tensor:
    """The fast gradient sign method: one step of PGD, as long as the budget, from the image itself.

    x_adv = clip(x + eps * sign(grad_x L(x, y)), 0, 1). Arguments, result and errors as in `pgd`.
    """
    return pgd(model, x, y, eps=eps, step_size=eps, steps=1, random_start=False, objective=objective)


def attack(
    model: nn.Module,
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
) -> Attacked:
    """PGD as an evaluation: an image counts as fooled if *any* iterate of any restart is misclassified.

    An image already fooled needs no further step, so it leaves the batch; this changes no outcome. Arguments and
    errors as in `pgd`.
    """
    eps, step_size = _checked(x, y, eps, step_size, steps, restarts)
    x = x.detach()
    with undisturbed(model):
        with torch.no_grad():
            clean_logits = model(x)
        check_logits(clean_logits, y)
        images, passes = x.clone(), len(x)
        fooled = clean_logits.argmax(dim=1) != y
        first = torch.where(fooled, 0, NEVER)
        for restart in range(restarts):
            # Drawn for all images, so that the fate of one never changes the start of another.
            start = _start(x, eps, random_start, generator)
            left = (~fooled).nonzero().squeeze(1)
            images[left], success, cost = _climb(
                model, x[left], y[left], start[left], eps, step_size, steps, objective, until_fooled=True
            )
            fooled[left] = success != NEVER
            first[left] = success if restart == 0 else NEVER
            passes += cost
    return Attacked(images, fooled, first, passes)


def _climb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    objective: Objective,
    until_fooled: bool,
) -> tuple[Tensor, Tensor, int]:
    """The loop. Returns the images, the step at which each fooled the model (or NEVER), and the passes it took.

    With ``until_fooled`` an image leaves the batch at the first iterate that is misclassified, and the last iterate
    is asked too; without, every image takes every step and nothing is asked that the gradient does not need.
    """
    images, first = start.clone(), torch.full_like(y, NEVER)
    left, current, passes = torch.arange(len(x), device=x.device), start, 0
    steepest = torch.zeros((), device=x.device)
    for step in range(steps + until_fooled):
        if len(left) == 0:
            break
        logits, gradient = _input_gradient(model, current, y[left], objective, needed=step < steps)
        passes += len(left)
        if step < steps:
            steepest = torch.maximum(steepest, gradient.abs().amax())
        if until_fooled or step == 0:
            check_logits(logits, y[left])
        if until_fooled:
            wrong = logits.argmax(dim=1) != y[left]
            images[left], first[left[wrong]] = current, step
            left, current, gradient = left[~wrong], current[~wrong], gradient[~wrong]
        if step < steps:
            # x_{k+1} = clip_[0,1]( P_{x +- eps}( x_k + alpha * sign(grad_x L(x_k, y)) ) )
            moved = current + step_size * gradient.sign()
            current = torch.minimum(torch.maximum(moved, x[left] - eps), x[left] + eps).clamp(0, 1)
    if not until_fooled:
        images = current
    # sign(NaN) is 0: an image with a bad gradient would stand still and look robust. NaN survives a maximum, so one
    # look at the end finds it at any step.
    if not bool(torch.isfinite(steepest)):
        raise NotFiniteError("attack: the gradient held NaN or infinity; this model is not robust, it is broken")
    return images, first, passes


def _input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, objective: Objective, needed: bool = True
) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(needed):
        x = x.detach().requires_grad_(needed)
        logits, values = objective(model, x, y)
        # autograd.grad, not backward: parameter gradients are neither computed nor touched.
        gradient = torch.autograd.grad(values.sum(), x)[0] if needed else x
    return logits.detach(), gradient


def _start(x: Tensor, eps: float, random: bool, generator: torch.Generator | None) -> Tensor:
    if not random:
        return x
    # Drawn where the generator lives, so a seed means the same on every device it is used from.
    device = generator.device if generator is not None else x.device
    noise = torch.rand(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    return (x + (2 * noise - 1) * eps).clamp(0, 1)


def _checked(
    x: Tensor, y: Tensor, eps: Budget, step_size: Budget, steps: int, restarts: int = 1
) -> tuple[float, float]:
    check_images(x)
    check_labels(y, x)
    for name, value in (("steps", steps), ("restarts", restarts)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InputError(f"{name}={value!r}: expected a whole number, at least 1; less is no attack")
    return as_budget(eps, "eps"), as_budget(step_size, "step_size")
