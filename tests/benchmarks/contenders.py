"""PGD of each library with one signature: from images to whether each is fooled.

All use the same number of steps of the same size from a uniform random start in the same L-infinity ball, float32
images in [0, 1], and a network in evaluation mode that normalises inside. If a library returns only images, the pass
that classifies them is part of the measured time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paperlib.attacks import attack, pgd


@dataclass(frozen=True)
class Settings:
    """The settings of an attack; budgets in pixels of [0, 1]."""

    eps: float
    step_size: float
    steps: int
    seed: int

    def generator(self, x: Tensor) -> torch.Generator:
        return torch.Generator(x.device).manual_seed(self.seed)


Contender = Callable[[nn.Module, Tensor, Tensor, Settings], Tensor]


def paperlib(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """As in this package's evaluations: folded, without fooled images, success at any iterate."""
    budget = {"eps": settings.eps, "step_size": settings.step_size, "steps": settings.steps}
    return attack(model, x, y, **budget, generator=settings.generator(x)).fooled


def paperlib_all(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """Every image takes every step, and the last iterate counts."""
    budget = {"eps": settings.eps, "step_size": settings.step_size, "steps": settings.steps}
    return misclassified(model, pgd(model, x, y, **budget, generator=settings.generator(x)), y)


def textbook(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """A plain loop with the random start and the count of successes of `attack`: the reference of the outcomes."""
    noise = torch.rand(x.shape, generator=settings.generator(x), device=x.device)
    current = (x + (2 * noise - 1) * settings.eps).clamp(0, 1)
    fooled = misclassified(model, x, y)
    for _ in range(settings.steps):
        current.requires_grad_(True)
        logits = model(current)
        fooled |= logits.detach().argmax(dim=1) != y
        (gradient,) = torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), current)
        moved = current.detach() + settings.step_size * gradient.sign()
        current = torch.minimum(torch.maximum(moved, x - settings.eps), x + settings.eps).clamp(0, 1)
    return fooled | misclassified(model, current, y)


def torchattacks(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    import torchattacks

    torch.manual_seed(settings.seed)
    attacker = torchattacks.PGD(
        model, eps=settings.eps, alpha=settings.step_size, steps=settings.steps, random_start=True
    )
    return misclassified(model, attacker(x, y), y)


def foolbox(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    import foolbox as fb

    torch.manual_seed(settings.seed)
    attacker = fb.attacks.LinfPGD(abs_stepsize=settings.step_size, steps=settings.steps, random_start=True)
    _, _, success = attacker(fb.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=settings.eps)
    return success


def art(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(settings.seed)
    classes = model(x[:1]).shape[1]
    kind = "gpu" if x.is_cuda else "cpu"
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=(0, 1), device_type=kind
    )
    attacker = ProjectedGradientDescentPyTorch(
        estimator,
        eps=settings.eps,
        eps_step=settings.step_size,
        max_iter=settings.steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    images = attacker.generate(x.cpu().numpy(), y.cpu().numpy())
    model.eval()
    return misclassified(model, torch.from_numpy(images).to(x.device), y)


def apgd(model: nn.Module, x: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """AutoAttack's APGD on cross-entropy: the same number of steps, with adaptive step sizes; a stronger attack."""
    from pyautoattack.autopgd_base import APGDAttack

    attacker = APGDAttack(
        model, n_iter=settings.steps, eps=settings.eps, seed=settings.seed, loss="ce", device=x.device
    )
    return misclassified(model, attacker.perturb(x, y), y)


def misclassified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(dim=1) != y


OURS = ("paperlib", "paperlib-all")
CONTENDERS: dict[str, Contender] = {
    "paperlib": paperlib,
    "paperlib-all": paperlib_all,
    "textbook": textbook,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "art": art,
    "apgd": apgd,
}
PACKAGES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}
PACKAGES |= {"apgd": "pyautoattack"}


def version(contender: str) -> str | None:
    """The version of a contender's library; empty for this package, None if it is not installed."""
    if contender not in PACKAGES:
        return ""
    try:
        return metadata.version(PACKAGES[contender])
    except metadata.PackageNotFoundError:
        return None


warnings.filterwarnings("ignore")
