"""Records as tables: tidy frames first, then the tables a reader sees. Every number keeps its n and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paperlib.config.budgets import budget_text
from paperlib.evaluation import CLEAN, basic_attacks, headline, sweep, wilson
from paperlib.pipeline.study import Study
from paperlib.report.format import counted
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
    """One row per system and attack: eps, n, correct, accuracy, interval, seed, and where the number is from."""
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

    The slow attacks see fewer images; their number stands in the name of the column.
    """
    rows = []
    for system in compared_systems(study) if systems is None else systems:
        row: dict[str, Any] = {"system": system, "what it is": all_recipes(study)[system].description}
        for spec, right in basic_outcomes(study, system).items():
            row[column_of(spec)] = counted(right)
        every = all_outcomes(study, system)
        slow, worst = autoattack_outcome(study, system), worst_case(study, system)
        row |= {
            PGD_WORST_CASE: counted(basic_worst_case(study, system)),
            "n": len(next(iter(basic_outcomes(study, system).values()))),
        }
        row |= {f"AutoAttack, n = {len(worst)}": "" if slow is None else counted(slow)}
        row |= {f"{WORST_CASE}, n = {len(worst)}": counted(worst)}
        rows.append(row | {"attacks": len(every), "seed": study.seed, **cost(study, system)})
    frame = pd.DataFrame(rows).set_index("system")
    soft = [name for name in frame.columns if name.endswith("soft")]
    order = [name for name in frame.columns if name not in soft]
    if soft:  # through an argmax: only systems that pick an expert have one
        order.insert(order.index(PGD_WORST_CASE), soft[0])
    return frame[order].fillna("")


def main_frame(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """`results` of the battery with a ``column`` that names the attack, AutoAttack and both worst cases among them.

    The best expert goes under that name.
    """
    frame = results(study, systems)
    frame["column"] = [attack_column(kind, steps) for kind, steps in zip(frame["attack"], frame["steps"], strict=True)]
    frame["system"] = [display_name(name) for name in frame["system"]]
    further = []
    for system in systems:
        slow = {"AutoAttack": autoattack_outcome(study, system), WORST_CASE: worst_case(study, system)}
        for name, right in {PGD_WORST_CASE: basic_worst_case(study, system), **slow}.items():
            if right is None:
                continue
            low, high = wilson(int(right.sum()), len(right))
            shown = f"{name}, n = {len(right)}" if name in slow else name
            row = {"system": display_name(system), "attack": name, "column": shown, "n": len(right)}
            row |= {"correct": int(right.sum()), "accuracy": float(right.float().mean()), "low": low, "high": high}
            further.append(row | {"seed": study.seed})
    return pd.concat([frame, pd.DataFrame(further)], ignore_index=True)


def headline_name(study: Study) -> str:
    """Such as ``PGD-50 at eps 8/255``."""
    spec = headline(study.profile.evaluation)
    return f"{attack_column(spec.kind, spec.steps)} at eps {budget_text(spec.eps)}"
