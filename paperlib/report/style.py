"""One look for every figure: seaborn's theme, a colour-blind-safe palette, one colour per system and expert kind."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from paperlib.files import replacing
from paperlib.paths import figures_dir

Colour = tuple[float, float, float]
_SAFE: list[Colour] = list(sns.color_palette("colorblind", 10))
KINDS = {"benign": _SAFE[2], "FGSM": _SAFE[1], "PGD": _SAFE[4]}
SYSTEMS = {
    "plain": _SAFE[7],
    "pgd-at": _SAFE[0],
    "best expert": _SAFE[4],
    "uniform": _SAFE[9],
    "frozen": (0.2, 0.2, 0.2),
    "dwf": _SAFE[3],
}
MARKERS = {"plain": "X", "pgd-at": "s", "best expert": "D", "uniform": "^", "frozen": "v", "dwf": "o"}
LABELS = {
    "plain": "plain ResNet-18",
    "pgd-at": "PGD-AT ResNet-18",
    "best expert": "best single expert",
    "uniform": "uniform average of the nine",
    "frozen": "frozen experts, trained gate",
    "dwf": "DWF (joint)",
}
WIDTH = 7.2  # inches: readable at the width of a README


def use_style() -> None:
    """Set the theme; called by every notebook once."""
    sns.set_theme(style="whitegrid", context="notebook", font="DejaVu Sans", font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 160,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "paperlib",
        }
    )


def save(figure: Figure, name: str, profile: str) -> Path:
    """Write a figure as PNG into the profile's folder; the bytes depend on nothing but the picture."""
    path = figures_dir(profile) / f"{name}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path
