"""Error classes. Each message names the object, what is wrong with it, and what to do."""

from __future__ import annotations

import difflib

# Advice for a missing package
ACTIVATE = "activate the environment with `. .venv/bin/activate`, or use `make`, which sets it up"


class PaperlibError(Exception):
    """Base of all errors that this library raises deliberately; the command line prints them without a traceback."""


class ProfileError(PaperlibError):
    """An unknown profile or key, or a value that is not allowed."""


class DataError(PaperlibError):
    """Data that are missing, damaged, or of another kind than expected."""


class InputError(PaperlibError, ValueError):
    """Images, labels or attack settings that a model or an attack does not accept."""


class NotFiniteError(PaperlibError, ArithmeticError):
    """A NaN or an infinity in a computation; its results are not reported."""


class StoreError(PaperlibError):
    """A file of results that cannot be read or written."""


class MissingError(PaperlibError):
    """A result that is not computed yet; the message names the command that computes it."""


class SeriesError(PaperlibError):
    """A notebook that failed, ran out of time, or lacks one of its promised outputs."""


def did_you_mean(name: str, allowed: list[str]) -> str:
    """The end of an error about an unknown name: the most similar allowed name, or all of them."""
    close = difflib.get_close_matches(name, allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(allowed)}"
