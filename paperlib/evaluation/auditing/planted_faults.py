"""Controls of the audit: networks and evaluations with one planted fault each, and the check that must detect it.

They show that the checks detect the faults and that networks without a fault pass. The faults are planted into two
sound networks that the caller provides.
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

COLLAPSE = 0.3  # eps at which training with FGSM overfits catastrophically on small images


@dataclass(frozen=True)
class Ground:
    """The material of the controls: two sound networks trained on the same data, and the data."""

    plain: nn.Module  # trained on clean images
    defended: nn.Module  # trained adversarially
    training: Split
    validation: Split  # on which the checkpoints were selected
    test: Split
    eps: Budget


@dataclass(frozen=True)
class Control:
    """An audit with a known result."""

    name: str
    what: str  # the fault, in a few words
    expected: str  # the check that must fail; empty for a sound network
    arguments: dict[str, Any]  # of `audit`: the model, eps, and the claim


class Scaled(nn.Module):
    """Multiplies the logits by a large factor, so that the gradient of cross-entropy vanishes."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.model(x)


class Probabilities(nn.Module):
    """Returns probabilities instead of logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.model(x), dim=1)


class Quantised(nn.Module):
    """Rounds the pixels to a few levels; the gradient of rounding is zero."""

    def __init__(self, model: nn.Module, levels: int = 16) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * self.levels).round() / self.levels)


class Random(nn.Module):
    """Adds noise to the pixels at test time, so that the logits change from call to call."""

    def __init__(self, model: nn.Module, strength: float) -> None:
        super().__init__()
        self.model, self.strength = model, strength

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x + self.strength * normal(x.shape, None, x)).clamp(0, 1))


class Neighbours(nn.Module):
    """Subtracts the mean logits of the batch, so that the logits of an image depend on the rest of its batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits - logits.mean(dim=0, keepdim=True)


class Peeking(nn.Module):
    """Uses another network in training mode, so that attacks run in that mode attack the other network."""

    def __init__(self, model: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.model, self.other = model, other

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) if self.training else self.model(x)


def controls(ground: Ground) -> list[Control]:
    """Every planted fault, then the two sound networks."""
    x, y = ground.test.images, ground.test.labels
    eps, plain, defended = as_budget(ground.eps), ground.plain, ground.defended
    crafted = pgd(defended, x, y, eps=eps, step_size=eps / 4, steps=20, generator=cpu_generator(0))

    def control(name: str, what: str, expected: str, model: nn.Module, **claim: Any) -> Control:
        arguments = {"model": model.eval(), "eps": eps, "selected_on": ground.validation.images, **claim}
        return Control(name, what, expected, arguments)

    return [
        control("nan-gate", "a mixture whose gate holds NaN", "finite", _broken_gate(plain, defended, x)),
        control("logits-x1000", "logits times 1000", "gradients", Scaled(plain, 1000)),
        control("probabilities", "a softmax in place of logits", "logits", Probabilities(plain)),
        control("wrong-target", "examples crafted on another network", "target", plain, adversarial=crafted),
        control("overfitted", "trained on FGSM until it collapsed", "one-step", overfitted(ground), eps=COLLAPSE),
        control("quantised", "pixels rounded to 16 levels", "gradients", Quantised(plain)),
        control("random", "noise on the pixels at test time", "steady", Random(plain, eps / 4)),
        control("batch", "answers relative to those beside them", "alone", Neighbours(plain)),
        control("peeking", "another network in training mode", "alone", Peeking(plain, defended)),
        control("test-selection", "checkpoint chosen on the test images", "selection", defended, selected_on=x),
        control("undefended", "an honest network without defence", "", plain),
        control("defended", "an honest, adversarially trained network", "", defended),
    ]


def overfitted(ground: Ground, images: int = 240, epochs: int = 150, width: int = 32) -> nn.Module:
    """A small network after catastrophic overfitting: trained with FGSM at eps `COLLAPSE` for long on few images.

    `paperlib.training` is not used, because its schedules and checkpoint selection prevent this overfitting.
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
