"""AutoAttack: equal to the library's own run, with an outcome for each image, and resumable after any interruption."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyautoattack
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_base import FABAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn
from toys import Linear, ToyNet, same_state

from paperlib import Dataset
from paperlib import atomic_files as files
from paperlib.acceleration import Folded, fold
from paperlib.attacks import NEVER, STANDARD, AutoAttacked, autoattack, misclassified
from paperlib.attacks.autoattack import MISCLASSIFIED, QUERIES, SURVIVED
from paperlib.errors import InputError, NotFiniteError, PaperlibError, StoreError
from paperlib.evaluation.robustness import evaluate
from paperlib.evaluation.specs import AttackSpec, autoattack_spec, noise_spec, pgd_spec, square_spec

EPS = 0.1
SHORT: dict[str, int] = {"iterations": 5, "queries": 60}
SETTINGS: dict[str, Any] = {"eps": EPS, **SHORT}


class MaskedGradients(nn.Module):
    """A network that masks gradients for bright images.

    For brighter images the logits are so large that the softmax is exactly one-hot and the gradient of cross-entropy is
    zero; for the brightest images the logits have no gradient at all.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        brightness = x.detach().mean(dim=(1, 2, 3)).unsqueeze(1)
        flat = logits.detach() + 0 * x.flatten(1).sum(dim=1, keepdim=True)
        return torch.where(brightness > 0.335, flat, torch.where(brightness > 0.305, 1e4 * logits, logits))


@pytest.fixture
def masked(toy: ToyNet) -> MaskedGradients:
    return MaskedGradients(copy.deepcopy(toy)).eval()


def without_copy(model: nn.Module) -> Folded:
    """The model without a folded copy."""
    return Folded(model, model)


def some(digits: Dataset, n: int = 30) -> tuple[Tensor, Tensor]:
    return digits.test.images[:n], digits.test.labels[:n]


def counts(done: AutoAttacked) -> dict[int, int]:
    return {value: int((done.fooled_by == value).sum()) for value in (MISCLASSIFIED, SURVIVED, 0, 1, 2, 3)}


