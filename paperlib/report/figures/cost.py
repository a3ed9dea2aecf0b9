"""Cost against the number of experts."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from paperlib.report.style import PALE, WIDTH, colour_of


def growth(frame: pd.DataFrame, arithmetic: Sequence[float]) -> Figure:
    """Cost against the number of experts: an epoch of phase 2 with its value by the recipe, and inference."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    experts = frame["experts"]
    counted = {"color": colour_of("dwf"), "marker": "o", "ls": "none", "ms": 7, "label": "counted"}
    axes[0].plot(experts, arithmetic, color=PALE, lw=1.2, label="by the recipe")
    axes[0].plot(experts, frame["phase 2, units an epoch"], **counted)
    axes[0].set(title="Training: phase 2, per epoch", ylabel="clean epochs of one ResNet-18")
    axes[1].plot(experts, experts, color=PALE, lw=1.2, label="one ResNet-18 each")
    axes[1].plot(experts, frame["inference cost"], **counted)
    axes[1].set(title="Inference", ylabel="forward passes of one ResNet-18")
    for ax in axes:
        ax.set(xlabel="experts", xticks=list(experts), xlim=(0, None), ylim=(0, None))
        ax.legend(fontsize=8.5, loc="upper left", frameon=True, framealpha=1, edgecolor="none")
    return figure
