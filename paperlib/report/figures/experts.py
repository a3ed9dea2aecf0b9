"""Figures of the nine experts."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paperlib.report.figures.accuracy import n_text
from paperlib.report.style import INK, KINDS, PALE, WIDTH, Colour, percent_axis, tint
from paperlib.systems.experts import EXPERT_KINDS

EXPERT_NUMBERS = "expert: 0 benign, 1 to 4 FGSM, 5 to 8 PGD"


def expert_heatmap(frame: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Accuracy of every expert (rows) under every attack (columns)."""
    table = frame.pivot(index="system", columns="column", values="accuracy")[list(dict.fromkeys(frame["column"]))]
    kinds = dict(zip(frame["system"], frame["kind"], strict=True))
    figure, ax = plt.subplots(figsize=(WIDTH, 0.33 * len(table) + 0.7))
    sns.heatmap(
        100 * table, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="cividis", ax=ax, cbar=False, lw=0.8, linecolor="w"
    )
    ax.set(xlabel="", ylabel="expert", title=f"Accuracy in % of each expert alone{n_text(frame)}")
    ax.set_yticklabels([names[name] for name in table.index], rotation=0)
    for label, system in zip(ax.get_yticklabels(), table.index, strict=True):
        label.set_color(darker(KINDS[kinds[system]]))
    return figure


def darker(colour: Colour, share: float = 0.6) -> Colour:
    """A share of a colour's brightness: dark enough for letters."""
    red, green, blue = (share * part for part in colour)
    return red, green, blue


def expert_curves(frame: pd.DataFrame) -> Figure:
    """Validation accuracy by epoch under no attack, FGSM and PGD, a panel for each kind of expert.

    A pale line for each expert, and a thick one for their mean.
    """
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.0), sharey=True)
    styles = {"clean": (":", "clean"), "fgsm": ("--", "FGSM"), "pgd": ("-", "PGD")}
    for ax, kind in zip(axes, KINDS, strict=True):
        members = [f"expert-{i}" for i, k in enumerate(EXPERT_KINDS) if k == kind]
        of_kind = frame[frame["system"].isin(members)]
        for measure, (line, _) in styles.items():
            if len(members) > 1:
                for _, part in of_kind.groupby("system"):
                    ax.plot(part["epoch"] + 1, part[measure], line, color=KINDS[kind], lw=0.8, alpha=0.45)
            mean = of_kind.groupby("epoch")[measure].mean()
            ax.plot(mean.index + 1, mean, line, color=darker(KINDS[kind]), lw=2)
        ax.set(title=f"{len(members)} {kind} expert{'s'[: len(members) - 1]}", xlabel="epoch", ylim=(-0.02, 1.02))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        percent_axis(ax.yaxis)
    axes[0].set_ylabel("validation accuracy")
    handles = [Line2D([], [], color=INK, ls=line, lw=2, label=f"under {name}") for line, name in styles.values()]
    handles[0].set_label("on clean images")
    handles.append(Line2D([], [], color=PALE, lw=0.8, label="one expert (thick: mean)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def expert_colours() -> list[Colour]:
    """Nine colours: that of the expert's kind, paler for each further expert of the kind."""
    return [tint(KINDS[kind], 0.16 * EXPERT_KINDS[:i].count(kind)) for i, kind in enumerate(EXPERT_KINDS)]
