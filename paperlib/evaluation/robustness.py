"""Accuracy under attack, counted per image: what a robustness number of this companion means."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.attacks import NEVER, attack, undisturbed
from paperlib.checks import check_images, check_labels, check_logits
from paperlib.data import Split
from paperlib.errors import InputError
from paperlib.evaluation.metrics import wilson
from paperlib.profiles import EvaluationConfig, budget_text
from paperlib.progress import Say, say, track


@dataclass(frozen=True)
class AttackSpec:
    """One attack with all its settings. Budgets are fractions of the pixel range, kept exact."""

    kind: str  # "clean", "fgsm" or "pgd"
    eps: Fraction = Fraction(0)
    step: Fraction = Fraction(0)
    steps: int = 0
    restarts: int = 1
    random_start: bool = False

    @property
    def name(self) -> str:
        """Such as ``clean``, ``fgsm@8/255`` or ``pgd-50@0.15``; restarts show where there is more than one."""
        if self.kind == "clean":
            return "clean"
        steps = f"-{self.steps}" if self.kind == "pgd" else ""
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"{self.kind}{steps}{restarts}@{budget_text(self.eps)}"

    def table(self) -> dict[str, Any]:
        """JSON-ready, budgets as text."""
        return {**asdict(self), "eps": budget_text(self.eps), "step": budget_text(self.step)}


CLEAN = AttackSpec("clean")


def fgsm_spec(eps: Fraction) -> AttackSpec:
    """FGSM at ``eps``: one step, no random start."""
    return AttackSpec("fgsm", eps, eps, 1)


def pgd_spec(eps: Fraction, steps: int, step: Fraction, restarts: int = 1) -> AttackSpec:
    """PGD at ``eps`` from random starts."""
    return AttackSpec("pgd", eps, step, steps, restarts, random_start=True)


def headline(config: EvaluationConfig) -> AttackSpec:
    """The attack of the main table."""
    return pgd_spec(config.eps, config.steps, config.step, config.restarts)


def battery(config: EvaluationConfig) -> list[AttackSpec]:
    """The attacks of the main table: clean, FGSM and PGD at the headline eps."""
    return [CLEAN, fgsm_spec(config.eps), headline(config)]


def sweep(config: EvaluationConfig) -> list[AttackSpec]:
    """FGSM and PGD over the eps of the profile; PGD's step size keeps its proportion to eps."""
    ratio = config.step / config.eps
    specs = [fgsm_spec(eps) for eps in config.eps_sweep]
    specs += [pgd_spec(eps, config.steps, eps * ratio, config.restarts) for eps in config.eps_sweep]
    return specs


@dataclass(frozen=True)
class Outcome:
    """One system under one attack on n images."""

    correct: Tensor  # (N,) bool: right under every iterate of every restart
    first_success: Tensor  # (N,) int16: the step at which the attack won in its first restart, or NEVER
    passes: float  # network passes per image
    seconds: float

    def record(self) -> dict[str, Any]:
        """n, correct, accuracy and its Wilson 95 % interval, with what it cost."""
        n, correct = len(self.correct), int(self.correct.sum())
        return {
            "n": n,
            "correct": correct,
            "accuracy": correct / n,
            "interval": list(wilson(correct, n)),
            "passes_per_image": self.passes,
            "seconds": self.seconds,
        }

    def arrays(self) -> dict[str, Tensor]:
        return {"correct": self.correct, "first_success": self.first_success}


def evaluate(
    model: nn.Module,
    split: Split,
    spec: AttackSpec,
    *,
    seed: int,
    batch_size: int = 512,
    label: str = "evaluation",
    say: Say = say,
) -> Outcome:
    """Attack every image of ``split``; an image counts as right only if no iterate of any restart was misclassified.

    Raises:
        InputError: pixels or labels out of range. NotFiniteError: NaN or infinity in the model's answers.
    """
    x, y = split.images, split.labels
    check_images(x)
    check_labels(y, x)
    if len(x) == 0:
        raise InputError("evaluate: no images; an accuracy needs at least one")
    generator = torch.Generator(x.device).manual_seed(seed)
    started = time.monotonic()
    correct, first, passes = [], [], 0
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    for xb, yb in track(batches, len(batches), f"{label} under {spec.name}", say):
        if spec.kind == "clean":
            with undisturbed(model), torch.no_grad():
                logits = model(xb)
            check_logits(logits, yb)
            right = logits.argmax(dim=1) == yb
            fooled_at, cost = torch.where(right, NEVER, 0), len(xb)
        else:
            done = attack(
                model,
                xb,
                yb,
                eps=spec.eps,
                step_size=spec.step,
                steps=spec.steps,
                random_start=spec.random_start,
                restarts=spec.restarts,
                generator=generator,
            )
            right, fooled_at, cost = ~done.fooled, done.first_success, done.passes
        correct.append(right.cpu())
        first.append(fooled_at.to(torch.int16).cpu())
        passes += cost
    return Outcome(torch.cat(correct), torch.cat(first), passes / len(x), time.monotonic() - started)


def accuracy_by_step(first_success: Tensor, steps: list[int] | tuple[int, ...]) -> list[int]:
    """How many images (of N) withstand each number of iterations, from the step at which each was lost.

    With a fixed step size PGD-k is the beginning of PGD-50, and success at any iterate counts, so one run gives all.
    """
    return [int(((first_success == NEVER) | (first_success > k)).sum()) for k in steps]
