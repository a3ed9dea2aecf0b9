"""The recipes of all systems, by name."""

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

# The systems whose accuracy is measured over eps and iterations; every profile includes them.
COMPARED = ("plain", "pgd-at", "uniform", "frozen", "dwf")


def recipes(profile: Profile) -> dict[str, Recipe]:
    """The systems that ``profile`` compares, and those whose weights they use, by name, in the order of the tables.

    Raises:
        ProfileError: a pattern of ``study.systems`` matches no system, one of `COMPARED` is missing, or the systems of
            the extension cannot be used.
    """
    available = _all_recipes(profile)
    selected: dict[str, None] = {}

    def select(name: str) -> None:
        recipe = available[name]
        for source in (*recipe.starts_from, *([recipe.weights_of] if recipe.weights_of else [])):
            select(source)
        selected[name] = None

    from_extension = [recipe.system for recipe in _extension_recipes(profile)]
    for pattern in (*profile.study.systems, *from_extension):
        names = fnmatch.filter(available, pattern)
        if not names:
            raise ProfileError(f"study.systems: no system {pattern!r}{did_you_mean(pattern, list(available))}")
        for name in names:
            select(name)
    if absent := [name for name in COMPARED if name not in selected]:
        raise ProfileError(f"study.systems: {', '.join(absent)} must be among them; every notebook shows them")
    return {name: recipe for name, recipe in available.items() if name in selected}


def _all_recipes(profile: Profile) -> dict[str, Recipe]:
    built_in = [
        *single_systems(profile),
        *expert_systems(profile),
        *mixture_systems(profile),
        *defence_systems(profile),
        *ablation_systems(profile),
    ]
    available = {recipe.system: recipe for recipe in built_in}
    for recipe in _extension_recipes(profile):
        if recipe.system in available:
            raise ProfileError(f"{recipe.system}: the extension may not take the name of another system")
        available[recipe.system] = recipe
    return available


def _extension_recipes(profile: Profile) -> list[Recipe]:
    """The recipes of the user's extension, checked."""
    extension = load_extension(profile.study.extension)
    defined = extension.call(extension.systems, profile)
    families = ("single", "mixture", "defence", "member")
    for recipe in defined:
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
    return [replace(recipe, code=extension.digest) for recipe in defined]


def recipe_for(system: str, profile: Profile) -> Recipe:
    """The recipe of a system.

    Raises:
        MissingError: the system is unknown (the message lists the known ones), or the profile does not compare it.
    """
    compared = recipes(profile)
    if system not in compared and system in _all_recipes(profile):
        raise MissingError(f"{system}: left out of profile {profile.name}; name it in study.systems of one of your own")
    if system not in compared:
        raise MissingError(f"unknown system {system!r}; known: {', '.join(compared)}")
    return compared[system]
