"""What decides how sums round, by explicit choice: how exactly a GPU multiplies, how many threads a CPU uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Let matrix products and convolutions round their inputs to TensorFloat-32 (10 bits of fraction), or not.

    cuDNN's convolutions do so by default: a "float32" accuracy may be measured on a coarser network. Training may
    choose; evaluation is always exact.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute with a fixed number of CPU threads, 0 for torch's choice: with another, sums round differently."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
