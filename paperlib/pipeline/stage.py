"""A stage: a named computation, all that decides its result, and the context that it computes with."""

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
    """What a computation may use beside its own configuration. It contains no profile; see `Stage`."""

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
    """What a computation returns. `compute_stage` adds configuration and provenance to the record."""

    record: Json
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A named computation.

    Its result depends on its fields, the results of its inputs, the data and the seed, and on nothing else:
    ``compute`` is a plain function of a context and ``config``, and the context contains no profile. The key is a hash
    of all of these.
    """

    name: str
    version: int  # of its code; raise it if a change of the code changes numbers
    config: Any  # a frozen dataclass
    inputs: tuple[str, ...]  # stages whose weights or records it needs
    compute: Callable[[Context, Any], Result]
    threads: int = 0  # CPU threads, 0 for torch's default; another number rounds sums differently
    cost: float = 0.0  # expected passes of one network, so that long stages start first
