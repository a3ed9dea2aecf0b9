"""Context managers that set a mode of a network or of torch, and restore it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode; afterwards each module gets its former mode back. No buffer changes.

    A frozen TorchScript module has no mode, and a module made by torch.export cannot change its mode: both stay
    unchanged.
    """
    modes = _modes(model)
    try:
        if any(mode for _, mode in modes):
            with suppress(NotImplementedError):  # raised by a module made by torch.export
                model.eval()
        yield
    finally:
        _restore(modes)


def has_modes(model: nn.Module) -> bool:
    """Whether a model can change its mode: a frozen TorchScript module or one made by torch.export cannot."""
    modes = _modes(model)
    if not modes:
        return False
    try:
        model.eval()
    except NotImplementedError:
        return False
    finally:
        _restore(modes)
    return True


def _modes(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules() if hasattr(module, "training")]


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        module.training = mode


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Replace ``torch.inference_mode``, under which no gradient can be computed, by ``torch.no_grad``."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make float32 torch's default dtype, so that code that names no dtype does not depend on the caller's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
