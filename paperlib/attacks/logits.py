"""The logits of many images, computed in batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from paperlib.acceleration.memory import BatchLimit, in_batches
from paperlib.arguments import logits_of
from paperlib.shapes import Images, Logits


def logits_in_batches(
    model: nn.Module, x: Images, batch_size: int, limit: BatchLimit, name: str = "model"
) -> Iterator[tuple[slice, Logits]]:
    """Slices of the images ``x`` with their logits (rows, classes), without gradient and without a change of mode.

    Batches are halved when memory runs out, and ``limit`` stores how many images fit.

    Raises:
        InputError: the model does not return a float tensor (N, classes).
    """

    def compute(rows: slice) -> Logits:
        with torch.no_grad():
            return logits_of(model, x[rows], name)

    return in_batches(len(x), batch_size, limit, compute)
