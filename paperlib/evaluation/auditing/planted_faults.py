"""Controls of the audit: networks and evaluations with one planted fault each, and the check that must find it.

An audit that passes everything, or nothing, tells nothing. Each plant is made of honest networks handed in.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.attacks import fgsm, pgd
from paperlib.config.budgets import Budget, as_budget
from paperlib.data import Split
from paperlib.models import Gate, Mixture
from paperlib.seeds import cpu_generator, normal, permutation

COLLAPSE = 0.3  # eps at which training on one step alone goes wrong on small images


@dataclass(frozen=True)
class Ground:
    """What controls are made of: two honest networks from the same data, and the data."""

    plain: nn.Module  # trained on clean images
    defended: nn.Module  # trained adversarially
    training: Split
    validation: Split  # chose the checkpoints
    test: Split
    eps: Budget


@dataclass(frozen=True)
class Control:
    """One audit with a known outcome."""

    name: str
    what: str  # the fault, in a few words
    expected: str  # the check that must fire; empty for an honest one
    arguments: dict[str, Any]  # of `audit`: the model, eps, and what is claimed of it


class Scaled(nn.Module):
    """Logits times a factor: so sure that cross-entropy has no gradient left."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.model(x)


class Probabilities(nn.Module):
    """A softmax where logits are expected."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.model(x), dim=1)


class Quantised(nn.Module):
    """Pixels rounded to a few levels: the gradient of rounding is zero."""

    def __init__(self, model: nn.Module, levels: int = 16) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * self.levels).round() / self.levels)


class Random(nn.Module):
    """Noise on the pixels at test time: every answer is another one."""

    def __init__(self, model: nn.Module, strength: float) -> None:
        super().__init__()
        self.model, self.strength = model, strength

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x + self.strength * normal(x.shape, None, x)).clamp(0, 1))


class Neighbours(nn.Module):
    """Answers from which the mean of the batch is taken: an image's answer depends on those beside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits - logits.mean(dim=0, keepdim=True)


class Peeking(nn.Module):
    """One network while evaluated, another while trained: attacks that switch the mode meet the other one."""

    def __init__(self, model: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.model, self.other = model, other

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) if self.training else self.model(x)


def controls(ground: Ground) -> list[Control]:
    """Every planted fault, then the two honest networks."""
    x, y = ground.test.images, ground.test.labels
    eps, plain, defended = as_budget(ground.eps), ground.plain, ground.defended
    how: dict[str, Any] = {"eps": eps, "step_size": eps / 4, "steps": 20}
    crafted = pgd(defended, x, y, **how, generator=cpu_generator(0))

    def one(name: str, what: str, expected: str, model: nn.Module, **claim: Any) -> Control:
        given = {"model": model.eval(), "eps": eps, "selected_on": ground.validation.images, **claim}
        return Control(name, what, expected, given)

    return [
        one("nan-gate", "a mixture whose gate holds NaN", "finite", _broken_gate(plain, defended, x)),
        one("logits-x1000", "logits times 1000", "gradients", Scaled(plain, 1000)),
        one("probabilities", "a softmax in place of logits", "logits", Probabilities(plain)),
        one("wrong-target", "examples crafted on another network", "target", plain, adversarial=crafted),
        one("overfitted", "trained on FGSM until it collapsed", "one-step", overfitted(ground), eps=COLLAPSE),
        one("quantised", "pixels rounded to 16 levels", "gradients", Quantised(plain)),
        one("random", "noise on the pixels at test time", "steady", Random(plain, eps / 4)),
        one("batch", "answers relative to those beside them", "alone", Neighbours(plain)),
        one("peeking", "another network in training mode", "alone", Peeking(plain, defended)),
        one("test-selection", "checkpoint chosen on the test images", "selection", defended, selected_on=x),
        one("undefended", "an honest network without defence", "", plain),
        one("defended", "an honest, adversarially trained network", "", defended),
    ]


def overfitted(ground: Ground, images: int = 240, epochs: int = 150, width: int = 32) -> nn.Module:
    """A small network taught by FGSM at `COLLAPSE` on few images for long: it learns to withstand that one step.

    Not by `paperlib.training`: its recipes, schedules and checkpoints are there to prevent this.
    """
    part = ground.training.first(min(images, len(ground.training)))
    channels, side = part.images.shape[1], part.images.shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for inputs, stride in ((channels, 1), (width, 2)):
            layers += [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        features = width * ((side + 1) // 2) ** 2
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, int(part.labels.max()) + 1))
        model.to(part.images.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
        for _ in range(epochs):
            for index in permutation(len(part), None, part.images.device).split(60):
                x, y = part.images[index], part.labels[index]
                loss = nn.functional.cross_entropy(model(fgsm(model, x, y, eps=COLLAPSE)), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return model.eval()


def _broken_gate(first: nn.Module, second: nn.Module, x: Tensor) -> nn.Module:
    channels: int = x.shape[1]
    gate = Gate(2, 4, 1, (0.5,) * channels, (0.5,) * channels).to(x.device)
    with torch.no_grad():
        gate.head.bias.fill_(torch.nan)
    return Mixture([copy.deepcopy(first), copy.deepcopy(second)], gate)
