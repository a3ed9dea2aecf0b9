"""When memory runs out, attacks, evaluations and audits continue with smaller batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import ToyNet

from paperlib import Dataset
from paperlib.acceleration import Folded
from paperlib.acceleration.memory import in_batches, memory_ran_out, smaller_batch
from paperlib.attacks import OBJECTIVES, attack, autoattack, misclassified, pgd, random_noise
from paperlib.data import Split
from paperlib.evaluation import (
    CLEAN,
    AttackSpec,
    AuditBudget,
    audit,
    autoattack_spec,
    evaluate,
    noise_spec,
    pgd_spec,
    square_spec,
)
from paperlib.evaluation.auditing.context import AuditContext
from paperlib.models import Gate, Mixture, MixtureOutput

MEMORY_ERRORS: dict[str, Exception] = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CUDA's driver": RuntimeError("CUDA error: out of memory"),
    "HIP": RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB, max allowed: 18.13 GB)."),
    "MPS, one tensor": RuntimeError("Invalid buffer size: 24.00 GB"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried"),
    "CPU of Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory: you"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN's search": RuntimeError("GET was unable to find an engine to execute this computation"),
    "cuDNN's older search": RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "NumPy": MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"),
    "within another message": ValueError("the attack failed: CUDA out of memory. Tried to allocate 2.00 GiB."),
}
OTHER_ERRORS: dict[str, Exception] = {
    "cuDNN's settings": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in"),
    "cuBLAS's settings": RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"),
    "an illegal access": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "types": RuntimeError("expected scalar type Float but found Double"),
    "shapes": ValueError("expected 10 classes"),
}


def raised_after(error: Exception, cause: Exception, *, explicit: bool) -> Exception:
    """``error`` raised from ``cause``, or (not ``explicit``) while ``cause`` is handled."""
    try:
        try:
            raise cause
        except Exception as caught:
            if explicit:
                raise error from caught
            raise error  # noqa: B904 - without an explicit cause
    except Exception as raised:
        return raised


@pytest.mark.parametrize("error", MEMORY_ERRORS.values(), ids=MEMORY_ERRORS.keys())
def test_errors_about_memory_are_recognised(error: Exception) -> None:
    assert memory_ran_out(error)
    for explicit in (True, False):
        assert memory_ran_out(raised_after(KeyError("batch 3"), copy.copy(error), explicit=explicit))
    assert smaller_batch(9, error) == 4
    with pytest.raises(type(error)):
        smaller_batch(1, error)


def test_other_errors_are_raised_again() -> None:
    for error in OTHER_ERRORS.values():
        assert not memory_ran_out(error)
        with pytest.raises(type(error)) as raised:
            smaller_batch(9, error)
        assert raised.value is error


def test_batches_are_halved_and_stay_small() -> None:
    limit, tried = SimpleNamespace(max_batch=None), []

    def work(rows: slice) -> list[int]:
        tried.append(rows.stop - rows.start)
        if tried[-1] > 3:
            raise MemoryError
        return list(range(20))[rows]

    results = list(in_batches(20, 16, limit, work))
    assert [number for _, part in results for number in part] == list(range(20))
    assert [list(range(20))[rows] for rows, _ in results] == [part for _, part in results]
    assert tried == [16, 8, 4] + [2] * 10 and limit.max_batch == 2
    assert [len(part) for _, part in in_batches(3, 1, limit, work)] == [1, 1, 1]
    assert list(in_batches(0, 16, limit, work)) == []


class SmallMemory(nn.Module):
    """A network that raises ``error`` for more than ``room`` images."""

    def __init__(self, model: nn.Module, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.model, self.room, self.error = model, room, error or MEMORY_ERRORS["CUDA"]
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.model(x)

    def check(self, x: Tensor) -> None:
        if len(x) > self.room:
            raise self.error
        self.largest = max(self.largest, len(x))


class SmallMemoryMixture(SmallMemory):
    """The same for a mixture."""

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        self.check(x)
        output: MixtureOutput = self.model.forward_with_experts(x)  # type: ignore[operator]
        return output


class LimitedBackward(torch.autograd.Function):
    """The identity; memory runs out in the backward pass of more than ``room`` images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, room: int) -> Tensor:
        ctx.room = room
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        if len(gradient) > ctx.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return gradient, None


