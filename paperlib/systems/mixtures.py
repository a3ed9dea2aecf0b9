"""DWF, and other mixtures with a uniform or a learned gate."""

from __future__ import annotations

from dataclasses import replace

from paperlib.config.schema import Profile
from paperlib.systems.attack_sets import attack_sets, both_phases
from paperlib.systems.experts import EXPERTS
from paperlib.systems.recipe import Network, Recipe
from paperlib.systems.singles import AVERAGED
from paperlib.training.update import UpdateStep


def mixture_systems(profile: Profile) -> list[Recipe]:
    """DWF, and the variants that serve as its baselines: other gates, other training, other experts."""
    sets, nine = attack_sets(profile), Network("mixture", experts=len(EXPERTS), gate="learned")
    uniform = replace(nine, gate="uniform", mixing="probabilities")
    dwf = Recipe(
        "dwf",
        "DWF: nine experts and gate, trained jointly",
        "mixture",
        nine,
        starts_from=EXPERTS,
        update_steps=(UpdateStep(sets.phase2),),
        training=profile.phase2,
    )
    return [
        Recipe("uniform", "nine experts, uniform average", "mixture", uniform, starts_from=EXPERTS),
        Recipe("pgd-at-ensemble", "nine PGD-AT ResNet-18, averaged", "mixture", uniform, starts_from=AVERAGED),
        replace(
            dwf,
            system="frozen",
            description="nine frozen experts, trained gate",
            update_steps=(UpdateStep(sets.phase2, trainable="gate"),),
        ),
        replace(
            dwf,
            system="joint-scratch",
            description="DWF's joint training without pre-training",
            starts_from=(),
            training=both_phases(profile),
        ),
        dwf,
    ]
