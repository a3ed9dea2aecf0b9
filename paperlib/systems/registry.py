"""Every trained system of the comparison as data: what it is built of, what it starts from, what it learns from."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import replace

from paperlib.config.plugins import load_extension
from paperlib.config.schema import Profile
from paperlib.errors import MissingError, ProfileError, did_you_mean
from paperlib.systems.ablations import ablation_systems
from paperlib.systems.defences import defence_systems
from paperlib.systems.experts import expert_systems
from paperlib.systems.mixtures import mixture_systems
from paperlib.systems.recipe import Recipe
from paperlib.systems.singles import single_systems

# The systems whose accuracy is followed over eps and iterations and that no profile leaves out.
COMPARED = ("plain", "pgd-at", "uniform", "frozen", "dwf")


def recipes(profile: Profile) -> dict[str, Recipe]:
    """The systems that ``profile`` compares and those they are built from, at its scale, by name.

    Raises:
        ProfileError: a pattern of ``study.systems`` fits no system, one that every notebook shows is left out, or the
            extension's cannot be used.
    """
    known = _every(profile)
    chosen: dict[str, None] = {}

    def choose(name: str) -> None:
        recipe = known[name]
        for needed in (*recipe.starts_from, *([recipe.weights_of] if recipe.weights_of else [])):
            choose(needed)
        chosen[name] = None

    own = [recipe.system for recipe in _own(profile)]
    for pattern in (*profile.study.systems, *own):
        found = fnmatch.filter(known, pattern)
        if not found:
            raise ProfileError(f"study.systems: no system {pattern!r}{did_you_mean(pattern, list(known))}")
        for name in found:
            choose(name)
    if absent := [name for name in COMPARED if name not in chosen]:
        raise ProfileError(f"study.systems: {', '.join(absent)} must be among them; every notebook shows them")
    return {name: recipe for name, recipe in known.items() if name in chosen}


def _every(profile: Profile) -> dict[str, Recipe]:
    listed = [
        *single_systems(profile),
        *expert_systems(profile),
        *mixture_systems(profile),
        *defence_systems(profile),
        *ablation_systems(profile),
    ]
    known = {recipe.system: recipe for recipe in listed}
    for recipe in _own(profile):
        if recipe.system in known:
            raise ProfileError(f"{recipe.system}: the extension may not take the name of another system")
        known[recipe.system] = recipe
    return known


def _own(profile: Profile) -> list[Recipe]:
    """The systems of the user's extension."""
    extension = load_extension(profile.study.extension)
    found = extension.call(extension.systems, profile)
    families = ("single", "mixture", "defence", "member")
    for recipe in found:
        if not isinstance(recipe, Recipe) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", recipe.system):
            raise ProfileError(
                f"{extension.name}: systems must list recipes named in lower case, digits and hyphens, got {recipe!r}"
            )
        if recipe.family not in families:
            raise ProfileError(f"{recipe.system}: family {recipe.family!r} is not one of {', '.join(families)}")
        if recipe.update_steps and recipe.training is None:
            raise ProfileError(f"{recipe.system}: a recipe with update_steps needs training, such as profile.phase1")
        if recipe.network.kind == "own" and recipe.network.member not in extension.networks:
            raise ProfileError(f"{recipe.system}: no network {recipe.network.member!r} in {extension.name}'s NETWORKS")
    return [replace(recipe, code=extension.digest) for recipe in found]


def recipe_for(system: str, profile: Profile) -> Recipe:
    """Raises MissingError for a system this companion does not know, naming those it does."""
    known = recipes(profile)
    if system not in known and system in _every(profile):
        raise MissingError(f"{system}: left out of profile {profile.name}; name it in study.systems of one of your own")
    if system not in known:
        raise MissingError(f"unknown system {system!r}; known: {', '.join(known)}")
    return known[system]
