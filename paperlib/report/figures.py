"""Every figure of the series, each drawn from records by one function that returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from paperlib.report.outcomes import BASIC, WORST
from paperlib.report.style import (
    INK,
    KINDS,
    PALE,
    SMALL,
    WIDTH,
    WRONG,
    colour_of,
    fitted,
    heading,
    label_of,
    marker_of,
    percent_axis,
    shades,
    shared_legend,
    tint,
)
from paperlib.seeds import cpu_generator, integers
from paperlib.systems.experts import EXPERT_KINDS

_EXPERTS = "expert: 0 benign, 1 to 4 FGSM, 5 to 8 PGD"


def architecture() -> Figure:
    """The mixture as the companion builds it: one image, nine experts, a gate, one answer."""
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
    ax.text(69.5, 9.5, "weights $w_0 \\ldots w_8$,\nnever zero", fontsize=8, color="0.3")
    box(88, 28, 11, 14, "answer\n$\\log p(y|x)$", "white")
    arrow((81.6, 35), (87.4, 35))
    ax.text(41.5, 59.6, "phase 1: trained one by one", ha="center", fontsize=8, color="0.3", style="italic")
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


def show_image(ax: Axes, image: Tensor, **kw: Any) -> None:
    """One image (C, H, W) in [0, 1], grey or colour, without axes."""
    pixels = image.float().cpu().permute(1, 2, 0).numpy()
    grey = pixels.shape[2] == 1
    settings = {"cmap": "gray", "vmin": 0, "vmax": 1} if grey else {}
    ax.imshow(pixels[..., 0] if grey else pixels, interpolation="nearest", **{**settings, **kw})
    ax.set_xticks([])
    ax.set_yticks([])
    sns.despine(ax=ax, left=True, bottom=True)


def image_grid(rows: Sequence[Tensor], row_titles: Sequence[str], column_titles: Sequence[str]) -> Figure:
    """A grid of images: ``rows`` are tensors (K, C, H, W); titles left of rows and above columns."""
    return _grid(rows, row_titles, column_titles, 0.0)


def _grid(rows: Sequence[Tensor], row_titles: Sequence[str], column_titles: Sequence[str], below: float) -> Figure:
    """`image_grid` with ``below`` inches of room under each image."""
    k = len(rows[0])
    margin = max(len(line) for title in row_titles for line in title.split("\n")) * 0.08
    cell = (WIDTH - margin) / k
    height = (rows[0].shape[-2] / rows[0].shape[-1] * 0.93 * cell + 0.07 + below) * len(rows)
    figure, axes = plt.subplots(len(rows), k, figsize=(WIDTH, height + 0.2 * any(column_titles)), squeeze=False)
    for line, images, title in zip(axes, rows, row_titles, strict=True):
        for ax, image in zip(line, images, strict=True):
            show_image(ax, image)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    names, size = fitted(column_titles, 0.95 * cell)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name, loc="center", fontsize=size, fontweight="normal", pad=3)
    return figure


def random_signs(images: Tensor, budgets: Sequence[Fraction], seed: int) -> list[Tensor]:
    """``images`` (K, C, H, W) with every pixel moved by exactly eps, up or down at random, once per budget."""
    generator = cpu_generator(seed)
    signs = integers(2, images.shape, generator, images.device) * 2 - 1
    return [(images + float(eps) * signs).clamp(0, 1) for eps in budgets]


def answers(arrays: dict[str, Tensor], classes: Sequence[str], facts: dict[str, Any]) -> Figure:
    """Clean and attacked images with what the system says about each; wrong answers in red."""
    budget = f"eps {facts['eps']}"
    kinds = {"clean": "clean", "fgsm": f"FGSM\n{budget}", "pgd": f"PGD-{facts['pgd_steps']}\n{budget}"}
    rows = [arrays[f"{kind}/images"] for kind in kinds]
    k = len(rows[0])
    figure = _grid(rows, list(kinds.values()), [""] * k, below=0.2)
    names, size = fitted(classes, 0.86 * WIDTH / k)
    for i, kind in enumerate(kinds):
        for j, (logits, label) in enumerate(zip(arrays[f"{kind}/logits"], arrays["labels"], strict=True)):
            said = int(logits.argmax())
            _answer(figure.axes[i * k + j], names[said], said == int(label), size)
    figure.supxlabel("below each image: the answer; where it is wrong, red and framed", fontsize=SMALL)
    return figure


def _answer(ax: Axes, text: str, right: bool, size: float) -> None:
    """An answer below its image; where it is wrong, red, and the image framed, which print without colours shows."""
    ax.set_xlabel(text, fontsize=size, labelpad=3, color="black" if right else WRONG)
    if not right:
        ax.spines[:].set(visible=True, color=WRONG, linewidth=1.8)


def class_counts(counts: dict[str, list[int]], classes: Sequence[str]) -> Figure:
    """Images per class in each split."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.5))
    order = [split for split in ("train", "validation", "test") if split in counts]
    width = 0.8 / len(order)
    for i, (split, colour) in enumerate(zip(order, reversed(shades(len(order))), strict=True)):
        places = np.arange(len(classes)) + (i - (len(order) - 1) / 2) * width
        ax.bar(places, counts[split], width, color=colour, label=f"{split}, n = {sum(counts[split])}")
    names, size = fitted(classes, 0.9 * (WIDTH - 0.7) / len(classes), 9.5)
    ax.set_xticks(range(len(classes)), names, fontsize=size)
    ax.set(title="Images per class in each split", xlabel="class", ylabel="images", xlim=(-0.5, len(classes) - 0.5))
    ax.grid(visible=False, axis="x")
    shared_legend(figure, ax)
    return figure


