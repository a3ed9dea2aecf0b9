"""One attack of the pyautoattack library, with the settings of AutoAttack's ``standard`` version."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.arguments import logits_of
from paperlib.attacks.inputs import no_gradient
from paperlib.errors import PaperlibError
from paperlib.shapes import Images, Labels, Logits

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")  # in the order of the standard version
QUERIES, ITERATIONS, TARGETS = 5000, 100, 9  # of the standard version


@dataclass(frozen=True)
class Settings:
    """The settings of a run, checked."""

    eps: float
    seed: int
    attacks: tuple[str, ...]
    iterations: int
    queries: int


class CountingNetwork(nn.Module):
    """A network that counts its forward passes, reports progress and records whether all logits were finite.

    Args:
        expected: forward passes of the whole attack, each image counted, if no image is fooled.
        progress: called at most once a second with the share of the attack that is done.
    """

    def __init__(self, network: nn.Module, expected: int, progress: Callable[[float], None]) -> None:
        super().__init__()
        self.network, self.expected, self.progress = network, expected, progress
        self.passes, self.last_report = 0, time.monotonic()
        self.finite: Tensor | bool = True

    def forward(self, x: Images) -> Logits:
        self.passes += len(x)
        if time.monotonic() - self.last_report > 1:
            self.last_report = time.monotonic()
            self.progress(min(0.99, self.passes / self.expected))
        logits = logits_of(self.network, x)
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise no_gradient()
        self.finite = torch.isfinite(logits.detach()).all() & self.finite
        return logits.to(x.dtype)  # the library writes losses and margins into tensors of the dtype of the images


def perturb(model: nn.Module, attack: str, x: Images, y: Labels, settings: Settings) -> Images:
    """The images that one attack of the library returns for images that the model classifies correctly.

    Raises:
        PaperlibError: pyautoattack is not installed.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise PaperlibError("AutoAttack needs pyautoattack 0.2 or newer: pip install pyautoattack") from error
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    library = AutoAttack(model, norm="Linf", eps=settings.eps, seed=settings.seed, version="standard", device=x.device)
    attacker = {
        "apgd-ce": library.apgd,
        "apgd-t": library.apgd_targeted,
        "fab-t": library.fab,
        "square": library.square,
    }[attack]
    library.logger.setLevel(logging.ERROR)  # the audit checks what the library would warn about
    attacker.seed = settings.seed
    if attack == "square":
        attacker.n_queries = settings.queries
    else:
        attacker.n_iter = settings.iterations
    if attack == "apgd-ce":
        attacker.loss = "ce"
    if attack in ("apgd-t", "fab-t"):
        attacker.n_target_classes = min(TARGETS, classes - 1)
    if attack == "fab-t":
        attacker.targeted = True
    with torch.no_grad():
        images: Tensor = attacker.perturb(x.clone(), y.clone())
    return images.detach()


def passes_per_image(attack: str, settings: Settings) -> int:
    """Forward passes of an attack for an image that it does not fool."""
    iterations = settings.iterations
    passes = {"apgd-ce": iterations, "apgd-t": TARGETS * iterations, "fab-t": 2 * TARGETS * iterations}
    return passes.get(attack, settings.queries)
