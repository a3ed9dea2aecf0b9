"""Time from a new state of each explorer to its picture, at profile digits with 10 steps of PGD.

``python tests/benchmarks/explorer.py``. A new state should take at most 300 ms, a known one at most 50 ms. Wall time
includes waiting for other processes; processor time does not.
"""

from __future__ import annotations

import time
from statistics import median

import torch

from paperlib import Study
from paperlib.explore import Explorer, experts_explorer, gate_explorer, source_of

STATES = range(1, 13)  # images


def milliseconds(explorer: Explorer) -> tuple[list[float], list[float]]:
    """Wall time and processor time for each state in `STATES`."""
    wall, processor = [], []
    for image in STATES:
        started = time.perf_counter(), time.process_time()
        explorer.controls["image"].value = image
        wall.append(1000 * (time.perf_counter() - started[0]))
        processor.append(1000 * (time.process_time() - started[1]))
    return wall, processor


def main() -> None:
    torch.set_num_threads(1)
    source = source_of(Study("digits", local=False))
    for make in (gate_explorer, experts_explorer):
        explorer = make(source)
        assert explorer.controls["steps"].value == 10
        for state in ("new", "known"):
            wall, processor = milliseconds(explorer)
            for clock, times in (("wall", wall), ("processor", processor)):
                text = f"{clock} time {median(times):.1f} ms [{min(times):.1f}, {max(times):.1f}]"
                print(f"{make.__name__}, {state} state: {text}")


if __name__ == "__main__":
    main()
