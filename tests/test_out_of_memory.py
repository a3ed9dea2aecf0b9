"""Where memory does not suffice, everything that counts goes on with fewer images at once."""

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

TEXTS: dict[str, Exception] = {
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
    "a library's own words": ValueError("the attack failed: CUDA out of memory. Tried to allocate 2.00 GiB."),
}
OTHERS: dict[str, Exception] = {
    "cuDNN's settings": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in"),
    "cuBLAS's settings": RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"),
    "an illegal access": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "types": RuntimeError("expected scalar type Float but found Double"),
    "shapes": ValueError("expected 10 classes"),
}


def caused(error: Exception, by: Exception, *, told: bool) -> Exception:
    """``error`` as it is when raised from, or merely after, another one."""
    try:
        try:
            raise by
        except Exception as cause:
            if told:
                raise error from cause
            raise error  # noqa: B904 - the point
    except Exception as raised:
        return raised


@pytest.mark.parametrize("error", TEXTS.values(), ids=TEXTS.keys())
def test_every_way_to_say_that_memory_ran_out_is_understood(error: Exception) -> None:
    assert memory_ran_out(error)
    for told in (True, False):
        assert memory_ran_out(caused(KeyError("batch 3"), copy.copy(error), told=told))
    assert smaller_batch(9, error) == 4
    with pytest.raises(type(error)):
        smaller_batch(1, error)


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS.keys())
def test_other_errors_are_passed_on(error: Exception) -> None:
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

    found = list(in_batches(20, 16, limit, work))
    assert [number for _, part in found for number in part] == list(range(20))
    assert [list(range(20))[rows] for rows, _ in found] == [part for _, part in found]
    assert tried == [16, 8, 4] + [2] * 10 and limit.max_batch == 2
    assert [len(part) for _, part in in_batches(3, 1, limit, work)] == [1, 1, 1]
    assert list(in_batches(0, 16, limit, work)) == []


