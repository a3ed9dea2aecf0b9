"""The accuracies on the validation split, by which the checkpoint is selected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from paperlib.acceleration import Folded
from paperlib.attacks import attack
from paperlib.data import Split
from paperlib.seeds import cpu_generator

# A network trained by FGSM whose FGSM accuracy exceeds its PGD accuracy by more than this masks its gradients
# (catastrophic overfitting).
COLLAPSE_GAP = 0.20
VALIDATION_BATCH = 250  # images attacked at once; nine full-width networks need some 50 MB for each


@dataclass(frozen=True)
class Validation:
    """The attack on the validation split, by which the checkpoint is selected; budgets for pixels in [0, 1]."""

    eps: float
    step_size: float
    steps: int
    select: str  # "clean" or "pgd": the accuracy by which the checkpoint is selected


def validate(
    model: nn.Module | Folded, split: Split, settings: Validation, *, seed: int
) -> tuple[float, float, float, bool]:
    """Clean, FGSM and PGD accuracy as fractions, and whether FGSM exceeds PGD by more than `COLLAPSE_GAP`."""
    generator = cpu_generator(seed)
    x, y = split.images, split.labels
    fgsm_result = attack(
        model,
        x,
        y,
        eps=settings.eps,
        step_size=settings.eps,
        steps=1,
        random_start=False,
        batch_size=VALIDATION_BATCH,
    )
    pgd_result = attack(
        model,
        x,
        y,
        eps=settings.eps,
        step_size=settings.step_size,
        steps=settings.steps,
        generator=generator,
        batch_size=VALIDATION_BATCH,
    )
    # Step 0 is the clean image.
    misclassified = torch.stack(
        [(fgsm_result.first_success == 0).sum(), fgsm_result.fooled.sum(), pgd_result.fooled.sum()]
    )
    clean, fgsm, pgd = (1 - count / len(split) for count in misclassified.tolist())
    return clean, fgsm, pgd, fgsm - pgd > COLLAPSE_GAP
