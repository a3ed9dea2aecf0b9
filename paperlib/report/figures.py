"""Every figure of the series, each drawn from records by one function that returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from paperlib.report.outcomes import BASIC, WORST
from paperlib.report.style import KINDS, LABELS, MARKERS, WIDTH, colour_of
from paperlib.training.recipes import EXPERT_KINDS


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
    k = len(rows[0])
    figure, axes = plt.subplots(len(rows), k, figsize=(WIDTH, WIDTH / k * len(rows) * 1.06 + 0.25), squeeze=False)
    for line, images, title in zip(axes, rows, row_titles, strict=True):
        for ax, image in zip(line, images, strict=True):
            show_image(ax, image)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    for ax, title in zip(axes[0], column_titles, strict=True):
        ax.set_title(title, loc="center", fontsize=8.5, fontweight="normal")
    return figure


def random_signs(images: Tensor, budgets: Sequence[Fraction], seed: int) -> list[Tensor]:
    """``images`` (K, C, H, W) with every pixel moved by exactly eps, up or down at random, once per budget."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    return [(images + float(eps) * signs).clamp(0, 1) for eps in budgets]


def answers(arrays: dict[str, Tensor], classes: Sequence[str], facts: dict[str, Any]) -> Figure:
    """Clean and attacked images with what the system says about each; wrong answers in red."""
    budget = f"eps {facts['eps']}"
    kinds = {"clean": "clean", "fgsm": f"FGSM\n{budget}", "pgd": f"PGD-{facts['pgd_steps']}\n{budget}"}
    rows = [arrays[f"{kind}/images"] for kind in kinds]
    figure = image_grid(rows, list(kinds.values()), [""] * len(rows[0]))
    for i, kind in enumerate(kinds):
        for j, (logits, label) in enumerate(zip(arrays[f"{kind}/logits"], arrays["labels"], strict=True)):
            ax = figure.axes[i * len(rows[0]) + j]
            wrong = int(logits.argmax()) != int(label)
            ax.set_xlabel(
                classes[int(logits.argmax())], fontsize=8.5, labelpad=1, color="tab:red" if wrong else "black"
            )
    return figure


