"""The modes of a network and of torch for the time of a computation; each is put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of a computation; every module gets its own mode back, and no buffer changes.

    A frozen TorchScript module has no mode, and an exported one cannot change the mode it was exported in: both are
    taken as they are.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    if any(mode for _, mode in modes):
        try:
            model.eval()
        except NotImplementedError:  # of a module made by torch.export
            modes = []
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leave ``torch.inference_mode``, under which no gradient can be computed; ``torch.no_grad`` takes its place."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make float32 torch's default dtype: code that names no dtype would compute in the caller's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
