"""Write the generated tables of README.md and docs/ from published records: ``python docs/write_results.py``.

A generated table is enclosed by two comments with its name, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.
tests/test_readme.py fails if a table differs from the output of this script.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Document and name of every generated table.
TABLES = (
    ("README.md", "verdicts"),
    ("docs/results-digits.md", "scales"),
    ("docs/results-digits.md", "seeds_table"),
    ("docs/results-digits.md", "shrinkage"),
    ("docs/results-digits.md", "differences"),
    ("docs/results-cifar10.md", "lite_table"),
    ("docs/results-cifar10.md", "lite_differences"),
    ("docs/audit.md", "checks"),
    ("docs/audit.md", "controls"),
    ("docs/speed.md", "peers_summary"),
)


def tables() -> Iterator[tuple[str, str]]:
    """The name of each generated table with its Markdown text.

    Reads ``data/published`` only: call it with PAPERLIB_LOCAL=no.
    """
    import pandas as pd

    from paperlib import Study
    from paperlib.evaluation.auditing.checks import CHECKS
    from paperlib.report import benchmarks, claims, outcomes
    from paperlib.report import tables as report

    digits, lite = Study("digits", local=False).runs, Study("cifar10_lite", local=False)
    systems = outcomes.main_table_systems
    names = [outcomes.display_name(name) for name in systems(digits[0])]
    main_table = report.main_table(lite, systems(lite)).drop(columns=["description", "n", "attacks", "seed"])
    columns = ("clean", "PGD-50", outcomes.PGD_WORST_CASE, outcomes.WORST_CASE)
    checks = pd.DataFrame([{"check": c.name, "question": c.question, "threshold": c.threshold} for c in CHECKS])
    benchmark = benchmarks.benchmark("peers")
    if benchmark is None:
        raise SystemExit("data/published/benchmarks/peers.json is missing; restore it from git")
    frames = {
        "scales": report.scales([digits, [lite]]),
        "verdicts": claims.verdicts_by_profile(claims.published_runs()),
        "seeds_table": report.seeds_table(digits, systems),
        "shrinkage": report.shrinkage(digits, names),
        "differences": report.worst_differences(digits, systems, "dwf"),
        "lite_table": main_table,
        "lite_differences": report.worst_differences([lite], systems, "dwf", columns),
        "checks": checks.set_index("check"),
        "controls": report.controls_verdicts(digits[0]).drop(columns=["n"]),
        "peers_summary": report.peers_summary(benchmark),
    }
    for name, frame in frames.items():
        yield name, report.markdown(frame)


def block(text: str, name: str) -> str:
    """The Markdown text of the table ``name`` in ``text``, a document.

    Raises:
        ValueError: the document has no such table.
    """
    match = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", text, re.DOTALL)
    if match is None:
        raise ValueError(f"no table {name}: it needs the comments <!-- {name}: begin --> and <!-- {name}: end -->")
    return match[1]


def main() -> None:
    """Write every table into its document, and print the documents that changed."""
    os.environ["PAPERLIB_LOCAL"] = "no"
    written = dict(tables())
    for document in dict.fromkeys(document for document, _ in TABLES):
        path = ROOT / document
        text = before = path.read_text(encoding="utf-8")
        for name in (name for owner, name in TABLES if owner == document):
            begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
            text = text.replace(begin + block(text, name) + end, begin + written[name] + end)
        if text != before:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {document}")


if __name__ == "__main__":
    main()
