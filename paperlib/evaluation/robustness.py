"""Accuracy under attack, counted per image: what a robustness number of this companion means."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.memory import in_batches
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import check_settings, check_type, check_weights, check_whole
from paperlib.attacks import (
    NEVER,
    OBJECTIVES,
    STANDARD,
    AttackObjective,
    attack,
    autoattack,
    misclassified,
    pgd,
    random_noise,
)
from paperlib.attacks.autoattack import ITERATIONS, MISCLASSIFIED
from paperlib.attacks.inputs import admit, check_module
from paperlib.data import Split
from paperlib.errors import InputError
from paperlib.evaluation.specs import AttackSpec
from paperlib.evaluation.statistics import wilson
from paperlib.log import progress
from paperlib.models.modes import eval_mode, outside_inference_mode
from paperlib.seeds import cpu_generator


@dataclass(frozen=True)
class EvaluationResult:
    """One system under one attack on n images."""

    correct: Tensor  # (N,) bool: right under every iterate of every restart
    first_success: Tensor  # (N,) int16: the step at which the attack won in its first restart, or NEVER
    passes: float  # network passes per image
    seconds: float
    batch_size: int  # images attacked at once, in the end: fewer than asked for where memory did not suffice

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


@outside_inference_mode()
@tensor_float32(False)
def evaluate(
    model: nn.Module | Folded,
    split: Split,
    spec: AttackSpec,
    *,
    seed: int,
    batch_size: int = 512,
    objectives: Mapping[str, AttackObjective] = OBJECTIVES,
    state: Path | None = None,
    label: str = "evaluation",
    show_progress: bool = True,
) -> EvaluationResult:
    """Attack every image of ``split``; an image counts as right only if no iterate of any restart was misclassified.

    The batch size, halved where memory does not suffice, changes no outcome but for rounding; that of AutoAttack and
    Square decides which images share random numbers. The outcome holds the one that was used.

    Args:
        objectives: what a gradient attack may maximise, by the name in ``spec.objective``; see
            `paperlib.attacks.mixture_objectives`.
        state: a file from which an interrupted AutoAttack goes on.
        show_progress: whether to report progress.

    Raises:
        InputError: pixels or labels out of range. NotFiniteError: NaN or infinity in the model's weights or answers.
    """
    batch_size = check_whole("batch_size", batch_size)
    _check_spec(spec)
    check_settings(seed=seed)
    check_type("aims", objectives, Mapping, "objectives by name, such as paperlib.attacks.AIMS")
    check_weights(model.model if isinstance(model, Folded) else check_module(model, label), label)
    gradient = spec.kind == "autoattack" or (spec.kind in ("fgsm", "pgd") and spec.objective == "cross-entropy")
    folded, split = _admitted(model, split, label, gradient=gradient, float32=spec.kind in ("square", "autoattack"))
    x = split.images
    started = time.monotonic()
    with progress(100, f"{label} under {spec.name}", unit="%", visible=show_progress) as reached:
        work = _Work(
            folded, split, spec, int(seed), batch_size, objectives, state, lambda share: reached(int(100 * share))
        )
        correct, first, passes = ATTACKS[spec.kind](work)
    seconds = time.monotonic() - started
    used = min(batch_size, folded.max_batch or batch_size)
    return EvaluationResult(
        correct.cpu(), first.clamp(max=32_767).to(torch.int16).cpu(), passes / len(x), seconds, used
    )


@dataclass(frozen=True)
class _Work:
    """What an evaluation is asked to do."""

    folded: Folded
    split: Split
    spec: AttackSpec
    seed: int
    batch_size: int
    objectives: Mapping[str, AttackObjective]
    state: Path | None
    progress: Callable[[float], None]

    @property
    def generator(self) -> torch.Generator:
        return cpu_generator(self.seed)


Found = tuple[Tensor, Tensor, float]  # correct (N,), first success (N,), passes in all


def _clean(work: _Work) -> Found:
    x, y = work.split.images, work.split.labels
    with eval_mode(work.folded.model):
        correct = ~misclassified(work.folded, x, y, work.batch_size)
    return correct, torch.where(correct, NEVER, 0), len(x)


def _gradient(work: _Work) -> Found:
    x, y, spec = work.split.images, work.split.labels, work.spec
    if spec.objective not in work.objectives:
        raise InputError(
            f"aim {spec.objective!r}: this model has none of that name; it has {', '.join(work.objectives)}"
        )
    objective, generator = work.objectives[spec.objective], work.generator
    targets = start = None
    spent = 0
    how: dict[str, Any] = {"eps": spec.eps, "step_size": spec.step, "steps": spec.steps}
    if objective.targets is not None:
        with eval_mode(work.folded.model):
            found = in_batches(
                len(x), work.batch_size, work.folded, functools.partial(_targets, work, objective.targets)
            )
            targets = torch.cat([part for _, part in found])
        spent += len(x)
    if objective.warm_start is not None:
        begin: dict[str, Any] = {"random_start": spec.random_start, "generator": generator}
        start = pgd(work.folded, x, y, **how, **begin, objective=objective.warm_start)
        spent += len(x) * spec.steps
    done = attack(
        work.folded,
        x,
        y,
        **how,
        random_start=spec.random_start,
        restarts=spec.restarts,
        generator=generator,
        objective=objective.function,
        targets=targets,
        start=start,
        batch_size=work.batch_size,
        progress=work.progress,
    )
    return ~done.fooled, done.first_success, done.passes + spent


def _targets(work: _Work, targets: Callable[[nn.Module, Tensor, Tensor], Tensor], rows: slice) -> Tensor:
    x = work.split.images[rows].clone()  # the model may edit its input in place
    return targets(work.folded.network, x, work.split.labels[rows])


def _noise(work: _Work) -> Found:
    x, y, spec = work.split.images, work.split.labels, work.spec
    how: dict[str, Any] = {"generator": work.generator, "batch_size": work.batch_size, "progress": work.progress}
    done = random_noise(work.folded, x, y, eps=spec.eps, draws=spec.steps, **how)
    return ~done.fooled, done.first_success, done.passes


def _library(work: _Work) -> Found:
    x, y, spec = work.split.images, work.split.labels, work.spec
    alone = spec.kind == "square"
    done = autoattack(
        work.folded,
        x,
        y,
        eps=spec.eps,
        seed=work.seed % 2**31,
        attacks=("square",) if alone else STANDARD,
        iterations=ITERATIONS if alone else spec.steps,
        queries=spec.steps if alone else spec.queries,
        batch_size=work.batch_size,
        state=work.state,
        progress=work.progress,
    )
    # Which of its attacks won, from 1; 0 for a clean image misclassified.
    first = torch.where(done.fooled_by == MISCLASSIFIED, 0, torch.where(done.fooled, done.fooled_by + 1, NEVER))
    return ~done.fooled, first, done.passes


ATTACKS: dict[str, Callable[[_Work], Found]] = {
    "clean": _clean,
    "fgsm": _gradient,
    "pgd": _gradient,
    "noise": _noise,
    "square": _library,
    "autoattack": _library,
}


@outside_inference_mode()
@tensor_float32(False)
def worst_case(
    model: nn.Module | Folded,
    split: Split,
    specs: Sequence[AttackSpec],
    *,
    seed: int,
    batch_size: int = 512,
    label: str = "evaluation",
    show_progress: bool = True,
) -> EvaluationResult:
    """Right under every one of several attacks, each of which sees only the images that withstood those before it.

    The result's ``first_success`` is that of the attack that won. Put the cheapest attack first.
    """
    batch_size = check_whole("batch_size", batch_size)
    check_type("specs", specs, Sequence, "several AttackSpec")
    for spec in specs:
        _check_spec(spec)
    check_settings(seed=seed)
    folded, split = _admitted(model, split, label)
    surviving = torch.ones_like(split.labels, dtype=torch.bool)
    first = torch.full((len(split),), NEVER, dtype=torch.int16)
    passes = seconds = 0.0
    for spec in specs:
        part = Split(split.images[surviving], split.labels[surviving])
        if len(part) == 0:
            break
        found = evaluate(folded, part, spec, seed=seed, batch_size=batch_size, label=label, show_progress=show_progress)
        first[surviving.cpu()] = found.first_success
        surviving[surviving.clone()] = found.correct.to(surviving.device)
        passes, seconds = passes + found.passes * len(part) / len(split), seconds + found.seconds
        batch_size = found.batch_size
    return EvaluationResult(surviving.cpu(), first, passes, seconds, batch_size)


def _check_spec(spec: object) -> None:
    check_type("spec", spec, AttackSpec, 'an AttackSpec, such as pgd_spec("8/255", 50, "2/255")')
    if isinstance(spec, AttackSpec) and spec.kind not in ATTACKS:
        raise InputError(f"spec: unknown kind {spec.kind!r}; known: {', '.join(ATTACKS)}")


def _admitted(model: nn.Module | Folded, split: Split, label: str, **needs: bool) -> tuple[Folded, Split]:
    """A folded copy and the images it is judged on, as `paperlib.attacks.inputs` admits them."""
    if not isinstance(split, Split):
        raise InputError(f"{label}: expected images and labels as a Split, got a {type(split).__name__}")
    given = admit(model, split.images, split.labels, name=label, **needs)
    if len(given.x) == 0:
        raise InputError("evaluate: no images; an accuracy needs at least one")
    folded = given.model if isinstance(given.model, Folded) else fold(given.model, given.x)
    return folded, Split(given.x, given.y)


def accuracy_by_step(first_success: Tensor, steps: list[int] | tuple[int, ...]) -> list[int]:
    """How many images (of N) withstand each number of iterations, from the step at which each was lost.

    With a fixed step size PGD-k is the beginning of PGD-50, and success at any iterate counts, so one run gives all.
    """
    return [int(((first_success == NEVER) | (first_success > k)).sum()) for k in steps]
