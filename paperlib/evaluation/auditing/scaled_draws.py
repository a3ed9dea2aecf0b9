"""Random draws of torch brought to their means, or part of the way there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class ScaledDraws(TorchDispatchMode):
    """Every random draw of torch becomes ``mean + share * (draw - mean)``.

    At a share of 0 each draw is its mean: a dropout mask is its keep probability, by which it is then divided. At 1 the
    draws are as they come. Operations whose mean is not known here (`torch.randint`, fused attention with dropout) draw
    as they come at any share.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "native_dropout_backward":  # the factor of the forward pass is that of the gradient
            return self._scaled(func(*args, **kwargs), args[0])
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        given = {argument.name: argument.default_value for argument in func._schema.arguments}
        given |= dict(zip(given, args, strict=False)) | kwargs
        if name == "native_dropout":
            dropped, mask = func(*args, **kwargs)
            return self._scaled(dropped, given["input"]), mask
        mean = _mean(name, given)
        mean = mean.clone() if isinstance(mean, Tensor) else mean  # the draw may overwrite it
        found = func(*args, **kwargs)
        return found if mean is None else found.copy_(self._scaled(found, mean))

    def _scaled(self, drawn: Tensor, mean: Tensor | float) -> Tensor:
        if not isinstance(mean, Tensor):
            mean = torch.full_like(drawn, mean, dtype=drawn.dtype if drawn.is_floating_point() else torch.float32)
        return mean.clone() if self.share == 0 else mean + self.share * (drawn - mean)


def _mean(name: str, given: Mapping[str, Any]) -> Tensor | float | None:
    """The mean of what a random operation of torch draws, by its name and arguments; None if it is not known here."""
    if name in ("bernoulli", "bernoulli_"):
        mean: Tensor | float = given.get("p", given["self"])
        return mean
    if name in ("normal", "normal_"):
        mean = given["mean"]
        return mean
    if name == "uniform_":
        return float(given["from"] + given["to"]) / 2
    return {"rand": 0.5, "rand_like": 0.5, "randn": 0.0, "randn_like": 0.0}.get(name)
