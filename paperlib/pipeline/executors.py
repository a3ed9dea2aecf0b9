"""Where stages are computed: in this process, or in several worker processes.

Another executor, for example on several machines, needs the same three members as `Executor`.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol

from paperlib.errors import PaperlibError
from paperlib.log import log_to_queue, logger, queue_of_lines

Ended = list[tuple[str, Exception | None]]  # stages that have ended, each with its error if it failed


class Executor(Protocol):
    """Computes stages by name. Used as a context manager; leaving it ends what still runs."""

    capacity: int  # how many stages it computes at the same time

    def submit(self, name: str) -> None:
        """Start a stage; at most `capacity` may run."""
        ...

    def wait(self) -> Ended:
        """Wait until at least one of the running stages has ended; returns those that have."""
        ...


class SerialExecutor:
    """Computes one stage after the other in this process."""

    capacity = 1

    def __init__(self, compute: Callable[[str], None]) -> None:
        self._compute = compute
        self._ended: Ended = []

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, name: str) -> None:
        try:
            self._compute(name)
        except Exception as error:
            self._ended.append((name, error))
        else:
            self._ended.append((name, None))

    def wait(self) -> Ended:
        ended, self._ended = self._ended, []
        return ended


class ProcessExecutor:
    """Computes stages in worker processes.

    Args:
        capacity: how many processes.
        compute: a module-level function that computes a stage by name.
        initializer: called in each worker first, with ``settings``. What workers log is logged by this process.

    Raises:
        PaperlibError: from `wait`, if a worker died.
    """

    def __init__(
        self,
        capacity: int,
        compute: Callable[[str], None],
        initializer: Callable[..., None],
        settings: Sequence[Any],
    ) -> None:
        self.capacity = capacity
        self._compute = compute
        context = multiprocessing.get_context("spawn")  # fork is not safe once torch has started threads
        self._lines = queue_of_lines(context)
        arguments = (initializer, settings, self._lines.__enter__(), logger.level)
        self._pool = ProcessPoolExecutor(capacity, mp_context=context, initializer=_start, initargs=arguments)
        self._running: dict[Future[None], str] = {}

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an interruption, do not wait for stages that still run; they may take minutes.
        for process in list((self._pool._processes or {}).values()) if self._running else ():
            process.terminate()
        self._pool.shutdown(cancel_futures=True)
        self._lines.__exit__(kind, error, trace)

    def submit(self, name: str) -> None:
        try:
            self._running[self._pool.submit(self._compute, name)] = name
        except BrokenProcessPool as error:
            raise self._died([*self._running.values(), name]) from error

    def wait(self) -> Ended:
        finished, _ = wait(self._running, return_when=FIRST_COMPLETED)
        ended: Ended = []
        for future in finished:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise self._died(list(self._running.values())) from error
            if error is not None and not isinstance(error, Exception):
                raise error
            ended.append((self._running.pop(future), error))
        return ended

    def _died(self, names: Sequence[str]) -> PaperlibError:
        return PaperlibError(
            f"a worker process died while computing {', '.join(names)}; out of memory? Run again to go on"
        )


def _start(initializer: Callable[..., None], settings: Sequence[Any], lines: Any, level: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log_to_queue(lines, level)
    initializer(*settings)


def _end_with_parent() -> None:
    """End this worker when the process that started it has ended, for example a restarted kernel."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
