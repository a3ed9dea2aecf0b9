"""Attacks on [0, 1] pixels: one gradient loop, what it climbs, attacks made for mixtures, AutoAttack, and noise."""

from paperlib.attacks.autoattack import STANDARD, AutoAttacked, autoattack
from paperlib.attacks.early_stopping import NEVER, Attacked, attack, misclassified
from paperlib.attacks.mixture import is_mixture, mixture_aims
from paperlib.attacks.noise import random_noise
from paperlib.attacks.objectives import AIMS, Aim, Objective, cross_entropy, losses_for, transferred
from paperlib.attacks.pgd import fgsm, pgd

__all__ = [
    "AIMS",
    "NEVER",
    "STANDARD",
    "Aim",
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
    "mixture_aims",
    "pgd",
    "random_noise",
    "transferred",
]
