"""Timing of several contenders in interleaved rounds.

Each contender runs in a separate process, so that settings and memory of one do not affect another. Only one process
works at a time. Every round runs all contenders, in a different order. Ratios are computed within a round; their
median over the rounds is reported with the lowest and the highest.
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
    """A row for each contender with its seconds and outcomes; ratios are relative to the first contender."""
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {c: [] for c in contenders}
    fooled: dict[str, list[bool]] = {}
    with ExitStack() as closing:
        pipes: dict[str, Connection] = {}
        for contender in contenders:
            parent, child = context.Pipe()
            process = context.Process(
                target=_serve, args=(child, contender, name, system, settings, images, threads), daemon=True
            )
            process.start()
            closing.callback(process.join, 5)
            closing.callback(parent.send, False)
            pipes[contender] = parent
        for round_number in range(rounds + 1):
            order = [*contenders[round_number % len(contenders) :], *contenders[: round_number % len(contenders)]]
            for contender in order:
                pipes[contender].send(True)
                elapsed, fooled[contender] = pipes[contender].recv()
                if round_number:  # the first round warms up
                    seconds[contender].append(elapsed)
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
    """Seconds of each candidate in several rounds of different order in this process, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for round_number in range(rounds + 1):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = candidates[name]()
            if round_number:
                seconds[name].append(elapsed)
    return seconds


def timed(work: Callable[[], object], repeats: int = 1) -> Timed:
    """A function that returns the mean seconds of ``work`` over ``repeats`` calls, with GPU synchronisation."""

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
        keep_memory()  # as in this package's runs
    model, x, y = subject(name, system)
    x, y = x[:images], y[:images]
    attack_settings = Settings(**settings)
    result: list[Any] = []

    def work() -> None:
        result[:] = [CONTENDERS[contender](model, x, y, attack_settings)]

    with tensor_float32(False):
        while pipe.recv():
            pipe.send((timed(work)(), result[0].tolist()))
