"""The report of an audit: every check with its result, and one sentence on whether the accuracy can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch

from paperlib.evaluation.auditing.checks.check import FAILS, NOT_RUN
from paperlib.evaluation.auditing.context import interval

REQUIRED = ("autoattack",)  # a number that has not faced it is not believed yet


@dataclass(frozen=True)
class Finding:
    """One check: what it asks, what it allows, its verdict, the numbers behind it, and, unless it passed, why."""

    row: int
    name: str
    question: str
    threshold: str
    verdict: str
    value: str
    why: str


@dataclass(frozen=True)
class Report:
    """What an audit found."""

    label: str
    n: int
    eps: str
    seed: int
    audit_budget: dict[str, Any]
    claimed: float | None  # accuracy under attack, as a fraction; None where nothing can be measured
    claim: str  # what it rests on
    attacks: dict[str, int]  # images right under each attack at this eps
    worst: int | None  # images right under all of them; None where nothing can be measured
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that speak against the number."""
        return tuple(finding.name for finding in self.findings if finding.verdict == FAILS)

    @property
    def missing(self) -> tuple[str, ...]:
        """Required checks that were not run."""
        return tuple(f.name for f in self.findings if f.verdict == NOT_RUN and f.name in REQUIRED)

    @property
    def believed(self) -> bool:
        """Whether nothing speaks against the accuracy claimed, and what must be asked has been asked."""
        return not self.failed and not self.missing and self.worst is not None

    @property
    def sentence(self) -> str:
        """Whether the accuracy can be believed, and why not."""
        whys = "; ".join(f"{f.name}: {f.why}" for f in self.findings if f.verdict == FAILS)
        if self.worst is None:
            return f"Not to be believed: no accuracy of {self.label} can be measured. {whys}."
        left, claimed = self._left, f"{100 * (self.claimed or 0):.1f} % for {self.label} ({self.claim})"
        if self.failed:
            return f"Not to be believed: {claimed}. {left}. {whys}."
        if self.missing:
            return f"Not to be believed yet: {claimed}. {left}. Not run: {', '.join(self.missing)}."
        smoke = ", as far as fewer than 1,000 images tell" if self.n < 1000 else ""
        return f"Believed{smoke}: {claimed}. {left}, and no check speaks against it."

    @property
    def _left(self) -> str:
        assert self.worst is not None
        low, high = interval(torch.arange(self.n) < self.worst)
        share = f"{100 * self.worst / self.n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        return f"The worst case of {len(self.attacks)} attacks at eps {self.eps} leaves {share} of n = {self.n}"

    def table(self) -> pd.DataFrame:
        """One row per check, in the order of the checklist."""
        frame = pd.DataFrame([asdict(finding) for finding in self.findings])
        return frame.rename(columns={"name": "check"}).set_index("check")[
            ["row", "asks", "threshold", "value", "verdict"]
        ]

    def json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        told: dict[str, Any] = {"believed": self.believed, "sentence": self.sentence, **asdict(self)}
        return {**told, "findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Report:
        """The report that `json` was made of."""
        told = {key: value for key, value in table.items() if key not in ("believed", "sentence")}
        return cls(**{**told, "findings": tuple(Finding(**finding) for finding in told["findings"])})

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{f.verdict:<14} {f.name:<{width}}  {f.value or f.why}" for f in self.findings]
        return "\n".join([*lines, self.sentence])