def library_outcomes(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Which attack fools which image, from runs of the library with the first one, two, three and four attacks."""
    fooled_by, images = torch.full_like(y, SURVIVED), x
    fooled_by[model(x).argmax(dim=1) != y] = MISCLASSIFIED
    for last in range(len(STANDARD)):
        library = pyautoattack.AutoAttack(model, norm="Linf", eps=EPS, version="standard", seed=seed, device="cpu")
        assert tuple(library.attacks_to_run) == STANDARD
        library.attacks_to_run = list(STANDARD[: last + 1])
        for part in (library.apgd, library.apgd_targeted, library.fab):
            part.n_iter = SHORT["iterations"]
        library.square.n_queries = SHORT["queries"]
        images, predictions = library.run_standard_evaluation(x, y, batch_size=len(x))
        fooled_by[(predictions != y) & (fooled_by == SURVIVED)] = last
    return fooled_by, images


# -- the library's run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked_run(toy: ToyNet, digits: Dataset) -> AutoAttacked:
    """A run on all test images in one batch with seed 7. Treat as read-only."""
    x, y = digits.test.images, digits.test.labels
    return autoattack(without_copy(MaskedGradients(toy).eval()), x, y, **SETTINGS, seed=7, batch_size=len(x))


def test_each_image_is_fooled_by_the_same_attack_as_in_the_librarys_own_run(
    masked: MaskedGradients, masked_run: AutoAttacked, digits: Dataset
) -> None:
    fooled_by, images = library_outcomes(masked, digits.test.images, digits.test.labels, seed=7)
    assert masked_run.fooled_by.tolist() == fooled_by.tolist()
    assert torch.equal(masked_run.images, images)
    assert {MISCLASSIFIED, SURVIVED, 0, 1, 3} <= set(fooled_by.tolist())


def test_default_settings_are_those_of_the_librarys_standard_version(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def record(self: Any, x: Tensor, y: Tensor) -> Tensor:
        attributes = {k: v for k, v in vars(self).items() if isinstance(v, bool | int | float | str | None)}
        calls.append((type(self).__name__, attributes))
        return x

    for kind in (APGDAttack, APGDAttack_targeted, FABAttack, SquareAttack):
        monkeypatch.setattr(kind, "perturb", record)
    x, y = some(digits, 4)
    pyautoattack.AutoAttack(toy, eps=EPS, seed=5, device=x.device).run_standard_evaluation(x, y)
    expected = calls.copy()
    calls.clear()
    done = autoattack(without_copy(toy), x, y, eps=EPS, seed=5)
    assert [name for name, _ in expected] == ["APGDAttack", "APGDAttack_targeted", "FABAttack_PT", "SquareAttack"]
    assert calls == expected
    assert not done.fooled[done.fooled_by != MISCLASSIFIED].any()  # nothing was attacked


def test_images_are_a_function_of_the_seed(masked: MaskedGradients, digits: Dataset) -> None:
    x, y = some(digits)
    run = functools.partial(autoattack, without_copy(masked), x, y, **SETTINGS, attacks=("apgd-ce", "square"))
    first, again, other = (run(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


# -- the outcome of each image -----------------------------------------------------------------------------------------


def test_fooled_images_are_misclassified_and_within_the_ball_and_in_range(
    masked: MaskedGradients, masked_run: AutoAttacked, digits: Dataset
) -> None:
    x, y, done = digits.test.images, digits.test.labels, masked_run
    won = done.fooled_by >= 0
    assert done.attacks == STANDARD
    assert done.fooled_by.dtype == torch.int8
    assert 10 < int(won.sum()) < 75
    assert torch.equal(done.fooled_by == MISCLASSIFIED, masked(x).argmax(dim=1) != y)
    assert torch.equal(done.fooled, done.fooled_by != SURVIVED)
    assert torch.equal(misclassified(masked, done.images, y), done.fooled)
    assert torch.equal(done.images[~won], x[~won])
    assert (done.images - x).abs().max() <= EPS + 1e-6
    assert 0 <= done.images.min() <= done.images.max() <= 1


@pytest.mark.parametrize("outside", ["ball", "range"])
def test_an_image_outside_the_ball_or_out_of_range_is_no_success(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, outside: str
) -> None:
    x, y = some(digits)

    def perturb(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return x.flip(0) if outside == "ball" else x - EPS

    monkeypatch.setattr(SquareAttack, "perturb", perturb)
    done = autoattack(without_copy(toy), x, y, **SETTINGS, attacks=("square",))
    assert set(done.fooled_by.tolist()) == {MISCLASSIFIED, SURVIVED}
    assert torch.equal(done.images, x)


def test_an_attack_does_not_get_images_that_an_earlier_attack_fooled(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    alone = autoattack(without_copy(toy), x, y, **SETTINGS, attacks=("apgd-t",))
    both = autoattack(without_copy(toy), x, y, **SETTINGS, attacks=("apgd-ce", "apgd-t"))
    first = autoattack(without_copy(toy), x, y, **SETTINGS, attacks=("apgd-ce",))
    assert int((alone.fooled_by == 0).sum()) > int((both.fooled_by == 1).sum())
    assert torch.equal(both.fooled_by == 0, first.fooled_by == 0)
    assert not (first.fooled & ~both.fooled).any()


def test_square_computes_no_gradient(toy: ToyNet, digits: Dataset) -> None:
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            raise AssertionError("a gradient was computed")

    class WithoutBackward(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return toy(NoGradient.apply(x))

    x, y = some(digits)
    done = autoattack(without_copy(WithoutBackward()), x, y, **SETTINGS, attacks=("square",))
    assert torch.equal(done.fooled_by, autoattack(without_copy(toy), x, y, **SETTINGS, attacks=("square",)).fooled_by)
    with pytest.raises(AssertionError, match="a gradient was computed"):
        autoattack(without_copy(WithoutBackward()), x, y, **SETTINGS)


def test_no_images_give_an_empty_result(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits, 0)
    done = autoattack(toy, x, y, **SETTINGS)
    assert (done.fooled_by.shape, done.images.shape, done.passes) == ((0,), x.shape, 0)


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_are_attacked_independently(masked: MaskedGradients, digits: Dataset) -> None:
    x, y = some(digits, 12)
    run = functools.partial(autoattack, without_copy(masked), eps=EPS, iterations=2, queries=20, batch_size=5)
    together = run(x=x, y=y)
    parts = [run(x=a, y=b) for a, b in zip(x.split(5), y.split(5), strict=True)]
    assert len(parts) == 3
    assert torch.equal(together.fooled_by, torch.cat([part.fooled_by for part in parts]))
    assert torch.equal(together.images, torch.cat([part.images for part in parts]))
    assert together.passes == sum(part.passes for part in parts)
    assert {SURVIVED, 0} <= set(together.fooled_by.tolist())


def test_no_batch_is_larger_than_batch_size(toy: ToyNet, digits: Dataset) -> None:
    model, sizes = copy.deepcopy(toy), []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    autoattack(without_copy(model), *some(digits), **SETTINGS, attacks=("apgd-ce", "square"), batch_size=7)
    assert max(sizes) == 7


# -- a folded copy -----------------------------------------------------------------------------------------------------


class OffByOneClass(nn.Module):
    """A network with its classes shifted by one: it misclassifies what the network classifies correctly."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).roll(1, dims=1)


def test_a_folded_copy_gives_the_same_outcomes(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    folded = fold(toy, x)
    assert folded.network is not toy
    copied, original = autoattack(folded, x, y, **SETTINGS), autoattack(without_copy(toy), x, y, **SETTINGS)
    assert int((copied.fooled != original.fooled).sum()) <= 1  # rounding near a decision boundary
    assert torch.equal(misclassified(toy, copied.images, y), copied.fooled)
    assert torch.equal(autoattack(toy, x, y, **SETTINGS).fooled_by, copied.fooled_by)  # autoattack folds a model itself


def test_a_copy_that_misclassifies_changes_no_outcome(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    expected = autoattack(without_copy(toy), x, y, **SETTINGS)
    done = autoattack(Folded(toy, OffByOneClass(toy)), x, y, **SETTINGS)
    assert torch.equal(done.fooled_by, expected.fooled_by)
    assert torch.equal(done.images, expected.images)
    assert done.passes > expected.passes


def test_fooled_images_fool_the_model_although_the_copy_differs(toy: ToyNet, digits: Dataset) -> None:
    different = copy.deepcopy(toy)
    with torch.no_grad():
        for parameter in different.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape))
    x, y = some(digits, 60)
    done = autoattack(Folded(toy, different), x, y, **SETTINGS)
    assert not torch.equal(misclassified(different, done.images, y), misclassified(toy, done.images, y))
    assert 10 < int((done.fooled_by >= 0).sum()) < 55
    assert torch.equal(misclassified(toy, done.images, y), done.fooled)


# -- passes and progress -----------------------------------------------------------------------------------------------


def test_square_makes_one_pass_per_query(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits, 6)
    correct = ~misclassified(toy, x, y)
    x, y = x[correct][:4], y[correct][:4]
    options: dict[str, Any] = {"eps": 1e-4, "attacks": ("square",)}
    passes = [autoattack(without_copy(toy), x, y, **options, queries=queries).passes for queries in (10, 11, 60)]
    assert passes[1] - passes[0] == 4  # all images survive at this eps, so each query is a pass of each image
    assert passes[2] - passes[0] == 50 * 4


@pytest.mark.parametrize("kind", ["copy", "misclassifying copy"])
def test_every_pass_of_the_attacks_is_counted(toy: ToyNet, digits: Dataset, kind: str) -> None:
    x, y = some(digits)
    model, sizes = copy.deepcopy(toy), []
    copied = fold(model, x).network if kind == "copy" else OffByOneClass(copy.deepcopy(toy))
    for network in {model, copied}:
        network.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    done = autoattack(Folded(model, copied), x, y, **SETTINGS)
    assert 0.9 * sum(sizes) < done.passes < sum(sizes)  # clean images and confirmations are not counted


def test_fooled_images_cost_no_further_passes(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    run = functools.partial(autoattack, without_copy(toy), x, y, **SHORT, attacks=("apgd-ce", "apgd-t"))
    large_eps, small_eps = (run(eps=eps).passes for eps in (0.3, 0.01))
    assert 0 < 5 * large_eps < small_eps


def test_the_reported_progress_rises_to_1(toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))  # each call is one second later
    shares: list[float] = []
    autoattack(without_copy(toy), *some(digits, 12), **SETTINGS, batch_size=4, progress=shares.append)
    assert len(set(shares)) > 4 * 3  # also during the attack on a batch
    assert 0 < shares[0] < 1 / 12
    assert shares == sorted(shares)
    assert shares[-1] == 1


# -- resuming ----------------------------------------------------------------------------------------------------------

UNITS = 4 * 3  # attacks x batches of ten


class Stopped(Exception):
    """Interrupts a run."""


def stopping(at: int) -> Callable[[float], None]:
    """A progress function that raises at its ``at``-th call."""
    shares: list[float] = []

    def progress(share: float) -> None:
        shares.append(share)
        if len(shares) == at:
            raise Stopped

    return progress


RUN: dict[str, Any] = {"eps": EPS, "iterations": 2, "queries": 20, "batch_size": 10}


def run(model: nn.Module, digits: Dataset, state: Path | None = None, **more: Any) -> AutoAttacked:
    return autoattack(without_copy(model), *some(digits), **RUN, state=state, **more)


@pytest.fixture(scope="module")
def uninterrupted(toy: ToyNet, digits: Dataset) -> AutoAttacked:
    """The result of a run without interruption and without a state. Treat as read-only."""
    done = run(MaskedGradients(toy).eval(), digits)
    assert {MISCLASSIFIED, SURVIVED, 0, 1} <= set(done.fooled_by.tolist())
    return done


@pytest.mark.parametrize("at", [1, 6, 12])
def test_a_run_stopped_after_some_attacks_resumes_with_the_same_outcomes(
    masked: MaskedGradients, digits: Dataset, uninterrupted: AutoAttacked, tmp_path: Path, at: int
) -> None:
    state = tmp_path / "state"
    with pytest.raises(Stopped):
        run(masked, digits, state, progress=stopping(at))
    assert state.exists() == (at > 1)  # only the attack during which it stopped is lost
    rest = run(masked, digits, state)
    assert torch.equal(rest.fooled_by, uninterrupted.fooled_by)
    assert rest.passes < uninterrupted.passes if at > 1 else rest.passes == uninterrupted.passes
    same = (rest.images == uninterrupted.images).flatten(1).all(dim=1)
    assert torch.equal(rest.images[~same], some(digits)[0][~same])  # adversarial images of another process are lost
    assert same.all() == (at == 1)


@pytest.mark.parametrize("calls", [1, 20, 100])
def test_a_run_interrupted_between_two_passes_resumes_with_the_same_outcomes(
    masked: MaskedGradients, digits: Dataset, uninterrupted: AutoAttacked, tmp_path: Path, calls: int
) -> None:
    state, sizes = tmp_path / "state", []

    def interrupt(module: nn.Module, args: tuple[Tensor]) -> None:
        sizes.append(len(args[0]))
        if len(sizes) > calls:
            raise Stopped

    hook = masked.register_forward_pre_hook(interrupt)
    with pytest.raises(Stopped):
        run(masked, digits, state)
    hook.remove()
    rest = run(masked, digits, state)
    assert torch.equal(rest.fooled_by, uninterrupted.fooled_by)
    assert not list(tmp_path.glob(".*"))  # no temporary file remains


def test_a_run_stopped_repeatedly_finishes(
    masked: MaskedGradients, digits: Dataset, uninterrupted: AutoAttacked, tmp_path: Path
) -> None:
    state, stops = tmp_path / "state", 0
    shares: list[float] = []
    while True:
        try:
            done = run(masked, digits, state, progress=stopping(2))
        except Stopped:
            stops += 1
            assert stops < 2 * UNITS
            shares.append(float(files.read_tensors(state)[0]["done"].double().mean()))
        else:
            break
    assert shares == pytest.approx([(i + 1) / UNITS for i in range(UNITS - 1)])  # one attack on one batch in each run
    assert torch.equal(done.fooled_by, uninterrupted.fooled_by)
    assert done.passes < uninterrupted.passes / 2


def test_a_state_changes_no_outcome_and_a_finished_run_makes_no_passes(
    masked: MaskedGradients, digits: Dataset, uninterrupted: AutoAttacked, tmp_path: Path
) -> None:
    state = tmp_path / "new" / "folder" / "state"
    first = run(masked, digits, state)
    assert torch.equal(first.fooled_by, uninterrupted.fooled_by)
    assert torch.equal(first.images, uninterrupted.images)
    assert first.passes == uninterrupted.passes
    sizes: list[int] = []
    masked.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    again = run(masked, digits, state)
    assert torch.equal(again.fooled_by, first.fooled_by)
    assert (again.passes, sizes) == (0, [])
    assert torch.equal(again.images, some(digits)[0])  # the adversarial images belong to the first run
    assert [path.name for path in state.parent.iterdir()] == ["state"]


def test_a_run_through_a_folded_copy_may_be_resumed_without_one(toy: ToyNet, digits: Dataset, tmp_path: Path) -> None:
    x, y = some(digits)
    state = tmp_path / "state"
    with pytest.raises(Stopped):
        autoattack(fold(toy, x), x, y, **RUN, state=state, progress=stopping(5))
    done = autoattack(without_copy(toy), x, y, **RUN, state=state)
    assert int((done.fooled != run(toy, digits).fooled).sum()) <= 1


def killed_while_writing(folder: Path, writes: int) -> None:
    """A run that pauses while it writes its state for the ``writes``-th time; the file ``paused`` shows it."""
    torch.set_num_threads(1)
    x, y, model = torch.load(folder / "work.pt", weights_only=False)
    save, written = files.save_file, []

    def half(tensors: dict[str, Tensor], path: Path, **more: Any) -> None:
        save(tensors, path, **more)
        written.append(path)
        if len(written) == writes:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            (folder / "paused").touch()
            time.sleep(120)

    files.save_file = half
    autoattack(without_copy(model), x, y, **RUN, state=folder / "run" / "state")


def test_a_process_killed_during_a_write_leaves_a_valid_state(
    masked: MaskedGradients, digits: Dataset, uninterrupted: AutoAttacked, tmp_path: Path
) -> None:
    torch.save((*some(digits), masked), tmp_path / "work.pt")
    process = multiprocessing.get_context("spawn").Process(target=killed_while_writing, args=(tmp_path, 6))
    process.start()
    until = time.monotonic() + 60
    while not (tmp_path / "paused").exists() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.02)
    assert (tmp_path / "paused").exists()
    process.kill()
    process.join()
    state = tmp_path / "run" / "state"
    assert int(files.read_tensors(state)[0]["done"].sum()) == 5
    rest = run(masked, digits, state)
    assert torch.equal(rest.fooled_by, uninterrupted.fooled_by)
    assert 0 < rest.passes < uninterrupted.passes


