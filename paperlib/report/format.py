"""Numbers as text: accuracies and differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from paperlib.evaluation import DifferenceOverSeeds, wilson
from paperlib.pipeline.study import Study
from paperlib.shapes import Correct


def percent(accuracy: float, interval: Sequence[float]) -> str:
    """An accuracy in [0, 1] with its interval, in percent: ``62.8 [57.7, 67.6]``."""
    return f"{accuracy:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]".replace("%", "")


def percent_over_seeds(value: DifferenceOverSeeds) -> str:
    """An accuracy over seeds with its interval, in percent."""
    return percent(value.difference, (max(0.0, value.low), value.high))


def points(difference: float, low: float, high: float) -> str:
    """A difference in [-1, 1] with its interval, in percentage points: ``+3.1 [-0.3, +6.4]``."""
    return f"{signed(difference)} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def plural(n: int, noun: str) -> str:
    """Such as ``1 seed`` or ``3 seeds``."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def accuracy_text(outcomes: Correct) -> str:
    """The accuracy of the outcomes (N,) with its Wilson interval, in percent."""
    n, correct = len(outcomes), int(outcomes.sum())
    return percent(correct / n, wilson(correct, n))


def seeds_of(studies: Sequence[Study]) -> str:
    """Such as ``seed 0`` or ``seeds 0, 1, 2``."""
    return f"seed{'' if len(studies) == 1 else 's'} {', '.join(str(study.seed) for study in studies)}"
