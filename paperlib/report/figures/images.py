"""Images, perturbations and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.report.style import ERROR_COLOUR, SMALL, WIDTH, fit_labels, shades, shared_legend
from paperlib.seeds import cpu_generator, integers
from paperlib.shapes import Images

PREDICTION_NOTE = "below each image: the prediction; misclassified images have a red frame"


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
    """A grid of images: ``rows`` are tensors (K, C, H, W); titles are left of the rows and above the columns."""
    return _grid(rows, row_titles, column_titles, 0.0)


def _grid(rows: Sequence[Tensor], row_titles: Sequence[str], column_titles: Sequence[str], below: float) -> Figure:
    """`image_grid` with ``below`` inches of space under each image."""
    k = len(rows[0])
    margin = max(len(line) for title in row_titles for line in title.split("\n")) * 0.08
    cell = (WIDTH - margin) / k
    height = (rows[0].shape[-2] / rows[0].shape[-1] * 0.93 * cell + 0.07 + below) * len(rows)
    figure, axes = plt.subplots(len(rows), k, figsize=(WIDTH, height + 0.2 * any(column_titles)), squeeze=False)
    for line, images, title in zip(axes, rows, row_titles, strict=True):
        for ax, image in zip(line, images, strict=True):
            show_image(ax, image)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    names, size = fit_labels(column_titles, 0.95 * cell)
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name, loc="center", fontsize=size, fontweight="normal", pad=3)
    return figure


def random_signs(images: Images, budgets: Sequence[Fraction], seed: int) -> list[Images]:
    """For each budget, ``images`` (K, C, H, W) with every pixel moved by eps, up or down at random, within [0, 1]."""
    generator = cpu_generator(seed)
    signs = integers(2, images.shape, generator, images.device) * 2 - 1
    return [(images + float(eps) * signs).clamp(0, 1) for eps in budgets]


def predictions(arrays: dict[str, Tensor], classes: Sequence[str], facts: dict[str, Any]) -> Figure:
    """Clean and attacked images with the prediction for each; misclassified images have a red frame."""
    budget = f"eps {facts['eps']}"
    kinds = {"clean": "clean", "fgsm": f"FGSM\n{budget}", "pgd": f"PGD-{facts['pgd_steps']}\n{budget}"}
    rows = [arrays[f"{kind}/images"] for kind in kinds]
    k = len(rows[0])
    figure = _grid(rows, list(kinds.values()), [""] * k, below=0.2)
    names, size = fit_labels(classes, 0.86 * WIDTH / k)
    for i, kind in enumerate(kinds):
        for j, (logits, label) in enumerate(zip(arrays[f"{kind}/logits"], arrays["labels"], strict=True)):
            predicted = int(logits.argmax())
            show_prediction(figure.axes[i * k + j], names[predicted], predicted == int(label), size)
    figure.supxlabel(PREDICTION_NOTE, fontsize=SMALL)
    return figure


def show_prediction(ax: Axes, text: str, correct: bool, size: float) -> None:
    """Write the prediction below an image; if it is not ``correct``, in red and with a frame, for print in grey."""
    ax.set_xlabel(text, fontsize=size, labelpad=3, color="black" if correct else ERROR_COLOUR)
    if not correct:
        ax.spines[:].set(visible=True, color=ERROR_COLOUR, linewidth=1.8)


def class_counts(counts: dict[str, list[int]], classes: Sequence[str]) -> Figure:
    """Images per class in each split."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.5))
    order = [split for split in ("train", "validation", "test") if split in counts]
    width = 0.8 / len(order)
    for i, (split, colour) in enumerate(zip(order, reversed(shades(len(order))), strict=True)):
        places = np.arange(len(classes)) + (i - (len(order) - 1) / 2) * width
        ax.bar(places, counts[split], width, color=colour, label=f"{split}, n = {sum(counts[split])}")
    names, size = fit_labels(classes, 0.9 * (WIDTH - 0.7) / len(classes), 9.5)
    ax.set_xticks(range(len(classes)), names, fontsize=size)
    ax.set(title="Images per class in each split", xlabel="class", ylabel="images", xlim=(-0.5, len(classes) - 0.5))
    ax.grid(visible=False, axis="x")
    shared_legend(figure, ax)
    return figure
