"""The style of all figures: seaborn's theme, a colour-blind-safe palette, a colour for each system and expert kind."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from paperlib.atomic_files import replacing
from paperlib.paths import figures_dir

Colour = tuple[float, float, float]
_SAFE: list[Colour] = list(sns.color_palette("colorblind", 10))
KINDS = {"benign": _SAFE[2], "FGSM": _SAFE[1], "PGD": _SAFE[4]}
INK, PALE = "0.1", "0.55"  # foreground and background
ERROR_COLOUR = "#c1121f"  # of misclassified images
# A colour for each system that is drawn as a line, none of them a kind's; other systems have their family's colour.
_SYSTEM_COLOURS = {
    "plain": _SAFE[7],
    "pgd-at": _SAFE[0],
    "best-expert": _SAFE[8],
    "uniform": _SAFE[9],
    "frozen": (0.38, 0.38, 0.38),
    "dwf": _SAFE[3],
}
# A system of an extension has one of these colours, chosen by its name.
_EXTENSION_COLOURS: list[Colour] = [(0.0, 0.38, 0.32), (0.45, 0.2, 0.45), (0.4, 0.3, 0.05)]
MARKERS = {"plain": "X", "pgd-at": "s", "best-expert": "D", "uniform": "^", "frozen": "v", "dwf": "o"}
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
    "best-expert": "best single expert",
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
    "ablation-base": "DWF, shorter phase 2",
    "ablation-fixed": "the same, fixed eps and iterations",
}
WIDTH = 7.2  # inches: readable at the width of a README
SMALL = 8.0  # points: legends, notes, crowded labels; no text is smaller than 7


def label_of(system: str) -> str:
    """A system's label; for a system of an extension its name."""
    return LABELS.get(system, system)


def colour_of(system: str) -> Colour:
    """A system's colour, or its family's: undefended, single, mixture of the nine, other defence, extension."""
    if system in _SYSTEM_COLOURS:
        return _SYSTEM_COLOURS[system]
    if system.startswith("ablation-"):
        return _SYSTEM_COLOURS["dwf"]
    if system not in LABELS:
        return _EXTENSION_COLOURS[zlib.crc32(system.encode()) % len(_EXTENSION_COLOURS)]
    if system.startswith("plain"):
        return _SYSTEM_COLOURS["plain"]
    if system.startswith(("soe", "advmoe", "more")):
        return _SAFE[5]
    return _SAFE[9] if system in ("pgd-at-ensemble", "joint-scratch") else _SAFE[0]


def marker_of(system: str) -> str:
    """A system's marker; where none is set, one chosen by the name, so that lines of one colour differ."""
    return MARKERS.get(system, "P*<>hd"[zlib.crc32(system.encode()) // len(_EXTENSION_COLOURS) % 6])


def shades(n: int) -> list[Colour]:
    """``n`` colours from light to dark, of the heat maps' scale, for what is neither a system nor an expert kind."""
    scale = plt.get_cmap("cividis")
    return [scale(0.9 - 0.8 * (i + 0.5 * (n == 1)) / max(1, n - 1))[:3] for i in range(n)]


def tint(colour: Colour, white: float) -> Colour:
    """``colour`` mixed with a share of white in [0, 1]."""
    red, green, blue = ((1 - white) * part + white for part in colour)
    return red, green, blue


def percent_axis(axis: Axis) -> None:
    """Show fractions as percentages, such as ``40 %``."""
    axis.set_major_formatter(lambda value, _: f"{round(100 * value, 3) + 0:g} %")  # no -0, no 1e-15


def heading(figure: Figure, text: str) -> None:
    """A bold title over all panels; the titles of the panels become normal."""
    figure.suptitle(text, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    for ax in figure.axes:
        ax.set_title(ax.get_title(loc=plt.rcParams["axes.titlelocation"]), fontweight="normal")


def shared_legend(figure: Figure, ax: Axes) -> None:
    """One legend below all panels."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8.5)


def fit_labels(names: Sequence[str], inches: float, size: float = 8.5) -> tuple[list[str], float]:
    """Labels that fit side by side, each at most ``inches`` wide, and their font size, from 7 to ``size`` points.

    A label that is too wide at 7 points is cut.
    """
    widest = max((_inches(name, 1) for name in names), default=0)
    size = max(7.0, min(size, inches / widest)) if widest else size
    return [name if _inches(name, size) <= inches else _shortened(name, inches, size) for name in names], size


def _shortened(name: str, inches: float, size: float) -> str:
    while len(name) > 1 and _inches(name + "\N{HORIZONTAL ELLIPSIS}", size) > inches:
        name = name[:-1].rstrip()
    return name + "\N{HORIZONTAL ELLIPSIS}"


def _inches(text: str, size: float) -> float:
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text.strip() else 0.0


def use_style() -> None:
    """Set the theme; every notebook calls it once."""
    sns.set_theme(style="whitegrid", context="notebook", font="DejaVu Sans", font_scale=0.85)
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 160,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )


# Glyphs as outlines need no font to be installed; a fixed salt gives their names, and so the file, the same bytes.
_SVG: dict[Any, Any] = {"svg.hashsalt": "paperlib", "svg.fonttype": "path"}


def discard(name: str, profile: str) -> None:
    """Remove a figure that this run cannot draw, so that no figure of an earlier run remains."""
    for suffix in (".png", ".svg"):
        (figures_dir(profile) / f"{name}{suffix}").unlink(missing_ok=True)


def save(figure: Figure, name: str, profile: str) -> Path:
    """Write a figure as PNG and as SVG into the profile's folder; returns the path of the PNG.

    Equal pictures give equal bytes. The SVG files are not committed.

    Raises:
        StoreError: a file cannot be written; the older file is unchanged.
    """
    path = figures_dir(profile) / f"{name}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    buffer = io.StringIO()
    with plt.rc_context(_SVG):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # Without indentation and digits beyond hundredths of a point, which are invisible, the file is a fifth smaller.
    text = re.sub(r"(\d\d\.\d\d)\d+", r"\1", re.sub(r"\n +", "\n", buffer.getvalue()))
    with replacing(path.with_suffix(".svg")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
