"""One look for every figure: seaborn's theme, a colour-blind-safe palette, one colour per system and expert kind."""

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
INK, PALE = "0.1", "0.55"  # what counts, and what stands behind it
WRONG = "#c1121f"
# One colour per system that a line may follow, none of them a kind's; the others take their family's.
_OWN = {
    "plain": _SAFE[7],
    "pgd-at": _SAFE[0],
    "best-expert": _SAFE[8],
    "uniform": _SAFE[9],
    "frozen": (0.38, 0.38, 0.38),
    "dwf": _SAFE[3],
}
# Systems the companion does not know take one of these by their name, so that a figure keeps them apart.
_THEIRS: list[Colour] = [(0.0, 0.38, 0.32), (0.45, 0.2, 0.45), (0.4, 0.3, 0.05)]
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
SMALL = 8.0  # points: legends, notes, crowded labels; nothing is written smaller than 7


def label_of(system: str) -> str:
    """A system's label; the name itself of a system the companion does not know."""
    return LABELS.get(system, system)


def colour_of(system: str) -> Colour:
    """A system's own colour, or its family's: undefended, single, mixture of the nine, other defence, a reader's."""
    if system in _OWN:
        return _OWN[system]
    if system.startswith("ablation-"):
        return _OWN["dwf"]
    if system not in LABELS:
        return _THEIRS[zlib.crc32(system.encode()) % len(_THEIRS)]
    if system.startswith("plain"):
        return _OWN["plain"]
    if system.startswith(("soe", "advmoe", "more")):
        return _SAFE[5]
    return _SAFE[9] if system in ("pgd-at-ensemble", "joint-scratch") else _SAFE[0]


def marker_of(system: str) -> str:
    """A system's marker; one of a few by the name where none is set, so that lines of one colour differ."""
    return MARKERS.get(system, "P*<>hd"[zlib.crc32(system.encode()) // len(_THEIRS) % 6])


def shades(n: int) -> list[Colour]:
    """``n`` colours for things that are neither system nor kind, light to dark, of the heat maps' scale."""
    scale = plt.get_cmap("cividis")
    return [scale(0.9 - 0.8 * (i + 0.5 * (n == 1)) / max(1, n - 1))[:3] for i in range(n)]


def tint(colour: Colour, white: float) -> Colour:
    """``colour`` mixed with a share of white."""
    red, green, blue = ((1 - white) * part + white for part in colour)
    return red, green, blue


def percent_axis(axis: Axis) -> None:
    """Fractions shown as such as ``40 %``."""
    axis.set_major_formatter(lambda value, _: f"{round(100 * value, 3) + 0:g} %")  # no -0, no 1e-15


def heading(figure: Figure, text: str) -> None:
    """One title over several panels, whose own titles step back."""
    figure.suptitle(text, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    for ax in figure.axes:
        ax.set_title(ax.get_title(loc=plt.rcParams["axes.titlelocation"]), fontweight="normal")


def shared_legend(figure: Figure, ax: Axes) -> None:
    """One legend below all panels."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8.5)


def fitted(names: Sequence[str], inches: float, size: float = 8.5) -> tuple[list[str], float]:
    """Names that stand side by side, and a font size at most ``size``: small enough for each to fit, or cut."""
    widest = max((_inches(name, 1) for name in names), default=0)
    size = max(7.0, min(size, inches / widest)) if widest else size
    return [name if _inches(name, size) <= inches else _cut(name, inches, size) for name in names], size


def _cut(name: str, inches: float, size: float) -> str:
    while len(name) > 1 and _inches(name + "\N{HORIZONTAL ELLIPSIS}", size) > inches:
        name = name[:-1].rstrip()
    return name + "\N{HORIZONTAL ELLIPSIS}"


def _inches(text: str, size: float) -> float:
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72 if text.strip() else 0.0


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
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )


# Glyphs drawn as outlines look the same where DejaVu is missing; a fixed salt names them alike each time.
_SVG: dict[Any, Any] = {"svg.hashsalt": "paperlib", "svg.fonttype": "path"}


def discard(name: str, profile: str) -> None:
    """Remove a figure that this run cannot draw, so that one of another run is not taken for its own."""
    for suffix in (".png", ".svg"):
        (figures_dir(profile) / f"{name}{suffix}").unlink(missing_ok=True)


def save(figure: Figure, name: str, profile: str) -> Path:
    """Write a figure as PNG, whose path is returned, and as SVG beside it, into the profile's folder.

    The bytes of both depend on nothing but the picture. Raises StoreError, which leaves the older file as it was.
    """
    path = figures_dir(profile) / f"{name}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    buffer = io.StringIO()
    with plt.rc_context(_SVG):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # Indentation and more than hundredths of a point cannot be seen, and are a fifth of the file.
    text = re.sub(r"(\d\d\.\d\d)\d+", r"\1", re.sub(r"\n +", "\n", buffer.getvalue()))
    with replacing(path.with_suffix(".svg")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