def _n(frame: pd.DataFrame) -> str:
    """Such as ``, n = 360``: the images behind each number, where a frame tells."""
    counts = sorted({int(n) for n in frame["n"].dropna()}) if "n" in frame else []
    return "" if not counts else f", n = {counts[0]}" + (f" to {counts[-1]}" if counts[1:] else "")


def accuracy_by_eps(frame: pd.DataFrame, title: str) -> Figure:
    """Accuracy against eps, a panel per attack, a line per system, with 95 % intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3), sharey=True)
    for ax, attack in zip(axes, ("fgsm", "pgd"), strict=True):
        part = frame[frame["attack"].isin([attack, "clean"])]
        lines_with_intervals(ax, part, "eps")
        steps = part["steps"].max()
        ax.set(title="FGSM" if attack == "fgsm" else f"PGD-{steps}", xlabel="eps (pixels in [0, 1])", ylabel="")
    axes[0].set_ylabel("accuracy [95 % interval]")
    shared_legend(figure, axes[0])
    heading(figure, title + _n(frame))
    return figure


def accuracy_by_steps(frame: pd.DataFrame, title: str) -> Figure:
    """Accuracy against the number of iterations, a line per system."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.3))
    lines_with_intervals(ax, frame, "steps")
    ax.set(
        title=title + _n(frame),
        xlabel="PGD iterations (an image is lost at the first that fools the system)",
        ylabel="accuracy [95 % interval]",
    )
    shared_legend(figure, ax)
    return figure


def lines_with_intervals(ax: Axes, frame: pd.DataFrame, x: str) -> None:
    """A line per system with its Wilson band."""
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
    """Loss and accuracy over the iterations of the headline attack, a line per system."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    for record in records:
        name = record["system"]
        every = max(1, len(record["loss"]) // 5)
        style = {"color": colour_of(name), "label": label_of(name), "lw": 1.8}
        style |= {"marker": marker_of(name), "markevery": every, "ms": 6, "mec": "white", "mew": 0.6}
        axes[0].plot(record["loss"], **style)
        axes[1].plot(record["accuracy_at_iterate"], **style)
    axes[0].set(title="What the attack climbs", xlabel="iteration", ylabel="mean cross-entropy (nats)")
    told = "What is left" + _n(pd.DataFrame({"n": [record["n"] for record in records]}))
    axes[1].set(title=told, xlabel="iteration", ylabel="accuracy at this iterate", ylim=(-0.02, 1.02))
    percent_axis(axes[1].yaxis)
    shared_legend(figure, axes[0])
    return figure


def expert_heatmap(frame: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Accuracy of every expert (rows) under every attack (columns)."""
    table = frame.pivot(index="system", columns="column", values="accuracy")[list(dict.fromkeys(frame["column"]))]
    kinds = dict(zip(frame["system"], frame["kind"], strict=True))
    figure, ax = plt.subplots(figsize=(WIDTH, 0.33 * len(table) + 0.7))
    sns.heatmap(
        100 * table, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="cividis", ax=ax, cbar=False, lw=0.8, linecolor="w"
    )
    ax.set(xlabel="", ylabel="expert", title=f"Accuracy in % of the experts, one by one{_n(frame)}")
    ax.set_yticklabels([names[name] for name in table.index], rotation=0)
    for label, system in zip(ax.get_yticklabels(), table.index, strict=True):
        label.set_color(_ink(KINDS[kinds[system]]))
    return figure


