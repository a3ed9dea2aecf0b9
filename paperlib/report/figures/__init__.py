"""Figures of the series, each drawn from records by one function that returns a matplotlib figure."""

from paperlib.report.figures.accuracy import accuracy_by_eps, accuracy_by_steps, lines_with_intervals, trace
from paperlib.report.figures.architecture import architecture
from paperlib.report.figures.benchmarks import growth_figure, peers_figure
from paperlib.report.figures.cost import growth
from paperlib.report.figures.experts import expert_colours, expert_curves, expert_heatmap
from paperlib.report.figures.gate import gate_by_attack, gate_by_class, gate_cases, routes
from paperlib.report.figures.images import class_counts, image_grid, predictions, random_signs, show_image
from paperlib.report.figures.main_figure import forest, main_figure
from paperlib.report.figures.stress import control_matrix, every_attack, layers
from paperlib.report.figures.training import curves

__all__ = [
    "accuracy_by_eps",
    "accuracy_by_steps",
    "architecture",
    "class_counts",
    "control_matrix",
    "curves",
    "every_attack",
    "expert_colours",
    "expert_curves",
    "expert_heatmap",
    "forest",
    "gate_by_attack",
    "gate_by_class",
    "gate_cases",
    "growth",
    "growth_figure",
    "image_grid",
    "layers",
    "lines_with_intervals",
    "main_figure",
    "peers_figure",
    "predictions",
    "random_signs",
    "routes",
    "show_image",
    "trace",
]
