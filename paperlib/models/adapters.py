"""Wrappers for models that cannot be attacked or audited as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def call_on_copy(model: Callable[[Tensor], Any], x: Tensor) -> tuple[Any, bool]:
    """What a model returns for a copy of the images ``x``, and whether it edited that copy in place."""
    handed = x.clone()  # no leaf, which may not be edited in place
    version = handed._version
    result = model(handed)
    # An edit through .data leaves the version as it is.
    return result, handed._version != version or not torch.equal(handed.detach(), x.detach())


class Adapted(nn.Module):
    """A model that is handed copies of the images, converted to ``dtype`` if one is given.

    Its logits are converted to the dtype of the images.

    Other attributes are those of the model, and its methods are handed copies too, so a mixture stays one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self._call(self.model, x)
        return logits.to(x.dtype) if isinstance(logits, Tensor) and logits.is_floating_point() else logits

    def _call(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(*(self._copy(value) if isinstance(value, Tensor) else value for value in given))

    def _copy(self, value: Tensor) -> Tensor:
        convert = self.dtype is not None and value.is_floating_point() and value.dtype != self.dtype
        return value.to(self.dtype) if convert else value.clone()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # copy and pickle look for these
                raise
            found = getattr(super().__getattr__("model"), name)
        if isinstance(found, nn.Module) or not callable(found):
            return found
        return lambda *given: self._call(found, *given)


class ZeroGradient(nn.Module):
    """A model whose logits have no gradient, with a gradient of zero, so that it can still be audited."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)
