"""Explicit settings that change rounding: TensorFloat-32 on the GPU, and the number of CPU threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

# The backends with a setting ``fp32_precision``; torch declares no types for them.
_BACKENDS: Any = torch.backends
_GPU = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn)
_CPU = (_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.rnn)


@contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TensorFloat-32 (10 bits of fraction) in matrix products and convolutions on the GPU.

    cuDNN's convolutions use it by default, so an accuracy labelled float32 may be measured with less precision.
    Training may allow it; evaluation forbids it, and also bfloat16 in the CPU's products and convolutions. The settings
    before are restored at the end. As a decorator, it applies to each call of the function.
    """
    before = [backend.fp32_precision for backend in (*_GPU, *_CPU)]
    matmul_precision, cudnn_allow_tf32 = _older_settings()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    for backend in _GPU:
        backend.fp32_precision = "tf32" if allowed else "ieee"
    for backend in _CPU:
        if not allowed and backend.fp32_precision not in ("none", "ieee"):
            backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        if matmul_precision is not None:
            torch.set_float32_matmul_precision(matmul_precision)
        if cudnn_allow_tf32 is not None:
            torch.backends.cudnn.allow_tf32 = cudnn_allow_tf32
        for backend, value in zip((*_GPU, *_CPU), before, strict=True):
            backend.fp32_precision = value


def _older_settings() -> tuple[str | None, bool | None]:
    """The same settings under their older names; None where torch cannot read one, because only the newer was set."""
    matmul_precision = cudnn_allow_tf32 = None
    with suppress(RuntimeError):
        matmul_precision = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        cudnn_allow_tf32 = torch.backends.cudnn.allow_tf32
    return matmul_precision, cudnn_allow_tf32


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Use ``count`` CPU threads, or torch's default if 0. The number of threads changes the rounding of sums."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
