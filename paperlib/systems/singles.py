"""Single networks, with and without adversarial training."""

from __future__ import annotations

from dataclasses import replace

from paperlib.config.schema import Profile
from paperlib.systems.attack_sets import PGD_AT_STEPS, attack_sets, both_phases
from paperlib.systems.recipe import Network, Recipe
from paperlib.training.adversaries import NoAttack, RandomFGSM, RandomPGD
from paperlib.training.losses import TradesLoss
from paperlib.training.update import UpdateStep

AVERAGED = tuple(f"pgd-at-{i}" for i in range(9))  # the members of the ensemble of nine PGD-AT networks

BACKBONES = {
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16 with batch norm",
    "densenet121": "DenseNet-121",
    "wrn28-10": "WideResNet-28-10",
}

STRONGEST = "wrn28-10"  # the usual backbone of robustness leader boards; also trained by PGD-AT


def single_systems(profile: Profile) -> list[Recipe]:
    """Single networks: undefended backbones, PGD-AT, TRADES and FGSM training."""
    sets, both = attack_sets(profile), both_phases(profile)
    plain = Recipe(
        "plain",
        "ResNet-18, no defence",
        "single",
        update_steps=(UpdateStep(NoAttack()),),
        training=both,
        select="clean",
    )
    at = Recipe(
        "pgd-at",
        f"ResNet-18, PGD-{PGD_AT_STEPS} adversarial training",
        "single",
        update_steps=(UpdateStep(sets.pgd_at),),
        training=both,
    )
    trades_attack = replace(sets.pgd_at, random_start=False, noise=0.001, objective="divergence")
    # FGSM with a random start (Wong et al. 2020): one step of 1.25 eps
    eps = sets.pgd.eps
    fgsm_rs = RandomPGD(eps, 1.25 * eps, (1,))
    undefended = [plain]
    for name, title in BACKBONES.items():
        network = Network(member=name)
        undefended.append(replace(plain, system=f"plain-{name}", description=f"{title}, no defence", network=network))
    return [
        *undefended,
        at,
        replace(
            at,
            system="trades",
            description="ResNet-18, TRADES (beta 6)",
            update_steps=(UpdateStep(trades_attack, TradesLoss()),),
        ),
        replace(
            at,
            system="fgsm-at",
            description="ResNet-18, FGSM at fixed eps",
            update_steps=(UpdateStep(RandomFGSM((eps,))),),
        ),
        replace(
            at, system="fgsm-rs", description="ResNet-18, FGSM with a random start", update_steps=(UpdateStep(fgsm_rs),)
        ),
        replace(
            at,
            system=f"pgd-at-{STRONGEST}",
            description=f"{BACKBONES[STRONGEST]}, PGD-{PGD_AT_STEPS} adversarial training",
            network=Network(member=STRONGEST),
        ),
        # The number of parameters grows with the square of the width: three times as wide, nine times as large.
        replace(at, system="pgd-at-wide", description="PGD-AT ResNet-18 as large as DWF", network=Network(width=3)),
        *(
            # As many epochs as an expert in phase 1, so that the training of all nine costs less than that of DWF.
            replace(
                at, system=name, description="PGD-AT ResNet-18, one of nine", family="member", training=profile.phase1
            )
            for name in AVERAGED
        ),
    ]
