"""Training curves."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paperlib.report.style import INK, WIDTH, colour_of, label_of, marker_of, percent_axis


def curves(frame: pd.DataFrame, systems: Sequence[str]) -> Figure:
    """Loss and validation accuracy by epoch, a line for each system, with a ring at the selected epoch."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    for system in systems:
        part = frame[frame["system"] == system]
        colour = colour_of(system)
        style = {"color": colour, "marker": marker_of(system), "ms": 6, "mec": "white", "mew": 0.6}
        axes[0].plot(part["epoch"] + 1, part["loss"], label=label_of(system), lw=1.8, **style)
        axes[1].plot(part["epoch"] + 1, part["pgd"], lw=1.8, **style)
        axes[1].plot(part["epoch"] + 1, part["clean"], ls=":", lw=1.4, **style)
        selected = part[part["epoch"] == part["best"]]
        axes[1].plot(selected["epoch"] + 1, selected["pgd"], "o", ms=12, mfc="none", mec=colour, mew=1.4)
    axes[0].set(title="Training loss", xlabel="epoch of phase 2", ylabel="cross-entropy (nats)")
    axes[1].set(title="Validation accuracy", xlabel="epoch of phase 2", ylabel="accuracy", ylim=(-0.02, 1.04))
    percent_axis(axes[1].yaxis)
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = axes[0].get_legend_handles_labels()[0]
    handles += [Line2D([], [], color=INK, ls=":", lw=1.4, label="clean"), Line2D([], [], color=INK, label="under PGD")]
    handles.append(Line2D([], [], ls="none", marker="o", ms=9, mfc="none", mec=INK, label="selected epoch"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8.5, columnspacing=1.2)
    return figure
