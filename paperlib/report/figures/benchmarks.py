"""Figures of the speed benchmarks."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, ScalarFormatter

from paperlib.report.benchmarks import NAMES
from paperlib.report.style import INK, PALE, SMALL, WIDTH, label_of, shades


def peers_figure(record: dict[str, Any]) -> Figure:
    """The time of each library relative to ours for each network, with the network's robust accuracy."""
    frame = pd.DataFrame(record["rows"])
    names = [name for name in NAMES if name in set(frame["contender"]) - {"paperlib"}]
    subjects = list(dict.fromkeys(zip(frame["data"], frame["system"], frame["eps"], strict=True)))
    colours = dict(zip(names, shades(len(names)), strict=True))
    figure, ax = plt.subplots(figsize=(WIDTH, 0.62 * len(subjects) + 1.6))
    height = 0.8 / max(1, len(names))
    labels = []
    for i, subject in enumerate(subjects):
        rows = frame[(frame["data"] == subject[0]) & (frame["system"] == subject[1]) & (frame["eps"] == subject[2])]
        rows = rows.set_index("contender")
        accuracy = rows.loc["paperlib", "correct"] / rows.loc["paperlib", "n"]
        labels.append(f"{label_of(subject[1])}, {subject[0]}\neps {subject[2]}, {100 * accuracy:.0f} % correct")
        for j, name in enumerate(names):
            middle, low, high = rows.loc[name, "ratio"]
            y = i - 0.4 + (j + 0.5) * height
            ax.barh(y, middle, height * 0.92, color=colours[name], label=NAMES[name] if i == 0 else None)
            ax.plot(
                [low, high], [y, y], color=PALE if j == len(names) - 1 else INK, lw=1
            )  # visible on the darkest bar too
    ax.axvline(1, color=INK, lw=1.2, ls="--", label="paperlib")
    ax.set_yticks(range(len(subjects)), labels, fontsize=9)
    ax.invert_yaxis()
    text = f"median of {record['rounds']} interleaved rounds; lines from lowest to highest"
    ax.set_xlabel(f"times as long as paperlib, PGD-{record['steps']}: {text}", fontsize=9, loc="right")
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=4, fontsize=SMALL)
    return figure


def growth_figure(record: dict[str, Any]) -> Figure:
    """Seconds against images, steps, experts and width on logarithmic axes, and memory against steps."""
    panels = {g["axis"]: g for g in record["growth"]}
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 4.4))
    flat = axes.flatten()
    for ax, (axis, g) in zip(flat, panels.items(), strict=False):
        times = np.array(g["seconds"])
        middle = np.median(times, axis=1)
        ax.errorbar(
            g["points"],
            middle,
            yerr=[middle - times.min(axis=1), times.max(axis=1) - middle],
            fmt="o",
            color=INK,
            ms=4,
            capsize=2,
        )
        x = np.array(g["points"], dtype=float)
        fit = np.exp(np.log(middle).mean()) * (x / np.exp(np.log(x).mean())) ** g["exponent"]
        ax.plot(x, fit, color=PALE, lw=1)
        ax.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds" if ax in axes[:, 0] else "")
        ax.set_title(f"exponent {g['exponent']:.2f}", fontsize=9, fontweight="normal")
        ax.xaxis.set_major_locator(FixedLocator(g["points"]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    memory = record["memory"]
    flat[-1].plot([m["steps"] for m in memory], [m["added_bytes"] / 1e6 for m in memory], "o-", color=INK, ms=4)
    most = max(m["added_bytes"] for m in memory) / 1e6
    flat[-1].set(ylabel="MB", xlabel="steps", ylim=(0, 1.25 * most))
    flat[-1].set_title("peak memory", fontsize=9, fontweight="normal")
    rounds = max(len(times) for g in panels.values() for times in g["seconds"])
    figure.supxlabel(f"median of {rounds} rounds; lines from lowest to highest", fontsize=SMALL)
    return figure
