"""Visible progress: a bar in an interactive kernel, plain lines under papermill, in logs and on a terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from paperlib.output import writing_output

T = TypeVar("T")
Say = Callable[[str], None]


def say(line: str) -> None:
    """Print one line at once, so that logs and notebooks show it while the work goes on.

    Raises:
        OutputClosed: standard output takes no more lines.
    """
    with writing_output():
        print(line, flush=True)


def silent(line: str) -> None:
    """Say nothing."""


def wants_bar() -> bool:
    """True in a kernel a person looks at; ``PAPERLIB_PROGRESS`` (``bar`` or ``lines``) overrides."""
    choice = os.environ.get("PAPERLIB_PROGRESS", "")
    return choice == "bar" or (choice != "lines" and "ipykernel" in sys.modules)


@contextmanager
def meter(
    total: int, label: str, say: Say = say, every: float = 5.0, unit: str = ""
) -> Iterator[Callable[[int], None]]:
    """Show a bar, or a line each ``every`` seconds once the work has lasted that long.

    What it yields is told how far the work is, from 0 to ``total``; ``unit`` is written behind the numbers.
    """
    if wants_bar() and say is not silent:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=label, leave=False, unit=unit or "it") as bar:

            def moved(done: int) -> None:
                bar.update(done - bar.n)

            yield moved
        return
    started = shown = time.monotonic()

    def reached(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= every and 0 < done < total:
            shown = now
            left = (now - started) / done * (total - done)
            amount = f"{done} {unit}" if unit == "%" else f"{done} of {total}{unit and ' ' + unit}"
            say(f"{label}: {amount}, about {left:.0f} s left")

    yield reached


def track(items: Iterable[T], total: int, label: str, say: Say = say, every: float = 5.0) -> Iterator[T]:
    """Yield ``items`` and show how many are done, as `meter` does."""
    with meter(total, label, say, every) as reached:
        for done, item in enumerate(items, start=1):
            yield item
            reached(done)


@contextmanager
def relayed_lines(context: Any, say: Say) -> Iterator[Any]:
    """A queue of the multiprocessing ``context`` whose lines are said in this process."""
    lines = context.Queue()

    def relay() -> None:
        while (line := lines.get()) is not None:
            say(line)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        lines.put(None)
        thread.join(timeout=5)
        lines.cancel_join_thread()  # a worker that was terminated while it wrote may hold the queue's lock for ever
