"""Configurations as JSON-ready values, and a canonical JSON text for hashes."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from typing import Any

from paperlib.config.budgets import budget_text


def to_table(config: Any) -> dict[str, Any]:
    """A configuration as JSON-ready values; fractions become text such as ``"8/255"``, tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def canonical(table: Any) -> str:
    """JSON text with sorted keys, the same for equal configurations: the input of every hash."""
    return json.dumps(table, sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    if isinstance(value, Fraction):
        return budget_text(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
