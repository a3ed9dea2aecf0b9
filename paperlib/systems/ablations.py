"""Variants of DWF that differ from it in one choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paperlib.config.schema import Profile
from paperlib.systems.attack_sets import attack_sets
from paperlib.systems.experts import EXPERT_KINDS, EXPERTS, expert_recipe
from paperlib.systems.recipe import Network, Recipe
from paperlib.training.adversaries import NoAttack, OneOf, RandomFGSM
from paperlib.training.update import UpdateStep


def ablation_systems(profile: Profile) -> list[Recipe]:
    """Variants of DWF that differ in one choice from ``ablation-base``, which is DWF with a shorter phase 2.

    All share their seed group: batches, attacks and random starts of phase 2 are the same, so that only the one
    choice differs.
    """
    sets = attack_sets(profile)
    short = replace(profile.phase2, epochs=profile.ablation.phase2_epochs)
    # Fixed where the paper draws: the middle of its sets.
    middle = sorted(sets.fgsm.eps)[len(sets.fgsm.eps) // 2]
    half = sorted(sets.pgd.steps)[len(sets.pgd.steps) // 2]
    one_eps, one_length = RandomFGSM((middle,)), replace(sets.pgd, steps=(half,))
    fixed = replace(sets, fgsm=one_eps, pgd=one_length, phase2=OneOf((NoAttack(), one_eps, one_length)))
    members = [
        replace(
            expert_recipe(f"{kind.lower()}-{i}", kind, sets, profile.phase1, "member"),
            description=f"further {kind} expert",
        )
        for kind in ("benign", "FGSM", "PGD")
        for i in range(1, 1 + len(EXPERTS) - EXPERT_KINDS.count(kind))
    ]
    members += [
        replace(
            expert_recipe(f"fixed-{name}", kind, fixed, profile.phase1, "member"),
            description=f"{kind} expert of fixed budget",
            seed_group=name,
        )
        for name, kind in zip(EXPERTS, EXPERT_KINDS, strict=True)
        if kind != "benign"
    ]
    own = {kind: [n for n, k in zip(EXPERTS, EXPERT_KINDS, strict=True) if k == kind] for kind in set(EXPERT_KINDS)}

    def nine(kind: str) -> tuple[str, ...]:
        return (*own[kind], *(f"{kind.lower()}-{i}" for i in range(1, 1 + len(EXPERTS) - len(own[kind]))))

    base = Recipe(
        "ablation-base",
        "nine experts: 1 benign, 4 FGSM, 4 PGD",
        "ablation",
        Network("mixture", experts=len(EXPERTS), gate="learned"),
        starts_from=EXPERTS,
        update_steps=(UpdateStep(sets.phase2),),
        training=short,
        seed_group="ablation",
    )

    def variant(name: str, description: str, chosen: Sequence[str] = EXPERTS, **changes: object) -> Recipe:
        network = replace(base.network, experts=len(chosen), **changes)  # type: ignore[arg-type]
        return replace(
            base, system=f"ablation-{name}", description=description, starts_from=tuple(chosen), network=network
        )

    def taught(name: str, description: str, update_step: UpdateStep) -> Recipe:
        return replace(base, system=f"ablation-{name}", description=description, update_steps=(update_step,))

    benign, fgsm, pgd = own["benign"], own["FGSM"], own["PGD"]
    other = "logits" if profile.model.mixing == "probabilities" else "probabilities"
    steady = (*benign, *(f"fixed-{name}" for name in (*fgsm, *pgd)))
    picks = variant("top1", "the gate picks one expert at inference", top1=True)
    return [
        *members,
        base,
        variant("1", "one expert: PGD", pgd[:1]),
        variant("3", "three experts: 1 benign, 1 FGSM, 1 PGD", (*benign, *fgsm[:1], *pgd[:1])),
        variant("5", "five experts: 1 benign, 2 FGSM, 2 PGD", (*benign, *fgsm[:2], *pgd[:2])),
        variant("benign", "nine benign experts", nine("benign")),
        variant("fgsm", "nine FGSM experts", nine("FGSM")),
        variant("pgd", "nine PGD experts", nine("PGD")),
        replace(
            variant("fixed", "fixed eps and iterations, both phases", steady),
            update_steps=(UpdateStep(fixed.phase2),),
        ),
        replace(picks, update_steps=(), training=None, weights_of="ablation-base"),
        variant("mixing", f"mixed {other}", mixing=other),
        variant("gate", "a gate twice as wide", gate_width=2),
        taught("pgd-batches", "phase 2 on PGD batches only", UpdateStep(sets.pgd)),
        taught("no-pgd-batches", "phase 2 on clean and FGSM batches", UpdateStep(OneOf((NoAttack(), sets.fgsm)))),
    ]
