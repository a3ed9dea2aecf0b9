"""White-box attacks on [0, 1] pixels: one gradient loop, from which FGSM and PGD follow."""

from paperlib.attacks.gradient import (
    NEVER,
    Attacked,
    Objective,
    attack,
    cross_entropy,
    fgsm,
    misclassified,
    pgd,
    undisturbed,
)
from paperlib.attacks.objectives import AIMS

__all__ = [
    "AIMS",
    "NEVER",
    "Attacked",
    "Objective",
    "attack",
    "cross_entropy",
    "fgsm",
    "misclassified",
    "pgd",
    "undisturbed",
]
