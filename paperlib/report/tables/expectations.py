"""Expectations that were written before the records existed."""

from __future__ import annotations


def expect(statement: str, holds: bool) -> None:
    """Print an expectation and whether the records meet it."""
    print(f"{'as expected' if holds else 'NOT AS EXPECTED'}: {statement}")
