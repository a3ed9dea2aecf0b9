"""The report of an audit: the result of every check, and one sentence on whether the accuracy can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch

from paperlib.evaluation.auditing.checks.check import FAILS, NOT_RUN
from paperlib.evaluation.auditing.context import interval

REQUIRED = ("autoattack",)  # checks without which no claim is believed


@dataclass(frozen=True)
class Finding:
    """A check and its result.

    Attributes:
        row, name, question, threshold: those of the `Check`.
        verdict: ``"passes"``, ``"FAILS"``, ``"noted"``, ``"not run"`` or ``"not applicable"``.
        value: the measured numbers.
        why: the reason, unless the check passed.
    """

    row: int
    name: str
    question: str
    threshold: str
    verdict: str
    value: str
    why: str


@dataclass(frozen=True)
class Report:
    """The results of an audit."""

    label: str
    n: int
    eps: str
    seed: int
    audit_budget: dict[str, Any]
    claimed: float | None  # accuracy under attack, as a fraction; None if no accuracy can be measured
    claim: str  # the origin of the claimed accuracy
    attacks: dict[str, int]  # number of correct images under each attack at this eps
    worst: int | None  # number of images correct under all of them; None if no accuracy can be measured
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(finding.name for finding in self.findings if finding.verdict == FAILS)

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the required checks that were not run."""
        return tuple(f.name for f in self.findings if f.verdict == NOT_RUN and f.name in REQUIRED)

    @property
    def believed(self) -> bool:
        """Whether no check failed, all required checks were run, and an accuracy could be measured."""
        return not self.failed and not self.missing and self.worst is not None

    @property
    def sentence(self) -> str:
        """Whether the claimed accuracy can be believed and, if not, why."""
        reasons = "; ".join(f"{f.name}: {f.why}" for f in self.findings if f.verdict == FAILS)
        if self.worst is None:
            return f"Not to be believed: no accuracy of {self.label} can be measured. {reasons}."
        worst, claimed = self._worst_case, f"{100 * (self.claimed or 0):.1f} % for {self.label} ({self.claim})"
        if self.failed:
            return f"Not to be believed: {claimed}. {worst}. {reasons}."
        if self.missing:
            return f"Not to be believed yet: {claimed}. {worst}. Not run: {', '.join(self.missing)}."
        reservation = ", as far as fewer than 1,000 images tell" if self.n < 1000 else ""
        return f"Believed{reservation}: {claimed}. {worst}, and no check speaks against it."

    @property
    def _worst_case(self) -> str:
        assert self.worst is not None
        low, high = interval(torch.arange(self.n) < self.worst)
        share = f"{100 * self.worst / self.n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        return f"The worst case of {len(self.attacks)} attacks at eps {self.eps} leaves {share} of n = {self.n}"

    def table(self) -> pd.DataFrame:
        """One row for each check, in the order of their numbers."""
        frame = pd.DataFrame([asdict(finding) for finding in self.findings])
        return frame.rename(columns={"name": "check"}).set_index("check")[
            ["row", "question", "threshold", "value", "verdict"]
        ]

    def json(self) -> dict[str, Any]:
        """All fields, `believed` and `sentence`, ready for JSON."""
        table: dict[str, Any] = {"believed": self.believed, "sentence": self.sentence, **asdict(self)}
        return {**table, "findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Report:
        """The report from the result of `json`."""
        fields = {key: value for key, value in table.items() if key not in ("believed", "sentence")}
        return cls(**{**fields, "findings": tuple(Finding(**finding) for finding in fields["findings"])})

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{f.verdict:<14} {f.name:<{width}}  {f.value or f.why}" for f in self.findings]
        return "\n".join([*lines, self.sentence])
