"""Figures of gate weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from paperlib.report.figures.experts import EXPERT_NUMBERS, darker, expert_colours
from paperlib.report.figures.images import PREDICTION_NOTE, show_image, show_prediction
from paperlib.report.style import SMALL, WIDTH, fit_labels, heading, label_of, percent_axis, shades
from paperlib.systems.experts import EXPERT_KINDS


def routes(shares: pd.DataFrame) -> Figure:
    """Mean gate weight of each expert, a panel for each system, clean and attacked.

    With hard routing the mean weight is the expert's share of the images.
    """
    systems, names = (list(dict.fromkeys(shares[column])) for column in ("system", "attack"))
    columns, top = min(4, max(2, len(systems))), shares["weight"].max()
    half = max(4, shares["expert"].max()) / 2 + 0.6
    rows = -(-len(systems) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 1.65 * rows + 0.7), sharey=True, squeeze=False)
    colours, width = shades(len(names)), 0.8 / len(names)
    titles, size = fit_labels([label_of(system) for system in systems], (WIDTH - 0.8) / columns, 9)
    for i, (ax, system) in enumerate(zip(axes.flatten(), systems, strict=False)):
        for j, (name, colour) in enumerate(zip(names, colours, strict=True)):
            part = shares[(shares["system"] == system) & (shares["attack"] == name)]
            ax.bar(part["expert"] + (j - (len(names) - 1) / 2) * width, part["weight"], width, color=colour)
        of_system = sorted({int(expert) for expert in shares[shares["system"] == system]["expert"]})
        middle = (of_system[0] + of_system[-1]) / 2
        ax.set(xlim=(middle - half, middle + half), xticks=of_system)  # the same width of bars in every panel
        ax.set_ylim(0, min(1, 1.1 * top))
        ax.set_title(titles[i], fontsize=size, fontweight="normal")
        ax.grid(visible=False, axis="x")
        ax.tick_params(labelsize=SMALL, pad=1)
        percent_axis(ax.yaxis)
        ax.set_xlabel("expert" if i + columns >= len(systems) else "", fontsize=9)
    for line in axes:
        line[0].set_ylabel("mean weight", fontsize=9)
    for ax in axes.flatten()[len(systems) :]:
        ax.axis("off")
    handles = [Patch(color=colour) for colour in colours]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8.5)
    return figure


def gate_by_attack(frame: pd.DataFrame, title: str) -> Figure:
    """Stacked mean gate weights against eps, a panel for each attack."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3), sharey=True)
    clean = frame[frame["attack"] == "clean"]
    colours = expert_colours()
    for ax, attack in zip(axes, ("fgsm", "pgd"), strict=True):
        part = pd.concat([clean, frame[frame["attack"] == attack]])
        table = part.pivot(index="eps", columns="expert", values="weight").loc[list(dict.fromkeys(part["eps"]))]
        bottom = np.zeros(len(table))
        for expert in range(len(EXPERT_KINDS)):
            ax.bar(
                table.index,
                table[expert],
                bottom=bottom,
                color=colours[expert],
                width=0.85,
                ec="white",
                lw=0.6,
                label=f"{expert} {EXPERT_KINDS[expert]}",
            )
            bottom += table[expert].to_numpy()
        name = f"PGD-{part['steps'].iloc[0]}" if attack == "pgd" else "FGSM"
        ax.set(title=f"under {name}", xlabel="eps (pixels in [0, 1])", ylim=(0, 1))
        ax.grid(visible=False)
        percent_axis(ax.yaxis)
    axes[0].set_ylabel("mean gate weight")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", title="expert", fontsize=8.5)
    heading(figure, title)
    return figure


def gate_by_class(weights: dict[str, Tensor], labels: Tensor, classes: Sequence[str]) -> Figure:
    """Mean gate weight by class (rows) and expert (columns), a panel for each attack."""
    present = labels.unique()
    figure, axes = plt.subplots(1, len(weights), figsize=(WIDTH, 0.27 * len(present) + 0.9), sharey=True, squeeze=False)
    tables = {name: [w[labels == c].float().mean(dim=0).numpy() for c in present] for name, w in weights.items()}
    top = max(float(np.max(t)) for t in tables.values())
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        last = ax is axes[0, -1]
        sns.heatmap(
            100 * np.stack(table),
            vmin=0,
            vmax=100 * top,
            cmap="cividis",
            rasterized=True,  # a path for each cell would make a large SVG
            ax=ax,
            cbar=last,
            yticklabels=[classes[int(c)] for c in present],
            cbar_kws={"label": "mean gate weight (%)"} if last else None,
        )
        ax.set_title(f"{name}, n = {len(labels)}" if ax is axes[0, 0] else name, fontsize=9)
        ax.tick_params(axis="y", rotation=0)
        for tick, colour in zip(ax.get_xticklabels(), expert_colours(), strict=False):
            tick.set_color(darker(colour))
    axes[0, 0].set_ylabel("class")
    figure.supxlabel(EXPERT_NUMBERS, fontsize=9)
    return figure


def gate_cases(
    arrays: dict[str, Tensor], classes: Sequence[str], facts: dict[str, Any], chosen: Sequence[int]
) -> Figure:
    """The ``chosen`` images with their gate weights, clean and under FGSM and PGD."""
    kinds = {
        "clean": "clean",
        "fgsm": f"FGSM, eps {facts['eps']}",
        "pgd": f"PGD-{facts['pgd_steps']}, eps {facts['eps']}",
    }
    figure, axes = plt.subplots(
        len(chosen),
        2 * len(kinds),
        figsize=(WIDTH, 1.2 * len(chosen) + 0.5),
        width_ratios=[1, 1.6] * len(kinds),
        squeeze=False,
    )
    names, size = fit_labels(classes, 0.85, SMALL)
    for line, i in zip(axes, chosen, strict=True):
        for j, kind in enumerate(kinds):
            picture, bars = line[2 * j], line[2 * j + 1]
            show_image(picture, arrays[f"{kind}/images"][i])
            predicted, label = int(arrays[f"{kind}/logits"][i].argmax()), int(arrays["labels"][i])
            show_prediction(picture, names[predicted], predicted == label, size)
            weights = arrays[f"{kind}/gate_weights"][i]
            bars.bar(range(len(weights)), weights, color=expert_colours(), width=0.85)
            bars.set(ylim=(0, 1), xticks=range(len(weights)), yticks=[0, 0.5, 1])
            bars.set_yticklabels(["0", "50 %", "100 %"] if j == 0 else [])
            bars.tick_params(labelsize=7, pad=0)
            bars.grid(visible=False, axis="x")
            if i == chosen[0]:
                bars.set_title(kinds[kind], fontsize=9)
    figure.supxlabel(f"gate weight by {EXPERT_NUMBERS}\n{PREDICTION_NOTE}", fontsize=SMALL)
    return figure
