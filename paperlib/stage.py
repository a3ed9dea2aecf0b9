"""What a stage is: a named computation, what decides its result, and what it may ask for while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paperlib.data import Dataset
from paperlib.profiles import Profile
from paperlib.progress import Say
from paperlib.store import Artefact
from paperlib.training.recipes import Recipe, recipes

Json = dict[str, Any]


class Context(Protocol):
    """What a computation may ask for."""

    profile: Profile
    seed: int
    device: torch.device
    say: Say

    @property
    def data(self) -> Dataset: ...

    def model(self, system: str) -> nn.Module: ...

    def checkpoint(self, stage: str) -> Path: ...

    def get(self, name: str) -> Artefact: ...


@dataclass(frozen=True)
class Result:
    """What a computation returns; the store adds provenance."""

    record: Json
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A named computation."""

    name: str
    version: int
    config: Json  # all that decides the result, beside data, seed and inputs
    inputs: tuple[str, ...]  # stages whose weights or records it needs
    compute: Callable[[Context], Result]
    cost: float = 0.0  # expected network passes, to start long stages first


def weights_of(recipe: Recipe, profile: Profile) -> tuple[str, ...]:
    """The training stages whose weights make up a system."""
    if recipe.weights_of:
        return weights_of(recipes(profile)[recipe.weights_of], profile)
    systems = (recipe.system,) if recipe.kept else recipe.starts_from
    return tuple(f"train:{system}" for system in systems)
