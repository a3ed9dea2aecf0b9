"""The explorers: scenes are the outputs of the mixture, pictures show them, controls change them."""

from __future__ import annotations

import base64
import io
import threading
from collections import Counter
from fractions import Fraction
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from paperlib import Dataset, Study, load_profile
from paperlib.attacks import pgd
from paperlib.errors import InputError, MissingError
from paperlib.explore import (
    Explorer,
    Live,
    Recorded,
    Selection,
    eps_explorer,
    experts_explorer,
    experts_of,
    gate_explorer,
    source_of,
)
from paperlib.explore.scene import FGSM, IMAGES, NONE, PGD, SceneSource, budgets_of
from paperlib.explore.views import ChangeView, ExpertsView, GateView, sentence
from paperlib.models import Gate, Mixture, resnet18
from paperlib.report import style

BUDGETS = (Fraction(0), Fraction(1, 20), Fraction(1, 10))
TENTH = BUDGETS[2]


@pytest.fixture(scope="module")
def mixture(digits: Dataset) -> Mixture:
    """Nine tiny networks with a gate that depends on the image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixture = Mixture([resnet18(10, 2, (0.3,), (0.4,)) for _ in range(9)], Gate(9, 2, 1, (0.3,), (0.4,)))
        nn.init.normal_(mixture.gate.get_submodule("head").weight)
        mixture.train()(digits.train.images[:60])
    return mixture.eval()


@pytest.fixture
def live(mixture: Mixture, digits: Dataset) -> Live:
    return Live(mixture, digits.test, digits.classes, BUDGETS)


@pytest.fixture
def recorded(live: Live) -> Recorded:
    budgets = {NONE: BUDGETS[0], FGSM: TENTH, PGD: TENTH}
    arrays: dict[str, Tensor] = {"labels": torch.tensor(live.labels[:3])}
    for attack, eps in budgets.items():
        scenes = [live.scene(Selection(i, attack, eps, 5)) for i in range(3)]
        kind = "clean" if attack == NONE else attack.lower()
        arrays[f"{kind}/images"] = torch.stack([s.attacked for s in scenes])
        for name in ("logits", "expert_logits", "gate_weights"):
            arrays[f"{kind}/{name}"] = torch.cat([getattr(s.after, name) for s in scenes])
    return Recorded({"eps": "0.1", "pgd_steps": 5}, arrays, live.classes)


# -- scenes ----------------------------------------------------------------------------------------------------------


def test_a_live_scene_holds_the_outputs_of_the_mixture(live: Live, mixture: Mixture, digits: Dataset) -> None:
    for attack in (NONE, FGSM, PGD, "PGD, expert 3", "PGD, gate to worst"):
        scene = live.scene(Selection(2, attack, TENTH, 5))
        assert torch.equal(scene.clean, digits.test.images[2]) and scene.label == int(digits.test.labels[2])
        assert float((scene.attacked - scene.clean).abs().max()) <= 0.1 + 1e-6
        assert float(scene.attacked.min()) >= 0 and float(scene.attacked.max()) <= 1
        for image, outputs in ((scene.clean, scene.before), (scene.attacked, scene.after)):
            with torch.no_grad():
                expected = mixture.forward_with_experts(image[None])
            assert torch.allclose(outputs.logits, expected.logits, atol=1e-5)
            assert torch.allclose(outputs.expert_logits, expected.expert_logits, atol=1e-5)
        assert torch.equal(scene.path[0], scene.before.gate_weights[0])
        assert torch.equal(scene.path[-1], scene.after.gate_weights[0])
        assert len(scene.path) == {NONE: 1, FGSM: 2}.get(attack, 6)


def test_attacks_on_gate_and_experts_are_offered_and_differ(live: Live) -> None:
    experts = [f"PGD, expert {i}" for i in range(9)]
    assert live.attacks[:3] == (NONE, FGSM, PGD)
    assert set(live.attacks[3:]) == {*experts, "PGD, gate to worst", "PGD, gate to benign"}
    scenes = {attack: live.scene(Selection(1, attack, TENTH, 5)) for attack in live.attacks}
    benign = scenes["PGD, gate to benign"]
    assert benign.after.gate_weights[0, 0] > benign.before.gate_weights[0, 0]
    assert len({tuple(scene.attacked.flatten().tolist()) for scene in scenes.values()}) > 10


def test_the_path_holds_the_gate_weights_of_each_iterate(live: Live, mixture: Mixture) -> None:
    scene = live.scene(Selection(0, PGD, TENTH, 5))
    x, y = live.split.images[:1], live.split.labels[:1]
    for k in (1, 3, 5):
        iterate = pgd(mixture, x, y, eps=0.1, step_size=0.025, steps=k, random_start=False)
        with torch.no_grad():
            assert torch.allclose(scene.path[k], mixture.forward_with_experts(iterate).gate_weights[0], atol=1e-4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Selection(0, PGD, TENTH, 5), Selection(0, PGD, TENTH, 5)),
        # settings without effect
        (Selection(0, NONE, TENTH, 5), Selection(0, PGD, BUDGETS[0], 20)),
        (Selection(0, FGSM, TENTH, 5), Selection(0, FGSM, TENTH, 50)),
    ],
)
def test_equal_selections_give_equal_scenes(live: Live, one: Selection, other: Selection) -> None:
    first, second = live.scene(one), live.scene(other)
    assert first.selection == second.selection
    assert torch.equal(first.attacked, second.attacked) and torch.equal(first.path, second.path)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(IMAGES), r"image=30: choose one of 0, 1"),
        (Selection(-1), r"image=-1"),
        (Selection(0, "pgd"), r"attack=pgd: choose one of none, FGSM, PGD"),
        (Selection(0, PGD, Fraction(8)), r"eps=8: choose one of 0, 0.05, 0.1"),
        (Selection(0, PGD, TENTH, 4), r"steps=4: choose one of 1, 2, 3, 5"),
    ],
)
def test_a_value_that_is_not_offered_is_an_error(live: Live, selection: Selection, message: str) -> None:
    with pytest.raises(InputError, match=message):
        live.scene(selection)


def test_a_scene_changes_neither_the_mixture_nor_the_threads(mixture: Mixture, digits: Dataset) -> None:
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    threads = torch.get_num_threads()
    Live(mixture, digits.test, digits.classes, BUDGETS, threads=2).scene(Selection(0, FGSM, TENTH, 5))
    assert torch.get_num_threads() == threads and not mixture.training
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in mixture.parameters())


def test_a_recorded_scene_is_the_one_recorded(live: Live, recorded: Recorded) -> None:
    assert (recorded.attacks, recorded.budgets, recorded.steps) == ((NONE, FGSM, PGD), (Fraction(0), TENTH), (5,))
    for attack in recorded.attacks:
        selection = Selection(1, attack, TENTH, 5)
        ours, expected = recorded.scene(selection), live.scene(selection)
        assert ours.label == expected.label and torch.equal(ours.attacked, expected.attacked)
        assert torch.equal(ours.after.logits, expected.after.logits)
        assert torch.equal(ours.path[[0, -1]], expected.path[[0, -1]])
    clean = recorded.scene(Selection(1, PGD, BUDGETS[0], 5))
    assert torch.equal(clean.attacked, clean.clean) and len(clean.path) == 1
    with pytest.raises(InputError, match="steps=7: choose one of 5"):
        recorded.scene(Selection(0, PGD, TENTH, 7))


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_budgets_contain_zero_and_the_headline(name: str) -> None:
    config = load_profile(name).evaluation
    budgets = budgets_of(load_profile(name))
    assert budgets[0] == 0 and config.eps in budgets and max(budgets) == max(config.eps_sweep) and len(budgets) < 20
    assert list(budgets) == sorted(set(budgets))


def test_the_published_weights_are_enough_for_live_scenes() -> None:
    study = Study("digits", local=False)
    source = source_of(study)
    assert isinstance(source, Live) and "live" in source.note and len(source.labels) == IMAGES
    assert source.scene(Selection(0, PGD, Fraction(3, 20), 5)).path.shape == (6, 9)
    experts = experts_of(study)  # those of phase 1 are not published
    assert isinstance(experts, Live) and experts.note.startswith("the experts of DWF, after phase 2")


def test_without_weights_the_source_is_the_gallery_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> nn.Module:
        raise MissingError("dwf: no weights here")

    monkeypatch.setattr(Study, "load", missing)
    source = source_of(Study("digits", local=False))
    assert isinstance(source, Recorded) and source.note == "recorded, no live attack: dwf: no weights here"
    assert source.labels == list(range(10))
    assert source.scene(Selection(3, PGD, Fraction(3, 20), source.steps[0])).label == 3


# -- pictures --------------------------------------------------------------------------------------------------------

VIEWS = pytest.mark.parametrize("make", [GateView, ExpertsView])


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@VIEWS
def test_a_picture_depends_on_its_scene_only(make: Any, live: Live) -> None:
    """Not on the thread, on the scenes drawn before, or on the theme of the notebook."""
    scenes = [live.scene(Selection(2, PGD, TENTH, steps)) for steps in (10, 20)]
    scenes.append(live.scene(Selection(3, NONE, TENTH, 10)))
    view, pictures = make(live.classes), list[bytes]()
    thread = threading.Thread(target=lambda: pictures.extend(view.draw(scene) for scene in (*scenes, *scenes)))
    thread.start()
    thread.join()
    assert pictures[:3] == pictures[3:] and len(set(pictures)) == 3
    height, width, _ = pixels(pictures[0]).shape
    assert width <= 1240 and height <= 620
    style.use_style()
    other = make(live.classes)
    assert other.draw(scenes[0]) == pictures[0]
    assert other.draw(scenes[2]) == pictures[2]
    plt.rcdefaults()


@VIEWS
def test_pictures_show_three_experts_and_long_class_names(make: Any, digits: Dataset) -> None:
    three = Mixture([resnet18(10, 2, (0.3,), (0.4,)) for _ in range(3)], Gate(3, 2, 1, (0.3,), (0.4,))).eval()
    names = [f"a very long name {c}" for c in "abcdefghij"]
    source = Live(three, digits.test, names, BUDGETS, benign=None)
    assert "PGD, gate to benign" not in source.attacks
    view = make(names)
    for attack in (NONE, PGD):
        assert pixels(view.draw(source.scene(Selection(0, attack, TENTH, 5)))).std() > 10


def test_the_gate_view_shows_weights_confidences_predictions_and_path(live: Live) -> None:
    view, scene = GateView(live.classes), live.scene(Selection(2, PGD, TENTH, 5))
    view.draw(live.scene(Selection(1, NONE)))
    view.draw(scene)
    for bars, output in zip(view._gate_bars, (scene.before, scene.after), strict=True):
        assert [bar.get_height() for bar in bars] == pytest.approx(output.gate_weights[0].tolist())
    for bars, texts, output in zip(view._vote_bars, view._vote_texts, (scene.before, scene.after), strict=True):
        confidence, vote = torch.softmax(output.expert_logits[0], dim=1).max(dim=1)
        assert [bar.get_height() for bar in bars] == pytest.approx(confidence.tolist())
        assert [text.get_text() for text in texts] == [live.classes[c] for c in vote]
        correct = [text.get_color() != style.ERROR_COLOUR for text in texts]
        assert correct == [int(c) == scene.label for c in vote]
    for line, weights in zip(view._lines, scene.path.T.tolist(), strict=True):
        assert line.get_ydata() == pytest.approx(weights)
    assert view._path.get_xlim() == (0, 5)


def test_the_experts_view_shows_probabilities_and_frames_the_true_class(live: Live) -> None:
    view, scene = ExpertsView(live.classes), live.scene(Selection(2, PGD, TENTH, 5))
    view.draw(live.scene(Selection(1, NONE)))
    view.draw(scene)
    for i, output in enumerate((scene.before, scene.after)):
        probabilities = torch.softmax(output.expert_logits[0], dim=1)
        assert np.allclose(view._maps[i].get_array(), probabilities, atol=1e-6)
        assert view._frames[i].get_x() == scene.label - 0.5
        texts = [(text.get_position()[0], text.get_text()) for text in view._texts[i]]
        assert texts == [(int(p.argmax()), f"{100 * float(p.max()):.0f}") for p in probabilities]


def test_the_change_view_scales_the_change_and_shows_none_as_grey() -> None:
    image = torch.full((1, 2, 2), 0.5)
    changed = image + torch.tensor([[[0.1, -0.1], [0.05, 0.0]]])
    view = ChangeView()
    view.draw((image, changed, ("a", "b", "c")))
    shown = [artist.get_array()[..., 0] for artist in view._images._images]
    assert np.allclose(shown[1], [[1, 0], [0.75, 0.5]], atol=1e-5) and np.allclose(shown[2], changed[0])
    view.draw((image, image, ("a", "b", "c")))
    assert np.allclose(view._images._images[1].get_array(), 0.5)


def test_the_sentence_states_the_selection_and_the_predictions(live: Live) -> None:
    scene = live.scene(Selection(2, PGD, TENTH, 5))
    text = sentence(scene, live.classes)
    probabilities = torch.softmax(scene.after.logits[0], dim=0)
    assert text.startswith(
        f"image 2, true class {live.classes[scene.label]}, PGD, eps 0.1, 5 steps: the mixture predicts "
    )
    assert text.endswith(f", {live.classes[int(probabilities.argmax())]} ({float(probabilities.max()):.0%}) after it")
    assert "not attacked: the mixture predicts" in sentence(live.scene(Selection(2, NONE, TENTH, 10)), live.classes)
    assert ", FGSM, eps 0.1: " in sentence(live.scene(Selection(2, FGSM, TENTH, 5)), live.classes)
    assert "1 step:" in sentence(live.scene(Selection(2, PGD, TENTH, 1)), live.classes)


# -- widgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gate_explorer, experts_explorer])
def test_a_control_changes_picture_and_sentence(make: Any, live: Live) -> None:
    explorer = make(live)
    picture, text = explorer.picture.value, explorer.sentence.value
    explorer.controls["eps"].value = TENTH
    explorer.controls["attack"].value = FGSM
    assert explorer.picture.value != picture and explorer.sentence.value != text
    assert "FGSM, eps 0.1" in explorer.sentence.value and explorer.text in explorer.sentence.value
    explorer.controls["image"].value = 5
    assert "image 5" in explorer.text


def test_every_control_has_a_label_and_a_tooltip(live: Live, recorded: Recorded, digits: Dataset) -> None:
    sources: list[SceneSource] = [live, recorded]
    explorers = [make(source) for make in (gate_explorer, experts_explorer) for source in sources]
    explorers.append(eps_explorer(digits.test.images[:3], [1, 2, 3], digits.classes, BUDGETS))
    for explorer in explorers:
        for name, control in explorer.controls.items():
            assert control.description == name and len(control.tooltip) > 5
            assert f"explorer-{name}" in control._dom_classes


def test_a_known_state_is_not_drawn_again() -> None:
    calls: Counter[int] = Counter()

    def show(n: int) -> tuple[bytes, str]:
        calls[n] += 1
        return b"%d" % n, f"number {n}"

    explorer = Explorer({"n": widgets.IntSlider(1, 0, 5)}, show)
    for n in (2, 1, 2, 3):
        explorer.controls["n"].value = n
    assert calls == {1: 1, 2: 1, 3: 1} and explorer.picture.value == b"3"


def test_an_error_in_an_observer_is_shown_until_the_next_state() -> None:
    def show(n: int) -> tuple[bytes, str]:
        if n == 2:
            raise InputError("two is <not> drawn")
        return b"", f"number {n}"

    explorer = Explorer({"n": widgets.IntSlider(1, 0, 5)}, show)
    explorer.controls["n"].value = 2
    assert "InputError: two is &lt;not&gt; drawn" in explorer.sentence.value
    explorer.controls["n"].value = 3
    assert explorer.sentence.value == "<b>number 3</b>"


def test_readers_without_a_kernel_get_the_picture_and_the_sentence(live: Live) -> None:
    explorer = gate_explorer(live, Selection(4, PGD, TENTH, 10))
    bundle = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(data["image/png"]) == explorer.picture.value
    assert data["text/plain"] == explorer.text and "image 4" in explorer.text
    assert "application/vnd.jupyter.widget-view+json" in data


def test_class_names_are_escaped(mixture: Mixture, digits: Dataset) -> None:
    names = ["<i>nought</i>", *digits.classes[1:]]
    source = Live(mixture, digits.test, names, BUDGETS)
    explorer = gate_explorer(source, Selection(source.labels.index(0), PGD, TENTH, 5))
    assert "&lt;i&gt;nought" in explorer.sentence.value


def test_the_eps_explorer_moves_pixels_by_eps(digits: Dataset) -> None:
    explorer = eps_explorer(digits.test.images[:3], [4, 5, 6], digits.classes, BUDGETS)
    assert explorer.text == "image 0, class 4, every pixel moved by 0.05 at random, within [0, 1]"
    picture = explorer.picture.value
    explorer.controls["moved"].value = "up"
    assert "0.05 up" in explorer.text and explorer.picture.value != picture
    explorer.controls["eps"].value = BUDGETS[0]
    assert "moved by 0 up" in explorer.text