class SmallBackwardMemory(nn.Module):
    """A network for which memory runs out in the backward pass of more than ``room`` images."""

    def __init__(self, model: nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room = model, room

    def forward(self, x: Tensor) -> Tensor:
        return self.model(LimitedBackward.apply(x, self.room))


def without_copy(model: nn.Module) -> Folded:
    """The model without a folded copy, so that outcomes are equal bit for bit."""
    return Folded(model, model)


EPS, STEP = "0.1", "0.03"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (square_spec(EPS, 10), MEMORY_ERRORS["cuDNN"]),
        (square_spec(EPS, 10), MEMORY_ERRORS["Python"]),
        (autoattack_spec(EPS, 2, 10), MEMORY_ERRORS["CPU"]),
    ],
    ids=["square, cuDNN", "square, Python", "autoattack, CPU"],
)
def test_autoattack_continues_with_smaller_batches(
    spec: AttackSpec, error: Exception, toy: ToyNet, digits: Dataset
) -> None:
    small = SmallMemory(toy, 5, error)
    result = evaluate(without_copy(small), digits.test.first(20), spec, seed=0, batch_size=20)
    assert small.largest == 5  # 20, 10, 5
    assert result.record()["batch_size"] == 5
    assert 0 < int(result.correct.sum()) < 20 and result.passes > 1


def test_a_part_of_a_batch_is_attacked_like_a_separate_batch(toy: ToyNet, digits: Dataset) -> None:
    x = digits.test.images[:20]
    with torch.no_grad():
        y = toy(x).argmax(dim=1)  # so that all images are attacked, and the parts are equal
    options: dict[str, Any] = {"eps": EPS, "attacks": ("square",), "queries": 20}
    parts = [
        autoattack(without_copy(toy), x[i : i + 5], y[i : i + 5], **options, batch_size=5) for i in range(0, 20, 5)
    ]
    done = autoattack(without_copy(SmallMemory(toy, 5)), x, y, **options, batch_size=20)
    assert torch.equal(done.fooled_by, torch.cat([part.fooled_by for part in parts]))
    assert torch.equal(done.images, torch.cat([part.images for part in parts]))
    together = autoattack(without_copy(toy), x, y, **options, batch_size=20)
    assert not torch.equal(done.images, together.images)  # so a record holds the batch size that was used


