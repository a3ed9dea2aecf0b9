"""Expectations that were written before the numbers."""

from __future__ import annotations


def expect(statement: str, holds: bool) -> None:
    """Print whether an expectation, written before the numbers, holds: a reader must see it when it does not."""
    print(f"{'as expected' if holds else 'NOT AS EXPECTED'}: {statement}")
