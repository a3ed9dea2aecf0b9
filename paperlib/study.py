"""A study: the stages of one profile and seed, each found (here or published) or computed, side by side."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.acceleration.memory import keep_memory
from paperlib.acceleration.precision import cpu_threads, tensor_float32
from paperlib.atomic_files import read_tensors
from paperlib.config.load import command_name, load_profile
from paperlib.config.plugins import load_extension
from paperlib.config.schema import Profile, parse_profile
from paperlib.config.serialise import to_table
from paperlib.data import Dataset, check_counts, load_dataset
from paperlib.errors import DataError, MissingError, PaperlibError
from paperlib.evaluation import AttackSpec
from paperlib.executors import Progress, run_in_turn, run_side_by_side
from paperlib.paths import location, published_dir, store_dir
from paperlib.progress import Say, say
from paperlib.provenance import provenance, source_digest
from paperlib.published import Published, write_published
from paperlib.stage import Stage, as_json
from paperlib.stages import PUBLISHED_WEIGHTS, evaluation, stages
from paperlib.store import Artefact, Store, artefact_key
from paperlib.systems.build import Architecture, DataFacts, System, build_network, load_experts, system_of
from paperlib.systems.registry import recipe_for

Json = dict[str, Any]


class Study:
    """All results of one profile and one seed.

    Args:
        profile: a profile or its name.
        seed: decides initial weights, batches, attacks and random starts; the split of the data does not depend on it.
        replay: read published records where this machine has not computed its own. False never reads anything
            published.
        local: use, and add to, what this machine has computed. False, or ``PAPERLIB_LOCAL=no``, leaves only published
            records and weights.
        seeds: without replay, the runs that tables over seeds show; by default this seed alone.
        workers: processes that compute side by side; by default as many as the cores allow, one on an accelerator.
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
        say: Say = say,
    ) -> None:
        self.profile = profile if isinstance(profile, Profile) else load_profile(profile)
        self.called = command_name(profile)  # for messages that advise a command
        for value in (seed, *seeds):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise PaperlibError(f"seed={value!r}: expected a whole number, 0 or more")
        if not isinstance(replay, bool):
            raise PaperlibError(f"replay={replay!r}: expected True or False")
        self.seed = seed
        self.seeds = tuple(dict.fromkeys(seeds)) or (seed,)
        self.replay = replay
        self.local = local and os.environ.get("PAPERLIB_LOCAL") != "no"
        self.say = say
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # A profile built on another shares its results: equal keys mean equal numbers.
        base = self.profile.base or self.profile.name
        self.store = Store(store_dir() / base)
        self.extension = load_extension(self.profile.study.extension)  # one version for as long as the study lives
        self.stages = stages(self.profile)
        self.workers = workers or _default_workers(self.device, self.profile.run.threads)
        self._read_before: dict[str, Artefact] = {}
        self.used: dict[str, Artefact] = {}  # what this study has handed out, for the provenance table

    @functools.cached_property
    def published(self) -> Published:
        """The published records; in replay alone, else none, and no published file is opened."""
        own = Published(published_dir(self.profile.name))
        if not self.replay:
            return Published.none(own.folder)
        return own if own.index else Published(published_dir(self.profile.base or self.profile.name))

    # -- data and models -------------------------------------------------------------------------------------------

    @functools.cached_property
    def data(self) -> Dataset:
        """The data set of the profile, on the device. Raises DataError if records replayed stem from other data."""
        data = load_dataset(self.profile, device=self.device, say=self.say)
        if data.fingerprint != self.fingerprint:
            raise DataError(
                f"profile {self.profile.name}: the data here ({data.fingerprint}) are not those of the published "
                f"records ({self.fingerprint}); compute with replay off, or point PAPERLIB_DATA at the same data"
            )
        return data

    @functools.cached_property
    def fingerprint(self) -> str:
        """Which data the results belong to: those of the published records in replay, else those found here."""
        if self.published.index:
            return str(self.published.index["fingerprint"])
        data = load_dataset(self.profile, device=self.device, say=self.say)
        check_counts(self.profile, data)  # before anything is trained
        return data.fingerprint

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        names: list[str] = self.record("data")["classes"]
        return names

    @functools.cached_property
    def facts(self) -> DataFacts:
        """What networks must know of the data; in replay the published facts, so that no images are needed."""
        found = self.published.index.get("data")
        if found is None:
            return DataFacts.of(self.data)
        return DataFacts(len(found["classes"]), tuple(found["shape"]), tuple(found["mean"]), tuple(found["std"]))

    def build(self, architecture: Architecture) -> nn.Module:
        """An untrained network, drawn from torch's global generator."""
        return build_network(architecture, self.facts, self.extension)

    def system(self, name: str) -> System:
        """Raises MissingError for a system that the profile does not have."""
        return system_of(recipe_for(name, self.profile), self.profile)

    def weights(self, stage: str) -> dict[str, Tensor]:
        """The weights that a training stage computed here. Raises MissingError if there are none."""
        found = self._read(self.stage(stage))
        if found is None or found.weights is None:
            raise MissingError(
                f"{stage.removeprefix('train:')}: no weights here for profile {self.profile.name}, seed {self.seed}; "
                f"make them with: python -m paperlib run --profile {self.called} --seeds {self.seed} --stage {stage}"
            )
        return read_tensors(found.weights)[0]

    def model(self, system: System | str) -> nn.Module:
        """A trained system in evaluation mode, from weights computed here. Raises MissingError if there are none."""
        return self._assembled(self.system(system) if isinstance(system, str) else system, self.weights)

    def load(self, system: str) -> nn.Module:
        """As `model`; in replay, published half-precision weights are taken where there are none from here."""
        return self._assembled(self.system(system), self._weights_or_published)

    def _assembled(self, system: System, weights: Callable[[str], dict[str, Tensor]]) -> nn.Module:
        states = [weights(stage) for stage in system.weights]
        model = self.build(system.architecture)
        if system.per_expert:
            load_experts(model, states)
        else:
            model.load_state_dict(states[0])
        return model.to(self.device).eval()

    def _weights_or_published(self, stage: str) -> dict[str, Tensor]:
        try:
            return self.weights(stage)
        except MissingError:
            published = self.published.weights(stage.removeprefix("train:"), self.seed)
            if published is None or self.find(stage) is None:  # none, or of another configuration
                raise
        return {name: value.float() if value.is_floating_point() else value for name, value in published.items()}

    def checkpoint(self, stage: str) -> Path:
        """Where an unfinished training run keeps its state."""
        key = self.key(self.stage(stage))
        return self.store.root / f".{stage.replace(':', '-')}-{key}.checkpoint.safetensors"

    # -- results ---------------------------------------------------------------------------------------------------

    def stage(self, name: str) -> Stage:
        """Raises MissingError for a stage that does not exist."""
        if name not in self.stages:
            raise MissingError(
                f"unknown stage {name!r}; list them: python -m paperlib run --profile {self.called} --list"
            )
        return self.stages[name]

    def key(self, stage: Stage) -> str:
        """The hash of all that decides a stage's result."""
        return artefact_key(
            {
                "stage": stage.name,
                "version": stage.version,
                "config": as_json(stage.config),
                "threads": stage.threads,
                "seed": self.seed,
                "data": self.fingerprint,
                "inputs": [self.key(self.stage(name)) for name in stage.inputs],
            }
        )

    def find(self, name: str, *, weights: bool = False) -> Artefact | None:
        """A result that is already there: computed here, or published (records only)."""
        stage = self.stage(name)
        found = self._read(stage)
        if found is None and self.replay and not weights:
            found = self.published.read(name, self.key(stage), self.seed)
        return found

    def get(self, name: str) -> Artefact:
        """The result of a stage: found, or computed now together with whatever it needs."""
        found = self.find(name)
        if found is None:
            self.compute([name])
            found = self.find(name)
            assert found is not None
        self.used[name] = found
        return found

    def record(self, name: str) -> Json:
        """The measured values of a stage."""
        result: Json = self.get(name).record["result"]
        return result

    def outcome(self, system: str, spec: AttackSpec) -> Artefact:
        """One system under one attack; settings outside the series are computed and kept like any other."""
        stage = evaluation(recipe_for(system, self.profile), spec, self.profile)
        if self.stages.get(stage.name, stage).config != stage.config:
            # A name leaves out the step size and the start; with others than usual, the hash of all settings joins it.
            stage = dataclasses.replace(stage, name=f"{stage.name}:{artefact_key(as_json(stage.config))[:8]}")
        self.stages.setdefault(stage.name, stage)
        if self.find(stage.name) is None:
            self.compute(stage.inputs, weights=True)  # side by side; workers do not know a stage that was added here
        return self.get(stage.name)

    def missing(self, names: Sequence[str], *, weights: bool = False) -> list[str]:
        """What must be computed to have the named stages: they and their inputs, inputs first.

        With ``weights``, training stages count as missing when only their published record is there.
        """
        order: dict[str, None] = {}

        def visit(name: str, weights: bool) -> None:
            if name in order or self.find(name, weights=weights) is not None:
                return
            for needed in self.stage(name).inputs:
                visit(needed, weights=True)
            order[name] = None

        for name in names:
            visit(name, weights=weights and name.startswith("train:"))
        return list(order)

    def compute(self, names: Sequence[str] | None = None, *, weights: bool = False) -> None:
        """Make sure that the named stages (all by default) have results; what is missing is computed, with progress.

        ``weights`` as in `missing`.
        """
        todo = self.missing(list(self.stages) if names is None else names, weights=weights)
        if not todo:
            return
        if not self.local:
            raise MissingError(f"{todo[0]}: not among the published records of seed {self.seed}, or made differently")
        started = time.monotonic()
        workers = min(self.workers, len(todo))
        self.say(f"computing {len(todo)} stages of {self.profile.name}, seed {self.seed}, in {workers} process(es)")
        needs = {name: self.stage(name).inputs for name in todo}
        progress = Progress(needs, {name: self.stage(name).cost for name in todo}, self.say)
        if workers == 1:
            run_in_turn(progress, self._compute)
        else:
            settings = (to_table(self.profile), self.seed, self.replay)
            run_side_by_side(progress, workers, _work, _start_worker, settings)
        self.say(f"computed {len(todo)} stages in {time.monotonic() - started:.0f} s")

    def matching(self, *patterns: str) -> list[str]:
        """Stage names by pattern, such as ``"train:expert-*"``; all without one. Raises MissingError for no match."""
        chosen: list[str] = []
        for pattern in patterns or ("*",):
            found = fnmatch.filter(self.stages, pattern)
            if not found:
                raise MissingError(
                    f"no stage matches {pattern!r}; list them: python -m paperlib run --profile {self.called} --list"
                )
            chosen += [name for name in found if name not in chosen]
        return chosen

    @functools.cached_property
    def runs(self) -> list[Study]:
        """The runs that tables over seeds show: in replay every published one, else those of ``seeds``.

        Published ones come from published records alone. Where none of this configuration are published, this study
        is the only run.
        """
        if not self.replay:
            return [self if seed == self.seed else self._sibling(seed) for seed in self.seeds]
        published = [Study(self.profile, seed, local=False, say=self.say) for seed in self.published.seeds]
        trained = [name for name in self.stages if name.startswith("train:")]
        return [run for run in published if not run.missing(trained)] or [self]

    def _sibling(self, seed: int) -> Study:
        return Study(self.profile, seed, replay=False, local=self.local, workers=self.workers, say=self.say)

    def prepare(self, *patterns: str) -> None:
        """What a notebook does first: find or compute its records, and say which it was."""
        names = self.matching(*patterns)
        compute_runs([self] if self.replay else self.runs, names)
        found = [artefact for name in names if (artefact := self.find(name))]
        counts = Counter(artefact.source for artefact in found)
        sources = ", ".join(f"{count} {source}" for source, count in sorted(counts.items()))
        self.say(f"{len(names)} records of profile {self.profile.name}, seed {self.seed}: {sources}")
        for source in counts:
            self._say_other_code(source, [artefact for artefact in found if artefact.source == source])

    def _say_other_code(self, source: str, found: Sequence[Artefact]) -> None:
        """Say how many records were computed by other code than this, and by which commits."""
        others = [a.record["provenance"] for a in found if a.record["provenance"]["source"] != source_digest()]
        if others:
            commits = ", ".join(sorted({facts["commit"] for facts in others}))
            again = "; --fresh computes them again" if source == "computed" else ""
            self.say(
                f"note: {len(others)} of {len(found)} {source} records were made by other code (commit {commits}); "
                f"docs/check-a-number.md says what the tests compare{again}"
            )

    def forget(self, names: Sequence[str] | None = None) -> int:
        """Delete this machine's results of the named stages (all by default); returns how many there were.

        The states of unfinished training runs go with them.
        """
        count = 0
        for name in list(self.stages) if names is None else names:
            count += self.store.delete(name, self.key(self.stage(name)))
            self.checkpoint(name).unlink(missing_ok=True)
        self._read_before.clear()
        return count

    # -- internals -------------------------------------------------------------------------------------------------

    def _read(self, stage: Stage) -> Artefact | None:
        if not self.local:
            return None
        key = self.key(stage)
        # Verified once per study: hashing the weights of full-width networks at every look would take seconds.
        if key not in self._read_before and (found := self.store.read(stage.name, key)):
            self._read_before[key] = found
        return self._read_before.get(key)

    def _compute(self, name: str) -> None:
        stage = self.stage(name)
        key = self.key(stage)
        with self.store.lock(name, key):
            if self._read(stage) is not None:  # another process was faster
                return
            keep_memory()
            started = time.monotonic()
            with (
                cpu_threads(stage.threads if self.device.type == "cpu" else 0),
                tensor_float32(False),
            ):  # training may allow it for itself
                result = stage.compute(self, stage.config)
                facts = provenance(self.device, torch.get_num_threads())
            facts |= {
                "stage": name,
                "profile": self.profile.name,
                "seed": self.seed,
                "data": self.fingerprint,
                "key": key,
                "inputs": {needed: self.key(self.stage(needed)) for needed in stage.inputs},
                "seconds": round(time.monotonic() - started, 3),
            }
            record = {"result": dict(result.record), "config": as_json(stage.config), "provenance": facts}
            self.store.write(name, key, record, result.arrays, result.weights)
            self.checkpoint(name).unlink(missing_ok=True)


