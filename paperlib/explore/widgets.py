"""Explorers for JupyterLab: labelled controls, a sentence, a picture; outside of a kernel, the picture alone."""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import ipywidgets as widgets
import torch
from torch import Tensor

from paperlib.config.budgets import budget_text
from paperlib.explore.scene import FGSM, NONE, PGD, Question, Source
from paperlib.explore.views import DPI, WIDTH, eyes, nine, picture, sentence
from paperlib.seeds import cpu_generator, integers

Shown = tuple[bytes, str]  # a picture, and the sentence that says the same
KEPT = 512  # pictures remembered


class Explorer(widgets.VBox):
    """Controls whose values are shown as a sentence and a picture.

    Every control works from the keyboard: Tab moves between them, left and right change them. Readers without a kernel
    see the picture and the sentence of the state in which the notebook was run.

    Args:
        controls: by name; their values are the arguments of ``show``.
        show: from the values to a picture and a sentence; asked once for each state.
        note: a line below the picture.
    """

    def __init__(self, controls: Mapping[str, widgets.Widget], show: Callable[..., Shown], note: str = "") -> None:
        self.controls = dict(controls)
        self.picture = widgets.Image(format="png", width=round(WIDTH * DPI))
        self.sentence = widgets.HTML()
        self.picture.add_class("explorer-picture")
        self.sentence.add_class("explorer-sentence")
        self._show = functools.lru_cache(KEPT)(show)
        for name, control in self.controls.items():
            control.add_class(f"explorer-{name}")
            control.observe(self._changed, names="value")
        listed = list(self.controls.values())
        rows = [widgets.HBox(listed[i : i + 2]) for i in range(0, len(listed), 2)]
        last = widgets.HTML(f"<small>{html.escape(note)}</small>")
        super().__init__([*rows, self.sentence, self.picture, last])
        self.draw()

    def draw(self) -> None:
        """Show the state of the controls; the sentence comes last, so who waits for it has the picture too."""
        shown, self.told = self._show(**{name: control.value for name, control in self.controls.items()})
        self.picture.value = shown
        self.sentence.value = f"<b>{html.escape(self.told)}</b>"

    def _changed(self, change: Any) -> None:
        try:
            self.draw()
        except Exception as error:  # an error in an observer is seen nowhere else
            told = html.escape(f"{type(error).__name__}: {error}")
            self.sentence.value = f'<b style="color:#c1121f">{told}</b>'

    def _repr_mimebundle_(self, **settings: Any) -> Any:
        bundle = super()._repr_mimebundle_(**settings)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["image/png"] = base64.b64encode(self.picture.value).decode()
        data["text/plain"] = self.told
        return bundle


def gate_explorer(source: Source, first: Question | None = None) -> Explorer:
    """Pick an image and an attack; see who is heard, what each expert says, and how the gate moves on the way."""

    def show(**asked: Any) -> Shown:
        scene = source.scene(Question(**asked))
        return picture(scene, source.classes), sentence(scene, source.classes)

    return Explorer(_controls(source, first), show, source.note)


def experts_explorer(source: Source, first: Question | None = None) -> Explorer:
    """One image through nine experts: how sure each is of each class, clean and attacked."""

    def show(**asked: Any) -> Shown:
        scene = source.scene(Question(**asked))
        return nine(scene, source.classes), sentence(scene, source.classes)

    return Explorer(_controls(source, first), show, source.note)


def eps_explorer(
    images: Tensor, labels: Sequence[int], classes: Sequence[str], budgets: Sequence[Fraction]
) -> Explorer:
    """What an eps looks like to a person: every pixel moved by eps up or down at random, or all the same way."""
    ways = ("at random", "up", "down")
    signs = 2 * integers(2, images.shape, cpu_generator(0), images.device) - 1

    def show(image: int, eps: Fraction, moved: str) -> Shown:
        sign = {"at random": signs[image], "up": torch.ones_like(signs[image]), "down": -torch.ones_like(signs[image])}
        x = images[image].float()
        found = (x + float(eps) * sign[moved]).clamp(0, 1)
        name = classes[labels[image]]
        told = f"a {name}, every pixel moved by {budget_text(eps)} {moved}, within [0, 1]"
        return eyes(x, found, f"clean: {name}", "change, to full scale", f"eps {budget_text(eps)}"), told

    controls = {
        "image": _images(labels, classes, 0),
        "eps": _slider("eps", budgets, budgets[len(budgets) // 2], "How far each pixel moves, of 1"),
        "moved": _slider("moved", ways, ways[0], "Which way the pixels move"),
    }
    return Explorer(controls, show)


def opening(source: Source) -> Question:
    """What is shown first: PGD, where it can be asked, at a budget in the middle."""
    attack = next((name for name in (PGD, FGSM) if name in source.attacks), NONE)
    return Question(0, attack, source.budgets[len(source.budgets) // 2], source.steps[len(source.steps) // 2])


def _controls(source: Source, first: Question | None) -> dict[str, widgets.Widget]:
    first = first or opening(source)
    told = "What the attacker climbs: the mixture's loss, its gate, or the loss of one expert"
    return {
        "image": _images(source.labels, source.classes, first.image),
        "attack": _slider("attack", source.attacks, first.attack, told),
        "eps": _slider("eps", source.budgets, first.eps, "How far each pixel may move, of 1"),
        "steps": _slider("steps", source.steps, first.steps, "Iterations of PGD; FGSM takes one"),
    }


def _images(labels: Sequence[int], classes: Sequence[str], first: int) -> widgets.SelectionSlider:
    named = {i: f"{i}: {classes[label]}" for i, label in enumerate(labels)}
    return _slider("image", list(named), first, "Which image", named.get)


def _slider(
    name: str, values: Sequence[Any], first: Any, tooltip: str, told: Callable[[Any], Any] | None = None
) -> widgets.SelectionSlider:
    # Sliders throughout: JupyterLab takes up, down and letters away from a list that has the focus, and would move to
    # another cell or insert one; left and right it leaves alone.
    told = told or (lambda value: budget_text(value) if isinstance(value, Fraction) else str(value))
    return widgets.SelectionSlider(
        options=[(told(value), value) for value in values],
        value=first,
        description=name,
        tooltip=tooltip,
        continuous_update=False,
        style={"description_width": "4rem"},
        layout={"width": "49%"},
    )
