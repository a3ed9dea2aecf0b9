"""What the explorers show, and what stands in their place without a kernel: a sentence and a picture of each state.

Drawn without pyplot, because widgets are updated in another thread than the notebook's, and on one pair of axes in
pixels: axes of their own for each panel, with ticks and titles that look for room, take most of the time of a picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from paperlib.config.budgets import budget_text
from paperlib.explore.scene import FGSM, NONE, Scene
from paperlib.report.figures.experts import expert_colours
from paperlib.report.style import KINDS, WRONG, Colour, tint
from paperlib.systems.experts import EXPERT_KINDS

WIDTH, HEIGHT, DPI = 11.6, 5.4, 100  # fits beside a notebook's margins at 1280 pixels
RIGHT, QUIET, LINES = "0.15", "0.3", "0.85"
GREY: Colour = (0.35, 0.35, 0.35)
LEFT = 12  # pixels, as all places below
BOLD = 7.8  # pixels a letter of a title takes


def sentence(scene: Scene, classes: Sequence[str]) -> str:
    """What was asked and what came out, in plain text."""
    before, after = (_said(output.logits, classes) for output in (scene.before, scene.after))
    truth = f"image {scene.question.image}, a {classes[scene.label]}"
    if scene.question.attack == NONE:
        return f"{truth}, not attacked: the mixture says {before}"
    return f"{truth}, {attack_text(scene)}: the mixture said {before}, and says {after}"


def attack_text(scene: Scene) -> str:
    """Such as ``PGD, gate to worst, eps 0.15, 10 steps``."""
    question = scene.question
    steps = "" if question.attack in (NONE, FGSM) else f", {question.steps} step{'s' if question.steps > 1 else ''}"
    return question.attack if question.attack == NONE else f"{question.attack}, eps {budget_text(question.eps)}{steps}"


def picture(scene: Scene, classes: Sequence[str]) -> bytes:
    """The scene as PNG: images, gate weights, their path, and the vote and confidence of every expert."""
    ax = _blank(HEIGHT)
    _triptych(ax, scene, classes, top=502, side=152)
    _answers(ax, scene, classes, {"before": 300, "after": 272})
    _path(ax, Panel(64, 49, 400, 150), scene.path)
    _gate(ax, Panel(556, 324, 592, 178), scene)
    _votes(ax, Panel(556, 49, 592, 194), scene, classes)
    return _png(ax)


def nine(scene: Scene, classes: Sequence[str]) -> bytes:
    """The scene as PNG: how sure each expert is of each class, clean and attacked; the true class is framed."""
    ax = _blank(HEIGHT)
    _triptych(ax, scene, classes, top=502, side=122)
    _answers(ax, scene, classes, {"together, before": 310, "together, after": 280})
    text = "Right: how sure each expert is of each class, in %.\nFramed: the true class."
    ax.text(LEFT, 246, text, fontsize=10, color=RIGHT, va="top")
    experts = scene.after.expert_logits.shape[1]
    kinds = EXPERT_KINDS if experts == len(EXPERT_KINDS) else ("",) * experts
    upright = max(map(len, classes)) > 2
    names = [_cut(name, 10) for name in classes]
    bottom = 90 if upright else 40
    for place, (what, output) in enumerate((("clean", scene.before), ("attacked", scene.after))):
        panel = Panel(510 + 331 * place, bottom, 307, 502 - bottom, len(classes), experts)
        share = torch.softmax(output.expert_logits[0].float(), dim=1)
        ax.imshow(share.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto", extent=panel.extent, origin="upper")
        ax.add_patch(Rectangle((panel.left, bottom), 307, panel.height, fill=False, lw=0.8, ec=LINES))
        truth = (panel.x(scene.label), bottom), panel.x(1) - panel.x(0), panel.height
        ax.add_patch(Rectangle(*truth, fill=False, lw=2, ec=KINDS["benign"]))
        for i, row in enumerate(share):
            sure, vote = float(row.max()), int(row.argmax())
            ink, y = "white" if sure > 0.5 else RIGHT, panel.y(experts - i - 0.5)
            ax.text(panel.x(vote + 0.5), y, f"{100 * sure:.0f}", ha="center", va="center", fontsize=8.5, color=ink)
        _title(ax, panel, what)
        for i, name in enumerate(names):
            how = {"rotation": 90, "va": "top"} if upright else {"va": "top"}
            ax.text(panel.x(i + 0.5), bottom - 6, name, ha="center", fontsize=9, color=QUIET, **how)
        for i, (kind, colour) in enumerate(zip(kinds if place == 0 else (), _colours(experts), strict=False)):
            red, green, blue = (0.65 * part for part in colour)
            y = panel.y(experts - i - 0.5)
            ax.text(panel.left - 5, y, f"{i} {kind}", ha="right", va="center", fontsize=9.5, color=(red, green, blue))
    return _png(ax)


def eyes(image: Tensor, moved: Tensor, head: str, scale: str, tail: str) -> bytes:
    """An image, a change made visible and the changed image as PNG, large enough to judge by eye."""
    ax = _blank(4.2)
    change = moved - image
    largest = float(change.abs().max())
    shown = 0.5 + change / (2 * largest) if largest else torch.full_like(change, 0.5)
    _images(ax, (image, shown, moved), (head, scale, tail), top=390, side=372)
    return _png(ax)


@dataclass(frozen=True)
class Panel:
    """A rectangle of a picture, in pixels from the lower left, and the numbers it spans from zero."""

    left: float
    bottom: float
    width: float
    height: float
    across: float = 1
    up: float = 1

    @property
    def extent(self) -> tuple[float, float, float, float]:
        return self.left, self.left + self.width, self.bottom, self.bottom + self.height

    def x(self, value: float) -> float:
        return self.left + self.width * value / self.across

    def y(self, value: float) -> float:
        return self.bottom + self.height * value / self.up

    def spanning(self, across: float, up: float) -> Panel:
        return Panel(self.left, self.bottom, self.width, self.height, across, up)


def _blank(height: float) -> Axes:
    """A white picture, measured in pixels."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("none")  # a notebook's theme may ask for one
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH * DPI), ylim=(0, height * DPI))
    ax.axis("off")
    return ax


