"""The nine experts of the paper, pre-trained one by one (phase 1)."""

from __future__ import annotations

from paperlib.config.schema import Profile, TrainConfig
from paperlib.systems.attack_sets import AttackSets, attack_sets
from paperlib.systems.recipe import Recipe
from paperlib.training.adversaries import AttackDistribution, NoAttack
from paperlib.training.update import UpdateStep

# The nine experts of the paper: one benign, four trained on FGSM, four on PGD.
EXPERTS = tuple(f"expert-{i}" for i in range(9))
EXPERT_KINDS = ("benign", *("FGSM",) * 4, *("PGD",) * 4)


def expert_systems(profile: Profile) -> list[Recipe]:
    """Phase 1: nine experts, trained on clean images, FGSM or PGD."""
    sets = attack_sets(profile)
    kinds = dict(zip(EXPERTS, EXPERT_KINDS, strict=True))
    return [expert_recipe(name, kind, sets, profile.phase1, "expert") for name, kind in kinds.items()]


def expert_recipe(system: str, kind: str, sets: AttackSets, training: TrainConfig, family: str) -> Recipe:
    """The recipe of an expert of ``kind`` "benign", "FGSM" or "PGD"."""
    by_kind: dict[str, AttackDistribution] = {"benign": NoAttack(), "FGSM": sets.fgsm, "PGD": sets.pgd}
    select = "clean" if kind == "benign" else "pgd"
    description = f"{kind} expert, phase 1"
    return Recipe(
        system, description, family, update_steps=(UpdateStep(by_kind[kind]),), training=training, select=select
    )
