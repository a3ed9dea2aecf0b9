"""Accuracy under attack, counted per image: what a robustness number of this companion means."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.attacks import AIMS, NEVER, attack, misclassified, undisturbed
from paperlib.checks import check_images, check_labels, check_weights
from paperlib.data import Split
from paperlib.errors import InputError
from paperlib.evaluation.metrics import wilson
from paperlib.models import Folded, fold
from paperlib.precision import tensor_float32
from paperlib.profiles import EvaluationConfig, budget_text
from paperlib.progress import Say, meter, say


@dataclass(frozen=True)
class AttackSpec:
    """One attack with all its settings. Budgets are fractions of the pixel range, kept exact."""

    kind: str  # "clean", "fgsm" or "pgd"
    eps: Fraction = Fraction(0)
    step: Fraction = Fraction(0)
    steps: int = 0
    restarts: int = 1
    random_start: bool = False
    aim: str = "cross-entropy"  # what it climbs, a key of `paperlib.attacks.AIMS`

    @property
    def name(self) -> str:
        """Such as ``clean``, ``fgsm@8/255``, ``pgd-50@0.15`` or ``pgd-50-soft@0.15``; restarts show above one."""
        if self.kind == "clean":
            return "clean"
        steps = f"-{self.steps}" if self.kind == "pgd" else ""
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        aim = f"-{self.aim.replace(' ', '-')}" if self.aim != "cross-entropy" else ""
        return f"{self.kind}{steps}{restarts}{aim}@{budget_text(self.eps)}"

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


def through_choices(config: EvaluationConfig) -> list[AttackSpec]:
    """What a system must withstand too if it picks an expert by argmax: the headline attack on its soft stand-in."""
    return [replace(headline(config), aim="soft")]


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
    batch_size: int  # images attacked at once

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
            "batch_size": self.batch_size,
        }

    def arrays(self) -> dict[str, Tensor]:
        return {"correct": self.correct, "first_success": self.first_success}


def evaluate(
    model: nn.Module | Folded,
    split: Split,
    spec: AttackSpec,
    *,
    seed: int,
    batch_size: int = 512,
    label: str = "evaluation",
    say: Say = say,
) -> Outcome:
    """Attack every image of ``split``; an image counts as right only if no iterate of any restart was misclassified.

    The batch size, halved where memory does not suffice, changes no outcome but for rounding.

    Raises:
        InputError: pixels or labels out of range. NotFiniteError: NaN or infinity in the model's weights or answers.
    """
    _check(split)
    check_weights(model.model if isinstance(model, Folded) else model, label)
    x, y = split.images, split.labels
    folded = model if isinstance(model, Folded) else fold(model, x)
    started = time.monotonic()
    with meter(100, f"{label} under {spec.name}", say, unit="%") as reached, tensor_float32(False):
        if spec.kind == "clean":
            with undisturbed(folded.model):
                correct, passes = ~misclassified(folded, x, y, batch_size), len(x)
            first = torch.where(correct, NEVER, 0)
        else:
            done = attack(
                folded,
                x,
                y,
                eps=spec.eps,
                step_size=spec.step,
                steps=spec.steps,
                random_start=spec.random_start,
                restarts=spec.restarts,
                generator=torch.Generator(x.device).manual_seed(seed),
                objective=AIMS[spec.aim].objective,
                batch_size=batch_size,
                progress=lambda share: reached(int(100 * share)),
            )
            correct, first, passes = ~done.fooled, done.first_success, done.passes
    seconds = time.monotonic() - started
    used = min(batch_size, folded.room or batch_size)
    return Outcome(correct.cpu(), first.to(torch.int16).cpu(), passes / len(x), seconds, used)


def worst_case(
    model: nn.Module | Folded,
    split: Split,
    specs: Sequence[AttackSpec],
    *,
    seed: int,
    batch_size: int = 512,
    label: str = "evaluation",
    say: Say = say,
) -> Outcome:
    """Right under every one of several attacks, each of which sees only the images that withstood those before it.

    The result's ``first_success`` is that of the attack that won. Put the cheapest attack first.
    """
    _check(split)
    folded = model if isinstance(model, Folded) else fold(model, split.images)
    standing = torch.ones_like(split.labels, dtype=torch.bool)
    first = torch.full((len(split),), NEVER, dtype=torch.int16)
    passes = seconds = 0.0
    for spec in specs:
        part = Split(split.images[standing], split.labels[standing])
        if len(part) == 0:
            break
        found = evaluate(folded, part, spec, seed=seed, batch_size=batch_size, label=label, say=say)
        first[standing.cpu()] = found.first_success
        standing[standing.clone()] = found.correct.to(standing.device)
        passes, seconds = passes + found.passes * len(part) / len(split), seconds + found.seconds
        batch_size = found.batch_size
    return Outcome(standing.cpu(), first, passes, seconds, batch_size)


def _check(split: Split) -> None:
    check_images(split.images)
    check_labels(split.labels, split.images)
    if len(split) == 0:
        raise InputError("evaluate: no images; an accuracy needs at least one")


def accuracy_by_step(first_success: Tensor, steps: list[int] | tuple[int, ...]) -> list[int]:
    """How many images (of N) withstand each number of iterations, from the step at which each was lost.

    With a fixed step size PGD-k is the beginning of PGD-50, and success at any iterate counts, so one run gives all.
    """
    return [int(((first_success == NEVER) | (first_success > k)).sum()) for k in steps]
