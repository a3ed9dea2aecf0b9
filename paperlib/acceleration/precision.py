"""What decides how sums round, by explicit choice: how exactly a GPU multiplies, how many threads a CPU uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

# What rounds by itself, each with a setting ``fp32_precision``; torch declares no types for them.
_BACKENDS: Any = torch.backends
_GPU = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn)
_CPU = (_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.rnn)


@contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Let matrix products and convolutions round their inputs to TensorFloat-32 (10 bits of fraction), or not.

    cuDNN's convolutions do so by default: a "float32" accuracy may be measured on a coarser network. Training may
    choose; evaluation is always exact, on the CPU too, whose products may have been allowed bfloat16. As a decorator
    it holds for each call.
    """
    before = [part.fp32_precision for part in (*_GPU, *_CPU)]
    products, convolutions = _older_settings()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    for part in _GPU:
        part.fp32_precision = "tf32" if allowed else "ieee"
    for part in _CPU:
        if not allowed and part.fp32_precision not in ("none", "ieee"):
            part.fp32_precision = "ieee"
    try:
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for part, value in zip((*_GPU, *_CPU), before, strict=True):
            part.fp32_precision = value


def _older_settings() -> tuple[str | None, bool | None]:
    """The same choices by the names of older torch, which it refuses to read (None) where only the newer were set."""
    products = convolutions = None
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    return products, convolutions


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
