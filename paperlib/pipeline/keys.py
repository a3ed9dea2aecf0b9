"""The key of a result: a hash of everything that the result depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from fractions import Fraction
from typing import Any

from paperlib.config.budgets import budget_text
from paperlib.config.serialise import canonical


def as_json(value: Any) -> Any:
    """A configuration as JSON-ready values; dataclasses become tables with the name of their class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Fraction):
        return budget_text(value)
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    return value


def artefact_key(parts: dict[str, Any]) -> str:
    """A hash of configuration, data, inputs, seed and version of the code (20 hex digits)."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:20]
