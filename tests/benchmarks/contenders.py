"""PGD as each library offers it, behind one signature: images in, per-image verdict out.

All take the same number of steps of the same size from a uniform random start in the same L-infinity ball, and all
are given float32 images in [0, 1] and a network in evaluation mode that normalises inside. Where a library returns
images and no verdict, asking the network about them is part of the work.
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
    """One attack; budgets in pixels of [0, 1]."""

    eps: float
    step_size: float
    steps: int
    seed: int

    def generator(self, x: Tensor) -> torch.Generator:
        return torch.Generator(x.device).manual_seed(self.seed)


Contender = Callable[[nn.Module, Tensor, Tensor, Settings], Tensor]


def paperlib(model: nn.Module, x: Tensor, y: Tensor, how: Settings) -> Tensor:
    """As the companion evaluates: folded, fooled images dropped, success at any iterate."""
    budget = {"eps": how.eps, "step_size": how.step_size, "steps": how.steps}
    return attack(model, x, y, **budget, generator=how.generator(x)).fooled


def paperlib_all(model: nn.Module, x: Tensor, y: Tensor, how: Settings) -> Tensor:
    """The active set off: every image takes every step, as if all survived; the last iterate counts."""
    budget = {"eps": how.eps, "step_size": how.step_size, "steps": how.steps}
    return wrong(model, pgd(model, x, y, **budget, generator=how.generator(x)), y)


def textbook(model: nn.Module, x: Tensor, y: Tensor, how: Settings) -> Tensor:
    """The plain loop, with the companion's random start and its count of successes: the reference of the outcomes."""
    noise = torch.rand(x.shape, generator=how.generator(x), device=x.device)
    current = (x + (2 * noise - 1) * how.eps).clamp(0, 1)
    fooled = wrong(model, x, y)
    for _ in range(how.steps):
        current.requires_grad_(True)
        logits = model(current)
        fooled |= logits.detach().argmax(dim=1) != y
        (gradient,) = torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), current)
        moved = current.detach() + how.step_size * gradient.sign()
        current = torch.minimum(torch.maximum(moved, x - how.eps), x + how.eps).clamp(0, 1)
    return fooled | wrong(model, current, y)


def torchattacks(model: nn.Module, x: Tensor, y: Tensor, how: Settings) -> Tensor:
    import torchattacks

    torch.manual_seed(how.seed)
    peer = torchattacks.PGD(model, eps=how.eps, alpha=how.step_size, steps=how.steps, random_start=True)
    return wrong(model, peer(x, y), y)


def foolbox(model: nn.Module, x: Tensor, y: Tensor, how: Settings) -> Tensor:
    import foolbox as fb

    torch.manual_seed(how.seed)
    peer = fb.attacks.LinfPGD(abs_stepsize=how.step_size, steps=how.steps, random_start=True)
    _, _, success = peer(fb.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=how.eps)
    return success


def art(model: nn.Module, x: Tensor, y: Tensor, how: Settings) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(how.seed)
    classes = model(x[:1]).shape[1]
    kind = "gpu" if x.is_cuda else "cpu"
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=(0, 1), device_type=kind
    )
    peer = ProjectedGradientDescentPyTorch(
        estimator,
        eps=how.eps,
        eps_step=how.step_size,
        max_iter=how.steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    found = peer.generate(x.cpu().numpy(), y.cpu().numpy())
    model.eval()
    return wrong(model, torch.from_numpy(found).to(x.device), y)


def apgd(model: nn.Module, x: Tensor, y: Tensor, how: Settings) -> Tensor:
    """AutoAttack's APGD on cross-entropy: as many steps, sizes of its own; the stronger attack of the field."""
    from pyautoattack.autopgd_base import APGDAttack

    peer = APGDAttack(model, n_iter=how.steps, eps=how.eps, seed=how.seed, loss="ce", device=x.device)
    return wrong(model, peer.perturb(x, y), y)


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
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
    """The version of the library behind a contender: its own word, empty for the companion, None if not installed."""
    if contender not in PACKAGES:
        return ""
    try:
        return metadata.version(PACKAGES[contender])
    except metadata.PackageNotFoundError:
        return None


warnings.filterwarnings("ignore")