def _png(ax: Axes) -> bytes:
    """Drawn once: savefig would draw twice, to find the size that is known."""
    canvas = ax.get_figure(root=True).canvas  # type: ignore[union-attr]
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(buffer, format="png")
    return buffer.getvalue()


def _triptych(ax: Axes, scene: Scene, classes: Sequence[str], top: float, side: float) -> None:
    """The image, the change with eps as full scale, and the attacked image."""
    eps = 0.0 if scene.question.attack == NONE else float(scene.question.eps)
    scale = f"change, {1 / (2 * eps):.0f} times" if eps else "change: none"
    name = classes[scene.label]
    heads = (f"clean: {name}" if BOLD * (7 + len(name)) < side else name, scale, "attacked" if eps else "the same")
    _images(ax, (scene.clean, _magnified(scene), scene.attacked), heads, top, side)


def _images(ax: Axes, images: Sequence[Tensor], heads: Sequence[str], top: float, side: float) -> None:
    """Images side by side, grey or colour, each under its title."""
    for i, (image, head) in enumerate(zip(images, heads, strict=True)):
        pixels = image.float().cpu().expand(3, -1, -1).permute(1, 2, 0).numpy()
        high, wide = pixels.shape[:2]
        panel = Panel(LEFT + i * (side + 9), top - side * high / wide, side, side * high / wide)
        ax.imshow(pixels, interpolation="nearest", aspect="auto", extent=panel.extent, origin="upper")
        ax.add_patch(Rectangle((panel.left, panel.bottom), panel.width, panel.height, fill=False, lw=0.8, ec=LINES))
        _title(ax, panel, _cut(head, int(side / BOLD)), 9)


def _answers(ax: Axes, scene: Scene, classes: Sequence[str], heights: Mapping[str, float]) -> None:
    """What the mixture says before and after, red where it is wrong."""
    for (what, height), output in zip(heights.items(), (scene.before, scene.after), strict=True):
        colour = RIGHT if int(output.logits.argmax()) == scene.label else WRONG
        said = f"{what}: {_said(output.logits, classes)}"
        ax.text(LEFT, height, said, fontsize=11.5, weight="bold", color=colour)


def _said(logits: Tensor, classes: Sequence[str]) -> str:
    share = torch.softmax(logits[0].float(), dim=0)
    return f"{classes[int(share.argmax())]} ({float(share.max()):.0%})"


def _magnified(scene: Scene) -> Tensor:
    """The perturbation with eps as full scale: grey where nothing changed."""
    eps = float(scene.question.eps)
    change = scene.attacked - scene.clean
    return (0.5 + change / (2 * eps)).clamp(0, 1) if eps else torch.full_like(change, 0.5)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _title(ax: Axes, panel: Panel, text: str, size: float = 10) -> None:
    ax.text(panel.left, panel.bottom + panel.height + 7, text, fontsize=size, weight="bold", color=RIGHT)


