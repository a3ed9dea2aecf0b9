"""Training time and robust accuracy with folded copies, without them and with bfloat16 attacks, for several seeds."""

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
from paperlib.config.load import load_profile
from paperlib.evaluation import evaluate, headline
from paperlib.pipeline.study import Study
from paperlib.seeds import hash_seed
from paperlib.training import trainer

Json = dict[str, Any]


def run(system: str, seeds: Sequence[int], variants: Sequence[str], log: Callable[[str], None]) -> list[Json]:
    """Train ``system`` of the profile digits once for each seed and variant.

    Variants: ``engine`` is the training of this package; ``plain loop`` uses no folded copies; in ``bfloat16`` the
    attack and the update use bfloat16. All share seeds, data order, attacks and random starts.
    """
    keep_memory()
    rows = []
    for seed in seeds:
        for variant in variants:
            profile = load_profile("digits")
            if variant == "bfloat16":
                profile = dataclasses.replace(profile, run=dataclasses.replace(profile.run, bf16=True))
            study = Study(profile, seed, replay=False)
            stage = study.stages[f"train:{system}"]
            study.compute(stage.inputs, weights=True)
            with tempfile.TemporaryDirectory() as folder, _folding(variant != "plain loop"):
                context = _Context(study, Path(folder))
                started = time.perf_counter()
                result = stage.compute(context, stage.config)
                seconds = time.perf_counter() - started
            model = study.build(stage.config.architecture)
            model.load_state_dict(dict(result.weights))
            spec = headline(study.profile.evaluation)
            outcome = evaluate(
                model.to(study.device).eval(),
                study.data.test.to(study.device),
                spec,
                seed=hash_seed(seed, "evaluate", spec.name),
                batch_size=study.profile.evaluation.batch_size,
            )
            record = outcome.record()
            row = {"system": system, "seed": seed, "variant": variant, "seconds": seconds, "attack": spec.name}
            row |= {key: record[key] for key in ("n", "correct", "accuracy", "interval")}
            row["correct_images"] = "".join("01"[correct] for correct in outcome.correct.tolist())
            rows.append(row)
            log(f"{system}, seed {seed}, {variant}: {seconds:.1f} s, {row['accuracy']:.1%} under {spec.name}")
    return rows


class _Context:
    """The context of a stage with checkpoints in another folder, so that the stage is computed from its beginning."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.seed, self.device, self.data = study.seed, study.device, study.data
        self.build, self.weights, self.model, self.get = study.build, study.weights, study.model, study.get
        self.folder = folder

    def checkpoint(self, stage: str) -> Path:
        return self.folder / "state.safetensors"


@contextmanager
def _folding(enabled: bool) -> Iterator[None]:
    original = trainer.fold

    def without_copy(model: nn.Module, example: Tensor, *, dtype: torch.dtype = torch.float32) -> Folded:
        return Folded(model, model, reason="the plain loop")

    if not enabled:
        trainer.fold = without_copy  # type: ignore[assignment]
    try:
        yield
    finally:
        trainer.fold = original
