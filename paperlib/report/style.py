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
# One colour per system that a line may follow; the others take their family's.
_OWN = {
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
    "plain-resnet50": "plain ResNet-50",
    "plain-vgg16": "plain VGG-16",
    "plain-densenet121": "plain DenseNet-121",
    "plain-wrn28-10": "plain WRN-28-10",
    "pgd-at": "PGD-AT ResNet-18",
    "trades": "TRADES ResNet-18",
    "fgsm-at": "FGSM-AT, fixed eps",
    "fgsm-rs": "FGSM-AT, random start",
    "pgd-at-wrn28-10": "PGD-AT WRN-28-10",
    "pgd-at-wide": "PGD-AT, as large as DWF",
    "best expert": "best single expert",
    "uniform": "uniform average of the nine",
    "pgd-at-ensemble": "nine PGD-AT, averaged",
    "frozen": "frozen experts, trained gate",
    "joint-scratch": "DWF without phase 1",
    "dwf": "DWF (joint)",
    "soe": "SoE of the nine",
    "soe-own": "SoE as published",
    "soe-moe": "SoE's soft mixture",
    "advmoe": "ADVMoE, nine pathways",
    "advmoe-own": "ADVMoE as published",
    "more": "MoRE of the nine",
    "more-own": "MoRE as published",
}


def colour_of(system: str) -> Colour:
    """A system's own colour, or its family's: undefended, single, mixture of the nine, other defence."""
    if system in _OWN:
        return _OWN[system]
    if system.startswith("plain"):
        return _OWN["plain"]
    if system.startswith(("soe", "advmoe", "more")):
        return _SAFE[2]
    return _SAFE[9] if system in ("pgd-at-ensemble", "joint-scratch") else _SAFE[0]


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
