"""Numbers as text: accuracies and differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paperlib.evaluation import DifferenceOverSeeds, wilson
from paperlib.pipeline.study import Study


def percent(accuracy: float, interval: Sequence[float]) -> str:
    """Such as ``62.8 [57.7, 67.6]``, in percent."""
    return f"{accuracy:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]".replace("%", "")


def share(value: DifferenceOverSeeds) -> str:
    """An accuracy over seeds with its interval, in percent."""
    return percent(value.difference, (max(0.0, value.low), value.high))


def points(difference: float, low: float, high: float) -> str:
    """A difference with its interval, in percentage points: ``+3.1 [-0.3, +6.4]``."""
    return f"{signed(difference)} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def so_many(n: int, what: str) -> str:
    """Such as ``1 seed`` or ``3 seeds``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def counted(right: Tensor) -> str:
    """The accuracy of an outcome (N,) with its Wilson interval, in percent."""
    n, correct = len(right), int(right.sum())
    return percent(correct / n, wilson(correct, n))


def seeds_of(studies: Sequence[Study]) -> str:
    """Such as ``seed 0`` or ``seeds 0, 1, 2``."""
    return f"seed{'' if len(studies) == 1 else 's'} {', '.join(str(study.seed) for study in studies)}"
