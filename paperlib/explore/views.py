"""Pictures of the explorers, each with a sentence that states the same.

A view makes its figure at the first scene. For later scenes it updates the artists and draws only these on a stored
background, because layout, ticks and titles take most of the time. It does not use pyplot, because widgets are updated
in another thread than the one that runs the notebook.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import matplotlib.style
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from paperlib.config.budgets import budget_text
from paperlib.explore.scene import FGSM, NONE, Scene
from paperlib.report.figures.experts import darker, expert_colours
from paperlib.report.style import ERROR_COLOUR, KINDS, Colour, percent_axis, tint
from paperlib.shapes import Logits
from paperlib.systems.experts import EXPERT_KINDS

WIDTH, HEIGHT, DPI = 11.6, 5.4, 100  # inches and dots per inch: fits beside a notebook's margins at 1280 pixels
TEXT_COLOUR, TICK_COLOUR, FRAME_COLOUR = "0.15", "0.3", "0.85"
GREY: Colour = (0.35, 0.35, 0.35)
BAR_WIDTH = 0.4

S = TypeVar("S")


def sentence(scene: Scene, classes: Sequence[str]) -> str:
    """The image, the attack and the predictions of the mixture before and after it, as plain text."""
    before, after = (prediction_text(output.logits, classes) for output in (scene.before, scene.after))
    image = f"image {scene.selection.image}, true class {classes[scene.label]}"
    if scene.selection.attack == NONE:
        return f"{image}, not attacked: the mixture predicts {before}"
    return f"{image}, {attack_text(scene)}: the mixture predicts {before} before the attack, {after} after it"


def attack_text(scene: Scene) -> str:
    """Such as ``PGD, gate to worst, eps 0.15, 10 steps``."""
    selection = scene.selection
    if selection.attack == NONE:
        return selection.attack
    steps = "" if selection.attack == FGSM else f", {selection.steps} step{'s' if selection.steps > 1 else ''}"
    return f"{selection.attack}, eps {budget_text(selection.eps)}{steps}"


def prediction_text(logits: Logits, classes: Sequence[str]) -> str:
    """The predicted class of the first image with its probability, such as ``6 (93%)``."""
    probabilities = torch.softmax(logits[0].float(), dim=0)
    return f"{classes[int(probabilities.argmax())]} ({float(probabilities.max()):.0%})"


class View(ABC, Generic[S]):
    """A picture that is drawn again and again on one figure, of scenes with the same shapes."""

    height = HEIGHT

    def __init__(self) -> None:
        self._canvas: FigureCanvasAgg | None = None
        self._changing: list[Artist] = []  # all other artists belong to the background
        self._limits: object = None  # those of the axes on the stored background

    def draw(self, scene: S) -> bytes:
        """The scene as PNG, `WIDTH` x `height` inches at `DPI` dots per inch."""
        with matplotlib.style.context("default"):  # whatever theme the notebook sets
            canvas = self._canvas = self._canvas or self._new_canvas(scene)
            self.update(scene)
            limits = [(ax.get_xlim(), ax.get_ylim()) for ax in canvas.figure.axes]
            if limits != self._limits:
                canvas.draw()
                self._limits, self._background = limits, canvas.copy_from_bbox(canvas.figure.bbox)
            else:
                canvas.restore_region(self._background)
            for artist in self._changing:
                artist.draw(canvas.get_renderer())
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(buffer, format="png", compress_level=3)
        return buffer.getvalue()

    def _new_canvas(self, scene: S) -> FigureCanvasAgg:
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
        figure = Figure(figsize=(WIDTH, self.height), dpi=DPI, layout=layout)
        canvas = FigureCanvasAgg(figure)
        self._changing = self.build(figure, scene)
        self.update(scene)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout stays as it is from now on
        for artist in self._changing:
            artist.set_animated(True)  # not drawn with the background
        return canvas

    @abstractmethod
    def build(self, figure: Figure, scene: S) -> list[Artist]:
        """Make axes and artists for scenes with the shapes of ``scene``; returns those that `update` changes."""

    @abstractmethod
    def update(self, scene: S) -> None:
        """Set the data of the artists, and the limits of the axes."""


class GateView(View[Scene]):
    """Images, gate weights, their course over the iterations, and the prediction and confidence of each expert."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = classes

    def build(self, figure: Figure, scene: Scene) -> list[Artist]:
        experts = scene.path.shape[1]
        columns = figure.add_gridspec(1, 2, width_ratios=(1, 1.28), wspace=0.04)
        left = columns[0].subgridspec(3, 1, height_ratios=(2.6, 0.9, 2.6))
        right = columns[1].subgridspec(2, 1, height_ratios=(1, 1.12), hspace=0.04)
        self._images = ImageRow(figure, left[0], scene.clean)
        self._predictions = PredictionLines(figure, left[1], ("before", "after"))
        self._path = figure.add_subplot(left[2])
        _percent_panel(self._path, "gate weights over the iterations of the attack", "iteration")
        self._path.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        self._lines = [self._path.plot([], [], color=colour, lw=1.8, ms=5)[0] for colour in _colours(experts)]
        self._gate = figure.add_subplot(right[0])
        _percent_panel(self._gate, "gate weight of each expert (pale: before the attack, full: after)", "")
        self._gate_bars = _bar_pairs(self._gate, experts)
        self._votes = figure.add_subplot(right[1])
        title = "prediction and confidence of each expert alone (red: misclassified)"
        _percent_panel(self._votes, title, "expert")
        self._votes.set(ylim=(0, 1.15), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
        self._vote_bars = _bar_pairs(self._votes, experts)
        text: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8.5}
        self._vote_texts = [
            [self._votes.text(bar.get_x() + BAR_WIDTH / 2, 0, "", **text) for bar in bars] for bars in self._vote_bars
        ]
        if experts == len(EXPERT_KINDS):
            handles = [Patch(color=colour, lw=0, label=kind) for kind, colour in KINDS.items()]
            legend: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "ncols": 3, "fontsize": 8.5}
            self._gate.legend(handles=handles, frameon=False, handlelength=1.8, handleheight=0.6, **legend)
        bars = [bar for container in (*self._gate_bars, *self._vote_bars) for bar in container]
        texts = [text for texts in self._vote_texts for text in texts]
        return [*self._images.artists, *self._predictions.artists, *self._lines, *bars, *texts]

    def update(self, scene: Scene) -> None:
        self._images.show(*_attack_images(scene, self.classes))
        self._predictions.show(scene, self.classes)
        before, after = (output.gate_weights[0].tolist() for output in (scene.before, scene.after))
        self._gate.set_ylim(0, max(0.5, *before, *after) * 1.05)
        _set_heights(self._gate_bars, (before, after))
        for bars, texts, output in zip(self._vote_bars, self._vote_texts, (scene.before, scene.after), strict=True):
            confidence, vote = torch.softmax(output.expert_logits[0].float(), dim=1).max(dim=1)
            for bar, text, height, c in zip(bars, texts, confidence.tolist(), vote.tolist(), strict=True):
                bar.set_height(height)
                name = self.classes[c]
                text.set(y=height + 0.01, text=name if len(name) < 3 else name[:4])
                text.set_color(TEXT_COLOUR if c == scene.label else ERROR_COLOUR)
        iterations = len(scene.path)
        self._path.set(xlim=(0, max(iterations - 1, 1)), ylim=(0, max(0.5, float(scene.path.max()) * 1.05)))
        for line, weights in zip(self._lines, scene.path.T.tolist(), strict=True):
            line.set_data(range(iterations), weights)
            # The two ends of a recorded path, or the one point of a clean image, need markers to be seen.
            line.set(marker="o" if iterations < 3 else "", clip_on=iterations >= 3)


