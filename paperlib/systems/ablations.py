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

    All variants are in one seed group: they share the batches, attacks and random starts of phase 2, so that only the
    one choice differs. The list begins with the additional experts that they need.
    """
    sets = attack_sets(profile)
    short_phase2 = replace(profile.phase2, epochs=profile.ablation.phase2_epochs)
    # Fixed attack budgets where the paper draws them from sets: the middle of each set
    middle_eps = sorted(sets.fgsm.eps)[len(sets.fgsm.eps) // 2]
    middle_steps = sorted(sets.pgd.steps)[len(sets.pgd.steps) // 2]
    fixed_fgsm, fixed_pgd = RandomFGSM((middle_eps,)), replace(sets.pgd, steps=(middle_steps,))
    fixed = replace(sets, fgsm=fixed_fgsm, pgd=fixed_pgd, phase2=OneOf((NoAttack(), fixed_fgsm, fixed_pgd)))
    members = [
        replace(
            expert_recipe(f"{kind.lower()}-{i}", kind, sets, profile.phase1, "member"),
            description=f"additional {kind} expert",
        )
        for kind in ("benign", "FGSM", "PGD")
        for i in range(1, 1 + len(EXPERTS) - EXPERT_KINDS.count(kind))
    ]
    members += [
        replace(
            expert_recipe(f"fixed-{name}", kind, fixed, profile.phase1, "member"),
            description=f"{kind} expert with a fixed attack budget",
            seed_group=name,
        )
        for name, kind in zip(EXPERTS, EXPERT_KINDS, strict=True)
        if kind != "benign"
    ]
    by_kind = {kind: [n for n, k in zip(EXPERTS, EXPERT_KINDS, strict=True) if k == kind] for kind in set(EXPERT_KINDS)}

    def nine(kind: str) -> tuple[str, ...]:
        return (*by_kind[kind], *(f"{kind.lower()}-{i}" for i in range(1, 1 + len(EXPERTS) - len(by_kind[kind]))))

    base = Recipe(
        "ablation-base",
        "nine experts: 1 benign, 4 FGSM, 4 PGD",
        "ablation",
        Network("mixture", experts=len(EXPERTS), gate="learned"),
        starts_from=EXPERTS,
        update_steps=(UpdateStep(sets.phase2),),
        training=short_phase2,
        seed_group="ablation",
    )

    def with_network(name: str, description: str, experts: Sequence[str] = EXPERTS, **changes: object) -> Recipe:
        network = replace(base.network, experts=len(experts), **changes)  # type: ignore[arg-type]
        return replace(
            base, system=f"ablation-{name}", description=description, starts_from=tuple(experts), network=network
        )

    def with_update(name: str, description: str, update_step: UpdateStep) -> Recipe:
        return replace(base, system=f"ablation-{name}", description=description, update_steps=(update_step,))

    benign, fgsm, pgd = by_kind["benign"], by_kind["FGSM"], by_kind["PGD"]
    mixing = profile.model.mixing
    other_mixing = "logits" if mixing == "probabilities" else "probabilities"
    fixed_experts = (*benign, *(f"fixed-{name}" for name in (*fgsm, *pgd)))
    top1 = with_network("top1", "top-1 routing at inference", top1=True)
    return [
        *members,
        base,
        with_network("1", "one expert: PGD", pgd[:1]),
        with_network("3", "three experts: 1 benign, 1 FGSM, 1 PGD", (*benign, *fgsm[:1], *pgd[:1])),
        with_network("5", "five experts: 1 benign, 2 FGSM, 2 PGD", (*benign, *fgsm[:2], *pgd[:2])),
        with_network("benign", "nine benign experts", nine("benign")),
        with_network("fgsm", "nine FGSM experts", nine("FGSM")),
        with_network("pgd", "nine PGD experts", nine("PGD")),
        replace(
            with_network("fixed", "fixed eps and iterations, both phases", fixed_experts),
            update_steps=(UpdateStep(fixed.phase2),),
        ),
        replace(top1, update_steps=(), training=None, weights_of="ablation-base"),
        with_network("mixing", f"mixes {other_mixing} instead of {mixing}", mixing=other_mixing),
        with_network("gate", "a gate twice as wide", gate_width=2),
        with_update("pgd-batches", "phase 2 on PGD batches only", UpdateStep(sets.pgd)),
        with_update("no-pgd-batches", "phase 2 on clean and FGSM batches", UpdateStep(OneOf((NoAttack(), sets.fgsm)))),
    ]
