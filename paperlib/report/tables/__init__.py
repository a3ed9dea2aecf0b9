"""Tables of the series, each made from records. Every accuracy has its n and its interval."""

from paperlib.report.tables.ablations import ablations
from paperlib.report.tables.benchmarks import (
    algorithms_table,
    growth_table,
    peers_summary,
    peers_table,
    step_table,
    training_table,
)
from paperlib.report.tables.comparison import (
    differences,
    paired_seeds,
    paired_table,
    runs_frame,
    seeds_table,
    with_points,
    worst_differences,
)
from paperlib.report.tables.cost import arithmetic, cost, growth
from paperlib.report.tables.expectations import expect
from paperlib.report.tables.experts import expert_names, expert_table
from paperlib.report.tables.files import markdown, save_table
from paperlib.report.tables.gate import gate_health, gate_rows, routes
from paperlib.report.tables.literature import Reported, literature
from paperlib.report.tables.main_table import headline_name, main_frame, main_table, results
from paperlib.report.tables.provenance import provenance_line, provenance_table
from paperlib.report.tables.scales import scales
from paperlib.report.tables.settings import settings
from paperlib.report.tables.stress import (
    audit_of,
    audits,
    control_reports,
    controls_table,
    controls_verdicts,
    every_attack,
    family_of,
    losses_by_family,
    shrinkage,
)
from paperlib.report.tables.sweeps import by_steps, with_intervals
from paperlib.report.tables.training import histories

__all__ = [
    "Reported",
    "ablations",
    "algorithms_table",
    "arithmetic",
    "audit_of",
    "audits",
    "by_steps",
    "control_reports",
    "controls_table",
    "controls_verdicts",
    "cost",
    "differences",
    "every_attack",
    "expect",
    "expert_names",
    "expert_table",
    "family_of",
    "gate_health",
    "gate_rows",
    "growth",
    "growth_table",
    "headline_name",
    "histories",
    "literature",
    "losses_by_family",
    "main_frame",
    "main_table",
    "markdown",
    "paired_seeds",
    "paired_table",
    "peers_summary",
    "peers_table",
    "provenance_line",
    "provenance_table",
    "results",
    "routes",
    "runs_frame",
    "save_table",
    "scales",
    "seeds_table",
    "settings",
    "shrinkage",
    "step_table",
    "training_table",
    "with_intervals",
    "with_points",
    "worst_differences",
]