def test_a_full_disk_is_a_store_error_and_the_last_state_remains(
    masked: MaskedGradients,
    digits: Dataset,
    uninterrupted: AutoAttacked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, writes, save = tmp_path / "state", [], files.save_file

    def full(tensors: dict[str, Tensor], path: Path, **more: Any) -> None:
        save(tensors, path, **more)
        writes.append(path)
        if len(writes) == 4:
            path.write_bytes(path.read_bytes()[:40])
            raise OSError("No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(StoreError, match=r"state.*No space left"):
        run(masked, digits, state)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert int(files.read_tensors(state)[0]["done"].sum()) == 3
    assert torch.equal(run(masked, digits, state).fooled_by, uninterrupted.fooled_by)


def other_weights(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3
    return changed


def other_statistics(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    next(buffer for buffer in changed.buffers() if buffer.is_floating_point())[0] += 1e-3
    return changed


CHANGES: list[tuple[str, Any]] = [
    ("eps", "0.05"),
    ("seed", 1),
    ("iterations", 4),
    ("queries", 61),
    ("batch_size", 11),
    ("attacks", ("apgd-ce", "square")),
    ("model", other_weights),
    ("model", other_statistics),
    ("x", lambda x: x.flip(0)),
    ("x", lambda x: x[:20]),
    ("y", lambda y: y.roll(1)),
]


def test_the_state_of_another_run_is_refused_and_does_not_change(toy: ToyNet, digits: Dataset, tmp_path: Path) -> None:
    x, y = some(digits)
    state = tmp_path / "my-state.safetensors"
    arguments: dict[str, Any] = {"model": toy, "x": x, "y": y, **RUN, "seed": 0, "state": state}
    with pytest.raises(Stopped):
        autoattack(**arguments, progress=stopping(3))
    before = state.read_bytes()
    for setting, value in CHANGES:
        changed = arguments | {setting: value(arguments[setting]) if callable(value) else value}
        if len(changed["x"]) == 20:
            changed["y"] = y[:20]
        with pytest.raises(InputError, match=r"my-state\.safetensors.*another run"):
            autoattack(**changed)
        assert state.read_bytes() == before


def test_a_damaged_or_foreign_state_is_a_store_error_that_names_it(
    masked: MaskedGradients, digits: Dataset, tmp_path: Path
) -> None:
    state = tmp_path / "damaged.safetensors"
    with pytest.raises(Stopped):
        run(masked, digits, state, progress=stopping(2))
    valid = state.read_bytes()
    for content in (b"", valid[:7], valid[: len(valid) // 2], valid[:-1], b"another kind of file", b"\xff" * 500):
        state.write_bytes(content)
        with pytest.raises(StoreError, match=r"damaged\.safetensors"):
            run(masked, digits, state)
        assert state.read_bytes() == content


# -- the model and the images do not change ----------------------------------------------------------------------------


def in_training(model: nn.Module) -> nn.Module:
    """A copy as in training: mixed modes, some gradients, one frozen parameter."""
    model = copy.deepcopy(model).train()
    model.body[1].eval()
    model.zero_grad(set_to_none=True)
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model


@pytest.mark.parametrize(("kind", "stops"), [("itself", True), ("copy", False), ("misclassifying copy", False)])
def test_parameter_gradients_do_not_change(toy: ToyNet, digits: Dataset, kind: str, stops: bool) -> None:
    model, (x, y) = in_training(toy), some(digits)
    before = {name: None if p.grad is None else (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    assert len(set(requires_grad.values())) == 2
    copied = {"itself": model, "copy": fold(model, x).network, "misclassifying copy": OffByOneClass(model)}[kind]
    folded = Folded(model, copied)
    if stops:
        with pytest.raises(Stopped):
            autoattack(folded, x, y, **SETTINGS, attacks=("fab-t", "square"), progress=stopping(1))
    else:
        autoattack(folded, x, y, **SETTINGS, attacks=("apgd-ce", "fab-t", "square"))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == requires_grad[name], name
        expected = before[name]
        if expected is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is expected[0] and torch.equal(parameter.grad, expected[1]), name


@pytest.mark.parametrize(("kind", "stops"), [("itself", True), ("copy", False)])
def test_modes_buffers_and_weights_do_not_change(toy: ToyNet, digits: Dataset, kind: str, stops: bool) -> None:
    model, (x, y) = in_training(toy), some(digits)
    modes, before = [module.training for module in model.modules()], copy.deepcopy(model)
    assert len(set(modes)) == 2
    training: list[bool] = []
    folded = without_copy(model) if kind == "itself" else fold(model, x)
    model.register_forward_pre_hook(lambda module, args: training.append(any(m.training for m in module.modules())))
    if stops:
        with pytest.raises(Stopped):
            autoattack(folded, x, y, **SETTINGS, progress=stopping(1))
    else:
        autoattack(folded, x, y, **SETTINGS, attacks=("apgd-ce", "fab-t", "square"))
    assert training and not any(training)  # all passes were in evaluation mode
    assert [module.training for module in model.modules()] == modes
    assert same_state(model, before)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]


@pytest.mark.parametrize("stops", [False, True], ids=["returns", "raises"])
def test_torchs_global_generator_does_not_change_and_has_no_influence(
    masked: MaskedGradients, digits: Dataset, stops: bool
) -> None:
    x, y = some(digits)
    options: dict[str, Any] = {**SETTINGS, "attacks": ("apgd-ce", "square")}
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        if stops:
            with pytest.raises(Stopped):
                autoattack(without_copy(masked), x, y, **options, progress=stopping(2))
        else:
            results.append(autoattack(without_copy(masked), x, y, **options))
        assert torch.equal(torch.get_rng_state(), before)
    if not stops:
        assert torch.equal(results[0].fooled_by, results[1].fooled_by)
        assert torch.equal(results[0].images, results[1].images)


def test_images_do_not_change_and_results_have_no_graph(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    images, labels = x.clone().requires_grad_(), y.clone()
    options: dict[str, Any] = {**SETTINGS, "attacks": ("apgd-ce", "square")}
    with torch.no_grad():
        done = autoattack(without_copy(toy), images, labels, **options)
        assert not torch.is_grad_enabled()
    assert torch.equal(images, x) and images.grad is None
    assert torch.equal(labels, y)
    assert not done.images.requires_grad
    assert torch.equal(done.fooled_by, autoattack(without_copy(toy), x, y, **options).fooled_by)


# -- few classes -------------------------------------------------------------------------------------------------------


def linear_case(classes: int) -> tuple[Linear, Tensor, Tensor]:
    """A linear model for 8x8 images, and images with its predictions as labels."""
    torch.manual_seed(classes)
    model, x = Linear(torch.randn(classes, 64)), torch.rand(30, 1, 8, 8)
    return model, x, model(x).argmax(dim=1)


def test_fewer_than_four_classes_are_refused() -> None:
    for classes in (2, 3):
        model, x, y = linear_case(classes)
        for attacks in (STANDARD, ("apgd-t",)):
            with pytest.raises(InputError, match=rf"4 classes or more, the model has {classes}"):
                autoattack(model, x, y, **SETTINGS, attacks=attacks)


@pytest.mark.parametrize("attack", ["apgd-ce", "fab-t", "square"])
def test_attacks_without_the_targeted_loss_accept_fewer_classes(attack: str) -> None:
    for classes in (2, 3):
        model, x, y = linear_case(classes)
        done = autoattack(model, x, y, eps=0.05, **SHORT, attacks=(attack,))
        assert set(done.fooled_by.tolist()) == {SURVIVED, 0}
        assert torch.equal(misclassified(model, done.images, y), done.fooled)


@pytest.mark.parametrize("classes", [4, 12])
def test_the_number_of_target_classes_is_limited_by_the_classes_of_the_model(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: dict[str, int] = {}

    def recording(kind: Any) -> Callable[..., Tensor]:
        original = kind.perturb

        def perturb(self: Any, x: Tensor, y: Tensor) -> Tensor:
            targets[type(self).__name__] = self.n_target_classes
            return original(self, x, y)

        return perturb

    for kind in (APGDAttack_targeted, FABAttack):
        monkeypatch.setattr(kind, "perturb", recording(kind))
    model, x, y = linear_case(classes)
    done = autoattack(model, x, y, eps=0.03, **SHORT)
    assert targets == {"APGDAttack_targeted": min(9, classes - 1), "FABAttack_PT": min(9, classes - 1)}
    assert torch.equal(misclassified(model, done.images, y), done.fooled)
    assert {SURVIVED, 0} <= set(done.fooled_by.tolist())


@pytest.mark.parametrize(
    ("attack", "certain"), [("apgd-ce", 0.8), ("apgd-t", 0.95), ("fab-t", 0.9), ("square", 0.05)], ids=STANDARD
)
def test_on_a_linear_model_images_near_another_class_are_fooled(attack: str, certain: float) -> None:
    model, x, _ = linear_case(5)
    x = 0.2 + 0.6 * x  # nothing to clip
    y = model(x).argmax(dim=1)
    weight, logits = model.weight.detach(), model(x).detach()
    # The L-infinity distance to class c is (z_y - z_c) / |w_y - w_c|_1.
    gaps = (logits.gather(1, y[:, None]) - logits) / (weight[y][:, None] - weight[None]).abs().sum(dim=2)
    distance = gaps.masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).amin(dim=1)
    eps = float(distance.quantile(0.9 if attack == "square" else 0.6))
    done = autoattack(model, x, y, eps=eps, iterations=15, queries=100, attacks=(attack,))
    assert not done.fooled[distance > eps * 1.0001].any()
    assert done.fooled[distance < eps * certain].all()
    assert done.attacks == (attack,)
    assert 5 < int(done.fooled.sum()) < 28


# -- errors ------------------------------------------------------------------------------------------------------------


BAD_SETTINGS: list[tuple[str, object, str]] = [
    ("eps", 8, "8/255"),
    ("eps", float("nan"), "eps"),
    ("batch_size", 0, "batch_size"),
    ("batch_size", 2.5, "batch_size"),
    ("iterations", 0, "iterations"),
    ("queries", "50", "queries"),
    ("attacks", ("apgd-ce", "apgd-dlr"), r"unknown 'apgd-dlr'; known: apgd-ce, apgd-t, fab-t, square"),
    ("attacks", ("square", "square"), "attacks: square, square: each attack may be listed once"),
    ("x", torch.full((6, 1, 8, 8), 2.0), "images"),
    ("y", torch.zeros(5, dtype=torch.int64), "labels"),
    ("y", torch.full((6,), 10), "labels"),
]


def test_a_bad_setting_is_an_input_error_that_names_it(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits, 6)
    for setting, value, message in BAD_SETTINGS:
        arguments: dict[str, Any] = {"x": x, "y": y, **SETTINGS, setting: value}
        with pytest.raises(InputError, match=message):
            autoattack(toy, **arguments)


class NotFinite(nn.Module):
    """A network with logits of NaN or infinity, for all images or for all except ``finite_for``."""

    def __init__(self, model: nn.Module, value: float, finite_for: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.value, self.finite_for = model, value, finite_for

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if self.finite_for is None:
            return logits * self.value
        finite = (x.unsqueeze(1) == self.finite_for).flatten(2).all(dim=2).any(dim=1)
        return torch.where(finite.unsqueeze(1), logits, logits * self.value)


@pytest.mark.parametrize(("value", "folding"), [(float("nan"), True), (float("inf"), False)])
def test_logits_that_are_not_finite_are_an_error(toy: ToyNet, digits: Dataset, value: float, folding: bool) -> None:
    model = NotFinite(toy, value)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        autoattack(model if folding else without_copy(model), *some(digits), **SETTINGS)


@pytest.mark.parametrize(("value", "attacks"), [(float("nan"), ("square",)), (float("inf"), STANDARD)])
def test_logits_that_are_not_finite_during_an_attack_are_an_error(
    toy: ToyNet, digits: Dataset, value: float, attacks: tuple[str, ...]
) -> None:
    x, y = some(digits)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        autoattack(without_copy(NotFinite(toy, value, finite_for=x)), x, y, **SETTINGS, attacks=attacks)


def test_without_the_library_the_error_shows_how_to_install_it(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(PaperlibError, match="pip install pyautoattack"):
        autoattack(toy, *some(digits), **SETTINGS)


# -- as an evaluation --------------------------------------------------------------------------------------------------


def test_an_evaluation_records_which_attack_succeeded(masked: MaskedGradients, digits: Dataset, tmp_path: Path) -> None:
    spec = autoattack_spec(EPS, **SHORT)
    result = evaluate(without_copy(masked), digits.test, spec, seed=2**31 + 4, batch_size=40, state=tmp_path / "state")
    x, y = digits.test.images, digits.test.labels
    done = autoattack(without_copy(masked), x, y, **SETTINGS, seed=4, batch_size=40)  # seeds are taken modulo 2**31
    assert torch.equal(result.correct, ~done.fooled)
    expected = {SURVIVED: NEVER, MISCLASSIFIED: 0, 0: 1, 1: 2, 2: 3, 3: 4}
    assert result.first_success.tolist() == [expected[fooled_by] for fooled_by in done.fooled_by.tolist()]
    assert {NEVER, 0, 1, 2, 4} <= set(result.first_success.tolist())
    assert result.first_success.dtype == torch.int16
    assert result.passes == done.passes / 80
    assert result.batch_size == 40
    assert result.record()["correct"] == counts(done)[SURVIVED]
    again = evaluate(without_copy(masked), digits.test, spec, seed=2**31 + 4, batch_size=40, state=tmp_path / "state")
    assert torch.equal(again.first_success, result.first_success)
    assert again.passes == 0


def test_an_evaluation_under_square_alone(toy: ToyNet, digits: Dataset) -> None:
    result = evaluate(without_copy(toy), digits.test, square_spec(EPS, 60), seed=4, batch_size=40)
    x, y = digits.test.images, digits.test.labels
    done = autoattack(without_copy(toy), x, y, eps=EPS, queries=60, seed=4, attacks=("square",), batch_size=40)
    assert torch.equal(result.correct, ~done.fooled)
    assert set(result.first_success.tolist()) == {NEVER, 0, 1}
    assert torch.equal(result.first_success == 0, misclassified(toy, x, y))
    assert torch.equal(result.first_success == 1, done.fooled_by == 0)


def test_names_and_tables_show_changed_settings() -> None:
    assert autoattack_spec("0.1").name == "autoattack@0.1"
    assert autoattack_spec(8 / 255).name == "autoattack@8/255"
    assert autoattack_spec("0.1", iterations=2, queries=10).name == "autoattack-2-10@0.1"
    assert autoattack_spec("0.1", iterations=99).name == "autoattack-99-5000@0.1"
    assert autoattack_spec("0.1", queries=4999).name == "autoattack-100-4999@0.1"
    assert square_spec("0.1", 10).name == "square-10@0.1"
    assert square_spec("0.1").steps == QUERIES == 5000
    assert autoattack_spec("0.1").standard
    assert not autoattack_spec("0.1", iterations=2).standard
    table = autoattack_spec("8/255", 2, 10).table()
    assert (table["kind"], table["eps"], table["steps"], table["queries"]) == ("autoattack", "8/255", 2, 10)
    others = [square_spec("0.1"), pgd_spec("0.1", 5, "0.02"), noise_spec("0.1", 5), AttackSpec("clean")]
    assert not any("queries" in spec.table() for spec in others)
    assert replace(autoattack_spec("0.1"), eps=Fraction(1, 5)).name == "autoattack@0.2"
