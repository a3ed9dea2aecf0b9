"""The architecture of the mixture."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from paperlib.report.style import KINDS, WIDTH
from paperlib.systems.experts import EXPERT_KINDS


def architecture() -> Figure:
    """The mixture as implemented here: an image, nine experts, a gate, and the mixed prediction."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.9))
    ax.set(xlim=(0, 100), ylim=(-2, 60))
    ax.axis("off")

    def box(x: float, y: float, w: float, h: float, text: str, colour: Any, **kw: Any) -> None:
        shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.3,rounding_size=1", fc=colour, ec="0.25", lw=0.8)
        ax.add_patch(shape)
        ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", **{"fontsize": 8.5, **kw})

    def arrow(start: tuple[float, float], end: tuple[float, float], **kw: Any) -> None:
        style = {"arrowstyle": "-|>", "mutation_scale": 8, "lw": 0.8, "color": "0.35", **kw}
        ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))

    box(1, 26, 13, 12, "image $x$\npixels in\n[0, 1]", "white")
    for i, kind in enumerate(EXPERT_KINDS):
        y = 54 - 5.1 * i
        box(29, y, 25, 3.6, f"expert {i}   {kind}", (*KINDS[kind], 0.35), fontsize=8)
        arrow((15, 32), (28.4, y + 1.8))
        arrow((54.6, y + 1.8), (68.4, 36))
    box(29, 0, 25, 7, "gate $g(x)$, softmax\nsmall residual network", (0.93, 0.93, 0.93), fontsize=8)
    arrow((15, 32), (28.4, 3.5))
    box(69, 28, 12, 14, "mix\n$\\sum_i w_i\\, p_i$", "white", fontsize=9)
    arrow((54.6, 3.5), (74, 27.2), connectionstyle="arc3,rad=0.18")
    ax.text(69.5, 9.5, "weights $w_0 \\ldots w_8$,\nall positive", fontsize=8, color="0.3")
    box(88, 28, 11, 14, "output\n$\\log p(y|x)$", "white")
    arrow((81.6, 35), (87.4, 35))
    ax.text(41.5, 59.6, "phase 1: each expert trained alone", ha="center", fontsize=8, color="0.3", style="italic")
    ax.text(
        87,
        50,
        "phase 2: experts and gate\ntrained jointly on clean,\nFGSM and PGD batches",
        ha="center",
        fontsize=8,
        color="0.3",
        style="italic",
    )
    return figure
