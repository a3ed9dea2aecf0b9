"""Exploring by hand: one image, one attack, nine experts; widgets in JupyterLab, the same pictures without them."""

from paperlib.explore.scene import Live, Question, Recorded, Scene, experts_of, source_of
from paperlib.explore.widgets import Explorer, eps_explorer, experts_explorer, gate_explorer

__all__ = [
    "Explorer",
    "Live",
    "Question",
    "Recorded",
    "Scene",
    "eps_explorer",
    "experts_explorer",
    "experts_of",
    "gate_explorer",
    "source_of",
]