class Small(nn.Module):
    """A network in a memory that holds ``room`` images; for more it raises ``error``."""

    def __init__(self, model: nn.Module, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.model, self.room, self.error = model, room, error or TEXTS["CUDA"]
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.model(x)

    def check(self, x: Tensor) -> None:
        if len(x) > self.room:
            raise self.error
        self.largest = max(self.largest, len(x))


class SmallMixture(Small):
    """The same of a mixture that shows its experts."""

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        self.check(x)
        seen: MixtureOutput = self.model.forward_with_experts(x)  # type: ignore[operator]
        return seen


class SmallBackward(torch.autograd.Function):
    """Passes images on; coming back, memory ends."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, room: int) -> Tensor:
        ctx.room = room
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        if len(gradient) > ctx.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return gradient, None


class SmallComingBack(nn.Module):
    """A network whose gradient of more than ``room`` images does not fit in memory."""

    def __init__(self, model: nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room = model, room

    def forward(self, x: Tensor) -> Tensor:
        return self.model(SmallBackward.apply(x, self.room))


def alone(model: nn.Module) -> Folded:
    """No copy: the network itself is attacked, so that outcomes are equal bit by bit."""
    return Folded(model, model)


EPS, STEP = "0.1", "0.03"
LIBRARY = [square_spec(EPS, 20), autoattack_spec(EPS, 3, 20)]


@pytest.mark.parametrize("error", [TEXTS["CPU"], TEXTS["cuDNN"], TEXTS["Python"]], ids=["CPU", "cuDNN", "Python"])
@pytest.mark.parametrize("spec", LIBRARY, ids=["square", "autoattack"])
def test_autoattack_in_small_memory_is_autoattack_of_smaller_batches(
    spec: AttackSpec, error: Exception, toy: ToyNet, digits: Dataset
) -> None:
    split = digits.test.first(20)
    small = Small(toy, 5, error)
    found = evaluate(alone(small), split, spec, seed=0, batch_size=20)
    # 20, 10, 5: asked of five at once from the beginning, where all images are still right
    assert small.largest == 5
    assert found.record()["batch_size"] == 5
    assert 0 < int(found.correct.sum()) < 20 and found.passes > 1


def test_a_part_of_a_batch_is_attacked_like_a_batch_of_its_own(toy: ToyNet, digits: Dataset) -> None:
    x = digits.test.images[:20]
    with torch.no_grad():
        y = toy(x).argmax(dim=1)  # so that nothing is dropped before, and the parts are the same
    how: dict[str, Any] = {"eps": EPS, "attacks": ("square",), "queries": 20}
    parts = [autoattack(alone(toy), x[i : i + 5], y[i : i + 5], **how, batch_size=5) for i in range(0, 20, 5)]
    found = autoattack(alone(Small(toy, 5)), x, y, **how, batch_size=20)
    assert torch.equal(found.by, torch.cat([part.by for part in parts]))
    assert torch.equal(found.images, torch.cat([part.images for part in parts]))
    whole = autoattack(alone(toy), x, y, **how, batch_size=20)
    assert not torch.equal(found.images, whole.images)  # why a record holds the batch size that was used


def test_memory_that_ends_in_the_middle_of_autoattack_changes_no_count(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images[:16], digits.test.labels[:16]
    how: dict[str, Any] = {"eps": EPS, "iterations": 3, "queries": 20, "attacks": ("apgd-ce", "apgd-t", "fab-t")}
    back = alone(SmallComingBack(toy, 4))
    found = autoattack(back, x, y, **how, batch_size=16)
    assert back.max_batch is not None and 2 <= back.max_batch <= 4
    small = autoattack(Folded(toy, toy, max_batch=back.max_batch), x, y, **how, batch_size=16)
    assert torch.equal(found.by, small.by) and torch.equal(found.images, small.images)


def test_an_error_of_autoattack_that_is_none_of_memory_is_passed_on(toy: ToyNet, digits: Dataset) -> None:
    model = Small(toy, 5, OTHERS["cuDNN's settings"])
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        autoattack(alone(model), digits.test.images[:8], digits.test.labels[:8], eps=EPS, iterations=2, queries=2)


SPECS = [CLEAN, pgd_spec(EPS, 3, STEP), pgd_spec(EPS, 3, STEP, objective="divergence"), noise_spec(EPS, 3)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("build", [Small, SmallComingBack])
def test_an_evaluation_in_small_memory_has_the_outcome_of_a_large_one(
    build: Callable[[nn.Module, int], nn.Module], spec: AttackSpec, toy: ToyNet, digits: Dataset
) -> None:
    split = Split(digits.test.images[:20].double(), digits.test.labels[:20])
    model = copy.deepcopy(toy).double()
    how: dict[str, Any] = {"seed": 0, "batch_size": 20, "aims": OBJECTIVES}
    large, small = (evaluate(alone(m), split, spec, **how) for m in (model, build(model, 6)))
    assert torch.equal(small.correct, large.correct) and torch.equal(small.first_success, large.first_success)
    asks_back = spec.kind == "pgd"
    assert small.batch_size in ((4, 5) if build is Small or asks_back else (20,))  # halved from all, or from those left


def test_noise_tells_the_batch_size_of_the_copy_that_tried(toy: ToyNet, digits: Dataset) -> None:
    folded = Folded(toy, Small(toy, 6))
    evaluate(folded, digits.test.first(20), noise_spec(EPS, 2), seed=0, batch_size=20)
    assert folded.max_batch is not None and folded.max_batch <= 6


TINY = AuditBudget(steps=5, restarts=1, draws=5, iterations=2, queries=5)
SUBJECTS: dict[str, Callable[[ToyNet], tuple[nn.Module, nn.Module]]] = {
    "answers": lambda toy: (toy, Small(toy, 7)),
    "gradients": lambda toy: (toy, SmallComingBack(toy, 7)),
    "a mixture": lambda toy: (mixture(toy), SmallMixture(mixture(toy), 7)),
}


def mixture(toy: ToyNet) -> Mixture:
    return Mixture([copy.deepcopy(toy), copy.deepcopy(toy)], Gate(2, 2, 1, (0.5,), (0.5,))).eval()


@pytest.mark.parametrize("build", SUBJECTS.values(), ids=SUBJECTS.keys())
def test_an_audit_in_small_memory_comes_to_the_same_end(
    build: Callable[[ToyNet], tuple[nn.Module, nn.Module]], toy: ToyNet, digits: Dataset
) -> None:
    torch.manual_seed(3)
    large, small = build(toy)
    small.load_state_dict({f"model.{name}": value for name, value in large.state_dict().items()})
    x, y = digits.test.images[:40].clone(), digits.test.labels[:40].clone()
    reports = [
        audit(model.eval(), x, y, "0.15", audit_budget=replace(TINY, autoattack=False), batch_size=40)
        for model in (large, small)
    ]
    verdicts = [{f.name: f.verdict for f in report.findings} for report in reports]
    assert verdicts[0] == verdicts[1]
    assert reports[0].worst is not None and reports[1].worst is not None
    assert abs(reports[0].worst - reports[1].worst) <= 1  # a folded copy rounds otherwise


def test_an_audit_with_autoattack_runs_in_small_memory(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images[:20].clone(), digits.test.labels[:20].clone()
    report = audit(Small(toy, 7).eval(), x, y, "0.15", audit_budget=TINY, batch_size=20)
    assert "autoattack-2-5@0.15" in report.attacks


def test_the_losses_of_an_audit_are_those_of_the_whole_batch(toy: ToyNet, digits: Dataset) -> None:
    split = Split(digits.test.images.double(), digits.test.labels)
    model = copy.deepcopy(toy).double()
    among = torch.arange(80) < 50
    cases = [AuditContext(m, split, pgd_spec(EPS, 1, STEP).eps, TINY) for m in (model, SmallComingBack(model, 20))]
    large, small = (case.losses(among) for case in cases)
    assert len(large) == TINY.steps and large[-1] > large[0]
    assert small == pytest.approx(large)


def test_where_not_one_image_fits_the_error_is_passed_on(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images[:4], digits.test.labels[:4]
    model = alone(Small(toy, 0, TEXTS["cuBLAS"]))
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2}
    for call in (
        lambda: pgd(model, x, y, **how),
        lambda: attack(model, x, y, **how),
        lambda: misclassified(model, x, y),
        lambda: random_noise(model, x, y, eps=EPS, draws=2),
        lambda: autoattack(model, x, y, eps=EPS, attacks=("square",), queries=2),
        lambda: evaluate(model, Split(x, y), CLEAN, seed=0),
    ):
        with pytest.raises(RuntimeError, match="CUBLAS_STATUS_ALLOC_FAILED"):
            call()
