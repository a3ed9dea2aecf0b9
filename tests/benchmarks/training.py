"""Whether training with the engine is faster, and whether what it trains is as robust, seed by seed."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded
from paperlib.acceleration.memory import keep_memory
from paperlib.evaluation import evaluate, headline
from paperlib.pipeline.study import Study
from paperlib.training import trainer
from paperlib.training.trainer import hash_seed

Json = dict[str, Any]


def run(system: str, seeds: Sequence[int], variants: Sequence[str], say: Callable[[str], None]) -> list[Json]:
    """Train ``system`` of profile digits once per seed and variant; the variants of a seed follow each other.

    Variants: ``engine`` as the companion trains; ``plain loop`` without folded copies; ``bfloat16`` with the attack
    and the update in bfloat16. All share seeds, data order, attacks and random starts.
    """
    keep_memory()
    rows = []
    for seed in seeds:
        for variant in variants:
            study = Study("digits", seed, replay=False)
            if variant == "bfloat16":
                profile = dataclasses.replace(study.profile, run=dataclasses.replace(study.profile.run, bf16=True))
                study.profile = profile
            stage = study.stages[f"train:{system}"]
            study.compute(stage.inputs, weights=True)
            context = _Context(study)
            with _engine(variant != "plain loop"):
                started = time.perf_counter()
                result = context.stages[f"train:{system}"].compute(context)
                seconds = time.perf_counter() - started
            model = study.build(system)
            model.load_state_dict(dict(result.weights))
            spec = headline(study.profile.evaluation)
            split = study.data.test.to(study.device)
            outcome = evaluate(
                model.to(study.device).eval(),
                split,
                spec,
                seed=hash_seed(seed, "evaluate", spec.name),
                batch_size=study.profile.evaluation.batch_size,
            )
            found = outcome.record()
            row = {"system": system, "seed": seed, "variant": variant, "seconds": seconds, "attack": spec.name}
            row |= {key: found[key] for key in ("n", "correct", "accuracy", "interval")}
            row["correct_images"] = "".join("01"[right] for right in outcome.correct.tolist())
            rows.append(row)
            say(f"{system}, seed {seed}, {variant}: {seconds:.1f} s, {row['accuracy']:.1%} under {spec.name}")
    return rows


class _Context:
    """A study that computes one stage afresh and keeps nothing."""

    def __init__(self, study: Study) -> None:
        from paperlib.pipeline.stages import stages

        self.study = study
        self.profile, self.seed, self.device = study.profile, study.seed, study.device
        self.stages = stages(study.profile)
        self.data, self.build, self.model = study.data, study.build, study.model
        self.folder = tempfile.TemporaryDirectory()

    def checkpoint(self, stage: str) -> Path:
        return Path(self.folder.name, "state.safetensors")


@contextmanager
def _engine(on: bool) -> Iterator[None]:
    original = trainer.fold

    def as_it_is(model: nn.Module, example: Tensor, *, dtype: torch.dtype = torch.float32) -> Folded:
        return Folded(model, model, reason="the plain loop")

    if not on:
        trainer.fold = as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        trainer.fold = original
