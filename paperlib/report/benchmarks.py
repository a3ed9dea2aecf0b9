"""What the companion's numbers cost: the measured benchmarks of `make bench` as tables and figures."""

from __future__ import annotations

import math
import os
from statistics import median
from typing import Any

from paperlib.atomic_files import read_json
from paperlib.errors import StoreError
from paperlib.paths import published_dir, store_dir

SECTIONS = ("peers", "limits", "ways", "training")


NAMES = {
    "paperlib": "paperlib",
    "paperlib-all": "paperlib, all images to the end",
    "textbook": "the textbook loop",
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "ART",
    "apgd": "pyautoattack APGD",
}


def benchmark(section: str, *, published: bool = True) -> dict[str, Any] | None:
    """A section's results: this machine's, if it ran `make bench`, else the ``published`` ones, else None.

    Raises StoreError for a file that cannot be read.
    """
    folders = [published_dir("benchmarks")] if published else []
    if os.environ.get("PAPERLIB_LOCAL") != "no":
        folders.insert(0, store_dir() / "benchmarks")
    for folder in folders:
        path = folder / f"{section}.json"
        if path.is_file():
            found: dict[str, Any] = read_json(path)
            if found.get("section") != section:
                raise StoreError(f"{path.name}: not the results of benchmark section {section}; delete it")
            return found
    return None


def setting(record: dict[str, Any]) -> str:
    """Where and when a section was measured, in one line."""
    facts = record["provenance"]
    versions = facts["versions"]
    peers = ", ".join(f"{NAMES[name]} {versions[name]}" for name in NAMES if name in versions)
    return (
        f"{facts['device']}, {facts['threads']} of {facts['cores']} cores, torch {versions['torch']}"
        f"{peers and ', ' + peers}; {facts['created'][:10]}, code {facts['commit']}"
    )


def ratio(values: list[float]) -> str:
    """Such as ``8.5 [8.1, 9.0]``: the median over the rounds, the lowest, the highest."""
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


# What the engine was to reach, written before it was measured: (slower, faster, data, system, times). Those for single
# networks were made for images of 32x32; an attack on one small network and 8x8 digits is over in a tenth of a second,
# and what it costs to fold the network weighs more.
SPEED_PROMISES = (
    ("torchattacks", "paperlib", "cifar10", "plain", 8.0),
    ("foolbox", "paperlib", "cifar10", "plain", 9.0),
    ("torchattacks", "paperlib", "cifar10", "pgd-at", 4.0),
    ("foolbox", "paperlib", "cifar10", "pgd-at", 5.0),
    ("torchattacks", "paperlib", "digits", "dwf", 3.0),
    ("torchattacks", "paperlib-all", "cifar10", "plain", 1.4),
    ("torchattacks", "paperlib-all", "cifar10", "pgd-at", 1.4),
    ("torchattacks", "paperlib-all", "digits", "dwf", 1.4),
)


LINEAR = (0.9, 1.05)  # exponents of cost


FLAT = 0.1  # exponent of peak memory, which a heap's fragments alone let creep


STEP_OVERHEAD = 1.10  # a PGD step over a bare pass


UNLIKE = 0.005  # share of images whose verdict may differ from the plain loop's


PHASE2_GAIN = 1.25


def promises(
    peers: dict[str, Any] | None, limits: dict[str, Any] | None, trained: dict[str, Any] | None
) -> list[tuple[str, bool]]:
    """Each promise about speed with whether the measurements keep it."""
    kept: list[tuple[str, bool]] = []
    if peers:
        rows = {(r["data"], r["system"], r["eps"], r["contender"]): r for r in peers["rows"]}
        for (data, system, eps, contender), row in rows.items():
            if contender == "paperlib":
                share = row["differing_images"] / row["n"]
                text = f"{system} on {data}, eps {eps}: {share:.2%} of verdicts unlike the plain loop's, "
                text += f"at most {UNLIKE:.1%}"
                kept.append((text, share <= UNLIKE))
            for slower, faster, *attacked, times in SPEED_PROMISES:
                if (slower, attacked) == (contender, [data.removesuffix("-jpeg"), system]):
                    ours = rows[data, system, eps, faster]["seconds"]
                    found = median(a / b for a, b in zip(row["seconds"], ours, strict=True))
                    text = f"{system} on {data}, eps {eps}: {NAMES[slower]} takes {found:.1f} times as long as "
                    kept.append((f"{text}{NAMES[faster]}, at least {times}", found >= times))
    if limits:
        for r in limits["step"]:
            text = f"{r['experts']} x width {r['width']}, {r['side']}x{r['side']}, {r['dtype']}: a step takes "
            text += f"{r['ratio'][0]:.2f} bare passes, at most {STEP_OVERHEAD}"
            kept.append((text, r["ratio"][0] <= STEP_OVERHEAD))
        for g in limits["growth"]:
            if g["axis"] in ("images", "steps", "experts"):
                within = LINEAR[0] <= g["exponent"] <= LINEAR[1]
                kept.append((f"cost against {g['axis']}: exponent {g['exponent']:.2f}, in {LINEAR}", within))
        first, last = limits["memory"][0], limits["memory"][-1]
        found = math.log(last["added_bytes"] / first["added_bytes"]) / math.log(last["steps"] / first["steps"])
        text = f"memory against steps, {first['steps']} to {last['steps']}: exponent {found:.2f}, at most {FLAT}"
        kept.append((text, found <= FLAT))
    if trained:
        seconds = {(r["variant"], r["seed"]): r["seconds"] for r in trained["rows"] if r["system"] == "dwf"}
        gains = [seconds["plain loop", seed] / spent for (name, seed), spent in seconds.items() if name == "engine"]
        text = f"phase 2 is {median(gains):.2f} times faster than with the plain loop, at least {PHASE2_GAIN}"
        kept.append((text, median(gains) >= PHASE2_GAIN))
    return kept
