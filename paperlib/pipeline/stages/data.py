"""The data stage: facts about the data set, and one image of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paperlib.pipeline.stage import Context, Result, Stage
from paperlib.pipeline.stages.gate import one_per_class


@dataclass(frozen=True)
class DataConfiguration:
    """Empty: the fingerprint of the data, part of every key, identifies the data."""


def data_facts() -> Stage:
    """``data``."""
    return Stage("data", 1, DataConfiguration(), (), _data)


def _data(context: Context, config: DataConfiguration) -> Result:
    data = context.data
    counts = {
        name: torch.bincount(split.labels.cpu(), minlength=len(data.classes)).tolist()
        for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test))
    }
    record = {
        "label": data.label,
        "classes": list(data.classes),
        "shape": list(data.shape),
        "mean": list(data.mean),
        "std": list(data.std),
        "counts": counts,
    }
    examples = one_per_class(data.test)
    return Result(record, {"images": examples.images.cpu(), "labels": examples.labels.cpu()})