class ExpertsView(View[Scene]):
    """The probability that each expert gives to each class, clean and attacked; the true class is framed."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = classes

    def build(self, figure: Figure, scene: Scene) -> list[Artist]:
        experts = scene.after.expert_logits.shape[1]
        columns = figure.add_gridspec(1, 2, width_ratios=(1, 1.6), wspace=0.04)
        left, right = (
            columns[0].subgridspec(3, 1, height_ratios=(1.9, 0.9, 2.6)),
            columns[1].subgridspec(1, 2, wspace=0.06),
        )
        self._images = ImageRow(figure, left[0], scene.clean)
        self._predictions = PredictionLines(figure, left[1], ("mixture, before", "mixture, after"))
        text = "Right: probability of each class by each expert, in %.\nFramed: the true class."
        _text_panel(figure, left[2]).text(0, 1, text, fontsize=10, color=TEXT_COLOUR, va="top")
        names = [shortened(name, 10) for name in self.classes]
        rotation = 90 if max(map(len, names)) > 2 else 0
        self._maps: list[AxesImage] = []
        self._texts: list[list[Text]] = []
        self._frames: list[Rectangle] = []
        spines: list[Artist] = []
        for i, title in enumerate(("clean", "attacked")):
            ax = figure.add_subplot(right[i])
            _title(ax, title)
            ax.spines[:].set(color=FRAME_COLOUR)
            grid = np.zeros((experts, len(names)))
            self._maps.append(ax.imshow(grid, cmap="Greys", vmin=0, vmax=1, aspect="auto"))
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5}
            self._texts.append([ax.text(0, row, "", **style) for row in range(experts)])
            self._frames.append(Rectangle((0, -0.5), 1, experts, fill=False, lw=2, ec=KINDS["benign"], clip_on=False))
            ax.add_patch(self._frames[-1])
            ax.set_xticks(range(len(names)), names, fontsize=9, color=TICK_COLOUR, rotation=rotation)
            kinds = EXPERT_KINDS if experts == len(EXPERT_KINDS) else ("",) * experts
            rows = [f"{e} {kind}" for e, kind in enumerate(kinds)] if title == "clean" else [""] * experts
            ax.set_yticks(range(experts), rows, fontsize=9.5)
            for label, colour in zip(ax.get_yticklabels(), _colours(experts), strict=True):
                label.set_color(darker(colour, 0.65))
            ax.tick_params(length=0)
            spines += ax.spines.values()
        texts = [text for texts in self._texts for text in texts]
        return [*self._images.artists, *self._predictions.artists, *self._maps, *spines, *self._frames, *texts]

    def update(self, scene: Scene) -> None:
        self._images.show(*_attack_images(scene, self.classes))
        self._predictions.show(scene, self.classes)
        for i, output in enumerate((scene.before, scene.after)):
            probabilities = torch.softmax(output.expert_logits[0].float(), dim=1)
            self._maps[i].set_data(probabilities.numpy())
            self._frames[i].set_x(scene.label - 0.5)
            confidence, vote = probabilities.max(dim=1)
            for text, value, c in zip(self._texts[i], confidence.tolist(), vote.tolist(), strict=True):
                text.set(x=c, text=f"{100 * value:.0f}", color="white" if value > 0.5 else TEXT_COLOUR)


class ChangeView(View[tuple[Tensor, Tensor, Sequence[str]]]):
    """An image (C, H, W), its change at full scale and the changed image, under three titles, large enough to compare.

    A scene is the image, the changed image and the titles.
    """

    height = 4.2

    def build(self, figure: Figure, scene: tuple[Tensor, Tensor, Sequence[str]]) -> list[Artist]:
        self._images = ImageRow(figure, figure.add_gridspec(1, 1)[0], scene[0])
        return self._images.artists

    def update(self, scene: tuple[Tensor, Tensor, Sequence[str]]) -> None:
        image, changed, titles = scene
        self._images.show((image, scaled_change(image, changed), changed), titles)


class ImageRow:
    """Three images side by side, grey or colour, each under a title."""

    def __init__(self, figure: Figure, place: SubplotSpec, example: Tensor) -> None:
        cells = place.subgridspec(1, 3, wspace=0.04)
        axes = [figure.add_subplot(cells[i], anchor="NW") for i in range(3)]
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(color=FRAME_COLOUR)
        self._images = [ax.imshow(_pixels(example), interpolation="nearest") for ax in axes]
        self.artists: list[Artist] = [*axes]

    def show(self, images: Sequence[Tensor], titles: Sequence[str]) -> None:
        for artist, image, title in zip(self._images, images, titles, strict=True):
            artist.set_data(_pixels(image))
            # About 5.4 points for each letter of a bold title of 9 points.
            letters = int(artist.axes.get_window_extent().width * 72 / DPI / 5.4)
            _title(artist.axes, shortened(title, max(letters, 8)), 9)


class PredictionLines:
    """The mixture's predictions before and after the attack, red where the image is misclassified."""

    def __init__(self, figure: Figure, place: SubplotSpec, names: Sequence[str]) -> None:
        ax = _text_panel(figure, place)
        style: dict[str, Any] = {"fontsize": 11.5, "weight": "bold", "va": "center"}
        self._texts = [(name, ax.text(0, y, "", **style)) for name, y in zip(names, (0.72, 0.26), strict=True)]
        self.artists: list[Artist] = [text for _, text in self._texts]

    def show(self, scene: Scene, classes: Sequence[str]) -> None:
        for (name, text), output in zip(self._texts, (scene.before, scene.after), strict=True):
            text.set_text(f"{name}: {prediction_text(output.logits, classes)}")
            text.set_color(TEXT_COLOUR if int(output.logits.argmax()) == scene.label else ERROR_COLOUR)


