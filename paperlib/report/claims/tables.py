"""Verdicts as tables and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from paperlib.evaluation import difference_over_seeds
from paperlib.pipeline.study import Study
from paperlib.report.claims.claims import CLAIMS
from paperlib.report.claims.rules import REFUTED, SUPPORTED, UNDECIDED, Beats
from paperlib.report.claims.verdicts import Verdict, verdicts
from paperlib.report.format import so_many
from paperlib.report.outcomes import PGD_WORST_CASE, outcomes_over_seeds


def verdicts_by_profile(runs: Mapping[str, Sequence[Study]]) -> pd.DataFrame:
    """The verdict of each claim by profile, over all runs of each; the heading names the data and counts the seeds."""
    columns: dict[str, dict[str, str]] = {}
    for name, studies in runs.items():
        label = studies[0].fingerprint.split(":")[0] if studies else "no records"
        found = verdicts(studies)
        columns[f"{name} ({label}, {so_many(len(studies), 'seed')})"] = {v.claim.id: v.text for v in found}
    told = {key: {claim.id: getattr(claim, key) for claim in CLAIMS} for key in ("says", "source")}
    return pd.DataFrame({**told, **columns}).rename_axis("claim")


def describe(found: Verdict) -> str:
    """A claim told in full: sentence, source, rule, numbers, verdict."""
    claim = found.claim
    lines = [f"{claim.id}: {claim.says} ({claim.source})", f"  rule     {claim.rule}"]
    lines += [f"  {item.reading:<13}  {item.what}: {item.shown}" for item in found.evidence]
    return "\n".join([*lines, f"  VERDICT  {found.text}{found.why and ' (' + found.why + ')'}"])


def differences_frame(found: Sequence[Verdict]) -> pd.DataFrame:
    """The differences behind the verdicts, for a figure: one row each."""
    rows = [
        {
            "claim": v.claim.id,
            "compared": item.what.removesuffix(f", {PGD_WORST_CASE}"),
            "difference": item.value.difference,
            "low": item.value.low,
            "high": item.value.high,
        }
        for v in found
        for item in v.evidence
        if item.value and isinstance(v.claim, Beats)
    ]
    return pd.DataFrame(rows, columns=["claim", "compared", "difference", "low", "high"]).set_index("compared")


def verdicts_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """One row per claim: what it says, where it is from, the verdict, and how many of its numbers speak for it."""
    rows = []
    for v in found:
        count = {r: sum(item.reading == r for item in v.evidence) for r in (SUPPORTED, REFUTED, UNDECIDED)}
        told = f"{count[SUPPORTED]} for, {count[REFUTED]} against, {count[UNDECIDED]} open" if v.evidence else v.why
        rows.append(
            {"claim": v.claim.id, "says": v.claim.says, "source": v.claim.source, "verdict": v.text, "numbers": told}
        )
    return pd.DataFrame(rows).set_index("claim")


def evidence_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """Every number every verdict rests on, with seeds and n."""
    rows = [
        {
            "claim": v.claim.id,
            "compared": item.what,
            "result": item.shown,
            "seeds": item.value.seeds if item.value else "",
            "n": item.value.n if item.value else "",
            "reading": item.reading,
        }
        for v in found
        for item in v.evidence
    ]
    columns = ["claim", "compared", "result", "seeds", "n", "reading"]
    return pd.DataFrame(rows, columns=columns).set_index(["claim", "compared"])


def power_note(studies: Sequence[Study], others: Sequence[str]) -> str:
    """Which differences from DWF the records can resolve: the halves of the intervals, and what they are made of."""
    ours = outcomes_over_seeds(studies, "dwf", PGD_WORST_CASE)
    found = [difference_over_seeds(ours, outcomes_over_seeds(studies, other, PGD_WORST_CASE)) for other in others]
    halves = pd.Series([(value.high - value.low) / 2 for value in found])
    images = pd.Series([value.from_images for value in found])
    runs = pd.Series([value.from_runs for value in found])
    # 80 % power at 5 %: the true difference must lie a half-width and 0.84 standard errors away from zero.
    total = (images**2 + runs.fillna(0) ** 2) ** 0.5
    spread = f"{100 * runs.median():.1f}" if len(studies) > 1 else "unknown with one seed"
    return (
        f"{so_many(found[0].seeds, 'seed')}, n = {found[0].n} images each. Half-widths of the 95 % intervals of "
        f"{len(found)} differences: {100 * halves.min():.1f} to {100 * halves.max():.1f} points, median "
        f"{100 * halves.median():.1f}. Standard error from the images {100 * images.median():.1f} points, from the "
        f"training runs {spread} (medians). A true difference of {100 * (halves + 0.84 * total).median():.1f} points "
        "would be found four times out of five; a smaller one is likely to read as undecided, whatever its sign."
    )
