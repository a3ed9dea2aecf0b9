"""Figures of the stress tests: what each kind of attack took, every attack on one system, controls against checks."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter

from paperlib.report.outcomes import WORST
from paperlib.report.style import LABELS, WIDTH

# Kinds of attack as a reader meets them, each with the families of `paperlib.report.stress` it holds.
LAYERS = {
    "left": (WORST,),
    "AutoAttack, who faces it": ("AutoAttack",),
    "transfer, noise": ("transfer", "noise"),
    "made for mixtures": ("experts", "gate", "past the gate"),
    "through a hard choice": ("hard choice",),
    "longer PGD, other losses": ("other losses", "longer PGD"),
    "PGD": ("PGD",),
    "FGSM": ("FGSM",),
    "wrong when clean": ("clean",),
}


def layers(table: pd.DataFrame, pgd: str, title: str) -> Figure:
    """A bar per system: what is left in the worst case, and which kind of attack took the rest, in their order."""
    colours = sns.color_palette("colorblind", 10)
    chosen = [(0.1, 0.1, 0.1), colours[3], colours[7], colours[4], colours[1], colours[8], colours[9]]
    shades = [*chosen, (0.88, 0.88, 0.88), (0.96, 0.96, 0.96)]
    figure, ax = plt.subplots(figsize=(WIDTH, 0.27 * len(table) + 1.5))
    start = pd.Series(0.0, index=table.index)
    names = [LABELS.get(str(name), str(name)) for name in table.index]
    for (label, families), colour in zip(LAYERS.items(), shades, strict=True):
        share = table[list(families)].sum(axis=1)
        ax.barh(names, share, left=start, color=colour, edgecolor="white", linewidth=0.5, label=label, height=0.75)
        start = start + share
    printed = 1 - table[["clean", "FGSM", "PGD"]].sum(axis=1)
    ax.scatter(
        printed, names, marker="|", s=130, color="black", linewidth=1.8, zorder=3, label=f"left by FGSM and {pgd}"
    )
    ax.set(title=title, xlim=(0, 1), ylim=(len(table) - 0.4, -0.6), xlabel="share of the images")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="y", visible=False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    return figure


def every_attack(table: pd.DataFrame, title: str) -> Figure:
    """A row per attack on one system: accuracy with its interval, and the worst case of all as a line."""
    order = table.sort_values("accuracy", ascending=False)
    families = list(dict.fromkeys(table["family"]))
    palette = dict(zip(families, sns.color_palette("colorblind", 10) + sns.color_palette("dark", 3), strict=False))
    figure, ax = plt.subplots(figsize=(WIDTH, 0.2 * len(order) + 1.2))
    rows = range(len(order))
    for row, (_, found) in zip(rows, order.iterrows(), strict=True):
        colour = palette[found["family"]]
        ax.plot([found["low"], found["high"]], [row, row], color=colour, lw=1.2)
        ax.plot(found["accuracy"], row, "o", color=colour, ms=4.5)
    worst = table["left"].iloc[-1] / table["n"].iloc[-1]
    ax.axvline(worst, color="black", lw=1.2, ls="--")
    ax.text(worst + 0.008, 0.5, f"worst case {100 * worst:.1f} %", ha="left", va="center", fontsize=8)
    ax.set_yticks(list(rows), [name.partition("@")[0] for name in order.index], fontsize=7.5)
    ax.set(title=title, ylim=(len(order) - 0.4, -0.6), xlabel="accuracy [95 % interval]")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    handles = [Patch(color=colour, label=name) for name, colour in palette.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7.5)
    return figure


def control_matrix(table: pd.DataFrame, expected: dict[str, str], title: str) -> Figure:
    """Controls against checks: fired, noted, passed or not asked; a frame where a check must fire."""
    marks = {"": 0, ".": 1, "n": 2, "F": 3}
    values = table.map(lambda mark: marks[mark.strip("[]")]).astype(int)
    shown = values.columns[(values > 0).any()]
    values = values[shown]
    colours = [(1.0, 1.0, 1.0), (0.88, 0.93, 0.96), sns.color_palette("colorblind")[8], (0.84, 0.37, 0.0)]
    figure, ax = plt.subplots(figsize=(WIDTH, 0.28 * len(values) + 1.7))
    sns.heatmap(
        values, cmap=ListedColormap(colours), vmin=0, vmax=3, cbar=False, linewidths=1, linecolor="white", ax=ax
    )
    for row, control in enumerate(values.index):
        if expected.get(str(control)) in shown:
            column = list(shown).index(expected[str(control)])
            ax.add_patch(Rectangle((column, row), 1, 1, fill=False, ec="black", lw=1.8, clip_on=False))
    ax.set(title=title, xlabel="", ylabel="")
    ax.tick_params(axis="x", labelrotation=60, labelsize=7.5)
    ax.tick_params(axis="y", labelsize=8)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    named = zip(("not asked", "passed", "noted", "fired"), colours, strict=True)
    handles = [Patch(facecolor=colour, edgecolor="0.6", label=name) for name, colour in named]
    handles.append(Patch(facecolor="white", edgecolor="black", linewidth=1.8, label="must fire"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
    return figure
