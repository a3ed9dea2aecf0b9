"""Interactive explorers of images, attacks and experts: widgets in JupyterLab, pictures without a kernel."""

from paperlib.explore.scene import Live, Recorded, Scene, SceneSource, Selection, experts_of, source_of
from paperlib.explore.widgets import Explorer, eps_explorer, experts_explorer, gate_explorer

__all__ = [
    "Explorer",
    "Live",
    "Recorded",
    "Scene",
    "SceneSource",
    "Selection",
    "eps_explorer",
    "experts_explorer",
    "experts_of",
    "gate_explorer",
    "source_of",
]
