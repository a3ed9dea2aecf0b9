"""Logging and progress.

The library logs to the logger ``paperlib``, whose handler writes each message to standard output immediately. To
silence it: ``logging.getLogger("paperlib").setLevel("WARNING")``. Long loops show a bar in an interactive kernel, and a
line every few seconds elsewhere.
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
    """Writes each message as one line to standard output. Raises OutputClosed if that fails."""

    def emit(self, record: logging.LogRecord) -> None:
        write_line(self.format(record))


def set_up(level: int = logging.INFO) -> None:
    """Set the level of the logger, and add its handler if it has none."""
    if not logger.handlers:
        logger.addHandler(StandardOutput())
        logger.propagate = False  # otherwise a handler of the root logger would print each line again
    logger.setLevel(level)


class _Listener(QueueListener):
    """A listener that can be stopped even if a worker was terminated while it held the lock of the queue."""

    def stop(self) -> None:
        if self._thread is not None:
            self.enqueue_sentinel()
            self._thread.join(timeout=5)
            self._thread = None


@contextmanager
def queue_of_lines(context: Any) -> Iterator[Any]:
    """A queue of the multiprocessing ``context``; this process logs the messages that workers put into it."""
    lines = context.Queue()
    listener = _Listener(lines, *logger.handlers)
    listener.start()
    try:
        yield lines
    finally:
        listener.stop()
        lines.cancel_join_thread()  # do not wait for a worker that was terminated


def log_to_queue(lines: Any, level: int) -> None:
    """In a worker process: send all log messages to the parent process."""
    logger.handlers[:] = [QueueHandler(lines)]
    logger.propagate = False
    logger.setLevel(level)


def wants_bar() -> bool:
    """True in an interactive kernel; ``PAPERLIB_PROGRESS`` (``bar`` or ``lines``) overrides this."""
    setting = os.environ.get("PAPERLIB_PROGRESS", "")
    return setting == "bar" or (setting != "lines" and "ipykernel" in sys.modules)


@contextmanager
def progress(
    total: int, label: str, *, every: float = 5.0, unit: str = "", visible: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar, or log a line every ``every`` seconds.

    Yields a function to call with the amount of finished work, from 0 to ``total``. ``unit`` follows the numbers.
    Nothing is shown unless ``visible``.
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
    """Yield ``items`` and show how many are finished, as `progress` does."""
    with progress(total, label, every=every) as update:
        for done, item in enumerate(items, start=1):
            yield item
            update(done)
