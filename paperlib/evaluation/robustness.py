"""Accuracy under attack: each image is correct or not, under one attack (`evaluate`) or several (`worst_case`)."""

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
from paperlib.shapes import Correct


@dataclass(frozen=True)
class EvaluationResult:
    """The outcome of an attack on N images.

    For AutoAttack and Square, ``first_success`` holds the number of the attack that succeeded, from 1.
    """

    correct: Correct  # classified correctly at every iterate of every restart
    first_success: Tensor  # (N,) int16: the first step at which the attack succeeded in the first restart, or NEVER
    passes: float  # forward passes per image, with or without a backward pass
    seconds: float
    batch_size: int  # images attacked at once; smaller than requested if memory ran out

    def record(self) -> dict[str, Any]:
        """The accuracy as a fraction, its Wilson 95 % interval (it covers the sampling of images), and the cost."""
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
        """The outcome of each image."""
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
    """Attack every image of ``split``. An image is correct only if no iterate of any restart is misclassified.

    The model is evaluated in evaluation mode and left unchanged. The batch size is halved when memory runs out. It
    changes outcomes by rounding only, except for AutoAttack and Square, where the images of a batch share random
    numbers; the result therefore holds the batch size that was used.

    Args:
        objectives: the objectives that a gradient attack may maximise, by the names used in ``spec.objective``; see
            `paperlib.attacks.mixture_objectives`.
        state: a file from which an interrupted AutoAttack resumes.
        label: the name of the model in progress lines and errors.
        show_progress: whether to log progress.

    Raises:
        InputError: images, labels, settings or the model's output are invalid, or ``split`` is empty.
        NotFiniteError: NaN or infinity in the weights, the pixels or the logits.
    """
    batch_size = check_whole("batch_size", batch_size)
    _check_spec(spec)
    check_settings(seed=seed)
    check_type("aims", objectives, Mapping, "objectives by name, such as paperlib.attacks.OBJECTIVES")
    check_weights(model.model if isinstance(model, Folded) else check_module(model, label), label)
    gradient = spec.kind == "autoattack" or (spec.kind in ("fgsm", "pgd") and spec.objective == "cross-entropy")
    folded, split = _check_inputs(model, split, label, gradient=gradient, float32=spec.kind in ("square", "autoattack"))
    started = time.monotonic()
    with progress(100, f"{label} under {spec.name}", unit="%", visible=show_progress) as log_progress:
        task = _Task(
            folded, split, spec, int(seed), batch_size, objectives, state, lambda share: log_progress(int(100 * share))
        )
        correct, first_success, passes = ATTACKS[spec.kind](task)
    seconds = time.monotonic() - started
    used = min(batch_size, folded.max_batch or batch_size)
    first_success = first_success.clamp(max=32_767).to(torch.int16).cpu()
    return EvaluationResult(correct.cpu(), first_success, passes / len(split), seconds, used)


@dataclass(frozen=True)
class _Task:
    """A checked evaluation: the model, the images, the attack and its settings."""

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


Outcome = tuple[Tensor, Tensor, int]  # correct (N,), first success (N,), total number of forward passes


def _clean(task: _Task) -> Outcome:
    x, y = task.split.images, task.split.labels
    with eval_mode(task.folded.model):
        correct = ~misclassified(task.folded, x, y, task.batch_size)
    return correct, torch.where(correct, NEVER, 0), len(x)


def _gradient(task: _Task) -> Outcome:
    x, y, spec = task.split.images, task.split.labels, task.spec
    if spec.objective not in task.objectives:
        raise InputError(
            f"objective {spec.objective!r}: not available for this model; available: {', '.join(task.objectives)}"
        )
    objective, generator = task.objectives[spec.objective], task.generator
    targets = start = None
    extra_passes = 0
    settings: dict[str, Any] = {"eps": spec.eps, "step_size": spec.step, "steps": spec.steps}
    if objective.targets is not None:
        with eval_mode(task.folded.model):
            batches = in_batches(
                len(x), task.batch_size, task.folded, functools.partial(_targets, task, objective.targets)
            )
            targets = torch.cat([part for _, part in batches])
        extra_passes += len(x)
    if objective.warm_start is not None:
        start = pgd(
            task.folded,
            x,
            y,
            **settings,
            random_start=spec.random_start,
            generator=generator,
            objective=objective.warm_start,
        )
        extra_passes += len(x) * spec.steps
    result = attack(
        task.folded,
        x,
        y,
        **settings,
        random_start=spec.random_start,
        restarts=spec.restarts,
        generator=generator,
        objective=objective.function,
        targets=targets,
        start=start,
        batch_size=task.batch_size,
        progress=task.progress,
    )
    return ~result.fooled, result.first_success, result.passes + extra_passes


