"""Logging and visible progress.

Everything that the library reports while it works goes to the logger ``paperlib``, whose handler writes plain lines to
standard output at once, so that logs and notebooks show them while the work goes on. To silence it:
``logging.getLogger("paperlib").setLevel("WARNING")``. Long loops show a bar in an interactive kernel, and a line every
few seconds elsewhere.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from typing import Any, TypeVar

from paperlib.output import write_line

T = TypeVar("T")
logger = logging.getLogger("paperlib")


class StandardOutput(logging.Handler):
    """Writes each message as one line to standard output. Raises OutputClosed where it takes no more lines."""

    def emit(self, record: logging.LogRecord) -> None:
        write_line(self.format(record))


def set_up(level: int = logging.INFO) -> None:
    """Give the logger its handler, unless it has one, and a level."""
    if not logger.handlers:
        logger.addHandler(StandardOutput())
        logger.propagate = False  # or a root handler would print each line once more
    logger.setLevel(level)


class _Listener(QueueListener):
    """A listener that stops even if a worker was terminated while it held the lock of the queue."""

    def stop(self) -> None:
        if self._thread is not None:
            self.enqueue_sentinel()
            self._thread.join(timeout=5)
            self._thread = None


@contextmanager
def queue_of_lines(context: Any) -> Iterator[Any]:
    """A queue of the multiprocessing ``context``; what workers log into it is logged by this process."""
    lines = context.Queue()
    listener = _Listener(lines, *logger.handlers)
    listener.start()
    try:
        yield lines
    finally:
        listener.stop()
        lines.cancel_join_thread()  # for the same reason


def log_to_queue(lines: Any, level: int) -> None:
    """In a worker process: send everything that is logged to the process that started it."""
    logger.handlers[:] = [QueueHandler(lines)]
    logger.propagate = False
    logger.setLevel(level)


def wants_bar() -> bool:
    """True in a kernel that a person looks at; ``PAPERLIB_PROGRESS`` (``bar`` or ``lines``) overrides."""
    choice = os.environ.get("PAPERLIB_PROGRESS", "")
    return choice == "bar" or (choice != "lines" and "ipykernel" in sys.modules)


@contextmanager
def progress(
    total: int, label: str, *, every: float = 5.0, unit: str = "", visible: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar, or a line each ``every`` seconds once the work has lasted that long.

    Yields a function to call with the amount of work that is done, from 0 to ``total``; ``unit`` is written behind the
    numbers. Nothing is shown unless ``visible``.
    """
    if not visible or not logger.isEnabledFor(logging.INFO):
        yield lambda done: None
        return
    if wants_bar():
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=label, leave=False, unit=unit or "it") as bar:
            yield lambda done: bar.update(done - bar.n)
        return
    started = logged = time.monotonic()

    def update(done: int) -> None:
        nonlocal logged
        now = time.monotonic()
        if now - logged >= every and 0 < done < total:
            logged = now
            remaining = (now - started) / done * (total - done)
            amount = f"{done} {unit}" if unit == "%" else f"{done} of {total}{unit and ' ' + unit}"
            logger.info(f"{label}: {amount}, about {remaining:.0f} s left")

    yield update


def track(items: Iterable[T], total: int, label: str, *, every: float = 5.0) -> Iterator[T]:
    """Yield ``items`` and show how many are done, as `progress` does."""
    with progress(total, label, every=every) as update:
        for done, item in enumerate(items, start=1):
            yield item
            update(done)
