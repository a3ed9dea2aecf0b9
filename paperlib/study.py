"""A study: the stages of one profile and seed, each found (here or published) or computed, side by side."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paperlib.data import Dataset, check_counts, load_dataset
from paperlib.errors import DataError, MissingError, PaperlibError
from paperlib.evaluation import AttackSpec
from paperlib.files import read_tensors
from paperlib.memory import keep_memory
from paperlib.paths import published_dir, store_dir
from paperlib.precision import cpu_threads, tensor_float32
from paperlib.profiles import Profile, load_profile, parse_profile, to_table
from paperlib.progress import Say, say
from paperlib.provenance import provenance, source_digest
from paperlib.published import Published, write_published
from paperlib.stage import Stage
from paperlib.stages import PUBLISHED_WEIGHTS, evaluation, stages
from paperlib.store import Artefact, Store, artefact_key
from paperlib.training.recipes import build_network, load_experts, recipe_for

Json = dict[str, Any]


class Study:
    """All results of one profile and one seed.

    Args:
        profile: a profile or its name.
        seed: decides initial weights, batches, strikes and random starts; the split of the data does not depend on it.
        replay: read published records where this machine has not computed its own. False never reads them.
        local: use, and add to, what this machine has computed. False, or ``PAPERLIB_LOCAL=no``, leaves only published
            records.
        workers: processes that compute side by side; by default as many as the cores allow, one on an accelerator.
    """

    def __init__(
        self,
        profile: Profile | str,
        seed: int = 0,
        *,
        replay: bool = True,
        local: bool = True,
        workers: int | None = None,
        say: Say = say,
    ) -> None:
        self.profile = profile if isinstance(profile, Profile) else load_profile(profile)
        self.called = profile if isinstance(profile, str) else self.profile.name  # what a command line would name it
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise PaperlibError(f"seed={seed!r}: expected a whole number, 0 or more")
        if not isinstance(replay, bool):
            raise PaperlibError(f"replay={replay!r}: expected True or False")
        self.seed = seed
        self.replay = replay
        self.local = local and os.environ.get("PAPERLIB_LOCAL") != "no"
        self.say = say
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # A profile built on another shares its results: equal keys mean equal numbers.
        base = self.profile.base or self.profile.name
        self.store = Store(store_dir() / base)
        published = Published(published_dir(self.profile.name))
        self.published = published if published.index else Published(published_dir(base))
        self.stages = stages(self.profile)
        self.workers = workers or _default_workers(self.device, self.profile.run.threads)
        self._read_before: dict[str, Artefact] = {}
        self.used: dict[str, Artefact] = {}  # what this study has handed out, for the provenance table

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
        if self.replay and self.published.index:
            return str(self.published.index["fingerprint"])
        data = load_dataset(self.profile, device=self.device, say=self.say)
        check_counts(self.profile, data)  # before anything is trained
        return data.fingerprint

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in label order."""
        names: list[str] = self.record("data")["classes"]
        return names

    def build(self, system: str) -> nn.Module:
        """The untrained network of a system."""
        facts = self.published.index.get("data") if self.replay else None
        if facts is None:
            data = self.data
            facts = {"classes": data.classes, "shape": data.shape, "mean": data.mean, "std": data.std}
        recipe = recipe_for(system, self.profile)
        mean, std = tuple(facts["mean"]), tuple(facts["std"])
        return build_network(recipe, self.profile, len(facts["classes"]), facts["shape"][-1], mean, std)

    def model(self, system: str) -> nn.Module:
        """A trained system in evaluation mode, from weights computed here. Raises MissingError if there are none."""
        recipe = recipe_for(system, self.profile)
        model = self.build(system)
        if recipe.weights_of:
            model.load_state_dict(self.model(recipe.weights_of).state_dict())
        elif not recipe.kept:
            load_experts(model, [self.model(name) for name in recipe.starts_from])
        else:
            found = self._read(self.stage(f"train:{system}"))
            if found is None or found.weights is None:
                raise MissingError(
                    f"{system}: no weights here for profile {self.profile.name}, seed {self.seed}; "
                    f"make them with: python -m paperlib run --profile {self.called} --seeds {self.seed} "
                    f"--stage train:{system}"
                )
            model.load_state_dict(read_tensors(found.weights)[0])
        return model.to(self.device).eval()

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
                "config": stage.config,
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
            stage = dataclasses.replace(stage, name=f"{stage.name}:{artefact_key(stage.config)[:8]}")
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
        if workers == 1:
            for done, name in enumerate(todo, start=1):
                self._compute(name)
                self.say(f"[{done}/{len(todo)}] {name}")
        else:
            self._compute_side_by_side(todo, workers)
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

    def prepare(self, *patterns: str) -> None:
        """What a notebook does first: find or compute its records, and say which it was."""
        names = self.matching(*patterns)
        self.compute(names)
        there = [found for name in names if (found := self.find(name))]
        sources = Counter(found.source for found in there)
        told = ", ".join(f"{count} {source}" for source, count in sorted(sources.items()))
        self.say(f"{len(names)} records of profile {self.profile.name}, seed {self.seed}: {told}")
        own = [found.record["provenance"]["source"] for found in there if found.source == "computed"]
        if others := sum(digest != source_digest() for digest in own):
            self.say(
                f"note: {others} of them were computed by another version of the code; --fresh computes them again"
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
            threads = self.profile.run.threads if self.device.type == "cpu" else 0
            with cpu_threads(threads), tensor_float32(False):  # training may allow it for itself
                result = stage.compute(self)
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
            record = {"result": dict(result.record), "config": stage.config, "provenance": facts}
            self.store.write(name, key, record, result.arrays, result.weights)
            self.checkpoint(name).unlink(missing_ok=True)

    def _compute_side_by_side(self, todo: list[str], workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # fork is not safe once torch has started threads
        lines = context.Queue()
        relay = threading.Thread(target=_relay, args=(lines, self.say), daemon=True)
        relay.start()
        settings = (to_table(self.profile), self.seed, self.replay, lines)
        waiting, running = list(todo), dict[Future[None], str]()
        ready_first = {name: -self.stage(name).cost for name in todo}
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=settings)
        try:
            while waiting or running:
                unfinished = {*waiting, *running.values()}
                ready = [n for n in waiting if not unfinished.intersection(self.stage(n).inputs)]
                for name in sorted(ready, key=lambda n: ready_first[n])[: workers - len(running)]:
                    waiting.remove(name)
                    running[pool.submit(_work, name)] = name
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    name = running.pop(future)
                    self.say(f"[{len(todo) - len(waiting) - len(running)}/{len(todo)}] {name}")
        except BrokenProcessPool as error:
            names = ", ".join(running.values())
            raise PaperlibError(
                f"a worker process died while computing {names}; out of memory? Run again to go on"
            ) from error
        finally:
            for process in list((pool._processes or {}).values()) if running else ():
                process.terminate()  # after an error, do not wait for minutes of work nobody will read
            pool.shutdown(cancel_futures=True)
            lines.put(None)
            relay.join(timeout=5)
            lines.cancel_join_thread()  # a worker ended in the middle of a line may hold the queue's lock for ever


def load_system(system: str, profile: Profile | str, seed: int = 0) -> nn.Module:
    """A trained system as a module in evaluation mode: pixels (N, C, H, W) in [0, 1] to logits (N, classes).

    Weights computed here come first; published half-precision weights, returned in float32, second.

    Raises:
        MissingError: an unknown system, or one whose weights are not there; the message says which command makes them.
    """
    study = Study(profile, seed)
    try:
        return study.model(system)
    except MissingError:
        tensors = study.published.weights(system, seed)
        if tensors is None or study.find(f"train:{system}") is None:  # none, or of another configuration
            raise
        model = study.build(system)
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        )
        return model.to(study.device).eval()


def publish(profile: Profile | str, seeds: Sequence[int] = (), say: Say = say) -> Path:
    """Copy this machine's records of a profile, all stages and seeds, into ``data/published/PROFILE``.

    Raises:
        MissingError: a stage has not been computed here; the message says which command does it.
    """
    called = profile if isinstance(profile, str) else profile.name
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
        if seed == seeds[0]:
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
    write_published(folder, description, records, weights)
    say(f"published {len(study.stages)} records for each of seeds {seeds} of profile {profile.name}")
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


def _start_worker(profile: Json, seed: int, replay: bool, lines: Any) -> None:
    global _worker
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _worker = Study(parse_profile(profile), seed, replay=replay, workers=1, say=lines.put)


def _leave_with_parent() -> None:
    """End this worker when the process that started it is gone: a restarted kernel must leave nobody behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(name: str) -> None:
    assert _worker is not None
    _worker._compute(name)


def _relay(lines: Any, say: Say) -> None:
    while (line := lines.get()) is not None:
        say(line)
