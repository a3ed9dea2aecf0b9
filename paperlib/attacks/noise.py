"""Random noise as an attack: uniform draws from the ball. A gradient attack that finds less is faulty."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import check_settings, check_whole
from paperlib.attacks.early_stopping import NEVER, Attacked, misclassified
from paperlib.attacks.inputs import admit
from paperlib.config.budgets import Budget, as_budget
from paperlib.models.modes import eval_mode, outside_inference_mode
from paperlib.seeds import uniform
from paperlib.shapes import Images, Labels


@outside_inference_mode()
@tensor_float32(False)
def random_noise(
    model: nn.Module | Folded,
    x: Images,
    y: Labels,
    *,
    eps: Budget,
    draws: int,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Attacked:
    """Add noise to each image up to ``draws`` times, each pixel uniform in the L-infinity ball, clipped to [0, 1].

    The first noisy image that is misclassified is the result. Arguments, result and errors as in
    `paperlib.attacks.attack`; ``first_success`` counts draws from 1, and 0 is the clean image.
    """
    eps = as_budget(eps)
    check_whole("draws", draws)
    check_settings(generator=generator, progress=progress)
    if batch_size is not None:
        batch_size = check_whole("batch_size", batch_size)
    inputs = admit(model, x, y)
    x, y = inputs.x, inputs.y
    folded = inputs.model if isinstance(inputs.model, Folded) else fold(inputs.model, x)
    with eval_mode(folded.model):
        fooled = misclassified(folded, x, y, batch_size)
        images, first, passes = x.clone(), torch.where(fooled, 0, NEVER), len(x)
        # The folded copy finds adversarial images, and the model itself confirms each.
        copied = Folded(folded.network, folded.network, max_batch=folded.max_batch)
        for draw in range(1, draws + 1):
            surviving = (~fooled).nonzero().squeeze(1)
            if len(surviving) == 0:
                break
            # Drawn for all images, so that the outcome of one image never changes the noise of another.
            noisy = (x + (2 * uniform(x.shape, generator, x) - 1) * eps).clamp(0, 1)
            won = surviving[misclassified(copied, noisy[surviving], y[surviving], batch_size)]
            passes += len(surviving) + len(won)
            if len(won):
                won = won[misclassified(folded, noisy[won], y[won], batch_size)]
            images[won], fooled[won], first[won] = noisy[won], True, draw
            progress(draw / draws)
    folded.max_batch = min((size for size in (copied.max_batch, folded.max_batch) if size is not None), default=None)
    return Attacked(images, fooled, first, passes)
