"""Threats as distributions: what each training batch is turned into before the network learns from it.

The paper randomises its adversary: FGSM experts draw eps per batch, PGD experts draw the number of iterations
(arXiv 2512.20821, method outline). ``draw`` returns the attack of one batch, so that logs and tests can see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from paperlib.attacks import pgd
from paperlib.models import Folded

T = TypeVar("T")


@dataclass(frozen=True)
class Strike:
    """The attack one batch gets; zero steps leave it clean. eps and step size are in pixels of [0, 1]."""

    eps: float = 0.0
    step_size: float = 0.0
    steps: int = 0
    random_start: bool = False

    def perturb(self, model: nn.Module | Folded, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The images (N, C, H, W) the network is to learn from."""
        if self.steps == 0:
            return x
        return pgd(
            model,
            x,
            y,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            random_start=self.random_start,
            generator=generator,
        )


class Threat(Protocol):
    """A distribution over strikes."""

    def draw(self, generator: torch.Generator) -> Strike: ...

    def mean_steps(self) -> float:
        """Expected iterations per batch: what the threat costs in passes, next to the update itself."""
        ...


@dataclass(frozen=True)
class Clean:
    """No attack: the benign expert's diet."""

    def draw(self, generator: torch.Generator) -> Strike:
        return Strike()

    def mean_steps(self) -> float:
        return 0.0


@dataclass(frozen=True)
class RandomFGSM:
    """FGSM without a random start whose eps is drawn uniformly from a set: {0.01, ..., 0.09} in the paper."""

    eps: tuple[float, ...]

    def draw(self, generator: torch.Generator) -> Strike:
        eps = _choice(self.eps, generator)
        return Strike(eps, eps, steps=1)

    def mean_steps(self) -> float:
        return 1.0


@dataclass(frozen=True)
class RandomPGD:
    """PGD whose number of iterations is drawn uniformly from a set: {10, 20, 30, 40, 50} in the paper."""

    eps: float
    step_size: float
    steps: tuple[int, ...]
    random_start: bool = True

    def draw(self, generator: torch.Generator) -> Strike:
        return Strike(self.eps, self.step_size, _choice(self.steps, generator), self.random_start)

    def mean_steps(self) -> float:
        return sum(self.steps) / len(self.steps)


@dataclass(frozen=True)
class Mixture:
    """One of several threats per batch, drawn uniformly: the diet of phase 2 (our reading of the paper)."""

    threats: tuple[Threat, ...]

    def draw(self, generator: torch.Generator) -> Strike:
        return _choice(self.threats, generator).draw(generator)

    def mean_steps(self) -> float:
        return sum(threat.mean_steps() for threat in self.threats) / len(self.threats)


def _choice(options: Sequence[T], generator: torch.Generator) -> T:
    return options[int(torch.randint(len(options), (), generator=generator, device=generator.device))]
