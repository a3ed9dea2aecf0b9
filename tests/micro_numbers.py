"""The numbers of every stage at a tiny profile, as committed in ``micro_numbers.json``.

A change of code that changes numbers must raise the version of the stages it touches, so that their old results are
not taken for new ones. The test compares what this code computes with the committed numbers: exactly on a machine of
the same kind, within a tolerance elsewhere. After raising a version, renew the file from the root of the repository:

    python tests/micro_numbers.py
"""

from __future__ import annotations

import hashlib
import json
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

from paperlib.atomic_files import read_json, read_tensors, write_json
from paperlib.pipeline.store import Artefact
from paperlib.pipeline.study import Study

FILE = Path(__file__).with_suffix(".json")
UNTIMED = ("seconds",)
# On another kind of machine sums round differently, and training magnifies that: with the instructions of older
# processors, up to 58 % of a stage's numbers moved by more than this share of their size, because one image of thirty
# changed sides. So elsewhere only gross changes are seen; a change of seed or loss may pass. Exact is exact only on a
# machine of the same kind.
TOLERANCE, MOVED = 0.02, 0.7
NUMBERS, TENSORS = 24, 12  # at most so many of a stage's numbers and tensors are kept for other machines


def machine() -> dict[str, str]:
    """The kind of machine: where it is the same, the same code must give the same bits."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        described = ""
    fields = [re.search(rf"{name}\s*:\s*(.+)", described) for name in ("model name", "cpu family", "model", "stepping")]
    processor = " ".join(found[1] for found in fields if found) or platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": processor, "capability": capability, "torch": torch.__version__.split("+")[0]}


def numbers_of(artefact: Artefact, version: int) -> dict[str, Any]:
    """A result in short: the version of its code, a hash of all bits, and some numbers for other kinds of machine."""
    result = without_times(artefact.record["result"])
    digest = hashlib.sha256(json.dumps(result, sort_keys=True).encode())
    weights = read_tensors(artefact.weights)[0] if artefact.weights else {}
    tensors = [*sorted(artefact.arrays.items()), *sorted(weights.items())]
    for name, value in tensors:
        digest.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    values = [*some(list(leaves(result)), NUMBERS), *(projection(value) for _, value in some(tensors, TENSORS))]
    return {"version": version, "digest": digest.hexdigest()[:16], "values": [float(f"{v:.5g}") for v in values]}


def some(items: list[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly spread."""
    return items[:: max(1, -(-len(items) // count))]


def projection(value: Tensor) -> float:
    """A tensor as one number that any of its elements moves."""
    flat = value.double().flatten()
    return float((flat * torch.arange(len(flat), dtype=torch.float64).cos()).sum()) / max(len(flat), 1) ** 0.5


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


def differences(found: dict[str, Any], committed: dict[str, Any], *, exact: bool) -> Iterator[str]:
    """What of one stage speaks against the committed numbers, in words."""
    if found["version"] != committed["version"]:
        yield f"version {committed['version']} is now {found['version']}: renew the file"
    elif exact and found["digest"] != committed["digest"]:
        yield f"the numbers changed, the version is still {found['version']}: raise it, then renew the file"
    elif not exact and (share := share_moved(found["values"], committed["values"])) > MOVED:
        yield f"{share:.0%} of the numbers moved by more than {TOLERANCE:.0%}; rounding does not: raise the version"


def share_moved(found: list[float], committed: list[float]) -> float:
    """Which share of the numbers differs by more than the tolerance."""
    if len(found) != len(committed):
        return 1.0
    moved = [abs(a - b) > TOLERANCE * max(abs(b), 0.05) for a, b in zip(found, committed, strict=True)]
    return sum(moved) / max(len(moved), 1)


def renew() -> None:
    """Compute every stage of the tiny profile and write the file."""
    from toys import micro_table

    from paperlib.config.schema import parse_profile

    torch.set_num_threads(1)
    before = read_json(FILE) if FILE.exists() else {"machine": machine(), "stages": {}}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"PAPERLIB_HOME": folder, "CUDA_VISIBLE_DEVICES": "", "PAPERLIB_PROGRESS": "lines"}
        study = Study(parse_profile(micro_table()), replay=False, workers=1)
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
