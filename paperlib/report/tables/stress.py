"""The stress tests as tables: what each attack takes from each system, and what the audits say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.evaluation import Report, accuracy_over_seeds, difference_over_seeds, headline, wilson
from paperlib.evaluation.auditing.checks import CHECKS
from paperlib.evaluation.auditing.checks.check import FAILS, NOTED, PASSES
from paperlib.pipeline.stages import CONTROLS, audited_systems
from paperlib.pipeline.study import Study
from paperlib.report.format import percent, points, share
from paperlib.report.outcomes import (
    WORST_CASE,
    all_outcomes,
    autoattack_outcome,
    column_of,
    display_name,
    outcomes_over_seeds,
    resolve_system,
)

# Attacks by kind, in the order in which a doubting reader tries them.
FAMILIES = (
    "clean",
    "FGSM",
    "PGD",
    "other losses",
    "longer PGD",
    "hard choice",
    "experts",
    "gate",
    "past the gate",
    "transfer",
    "noise",
    "AutoAttack",
)
_OBJECTIVE_NAMES = {
    r"margin|dlr": "other losses",
    r"soft.*": "hard choice",
    r"expert.*": "experts",
    r"gate-(uniform|held)": "past the gate",
    r"gate-to.*|two-stage.*|joint.*": "gate",
    r"transfer.*": "transfer",
}


def family_of(attack: str) -> str:
    """Which of `FAMILIES` an attack belongs to, by its name."""
    kinds = {"clean": "clean", "fgsm": "FGSM", "noise": "noise", "square": "AutoAttack", "autoattack": "AutoAttack"}
    kind = re.split("[-@]", attack)[0]
    if kind in kinds:
        return kinds[kind]
    found = re.fullmatch(r"pgd-\d+(x\d+)?(?:-(.+))?@.+", attack)
    if not found:
        raise ValueError(f"attack {attack!r}: of no family known")
    restarts, objective = found.groups()
    if objective is None:
        return "longer PGD" if restarts else "PGD"
    return next(name for pattern, name in _OBJECTIVE_NAMES.items() if re.fullmatch(pattern, objective))


def every_attack(study: Study, system: str) -> pd.DataFrame:
    """Every attack on one system: accuracy, interval, n, what it adds to those before it, and how many it leaves."""
    rows = []
    standing: Tensor | None = None
    faced = all_outcomes(study, system)
    for family in FAMILIES:
        for name, right in faced.items():
            if family_of(name) != family:
                continue
            before = torch.ones_like(right) if standing is None else standing
            standing = before & right
            correct, n = int(right.sum()), len(right)
            low, high = wilson(correct, n)
            row = {"attack": name, "family": family, "n": n, "correct": correct, "accuracy": correct / n}
            row |= {"low": low, "high": high, "adds": int(before.sum() - standing.sum()), "left": int(standing.sum())}
            rows.append(row | {"seed": study.seed})
    return pd.DataFrame(rows).set_index("attack")


def gains(studies: Sequence[Study], systems: Sequence[str]) -> pd.DataFrame:
    """What each family of attacks takes beyond those before it, as shares of the images; mean over seeds.

    The last column is what is left: the worst case.
    """
    rows = {}
    for system in systems:
        taken = []
        for study in studies:
            table = every_attack(study, resolve_system(study, system))
            taken.append(table.groupby("family")["adds"].sum().reindex(FAMILIES, fill_value=0) / table["n"].iloc[0])
        mean = pd.concat(taken, axis=1).mean(axis=1)
        rows[display_name(system)] = {**mean, WORST_CASE: 1 - mean.sum()}
    return pd.DataFrame(rows).T


def shrinkage(studies: Sequence[Study], systems: Sequence[str]) -> pd.DataFrame:
    """What is printed and what is left: accuracy under PGD, AutoAttack and everything, over seeds, same images."""
    rows = []
    for system in systems:
        slow = outcomes_over_seeds(studies, system, WORST_CASE)
        n = slow.shape[1]
        spec = headline(studies[0].profile.evaluation)
        each = [all_outcomes(study, resolve_system(study, system)) for study in studies]
        pgd = torch.stack([found[spec.name] for found in each])
        auto = [autoattack_outcome(study, resolve_system(study, system)) for study in studies]
        told = (
            share(accuracy_over_seeds(torch.stack([a for a in auto if a is not None]))) if auto[0] is not None else ""
        )
        fell = difference_over_seeds(pgd, slow)
        row = {"system": display_name(system), column_of(spec): share(accuracy_over_seeds(pgd)), "AutoAttack": told}
        row |= {
            WORST_CASE: share(accuracy_over_seeds(slow)),
            "overstated by": points(fell.difference, fell.low, fell.high),
        }
        rows.append({**row, "attacks": len(each[0]), "seeds": len(studies), "n": n})
    return pd.DataFrame(rows).set_index("system")


def audit_of(study: Study, system: str) -> Report:
    """The audit of a system's PGD accuracy."""
    return Report.from_json(study.record(f"audit:{system}"))


def audits(study: Study) -> pd.DataFrame:
    """One row per audited system: what is claimed, what is left, which checks fired, whether it is believed."""
    rows = []
    for system in audited_systems(study.profile):
        report = audit_of(study, system)
        left = (report.worst or 0) / report.n
        row: dict[str, Any] = {"system": system, report.claim: f"{100 * (report.claimed or 0):.1f}"}
        row |= {WORST_CASE: percent(left, wilson(report.worst or 0, report.n)), "attacks": len(report.attacks)}
        row |= {"fired": ", ".join(report.failed) or "none", "believed": "yes" if report.believed else "no"}
        rows.append(row | {"n": report.n, "seed": study.seed})
    return pd.DataFrame(rows).set_index("system")


def control_reports(study: Study) -> dict[str, tuple[str, str, Report]]:
    """Every control: its fault, the check that must find it (empty for the honest ones), and the audit."""
    rows = study.record(CONTROLS)["rows"]
    return {row["control"]: (row["what"], row["expected"], Report.from_json(row["report"])) for row in rows}


def controls_table(study: Study) -> pd.DataFrame:
    """Control by check: ``F`` fired, ``n`` noted, ``.`` passed, blank not asked; brackets where it must fire."""
    rows = {}
    marks = {FAILS: "F", NOTED: "n", PASSES: "."}
    for control, (_, expected, report) in control_reports(study).items():
        found = {finding.name: marks.get(finding.verdict, "") for finding in report.findings}
        rows[control] = {name: f"[{mark}]" if name == expected else mark for name, mark in found.items()}
    order = [pitfall.name for pitfall in sorted(CHECKS, key=lambda pitfall: pitfall.row)]
    return pd.DataFrame(rows).T[order]


def controls_verdicts(study: Study) -> pd.DataFrame:
    """One row per control: the fault, the check that must fire, whether it did, and whether the number is believed."""
    rows = []
    for control, (what, expected, report) in control_reports(study).items():
        caught = expected in report.failed if expected else not report.failed
        row = {"control": control, "what": what, "must fire": expected or "nothing", "as it must": caught}
        others = [name for name in report.failed if name != expected]
        rows.append(row | {"fired too": ", ".join(others), "believed": report.believed, "n": report.n})
    return pd.DataFrame(rows).set_index("control")
