"""The explorers: a scene is what the mixture says, a picture shows it, and controls change it."""

from __future__ import annotations

import base64
import struct
import threading
from collections import Counter
from fractions import Fraction
from typing import Any

import ipywidgets as widgets
import pytest
import torch
from torch import Tensor, nn

from paperlib import Dataset, Study, load_profile
from paperlib.attacks import pgd
from paperlib.errors import InputError, MissingError
from paperlib.explore import (
    Explorer,
    Live,
    Question,
    Recorded,
    eps_explorer,
    experts_explorer,
    experts_of,
    gate_explorer,
    source_of,
)
from paperlib.explore.scene import FGSM, IMAGES, NONE, PGD, Source, budgets_of
from paperlib.explore.views import nine, picture, sentence
from paperlib.models import Gate, Mixture, resnet18

BUDGETS = (Fraction(0), Fraction(1, 20), Fraction(1, 10))
TENTH = BUDGETS[2]


@pytest.fixture(scope="module")
def mixture(digits: Dataset) -> Mixture:
    """Nine tiny networks whose gate looks at the image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Mixture([resnet18(10, 2, (0.3,), (0.4,)) for _ in range(9)], Gate(9, 2, 1, (0.3,), (0.4,)))
        nn.init.normal_(made.gate.get_submodule("head").weight)
        made.train()(digits.train.images[:60])
    return made.eval()


@pytest.fixture
def live(mixture: Mixture, digits: Dataset) -> Live:
    return Live(mixture, digits.test, digits.classes, BUDGETS)


@pytest.fixture
def recorded(live: Live) -> Recorded:
    asked = {NONE: BUDGETS[0], FGSM: TENTH, PGD: TENTH}
    arrays: dict[str, Tensor] = {"labels": torch.tensor(live.labels[:3])}
    for attack, eps in asked.items():
        scenes = [live.scene(Question(i, attack, eps, 5)) for i in range(3)]
        kind = "clean" if attack == NONE else attack.lower()
        arrays[f"{kind}/images"] = torch.stack([s.attacked for s in scenes])
        for name in ("logits", "expert_logits", "gate_weights"):
            arrays[f"{kind}/{name}"] = torch.cat([getattr(s.after, name) for s in scenes])
    return Recorded({"eps": "0.1", "pgd_steps": 5}, arrays, live.classes)


# -- scenes ----------------------------------------------------------------------------------------------------------


def test_a_live_scene_is_what_the_mixture_says(live: Live, mixture: Mixture, digits: Dataset) -> None:
    for attack in live.attacks:
        found = live.scene(Question(2, attack, TENTH, 5))
        assert torch.equal(found.clean, digits.test.images[2]) and found.label == int(digits.test.labels[2])
        assert float((found.attacked - found.clean).abs().max()) <= 0.1 + 1e-6
        assert float(found.attacked.min()) >= 0 and float(found.attacked.max()) <= 1
        for image, forward_with_experts in ((found.clean, found.before), (found.attacked, found.after)):
            with torch.no_grad():
                expected = mixture.forward_with_experts(image[None])
            assert torch.allclose(forward_with_experts.logits, expected.logits, atol=1e-5)
            assert torch.allclose(forward_with_experts.expert_logits, expected.expert_logits, atol=1e-5)
        assert torch.equal(found.path[0], found.before.gate_weights[0])
        assert torch.equal(found.path[-1], found.after.gate_weights[0])
        assert len(found.path) == {NONE: 1, FGSM: 2}.get(attack, 6)


def test_attacks_on_gate_and_experts_are_offered_and_differ(live: Live) -> None:
    assert live.attacks[:3] == (NONE, FGSM, PGD)
    assert set(live.attacks[3:]) == {
        *(f"PGD, expert {i}" for i in range(9)),
        "PGD, gate to worst",
        "PGD, gate to benign",
    }
    benign = live.scene(Question(1, "PGD, gate to benign", TENTH, 10))
    assert benign.after.gate_weights[0, 0] > benign.before.gate_weights[0, 0]
    images = [live.scene(Question(1, attack, TENTH, 10)).attacked for attack in live.attacks]
    assert len({tuple(image.flatten().tolist()) for image in images}) > 10


def test_the_path_holds_the_weights_of_each_iterate(live: Live, mixture: Mixture) -> None:
    found = live.scene(Question(0, PGD, TENTH, 5))
    x, y = live.split.images[:1], live.split.labels[:1]
    for k in (1, 3, 5):
        at = pgd(mixture, x, y, eps=0.1, step_size=0.025, steps=k, random_start=False)
        with torch.no_grad():
            assert torch.allclose(found.path[k], mixture.forward_with_experts(at).gate_weights[0], atol=1e-4)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Question(0, PGD, TENTH, 5), Question(0, PGD, TENTH, 5)),
        # what makes no difference is no other question
        (Question(0, NONE, TENTH, 5), Question(0, PGD, BUDGETS[0], 20)),
        (Question(0, FGSM, TENTH, 5), Question(0, FGSM, TENTH, 50)),
    ],
)
def test_the_same_question_has_the_same_answer(live: Live, one: Question, other: Question) -> None:
    first, second = live.scene(one), live.scene(other)
    assert first.question == second.question
    assert torch.equal(first.attacked, second.attacked) and torch.equal(first.path, second.path)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question(IMAGES), r"image=30: choose one of 0, 1"),
        (Question(-1), r"image=-1"),
        (Question(0, "pgd"), r"attack=pgd: choose one of none, FGSM, PGD"),
        (Question(0, PGD, Fraction(8)), r"eps=8: choose one of 0, 0.05, 0.1"),
        (Question(0, PGD, TENTH, 4), r"steps=4: choose one of 1, 2, 3, 5"),
    ],
)
def test_a_question_outside_the_choices_is_refused(live: Live, question: Question, message: str) -> None:
    with pytest.raises(InputError, match=message):
        live.scene(question)


def test_exploring_leaves_the_mixture_and_the_threads_as_they_were(mixture: Mixture, digits: Dataset) -> None:
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    threads = torch.get_num_threads()
    Live(mixture, digits.test, digits.classes, BUDGETS, threads=2).scene(Question(0, PGD, TENTH, 5))
    assert torch.get_num_threads() == threads and not mixture.training
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in mixture.parameters())


def test_a_recorded_scene_is_the_one_recorded(live: Live, recorded: Recorded) -> None:
    assert (recorded.attacks, recorded.budgets, recorded.steps) == ((NONE, FGSM, PGD), (Fraction(0), TENTH), (5,))
    for attack in recorded.attacks:
        question = Question(1, attack, TENTH, 5)
        ours, theirs = recorded.scene(question), live.scene(question)
        assert ours.label == theirs.label and torch.equal(ours.attacked, theirs.attacked)
        assert torch.equal(ours.after.logits, theirs.after.logits)
        assert torch.equal(ours.path[[0, -1]], theirs.path[[0, -1]])
    unmoved = recorded.scene(Question(1, PGD, BUDGETS[0], 5))
    assert torch.equal(unmoved.attacked, unmoved.clean) and len(unmoved.path) == 1
    with pytest.raises(InputError, match="steps=7: choose one of 5"):
        recorded.scene(Question(0, PGD, TENTH, 7))


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_budgets_hold_zero_and_the_headline(name: str) -> None:
    config = load_profile(name).evaluation
    found = budgets_of(load_profile(name))
    assert found[0] == 0 and config.eps in found and max(found) == max(config.eps_sweep) and len(found) < 20
    assert list(found) == sorted(set(found))


def test_a_study_is_explored_live_with_published_weights_alone() -> None:
    study = Study("digits", local=False)
    found = source_of(study)
    assert isinstance(found, Live) and "live" in found.note and len(found.labels) == IMAGES
    assert found.scene(Question(0, PGD, Fraction(3, 20), 5)).path.shape == (6, 9)
    experts = experts_of(study)  # those of phase 1 are not published
    assert isinstance(experts, Live) and experts.note.startswith("the experts of DWF, after phase 2")


def test_without_weights_the_gallery_is_shown_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object) -> nn.Module:
        raise MissingError("dwf: no weights here")

    monkeypatch.setattr(Study, "load", gone)
    found = source_of(Study("digits", local=False))
    assert isinstance(found, Recorded) and found.note == "recorded, no live attack: dwf: no weights here"
    assert found.labels == list(range(10)) and found.scene(Question(3, PGD, Fraction(3, 20), found.steps[0])).label == 3


# -- pictures --------------------------------------------------------------------------------------------------------


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize("draw", [picture, nine])
def test_pictures_fit_a_screen_and_are_the_same_bytes_in_any_thread(draw: Any, live: Live) -> None:
    shown = live.scene(Question(2, PGD, TENTH, 10))
    first = draw(shown, live.classes)
    assert size(first)[0] <= 1240 and size(first)[1] <= 620
    again: list[bytes] = []
    thread = threading.Thread(target=lambda: again.append(draw(shown, live.classes)))
    thread.start()
    thread.join()
    assert again == [first]
    assert draw(live.scene(Question(3, PGD, TENTH, 10)), live.classes) != first


@pytest.mark.parametrize("draw", [picture, nine])
def test_scenes_of_any_number_of_experts_and_long_names_are_drawn(draw: Any, digits: Dataset) -> None:
    torch.manual_seed(0)
    three = Mixture([resnet18(10, 2, (0.3,), (0.4,)) for _ in range(3)], Gate(3, 2, 1, (0.3,), (0.4,))).eval()
    names = [f"a very long name {c}" for c in "abcdefghij"]
    found = Live(three, digits.test, names, BUDGETS, benign=None)
    assert "PGD, gate to benign" not in found.attacks
    for attack in (NONE, PGD):
        assert size(draw(found.scene(Question(0, attack, TENTH, 5)), names))


def test_the_sentence_says_what_was_asked_and_what_came_out(live: Live) -> None:
    found = live.scene(Question(2, PGD, TENTH, 5))
    told = sentence(found, live.classes)
    sure = torch.softmax(found.after.logits[0], dim=0)
    assert told.startswith(f"image 2, a {live.classes[found.label]}, PGD, eps 0.1, 5 steps: the mixture said ")
    assert told.endswith(f"says {live.classes[int(sure.argmax())]} ({float(sure.max()):.0%})")
    assert "not attacked: the mixture says" in sentence(live.scene(Question(2, NONE, TENTH, 10)), live.classes)
    assert ", FGSM, eps 0.1: " in sentence(live.scene(Question(2, FGSM, TENTH, 5)), live.classes)
    assert "1 step:" in sentence(live.scene(Question(2, PGD, TENTH, 1)), live.classes)


# -- widgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gate_explorer, experts_explorer])
def test_moving_a_control_changes_picture_and_sentence(make: Any, live: Live) -> None:
    explorer = make(live)
    before, told = explorer.picture.value, explorer.sentence.value
    explorer.controls["eps"].value = TENTH
    explorer.controls["attack"].value = FGSM
    assert explorer.picture.value != before and explorer.sentence.value != told
    assert "FGSM, eps 0.1" in explorer.sentence.value and explorer.told in explorer.sentence.value
    explorer.controls["image"].value = 5
    assert "image 5" in explorer.told


def test_every_control_has_a_label_and_a_tooltip(live: Live, recorded: Recorded, digits: Dataset) -> None:
    sources: list[Source] = [live, recorded]
    explorers = [make(source) for make in (gate_explorer, experts_explorer) for source in sources]
    explorers.append(eps_explorer(digits.test.images[:3], [1, 2, 3], digits.classes, BUDGETS))
    for explorer in explorers:
        for name, control in explorer.controls.items():
            assert (
                control.description == name and len(control.tooltip) > 5 and f"explorer-{name}" in control._dom_classes
            )


def test_a_state_seen_before_is_not_drawn_again() -> None:
    drawn: Counter[int] = Counter()

    def show(n: int) -> tuple[bytes, str]:
        drawn[n] += 1
        return b"%d" % n, f"number {n}"

    explorer = Explorer({"n": widgets.IntSlider(1, 0, 5)}, show)
    for n in (2, 1, 2, 3):
        explorer.controls["n"].value = n
    assert drawn == {1: 1, 2: 1, 3: 1} and explorer.picture.value == b"3"


def test_an_error_in_an_observer_is_shown_and_the_next_state_mends_it() -> None:
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
    explorer = gate_explorer(live, Question(4, PGD, TENTH, 10))
    bundle = explorer._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(data["image/png"]) == explorer.picture.value
    assert data["text/plain"] == explorer.told and "image 4" in explorer.told
    assert "application/vnd.jupyter.widget-view+json" in data


def test_names_of_classes_are_no_markup(mixture: Mixture, digits: Dataset) -> None:
    names = ["<i>nought</i>", *digits.classes[1:]]
    found = Live(mixture, digits.test, names, BUDGETS)
    image = found.labels.index(0)
    assert "&lt;i&gt;nought" in gate_explorer(found, Question(image, PGD, TENTH, 5)).sentence.value


def test_eps_moves_every_pixel_by_itself(digits: Dataset) -> None:
    explorer = eps_explorer(digits.test.images[:3], [4, 5, 6], digits.classes, BUDGETS)
    assert explorer.told == "a 4, every pixel moved by 0.05 at random, within [0, 1]"
    first = explorer.picture.value
    explorer.controls["moved"].value = "up"
    assert "0.05 up" in explorer.told and explorer.picture.value != first
    explorer.controls["eps"].value = BUDGETS[0]
    assert "moved by 0 up" in explorer.told
