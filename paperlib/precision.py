"""How exactly an NVIDIA GPU multiplies in float32: by an explicit choice, never by a library's default."""

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