def _targets(task: _Task, targets: Callable[[nn.Module, Tensor, Tensor], Tensor], rows: slice) -> Tensor:
    x = task.split.images[rows].clone()  # the model may edit its input in place
    return targets(task.folded.network, x, task.split.labels[rows])


def _noise(task: _Task) -> Outcome:
    x, y, spec = task.split.images, task.split.labels, task.spec
    result = random_noise(
        task.folded,
        x,
        y,
        eps=spec.eps,
        draws=spec.steps,
        generator=task.generator,
        batch_size=task.batch_size,
        progress=task.progress,
    )
    return ~result.fooled, result.first_success, result.passes


def _autoattack(task: _Task) -> Outcome:
    x, y, spec = task.split.images, task.split.labels, task.spec
    square_only = spec.kind == "square"
    result = autoattack(
        task.folded,
        x,
        y,
        eps=spec.eps,
        seed=task.seed % 2**31,
        attacks=("square",) if square_only else STANDARD,
        iterations=ITERATIONS if square_only else spec.steps,
        queries=spec.steps if square_only else spec.queries,
        batch_size=task.batch_size,
        state=task.state,
        progress=task.progress,
    )
    # The number of the attack that succeeded, from 1; 0 where the clean image is misclassified.
    number = torch.where(result.fooled_by == MISCLASSIFIED, 0, torch.where(result.fooled, result.fooled_by + 1, NEVER))
    return ~result.fooled, number, result.passes


ATTACKS: dict[str, Callable[[_Task], Outcome]] = {
    "clean": _clean,
    "fgsm": _gradient,
    "pgd": _gradient,
    "noise": _noise,
    "square": _autoattack,
    "autoattack": _autoattack,
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
    """Run several attacks in turn, each on the images that survived all attacks before it.

    An image is correct only if it is correct under every attack. Its ``first_success`` is that of the attack that
    succeeded. Put the cheapest attack first. Arguments and errors as in `evaluate`.
    """
    batch_size = check_whole("batch_size", batch_size)
    check_type("specs", specs, Sequence, "several AttackSpec")
    for spec in specs:
        _check_spec(spec)
    check_settings(seed=seed)
    folded, split = _check_inputs(model, split, label)
    surviving = torch.ones_like(split.labels, dtype=torch.bool)
    first_success = torch.full((len(split),), NEVER, dtype=torch.int16)
    passes = seconds = 0.0
    for spec in specs:
        part = Split(split.images[surviving], split.labels[surviving])
        if len(part) == 0:
            break
        result = evaluate(
            folded, part, spec, seed=seed, batch_size=batch_size, label=label, show_progress=show_progress
        )
        first_success[surviving.cpu()] = result.first_success
        surviving[surviving.clone()] = result.correct.to(surviving.device)
        passes, seconds = passes + result.passes * len(part) / len(split), seconds + result.seconds
        batch_size = result.batch_size
    return EvaluationResult(surviving.cpu(), first_success, passes, seconds, batch_size)


def _check_spec(spec: object) -> None:
    check_type("spec", spec, AttackSpec, 'an AttackSpec, such as pgd_spec("8/255", 50, "2/255")')
    if isinstance(spec, AttackSpec) and spec.kind not in ATTACKS:
        raise InputError(f"spec: unknown kind {spec.kind!r}; known: {', '.join(ATTACKS)}")


def _check_inputs(model: nn.Module | Folded, split: Split, label: str, **needs: bool) -> tuple[Folded, Split]:
    """The model, folded, and the images, after the checks and conversions of `paperlib.attacks.inputs.admit`."""
    if not isinstance(split, Split):
        raise InputError(f"{label}: expected images and labels as a Split, got a {type(split).__name__}")
    inputs = admit(model, split.images, split.labels, name=label, **needs)
    if len(inputs.x) == 0:
        raise InputError("evaluate: no images; an accuracy needs at least one")
    folded = inputs.model if isinstance(inputs.model, Folded) else fold(inputs.model, inputs.x)
    return folded, Split(inputs.x, inputs.y)


def accuracy_by_step(first_success: Tensor, steps: list[int] | tuple[int, ...]) -> list[int]:
    """How many of N images are correct under PGD with each number of ``steps``, from one run with the most steps.

    With a fixed step size, PGD-k is the first k steps of a longer run, and success at any iterate counts. An image is
    therefore correct under PGD-k if its ``first_success`` (N,) is above k or is `NEVER`.
    """
    return [int(((first_success == NEVER) | (first_success > k)).sum()) for k in steps]
