"""Accuracy over eps and over iterations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paperlib.report.style import WIDTH, colour_of, heading, label_of, marker_of, percent_axis, shared_legend


def n_text(frame: pd.DataFrame) -> str:
    """Such as ``, n = 360`` or ``, n = 200 to 360``; empty if the frame has no ``n``."""
    counts = sorted({int(n) for n in frame["n"].dropna()}) if "n" in frame else []
    return "" if not counts else f", n = {counts[0]}" + (f" to {counts[-1]}" if counts[1:] else "")


def accuracy_by_eps(frame: pd.DataFrame, title: str) -> Figure:
    """Accuracy against eps, a panel for each attack, a line for each system, with 95 % intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3), sharey=True)
    for ax, attack in zip(axes, ("fgsm", "pgd"), strict=True):
        part = frame[frame["attack"].isin([attack, "clean"])]
        lines_with_intervals(ax, part, "eps")
        steps = part["steps"].max()
        ax.set(title="FGSM" if attack == "fgsm" else f"PGD-{steps}", xlabel="eps (pixels in [0, 1])", ylabel="")
    axes[0].set_ylabel("accuracy [95 % interval]")
    shared_legend(figure, axes[0])
    heading(figure, title + n_text(frame))
    return figure


def accuracy_by_steps(frame: pd.DataFrame, title: str) -> Figure:
    """Accuracy against the number of iterations, a line for each system."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.3))
    lines_with_intervals(ax, frame, "steps")
    ax.set(
        title=title + n_text(frame),
        xlabel="PGD iterations (an image counts as misclassified from the first successful one on)",
        ylabel="accuracy [95 % interval]",
    )
    shared_legend(figure, ax)
    return figure


def lines_with_intervals(ax: Axes, frame: pd.DataFrame, x: str) -> None:
    """A line for each system with its Wilson intervals as a band."""
    for system, part in frame.groupby("system", sort=False):
        part = part.sort_values(x)
        name = str(system)
        colour = colour_of(name)
        ax.plot(
            part[x],
            part["accuracy"],
            color=colour,
            marker=marker_of(name),
            ms=6,
            mec="white",
            mew=0.6,
            lw=1.6,
            label=label_of(name),
        )
        ax.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.15, lw=0)
    percent_axis(ax.yaxis)
    ax.set_ylim(-0.02, 1.02)


def trace(records: Sequence[dict[str, Any]]) -> Figure:
    """Loss and accuracy over the iterations of the headline attack, a line for each system."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    for record in records:
        name = record["system"]
        every = max(1, len(record["loss"]) // 5)
        style = {"color": colour_of(name), "label": label_of(name), "lw": 1.8}
        style |= {"marker": marker_of(name), "markevery": every, "ms": 6, "mec": "white", "mew": 0.6}
        axes[0].plot(record["loss"], **style)
        axes[1].plot(record["accuracy_at_iterate"], **style)
    axes[0].set(title="Attack objective", xlabel="iteration", ylabel="mean cross-entropy (nats)")
    title = "Accuracy" + n_text(pd.DataFrame({"n": [record["n"] for record in records]}))
    axes[1].set(title=title, xlabel="iteration", ylabel="accuracy at this iterate", ylim=(-0.02, 1.02))
    percent_axis(axes[1].yaxis)
    shared_legend(figure, axes[0])
    return figure
