"""Computing the missing stages of a study, in this process or in worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from paperlib.acceleration.memory import keep_memory
from paperlib.acceleration.precision import cpu_threads, tensor_float32
from paperlib.config.schema import parse_profile
from paperlib.config.serialise import to_table
from paperlib.errors import MissingError, PaperlibError
from paperlib.log import logger
from paperlib.pipeline.executors import ProcessExecutor, SerialExecutor
from paperlib.pipeline.keys import as_json
from paperlib.pipeline.provenance import provenance
from paperlib.pipeline.scheduler import run_graph

if TYPE_CHECKING:
    from paperlib.pipeline.study import Study


def compute_stages(study: Study, names: Sequence[str]) -> None:
    """Compute the named stages, whose other inputs exist.

    Raises:
        MissingError: the study uses published records only. Else as `run_graph`.
    """
    if not names:
        return
    if not study.local:
        raise MissingError(f"{names[0]}: not among the published records of seed {study.seed}, or made differently")
    started = time.monotonic()
    workers = min(study.workers, len(names))
    logger.info(f"computing {len(names)} stages of {study.profile.name}, seed {study.seed}, in {workers} process(es)")
    inputs = {name: study.stage(name).inputs for name in names}
    costs = {name: study.stage(name).cost for name in names}
    settings = (to_table(study.profile), study.seed, study.replay)
    with (
        SerialExecutor(lambda name: compute_stage(study, name))
        if workers == 1
        else ProcessExecutor(workers, _work, _start_worker, settings)
    ) as executor:
        run_graph(inputs, costs, executor)
    logger.info(f"computed {len(names)} stages in {time.monotonic() - started:.0f} s")


def compute_stage(study: Study, name: str) -> None:
    """Compute one stage and store its result, unless another process has done so in the meantime."""
    stage = study.stage(name)
    key = study.key(stage)
    with study.store.lock(name, key):
        if study.results.computed(stage) is not None:
            return
        keep_memory()
        started = time.monotonic()
        threads = stage.threads if study.device.type == "cpu" else 0
        with cpu_threads(threads), tensor_float32(False):  # training may allow TensorFloat-32 for itself
            result = stage.compute(study, stage.config)
            facts = provenance(study.device, torch.get_num_threads())
        facts |= {
            "stage": name,
            "profile": study.profile.name,
            "seed": study.seed,
            "data": study.fingerprint,
            "key": key,
            "inputs": {needed: study.key(study.stage(needed)) for needed in stage.inputs},
            "seconds": round(time.monotonic() - started, 3),
        }
        record = {"result": dict(result.record), "config": as_json(stage.config), "provenance": facts}
        logger.debug(f"{name}: {facts['seconds']} s, key {key}")
        study.store.write(name, key, record, result.arrays, result.weights)
        study.checkpoint(name).unlink(missing_ok=True)


def compute_runs(
    runs: Sequence[Study], names: Sequence[str] | None = None, report: Callable[[Study], None] = lambda run: None
) -> None:
    """`Study.compute` for several runs. One that fails does not keep the others from being computed.

    Args:
        report: called with each run when it has ended, failed or not.

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


_study: Study | None = None  # of a worker process


def _start_worker(profile: dict[str, Any], seed: int, replay: bool) -> None:
    from paperlib.pipeline.study import Study

    global _study
    _study = Study(parse_profile(profile), seed, replay=replay, workers=1)


def _work(name: str) -> None:
    assert _study is not None
    compute_stage(_study, name)
