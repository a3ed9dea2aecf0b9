"""Every trained system of the comparison as data: what it is built of, what it starts from, what it learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from paperlib.data import Dataset
from paperlib.errors import MissingError
from paperlib.models import Gate, Mixture, UniformGate, resnet18
from paperlib.profiles import Profile, TrainConfig
from paperlib.training.threats import Clean, RandomFGSM, RandomPGD, Threat
from paperlib.training.threats import Mixture as OneOf

# The paper's nine: one benign expert, four trained on FGSM, four on PGD.
EXPERTS = tuple(f"expert-{i}" for i in range(9))
EXPERT_KINDS = ("benign", *("FGSM",) * 4, *("PGD",) * 4)
PGD_AT_STEPS = 10  # the usual number of iterations of PGD adversarial training (Madry et al. 2018; Rice et al. 2020)


@dataclass(frozen=True)
class Recipe:
    """How a system comes to be. ``training`` is None where nothing is learned."""

    system: str
    story: str  # one line for tables and logs
    network: str  # "resnet18", or "mixture" of the nine experts under a gate
    gate: str = ""  # "learned" or "uniform", for mixtures
    starts_from: tuple[str, ...] = ()  # systems whose weights it begins with
    trainable: str = "all"  # "all" or "gate"
    threat: Threat | None = None
    training: TrainConfig | None = None
    select: str = "pgd"  # validation accuracy that picks the checkpoint


def recipes(profile: Profile) -> dict[str, Recipe]:
    """All systems of the series at the scale of ``profile``, by name."""
    threat, one, two = profile.threat, profile.phase1, profile.phase2
    fgsm = RandomFGSM(tuple(float(eps) for eps in threat.fgsm_eps))
    pgd = RandomPGD(float(threat.pgd_eps), float(threat.pgd_step), threat.pgd_steps, threat.random_start)
    at = replace(pgd, steps=(PGD_AT_STEPS,))
    # As many epochs as an expert sees in both phases, so that DWF is not compared with a network trained for less.
    both = replace(one, epochs=one.epochs + two.epochs)
    listed = [
        Recipe("plain", "ResNet-18, no defence", "resnet18", threat=Clean(), training=both, select="clean"),
        Recipe("pgd-at", f"ResNet-18, PGD-{PGD_AT_STEPS} adversarial training", "resnet18", threat=at, training=both),
    ]
    diets: dict[str, Threat] = {"benign": Clean(), "FGSM": fgsm, "PGD": pgd}
    for name, kind in zip(EXPERTS, EXPERT_KINDS, strict=True):
        diet = diets[kind]
        select = "clean" if kind == "benign" else "pgd"
        listed.append(Recipe(name, f"{kind} expert, phase 1", "resnet18", threat=diet, training=one, select=select))
    phase2 = OneOf((Clean(), fgsm, pgd))
    mixture = Recipe("", "", "mixture", gate="learned", starts_from=EXPERTS, threat=phase2, training=two)
    listed += [
        replace(
            mixture, system="uniform", story="nine experts, uniform average", gate="uniform", threat=None, training=None
        ),
        replace(mixture, system="frozen", story="nine frozen experts, trained gate", trainable="gate"),
        replace(mixture, system="dwf", story="DWF: nine experts and gate, trained jointly"),
    ]
    return {recipe.system: recipe for recipe in listed}


def recipe_for(system: str, profile: Profile) -> Recipe:
    """Raises MissingError for a system this companion does not know, naming those it does."""
    known = recipes(profile)
    if system not in known:
        raise MissingError(f"unknown system {system!r}; known: {', '.join(known)}")
    return known[system]


def build(recipe: Recipe, profile: Profile, data: Dataset) -> nn.Module:
    """The untrained network of a recipe, drawn from torch's global generator."""
    return build_network(recipe, profile, len(data.classes), data.mean, data.std)


def build_network(
    recipe: Recipe, profile: Profile, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> nn.Module:
    """As `build`, from the four facts of the data a network needs."""

    def expert() -> nn.Module:
        return resnet18(classes, profile.model.width, mean, std)

    if recipe.network == "resnet18":
        return expert()
    gate: nn.Module = UniformGate(len(EXPERTS))
    if recipe.gate == "learned":
        gate = Gate(len(EXPERTS), profile.model.gate_width, profile.model.gate_blocks, mean, std)
    return Mixture([expert() for _ in EXPERTS], gate, profile.model.mixing)


TRAINABLE: dict[str, Callable[[nn.Module], Iterator[nn.Parameter]]] = {
    "all": lambda model: model.parameters(),
    "gate": lambda model: model.get_submodule("gate").parameters(),
}
