"""Wrappers for models that cannot be attacked or audited as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.shapes import Images, Logits


def call_on_copy(model: Callable[[Tensor], Any], x: Tensor) -> tuple[Any, bool]:
    """The output of a model on a copy of the images ``x``, and whether the model edited that copy in place."""
    copied = x.clone()  # not a leaf, because a leaf that requires gradients may not be edited in place
    version = copied._version
    output = model(copied)
    # An edit through .data does not change the version, so the values are compared too.
    return output, copied._version != version or not torch.equal(copied.detach(), x.detach())


class Adapted(nn.Module):
    """Calls a model on copies of the images, so that a model that edits its input in place can be attacked.

    With a ``dtype``, the copies are converted to it, and the logits are converted back to the dtype of the images.

    Other attributes are those of the model. Its methods get copies too, so a wrapped mixture still has the methods of a
    mixture.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self._call(self.model, x)
        return logits.to(x.dtype) if isinstance(logits, Tensor) and logits.is_floating_point() else logits

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*(self._copy(value) if isinstance(value, Tensor) else value for value in arguments))

    def _copy(self, value: Tensor) -> Tensor:
        convert = self.dtype is not None and value.is_floating_point() and value.dtype != self.dtype
        return value.to(self.dtype) if convert else value.clone()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # copy and pickle look for these
                raise
            attribute = getattr(super().__getattr__("model"), name)
        if isinstance(attribute, nn.Module) or not callable(attribute):
            return attribute
        return lambda *arguments: self._call(attribute, *arguments)


class ZeroGradient(nn.Module):
    """Adds an input gradient of zero to a model whose logits have none, so that the model can still be audited."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = getattr(model, "training", False)

    def forward(self, x: Images) -> Logits:
        logits: Tensor = self.model(x)
        return logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)
