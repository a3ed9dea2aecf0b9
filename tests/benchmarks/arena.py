"""Contenders take turns, each in a process of its own, so that none profits from another's settings or memory.

One works while the others wait; every round runs all, each round in another order; a ratio is taken within a round,
and the median over the rounds is reported with the lowest and the highest.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import torch

Json = dict[str, Any]
Timed = Callable[[], float]


def compete(
    name: str, system: str, contenders: Sequence[str], settings: Json, *, images: int, rounds: int, threads: int
) -> list[Json]:
    """Seconds and outcomes of each contender: one row each, in the order given; the first is what ratios refer to."""
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {c: [] for c in contenders}
    fooled: dict[str, list[bool]] = {}
    with ExitStack() as closing:
        pipes: dict[str, Connection] = {}
        for contender in contenders:
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, contender, name, system, settings, images, threads), daemon=True
            )
            process.start()
            closing.callback(process.join, 5)
            closing.callback(here.send, False)
            pipes[contender] = here
        for update_step in range(rounds + 1):
            order = [*contenders[update_step % len(contenders) :], *contenders[: update_step % len(contenders)]]
            for contender in order:
                pipes[contender].send(True)
                spent, wrong = pipes[contender].recv()
                if update_step:  # the first round warms up
                    seconds[contender].append(spent)
                fooled[contender] = wrong
    first = contenders[0]
    return [
        {
            "contender": c,
            "seconds": seconds[c],
            "fooled": fooled[c],
            "ratio": spread([a / b for a, b in zip(seconds[c], seconds[first], strict=True)]),
        }
        for c in contenders
    ]


def interleave(candidates: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate over some rounds in this process, each round in another order, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for update_step in range(rounds + 1):
        shift = update_step % len(names)
        for name in names[shift:] + names[:shift]:
            spent = candidates[name]()
            if update_step:
                seconds[name].append(spent)
    return seconds


def timed(work: Callable[[], object], repeats: int = 1) -> Timed:
    """How long ``work`` takes, the mean of some repeats; waits for the GPU before and after."""

    def run() -> float:
        synchronise()
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronise()
        return (time.perf_counter() - started) / repeats

    return run


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> list[float]:
    """Median, lowest, highest."""
    return [statistics.median(values), min(values), max(values)]


def _serve(pipe: Connection, contender: str, name: str, system: str, settings: Json, images: int, threads: int) -> None:
    from contenders import CONTENDERS, OURS, Settings
    from subjects import subject

    from paperlib.acceleration.memory import keep_memory
    from paperlib.acceleration.precision import tensor_float32

    torch.set_num_threads(threads)
    if contender in OURS:
        keep_memory()  # as the companion's own runs do
    model, x, y = subject(name, system)
    x, y = x[:images], y[:images]
    how = Settings(**settings)
    result: list[Any] = []

    def work() -> None:
        result[:] = [CONTENDERS[contender](model, x, y, how)]

    with tensor_float32(False):
        while pipe.recv():
            pipe.send((timed(work)(), result[0].tolist()))
