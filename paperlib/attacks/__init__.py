"""Attacks on images with pixels in [0, 1]: PGD and its objectives, attacks on mixtures, AutoAttack, random noise."""

from paperlib.attacks.autoattack import STANDARD, AutoAttacked, autoattack
from paperlib.attacks.early_stopping import NEVER, Attacked, attack, misclassified
from paperlib.attacks.mixture import is_mixture, mixture_objectives
from paperlib.attacks.noise import random_noise
from paperlib.attacks.objectives import (
    OBJECTIVES,
    AttackObjective,
    Objective,
    cross_entropy,
    losses_for,
    transfer_objective,
)
from paperlib.attacks.pgd import fgsm, pgd

__all__ = [
    "NEVER",
    "OBJECTIVES",
    "STANDARD",
    "AttackObjective",
    "Attacked",
    "AutoAttacked",
    "Objective",
    "attack",
    "autoattack",
    "cross_entropy",
    "fgsm",
    "is_mixture",
    "losses_for",
    "misclassified",
    "mixture_objectives",
    "pgd",
    "random_noise",
    "transfer_objective",
]
