"""Blind luck as an attack: the best of many uniform draws from the ball. No gradient attack should be worse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import check_settings, check_whole
from paperlib.attacks.early_stopping import NEVER, Attacked, misclassified
from paperlib.attacks.inputs import admit
from paperlib.config.budgets import Budget, as_budget
from paperlib.models.modes import eval_mode, outside_inference_mode
from paperlib.seeds import uniform


@outside_inference_mode()
@tensor_float32(False)
def random_noise(
    model: nn.Module | Folded,
    x: Tensor,
    y: Tensor,
    *,
    eps: Budget,
    draws: int,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Attacked:
    """Try ``draws`` images per image, each pixel uniform in the ball, clipped to [0, 1]; the first that fools stays.

    Arguments, result and errors as in `paperlib.attacks.attack`; ``first_success`` counts draws from 1, 0 is the clean
    image.
    """
    eps = as_budget(eps)
    check_whole("draws", draws)
    check_settings(generator=generator, progress=progress)
    if batch_size is not None:
        batch_size = check_whole("batch_size", batch_size)
    given = admit(model, x, y)
    x, y = given.x, given.y
    folded = given.model if isinstance(given.model, Folded) else fold(given.model, x)
    with eval_mode(folded.model):
        fooled = misclassified(folded, x, y, batch_size)
        images, first, passes = x.clone(), torch.where(fooled, 0, NEVER), len(x)
        # A copy finds, the model confirms.
        asked = Folded(folded.network, folded.network, max_batch=folded.max_batch)
        for draw in range(1, draws + 1):
            left = (~fooled).nonzero().squeeze(1)
            if len(left) == 0:
                break
            # Drawn for all images, so that the fate of one never changes the noise of another.
            tried = (x + (2 * uniform(x.shape, generator, x) - 1) * eps).clamp(0, 1)
            won = left[misclassified(asked, tried[left], y[left], batch_size)]
            passes += len(left) + len(won)
            if len(won):
                won = won[misclassified(folded, tried[won], y[won], batch_size)]
            images[won], fooled[won], first[won] = tried[won], True, draw
            progress(draw / draws)
    folded.max_batch = min((size for size in (asked.max_batch, folded.max_batch) if size is not None), default=None)
    return Attacked(images, fooled, first, passes)