def _ink(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """A colour dark enough for letters."""
    red, green, blue = (0.6 * part for part in colour)
    return red, green, blue


def expert_curves(frame: pd.DataFrame) -> Figure:
    """Validation accuracy by epoch, a panel per expert kind: clean, FGSM and PGD; the mean over a faint line each."""
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
            ax.plot(mean.index + 1, mean, line, color=_ink(KINDS[kind]), lw=2)
        ax.set(title=f"{len(members)} {kind} expert{'s'[: len(members) - 1]}", xlabel="epoch", ylim=(-0.02, 1.02))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        percent_axis(ax.yaxis)
    axes[0].set_ylabel("validation accuracy")
    handles = [Line2D([], [], color=INK, ls=line, lw=2, label=f"under {name}") for line, name in styles.values()]
    handles[0].set_label("on clean images")
    handles.append(Line2D([], [], color=PALE, lw=0.8, label="one expert; thick: their mean"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def curves(frame: pd.DataFrame, systems: Sequence[str]) -> Figure:
    """Loss and validation PGD accuracy by epoch, a line per system; the kept epoch is ringed."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    for system in systems:
        part = frame[frame["system"] == system]
        colour = colour_of(system)
        style = {"color": colour, "marker": marker_of(system), "ms": 6, "mec": "white", "mew": 0.6}
        axes[0].plot(part["epoch"] + 1, part["loss"], label=label_of(system), lw=1.8, **style)
        axes[1].plot(part["epoch"] + 1, part["pgd"], lw=1.8, **style)
        axes[1].plot(part["epoch"] + 1, part["clean"], ls=":", lw=1.4, **style)
        kept = part[part["epoch"] == part["best"]]
        axes[1].plot(kept["epoch"] + 1, kept["pgd"], "o", ms=12, mfc="none", mec=colour, mew=1.4)
    axes[0].set(title="Training loss", xlabel="epoch of phase 2", ylabel="cross-entropy (nats)")
    axes[1].set(title="Validation accuracy", xlabel="epoch of phase 2", ylabel="accuracy", ylim=(-0.02, 1.04))
    percent_axis(axes[1].yaxis)
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = axes[0].get_legend_handles_labels()[0]
    handles += [Line2D([], [], color=INK, ls=":", lw=1.4, label="clean"), Line2D([], [], color=INK, label="under PGD")]
    handles.append(Line2D([], [], ls="none", marker="o", ms=9, mfc="none", mec=INK, label="kept epoch"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8.5, columnspacing=1.2)
    return figure


def main_figure(frame: pd.DataFrame, seeds: pd.DataFrame | None = None) -> Figure:
    """The main table as bars with Wilson intervals, a panel per attack; dots are other seeds where given."""
    systems = list(dict.fromkeys(frame["system"]))
    columns = [name for name in dict.fromkeys(frame["column"]) if not name.endswith("soft") and name != BASIC]
    columns.sort(key=lambda name: name.startswith(WORST))  # the headline last
    figure, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 0.26 * len(systems) + 1.5), sharey=True, squeeze=False)
    positions = np.arange(len(systems))
    colours = [colour_of(system) for system in systems]
    absent = False
    for ax, name in zip(axes[0], columns, strict=True):
        found = frame[frame["column"] == name]
        part = found.set_index("system").reindex(systems)
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
        for artist in drawn:  # whole at 0 and 100 %, without the layout making room
            artist.set(clip_on=False, in_layout=False)
        told = name.replace(", ", "\n") if ", n = " in name else name + _n(found).replace(", ", "\n")
        ax.set(xlim=(0, 1), yticks=positions, yticklabels=[label_of(system) for system in systems])
        ax.set_title(told, fontsize=9)
        ax.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        for label, side in zip(ax.get_xticklabels(), ("left", "center", "right"), strict=True):
            label.set_horizontalalignment(side)
        ax.grid(visible=False, axis="y")
        ax.set_ylim(len(systems) - 0.4, -0.6)
    told = "accuracy in %, with Wilson 95 % intervals"
    told += "; circles: each seed" if seeds is not None else ""
    figure.supxlabel(told + ("; \N{EN DASH}: not run" if absent else ""), fontsize=9)
    return figure


def forest(frame: pd.DataFrame, labels: dict[str, str], title: str, xlabel: str) -> Figure:
    """Differences with their intervals, one line each, by claim where named; those that exclude zero are filled."""
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
            clear = row["low"] > 0 or row["high"] < 0
            colour = INK if clear else PALE
            ax.plot([100 * row["low"], 100 * row["high"]], [i, i], color=colour, lw=2, solid_capstyle="butt")
            ax.plot(100 * row["difference"], i, "o", ms=6, color=colour, mfc=colour if clear else "white", mew=1.4)
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


def growth(frame: pd.DataFrame, arithmetic: Sequence[float]) -> Figure:
    """Cost against the number of experts: phase 2's passes beside the recipe's arithmetic, and an answer's."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    experts = frame["experts"]
    counted = {"color": colour_of("dwf"), "marker": "o", "ls": "none", "ms": 7, "label": "counted"}
    axes[0].plot(experts, arithmetic, color=PALE, lw=1.2, label="arithmetic of the recipe")
    axes[0].plot(experts, frame["phase 2, units an epoch"], **counted)
    axes[0].set(title="Training: phase 2, per epoch", ylabel="clean epochs of one ResNet-18")
    axes[1].plot(experts, experts, color=PALE, lw=1.2, label="one ResNet-18 each")
    axes[1].plot(experts, frame["inference cost"], **counted)
    axes[1].set(title="One answer", ylabel="answers of one ResNet-18")
    for ax in axes:
        ax.set(xlabel="experts", xticks=list(experts), xlim=(0, None), ylim=(0, None))
        ax.legend(fontsize=8.5, loc="upper left", frameon=True, framealpha=1, edgecolor="none")
    return figure


def routes(shares: pd.DataFrame) -> Figure:
    """Mean gate weight or share of images per expert, a panel per system, clean beside attacked."""
    systems, names = (list(dict.fromkeys(shares[column])) for column in ("system", "attack"))
    across, top = min(4, max(2, len(systems))), shares["weight"].max()
    half = max(4, shares["expert"].max()) / 2 + 0.6
    rows = -(-len(systems) // across)
    figure, axes = plt.subplots(rows, across, figsize=(WIDTH, 1.65 * rows + 0.7), sharey=True, squeeze=False)
    colours, width = shades(len(names)), 0.8 / len(names)
    titles, size = fitted([label_of(system) for system in systems], (WIDTH - 0.8) / across, 9)
    for i, (ax, system) in enumerate(zip(axes.flatten(), systems, strict=False)):
        for j, (name, colour) in enumerate(zip(names, colours, strict=True)):
            part = shares[(shares["system"] == system) & (shares["attack"] == name)]
            ax.bar(part["expert"] + (j - (len(names) - 1) / 2) * width, part["weight"], width, color=colour)
        of_system = sorted({int(expert) for expert in shares[shares["system"] == system]["expert"]})
        middle = (of_system[0] + of_system[-1]) / 2
        ax.set(xlim=(middle - half, middle + half), xticks=of_system)  # bars are as wide in every panel
        ax.set_ylim(0, min(1, 1.1 * top))
        ax.set_title(titles[i], fontsize=size, fontweight="normal")
        ax.grid(visible=False, axis="x")
        ax.tick_params(labelsize=SMALL, pad=1)
        percent_axis(ax.yaxis)
        ax.set_xlabel("expert" if i + across >= len(systems) else "", fontsize=9)
    for line in axes:
        line[0].set_ylabel("mean weight", fontsize=9)
    for ax in axes.flatten()[len(systems) :]:
        ax.axis("off")
    handles = [Patch(color=colour) for colour in colours]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8.5)
    return figure


def gate_by_attack(frame: pd.DataFrame, title: str) -> Figure:
    """Stacked mean gate weights against eps, a panel per attack."""
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
    """Mean gate weight by class (rows) and expert (columns), a panel per attack."""
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
            tick.set_color(_ink(colour))
    axes[0, 0].set_ylabel("class")
    figure.supxlabel(_EXPERTS, fontsize=9)
    return figure


def gate_cases(
    arrays: dict[str, Tensor], classes: Sequence[str], facts: dict[str, Any], chosen: Sequence[int]
) -> Figure:
    """For a few images: the picture and the gate weights, clean and under attack."""
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
    said, size = fitted(classes, 0.85, SMALL)
    for line, i in zip(axes, chosen, strict=True):
        for j, kind in enumerate(kinds):
            picture, bars = line[2 * j], line[2 * j + 1]
            show_image(picture, arrays[f"{kind}/images"][i])
            answer, truth = int(arrays[f"{kind}/logits"][i].argmax()), int(arrays["labels"][i])
            _answer(picture, said[answer], answer == truth, size)
            weights = arrays[f"{kind}/gate_weights"][i]
            bars.bar(range(len(weights)), weights, color=expert_colours(), width=0.85)
            bars.set(ylim=(0, 1), xticks=range(len(weights)), yticks=[0, 0.5, 1])
            bars.set_yticklabels(["0", "50 %", "100 %"] if j == 0 else [])
            bars.tick_params(labelsize=7, pad=0)
            bars.grid(visible=False, axis="x")
            if i == chosen[0]:
                bars.set_title(kinds[kind], fontsize=9)
    told = "below each image: the answer; where it is wrong, red and framed"
    figure.supxlabel(f"gate weight by {_EXPERTS}\n{told}", fontsize=SMALL)
    return figure


def expert_colours() -> list[tuple[float, float, float]]:
    """Nine shades: the colour of the expert's kind, lighter within it."""
    found = []
    for i, kind in enumerate(EXPERT_KINDS):
        white = 0.16 * EXPERT_KINDS[:i].count(kind)
        found.append(tint(KINDS[kind], white))
    return found
