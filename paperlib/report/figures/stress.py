"""Figures of the stress tests: errors by kind of attack, every attack on one system, controls against checks."""

from __future__ import annotations

import re
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from paperlib.report.outcomes import WORST_CASE
from paperlib.report.style import INK, KINDS, PALE, SMALL, WIDTH, heading, label_of, percent_axis, tint

# Kinds of attack with the families of `paperlib.report.tables.stress` that they contain; the first is no attack.
LAYERS = {
    "correct under all attacks": (WORST_CASE,),
    "AutoAttack (selected systems)": ("AutoAttack",),
    "transfer, noise": ("transfer", "noise"),
    "on gate or experts": ("experts", "gate", "gate bypassed"),
    "surrogate of hard routing": ("surrogate",),
    "longer PGD, other losses": ("other losses", "longer PGD"),
    "PGD": ("PGD",),
    "FGSM": ("FGSM",),
    "clean (misclassified without attack)": ("clean",),
}
# FGSM and PGD have pale shades of the colours of their experts; neighbours differ in lightness too, for print in grey.
_SAFE = sns.color_palette("colorblind", 10)
_SHADES = (
    (0.1, 0.1, 0.1),
    _SAFE[3],
    _SAFE[7],
    _SAFE[0],
    _SAFE[8],
    KINDS["PGD"],
    tint(KINDS["PGD"], 0.6),
    tint(KINDS["FGSM"], 0.75),
    (0.95, 0.95, 0.95),
)
COLOURS = dict(zip(LAYERS, _SHADES, strict=True))


def layers(table: pd.DataFrame, pgd: str, title: str) -> Figure:
    """A bar for each system: the worst case, then the errors that each kind of attack adds, the simplest last."""
    figure, ax = plt.subplots(figsize=(WIDTH, 0.27 * len(table) + 1.6))
    start = pd.Series(0.0, index=table.index)
    names = [label_of(str(name)) for name in table.index]
    for label, families in LAYERS.items():
        share = table[list(families)].sum(axis=1)
        ax.barh(names, share, left=start, color=COLOURS[label], ec="white", lw=0.6, height=0.75)
        start = start + share
    basic = 1 - table[["clean", "FGSM", "PGD"]].sum(axis=1)
    mark: dict[str, Any] = {"marker": "|", "s": 150, "linewidth": 2, "zorder": 3, "clip_on": False}
    marks = ax.scatter(basic, names, color="black", label=f"correct under FGSM and {pgd}", **mark)
    ax.set(xlim=(0, 1), ylim=(len(table) - 0.4, -0.6), xlabel="share of the images")
    percent_axis(ax.xaxis)
    ax.grid(axis="y", visible=False)
    handles = [Patch(fc=COLOURS[label], ec=PALE, lw=0.6, label=label) for label in LAYERS]  # edged: the last is pale
    figure.legend(handles=[*handles, marks], loc="outside lower center", ncols=3, fontsize=SMALL)
    heading(figure, title)
    return figure


def every_attack(table: pd.DataFrame, title: str) -> Figure:
    """A row for each attack on one system: accuracy with its interval; the worst case is a line."""
    order = table.sort_values("accuracy", ascending=False, kind="stable")
    layer_of = {family: layer for layer, families in LAYERS.items() for family in families}
    figure, ax = plt.subplots(figsize=(WIDTH, 0.2 * len(order) + 1.4))
    rows = range(len(order))
    for row, (_, attack) in zip(rows, order.iterrows(), strict=True):
        ax.plot([attack["low"], attack["high"]], [row, row], color=PALE, lw=1.2, solid_capstyle="butt")
        ax.plot(attack["accuracy"], row, "o", color=COLOURS[layer_of[attack["family"]]], mec=INK, mew=0.8, ms=6)
    worst = table["remaining"].iloc[-1] / table["n"].iloc[-1]
    ax.axvline(worst, color="black", lw=1.2, ls="--")
    ax.text(worst + 0.008, -0.85, f"worst case {100 * worst:.1f} %", ha="left", va="center", fontsize=SMALL)
    ax.set_yticks(list(rows), [attack_label(str(name)) for name in order.index], fontsize=SMALL)
    ax.set(ylim=(len(order) - 0.4, -1.3), xlabel="accuracy [95 % interval]")
    ax.grid(axis="y", color="0.93")  # paler than the intervals
    percent_axis(ax.xaxis)
    present = [layer for layer in LAYERS if layer in {layer_of[family] for family in table["family"]}]
    handles = [Patch(facecolor=COLOURS[layer], edgecolor=INK, label=layer.split(" (")[0]) for layer in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=SMALL)
    heading(figure, title)
    return figure


def attack_label(name: str) -> str:
    """``pgd-50-gate-to-worst@0.15`` as ``PGD-50, gate to worst``."""
    kind, dash, rest = name.partition("@")[0].partition("-")
    if kind != "pgd":
        return {"fgsm": "FGSM", "autoattack": "AutoAttack"}.get(kind, kind) + dash + rest
    steps, dash, objective = rest.partition("-")
    if match := re.fullmatch(r"transfer-(.+?)(-\d+)?", objective):
        source, number = match.groups()
        objective = f"transfer from {label_of(source)}{(number or '').replace('-', ', ')}"
    else:
        objective = objective.replace("dlr", "DLR").replace("-", " ")
    return f"PGD-{steps}{dash and ', '}{objective}"


def control_matrix(table: pd.DataFrame, expected: dict[str, str], title: str) -> Figure:
    """Controls against checks: failed, noted, passed or not applicable; a frame where a check must fail."""
    marks, letters = {"": 0, ".": 1, "n": 2, "F": 3}, ("", "", "n", "F")
    values = table.map(lambda mark: marks[mark.strip("[]")]).astype(int)
    checks = values.columns[(values > 0).any()]
    values = values[checks]
    colours = [(1.0, 1.0, 1.0), (0.88, 0.93, 0.96), _SAFE[8], _SAFE[3]]
    figure, ax = plt.subplots(figsize=(WIDTH, 0.28 * len(values) + 1.7))
    sns.heatmap(
        values, cmap=ListedColormap(colours), vmin=0, vmax=3, cbar=False, linewidths=1, linecolor="white", ax=ax
    )
    for row, control in enumerate(values.index):
        for column, value in enumerate(values.loc[control]):  # letters, for print in grey
            if letters[value]:
                ax.text(column + 0.5, row + 0.5, letters[value], ha="center", va="center", fontsize=SMALL, color="k")
        if expected.get(str(control)) in checks:
            column = list(checks).index(expected[str(control)])
            ax.add_patch(Rectangle((column, row), 1, 1, fill=False, ec="black", lw=1.8, clip_on=False))
    ax.set(xlabel="check", ylabel="network")
    ax.tick_params(axis="x", labelrotation=60, labelsize=SMALL)
    ax.tick_params(axis="y", labelsize=SMALL)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    verdicts = zip(("not applicable", "passed", "noted (n)", "failed (F)"), colours, strict=True)
    handles = [Patch(facecolor=colour, edgecolor="0.6", label=name) for name, colour in verdicts]
    handles.append(Patch(facecolor="white", edgecolor="black", linewidth=1.8, label="must fail"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=SMALL)
    heading(figure, title)
    return figure
