"""Accuracy is always measured in float32, although TensorFloat-32 or bfloat16 may be allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Linear

from paperlib.acceleration.precision import tensor_float32
from paperlib.attacks import attack, autoattack, misclassified, pgd, random_noise
from paperlib.data import Split
from paperlib.evaluation import CLEAN, AuditBudget, audit, evaluate, fgsm_spec, worst_case

BACKENDS: Any = torch.backends
GPU = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn)
CPU = (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn)
EXACT = ("none", "ieee")


def settings() -> list[str]:
    """The settings of the rounding of products and convolutions."""
    return [part.fp32_precision for part in (*GPU, *CPU)]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before, default = settings(), BACKENDS.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    BACKENDS.fp32_precision = default
    for part, value in zip((*GPU, *CPU), before, strict=True):
        part.fp32_precision = value


def allow(part: Any, value: str) -> Callable[[], None]:
    return lambda: setattr(part, "fp32_precision", value)


ALLOWED: dict[str, Callable[[], object]] = {
    "torch's defaults": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "products": allow(BACKENDS.cuda.matmul, "tf32"),
    "convolutions": allow(BACKENDS.cudnn.conv, "tf32"),
    "all of cuDNN": allow(BACKENDS.cudnn, "tf32"),
    "everything": allow(BACKENDS, "tf32"),
    "convolutions exact": allow(BACKENDS.cudnn.conv, "ieee"),
    "bfloat16 products of the CPU": allow(BACKENDS.mkldnn.matmul, "bf16"),
    "bfloat16 convolutions of the CPU": allow(BACKENDS.mkldnn.conv, "bf16"),
}


@pytest.mark.parametrize("choose", ALLOWED.values(), ids=ALLOWED.keys())
def test_any_setting_is_overridden_and_restored(choose: Callable[[], object]) -> None:
    choose()
    before = settings()
    with tensor_float32(False):
        assert all(part.fp32_precision == "ieee" for part in GPU)
        assert all(part.fp32_precision in EXACT for part in CPU)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
        with tensor_float32(True):
            assert all(part.fp32_precision == "tf32" for part in GPU)
            assert all(part.fp32_precision in EXACT for part in CPU)
    assert settings() == before


class Recording(nn.Module):
    """Records the settings at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Linear(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        RECORDED.add(tuple(settings()))
        return self.model(x)


RECORDED: set[tuple[str, ...]] = set()
PGD: dict[str, Any] = {"eps": 0.1, "step_size": 0.05, "steps": 2}
TINY = AuditBudget(steps=2, restarts=1, draws=2, iterations=2, queries=3)
EVALUATIONS: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "attack": lambda model, x, y: attack(model, x, y, **PGD),
    "misclassified": lambda model, x, y: misclassified(model, x, y),
    "random_noise": lambda model, x, y: random_noise(model, x, y, eps=0.1, draws=2),
    "autoattack": lambda model, x, y: autoattack(model, x, y, eps=0.1, iterations=2, queries=3),
    "evaluate": lambda model, x, y: evaluate(model, Split(x, y), fgsm_spec("0.1"), seed=0),
    "worst_case": lambda model, x, y: worst_case(model, Split(x, y), [CLEAN, fgsm_spec("0.1")], seed=0),
    "audit": lambda model, x, y: audit(model, x, y, "0.1", audit_budget=TINY),
}


@pytest.mark.parametrize("evaluation", EVALUATIONS.values(), ids=EVALUATIONS.keys())
def test_every_evaluation_calls_the_network_without_tensor_float32(
    evaluation: Callable[[nn.Module, Tensor, Tensor], object],
) -> None:
    model, x = Recording().eval(), torch.rand(6, 1, 4, 4)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    BACKENDS.fp32_precision = "tf32"
    before = settings()
    RECORDED.clear()
    evaluation(model, x, y)
    assert {("ieee",) * 6} == RECORDED
    assert settings() == before


def test_pgd_keeps_the_setting_of_the_caller() -> None:
    x, y = torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64)
    for allowed, value in ((True, "tf32"), (False, "ieee")):
        RECORDED.clear()
        with tensor_float32(allowed):
            pgd(Recording(), x, y, **PGD)
        assert {recorded[:3] for recorded in RECORDED} == {(value,) * 3}
