"""Comparisons of systems on the same images, for one seed and over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from paperlib.evaluation import difference_over_seeds, headline, paired_difference
from paperlib.pipeline.study import Study
from paperlib.report.format import points
from paperlib.report.outcomes import (
    BEST_EXPERT,
    PGD_WORST_CASE,
    WORST_CASE,
    Systems,
    best_expert,
    column_of,
    compared_systems,
    display_name,
    outcomes_over_seeds,
)
from paperlib.report.tables.cost import cost
from paperlib.report.tables.main_table import main_frame


def runs_frame(studies: Sequence[Study], systems: Systems = compared_systems) -> pd.DataFrame:
    """`main_frame` of several runs, one below the other."""
    return pd.concat([main_frame(study, systems(study)) for study in studies], ignore_index=True)


def seeds_table(studies: Sequence[Study], systems: Systems = compared_systems) -> pd.DataFrame:
    """For each system and attack the mean over seeds with the lowest and highest seed, in percent; and the cost.

    The best expert may be another one in each seed; it has one row.
    """
    frame = runs_frame(studies, systems)
    groups = frame.groupby(["system", "column"], sort=False)["accuracy"]
    text = groups.apply(lambda a: f"{a.mean():.1%} ({a.min():.1%} to {a.max():.1%})".replace("%", ""))
    columns, rows = (list(dict.fromkeys(frame[name])) for name in ("column", "system"))
    columns.sort(key=lambda name: name.startswith(WORST_CASE))  # the headline last
    table = text.unstack("column")[columns].reindex(rows).fillna("")
    costs = pd.DataFrame({display_name(name): cost(studies[0], name) for name in systems(studies[0])}).T
    counts = costs[["parameters", "training cost"]].map(lambda value: value if value == "" else int(value))
    return table.join(counts).join(costs["inference cost"].map("{:.1f}".format))


def differences(studies: Sequence[Study], systems: Systems, against: str, column: str = PGD_WORST_CASE) -> pd.DataFrame:
    """``against`` minus every other system over all seeds; the intervals cover image sampling and training seeds."""
    rows = []
    ours = outcomes_over_seeds(studies, against, column)
    for system in dict.fromkeys(display_name(name) for name in systems(studies[0])):
        if system == against:
            continue
        value = difference_over_seeds(ours, outcomes_over_seeds(studies, system, column))
        row = {"system": system, "difference": value.difference, "low": value.low, "high": value.high}
        rows.append(row | {"seeds": value.seeds, "n": value.n})
    return pd.DataFrame(rows).set_index("system")


def worst_differences(
    studies: Sequence[Study], systems: Systems, against: str, attacks: Sequence[str] = (WORST_CASE, PGD_WORST_CASE)
) -> pd.DataFrame:
    """``against`` minus every other system, a column for each attack, by default for both worst cases."""
    columns = {}
    for attack in attacks:
        frame = differences(studies, systems, against, attack)
        columns[f"{attack}, n = {frame['n'].iloc[0]}"] = with_points(frame)["points"]
    return pd.DataFrame(columns)


def with_points(table: pd.DataFrame) -> pd.DataFrame:
    """The frame with one column of text, ``points``, for ``difference``, ``low`` and ``high``; NaN becomes empty."""
    texts = [
        points(d, low, high) if d == d else ""
        for d, low, high in zip(table["difference"], table["low"], table["high"], strict=True)
    ]
    frame = table.drop(columns=["low", "high"]).rename(columns={"difference": "points"})
    return frame.assign(points=texts)


def paired_table(study: Study, against: str = "dwf", systems: Systems = compared_systems) -> pd.DataFrame:
    """``against`` minus every other system under the headline attack, on the same images, with McNemar's p-value."""
    spec = headline(study.profile.evaluation)
    ours = study.outcome(against, spec).arrays["correct"].bool()
    rows = []
    for system in systems(study):
        if system == against:
            continue
        pair = paired_difference(ours, study.outcome(system, spec).arrays["correct"].bool())
        rows.append(
            {
                "comparison": f"{against} - {system}",
                "points": points(pair.difference, pair.low, pair.high),
                f"only {against} correct": pair.only_first,
                "only the other correct": pair.only_second,
                "n": pair.n,
                "McNemar p": f"{pair.p_value:.2g}",
                "seed": study.seed,
            }
        )
    return pd.DataFrame(rows).set_index("comparison")


def paired_seeds(studies: Sequence[Study], against: str = "dwf", systems: Systems = compared_systems) -> pd.DataFrame:
    """The differences of `paired_table` with their intervals, a column for each seed, all on the same images.

    The last column is the mean over seeds; its interval covers image sampling and training seeds.
    """
    columns = {}
    for study in studies:
        pairs = paired_table(study, against, systems)["points"]
        columns[f"seed {study.seed}"] = pairs.rename(
            {f"{against} - {best_expert(study)}": f"{against} - {BEST_EXPERT}"}
        )
    attack = column_of(headline(studies[0].profile.evaluation))
    over_seeds = with_points(differences(studies, systems, against, attack))["points"]
    columns["all seeds"] = over_seeds.rename(lambda name: f"{against} - {name}")
    return pd.DataFrame(columns)
