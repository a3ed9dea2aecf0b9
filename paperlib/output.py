"""Writing to standard output, which may fail: a pipe was closed (``| head -2``), or the disk is full.

All output is written within `writing_output`. A failure then ends the program like an interruption: every ``finally``
block runs, and no traceback is printed.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SIGPIPE_STATUS = 128 + 13  # the exit status of a program that SIGPIPE ends
_main_interrupted = threading.Event()


class OutputClosed(SystemExit):
    """Standard output cannot be written. ``code`` is the exit status: 141 if the pipe was closed, else 1.

    A subclass of SystemExit, so that ``except Exception`` does not catch it.
    """

    def __init__(self, error: OSError) -> None:
        self.reader_gone = error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL)
        super().__init__(_SIGPIPE_STATUS if self.reader_gone else 1)
        self.reason = error.strerror or str(error)


@contextmanager
def writing_output() -> Iterator[None]:
    """Turn a failed write to standard output into `OutputClosed`. The block contains only such writes.

    A thread other than the main one also interrupts the main thread, which may wait for it.

    Raises:
        OutputClosed: the write failed. Threads other than the main one raise a plain SystemExit with the same status,
            because no other exception ends a thread without a traceback.
    """
    try:
        yield
    except OSError as error:
        closed = OutputClosed(error)
        if threading.current_thread() is threading.main_thread():
            raise closed from error
        _interrupt_main_thread(closed)
        raise SystemExit(closed.code) from error


def write_line(line: str) -> None:
    """Print one line and flush. Raises OutputClosed."""
    with writing_output():
        print(line, flush=True)


def flush_output() -> None:
    """Write buffered output. Raises OutputClosed."""
    if sys.stdout is not None:  # None if standard output was closed at the start
        with writing_output():
            sys.stdout.flush()


def discard_output() -> None:
    """Redirect buffered and later output to the null device, because the interpreter flushes again at exit."""
    with suppress(OSError, ValueError):  # an output without a file descriptor cannot be redirected
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _interrupt_main_thread(closed: OutputClosed) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script
        if not closed.reader_gone:
            with suppress(OSError):
                print(f"error: standard output: cannot write ({closed.reason})", file=sys.stderr, flush=True)
        os._exit(int(closed.code or 1))  # the main thread cannot be interrupted and would wait for ever
    main = threading.main_thread()
    if _main_interrupted.is_set():
        return
    _main_interrupted.set()  # once: a second interruption would stop the clean-up
    if hasattr(signal, "pthread_kill") and main.ident is not None:
        signal.pthread_kill(main.ident, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)