def test_memory_that_runs_out_during_autoattack_changes_no_outcome(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images[:12], digits.test.labels[:12]
    options: dict[str, Any] = {"eps": EPS, "iterations": 2, "attacks": ("apgd-ce", "fab-t"), "batch_size": 12}
    small = without_copy(SmallBackwardMemory(toy, 4))
    done = autoattack(small, x, y, **options)
    assert small.max_batch is not None and 2 <= small.max_batch <= 4
    expected = autoattack(Folded(toy, toy, max_batch=small.max_batch), x, y, **options)
    assert torch.equal(done.fooled_by, expected.fooled_by) and torch.equal(done.images, expected.images)


def test_an_error_of_autoattack_not_about_memory_is_raised(toy: ToyNet, digits: Dataset) -> None:
    model = SmallMemory(toy, 5, OTHER_ERRORS["cuDNN's settings"])
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        autoattack(
            without_copy(model), digits.test.images[:8], digits.test.labels[:8], eps=EPS, iterations=2, queries=2
        )


SPECS = [CLEAN, pgd_spec(EPS, 3, STEP), pgd_spec(EPS, 3, STEP, objective="divergence"), noise_spec(EPS, 3)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("build", [SmallMemory, SmallBackwardMemory])
def test_an_evaluation_in_small_memory_has_the_same_outcome(
    build: Callable[[nn.Module, int], nn.Module], spec: AttackSpec, toy: ToyNet, digits: Dataset
) -> None:
    split = Split(digits.test.images[:20].double(), digits.test.labels[:20])
    model = copy.deepcopy(toy).double()
    options: dict[str, Any] = {"seed": 0, "batch_size": 20, "objectives": OBJECTIVES}
    large, small = (evaluate(without_copy(m), split, spec, **options) for m in (model, build(model, 6)))
    assert torch.equal(small.correct, large.correct) and torch.equal(small.first_success, large.first_success)
    halved = build is SmallMemory or spec.kind == "pgd"  # other attacks have no backward pass
    assert small.batch_size in ((4, 5) if halved else (20,))


def test_noise_stores_the_batch_size_of_the_folded_copy(toy: ToyNet, digits: Dataset) -> None:
    folded = Folded(toy, SmallMemory(toy, 6))
    evaluate(folded, digits.test.first(20), noise_spec(EPS, 2), seed=0, batch_size=20)
    assert folded.max_batch is not None and folded.max_batch <= 6


TINY = AuditBudget(steps=3, restarts=1, draws=3, iterations=1, queries=4)
SUBJECTS: dict[str, Callable[[ToyNet], tuple[nn.Module, nn.Module]]] = {
    "forward": lambda toy: (toy, SmallMemory(toy, 7)),
    "backward": lambda toy: (toy, SmallBackwardMemory(toy, 7)),
    "a mixture": lambda toy: (mixture(toy), SmallMemoryMixture(mixture(toy), 7)),
}


def mixture(toy: ToyNet) -> Mixture:
    return Mixture([copy.deepcopy(toy), copy.deepcopy(toy)], Gate(2, 2, 1, (0.5,), (0.5,))).eval()


@pytest.mark.parametrize("build", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_an_audit_in_small_memory_has_the_same_result(
    build: Callable[[ToyNet], tuple[nn.Module, nn.Module]], toy: ToyNet, digits: Dataset
) -> None:
    torch.manual_seed(3)
    large, small = build(toy)
    small.load_state_dict({f"model.{name}": value for name, value in large.state_dict().items()})
    x, y = digits.test.images[:10].clone(), digits.test.labels[:10].clone()
    reports = [
        audit(model.eval(), x, y, "0.15", audit_budget=replace(TINY, autoattack=False), batch_size=20)
        for model in (large, small)
    ]
    verdicts = [{finding.name: finding.verdict for finding in report.findings} for report in reports]
    assert verdicts[0] == verdicts[1]
    assert reports[0].worst is not None and reports[1].worst is not None
    assert abs(reports[0].worst - reports[1].worst) <= 1  # the rounding of a folded copy differs


def test_an_audit_with_autoattack_runs_in_small_memory(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images[:10].clone(), digits.test.labels[:10].clone()
    report = audit(SmallMemory(toy, 7).eval(), x, y, "0.15", audit_budget=TINY, batch_size=10)
    assert "autoattack-1-4@0.15" in report.attacks


def test_the_losses_in_an_audit_do_not_depend_on_memory(toy: ToyNet, digits: Dataset) -> None:
    split = Split(digits.test.images.double(), digits.test.labels)
    model = copy.deepcopy(toy).double()
    selected = torch.arange(80) < 50
    contexts = [
        AuditContext(m, split, pgd_spec(EPS, 1, STEP).eps, TINY) for m in (model, SmallBackwardMemory(model, 20))
    ]
    large, small = (context.losses(selected) for context in contexts)
    assert len(large) == TINY.steps and large[-1] > large[0]
    assert small == pytest.approx(large)


def test_the_error_is_raised_if_not_even_one_image_fits(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images[:4], digits.test.labels[:4]
    model = without_copy(SmallMemory(toy, 0, MEMORY_ERRORS["cuBLAS"]))
    options: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2}
    for call in (
        lambda: pgd(model, x, y, **options),
        lambda: attack(model, x, y, **options),
        lambda: misclassified(model, x, y),
        lambda: random_noise(model, x, y, eps=EPS, draws=2),
        lambda: autoattack(model, x, y, eps=EPS, attacks=("square",), queries=2),
        lambda: evaluate(model, Split(x, y), CLEAN, seed=0),
    ):
        with pytest.raises(RuntimeError, match="CUBLAS_STATUS_ALLOC_FAILED"):
            call()
