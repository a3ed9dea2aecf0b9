"""The L-infinity and L2 balls around an image: random start, step along a gradient, projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paperlib.errors import InputError
from paperlib.seeds import normal, uniform
from paperlib.shapes import Images

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Ball:
    """All images within distance ``eps`` of a clean image whose pixels lie in [0, 1].

    Args:
        eps: radius, in pixels of [0, 1].
        norm: ``"linf"`` or ``"l2"``.

    Raises:
        InputError: another norm.
    """

    eps: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError(f"norm={self.norm!r}: expected 'linf' or 'l2'")

    def random_start(self, x: Images, generator: torch.Generator | None) -> Images:
        """A draw from the ball: each pixel uniform for ``linf``; direction and length uniform for ``l2``."""
        if self.norm == "linf":
            return (x + (2 * uniform(x.shape, generator, x) - 1) * self.eps).clamp(0, 1)
        direction = normal(x.shape, generator, x)
        length = uniform((len(x), 1, 1, 1), generator, x)
        return (x + direction / l2_norms(direction) * length * self.eps).clamp(0, 1)

    def step(self, x: Images, current: Images, gradient: Images, step_size: float) -> Images:
        """One step of projected gradient ascent from ``current``, within the ball around ``x``."""
        # x_{k+1} = clip_[0,1]( P_{B(x, eps)}( x_k + alpha * d ) ),  d = sign(g) in L-infinity, g / |g|_2 in L2
        if self.norm == "linf":
            return self.project(x, torch.add(current, gradient.sign(), alpha=step_size))
        # Divide by the largest entry first: the squares of the gradient of a very confident network underflow.
        largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
        return self.project(x, torch.add(current, scaled / l2_norms(scaled), alpha=step_size))

    def project(self, x: Images, moved: Images) -> Images:
        """The images ``moved``, brought back into the ball around ``x`` and into [0, 1]."""
        if self.norm == "linf":
            return torch.minimum(torch.maximum(moved, x - self.eps), x + self.eps).clamp_(0, 1)
        # Clipping to [0, 1] afterwards only brings the image nearer to x.
        offset = moved - x
        return (x + offset * (self.eps / l2_norms(offset)).clamp(max=1)).clamp_(0, 1)


def l2_norms(offsets: Images) -> Tensor:
    """Euclidean norm of each image's offset, (N, C, H, W) to (N, 1, 1, 1), never zero."""
    return torch.linalg.vector_norm(offsets, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
