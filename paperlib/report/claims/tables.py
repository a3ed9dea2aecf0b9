"""Verdicts as tables and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from paperlib.evaluation import difference_over_seeds
from paperlib.pipeline.study import Study
from paperlib.report.claims.claims import CLAIMS
from paperlib.report.claims.rules import REFUTED, SUPPORTED, UNDECIDED, Beats
from paperlib.report.claims.verdicts import Verdict, verdicts
from paperlib.report.format import plural
from paperlib.report.outcomes import PGD_WORST_CASE, outcomes_over_seeds


def verdicts_by_profile(runs: Mapping[str, Sequence[Study]]) -> pd.DataFrame:
    """The verdict of each claim by profile, over all runs of each; the headings name the data and count the seeds."""
    columns: dict[str, dict[str, str]] = {}
    for name, studies in runs.items():
        label = studies[0].fingerprint.split(":")[0] if studies else "no records"
        heading = f"{name} ({label}, {plural(len(studies), 'seed')})"
        columns[heading] = {verdict.claim.id: verdict.text for verdict in verdicts(studies)}
    claims = {key: {claim.id: getattr(claim, key) for claim in CLAIMS} for key in ("statement", "source")}
    return pd.DataFrame({**claims, **columns}).rename_axis("claim")


def describe(verdict: Verdict) -> str:
    """A claim in full: statement, source, rule, comparisons, verdict."""
    claim = verdict.claim
    lines = [f"{claim.id}: {claim.statement} ({claim.source})", f"  rule     {claim.rule}"]
    lines += [f"  {item.reading:<13}  {item.label}: {item.text}" for item in verdict.comparisons]
    return "\n".join([*lines, f"  VERDICT  {verdict.text}{verdict.reason and ' (' + verdict.reason + ')'}"])


def differences_frame(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """The differences behind the verdicts, one row each, for a figure."""
    rows = [
        {
            "claim": v.claim.id,
            "compared": item.label.removesuffix(f", {PGD_WORST_CASE}"),
            "difference": item.value.difference,
            "low": item.value.low,
            "high": item.value.high,
        }
        for v in verdicts
        for item in v.comparisons
        if item.value and isinstance(v.claim, Beats)
    ]
    return pd.DataFrame(rows, columns=["claim", "compared", "difference", "low", "high"]).set_index("compared")


def verdicts_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row for each claim: statement, source, verdict, and the number of comparisons with each reading."""
    rows = []
    for v in verdicts:
        count = {r: sum(item.reading == r for item in v.comparisons) for r in (SUPPORTED, REFUTED, UNDECIDED)}
        text = ", ".join(f"{n} {reading}" for reading, n in count.items()) if v.comparisons else v.reason
        row = {"claim": v.claim.id, "statement": v.claim.statement, "source": v.claim.source, "verdict": v.text}
        rows.append(row | {"comparisons": text})
    return pd.DataFrame(rows).set_index("claim")


def power_note(studies: Sequence[Study], others: Sequence[str]) -> str:
    """The differences from DWF that the records can resolve: half-widths of the intervals, and standard errors."""
    ours = outcomes_over_seeds(studies, "dwf", PGD_WORST_CASE)
    values = [difference_over_seeds(ours, outcomes_over_seeds(studies, other, PGD_WORST_CASE)) for other in others]
    halves = pd.Series([(value.high - value.low) / 2 for value in values])
    images = pd.Series([value.from_images for value in values])
    runs = pd.Series([value.from_runs for value in values])
    # Power 80 % at level 5 %: the true difference is a half-width and 0.84 standard errors away from zero.
    total = (images**2 + runs.fillna(0) ** 2) ** 0.5
    spread = f"{100 * runs.median():.1f}" if len(studies) > 1 else "unknown with one seed"
    return (
        f"{plural(values[0].seeds, 'seed')}, n = {values[0].n} images each. Half-widths of the 95 % intervals of "
        f"{len(values)} differences: {100 * halves.min():.1f} to {100 * halves.max():.1f} points, median "
        f"{100 * halves.median():.1f}. Standard error from the images {100 * images.median():.1f} points, from the "
        f"training runs {spread} (medians). A true difference of {100 * (halves + 0.84 * total).median():.1f} points "
        "would be found four times out of five; a smaller one will probably be undecided, whatever its sign."
    )