def _axes(ax: Axes, panel: Panel, xticks: Mapping[float, str], ytick: float, xlabel: str) -> None:
    """What stands around a panel: lines across with their numbers in %, a name below each place."""
    left, right, low, high = panel.extent
    ticks = [ytick * i for i in range(int(panel.up / ytick + 1e-9) + 1)]
    ax.add_collection(_lines([((left, panel.y(y)), (right, panel.y(y))) for y in ticks[1:]], LINES, 0.8, 0.5))
    ax.add_collection(_lines([((left, high), (left, low), (right, low))], "0.6", 1, 1.5))
    for y in ticks:
        ax.text(left - 6, panel.y(y), f"{100 * y:.0f} %", ha="right", va="center", fontsize=8.5, color=QUIET)
    for x, name in xticks.items():
        ax.text(panel.x(x), low - 5, name, ha="center", va="top", fontsize=8.5, color=QUIET)
    ax.text((left + right) / 2, low - 22, xlabel, ha="center", va="top", fontsize=9, color=RIGHT)


def _lines(lines: Sequence[Any], colours: Any, width: float, zorder: float) -> LineCollection:
    return LineCollection(lines, colors=colours, linewidths=width, zorder=zorder)


def _bars(ax: Axes, panel: Panel, before: Sequence[float], after: Sequence[float]) -> None:
    """Two bars for each expert, pale before the attack and full after it."""
    colours = _colours(len(before))
    pairs = [*zip(_places(before), before, strict=True), *zip(_places(after, 0.42), after, strict=True)]
    boxes = [
        [(panel.x(x + dx), panel.y(y)) for dx, y in ((-0.2, 0), (-0.2, height), (0.2, height), (0.2, 0))]
        for x, height in pairs
    ]
    ax.add_collection(PolyCollection(boxes, facecolors=[*(tint(c, 0.6) for c in colours), *colours], linewidths=0))


def _places(values: Sequence[float], shift: float = 0.0) -> list[float]:
    return [i + 0.29 + shift for i in range(len(values))]


def _gate(ax: Axes, panel: Panel, scene: Scene) -> None:
    """Who is heard: the nine weights, clean beside attacked."""
    before, after = (output.gate_weights[0].tolist() for output in (scene.before, scene.after))
    panel = panel.spanning(len(before), max(0.5, *before, *after) * 1.05)
    _title(ax, panel, "who is heard: gate weight of each expert, pale before, full after")
    _axes(ax, panel, {i + 0.5: str(i) for i in range(len(before))}, 0.1 if panel.up < 0.6 else 0.2, "")
    _bars(ax, panel, before, after)
    if len(before) == len(EXPERT_KINDS):
        for i, (kind, colour) in enumerate(KINDS.items()):
            x, y = panel.left + panel.width / 2 - 120 + 85 * i, panel.bottom - 36
            ax.add_patch(Rectangle((x, y), 22, 9, color=colour, lw=0))
            ax.text(x + 28, y + 4.5, kind, va="center", fontsize=8.5, color=RIGHT)


def _votes(ax: Axes, panel: Panel, scene: Scene, classes: Sequence[str]) -> None:
    """What each expert says by itself, and how sure it is; red where it is wrong."""
    shares = [torch.softmax(e.expert_logits[0].float(), dim=1).max(dim=1) for e in (scene.before, scene.after)]
    before, after = (found.values.tolist() for found in shares)
    panel = panel.spanning(len(before), 1.15)
    _title(ax, panel, "what each says alone: its vote (red: wrong) and its confidence")
    _axes(ax, panel, {i + 0.5: str(i) for i in range(len(before))}, 0.2, "expert")
    _bars(ax, panel, before, after)
    for found, sure, shift in zip(shares, (before, after), (0.0, 0.42), strict=True):
        for x, y, vote in zip(_places(sure, shift), sure, found.indices.tolist(), strict=True):
            told = classes[vote] if len(classes[vote]) < 3 else classes[vote][:4]
            ink = RIGHT if vote == scene.label else WRONG
            ax.text(panel.x(x), panel.y(y) + 3, told, ha="center", fontsize=8.5, color=ink)


def _path(ax: Axes, panel: Panel, path: Tensor) -> None:
    """How the gate's weights move over the iterations of the attack."""
    last = max(len(path) - 1, 1)
    panel = panel.spanning(last, max(0.5, float(path.max()) * 1.05))
    _title(ax, panel, "gate weights along the attack")
    ticks = {float(k): f"{k:.0f}" for k in MaxNLocator(nbins=10, integer=True).tick_values(0, last) if k <= last}
    _axes(ax, panel, ticks, 0.1 if panel.up < 0.6 else 0.2, "iteration")
    lines = [[(panel.x(k), panel.y(weight)) for k, weight in enumerate(one)] for one in path.T.tolist()]
    colours = _colours(path.shape[1])
    ax.add_collection(_lines(lines, colours, 1.8, 2))
    if len(path) < 3:  # a path this short is a point or two
        points = [(x, y, colour) for line, colour in zip(lines, colours, strict=True) for x, y in line]
        x, y, shown = zip(*points, strict=True)
        ax.scatter(x, y, s=18, c=shown, zorder=3)


def _colours(experts: int) -> list[Colour]:
    shades = expert_colours()
    return shades if experts == len(shades) else [GREY] * experts
