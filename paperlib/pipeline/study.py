"""A study: all results of one profile and one seed, read or computed."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from paperlib.config.load import command_name, load_profile
from paperlib.config.plugins import load_extension
from paperlib.config.schema import Profile
from paperlib.data import Dataset
from paperlib.errors import PaperlibError
from paperlib.evaluation import AttackSpec
from paperlib.log import logger
from paperlib.paths import published_dir, store_dir
from paperlib.pipeline.compute import compute_runs, compute_stages
from paperlib.pipeline.graph import Graph
from paperlib.pipeline.keys import artefact_key, as_json
from paperlib.pipeline.networks import Networks
from paperlib.pipeline.provenance import source_digest
from paperlib.pipeline.published import Published
from paperlib.pipeline.results import Results
from paperlib.pipeline.stage import Json, Stage
from paperlib.pipeline.stages import evaluation
from paperlib.pipeline.store import Artefact, Store
from paperlib.pipeline.study_data import StudyData
from paperlib.systems.build import Architecture, System
from paperlib.systems.registry import recipe_for


class Study:
    """All results of one profile and one seed: a facade over `Graph`, `Results`, `StudyData` and `Networks`.

    Args:
        profile: a profile or its name.
        seed: decides initial weights, batches, attacks and random starts; the split of the data does not depend on it.
        replay: use published records where this machine has not computed its own. With False no published file is
            opened.
        local: use, and add to, what this machine has computed. False, or ``PAPERLIB_LOCAL=no``, leaves only published
            records and weights.
        seeds: without replay, the runs that tables over seeds show; by default this seed alone.
        workers: processes that compute at the same time; by default as many as the cores allow, one on an accelerator.
    """

    def __init__(
        self,
        profile: Profile | str,
        seed: int = 0,
        *,
        replay: bool = True,
        local: bool = True,
        seeds: Sequence[int] = (),
        workers: int | None = None,
    ) -> None:
        self.profile = profile if isinstance(profile, Profile) else load_profile(profile)
        self.command_name = command_name(profile)  # for messages that advise a command
        for value in (seed, *seeds):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise PaperlibError(f"seed={value!r}: expected a whole number, 0 or more")
        if not isinstance(replay, bool):
            raise PaperlibError(f"replay={replay!r}: expected True or False")
        self.seed, self.replay = seed, replay
        self.seeds = tuple(dict.fromkeys(seeds)) or (seed,)
        self.local = local and os.environ.get("PAPERLIB_LOCAL") != "no"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.extension = load_extension(
            self.profile.study.extension
        )  # loaded once, so that later edits of the file have no effect
        self.workers = workers or _default_workers(self.device, self.profile.run.threads)
        # A profile shares the results of its base: equal keys mean equal numbers.
        self.store = Store(store_dir() / (self.profile.base or self.profile.name))
        self.graph = Graph(self.profile, seed, lambda: self.fingerprint)
        self.used: dict[str, Artefact] = {}  # what this study has returned, for the provenance table

    @functools.cached_property
    def published(self) -> Published:
        """The published records; empty without replay, and then no published file is opened."""
        published = Published(published_dir(self.profile.name))
        if not self.replay:
            return Published.none(published.folder)
        return published if published.index else Published(published_dir(self.profile.base or self.profile.name))

    @functools.cached_property
    def study_data(self) -> StudyData:
        return StudyData(self.profile, self.device, self.published)

    @functools.cached_property
    def results(self) -> Results:
        return Results(self.graph, self.store, self.published, local=self.local)

    @functools.cached_property
    def networks(self) -> Networks:
        return Networks(self.profile, self.study_data, self.results, self.extension, self.device)

    # -- data and networks: see `StudyData` and `Networks` ---------------------------------------------------------

    @property
    def data(self) -> Dataset:
        return self.study_data.dataset

    @property
    def fingerprint(self) -> str:
        return self.study_data.fingerprint

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        names: list[str] = self.record("data")["classes"]
        return names

    def build(self, architecture: Architecture) -> nn.Module:
        return self.networks.build(architecture)

    def weights(self, stage: str) -> dict[str, Tensor]:
        return self.networks.weights(stage)

    def model(self, system: System | str) -> nn.Module:
        return self.networks.model(system)

    def load(self, system: str) -> nn.Module:
        return self.networks.load(system)

    # -- stages and results: see `Graph` and `Results` -------------------------------------------------------------

    @property
    def stages(self) -> dict[str, Stage]:
        return self.graph.stages

    def stage(self, name: str) -> Stage:
        return self.graph.stage(name)

    def key(self, stage: Stage) -> str:
        return self.graph.key(stage)

    def find(self, name: str, *, weights: bool = False) -> Artefact | None:
        return self.results.find(name, weights=weights)

    def missing(self, names: Sequence[str], *, weights: bool = False) -> list[str]:
        return self.results.missing(names, weights=weights)

    def checkpoint(self, stage: str) -> Path:
        return self.results.checkpoint(stage)

    def forget(self, names: Sequence[str] | None = None) -> int:
        return self.results.forget(list(self.stages) if names is None else names)

    def compute(self, names: Sequence[str] | None = None, *, weights: bool = False) -> None:
        """Compute what is missing of the named stages (all by default), with progress; ``weights`` as in `Graph`."""
        compute_stages(self, self.missing(list(self.stages) if names is None else names, weights=weights))

    def get(self, name: str) -> Artefact:
        """The result of a stage, computed now with its inputs if it does not exist."""
        artefact = self.find(name)
        if artefact is None:
            self.compute([name])
            artefact = self.find(name)
            assert artefact is not None
        self.used[name] = artefact
        return artefact

    def record(self, name: str) -> Json:
        """The measured values of a stage."""
        result: Json = self.get(name).record["result"]
        return result

    def outcome(self, system: str, spec: AttackSpec) -> Artefact:
        """One system under one attack; an attack that is not in the series is computed and stored like any other."""
        stage = evaluation(recipe_for(system, self.profile), spec, self.profile)
        if self.stages.get(stage.name, stage).config != stage.config:
            # A name leaves out the step size and the start; where they are unusual, a hash of all settings is added.
            stage = dataclasses.replace(stage, name=f"{stage.name}:{artefact_key(as_json(stage.config))[:8]}")
        self.stages.setdefault(stage.name, stage)
        if self.find(stage.name) is None:
            self.compute(stage.inputs, weights=True)  # in parallel; workers do not know a stage that was added here
        return self.get(stage.name)

    # -- runs ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def runs(self) -> list[Study]:
        """The runs that tables over seeds show: in replay all published seeds, else those of ``seeds``.

        In replay they read published records only. Where none of this configuration are published, this study is the
        only run.
        """
        if not self.replay:
            return [self if seed == self.seed else self._with_seed(seed) for seed in self.seeds]
        published = [Study(self.profile, seed, local=False) for seed in self.published.seeds]
        trained = [name for name in self.stages if name.startswith("train:")]
        return [run for run in published if not run.missing(trained)] or [self]

    def _with_seed(self, seed: int) -> Study:
        return Study(self.profile, seed, replay=False, local=self.local, workers=self.workers)

    def prepare(self, *patterns: str) -> None:
        """Compute the missing records of matching stages, and log where all come from; notebooks call this first."""
        names = self.graph.matching(*patterns)
        compute_runs([self] if self.replay else self.runs, names)
        artefacts = [artefact for name in names if (artefact := self.find(name))]
        counts = Counter(artefact.source for artefact in artefacts)
        sources = ", ".join(f"{count} {source}" for source, count in sorted(counts.items()))
        logger.info(f"{len(names)} records of profile {self.profile.name}, seed {self.seed}: {sources}")
        for source in counts:
            self._log_other_code(source, [artefact for artefact in artefacts if artefact.source == source])

    def _log_other_code(self, source: str, artefacts: Sequence[Artefact]) -> None:
        """Log how many records were computed by other code than this, and by which commits."""
        others = [a.record["provenance"] for a in artefacts if a.record["provenance"]["source"] != source_digest()]
        if others:
            commits = ", ".join(sorted({facts["commit"] for facts in others}))
            again = "; --fresh computes them again" if source == "computed" else ""
            logger.info(
                f"note: {len(others)} of {len(artefacts)} {source} records were made by other code (commit {commits}); "
                f"docs/check-a-number.md says what the tests compare{again}"
            )


def load_system(system: str, profile: Profile | str, seed: int = 0) -> nn.Module:
    """A trained system as a module in evaluation mode: pixels (N, C, H, W) in [0, 1] to logits (N, classes).

    Weights computed here come first; published half-precision weights, returned in float32, second.

    Raises:
        MissingError: an unknown system, or one without weights; the message says which command makes them.
    """
    return Study(profile, seed).load(system)


def _default_workers(device: torch.device, threads: int) -> int:
    if setting := os.environ.get("PAPERLIB_WORKERS"):
        if not setting.isdecimal():
            raise PaperlibError(f"PAPERLIB_WORKERS={setting}: expected a whole number, 1 or more")
        return max(1, int(setting))
    return max(1, (os.cpu_count() or 1) // threads) if device.type == "cpu" and threads else 1
