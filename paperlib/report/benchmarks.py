"""The benchmarks measured by `make bench`, and the targets of speed and memory."""

from __future__ import annotations

import math
import os
from statistics import median
from typing import Any

from paperlib.atomic_files import read_json
from paperlib.errors import StoreError
from paperlib.paths import published_dir, store_dir

SECTIONS = ("peers", "limits", "algorithms", "training")
NAMES = {
    "paperlib": "paperlib",
    "paperlib-all": "paperlib, all images for all steps",
    "textbook": "the textbook loop",
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "ART",
    "apgd": "pyautoattack APGD",
}


def benchmark(section: str, *, published: bool = True) -> dict[str, Any] | None:
    """The results of a section: those of this machine, else the ``published`` ones, else None.

    Raises:
        StoreError: the file cannot be read, or holds another section.
    """
    folders = [published_dir("benchmarks")] if published else []
    if os.environ.get("PAPERLIB_LOCAL") != "no":
        folders.insert(0, store_dir() / "benchmarks")
    for folder in folders:
        path = folder / f"{section}.json"
        if path.is_file():
            results: dict[str, Any] = read_json(path)
            if results.get("section") != section:
                raise StoreError(f"{path.name}: not the results of benchmark section {section}; delete it")
            return results
    return None


def setting(record: dict[str, Any]) -> str:
    """Device, versions, date and commit of a section, in one line."""
    facts = record["provenance"]
    versions = facts["versions"]
    peers = ", ".join(f"{NAMES[name]} {versions[name]}" for name in NAMES if name in versions)
    return (
        f"{facts['device']}, {facts['threads']} of {facts['cores']} cores, torch {versions['torch']}"
        f"{peers and ', ' + peers}; {facts['created'][:10]}, code {facts['commit']}"
    )


def ratio(values: list[float]) -> str:
    """Such as ``8.50 [8.10, 9.00]``: the median over the rounds, the lowest and the highest."""
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


# Targets of the engine, set before it was measured: (slower, faster, data, system, times as long). The targets for
# single networks are for images of 32x32: an attack on one small network and 8x8 digits takes a tenth of a second, of
# which folding the network is a larger part.
SPEED_TARGETS = (
    ("torchattacks", "paperlib", "cifar10", "plain", 8.0),
    ("foolbox", "paperlib", "cifar10", "plain", 9.0),
    ("torchattacks", "paperlib", "cifar10", "pgd-at", 4.0),
    ("foolbox", "paperlib", "cifar10", "pgd-at", 5.0),
    ("torchattacks", "paperlib", "digits", "dwf", 3.0),
    ("torchattacks", "paperlib-all", "cifar10", "plain", 1.4),
    ("torchattacks", "paperlib-all", "cifar10", "pgd-at", 1.4),
    ("torchattacks", "paperlib-all", "digits", "dwf", 1.4),
)


LINEAR = (0.9, 1.05)  # exponent of cost against images, steps and experts
MAX_MEMORY_EXPONENT = 0.1  # of peak memory against steps; not 0, because fragmentation of the heap adds a little
MAX_STEP_RATIO = 1.10  # a PGD step over a bare forward and backward pass
MAX_DIFFERING = 0.005  # share of images whose outcome may differ from the plain loop's
MIN_PHASE2_SPEEDUP = 1.25


def speed_targets(
    peers: dict[str, Any] | None, limits: dict[str, Any] | None, trained: dict[str, Any] | None
) -> list[tuple[str, bool]]:
    """Each target of speed and memory as text, and whether the measurements meet it.

    Args:
        peers: the section ``peers``, or None if it was not measured; so are ``limits`` and ``trained`` (``training``).
    """
    targets: list[tuple[str, bool]] = []
    if peers:
        rows = {(r["data"], r["system"], r["eps"], r["contender"]): r for r in peers["rows"]}
        for (data, system, eps, contender), row in rows.items():
            network = f"{system} on {data}, eps {eps}"
            if contender == "paperlib":
                share = row["differing_images"] / row["n"]
                text = f"{network}: {share:.2%} of outcomes differ from the plain loop's, at most {MAX_DIFFERING:.1%}"
                targets.append((text, share <= MAX_DIFFERING))
            for slower, faster, *attacked, times in SPEED_TARGETS:
                if (slower, attacked) == (contender, [data.removesuffix("-jpeg"), system]):
                    reference = rows[data, system, eps, faster]["seconds"]
                    factor = median(a / b for a, b in zip(row["seconds"], reference, strict=True))
                    text = f"{network}: {NAMES[slower]} takes {factor:.1f} times as long as {NAMES[faster]}, "
                    targets.append((f"{text}at least {times}", factor >= times))
    if limits:
        for r in limits["step"]:
            text = f"{r['experts']} x width {r['width']}, {r['side']}x{r['side']}, {r['dtype']}: a step takes "
            text += f"{r['ratio'][0]:.2f} bare passes, at most {MAX_STEP_RATIO}"
            targets.append((text, r["ratio"][0] <= MAX_STEP_RATIO))
        for g in limits["growth"]:
            if g["axis"] in ("images", "steps", "experts"):
                within = LINEAR[0] <= g["exponent"] <= LINEAR[1]
                targets.append((f"cost against {g['axis']}: exponent {g['exponent']:.2f}, in {LINEAR}", within))
        first, last = limits["memory"][0], limits["memory"][-1]
        exponent = math.log(last["added_bytes"] / first["added_bytes"]) / math.log(last["steps"] / first["steps"])
        text = f"memory against steps, {first['steps']} to {last['steps']}: exponent {exponent:.2f}, "
        targets.append((f"{text}at most {MAX_MEMORY_EXPONENT}", exponent <= MAX_MEMORY_EXPONENT))
    if trained:
        seconds = {(r["variant"], r["seed"]): r["seconds"] for r in trained["rows"] if r["system"] == "dwf"}
        speedups = [seconds["plain loop", seed] / s for (variant, seed), s in seconds.items() if variant == "engine"]
        text = f"phase 2 is {median(speedups):.2f} times as fast as with the plain loop, at least {MIN_PHASE2_SPEEDUP}"
        targets.append((text, median(speedups) >= MIN_PHASE2_SPEEDUP))
    return targets
