"""Who got which image right: outcomes per image by system and attack, and the systems the tables speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paperlib.errors import MissingError
from paperlib.evaluation import AttackSpec, basic_attacks
from paperlib.pipeline.stages import BEST_EXPERT, attacks_on, autoattack_of, autoattack_systems, best_expert
from paperlib.pipeline.study import Study
from paperlib.systems.experts import EXPERTS
from paperlib.systems.recipe import Recipe
from paperlib.systems.registry import COMPARED, recipes

Systems = Callable[[Study], list[str]]
ATTACK_LABELS = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD"}
PGD_WORST_CASE = "PGD worst case"  # right under all basic attacks: FGSM and PGD, and PGD through a hard choice
WORST_CASE = "worst case"  # right under everything a system faced, on the images that everything saw


def compared_systems(study: Study) -> list[str]:
    """The systems that stand in every comparison, with the best single expert in its place."""
    first, rest = COMPARED[:2], COMPARED[2:]
    return [*first, best_expert(study), *rest]


def all_recipes(study: Study) -> dict[str, Recipe]:
    """Every recipe of the study's profile by the name of its system."""
    return recipes(study.profile)


def main_table_systems(study: Study) -> list[str]:
    """The systems of the main table, family by family, with the best single expert in its place."""
    single, mixture, defence = (
        [r.system for r in all_recipes(study).values() if r.family == family]
        for family in ("single", "mixture", "defence")
    )
    return [*single, best_expert(study), *mixture, *defence]


def resolve_system(study: Study, system: str) -> str:
    """The system itself, or the expert that stands behind ``best-expert`` with this seed."""
    return best_expert(study) if system == BEST_EXPERT else system


def display_name(system: str) -> str:
    """How tables over several seeds call a system: experts in a row of systems are the best one."""
    return BEST_EXPERT if system in EXPERTS else system


def main_table_stages(study: Study, systems: Sequence[str]) -> list[str]:
    """The records of the main table's rows of these systems."""
    found = []
    for system in systems:
        every = EXPERTS if system == BEST_EXPERT else (system,)
        found += [f"train:{name}" for name in every if all_recipes(study)[name].has_weights]
        found += [
            f"evaluate:{name}:{s.name}" for name in every for s in attacks_on(all_recipes(study)[name], study.profile)
        ]
    return found


def stress_stages(study: Study, systems: Sequence[str]) -> list[str]:
    """The records of the worst case of these systems."""
    stored = [display_name(system) for system in systems]
    slow = [f"autoattack:{name}" for name in stored if name in autoattack_systems(study.profile)]
    return [*main_table_stages(study, systems), *(f"stress:{name}" for name in stored), *slow]


def outcome(study: Study, system: str, shown: str) -> Tensor:
    """Per image: correct in a column of the main table (``clean``, ``FGSM``, ``PGD-50`` or one of the worst cases).

    The slow attacks, and so the worst case, see fewer images than the others; all see the first ones of the test split.
    """
    if shown == WORST_CASE:
        return worst_case(study, system)
    if shown == PGD_WORST_CASE:
        return basic_worst_case(study, system)
    spec = next(s for s in basic_attacks(study.profile.evaluation) if attack_column(s.kind, s.steps) == shown)
    return study.outcome(system, spec).arrays["correct"].bool()


def outcomes_over_seeds(studies: Sequence[Study], system: str, shown: str) -> Tensor:
    """The same of every seed (seeds, N); ``best-expert`` is another one with each."""
    return torch.stack([outcome(study, resolve_system(study, system), shown) for study in studies])


def basic_outcomes(study: Study, system: str) -> dict[AttackSpec, Tensor]:
    """Right (N,) under each basic attack: clean, FGSM, PGD, and PGD through the choice of an argmax."""
    specs = attacks_on(all_recipes(study)[system], study.profile)
    return {spec: study.outcome(system, spec).arrays["correct"].bool() for spec in specs}


def basic_worst_case(study: Study, system: str) -> Tensor:
    """Per image (N,): right under every basic attack the system faces."""
    return torch.stack(list(basic_outcomes(study, system).values())).all(dim=0)


def all_outcomes(study: Study, system: str) -> dict[str, Tensor]:
    """Right (n,) under every attack the system faces, by name, on the images that all of them see.

    First the basic attacks, then those of the stress test, then AutoAttack where the system faces it.
    """
    if system in EXPERTS and system != best_expert(study):
        raise MissingError(f"{system}: of the experts only the best one, {best_expert(study)}, was stress-tested")
    struck = {name: right.bool() for name, right in study.get(f"stress:{display_name(system)}").arrays.items()}
    n = len(next(iter(struck.values())))
    found = {spec.name: right[:n] for spec, right in basic_outcomes(study, system).items()} | struck
    slow = autoattack_outcome(study, system)
    return found if slow is None else {**found, autoattack_of(study.profile).name: slow}


def autoattack_outcome(study: Study, system: str) -> Tensor | None:
    """Right (n,) under AutoAttack; None for a system that does not face it in this profile, or on these data."""
    stored = display_name(system)
    if stored not in autoattack_systems(study.profile):
        return None
    correct = study.get(f"autoattack:{stored}").arrays.get("correct")  # absent where it could not be run
    return None if correct is None else correct.bool()


def worst_case(study: Study, system: str) -> Tensor:
    """Per image (n,): right under every attack there is, of the images all of them see. The headline."""
    return torch.stack(list(all_outcomes(study, system).values())).all(dim=0)


def attack_column(kind: str, steps: int) -> str:
    """How a table names an attack: clean, FGSM, PGD-50."""
    return f"PGD-{steps}" if kind == "pgd" else ATTACK_LABELS[kind]


def column_of(spec: AttackSpec) -> str:
    """The same of an attack with all its settings: PGD-50 soft where it aims at a soft stand-in."""
    return attack_column(spec.kind, spec.steps) + (" soft" if spec.objective == "soft" else "")
