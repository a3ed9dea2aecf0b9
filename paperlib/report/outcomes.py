"""Outcomes of each image by system and attack, and the systems of the tables.

An outcome is True where the prediction is correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from paperlib.errors import MissingError
from paperlib.evaluation import AttackSpec, basic_attacks
from paperlib.pipeline.stages import BEST_EXPERT, attacks_on, autoattack_of, autoattack_systems, best_expert
from paperlib.pipeline.study import Study
from paperlib.shapes import Correct, CorrectOverSeeds
from paperlib.systems.experts import EXPERTS
from paperlib.systems.recipe import Recipe
from paperlib.systems.registry import COMPARED, recipes

Systems = Callable[[Study], list[str]]
ATTACK_LABELS = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD"}
# Correct under all basic attacks: FGSM, PGD, and PGD on a differentiable surrogate of hard routing.
PGD_WORST_CASE = "PGD worst case"
WORST_CASE = "worst case"  # correct under all attacks that were run on a system, on the images common to all


def compared_systems(study: Study) -> list[str]:
    """The systems of every comparison, among them the best single expert."""
    first, rest = COMPARED[:2], COMPARED[2:]
    return [*first, best_expert(study), *rest]


def all_recipes(study: Study) -> dict[str, Recipe]:
    """The recipes of the study's profile by the name of their system."""
    return recipes(study.profile)


def main_table_systems(study: Study) -> list[str]:
    """The systems of the main table by family, among them the best single expert."""
    single, mixture, defence = (
        [r.system for r in all_recipes(study).values() if r.family == family]
        for family in ("single", "mixture", "defence")
    )
    return [*single, best_expert(study), *mixture, *defence]


def resolve_system(study: Study, system: str) -> str:
    """The system itself, or for ``best-expert`` the best expert of this seed."""
    return best_expert(study) if system == BEST_EXPERT else system


def display_name(system: str) -> str:
    """The name of a system in tables over seeds: ``best-expert`` for an expert, which is the best one of its seed."""
    return BEST_EXPERT if system in EXPERTS else system


def main_table_stages(study: Study, systems: Sequence[str]) -> list[str]:
    """The stages behind the rows of these systems in the main table."""
    stages = []
    for system in systems:
        members = EXPERTS if system == BEST_EXPERT else (system,)
        stages += [f"train:{name}" for name in members if all_recipes(study)[name].has_weights]
        stages += [
            f"evaluate:{name}:{s.name}" for name in members for s in attacks_on(all_recipes(study)[name], study.profile)
        ]
    return stages


def stress_stages(study: Study, systems: Sequence[str]) -> list[str]:
    """The stages behind the worst case of these systems."""
    names = [display_name(system) for system in systems]
    slow = [f"autoattack:{name}" for name in names if name in autoattack_systems(study.profile)]
    return [*main_table_stages(study, systems), *(f"stress:{name}" for name in names), *slow]


def outcome(study: Study, system: str, column: str) -> Correct:
    """Outcomes (N,) in a column of the main table: ``clean``, ``FGSM``, ``PGD-50`` or one of the worst cases.

    The slow attacks, and so the worst case, are run on fewer images than the others: on the first of the test split.
    """
    if column == WORST_CASE:
        return worst_case(study, system)
    if column == PGD_WORST_CASE:
        return basic_worst_case(study, system)
    spec = next(s for s in basic_attacks(study.profile.evaluation) if attack_column(s.kind, s.steps) == column)
    return study.outcome(system, spec).arrays["correct"].bool()


def outcomes_over_seeds(studies: Sequence[Study], system: str, column: str) -> CorrectOverSeeds:
    """`outcome` for each seed (seeds, N); ``best-expert`` may be another expert in each."""
    return torch.stack([outcome(study, resolve_system(study, system), column) for study in studies])


def basic_outcomes(study: Study, system: str) -> dict[AttackSpec, Correct]:
    """Outcomes (N,) under each basic attack: clean, FGSM, PGD, and for hard routing PGD on its surrogate."""
    specs = attacks_on(all_recipes(study)[system], study.profile)
    return {spec: study.outcome(system, spec).arrays["correct"].bool() for spec in specs}


def basic_worst_case(study: Study, system: str) -> Correct:
    """For each image (N,): correct under every basic attack on the system."""
    return torch.stack(list(basic_outcomes(study, system).values())).all(dim=0)


def all_outcomes(study: Study, system: str) -> dict[str, Correct]:
    """Outcomes (n,) under every attack that was run on the system, by name, on the n images common to all.

    First the basic attacks, then those of the stress test, then AutoAttack if it was run.

    Raises:
        MissingError: the system is an expert other than the best one, so it has no stress test.
    """
    if system in EXPERTS and system != best_expert(study):
        raise MissingError(f"{system}: of the experts only the best one, {best_expert(study)}, was stress-tested")
    stress = {name: correct.bool() for name, correct in study.get(f"stress:{display_name(system)}").arrays.items()}
    n = len(next(iter(stress.values())))
    outcomes = {spec.name: correct[:n] for spec, correct in basic_outcomes(study, system).items()} | stress
    slow = autoattack_outcome(study, system)
    return outcomes if slow is None else {**outcomes, autoattack_of(study.profile).name: slow}


def autoattack_outcome(study: Study, system: str) -> Correct | None:
    """Outcomes (n,) under AutoAttack; None if it was not run on this system in this profile, or not on these data."""
    name = display_name(system)
    if name not in autoattack_systems(study.profile):
        return None
    correct = study.get(f"autoattack:{name}").arrays.get("correct")  # absent where it could not be run
    return None if correct is None else correct.bool()


def worst_case(study: Study, system: str) -> Correct:
    """For each image (n,): correct under every attack that was run, on the images common to all. The headline."""
    return torch.stack(list(all_outcomes(study, system).values())).all(dim=0)


def attack_column(kind: str, steps: int) -> str:
    """The name of an attack in a table: clean, FGSM, PGD-50."""
    return f"PGD-{steps}" if kind == "pgd" else ATTACK_LABELS[kind]


def column_of(spec: AttackSpec) -> str:
    """`attack_column` of an attack with all its settings: ``PGD-50 soft`` on the differentiable surrogate."""
    return attack_column(spec.kind, spec.steps) + (" soft" if spec.objective == "soft" else "")
