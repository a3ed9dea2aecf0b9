"""The claims of the paper and our own, each with its rule."""

from __future__ import annotations

from paperlib.pipeline.stages import BEST_EXPERT
from paperlib.report.claims.rules import Beats, Claim, Collapse, Grows, Survives
from paperlib.report.outcomes import PGD_WORST_CASE
from paperlib.systems.singles import BACKBONES, STRONGEST

PLAIN = ("plain", *(f"plain-{name}" for name in BACKBONES))
MOE_DEFENCES = ("soe", "soe-own", "soe-moe", "advmoe", "advmoe-own", "more", "more-own")

CLAIMS: tuple[Claim, ...] = (
    Collapse("collapse", "Plain networks collapse under small perturbations", "v1 and v2", PLAIN),
    Beats(
        "beats-moe-defences",
        "DWF beats other mixture-of-experts defences under FGSM and PGD",
        "v1 and v2",
        others=MOE_DEFENCES,
        columns=("FGSM", PGD_WORST_CASE),
    ),
    Beats(
        "beats-bigger-backbones",
        "DWF beats plain classifiers with bigger backbones",
        "v1",
        others=PLAIN[1:],
        columns=("FGSM", PGD_WORST_CASE),
    ),
    Beats(
        "clean-accuracy-too",
        "DWF is also more accurate on clean images",
        "v1 (as summarised)",
        others=PLAIN[1:],
        columns=("clean",),
    ),
    Beats(
        "joint-training",
        "Training experts and gate jointly improves on frozen experts",
        "v1 and v2",
        others=("frozen",),
    ),
    Beats(
        "randomised-training",
        "Drawing eps and iterations per batch beats fixing them",
        "v2",
        system="ablation-base",
        others=("ablation-fixed",),
    ),
    Grows(
        "cost",
        "Training cost rises with the number of experts; inference cost grows linearly and stays far lower",
        "v1 and v2",
        ("ablation-1", "ablation-3", "ablation-5", "ablation-base"),
    ),
    Beats("pre-training", "Phase 1 helps: DWF beats joint training from scratch", "ours", others=("joint-scratch",)),
    Beats(
        "gate-adds",
        "The trained gate beats the uniform average and the best expert",
        "ours",
        system="frozen",
        others=("uniform", BEST_EXPERT),
    ),
    Beats("beats-one-network", "DWF beats one adversarially trained ResNet-18", "ours", others=("pgd-at", "trades")),
    Beats(
        "beats-equal-size",
        "DWF beats adversarially trained networks of its size",
        "ours",
        others=("pgd-at-wide", "pgd-at-ensemble", f"pgd-at-{STRONGEST}"),
    ),
    Survives("survives", "The ranking survives AutoAttack and attacks on gate and experts", "ours"),
)
