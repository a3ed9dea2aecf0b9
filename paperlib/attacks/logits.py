"""The logits of many images, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from paperlib.acceleration.memory import BatchLimit, in_batches
from paperlib.arguments import logits_of


def logits_in_batches(
    model: nn.Module, x: Tensor, batch_size: int, limit: BatchLimit, name: str = "model"
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of images (N, C, H, W) with their logits (rows, classes), in the mode the model is in, without gradient.

    Batches are halved when memory runs out, and ``limit`` remembers how many images fit.

    Raises:
        InputError: an answer that is no float tensor of logits.
    """

    def of(rows: slice) -> Tensor:
        with torch.no_grad():
            return logits_of(model, x[rows], name)

    return in_batches(len(x), batch_size, limit, of)