def compute_runs(
    runs: Sequence[Study], names: Sequence[str] | None = None, report: Callable[[Study], None] = lambda run: None
) -> None:
    """`Study.compute` for several runs. One that fails does not keep the others from being computed.

    Args:
        report: called with each run when it has ended, well or not.

    Raises:
        PaperlibError: at the end, if any failed.
    """
    failed: dict[int, PaperlibError] = {}
    for run in runs:
        try:
            run.compute(names)
        except PaperlibError as error:
            failed[run.seed] = error
        report(run)
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        raise PaperlibError("\n".join(f"seed {seed}: {error}" for seed, error in failed.items()))


def load_system(system: str, profile: Profile | str, seed: int = 0) -> nn.Module:
    """A trained system as a module in evaluation mode: pixels (N, C, H, W) in [0, 1] to logits (N, classes).

    Weights computed here come first; published half-precision weights, returned in float32, second.

    Raises:
        MissingError: an unknown system, or one whose weights are not there; the message says which command makes them.
    """
    return Study(profile, seed).load(system)


def publish(profile: Profile | str, seeds: Sequence[int] = (), say: Say = say, *, replace: bool = False) -> Path:
    """Copy this machine's records of a profile, all stages of ``seeds``, into ``data/published/PROFILE``.

    Other seeds that are published stay if they are of the same configuration, data and code; ``replace`` drops them.

    Raises:
        MissingError: a stage has not been computed here; the message says which command does it.
        StoreError: other seeds are published that stem from another configuration, other data or other code.
    """
    called = command_name(profile)
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    seeds = list(seeds) or list(profile.run.seeds)
    records: dict[int, dict[str, Artefact]] = {}
    weights = {}
    for seed in seeds:
        study = Study(profile, seed, replay=False)
        if missing := study.missing(list(study.stages)):
            raise MissingError(
                f"profile {profile.name}, seed {seed}: {len(missing)} stages are not computed yet ({missing[0]}, ...); "
                f"run: python -m paperlib run --profile {called} --seeds {','.join(map(str, seeds))}"
            )
        records[seed] = {name: study.get(name) for name in study.stages}
        if seed == min(seeds):
            for system in PUBLISHED_WEIGHTS:
                tensors = study.model(system).state_dict()
                halved = {name: v.half() if v.is_floating_point() else v for name, v in tensors.items()}
                if sum(v.numel() * v.element_size() for v in halved.values()) < 10_000_000:
                    weights[f"{system}-seed-{seed}"] = halved
    facts = records[seeds[0]]["data"].record["result"]
    description = {
        "profile": profile.name,
        "configuration": told_of(profile),
        "fingerprint": study.fingerprint,
        "data": {name: facts[name] for name in ("label", "classes", "shape", "mean", "std", "counts")},
    }
    folder = published_dir(profile.name)

    def keys(seed: int) -> dict[str, str]:
        other = Study(profile, seed, replay=False)
        return {name: other.key(stage) for name, stage in other.stages.items()}

    held = write_published(folder, description, records, weights, keys=keys, replace=replace)
    say(f"published {len(study.stages)} records for each of seeds {seeds} of profile {profile.name}")
    say(f"{location(folder)} now holds seeds {held}")
    return folder


def told_of(profile: Profile) -> Json:
    """A profile's configuration as it is published: where the user's own file lies is nobody's business."""
    table = to_table(profile)
    table["study"]["extension"] = Path(profile.study.extension).name
    return table


def _default_workers(device: torch.device, threads: int) -> int:
    if asked := os.environ.get("PAPERLIB_WORKERS"):
        if not asked.isdecimal():
            raise PaperlibError(f"PAPERLIB_WORKERS={asked}: expected a whole number, 1 or more")
        return max(1, int(asked))
    return max(1, (os.cpu_count() or 1) // threads) if device.type == "cpu" and threads else 1


_worker: Study | None = None


def _start_worker(profile: Json, seed: int, replay: bool, say: Say) -> None:
    global _worker
    _worker = Study(parse_profile(profile), seed, replay=replay, workers=1, say=say)


def _work(name: str) -> None:
    assert _worker is not None
    _worker._compute(name)
