"""The attack distributions of a profile, which the recipes use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from paperlib.config.schema import Profile, TrainConfig
from paperlib.training.adversaries import NoAttack, OneOf, RandomFGSM, RandomPGD

PGD_AT_STEPS = 10  # the usual number of iterations of PGD adversarial training (Madry et al. 2018; Rice et al. 2020)


@dataclass(frozen=True)
class AttackSets:
    """The attack distributions of a profile."""

    fgsm: RandomFGSM
    pgd: RandomPGD
    pgd_at: RandomPGD  # PGD with 10 iterations, as in PGD adversarial training
    phase2: OneOf  # clean, FGSM or PGD


def attack_sets(profile: Profile) -> AttackSets:
    threat = profile.threat
    fgsm = RandomFGSM(tuple(float(eps) for eps in threat.fgsm_eps))
    pgd = RandomPGD(float(threat.pgd_eps), float(threat.pgd_step), threat.pgd_steps, threat.random_start)
    return AttackSets(fgsm, pgd, replace(pgd, steps=(PGD_AT_STEPS,)), OneOf((NoAttack(), fgsm, pgd)))


def both_phases(profile: Profile) -> TrainConfig:
    """Training with the epochs of both phases, so that DWF is not compared with networks trained for fewer epochs."""
    return replace(profile.phase1, epochs=profile.phase1.epochs + profile.phase2.epochs)
