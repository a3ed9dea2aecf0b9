"""Threats as distributions: what each training batch is turned into before the network learns from it.

The paper randomises its adversary: FGSM experts draw eps per batch, PGD experts draw the number of iterations
(arXiv 2512.20821, method outline). ``draw`` returns the attack of one batch, so that logs and tests can see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded
from paperlib.attacks import AIMS, pgd
from paperlib.models.modes import eval_mode
from paperlib.seeds import integers, normal

T = TypeVar("T")


@dataclass(frozen=True)
class Strike:
    """The attack one batch gets; zero steps leave it clean. eps and step size are in pixels of [0, 1]."""

    eps: float = 0.0
    step_size: float = 0.0
    steps: int = 0
    random_start: bool = False
    noise: float = 0.0  # above 0: begin at the image plus normal noise of this standard deviation
    aim: str = "cross-entropy"  # what the attack climbs, a key of `paperlib.attacks.AIMS`
    norm: str = "linf"
    # Above 0: eps and step size are those for images of so many values, see `resized`.
    values: int = field(default=0, repr=False)

    @property
    def passes(self) -> int:
        """Passes of the batch through the model to craft it."""
        return self.steps + (self.steps > 0 and AIMS[self.aim].targets is not None)

    def perturb(self, model: nn.Module | Folded, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The images (N, C, H, W) the network is to learn from."""
        if self.steps == 0:
            return x
        if self.values:
            return self.resized(x[0].numel()).perturb(model, x, y, generator)
        aim = AIMS[self.aim]
        targets = start = None
        if aim.targets is not None:
            folded = model if isinstance(model, Folded) else Folded(model, model)
            with eval_mode(folded.model):
                targets = aim.targets(folded.network, x, y)
        if self.noise:
            start = x + self.noise * normal(x.shape, generator, x)
        return pgd(
            model,
            x,
            y,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            random_start=self.random_start,
            generator=generator,
            objective=aim.objective,
            targets=targets,
            start=start,
            norm=self.norm,
        )

    def resized(self, values: int) -> Strike:
        """The same L2 budget for images of ``values`` numbers (channels times height times width).

        It stays the same share of the distance to the corner of an L-infinity ball, which is eps * sqrt(values).
        """
        scale = (values / self.values) ** 0.5
        return replace(self, eps=self.eps * scale, step_size=self.step_size * scale, values=0)


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
    """PGD whose number of iterations is drawn uniformly from a set: {10, 20, 30, 40, 50} in the paper.

    The last three fields are those of `Strike`; a set of one number of iterations makes it the usual, fixed PGD.
    """

    eps: float
    step_size: float
    steps: tuple[int, ...]
    random_start: bool = True
    noise: float = 0.0
    aim: str = "cross-entropy"
    norm: str = "linf"

    def draw(self, generator: torch.Generator) -> Strike:
        steps = _choice(self.steps, generator)
        return Strike(self.eps, self.step_size, steps, self.random_start, self.noise, self.aim, self.norm)

    def mean_steps(self) -> float:
        return sum(self.steps) / len(self.steps)


@dataclass(frozen=True)
class ResizedL2:
    """An L2 attack for images of ``values`` numbers whose eps and step size follow the size of the images it gets.

    For data sets whose images are of a size that no recipe knows before they are read; see `Strike.resized`.
    """

    attack: RandomPGD
    values: int

    def draw(self, generator: torch.Generator) -> Strike:
        return replace(self.attack.draw(generator), values=self.values)

    def mean_steps(self) -> float:
        return self.attack.mean_steps()


@dataclass(frozen=True)
class Mixture:
    """One of several threats per batch, drawn uniformly: the diet of phase 2 (our reading of the paper)."""

    threats: tuple[Threat, ...]

    def draw(self, generator: torch.Generator) -> Strike:
        return _choice(self.threats, generator).draw(generator)

    def mean_steps(self) -> float:
        return sum(threat.mean_steps() for threat in self.threats) / len(self.threats)


def _choice(options: Sequence[T], generator: torch.Generator) -> T:
    return options[int(integers(len(options), (), generator, generator.device))]