def scaled_change(image: Tensor, changed: Tensor, eps: float | None = None) -> Tensor:
    """The change of an image with ``eps``, or else its largest value, as full scale: grey where nothing changed."""
    change = changed - image
    scale = float(change.abs().max()) if eps is None else eps
    return (0.5 + change / (2 * scale)).clamp(0, 1) if scale else torch.full_like(change, 0.5)


def shortened(text: str, length: int) -> str:
    """The text, cut to at most ``length`` letters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _attack_images(scene: Scene, classes: Sequence[str]) -> tuple[Sequence[Tensor], Sequence[str]]:
    """The clean image, the perturbation with eps as full scale, the attacked image; and their titles."""
    eps = 0.0 if scene.selection.attack == NONE else float(scene.selection.eps)
    scale = f"change, x {1 / (2 * eps):.0f}" if eps else "no change"
    titles = (f"clean: {classes[scene.label]}", scale, "attacked" if eps else "not attacked")
    return (scene.clean, scaled_change(scene.clean, scene.attacked, eps), scene.attacked), titles


def _pixels(image: Tensor) -> np.ndarray:
    return image.float().cpu().expand(3, -1, -1).permute(1, 2, 0).numpy()


def _title(ax: Axes, text: str, size: float = 10) -> None:
    ax.set_title(text, loc="left", fontsize=size, fontweight="bold", color=TEXT_COLOUR)


def _text_panel(figure: Figure, place: SubplotSpec) -> Axes:
    ax = figure.add_subplot(place)
    ax.axis("off")
    return ax


def _percent_panel(ax: Axes, title: str, xlabel: str) -> None:
    """Axes with fractions as percentages and horizontal grid lines."""
    _title(ax, title)
    percent_axis(ax.yaxis)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.set_xlabel(xlabel, fontsize=9, color=TEXT_COLOUR)
    ax.tick_params(length=0, labelsize=8.5, labelcolor=TICK_COLOUR)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color="0.6")
    ax.grid(axis="y", color=FRAME_COLOUR, lw=0.8)
    ax.set_axisbelow(True)


def _bar_pairs(ax: Axes, experts: int) -> tuple[BarContainer, BarContainer]:
    """Two bars for each expert: a pale one for before the attack, a full one for after it."""
    places, colours = np.arange(experts), _colours(experts)
    ax.set(xlim=(-0.5, experts - 0.5), xticks=places)
    before = ax.bar(places - 0.21, 0, BAR_WIDTH, color=[tint(colour, 0.6) for colour in colours])
    return before, ax.bar(places + 0.21, 0, BAR_WIDTH, color=colours)


def _set_heights(bars: tuple[BarContainer, BarContainer], heights: tuple[Sequence[float], Sequence[float]]) -> None:
    for container, values in zip(bars, heights, strict=True):
        for bar, height in zip(container, values, strict=True):
            bar.set_height(height)


def _colours(experts: int) -> list[Colour]:
    """The colours of DWF's nine experts; grey for another number of experts, whose kinds are unknown."""
    colours = expert_colours()
    return colours if experts == len(colours) else [GREY] * experts
