"""Errors a reader can act on: each names the thing, what was wrong, and what to do."""

from __future__ import annotations

import difflib

# What to do where a package is missing.
ACTIVATE = "activate the environment with `. .venv/bin/activate`, or use `make`, which sets it up"


class PaperlibError(Exception):
    """Base of every error this library raises on purpose; the command line prints it without a traceback."""


class ProfileError(PaperlibError):
    """An unknown profile or key, or a value outside its range."""


class DataError(PaperlibError):
    """Data that is missing, truncated, or not what its label says."""


class InputError(PaperlibError, ValueError):
    """Images, labels or attack settings a model or an attack cannot take."""


class NotFiniteError(PaperlibError, ArithmeticError):
    """A NaN or an infinity where a number was due; nothing computed from it is reported."""


class StoreError(PaperlibError):
    """An artefact that cannot be read back or written as it should be."""


class MissingError(PaperlibError):
    """A result that is not there yet; the message says which command makes it."""


class SeriesError(PaperlibError):
    """A notebook that failed, hung, or did not deliver what it promised."""


def hint(name: str, known: list[str]) -> str:
    """The end of an error about an unknown name: the one probably meant, or all there are."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(known)}"
