"""The stages of a profile as a graph: their keys, which of them are missing, and which a pattern matches."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from paperlib.config.load import command_name
from paperlib.config.schema import Profile
from paperlib.errors import MissingError
from paperlib.pipeline.keys import artefact_key, as_json
from paperlib.pipeline.stage import Stage
from paperlib.pipeline.stages import stages


class Graph:
    """All stages of a profile for one seed and one data set.

    Args:
        seed: part of every key.
        fingerprint: returns the fingerprint of the data, which is part of every key; called when a key is needed.
    """

    def __init__(self, profile: Profile, seed: int, fingerprint: Callable[[], str]) -> None:
        self.stages = stages(profile)
        self.seed, self.fingerprint = seed, fingerprint
        self._unknown = f"list them: python -m paperlib run --profile {command_name(profile)} --list"

    def stage(self, name: str) -> Stage:
        """Raises MissingError for a stage that does not exist."""
        if name not in self.stages:
            raise MissingError(f"unknown stage {name!r}; {self._unknown}")
        return self.stages[name]

    def key(self, stage: Stage) -> str:
        """The hash of everything that decides a stage's result."""
        return artefact_key(
            {
                "stage": stage.name,
                "version": stage.version,
                "config": as_json(stage.config),
                "threads": stage.threads,
                "seed": self.seed,
                "data": self.fingerprint(),
                "inputs": [self.key(self.stage(name)) for name in stage.inputs],
            }
        )

    def matching(self, *patterns: str) -> list[str]:
        """Stage names by pattern, such as ``"train:expert-*"``; all without one. Raises MissingError for no match."""
        chosen: dict[str, None] = {}
        for pattern in patterns or ("*",):
            names = fnmatch.filter(self.stages, pattern)
            if not names:
                raise MissingError(f"no stage matches {pattern!r}; {self._unknown}")
            chosen |= dict.fromkeys(names)
        return list(chosen)

    def missing(
        self, names: Sequence[str], available: Callable[[str, bool], bool], *, weights: bool = False
    ) -> list[str]:
        """What must be computed to have the named stages: they and their inputs, inputs first.

        Args:
            available: whether the result of a stage exists; its second argument asks for weights, which published
                records of training stages lack.
            weights: training stages are missing too where only their published record exists.
        """
        order: dict[str, None] = {}

        def visit(name: str, weights: bool) -> None:
            if name in order or available(name, weights):
                return
            for needed in self.stage(name).inputs:
                visit(needed, weights=True)
            order[name] = None

        for name in names:
            visit(name, weights and name.startswith("train:"))
        return list(order)
