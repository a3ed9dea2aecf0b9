"""Projected gradient descent (PGD) and its single step, FGSM: the inner maximisation of adversarial training.

Sources: FGSM, Goodfellow et al. 2015 (arXiv 1412.6572); PGD, Madry et al. 2018 (arXiv 1706.06083). `attack` in
`paperlib.attacks.early_stopping` is the same attack as an evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.memory import in_batches
from paperlib.arguments import check_logits, check_settings, check_shape, check_whole, outside_graph
from paperlib.attacks.ball import Ball
from paperlib.attacks.input_gradient import check_finite_gradient, input_gradient
from paperlib.attacks.inputs import admit
from paperlib.attacks.objectives import Objective, cross_entropy
from paperlib.config.budgets import Budget, as_budget
from paperlib.errors import InputError
from paperlib.models.modes import eval_mode, outside_inference_mode
from paperlib.shapes import Images, Labels

FOLD_FROM = 2000  # images x steps from which a folded copy saves more time than it takes to make


@outside_inference_mode()
def pgd(
    model: nn.Module | Folded,
    x: Images,
    y: Labels,
    *,
    eps: Budget,
    step_size: Budget,
    steps: int,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    objective: Objective = cross_entropy,
    targets: Tensor | None = None,
    start: Images | None = None,
    norm: str = "linf",
) -> Images:
    """The last iterate of projected gradient descent.

    TensorFloat-32 stays as the caller has set it, because training may use it. `attack`, which counts successes,
    switches it off.

    Args:
        model: a module from pixels to logits; `paperlib.attacks.inputs` lists the accepted models. It is attacked in
            evaluation mode; its modes, buffers and parameter gradients do not change. Long attacks use a folded copy
            (`paperlib.acceleration.fold`); pass a folded copy to use it for several calls.
        x: images (N, C, H, W), pixels in [0, 1], of any float dtype.
        y: labels (N,), int64.
        eps, step_size: budget and step in pixels of [0, 1]; floats or text such as ``"8/255"``.
        steps: iterations, at least 1.
        random_start: begin at a draw from the ball (`paperlib.attacks.ball.Ball.random_start`).
        generator: of the random start. It is drawn on the generator's device and moved to the images, so that the seed
            of a CPU generator means the same on every device; None for torch's global generator of the CPU.
        objective: what to maximise, one value for each image.
        targets: passed to the objective in place of the labels; a row for each image.
        start: images to begin at instead of a random draw; they are moved into the ball and into [0, 1].
        norm: ``"linf"``, steps along the sign of the gradient; or ``"l2"``, steps along the gradient.

    Returns:
        Images of the shape of ``x``, within eps of ``x`` and within [0, 1]: float32, or float64 if images and weights
        are float64.

    Raises:
        InputError: a model, pixels, labels or settings that cannot be used. NotFiniteError: NaN or infinity in the
            model's logits or in the gradient.
    """
    budget, alpha = as_budget(eps, "eps"), as_budget(step_size, "step_size")
    check_whole("steps", steps)
    ball = Ball(budget, norm)
    check_settings(generator=generator, objective=objective)
    inputs = admit(model, x, y, gradient=objective is cross_entropy, remember=True)
    x, y = inputs.x, inputs.y
    begin = first_iterate(ball, x, start, random_start=random_start, generator=generator)
    objective_targets = y if targets is None else check_targets(targets, x)
    folded = folded_if_worthwhile(inputs.model, x, steps)

    def maximise(rows: slice) -> Images:
        batch = x[rows], y[rows], objective_targets[rows], begin[rows]
        return _maximise(folded.network, *batch, ball, alpha, steps, objective)

    images = torch.empty_like(begin)
    with eval_mode(folded.model):
        for rows, last in in_batches(len(x), max(len(x), 1), folded, maximise):
            images[rows] = last
    return images


def _maximise(
    network: nn.Module,
    x: Images,
    y: Labels,
    targets: Tensor,
    start: Images,
    ball: Ball,
    alpha: float,
    steps: int,
    objective: Objective,
) -> Images:
    """The loop of PGD on one batch."""
    current, largest = start, start.new_zeros(())
    for k in range(steps):
        logits, gradient = input_gradient(network, current, targets, objective)
        if k == 0:
            check_logits(logits, y)
        largest = torch.maximum(largest, gradient.abs().amax())
        # x_{k+1} = clip_[0,1]( P_{B(x, eps)}( x_k + alpha * sign(g) ) )
        current = ball.step(x, current, gradient, alpha)
    check_finite_gradient(largest)  # once, so that the CPU does not wait for a GPU in every step
    return current


def fgsm(
    model: nn.Module | Folded, x: Images, y: Labels, *, eps: Budget, objective: Objective = cross_entropy
) -> Images:
    """The fast gradient sign method: one step of PGD of size eps from the clean image.

    x_adv = clip(x + eps * sign(grad_x L(x, y)), 0, 1). Arguments, result and errors as in `pgd`.
    """
    return pgd(model, x, y, eps=eps, step_size=eps, steps=1, random_start=False, objective=objective)


def first_iterate(
    ball: Ball, x: Images, start: Images | None, *, random_start: bool, generator: torch.Generator | None
) -> Images:
    """The first iterate: ``start`` moved into the ball if it is given, else a random draw or the clean images.

    Raises:
        InputError: ``start`` is not a float tensor of the shape of ``x``.
    """
    if start is not None:
        return ball.project(x, outside_graph(check_shape("start", start, tuple(x.shape))).to(x))
    return ball.random_start(x, generator) if random_start else x


def check_targets(targets: Tensor, x: Images) -> Tensor:
    """The targets, detached. Raises InputError unless there is a row for each image."""
    if not isinstance(targets, Tensor) or targets.shape[:1] != x.shape[:1]:
        text = tuple(targets.shape) if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
        raise InputError(f"targets: expected a tensor with a row for each of {len(x)} images, got {text}")
    return outside_graph(targets)


def folded_if_worthwhile(model: nn.Module | Folded, x: Images, steps: int) -> Folded:
    """A folded copy of the model, or the model itself if the attack is too short for a copy to save time."""
    if isinstance(model, Folded):
        return model
    if steps * len(x) < FOLD_FROM:
        return Folded(model, model, reason="the attack is too short for a copy to save time")
    return fold(model, x)
