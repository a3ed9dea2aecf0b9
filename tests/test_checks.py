"""Checks of budgets, images, labels, logits and weights, and their error messages."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paperlib.arguments import as_images, as_labels, check_logits, check_weights
from paperlib.config.budgets import as_budget
from paperlib.errors import InputError, NotFiniteError

IMAGES = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def test_a_budget_may_be_a_float_text_or_a_fraction() -> None:
    for value in (8 / 255, "8/255", Fraction(8, 255), np.float64(8 / 255), " 8/255 "):
        assert as_budget(value) == 8 / 255
    for value, number in (("0.03", 0.03), (0, 0.0), (1, 1.0), ("1e-3", 0.001)):
        assert as_budget(value) == number


BAD_BUDGETS = [8, Fraction(8), -1, "-1/255", float("nan"), float("inf"), "nan", "x", "", "8/0", "1e999", None, True]


def test_another_value_of_a_budget_is_an_error_that_names_it() -> None:
    for value in (*BAD_BUDGETS, [0.1]):
        with pytest.raises(InputError, match="step_size") as caught:
            as_budget(value, "step_size")  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_budget_above_1_gets_a_hint() -> None:
    for value in (8, "8", 255):
        with pytest.raises(InputError, match=f"did you mean {value}/255"):
            as_budget(value)


@given(st.floats(0, 1))
def test_every_float_from_0_to_1_is_a_budget(value: float) -> None:
    assert as_budget(value) == value
    assert as_budget(repr(value)) == value


def test_valid_images_labels_and_logits_pass() -> None:
    as_images(IMAGES)
    as_images(torch.zeros(0, 3, 8, 8))
    as_labels(LABELS, IMAGES)
    check_logits(torch.zeros(4, 3), LABELS)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((IMAGES * 255).byte(), "divide bytes by 255"),
        (IMAGES * 255, "divide by 255"),
        (IMAGES * 2 - 1, "normalise inside"),
        (IMAGES - 1e-4 - IMAGES.min(), r"must lie in \[0, 1\]"),
        (IMAGES[0], r"expected shape \(N, C, H, W\)"),
        (IMAGES[None], r"expected shape \(N, C, H, W\)"),
        (IMAGES.long(), "int64"),
        (IMAGES.numpy(), "ndarray"),
        ([[0.5]], "list"),
        (None, "NoneType"),
    ],
)
def test_invalid_images_are_an_error(images: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_images(images)  # type: ignore[arg-type]


NOT_FINITE = (float("nan"), float("inf"), -float("inf"))


def test_images_that_are_not_finite_are_an_error() -> None:
    for value in NOT_FINITE:
        images = IMAGES.clone()
        images[2, 0, 1, 1] = value
        with pytest.raises(NotFiniteError, match="images"):
            as_images(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.int(), "int32"),
        (LABELS.float(), "float32"),
        (LABELS.tolist(), "list"),
        (LABELS[:3], "4 images"),
        (LABELS[:, None], "4 images"),
        (torch.nn.functional.one_hot(LABELS), "4 images"),
    ],
)
def test_labels_of_another_type_or_length_are_an_error(labels: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_labels(labels, IMAGES)  # type: ignore[arg-type]


def test_labels_outside_the_classes_are_an_error() -> None:
    for label in (-1, -100, 3):
        with pytest.raises(InputError, match="out of range"):
            check_logits(torch.zeros(4, 3), torch.tensor([0, 1, 2, label]))


def test_logits_of_another_shape_are_an_error() -> None:
    for shape in ((4,), (3, 3), (4, 3, 1)):
        with pytest.raises(InputError, match=r"expected \(N, classes\)"):
            check_logits(torch.zeros(shape), LABELS)


def test_logits_that_are_not_finite_are_an_error() -> None:
    for value in NOT_FINITE:
        logits = torch.zeros(4, 3)
        logits[1, 2] = value
        with pytest.raises(NotFiniteError, match="logits"):
            check_logits(logits, LABELS)


def network() -> nn.Module:
    """With parameters, float buffers and an integer buffer."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))


def test_finite_weights_pass() -> None:
    check_weights(network())
    check_weights(nn.Identity())  # without weights


@pytest.mark.parametrize("part", ["0.weight", "1.bias", "1.running_mean", "1.running_var", "2.1.weight"])
def test_the_error_names_a_tensor_that_is_not_finite(part: str) -> None:
    for value in NOT_FINITE:
        model = network()
        tensor = model.state_dict()[part]
        tensor.view(-1)[0] = value
        share = f"{1 / tensor.numel():.0%}"
        with pytest.raises(NotFiniteError, match=rf"^mine: {part} holds NaN or infinity \({share} of it\)"):
            check_weights(model, "mine")


def test_the_error_names_the_first_of_several_tensors() -> None:
    model = network()
    for part in ("2.1.bias", "1.running_var", "1.weight"):
        model.state_dict()[part].fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"model: 1\.weight holds NaN or infinity \(100% of it\)"):
        check_weights(model)
