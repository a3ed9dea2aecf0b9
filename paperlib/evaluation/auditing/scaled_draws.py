"""A mode of torch in which random draws are scaled around their means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class ScaledDraws(TorchDispatchMode):
    """Replaces every random draw of torch by ``mean + share * (draw - mean)``, with ``share`` in [0, 1].

    With a share of 0 each draw is its mean; a dropout mask then is the keep probability, by which it is divided, so
    dropout has no effect. With 1 the draws are unchanged. Operations whose mean is not known here (`torch.randint`,
    fused attention with dropout) are unchanged with any share.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "native_dropout_backward":  # the gradient is scaled like the output
            return self._scaled(func(*args, **kwargs), args[0])
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        arguments = {argument.name: argument.default_value for argument in func._schema.arguments}
        arguments |= dict(zip(arguments, args, strict=False)) | kwargs
        if name == "native_dropout":
            dropped, mask = func(*args, **kwargs)
            return self._scaled(dropped, arguments["input"]), mask
        mean = _mean(name, arguments)
        mean = mean.clone() if isinstance(mean, Tensor) else mean  # the draw may overwrite it
        draw = func(*args, **kwargs)
        return draw if mean is None else draw.copy_(self._scaled(draw, mean))

    def _scaled(self, draw: Tensor, mean: Tensor | float) -> Tensor:
        if not isinstance(mean, Tensor):
            mean = torch.full_like(draw, mean, dtype=draw.dtype if draw.is_floating_point() else torch.float32)
        return mean.clone() if self.share == 0 else mean + self.share * (draw - mean)


def _mean(name: str, arguments: Mapping[str, Any]) -> Tensor | float | None:
    """The mean of the draws of a random operation of torch, from its name and arguments; None if not known."""
    if name in ("bernoulli", "bernoulli_"):
        mean: Tensor | float = arguments.get("p", arguments["self"])
        return mean
    if name in ("normal", "normal_"):
        mean = arguments["mean"]
        return mean
    if name == "uniform_":
        return float(arguments["from"] + arguments["to"]) / 2
    return {"rand": 0.5, "rand_like": 0.5, "randn": 0.0, "randn_like": 0.0}.get(name)
