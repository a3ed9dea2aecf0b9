"""Visible progress: a bar in an interactive kernel, plain lines under papermill, in logs and on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Say = Callable[[str], None]


def say(line: str) -> None:
    """Print one line at once, so that logs and notebooks show it while the work goes on."""
    print(line, flush=True)


def silent(line: str) -> None:
    """Say nothing."""


def wants_bar() -> bool:
    """True in a kernel a person looks at; ``PAPERLIB_PROGRESS`` (``bar`` or ``lines``) overrides."""
    choice = os.environ.get("PAPERLIB_PROGRESS", "")
    return choice == "bar" or (choice != "lines" and "ipykernel" in sys.modules)


def track(items: Iterable[T], total: int, label: str, say: Say = say, every: float = 5.0) -> Iterator[T]:
    """Yield ``items``, showing a bar, or a line each ``every`` seconds once the work has lasted that long."""
    if wants_bar() and say is not silent:
        from tqdm.auto import tqdm

        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    started = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= every and done < total:
            shown = now
            left = (now - started) / done * (total - done)
            say(f"{label}: {done} of {total}, about {left:.0f} s left")
