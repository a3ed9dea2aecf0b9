"""The main table as a figure, and differences with their intervals."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from paperlib.report.figures.accuracy import n_text
from paperlib.report.outcomes import PGD_WORST_CASE, WORST_CASE
from paperlib.report.style import INK, PALE, SMALL, WIDTH, colour_of, heading, label_of


def main_figure(frame: pd.DataFrame, seeds: pd.DataFrame | None = None) -> Figure:
    """The main table as bars with Wilson intervals, a panel for each attack; circles are the rows of ``seeds``."""
    systems = list(dict.fromkeys(frame["system"]))
    columns = [name for name in dict.fromkeys(frame["column"]) if not name.endswith("soft") and name != PGD_WORST_CASE]
    columns.sort(key=lambda name: name.startswith(WORST_CASE))  # the headline last
    figure, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 0.26 * len(systems) + 1.5), sharey=True, squeeze=False)
    positions = np.arange(len(systems))
    colours = [colour_of(system) for system in systems]
    absent = False
    for ax, name in zip(axes[0], columns, strict=True):
        rows = frame[frame["column"] == name]
        part = rows.set_index("system").reindex(systems)
        errors = np.stack([part["accuracy"] - part["low"], part["high"] - part["accuracy"]])
        ax.barh(positions, part["accuracy"], color=colours, height=0.7)
        bars = ax.errorbar(part["accuracy"], positions, xerr=errors, fmt="none", ecolor=INK, lw=1, capsize=2)
        drawn: list[Artist] = [*bars.lines[1], *bars.lines[2]]
        for position in positions[part["accuracy"].isna()]:
            ax.text(0.03, position, "\N{EN DASH}", va="center", color=PALE, fontsize=9)
            absent = True
        if seeds is not None:
            for position, system in zip(positions, systems, strict=True):
                values = seeds[(seeds["column"] == name) & (seeds["system"] == system)]["accuracy"]
                places = np.full(len(values), position)
                drawn += ax.plot(values, places, "o", ms=3.5, mfc="white", mec=INK, mew=0.8)
        for artist in drawn:  # drawn in full at 0 and 100 %, ignored by the layout
            artist.set(clip_on=False, in_layout=False)
        title = name.replace(", ", "\n") if ", n = " in name else name + n_text(rows).replace(", ", "\n")
        ax.set(xlim=(0, 1), yticks=positions, yticklabels=[label_of(system) for system in systems])
        ax.set_title(title, fontsize=9)
        ax.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        for label, side in zip(ax.get_xticklabels(), ("left", "center", "right"), strict=True):
            label.set_horizontalalignment(side)
        ax.grid(visible=False, axis="y")
        ax.set_ylim(len(systems) - 0.4, -0.6)
    note = "accuracy in %, with Wilson 95 % intervals"
    note += "; circles: each seed" if seeds is not None else ""
    figure.supxlabel(note + ("; \N{EN DASH}: not run" if absent else ""), fontsize=9)
    return figure


def forest(frame: pd.DataFrame, labels: dict[str, str], title: str, xlabel: str) -> Figure:
    """Differences with their intervals, one line each, grouped by ``claim`` if the frame has it.

    Intervals that exclude zero are dark, and their points filled.
    """
    lines: list[tuple[str, dict[Any, Any]]] = []
    claim = None
    for name, row in zip(frame.index, frame.to_dict("records"), strict=True):
        if row.get("claim") != claim:
            claim = row["claim"]
            lines.append((str(claim), {}))
        lines.append((labels.get(str(name), _compared(str(name))), row))
    figure, ax = plt.subplots(figsize=(WIDTH, (0.27 if claim is None else 0.22) * len(lines) + 1.2))
    for i, (_, row) in enumerate(lines):
        if row:
            excludes_zero = row["low"] > 0 or row["high"] < 0
            colour = INK if excludes_zero else PALE
            ax.plot([100 * row["low"], 100 * row["high"]], [i, i], color=colour, lw=2, solid_capstyle="butt")
            ax.plot(
                100 * row["difference"], i, "o", ms=6, color=colour, mfc=colour if excludes_zero else "white", mew=1.4
            )
        elif i:
            ax.axhline(i - 0.5, color="0.85", lw=0.8)
    ax.axvline(0, color=INK, lw=0.9, ls="--")
    ax.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=9 if claim is None else SMALL)
    for tick, (_, row) in zip(ax.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("normal" if row else "bold")
    ax.set_xlabel(xlabel, fontsize=9, loc="right")
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    heading(figure, title)
    return figure


def _compared(name: str) -> str:
    """``dwf - soe, FGSM`` with the systems' labels."""
    systems, comma, column = name.partition(", ")
    return " \N{MINUS SIGN} ".join(label_of(system) for system in systems.split(" - ")) + comma + column
