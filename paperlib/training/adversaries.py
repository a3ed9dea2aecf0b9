"""Attack distributions, from which adversarial training samples one attack for each batch.

In the paper, eps is drawn for each batch of an FGSM expert, and the number of iterations for each batch of a PGD expert
(arXiv 2512.20821, method outline).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from paperlib.acceleration import Folded
from paperlib.attacks import OBJECTIVES, pgd
from paperlib.models.modes import eval_mode
from paperlib.seeds import integers, normal
from paperlib.shapes import Images, Labels

T = TypeVar("T")


@dataclass(frozen=True)
class SampledAttack:
    """The attack on one batch; with zero steps the batch stays clean. eps and step size are for pixels in [0, 1]."""

    eps: float = 0.0
    step_size: float = 0.0
    steps: int = 0
    random_start: bool = False
    noise: float = 0.0  # above 0: start at the image plus normal noise of this standard deviation
    objective: str = "cross-entropy"  # what the attack maximises, a key of `paperlib.attacks.OBJECTIVES`
    norm: str = "linf"
    # Above 0: eps and step size are stated for images of this many values, see `resized`.
    values: int = field(default=0, repr=False)

    @property
    def passes(self) -> int:
        """The number of forward passes of the batch that the attack takes."""
        return self.steps + (self.steps > 0 and OBJECTIVES[self.objective].targets is not None)

    def perturb(self, model: nn.Module | Folded, x: Images, y: Labels, generator: torch.Generator) -> Images:
        """The attacked images (N, C, H, W); ``x`` itself if there are no steps."""
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
        """The same L2 attack for images of ``values`` numbers (channels times height times width).

        eps and step size scale with sqrt(values), as the L2 distance to a corner of an L-infinity ball does.
        """
        scale = (values / self.values) ** 0.5
        return replace(self, eps=self.eps * scale, step_size=self.step_size * scale, values=0)


@runtime_checkable
class AttackDistribution(Protocol):
    """A probability distribution over attacks."""

    def sample(self, generator: torch.Generator) -> SampledAttack:
        """The attack on one batch."""
        ...

    def mean_steps(self) -> float:
        """The expected number of iterations on a batch; each costs one forward pass."""
        ...


@dataclass(frozen=True)
class NoAttack:
    """Clean batches, as for the benign expert."""

    def sample(self, generator: torch.Generator) -> SampledAttack:
        return SampledAttack()

    def mean_steps(self) -> float:
        return 0.0


@dataclass(frozen=True)
class RandomFGSM:
    """FGSM without a random start; eps is drawn uniformly from a set, {0.01, ..., 0.09} in the paper."""

    eps: tuple[float, ...]

    def sample(self, generator: torch.Generator) -> SampledAttack:
        eps = _draw(self.eps, generator)
        return SampledAttack(eps, eps, steps=1)

    def mean_steps(self) -> float:
        return 1.0


@dataclass(frozen=True)
class RandomPGD:
    """PGD; its number of iterations is drawn uniformly from a set, {10, 20, 30, 40, 50} in the paper.

    The last three fields are those of `SampledAttack`. A set of one number gives PGD with fixed iterations.
    """

    eps: float
    step_size: float
    steps: tuple[int, ...]
    random_start: bool = True
    noise: float = 0.0
    objective: str = "cross-entropy"
    norm: str = "linf"

    def sample(self, generator: torch.Generator) -> SampledAttack:
        steps = _draw(self.steps, generator)
        return SampledAttack(self.eps, self.step_size, steps, self.random_start, self.noise, self.objective, self.norm)

    def mean_steps(self) -> float:
        return sum(self.steps) / len(self.steps)


@dataclass(frozen=True)
class ResizedL2:
    """An L2 attack stated for images of ``values`` numbers; eps and step size are scaled to the images attacked.

    For data sets whose image size is not known when the recipe is made; see `SampledAttack.resized`.
    """

    attack: RandomPGD
    values: int

    def sample(self, generator: torch.Generator) -> SampledAttack:
        return replace(self.attack.sample(generator), values=self.values)

    def mean_steps(self) -> float:
        return self.attack.mean_steps()


@dataclass(frozen=True)
class OneOf:
    """One of several attack distributions, drawn uniformly for each batch: phase 2, as we read the paper."""

    attacks: tuple[AttackDistribution, ...]

    def sample(self, generator: torch.Generator) -> SampledAttack:
        return _draw(self.attacks, generator).sample(generator)

    def mean_steps(self) -> float:
        return sum(attack.mean_steps() for attack in self.attacks) / len(self.attacks)


def _draw(options: Sequence[T], generator: torch.Generator) -> T:
    return options[int(integers(len(options), (), generator, generator.device))]
