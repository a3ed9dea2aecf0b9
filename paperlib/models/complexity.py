"""How large a network is, and what a forward pass of it costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(p.numel() for p in model.parameters())


def operations(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiplications and additions of convolutions and matrix products for one image of ``shape`` (C, H, W)."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(torch.full((1, *shape), 0.5, device=device))
    return int(counted.get_total_flops())
