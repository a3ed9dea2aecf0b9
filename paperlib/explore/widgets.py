"""Explorers for JupyterLab: labelled controls, a sentence and a picture; without a kernel, the picture alone."""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import ipywidgets as widgets
import torch

from paperlib.config.budgets import budget_text
from paperlib.explore.scene import FGSM, NONE, PGD, SceneSource, Selection
from paperlib.explore.views import DPI, WIDTH, ChangeView, ExpertsView, GateView, sentence
from paperlib.report.style import ERROR_COLOUR
from paperlib.seeds import cpu_generator, integers
from paperlib.shapes import Images

Drawing = tuple[bytes, str]  # a picture as PNG, and the sentence that states the same
CACHED_DRAWINGS = 512


class Explorer(widgets.VBox):
    """Controls whose values are shown as a sentence and a picture.

    Every control works from the keyboard: Tab moves between them, left and right change them. Readers without a kernel
    see the picture and the sentence of the state in which the notebook was run.

    Args:
        controls: by name; their values are the arguments of ``show``.
        show: from the values to a picture and a sentence; called once for each state.
        note: a line below the picture.
    """

    def __init__(self, controls: Mapping[str, widgets.Widget], show: Callable[..., Drawing], note: str = "") -> None:
        self.controls = dict(controls)
        self.picture = widgets.Image(format="png", width=round(WIDTH * DPI))
        self.sentence = widgets.HTML()
        self.picture.add_class("explorer-picture")
        self.sentence.add_class("explorer-sentence")
        self._show = functools.lru_cache(CACHED_DRAWINGS)(show)
        for name, control in self.controls.items():
            control.add_class(f"explorer-{name}")
            control.observe(self._changed, names="value")
        ordered = list(self.controls.values())
        rows = [widgets.HBox(ordered[i : i + 2]) for i in range(0, len(ordered), 2)]
        footer = widgets.HTML(f"<small>{html.escape(note)}</small>")
        super().__init__([*rows, self.sentence, self.picture, footer])
        self.draw()

    def draw(self) -> None:
        """Show the state of the controls. The sentence is set last: when it has changed, so has the picture."""
        self.picture.value, self.text = self._show(**{name: c.value for name, c in self.controls.items()})
        self.sentence.value = f"<b>{html.escape(self.text)}</b>"

    def _changed(self, change: Any) -> None:
        try:
            self.draw()
        except Exception as error:  # an error in an observer is displayed nowhere else
            message = html.escape(f"{type(error).__name__}: {error}")
            self.sentence.value = f'<b style="color:{ERROR_COLOUR}">{message}</b>'

    def _repr_mimebundle_(self, **settings: Any) -> Any:
        bundle = super()._repr_mimebundle_(**settings)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["image/png"] = base64.b64encode(self.picture.value).decode()
        data["text/plain"] = self.text
        return bundle


def gate_explorer(source: SceneSource, first: Selection | None = None) -> Explorer:
    """One image under one attack: gate weights before, during and after it, and each expert's prediction.

    Args:
        source: where the scenes come from.
        first: the selection shown first; by default PGD at a budget in the middle.
    """
    return _scene_explorer(source, GateView(source.classes), first)


def experts_explorer(source: SceneSource, first: Selection | None = None) -> Explorer:
    """One image and all experts: the probability that each gives to each class, clean and attacked.

    Args:
        source: where the scenes come from.
        first: the selection shown first; by default PGD at a budget in the middle.
    """
    return _scene_explorer(source, ExpertsView(source.classes), first)


def eps_explorer(
    images: Images, labels: Sequence[int], classes: Sequence[str], budgets: Sequence[Fraction]
) -> Explorer:
    """How visible a change of eps is: every pixel moved by eps, up or down at random, or all in one direction."""
    directions = ("at random", "up", "down")
    signs = 2 * integers(2, images.shape, cpu_generator(0), images.device) - 1
    view = ChangeView()

    def show(image: int, eps: Fraction, moved: str) -> Drawing:
        up = torch.ones_like(signs[image])
        sign = {"at random": signs[image], "up": up, "down": -up}[moved]
        clean = images[image].float()
        changed = (clean + float(eps) * sign).clamp(0, 1)
        name = classes[labels[image]]
        titles = (f"clean: {name}", "change, at full scale", f"eps {budget_text(eps)}")
        text = f"image {image}, class {name}, every pixel moved by {budget_text(eps)} {moved}, within [0, 1]"
        return view.draw((clean, changed, titles)), text

    controls = {
        "image": _image_slider(labels, classes, 0),
        "eps": _slider("eps", budgets, budgets[len(budgets) // 2], "How far each pixel moves, on the scale [0, 1]"),
        "moved": _slider("moved", directions, directions[0], "The direction in which the pixels move"),
    }
    return Explorer(controls, show)


def default_selection(source: SceneSource) -> Selection:
    """What is shown first: PGD, where the source has it, at a budget in the middle."""
    attack = next((name for name in (PGD, FGSM) if name in source.attacks), NONE)
    return Selection(0, attack, source.budgets[len(source.budgets) // 2], source.steps[len(source.steps) // 2])


def _scene_explorer(source: SceneSource, view: GateView | ExpertsView, first: Selection | None) -> Explorer:
    first = first or default_selection(source)

    def show(**values: Any) -> Drawing:
        scene = source.scene(Selection(**values))
        return view.draw(scene), sentence(scene, source.classes)

    objective = "What the attack maximises: the mixture's loss, a loss of the gate, or the loss of one expert"
    controls = {
        "image": _image_slider(source.labels, source.classes, first.image),
        "attack": _slider("attack", source.attacks, first.attack, objective),
        "eps": _slider("eps", source.budgets, first.eps, "How far each pixel may move, on the scale [0, 1]"),
        "steps": _slider("steps", source.steps, first.steps, "Iterations of PGD; FGSM takes one"),
    }
    return Explorer(controls, show, source.note)


def _image_slider(labels: Sequence[int], classes: Sequence[str], first: int) -> widgets.SelectionSlider:
    names = {i: f"{i}: {classes[label]}" for i, label in enumerate(labels)}
    return _slider("image", list(names), first, "Number and class of the image", names.get)


def _slider(
    name: str, values: Sequence[Any], first: Any, tooltip: str, text: Callable[[Any], Any] | None = None
) -> widgets.SelectionSlider:
    # Sliders only: when a list has the focus, JupyterLab handles up, down and letters itself (it moves to another cell
    # or inserts one). It does not handle left and right.
    text = text or (lambda value: budget_text(value) if isinstance(value, Fraction) else str(value))
    return widgets.SelectionSlider(
        options=[(text(value), value) for value in values],
        value=first,
        description=name,
        tooltip=tooltip,
        continuous_update=False,
        style={"description_width": "4rem"},
        layout={"width": "49%"},
    )
