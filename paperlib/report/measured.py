"""The last lines of a command: the accuracy of every evaluation with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from paperlib.pipeline.study import Study
from paperlib.report.format import percent


def measured(study: Study, names: Sequence[str], computed: Collection[str]) -> list[str]:
    """A line for every accuracy in the records of the stages ``names``, and one line that counts the other stages.

    Args:
        study: a study in which all of these stages have results.
        computed: the stages that were computed just now; for the others the line gives the time of computation.
    """
    rows, others = [], Counter[str]()
    for name in names:
        artefact = study.get(name)
        evaluations = list(_accuracies(name, artefact.record["result"]))
        source = "computed now" if name in computed else f"computed {artefact.record['provenance']['created']}"
        rows += [(label, percent(r["accuracy"], r["interval"]), f"n = {r['n']}", source) for label, r in evaluations]
        if not evaluations:
            others[name.partition(":")[0]] += 1
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = ["accuracy in percent [95 % interval]:"] if rows else []
    lines += [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    if others:
        lines.append("without an accuracy: " + ", ".join(f"{count} {kind}" for kind, count in others.items()))
    return lines


def _accuracies(name: str, result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The evaluations in a record, each with a label: the record itself, or the rows of ``stress:dwf``."""
    if "accuracy" in result and "interval" in result:
        yield name, result
    for row in result.get("rows", ()):
        if "accuracy" in row and "interval" in row:
            yield f"{name} {row.get('name', '')}", row
