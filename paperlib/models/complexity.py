"""The number of parameters of a network, and the cost of its forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def parameters(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def operations(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiplications plus additions in convolutions and matrix products, for one image of ``shape`` (C, H, W)."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.full((1, *shape), 0.5, device=device))
    return int(counter.get_total_flops())
