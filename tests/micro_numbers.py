"""The numbers of every stage at a tiny profile, as committed in ``micro_numbers.json``.

A change of code that changes numbers must raise the version of the stages it touches, so that their old results are
not taken for new ones. The test compares what this code computes with the committed numbers: exactly on a machine of
the same kind, within a tolerance elsewhere. After raising a version, renew the file from the root of the repository:

    python tests/micro_numbers.py
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperlib.files import read_json, read_tensors, write_json
from paperlib.store import Artefact
from paperlib.study import Study

FILE = Path(__file__).with_suffix(".json")
UNTIMED = ("seconds",)
# Elsewhere sums round differently, and training on few images magnifies that. Wide enough for rounding, narrow enough
# for another attack, loss or seed.
RELATIVE, ABSOLUTE = 0.05, 0.05


def machine() -> dict[str, str]:
    """The kind of machine: where it is the same, the same code must give the same bits."""
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        model = None
    processor = model.group(1) if model else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": processor, "capability": capability, "torch": torch.__version__.split("+")[0]}


def numbers_of(artefact: Artefact, version: int) -> dict[str, Any]:
    """A result in a few numbers: the version of its code, a hash of all bits, and three means for other machines."""
    result = without_times(artefact.record["result"])
    digest = hashlib.sha256(json.dumps(result, sort_keys=True).encode())
    weights = read_tensors(artefact.weights)[0] if artefact.weights else {}
    for tensors in (artefact.arrays, weights):
        for name, value in sorted(tensors.items()):
            digest.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    means = [mean(leaves(result)), tensor_mean(artefact.arrays), tensor_mean(weights)]
    return {"version": version, "digest": digest.hexdigest()[:16], "means": [float(f"{value:.6g}") for value in means]}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in UNTIMED}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def leaves(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    elif isinstance(value, int | float):
        yield float(value)


def mean(values: Iterator[float]) -> float:
    """Of magnitudes brought to one scale, so that a large number does not drown the others."""
    found = [math.log1p(abs(value)) for value in values]
    return sum(found) / max(len(found), 1)


def tensor_mean(tensors: dict[str, Tensor]) -> float:
    means = [float(value.double().abs().mean()) for value in tensors.values() if value.numel()]
    return sum(means) / max(len(means), 1)


def differences(found: dict[str, Any], committed: dict[str, Any], *, exact: bool) -> Iterator[str]:
    """What of one stage speaks against the committed numbers, in words."""
    if found["version"] != committed["version"]:
        yield f"version {committed['version']} is now {found['version']}: renew the file"
    elif exact and found["digest"] != committed["digest"]:
        yield f"the numbers changed, the version is still {found['version']}: raise it, then renew the file"
    elif not exact:
        for one, other in zip(found["means"], committed["means"], strict=True):
            if abs(one - other) > ABSOLUTE + RELATIVE * abs(other):
                yield f"the numbers moved from {other} to {one}, more than rounding does: raise the version"


def renew() -> None:
    """Compute every stage of the tiny profile and write the file."""
    from toys import micro_table

    from paperlib.profiles import parse_profile

    torch.set_num_threads(1)
    before = read_json(FILE) if FILE.exists() else {"machine": machine(), "stages": {}}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"PAPERLIB_HOME": folder, "CUDA_VISIBLE_DEVICES": "", "PAPERLIB_PROGRESS": "lines"}
        study = Study(parse_profile(micro_table()), replay=False, workers=1, say=lambda line: None)
        study.compute()
        found = {name: numbers_of(study.get(name), stage.version) for name, stage in study.stages.items()}
    for name, numbers in found.items():
        old = before["stages"].get(name)
        if old and old["digest"] != numbers["digest"] and old["version"] == numbers["version"]:
            print(f"{name}: other numbers, same version {numbers['version']}")
    write_json(FILE, {"machine": machine(), "stages": found})
    print(f"wrote {len(found)} stages to {FILE.name}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    renew()
