"""Standard output that takes no more lines: its reader has gone (``| head -2``), or its disk is full.

Whatever prints does it within `writing_output`, so that the loss ends the program as an interruption does, with every
``finally`` on the way, and never with a traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_READER_GONE = 128 + 13  # the status of a program that the signal SIGPIPE ends
_main_interrupted = threading.Event()


class OutputClosed(SystemExit):
    """Standard output takes no more lines; ``code`` is the exit status: 141 where the reader has gone, else 1.

    A SystemExit, so that no handler of ordinary errors takes it for a failure of the work itself.
    """

    def __init__(self, error: OSError) -> None:
        self.reader_gone = error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL)
        super().__init__(_READER_GONE if self.reader_gone else 1)
        self.reason = error.strerror or str(error)


@contextmanager
def writing_output() -> Iterator[None]:
    """Turn the failure of a write to standard output into `OutputClosed`; nothing but such writes belongs inside.

    In another thread than the main one, the main thread is interrupted as well: it may wait for that thread.

    Raises:
        OutputClosed: standard output takes no more lines. In another thread a plain SystemExit of the same status,
            the only exception that ends a thread without a traceback.
    """
    try:
        yield
    except OSError as error:
        closed = OutputClosed(error)
        if threading.current_thread() is threading.main_thread():
            raise closed from error
        _interrupt_main_thread()
        raise SystemExit(closed.code) from error


def write_line(line: str) -> None:
    """Print one line at once. Raises OutputClosed."""
    with writing_output():
        print(line, flush=True)


def flush_output() -> None:
    """Write what is still buffered. Raises OutputClosed."""
    if sys.stdout is not None:  # None if the program was started with standard output closed
        with writing_output():
            sys.stdout.flush()


def discard_output() -> None:
    """Send what is buffered, and all that follows, nowhere: the interpreter flushes once more when it ends."""
    with suppress(OSError, ValueError):  # an output without a file descriptor has nothing to redirect
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _interrupt_main_thread() -> None:
    main = threading.main_thread()
    if _main_interrupted.is_set():
        return
    _main_interrupted.set()  # once: a second interruption would break off the orderly end
    if hasattr(signal, "pthread_kill") and main.ident is not None:
        signal.pthread_kill(main.ident, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)
