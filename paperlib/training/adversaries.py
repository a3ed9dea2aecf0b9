"""Distributions of attacks, from which adversarial training samples one attack for each batch.

In the paper, FGSM experts draw eps for each batch, and PGD experts draw the number of iterations (arXiv 2512.20821,
method outline). ``sample`` returns the attack of one batch as a value, so that logs and tests can show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded
from paperlib.attacks import OBJECTIVES, pgd
from paperlib.models.modes import eval_mode
from paperlib.seeds import integers, normal

T = TypeVar("T")


@dataclass(frozen=True)
class SampledAttack:
    """The attack on one batch; zero steps leave it clean. eps and step size are in pixels of [0, 1]."""

    eps: float = 0.0
    step_size: float = 0.0
    steps: int = 0
    random_start: bool = False
    noise: float = 0.0  # above 0: begin at the image plus normal noise of this standard deviation
    objective: str = "cross-entropy"  # what the attack maximises, a key of `paperlib.attacks.OBJECTIVES`
    norm: str = "linf"
    # Above 0: eps and step size are those for images of so many values, see `resized`.
    values: int = field(default=0, repr=False)

    @property
    def passes(self) -> int:
        """How often the attack sends the batch through the model."""
        return self.steps + (self.steps > 0 and OBJECTIVES[self.objective].targets is not None)

    def perturb(self, model: nn.Module | Folded, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The attacked images (N, C, H, W)."""
        if self.steps == 0:
            return x
        if self.values:
            return self.resized(x[0].numel()).perturb(model, x, y, generator)
        objective = OBJECTIVES[self.objective]
        targets = start = None
        if objective.targets is not None:
            folded = model if isinstance(model, Folded) else Folded(model, model)
            with eval_mode(folded.model):
                targets = objective.targets(folded.network, x, y)
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
            objective=objective.function,
            targets=targets,
            start=start,
            norm=self.norm,
        )

    def resized(self, values: int) -> SampledAttack:
        """The same L2 budget for images of ``values`` numbers (channels times height times width).

        It stays the same share of the distance to the corner of an L-infinity ball, which is eps * sqrt(values).
        """
        scale = (values / self.values) ** 0.5
        return replace(self, eps=self.eps * scale, step_size=self.step_size * scale, values=0)


class AttackDistribution(Protocol):
    """A distribution of attacks."""

    def sample(self, generator: torch.Generator) -> SampledAttack: ...

    def mean_steps(self) -> float:
        """Expected iterations of the attack on a batch; each costs one pass through the network."""
        ...


@dataclass(frozen=True)
class NoAttack:
    """No attack: the benign expert trains on clean images."""

    def sample(self, generator: torch.Generator) -> SampledAttack:
        return SampledAttack()

    def mean_steps(self) -> float:
        return 0.0


@dataclass(frozen=True)
class RandomFGSM:
    """FGSM without a random start whose eps is drawn uniformly from a set: {0.01, ..., 0.09} in the paper."""

    eps: tuple[float, ...]

    def sample(self, generator: torch.Generator) -> SampledAttack:
        eps = _choose(self.eps, generator)
        return SampledAttack(eps, eps, steps=1)

    def mean_steps(self) -> float:
        return 1.0


@dataclass(frozen=True)
class RandomPGD:
    """PGD whose number of iterations is drawn uniformly from a set: {10, 20, 30, 40, 50} in the paper.

    The last three fields are those of `SampledAttack`; a set of one number of iterations makes it the usual, fixed PGD.
    """

    eps: float
    step_size: float
    steps: tuple[int, ...]
    random_start: bool = True
    noise: float = 0.0
    objective: str = "cross-entropy"
    norm: str = "linf"

    def sample(self, generator: torch.Generator) -> SampledAttack:
        steps = _choose(self.steps, generator)
        return SampledAttack(self.eps, self.step_size, steps, self.random_start, self.noise, self.objective, self.norm)

    def mean_steps(self) -> float:
        return sum(self.steps) / len(self.steps)


@dataclass(frozen=True)
class ResizedL2:
    """An L2 attack for images of ``values`` numbers whose eps and step size follow the size of the images it gets.

    For data sets whose images are of a size that no recipe knows before they are read; see `SampledAttack.resized`.
    """

    attack: RandomPGD
    values: int

    def sample(self, generator: torch.Generator) -> SampledAttack:
        return replace(self.attack.sample(generator), values=self.values)

    def mean_steps(self) -> float:
        return self.attack.mean_steps()


@dataclass(frozen=True)
class OneOf:
    """One of several distributions for each batch, drawn uniformly: phase 2 as we read the paper."""

    attacks: tuple[AttackDistribution, ...]

    def sample(self, generator: torch.Generator) -> SampledAttack:
        return _choose(self.attacks, generator).sample(generator)

    def mean_steps(self) -> float:
        return sum(threat.mean_steps() for threat in self.attacks) / len(self.attacks)


def _choose(options: Sequence[T], generator: torch.Generator) -> T:
    return options[int(integers(len(options), (), generator, generator.device))]
