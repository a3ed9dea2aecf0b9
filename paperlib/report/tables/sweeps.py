"""Accuracy over eps and over the number of iterations."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from paperlib.evaluation import accuracy_by_step, headline, wilson
from paperlib.pipeline.study import Study
from paperlib.report.format import percent
from paperlib.report.outcomes import attack_column


def by_steps(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """Accuracy after each number of iterations of the headline attack (first start), with intervals."""
    spec = headline(study.profile.evaluation)
    steps = study.profile.evaluation.steps_sweep
    rows = []
    for system in systems:
        first = study.outcome(system, spec).arrays["first_success"]
        for k, correct in zip(steps, accuracy_by_step(first, steps), strict=True):
            low, high = wilson(correct, len(first))
            rows.append({"system": system, "steps": k, "accuracy": correct / len(first), "low": low, "high": high})
    return pd.DataFrame(rows).assign(n=len(first), seed=study.seed)


def with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """`results` as text: a row for each attack and eps, a column for each system, accuracies with Wilson intervals."""
    cells = [
        percent(a, (low, high)) for a, low, high in zip(frame["accuracy"], frame["low"], frame["high"], strict=True)
    ]
    labels = [attack_column(kind, steps) for kind, steps in zip(frame["attack"], frame["steps"], strict=True)]
    table = frame.assign(cell=cells, attack=labels).pivot(index=["attack", "eps"], columns="system", values="cell")
    return table[list(dict.fromkeys(frame["system"]))]