def class_counts(counts: dict[str, list[int]], classes: Sequence[str]) -> Figure:
    """Images per class in each split."""
    rows = [(split, c, n) for split, values in counts.items() for c, n in zip(classes, values, strict=True)]
    frame = pd.DataFrame(rows, columns=["split", "class", "images"])
    figure, ax = plt.subplots(figsize=(WIDTH, 2.4))
    order = ["train", "validation", "test"]
    sns.barplot(frame, x="class", y="images", hue="split", hue_order=order, palette="colorblind", ax=ax)
    ax.set(title="Images per class in each split", ylabel="images")
    ax.legend(title=None, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def accuracy_by_eps(frame: pd.DataFrame, title: str) -> Figure:
    """Accuracy against eps, a panel per attack, a line per system, with 95 % intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True)
    for ax, attack in zip(axes, ("fgsm", "pgd"), strict=True):
        part = frame[frame["attack"].isin([attack, "clean"])]
        lines_with_intervals(ax, part, "eps")
        steps = part["steps"].max()
        ax.set(title="FGSM" if attack == "fgsm" else f"PGD-{steps}", xlabel="eps (pixels in [0, 1])", ylabel="")
    axes[0].set_ylabel("accuracy")
    shared_legend(figure, axes[0])
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


def accuracy_by_steps(frame: pd.DataFrame, title: str) -> Figure:
    """Accuracy against the number of iterations, a line per system."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2))
    lines_with_intervals(ax, frame, "steps")
    ax.set(
        title=title, xlabel="PGD iterations (an image is lost at the first that fools the system)", ylabel="accuracy"
    )
    shared_legend(figure, ax)
    return figure


def lines_with_intervals(ax: Axes, frame: pd.DataFrame, x: str) -> None:
    """A line per system with its Wilson band."""
    for system, part in frame.groupby("system", sort=False):
        part = part.sort_values(x)
        name = str(system)
        ax.plot(
            part[x], part["accuracy"], color=colour_of(name), marker=MARKERS[name], ms=4.5, lw=1.6, label=LABELS[name]
        )
        ax.fill_between(part[x], part["low"], part["high"], color=colour_of(name), alpha=0.15, lw=0)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_ylim(-0.02, 1.02)


def shared_legend(figure: Figure, ax: Axes) -> None:
    """One legend below all panels."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)


def trace(records: Sequence[dict[str, Any]]) -> Figure:
    """Loss and accuracy over the iterations of the headline attack, a line per system."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.1))
    for record in records:
        name = record["system"]
        style = {"color": colour_of(name), "label": LABELS[name], "lw": 1.8}
        axes[0].plot(record["loss"], **style)
        axes[1].plot(record["accuracy_at_iterate"], **style)
    axes[0].set(title="What the attack climbs", xlabel="iteration", ylabel="mean cross-entropy (nats)")
    axes[1].set(title="What is left", xlabel="iteration", ylabel="accuracy at this iterate", ylim=(-0.02, 1.02))
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    shared_legend(figure, axes[0])
    return figure


def expert_heatmap(frame: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Accuracy of every expert (rows) under every attack (columns)."""
    table = frame.pivot(index="system", columns="column", values="accuracy")[list(dict.fromkeys(frame["column"]))]
    table.index = [names[name] for name in table.index]
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    sns.heatmap(
        100 * table, annot=True, fmt=".0f", vmin=0, vmax=100, cmap="cividis", ax=ax, cbar_kws={"label": "accuracy (%)"}
    )
    ax.set(xlabel="", ylabel="", title="Nine experts, one by one")
    ax.tick_params(axis="y", rotation=0)
    for label in ax.get_yticklabels():
        red, green, blue = KINDS[label.get_text().split()[1]]
        label.set_color((0.6 * red, 0.6 * green, 0.6 * blue))
    return figure


def expert_curves(frame: pd.DataFrame) -> Figure:
    """Validation accuracy by epoch, a panel per expert kind: clean, FGSM and PGD, one faint line per expert."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.0), sharey=True)
    styles = {"clean": (":", "clean"), "fgsm": ("--", "FGSM"), "pgd": ("-", "PGD")}
    for ax, kind in zip(axes, KINDS, strict=True):
        members = [f"expert-{i}" for i, k in enumerate(EXPERT_KINDS) if k == kind]
        for system, part in frame[frame["system"].isin(members)].groupby("system"):
            for measure, (line, name) in styles.items():
                label = name if system == members[0] else None
                ax.plot(part["epoch"] + 1, part[measure], line, color=KINDS[kind], lw=1.3, alpha=0.85, label=label)
        ax.set(title=f"{kind} ({len(members)})", xlabel="epoch", ylim=(-0.02, 1.02))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    axes[0].set_ylabel("validation accuracy")
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3)
    for handle in legend.legend_handles:
        handle.set_color("0.2")  # type: ignore[union-attr]
    return figure


def curves(frame: pd.DataFrame, systems: Sequence[str]) -> Figure:
    """Loss and validation PGD accuracy by epoch, a line per system; the kept epoch is ringed."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.0))
    for system in systems:
        part = frame[frame["system"] == system]
        style = {"color": colour_of(system), "label": LABELS[system], "lw": 1.8}
        axes[0].plot(part["epoch"] + 1, part["loss"], **style)
        axes[1].plot(part["epoch"] + 1, part["pgd"], **style)
        axes[1].plot(part["epoch"] + 1, part["clean"], color=colour_of(system), ls=":", lw=1.4)
        kept = part[part["epoch"] == part["best"]]
        axes[1].plot(kept["epoch"] + 1, kept["pgd"], "o", ms=10, mfc="none", mec=colour_of(system))
    axes[0].set(title="Training loss", xlabel="epoch of phase 2", ylabel="cross-entropy (nats)")
    axes[1].set(
        title="Validation accuracy",
        xlabel="epoch of phase 2",
        ylabel="accuracy",
        ylim=(-0.02, 1.02),
    )
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    shared_legend(figure, axes[0])
    return figure


def main_figure(frame: pd.DataFrame, seeds: pd.DataFrame | None = None) -> Figure:
    """The main table as bars with Wilson intervals, a panel per attack; dots are other seeds where given."""
    systems = list(dict.fromkeys(frame["system"]))
    columns = [name for name in dict.fromkeys(frame["column"]) if not name.endswith("soft") and name != BASIC]
    columns.sort(key=lambda name: name.startswith(WORST))  # the headline last
    figure, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 0.26 * len(systems) + 1.5), sharey=True)
    for ax, name in zip(axes, columns, strict=True):
        part = frame[frame["column"] == name].set_index("system").reindex(systems)
        positions = np.arange(len(systems))
        errors = np.stack([part["accuracy"] - part["low"], part["high"] - part["accuracy"]])
        colours = [colour_of(system) for system in systems]
        ax.barh(positions, part["accuracy"], xerr=errors, color=colours, height=0.7, error_kw={"lw": 1, "capsize": 2})
        if seeds is not None:
            for position, system in zip(positions, systems, strict=True):
                values = seeds[(seeds["column"] == name) & (seeds["system"] == system)]["accuracy"]
                ax.plot(values, np.full(len(values), position), "o", ms=3.5, mfc="white", mec="0.15", mew=0.8)
        ax.set(
            title=name.replace(", ", "\n"), xlim=(0, 1.02), yticks=positions, yticklabels=[LABELS[s] for s in systems]
        )
        ax.set_xticks([0, 0.5, 1], ["0", "50", "100"])
        ax.grid(visible=False, axis="y")
        ax.set_ylim(len(systems) - 0.4, -0.6)
    figure.supxlabel(
        "accuracy in %, with Wilson 95 % intervals" + ("; circles: published seeds" if seeds is not None else ""),
        fontsize=9,
    )
    return figure


def forest(frame: pd.DataFrame, labels: dict[str, str], title: str, xlabel: str) -> Figure:
    """Differences with their intervals, one line each; those that exclude zero are filled."""
    figure, ax = plt.subplots(figsize=(WIDTH, 0.27 * len(frame) + 1.2))
    for i, row in enumerate(frame.to_dict("records")):
        clear = row["low"] > 0 or row["high"] < 0
        colour = "0.45" if not clear else colour_of("pgd-at") if row["low"] > 0 else colour_of("dwf")
        ax.plot([100 * row["low"], 100 * row["high"]], [i, i], color=colour, lw=2)
        ax.plot(100 * row["difference"], i, "o", ms=6, color=colour, mfc=colour if clear else "white")
    ax.axvline(0, color="0.2", lw=0.9, ls="--")
    ax.set_yticks(range(len(frame)), [labels.get(str(name), str(name)) for name in frame.index])
    ax.set(title=title, xlabel=xlabel, ylim=(len(frame) - 0.4, -0.6))
    ax.grid(visible=False, axis="y")
    return figure


def growth(frame: pd.DataFrame, arithmetic: Sequence[float]) -> Figure:
    """Cost against the number of experts: phase 2's passes beside the recipe's arithmetic, and an answer's."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.9))
    experts = frame["experts"]
    counted = {"color": colour_of("dwf"), "marker": "o", "ls": "none", "label": "counted"}
    axes[0].plot(experts, arithmetic, color="0.5", lw=1.2, label="arithmetic of the recipe")
    axes[0].plot(experts, frame["phase 2, units an epoch"], **counted)
    axes[0].set(title="Training: phase 2, per epoch", ylabel="clean epochs of one ResNet-18")
    axes[1].plot(experts, experts, color="0.5", lw=1.2, label="one ResNet-18 each")
    axes[1].plot(experts, frame["inference cost"], **counted)
    axes[1].set(title="One answer", ylabel="answers of one ResNet-18")
    for ax in axes:
        ax.set(xlabel="experts", xticks=list(experts), xlim=(0, None), ylim=(0, None))
        ax.legend(fontsize="small")
    return figure


def routes(shares: pd.DataFrame) -> Figure:
    """Mean gate weight or share of images per expert, a panel per system, clean beside attacked."""
    systems = list(dict.fromkeys(shares["system"]))
    rows = -(-len(systems) // 4)
    figure, axes = plt.subplots(rows, 4, figsize=(WIDTH, 1.75 * rows + 0.6), sharey=True, squeeze=False)
    for ax, system in zip(axes.flatten(), systems, strict=False):
        part = shares[shares["system"] == system]
        sns.barplot(part, x="expert", y="weight", hue="attack", palette="colorblind", ax=ax, legend=False)
        ax.set(title=system, ylim=(0, 1), xlabel="expert", ylabel="mean weight")
    for ax in axes.flatten()[len(systems) :]:
        ax.axis("off")
    names = list(dict.fromkeys(shares["attack"]))
    handles = [Patch(color=colour) for colour in sns.color_palette("colorblind", len(names))]
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
                lw=0.4,
                label=f"{expert} {EXPERT_KINDS[expert]}",
            )
            bottom += table[expert].to_numpy()
        name = f"PGD-{part['steps'].iloc[0]}" if attack == "pgd" else "FGSM"
        ax.set(title=f"under {name}", xlabel="eps (pixels in [0, 1])", ylim=(0, 1))
    axes[0].set_ylabel("mean gate weight")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", title="expert", fontsize=8.5)
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


def gate_by_class(weights: dict[str, Tensor], labels: Tensor, classes: Sequence[str]) -> Figure:
    """Mean gate weight by class (rows) and expert (columns), a panel per attack."""
    figure, axes = plt.subplots(1, len(weights), figsize=(WIDTH, 3.6), sharey=True)
    tables = {
        name: [w[labels == c].float().mean(dim=0).numpy() for c in labels.unique()] for name, w in weights.items()
    }
    top = max(float(np.max(t)) for t in tables.values())
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        last = ax is axes[-1]
        sns.heatmap(
            100 * np.stack(table),
            vmin=0,
            vmax=100 * top,
            cmap="cividis",
            ax=ax,
            cbar=last,
            yticklabels=list(classes),
            cbar_kws={"label": "mean gate weight (%)"} if last else None,
        )
        ax.set(title=name, xlabel="expert")
        ax.tick_params(axis="y", rotation=0)
    axes[0].set_ylabel("class")
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
        figsize=(WIDTH, 1.35 * len(chosen) + 0.3),
        width_ratios=[1, 1.7] * len(kinds),
        squeeze=False,
    )
    for line, i in zip(axes, chosen, strict=True):
        for j, kind in enumerate(kinds):
            picture, bars = line[2 * j], line[2 * j + 1]
            show_image(picture, arrays[f"{kind}/images"][i])
            answer, truth = int(arrays[f"{kind}/logits"][i].argmax()), int(arrays["labels"][i])
            picture.set_xlabel(f"says {classes[answer]}", fontsize=8, color="black" if answer == truth else "tab:red")
            bars.bar(range(9), arrays[f"{kind}/gate_weights"][i], color=expert_colours(), width=0.85)
            bars.set(ylim=(0, 1), xticks=range(9), yticks=[0, 0.5, 1])
            bars.tick_params(labelsize=6.5, pad=0, labelleft=j == 0)
            if i == chosen[0]:
                bars.set_title(kinds[kind], fontsize=9)
    figure.supxlabel("gate weight by expert: 0 benign, 1-4 FGSM, 5-8 PGD", fontsize=9)
    return figure


def expert_colours() -> list[tuple[float, float, float]]:
    """Nine shades: the colour of the expert's kind, lighter within it."""
    shades = []
    for i, kind in enumerate(EXPERT_KINDS):
        white = 0.16 * EXPERT_KINDS[:i].count(kind)
        red, green, blue = ((1 - white) * part + white for part in KINDS[kind])
        shades.append((red, green, blue))
    return shades
