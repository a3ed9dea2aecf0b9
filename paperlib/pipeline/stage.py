"""What a stage is: a named computation, what decides its result, and what it may ask for while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paperlib.data import Dataset
from paperlib.pipeline.store import Artefact
from paperlib.systems.build import Architecture, System

Json = dict[str, Any]


class Context(Protocol):
    """What a computation may ask for beside its own configuration. There is no profile among it, on purpose."""

    seed: int
    device: torch.device

    @property
    def data(self) -> Dataset: ...

    def build(self, architecture: Architecture) -> nn.Module: ...

    def weights(self, stage: str) -> dict[str, Tensor]: ...

    def model(self, system: System) -> nn.Module: ...

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
    """A named computation.

    Its result follows from its fields, the results of its inputs, the data and the seed, and from nothing else:
    ``compute`` is a plain function of a context and ``config``, and a context knows no profile. So the key, a hash of
    all of these, can miss nothing.
    """

    name: str
    version: int  # of its code: raise it when a change of code changes numbers
    config: Any  # a frozen dataclass
    inputs: tuple[str, ...]  # stages whose weights or records it needs
    compute: Callable[[Context, Any], Result]
    threads: int = 0  # CPU threads it computes with, 0 for torch's choice; with others, sums round differently
    cost: float = 0.0  # expected network passes, to start long stages first
