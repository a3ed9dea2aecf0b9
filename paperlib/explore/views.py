"""What the explorers show, and what stands in their place without a kernel: a sentence and a picture of each state.

Drawn without pyplot, because widgets are updated in another thread than the notebook's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from paperlib.explore.scene import FGSM, NONE, Scene
from paperlib.profiles import budget_text
from paperlib.report.figures import expert_colours, show_image
from paperlib.report.style import KINDS
from paperlib.training.recipes import EXPERT_KINDS

WIDTH, HEIGHT, DPI = 11.6, 5.4, 100  # fits beside a notebook's margins at 1280 pixels
RIGHT, WRONG = "0.25", "#c1121f"
GREY = (0.35, 0.35, 0.35)


def sentence(scene: Scene, classes: Sequence[str]) -> str:
    """What was asked and what came out, in plain text."""
    before, after = (_said(evidence.logits, classes) for evidence in (scene.before, scene.after))
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
    figure = _figure(HEIGHT)
    _triptych(figure, scene, classes, left=0.01, right=0.42, top=0.93, bottom=0.53)
    _answers(figure, scene, classes, {"before": 0.48, "after": 0.43})
    _path(figure.add_axes((0.055, 0.09, 0.345, 0.27)), scene.path)
    _gate(figure.add_axes((0.48, 0.6, 0.51, 0.33)), scene)
    _votes(figure.add_axes((0.48, 0.09, 0.51, 0.36)), scene, classes)
    return _png(figure)


def nine(scene: Scene, classes: Sequence[str]) -> bytes:
    """The scene as PNG: how sure each expert is of each class, clean and attacked; the true class is framed."""
    figure = _figure(HEIGHT)
    _triptych(figure, scene, classes, left=0.01, right=0.34, top=0.93, bottom=0.62)
    _answers(figure, scene, classes, {"together, before": 0.5, "together, after": 0.44})
    figure.text(0.01, 0.33, "Right: how sure each expert is of each class.\nFramed: the true class.", fontsize=10)
    experts = scene.after.expert_logits.shape[1]
    kinds = EXPERT_KINDS if experts == len(EXPERT_KINDS) else ("",) * experts
    names = [name if len(name) < 3 else name[:4] for name in classes]
    for place, (what, evidence) in enumerate((("clean", scene.before), ("attacked", scene.after))):
        ax = figure.add_axes((0.44 + 0.285 * place, 0.1, 0.265, 0.8))
        share = torch.softmax(evidence.expert_logits[0].float(), dim=1)
        ax.imshow(share.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
        ax.add_patch(Rectangle((scene.label - 0.5, -0.5), 1, experts, fill=False, lw=2, color=KINDS["benign"]))
        for i, row in enumerate(share):
            sure, vote = float(row.max()), int(row.argmax())
            ink = "white" if sure > 0.5 else "0.1"
            ax.text(vote, i, f"{sure:.0%}", ha="center", va="center", fontsize=8, color=ink)
        ax.set_title(what, fontsize=10.5, loc="left")
        ax.set_xticks(range(len(names)), names, fontsize=9, rotation=90 if len(max(names, key=len)) > 2 else 0)
        ax.set_yticks(range(experts))
        labels = ax.set_yticklabels([f"{i} {kind}" if place == 0 else "" for i, kind in enumerate(kinds)], fontsize=9.5)
        for label, (red, green, blue) in zip(labels, _colours(experts), strict=True):
            label.set_color((0.75 * red, 0.75 * green, 0.75 * blue))
        ax.tick_params(length=0)
        ax.grid(False)
    return _png(figure)


def eyes(image: Tensor, moved: Tensor, head: str, scale: str, tail: str) -> bytes:
    """An image, a change made visible and the changed image as PNG, large enough to judge by eye."""
    figure = _figure(4.2)
    grid = figure.add_gridspec(1, 3, left=0.01, right=0.99, top=0.92, bottom=0.01, wspace=0.04)
    change = moved - image
    largest = float(change.abs().max())
    shown = 0.5 + change / (2 * largest) if largest else torch.full_like(change, 0.5)
    for i, (what, title) in enumerate(((image, head), (shown, scale), (moved, tail))):
        _image(figure.add_subplot(grid[i]), what, title)
    return _png(figure)


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    figure.set_layout_engine("none")  # a notebook's theme may ask for one, which costs a tenth of a second
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # not the theme's, made for print
    return buffer.getvalue()


def _triptych(figure: Figure, scene: Scene, classes: Sequence[str], **place: float) -> None:
    """The image, the change with eps as full scale, and the attacked image."""
    grid, eps = figure.add_gridspec(1, 3, wspace=0.06, **place), float(scene.question.eps)
    eps = 0.0 if scene.question.attack == NONE else eps
    scale = f"change, {1 / (2 * eps):.0f} times" if eps else "change: none"
    heads = (f"clean: {classes[scene.label]}", scale, "attacked" if eps else "the same")
    for i, (image, head) in enumerate(zip((scene.clean, _magnified(scene), scene.attacked), heads, strict=True)):
        _image(figure.add_subplot(grid[i]), image, head)


def _answers(figure: Figure, scene: Scene, classes: Sequence[str], heights: dict[str, float]) -> None:
    """What the mixture says before and after, red where it is wrong."""
    for (what, height), evidence in zip(heights.items(), (scene.before, scene.after), strict=True):
        colour = RIGHT if int(evidence.logits.argmax()) == scene.label else WRONG
        said = f"{what}: {_said(evidence.logits, classes)}"
        figure.text(0.01, height, said, fontsize=11.5, weight="bold", color=colour)


def _said(logits: Tensor, classes: Sequence[str]) -> str:
    share = torch.softmax(logits[0].float(), dim=0)
    return f"{classes[int(share.argmax())]} ({float(share.max()):.0%})"


def _magnified(scene: Scene) -> Tensor:
    """The perturbation with eps as full scale: grey where nothing changed."""
    eps = float(scene.question.eps)
    change = scene.attacked - scene.clean
    return (0.5 + change / (2 * eps)).clamp(0, 1) if eps else torch.full_like(change, 0.5)


def _image(ax: Axes, image: Tensor, head: str) -> None:
    show_image(ax, image)
    ax.set_title(head, fontsize=9, loc="left")


def _gate(ax: Axes, scene: Scene) -> None:
    """Who is heard: the nine weights, clean beside attacked."""
    before, after = (evidence.gate_weights[0].tolist() for evidence in (scene.before, scene.after))
    places, colours = range(len(before)), _colours(len(before))
    ax.bar([p - 0.21 for p in places], before, 0.4, color=colours, alpha=0.4)
    ax.bar([p + 0.21 for p in places], after, 0.4, color=colours)
    ax.set_ylim(0, max(0.5, *before, *after) * 1.05)
    ax.set_title("who is heard: gate weight of each expert, pale before, full after", fontsize=10, loc="left")
    _plain(ax, len(before))
    kinds = [Patch(color=colour, label=kind) for kind, colour in KINDS.items()]
    if len(before) == len(EXPERT_KINDS):
        ax.legend(handles=kinds, fontsize=8.5, frameon=False, ncol=3, loc="upper right")


def _votes(ax: Axes, scene: Scene, classes: Sequence[str]) -> None:
    """What each expert says by itself, and how sure it is; red where it is wrong."""
    n, colours = scene.after.expert_logits.shape[1], _colours(scene.after.expert_logits.shape[1])
    for place, evidence, alpha in ((-0.21, scene.before, 0.4), (0.21, scene.after, 1.0)):
        share = torch.softmax(evidence.expert_logits[0].float(), dim=1)
        sure, vote = (found.tolist() for found in share.max(dim=1))
        ax.bar([i + place for i in range(n)], sure, 0.4, color=colours, alpha=alpha)
        for i in range(n):
            told = classes[vote[i]] if len(classes[vote[i]]) < 3 else classes[vote[i]][:4]
            right = vote[i] == scene.label
            ax.text(i + place, sure[i] + 0.02, told, ha="center", fontsize=8, color=RIGHT if right else WRONG)
    ax.set_ylim(0, 1.15)
    ax.set_title("what each says alone: its vote (red: wrong) and its confidence", fontsize=10, loc="left")
    _plain(ax, n)
    ax.set_xlabel("expert", fontsize=9)


def _path(ax: Axes, path: Tensor) -> None:
    """How the gate's weights move over the iterations of the attack."""
    last = max(len(path) - 1, 1)
    for weights, colour in zip(path.T.tolist(), _colours(path.shape[1]), strict=True):
        ax.plot(range(len(weights)), weights, color=colour, lw=1.8, marker="o" if len(path) < 3 else None, ms=4)
    ax.set_ylim(0, max(0.5, float(path.max()) * 1.05))
    ax.set_xlim(0, last)
    ax.set_title("gate weights along the attack", fontsize=10, loc="left")
    ax.set_xlabel("iteration", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=8.5)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def _plain(ax: Axes, experts: int) -> None:
    ax.set_xticks(range(experts), [str(i) for i in range(experts)])
    ax.set_xlim(-0.6, experts - 0.4)
    ax.tick_params(labelsize=8.5, length=0)
    ax.grid(False, axis="x")
    ax.grid(True, axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _colours(experts: int) -> list[tuple[float, float, float]]:
    shades = expert_colours()
    return shades if experts == len(shades) else [GREY] * experts
