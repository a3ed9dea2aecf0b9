"""Other mixture-of-experts defences: SoE, ADVMoE and MoRE, in the setting of their papers and in DWF's setting."""

from __future__ import annotations

from dataclasses import replace

from paperlib.config.schema import Profile, TrainConfig
from paperlib.systems.attack_sets import PGD_AT_STEPS, attack_sets, both_phases
from paperlib.systems.experts import EXPERTS
from paperlib.systems.recipe import Network, Recipe
from paperlib.training.adversaries import AttackDistribution, NoAttack, OneOf, RandomPGD, ResizedL2, SampledAttack
from paperlib.training.losses import CrossEntropyLoss, RouterLoss, SoELoss, TradesLoss
from paperlib.training.update import UpdateStep

CIFAR10_VALUES = 3 * 32 * 32  # values of one image: channels times height times width

# The values of one image by data set. For other data sets the size is read from the images when they are attacked.
IMAGE_VALUES = {"digits": 8 * 8, "cifar10": CIFAR10_VALUES, "svhn": CIFAR10_VALUES}

UNSAFE = "advmoe-unsafe"  # the negative control; not a system of the comparison


def defence_systems(profile: Profile) -> list[Recipe]:
    """Other mixtures of experts, each in DWF's setting and, as far as it is known, in the setting of its own paper."""
    sets, both = attack_sets(profile), both_phases(profile)
    eps, nine = sets.pgd.eps, len(EXPERTS)
    # SoE's paper: PGD-10 with step size eps / 3 on all sub-models together; each sub-model is a ResNet-20.
    soe_attack = replace(sets.pgd_at, step_size=eps / 3)
    soe_network = Network("soe", member="small", experts=3)
    soe = Recipe("soe", "SoE of the nine experts", "defence", Network("soe", experts=nine), starts_from=EXPERTS)
    advmoe_attack = _advmoe_attack(profile)
    # MoRE's paper: a full network as gate, mixed logits; each batch is clean, L2 or L-infinity.
    more = Network("mixture", experts=nine, gate="learned", mixing="logits")
    l2, linf = _l2(profile, 80), sets.pgd_at
    expert_attacks = {
        "L2 60/255": _l2(profile, 60),
        "L2 80/255": l2,
        "L-infinity 6/255": replace(linf, eps=eps * 6 / 8, step_size=linf.step_size * 6 / 8),
        "L-infinity 8/255": linf,
    }
    return [
        replace(soe, update_steps=(UpdateStep(sets.pgd_at, SoELoss()),), training=profile.phase2),
        replace(
            soe,
            system="soe-own",
            description="SoE as published: three small networks",
            network=soe_network,
            starts_from=(),
            update_steps=(UpdateStep(soe_attack, SoELoss()),),
            training=both,
            as_published=True,
        ),
        Recipe(
            "soe-moe",
            "SoE's soft mixture: three small networks",
            "defence",
            Network("mixture", member="small", experts=3, gate="learned", mixing="logits"),
            update_steps=(UpdateStep(soe_attack, CrossEntropyLoss(clean=True)),),
            training=both,
            as_published=True,
        ),
        _advmoe("advmoe", "ADVMoE: nine full-width pathways", nine, 1, advmoe_attack, both),
        replace(
            _advmoe("advmoe-own", "ADVMoE as published: two half-width pathways", 2, 0.5, advmoe_attack, both),
            as_published=True,
        ),
        Recipe(
            "more",
            "MoRE of the nine experts: last layers and gate trained",
            "defence",
            replace(more, mixing=""),
            starts_from=EXPERTS,
            update_steps=(UpdateStep(sets.phase2, trainable="heads"),),
            training=profile.phase2,
        ),
        *(
            Recipe(
                f"more-expert-{i}",
                f"expert of MoRE, {name}",
                "member",
                update_steps=(UpdateStep(attack),),
                training=profile.phase1,
            )
            for i, (name, attack) in enumerate(expert_attacks.items(), start=1)
        ),
        Recipe(
            "more-own",
            "MoRE as published: five experts, a ResNet-18 as gate",
            "defence",
            replace(more, experts=5, gate="resnet18"),
            starts_from=("expert-0", *(f"more-expert-{i}" for i in range(1, 5))),
            update_steps=(UpdateStep(OneOf((NoAttack(), l2, linf)), trainable="heads"),),
            training=profile.phase2,
            as_published=True,
        ),
    ]


def _advmoe(
    system: str,
    description: str,
    pathways: int,
    width: float,
    attack: AttackDistribution,
    training: TrainConfig,
    *,
    safe: bool = True,
) -> Recipe:
    update_steps = (UpdateStep(attack, TradesLoss(), "pathways"), UpdateStep(attack, RouterLoss(safe=safe), "router"))
    network = Network("advmoe", width=width, experts=pathways)
    return Recipe(system, description, "defence", network, update_steps=update_steps, training=training)


def unsafe_advmoe(profile: Profile) -> tuple[Recipe, Recipe]:
    """One epoch of ADVMoE with the unsafe router loss, which turns NaN, and with the safe one: controls, no systems."""
    attack, one_epoch = _advmoe_attack(profile), replace(profile.phase1, epochs=1)
    unsafe = _advmoe(UNSAFE, "ADVMoE with the unsafe router loss", 2, 0.5, attack, one_epoch, safe=False)
    safe = _advmoe("advmoe-safe", "ADVMoE with the safe router loss", 2, 0.5, attack, one_epoch)
    return unsafe, replace(safe, seed_group=UNSAFE)


def _advmoe_attack(profile: Profile) -> RandomPGD:
    """The attack of ADVMoE's training: two steps of 5/8 eps from the image plus little noise."""
    eps = float(profile.threat.pgd_eps)
    return RandomPGD(eps, eps * 5 / 8, (2,), random_start=False, noise=0.001, objective="routed divergence")


def _l2(profile: Profile, radius: int) -> RandomPGD | ResizedL2:
    """MoRE's L2 attack of ``radius``/255 on CIFAR-10, scaled to the profile's budget and to the size of its images."""
    # In proportion to the profile's L-infinity eps, which is 8/255 on CIFAR-10
    eps = radius / 255 * float(profile.threat.pgd_eps) / (8 / 255)
    cifar10 = RandomPGD(eps, eps / 4, (PGD_AT_STEPS,), norm="l2")
    if profile.data.name not in IMAGE_VALUES:
        return ResizedL2(cifar10, CIFAR10_VALUES)
    resized = SampledAttack(eps, eps / 4, values=CIFAR10_VALUES).resized(IMAGE_VALUES[profile.data.name])
    return replace(cifar10, eps=resized.eps, step_size=resized.step_size)
