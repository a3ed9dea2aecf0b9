"""Running the stages of a graph: one after the other, or side by side in worker processes.

A stage that fails ends nothing but itself and the stages that need its result; all others are finished first. Then
the failures are reported together.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from paperlib.errors import PaperlibError
from paperlib.progress import Say


class Progress:
    """Which stages are to be computed, what became of each, and what may start next.

    Args:
        needs: the stages each one needs, by name; of these only stages to be computed are waited for.
        costs: expected cost by name; of the stages that may start, the most expensive comes first.
    """

    def __init__(self, needs: Mapping[str, Sequence[str]], costs: Mapping[str, float], say: Say) -> None:
        self.needs = {name: [needed for needed in inputs if needed in needs] for name, inputs in needs.items()}
        self.costs, self.say = costs, say
        self.waiting = dict.fromkeys(needs)
        self.computed: set[str] = set()
        self.failed: dict[str, Exception] = {}
        self.skipped: list[str] = []

    def ready(self) -> list[str]:
        """The stages that may start now, the most expensive first."""
        free = [name for name in self.waiting if self.computed.issuperset(self.needs[name])]
        return sorted(free, key=lambda name: -self.costs[name])

    def start(self, name: str) -> None:
        del self.waiting[name]

    def finish(self, name: str) -> None:
        self.computed.add(name)
        self.say(f"[{len(self.computed)}/{len(self.needs)}] {name}")

    def fail(self, name: str, error: Exception) -> None:
        """Note a failure, and leave out all stages that need this one's result, directly or not."""
        self.failed[name] = error
        lost = {name}
        for other in self.needs:  # inputs stand before what needs them
            if lost.intersection(self.needs[other]):
                lost.add(other)
        skipped = [other for other in self.waiting if other in lost]
        for other in skipped:
            del self.waiting[other]
        self.skipped += skipped
        without = f"; not computed without it: {', '.join(skipped)}" if skipped else ""
        self.say(f"FAILED {name}: {error}{without}")

    def report(self) -> None:
        """Raise the failure, or one error that lists them all; nothing if there was none."""
        if len(self.failed) == 1:
            raise next(iter(self.failed.values()))
        if self.failed:
            lines = [f"{len(self.failed)} stages failed, {len(self.skipped)} that need them were not computed:"]
            lines += [f"  {name}: {error}" for name, error in self.failed.items()]
            raise PaperlibError("\n".join(lines))


def run_in_turn(progress: Progress, compute: Callable[[str], None]) -> None:
    """Compute all stages in this process. Raises as `Progress.report`."""
    while progress.waiting:
        name = next(iter(progress.waiting))  # inputs stand before what needs them
        progress.start(name)
        try:
            compute(name)
        except Exception as error:
            progress.fail(name, error)
        else:
            progress.finish(name)
    progress.report()


def run_side_by_side(
    progress: Progress,
    workers: int,
    work: Callable[[str], None],
    initializer: Callable[..., None],
    settings: Sequence[Any],
) -> None:
    """Compute all stages in worker processes.

    Args:
        work: a module-level function that computes a stage by name. initializer: called in each worker first, with
            ``settings`` and a function that says a line in this process.

    Raises:
        PaperlibError: a worker died. Else as `Progress.report`.
    """
    context = multiprocessing.get_context("spawn")  # fork is not safe once torch has started threads
    with _relayed_lines(context, progress.say) as lines:
        running = dict[Future[None], str]()
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start, initargs=(initializer, settings, lines)
        )
        try:
            while progress.waiting or running:
                for name in progress.ready()[: workers - len(running)]:
                    progress.start(name)
                    running[pool.submit(work, name)] = name
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool) or not isinstance(error, Exception | None):
                        raise error
                    name = running.pop(future)
                    if error is None:
                        progress.finish(name)
                    else:
                        progress.fail(name, error)
        except BrokenProcessPool as error:
            names = ", ".join(running.values())
            raise PaperlibError(
                f"a worker process died while computing {names}; out of memory? Run again to go on"
            ) from error
        finally:
            for process in list((pool._processes or {}).values()) if running else ():
                process.terminate()  # when interrupted, do not wait for minutes of work nobody will read
            pool.shutdown(cancel_futures=True)
    progress.report()


@contextlib.contextmanager
def _relayed_lines(context: Any, say: Say) -> Iterator[Any]:
    """A queue whose lines are said in this process."""
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
        lines.cancel_join_thread()  # a worker ended in the middle of a line may hold the queue's lock for ever


def _start(initializer: Callable[..., None], settings: Sequence[Any], lines: Any) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    initializer(*settings, lines.put)


def _leave_with_parent() -> None:
    """End this worker when the process that started it is gone: a restarted kernel must leave nobody behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
