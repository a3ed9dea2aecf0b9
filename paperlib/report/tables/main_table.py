"""Accuracies of all systems under all attacks, as tidy frames and as the main table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paperlib.config.budgets import budget_text
from paperlib.evaluation import CLEAN, basic_attacks, headline, sweep, wilson
from paperlib.pipeline.study import Study
from paperlib.report.format import accuracy_text
from paperlib.report.outcomes import (
    PGD_WORST_CASE,
    WORST_CASE,
    all_outcomes,
    all_recipes,
    attack_column,
    autoattack_outcome,
    basic_outcomes,
    basic_worst_case,
    column_of,
    compared_systems,
    display_name,
    worst_case,
)
from paperlib.report.tables.cost import cost


def results(study: Study, systems: Sequence[str], *, swept: bool = False) -> pd.DataFrame:
    """One row for each system and attack: eps, n, correct, accuracy, interval, seed, and the source of the record.

    With ``swept``, the attacks of the sweep over eps instead of the basic attacks.
    """
    config = study.profile.evaluation
    specs = [CLEAN, *sweep(config)] if swept else basic_attacks(config)
    rows = []
    for system in systems:
        for spec in specs:
            artefact = study.outcome(system, spec)
            result = artefact.record["result"]
            rows.append(
                {
                    "system": system,
                    "attack": spec.kind,
                    "eps": float(spec.eps),
                    "steps": spec.steps,
                    "n": result["n"],
                    "correct": result["correct"],
                    "accuracy": result["accuracy"],
                    "low": result["interval"][0],
                    "high": result["interval"][1],
                    "seed": study.seed,
                    "source": artefact.source,
                    "key": artefact.key,
                }
            )
    return pd.DataFrame(rows)


def main_table(study: Study, systems: Sequence[str] | None = None) -> pd.DataFrame:
    """Every system under every basic attack, AutoAttack and the worst case of all, with intervals, size and cost.

    The slow attacks are run on fewer images; the name of their column gives the number.
    """
    rows = []
    for system in compared_systems(study) if systems is None else systems:
        row: dict[str, Any] = {"system": system, "description": all_recipes(study)[system].description}
        for spec, correct in basic_outcomes(study, system).items():
            row[column_of(spec)] = accuracy_text(correct)
        slow, worst = autoattack_outcome(study, system), worst_case(study, system)
        row |= {
            PGD_WORST_CASE: accuracy_text(basic_worst_case(study, system)),
            "n": len(next(iter(basic_outcomes(study, system).values()))),
        }
        row |= {f"AutoAttack, n = {len(worst)}": "" if slow is None else accuracy_text(slow)}
        row |= {f"{WORST_CASE}, n = {len(worst)}": accuracy_text(worst)}
        rows.append(row | {"attacks": len(all_outcomes(study, system)), "seed": study.seed, **cost(study, system)})
    frame = pd.DataFrame(rows).set_index("system")
    soft = [name for name in frame.columns if name.endswith("soft")]
    order = [name for name in frame.columns if name not in soft]
    if soft:  # only systems with hard routing have a surrogate
        order.insert(order.index(PGD_WORST_CASE), soft[0])
    return frame[order].fillna("")


def main_frame(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """`results` with a ``column`` that names the attack, and with rows for AutoAttack and both worst cases.

    The best expert is named ``best-expert``.
    """
    frame = results(study, systems)
    frame["column"] = [attack_column(kind, steps) for kind, steps in zip(frame["attack"], frame["steps"], strict=True)]
    frame["system"] = [display_name(name) for name in frame["system"]]
    rows = []
    for system in systems:
        slow = {"AutoAttack": autoattack_outcome(study, system), WORST_CASE: worst_case(study, system)}
        for attack, outcomes in {PGD_WORST_CASE: basic_worst_case(study, system), **slow}.items():
            if outcomes is None:
                continue
            correct, n = int(outcomes.sum()), len(outcomes)
            low, high = wilson(correct, n)
            column = f"{attack}, n = {n}" if attack in slow else attack
            row = {"system": display_name(system), "attack": attack, "column": column, "n": n, "correct": correct}
            row |= {"accuracy": float(outcomes.float().mean()), "low": low, "high": high, "seed": study.seed}
            rows.append(row)
    return pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)


def headline_name(study: Study) -> str:
    """Such as ``PGD-50 at eps 8/255``."""
    spec = headline(study.profile.evaluation)
    return f"{attack_column(spec.kind, spec.steps)} at eps {budget_text(spec.eps)}"
