"""AutoAttack through the adapter: equal to the library's own run, told per image, and resumable wherever it stops."""

from __future__ import annotations

import copy
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
CUT: dict[str, int] = {"iterations": 5, "queries": 60}
HOW: dict[str, Any] = {"eps": EPS, **CUT}


class Guarded(nn.Module):
    """A network that masks gradients: cross-entropy is flat around brighter images, all around the brightest.

    The logits of the former are so large that the softmax is exactly one-hot; those of the latter carry no gradient.
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
def guarded(toy: ToyNet) -> Guarded:
    return Guarded(copy.deepcopy(toy)).eval()


def same(model: nn.Module) -> Folded:
    """No copy: the network itself does all the work."""
    return Folded(model, model)


def some(digits: Dataset, n: int = 30) -> tuple[Tensor, Tensor]:
    return digits.test.images[:n], digits.test.labels[:n]


def counts(done: AutoAttacked) -> dict[int, int]:
    return {value: int((done.fooled_by == value).sum()) for value in (MISCLASSIFIED, SURVIVED, 0, 1, 2, 3)}


def librarys(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Which of the library's attacks fooled which image, from its own runs with one, two, three and four of them."""
    fooled_by, images = torch.full_like(y, SURVIVED), x
    fooled_by[model(x).argmax(dim=1) != y] = MISCLASSIFIED
    for last in range(len(STANDARD)):
        library = pyautoattack.AutoAttack(model, norm="Linf", eps=EPS, version="standard", seed=seed, device="cpu")
        assert tuple(library.attacks_to_run) == STANDARD
        library.attacks_to_run = list(STANDARD[: last + 1])
        for part in (library.apgd, library.apgd_targeted, library.fab):
            part.n_iter = CUT["iterations"]
        library.square.n_queries = CUT["queries"]
        images, answers = library.run_standard_evaluation(x, y, batch_size=len(x))
        fooled_by[(answers != y) & (fooled_by == SURVIVED)] = last
    return fooled_by, images


# -- the library's run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_each_image_falls_to_the_attack_it_falls_to_in_the_librarys_own_run(
    guarded: Guarded, digits: Dataset, seed: int
) -> None:
    x, y = digits.test.images, digits.test.labels
    done = autoattack(same(guarded), x, y, **HOW, seed=seed, batch_size=len(x))
    fooled_by, images = librarys(guarded, x, y, seed)
    assert done.fooled_by.tolist() == fooled_by.tolist()
    assert torch.equal(done.images, images)
    assert {MISCLASSIFIED, SURVIVED, 0, 1, 3} <= set(done.fooled_by.tolist())  # all of these happened


def test_an_unguarded_network_falls_as_in_the_librarys_own_run(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    done = autoattack(same(toy), x, y, **HOW, seed=3, batch_size=len(x))
    fooled_by, images = librarys(toy, x, y, 3)
    assert done.fooled_by.tolist() == fooled_by.tolist()
    assert torch.equal(done.images, images)
    assert 5 < int(done.fooled.sum()) < 30


def test_uncut_its_settings_are_those_of_the_librarys_standard_version(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def told(self: Any, x: Tensor, y: Tensor) -> Tensor:
        plain = {k: v for k, v in vars(self).items() if isinstance(v, bool | int | float | str | None)}
        seen.append((type(self).__name__, plain))
        return x

    for kind in (APGDAttack, APGDAttack_targeted, FABAttack, SquareAttack):
        monkeypatch.setattr(kind, "perturb", told)
    x, y = some(digits, 4)
    pyautoattack.AutoAttack(toy, eps=EPS, seed=5, device=x.device).run_standard_evaluation(x, y)
    theirs = seen.copy()
    seen.clear()
    done = autoattack(same(toy), x, y, eps=EPS, seed=5)
    assert [name for name, _ in theirs] == ["APGDAttack", "APGDAttack_targeted", "FABAttack_PT", "SquareAttack"]
    assert seen == theirs
    assert not done.fooled[done.fooled_by != MISCLASSIFIED].any()  # nothing was attacked


def test_another_seed_is_another_run(guarded: Guarded, digits: Dataset) -> None:
    x, y = some(digits)
    first, again, other = (autoattack(same(guarded), x, y, **HOW, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


# -- what it says of each image ----------------------------------------------------------------------------------------


def test_images_said_to_fool_do_so_within_the_ball_and_the_box(guarded: Guarded, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    done = autoattack(same(guarded), x, y, **HOW)
    won = done.fooled_by >= 0
    assert done.attacks == STANDARD
    assert done.fooled_by.dtype == torch.int8
    assert 10 < int(won.sum()) < 75
    assert torch.equal(done.fooled_by == MISCLASSIFIED, guarded(x).argmax(dim=1) != y)
    assert torch.equal(done.fooled, done.fooled_by != SURVIVED)
    assert torch.equal(misclassified(guarded, done.images, y), done.fooled)
    assert torch.equal(done.images[~won], x[~won])
    assert (done.images - x).abs().max() <= EPS + 1e-6
    assert 0 <= done.images.min() <= done.images.max() <= 1


@pytest.mark.parametrize("beyond", ["ball", "box"])
def test_an_image_outside_the_ball_or_the_box_is_no_success(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, beyond: str
) -> None:
    x, y = some(digits)

    def perturb(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return x.flip(0) if beyond == "ball" else x - EPS

    monkeypatch.setattr(SquareAttack, "perturb", perturb)
    done = autoattack(same(toy), x, y, **HOW, attacks=("square",))
    assert set(done.fooled_by.tolist()) == {MISCLASSIFIED, SURVIVED}
    assert torch.equal(done.images, x)


@pytest.mark.parametrize("alone", STANDARD)
def test_each_attack_can_be_run_alone(toy: ToyNet, digits: Dataset, alone: str) -> None:
    x, y = some(digits, 60)
    done = autoattack(same(toy), x, y, **HOW, attacks=(alone,))
    assert done.attacks == (alone,)
    assert set(done.fooled_by.tolist()) == {MISCLASSIFIED, SURVIVED, 0}
    assert torch.equal(misclassified(toy, done.images, y), done.fooled)


def test_an_attack_that_another_forestalled_wins_nothing(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    alone = autoattack(same(toy), x, y, **HOW, attacks=("apgd-t",))
    both = autoattack(same(toy), x, y, **HOW, attacks=("apgd-ce", "apgd-t"))
    first = autoattack(same(toy), x, y, **HOW, attacks=("apgd-ce",))
    assert int((alone.fooled_by == 0).sum()) > int((both.fooled_by == 1).sum())
    assert torch.equal(both.fooled_by == 0, first.fooled_by == 0)
    assert not (first.fooled & ~both.fooled).any()


def test_square_asks_for_no_gradient(toy: ToyNet, digits: Dataset) -> None:
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            raise AssertionError("a gradient was asked for")

    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return toy(NoGradient.apply(x))

    x, y = some(digits)
    done = autoattack(same(Closed()), x, y, **HOW, attacks=("square",))
    assert torch.equal(done.fooled_by, autoattack(same(toy), x, y, **HOW, attacks=("square",)).fooled_by)
    with pytest.raises(AssertionError, match="a gradient was asked for"):
        autoattack(same(Closed()), x, y, **HOW)


def test_the_empty_set_is_done_at_once(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits, 0)
    done = autoattack(toy, x, y, **HOW)
    assert (done.fooled_by.shape, done.images.shape, done.passes) == ((0,), x.shape, 0)


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 5, 8])
def test_each_batch_is_attacked_as_if_it_were_alone(guarded: Guarded, digits: Dataset, batch_size: int) -> None:
    x, y = some(digits, 12)
    whole = autoattack(same(guarded), x, y, **HOW, batch_size=batch_size)
    parts = [
        autoattack(same(guarded), a, b, **HOW, batch_size=batch_size)
        for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True)
    ]
    assert len(parts) == -(-12 // batch_size)
    assert torch.equal(whole.fooled_by, torch.cat([part.fooled_by for part in parts]))
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert whole.passes == sum(part.passes for part in parts)
    assert {SURVIVED, 0} < set(whole.fooled_by.tolist())


def test_no_batch_is_larger_than_asked(toy: ToyNet, digits: Dataset) -> None:
    model, sizes = copy.deepcopy(toy), []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    autoattack(same(model), *some(digits), **HOW, batch_size=7)
    assert max(sizes) == 7


# -- a folded copy -----------------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """Says of each image what the network says of another class: claims that what is right is wrong."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).roll(1, dims=1)


def test_a_folded_copy_leads_to_the_same_outcomes(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits, 60)
    folded = fold(toy, x)
    assert folded.network is not toy
    through, plain = autoattack(folded, x, y, **HOW), autoattack(same(toy), x, y, **HOW)
    assert int((through.fooled != plain.fooled).sum()) <= 1  # rounding, at the border of a class
    assert torch.equal(misclassified(toy, through.images, y), through.fooled)
    assert torch.equal(autoattack(toy, x, y, **HOW).fooled_by, through.fooled_by)  # a copy is made where none is given


def test_a_copy_that_cries_wolf_changes_no_outcome(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    plain = autoattack(same(toy), x, y, **HOW)
    misled = autoattack(Folded(toy, Shifted(toy)), x, y, **HOW)
    assert torch.equal(misled.fooled_by, plain.fooled_by)
    assert torch.equal(misled.images, plain.images)
    assert misled.passes > plain.passes


def test_images_said_to_fool_do_fool_whatever_the_copy_says(toy: ToyNet, digits: Dataset) -> None:
    crooked = copy.deepcopy(toy)
    with torch.no_grad():
        for parameter in crooked.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape))
    x, y = some(digits, 60)
    done = autoattack(Folded(toy, crooked), x, y, **HOW)
    assert not torch.equal(misclassified(crooked, done.images, y), misclassified(toy, done.images, y))
    assert 10 < int((done.fooled_by >= 0).sum()) < 55
    assert torch.equal(misclassified(toy, done.images, y), done.fooled)


# -- what it costs, and how far it is ----------------------------------------------------------------------------------


def test_square_costs_as_many_passes_as_it_has_queries(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits, 6)
    kept = ~misclassified(toy, x, y)
    x, y = x[kept][:4], y[kept][:4]
    how: dict[str, Any] = {"eps": 1e-4, "attacks": ("square",)}
    costs = [autoattack(same(toy), x, y, **how, queries=queries).passes for queries in (10, 11, 60)]
    assert costs[1] - costs[0] == 4  # nothing falls at this eps, so each query asks about each image
    assert costs[2] - costs[0] == 50 * 4


@pytest.mark.parametrize("kind", ["itself", "copy", "misleading copy"])
def test_every_pass_of_the_attacks_is_counted(toy: ToyNet, digits: Dataset, kind: str) -> None:
    x, y = some(digits)
    model, asked = copy.deepcopy(toy), []
    copied = {"itself": model, "copy": fold(model, x).network, "misleading copy": Shifted(copy.deepcopy(toy))}[kind]
    for network in {model, copied}:
        network.register_forward_hook(lambda module, args, output: asked.append(len(args[0])))
    done = autoattack(Folded(model, copied), x, y, **HOW)
    assert 0.9 * sum(asked) < done.passes < sum(asked)  # first look and confirmations are not the attacks'


def test_fewer_images_left_cost_fewer_passes(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    easy, hard = (autoattack(same(toy), x, y, **(HOW | {"eps": eps})).passes for eps in (0.3, 0.01))
    assert 0 < 5 * easy < hard


def test_the_share_done_rises_to_one(toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))  # a look at the clock is a second
    shares: list[float] = []
    autoattack(same(toy), *some(digits), **HOW, batch_size=10, progress=shares.append)
    assert len(set(shares)) > 4 * 3  # not only after each attack on each batch
    assert 0 < shares[0] < 1 / 12
    assert shares == sorted(shares)
    assert shares[-1] == 1


# -- resuming ----------------------------------------------------------------------------------------------------------

UNITS = 4 * 3  # attacks x batches of ten


class Stopped(Exception):
    """A run that ends in the middle."""


def stopping(at: int) -> Callable[[float], None]:
    """What to be told of progress: raises when told for the ``at``-th time."""
    told: list[float] = []

    def progress(share: float) -> None:
        told.append(share)
        if len(told) == at:
            raise Stopped

    return progress


def run(model: nn.Module, digits: Dataset, state: Path | None = None, **more: Any) -> AutoAttacked:
    return autoattack(same(model), *some(digits), **(HOW | {"batch_size": 10, "state": state} | more))


@pytest.fixture(scope="module")
def whole(toy: ToyNet, digits: Dataset) -> AutoAttacked:
    """What a run ends with that nothing interrupts and that keeps no state. Treat as read-only."""
    done = run(Guarded(toy).eval(), digits)
    assert {MISCLASSIFIED, SURVIVED, 0, 1} <= set(done.fooled_by.tolist())
    return done


@pytest.mark.parametrize("at", [1, 2, 6, 12])
def test_a_run_stopped_after_some_attacks_ends_like_one_that_was_not(
    guarded: Guarded, digits: Dataset, whole: AutoAttacked, tmp_path: Path, at: int
) -> None:
    state = tmp_path / "state"
    with pytest.raises(Stopped):
        run(guarded, digits, state, progress=stopping(at))
    assert state.exists() == (at > 1)  # the work in which it was stopped is lost, no more
    rest = run(guarded, digits, state)
    assert torch.equal(rest.fooled_by, whole.fooled_by)
    assert rest.passes < whole.passes if at > 1 else rest.passes == whole.passes
    here = (rest.images == whole.images).flatten(1).all(dim=1)  # found in this process, or never
    assert torch.equal(rest.images[~here], some(digits)[0][~here])
    assert here.all() == (at == 1)


@pytest.mark.parametrize("calls", [1, 20, 100, 300])
def test_a_run_that_dies_between_two_passes_ends_like_one_that_did_not(
    guarded: Guarded, digits: Dataset, whole: AutoAttacked, tmp_path: Path, calls: int
) -> None:
    state, asked = tmp_path / "state", []

    def dying(module: nn.Module, args: tuple[Tensor]) -> None:
        asked.append(len(args[0]))
        if len(asked) > calls:
            raise Stopped

    hook = guarded.register_forward_pre_hook(dying)
    with pytest.raises(Stopped):
        run(guarded, digits, state)
    hook.remove()
    rest = run(guarded, digits, state)
    assert torch.equal(rest.fooled_by, whole.fooled_by)
    assert not list(tmp_path.glob(".*"))  # nothing half-written lies about


def test_a_run_stopped_again_and_again_gets_there(
    guarded: Guarded, digits: Dataset, whole: AutoAttacked, tmp_path: Path
) -> None:
    state, stops = tmp_path / "state", 0
    shares: list[float] = []
    while True:
        try:
            done = run(guarded, digits, state, progress=stopping(2))
        except Stopped:
            stops += 1
            assert stops < 2 * UNITS
            shares.append(float(files.read_tensors(state)[0]["done"].double().mean()))
        else:
            break
    assert shares == pytest.approx([(i + 1) / UNITS for i in range(UNITS - 1)])  # one attack on one batch each time
    assert torch.equal(done.fooled_by, whole.fooled_by)
    assert done.passes < whole.passes / 2


def test_a_run_with_a_state_ends_like_one_without_and_costs_nothing_more_when_done(
    guarded: Guarded, digits: Dataset, whole: AutoAttacked, tmp_path: Path
) -> None:
    state = tmp_path / "not" / "there" / "yet" / "state"
    first = run(guarded, digits, state)
    assert torch.equal(first.fooled_by, whole.fooled_by)
    assert torch.equal(first.images, whole.images)
    assert first.passes == whole.passes
    asked: list[int] = []
    guarded.register_forward_hook(lambda module, args, output: asked.append(len(args[0])))
    again = run(guarded, digits, state)
    assert torch.equal(again.fooled_by, first.fooled_by)
    assert (again.passes, asked) == (0, [])
    assert torch.equal(again.images, some(digits)[0])  # found in another process
    assert [path.name for path in state.parent.iterdir()] == ["state"]


def test_a_run_through_a_copy_may_be_resumed_without_one(toy: ToyNet, digits: Dataset, tmp_path: Path) -> None:
    x, y = some(digits)
    how: dict[str, Any] = {**HOW, "batch_size": 10, "state": tmp_path / "state"}
    with pytest.raises(Stopped):
        autoattack(fold(toy, x), x, y, **how, progress=stopping(5))
    done = autoattack(same(toy), x, y, **how)
    assert int((done.fooled != run(toy, digits).fooled).sum()) <= 1


def killed_while_writing(folder: Path, writes: int) -> None:
    """A run that lingers in the middle of writing its state for the ``writes``-th time, and says that it does."""
    torch.set_num_threads(1)
    x, y, model = torch.load(folder / "work.pt", weights_only=False)
    save, done = files.save_file, []

    def half(tensors: dict[str, Tensor], path: Path, **more: Any) -> None:
        save(tensors, path, **more)
        done.append(path)
        if len(done) == writes:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            (folder / "sign").touch()
            time.sleep(120)

    files.save_file = half
    autoattack(same(model), x, y, **HOW, batch_size=10, state=folder / "kept" / "state")


def test_a_process_killed_while_it_writes_leaves_a_state_to_go_on_from(
    guarded: Guarded, digits: Dataset, whole: AutoAttacked, tmp_path: Path
) -> None:
    torch.save((*some(digits), guarded), tmp_path / "work.pt")
    process = multiprocessing.get_context("spawn").Process(target=killed_while_writing, args=(tmp_path, 6))
    process.start()
    until = time.monotonic() + 60
    while not (tmp_path / "sign").exists() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.02)
    assert (tmp_path / "sign").exists()
    process.kill()
    process.join()
    state = tmp_path / "kept" / "state"
    assert int(files.read_tensors(state)[0]["done"].sum()) == 5
    rest = run(guarded, digits, state)
    assert torch.equal(rest.fooled_by, whole.fooled_by)
    assert 0 < rest.passes < whole.passes


def test_a_full_disk_is_a_store_error_and_leaves_the_last_state(
    guarded: Guarded, digits: Dataset, whole: AutoAttacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        run(guarded, digits, state)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert int(files.read_tensors(state)[0]["done"].sum()) == 3
    assert torch.equal(run(guarded, digits, state).fooled_by, whole.fooled_by)


def other_weights(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3
    return changed


def other_statistics(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    next(buffer for buffer in changed.buffers() if buffer.is_floating_point())[0] += 1e-3
    return changed


@pytest.mark.parametrize(
    ("setting", "value"),
    [
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
    ],
)
def test_the_state_of_another_run_is_refused_and_left_alone(
    toy: ToyNet, digits: Dataset, tmp_path: Path, setting: str, value: Any
) -> None:
    x, y = some(digits)
    state = tmp_path / "my-state.safetensors"
    given: dict[str, Any] = {"model": toy, "x": x, "y": y, **HOW, "batch_size": 10, "seed": 0, "state": state}
    with pytest.raises(Stopped):
        autoattack(**(given | {"progress": stopping(3)}))
    before = state.read_bytes()
    changed = given | {setting: value(given[setting]) if callable(value) else value}
    if len(changed["x"]) == 20:
        changed["y"] = y[:20]
    with pytest.raises(InputError, match=r"my-state\.safetensors.*another run"):
        autoattack(**changed)
    assert state.read_bytes() == before


@pytest.mark.parametrize("length", [0, 7, 0.5, -1])
def test_a_torn_state_is_a_store_error_that_names_it(
    guarded: Guarded, digits: Dataset, tmp_path: Path, length: float
) -> None:
    state = tmp_path / "torn.safetensors"
    with pytest.raises(Stopped):
        run(guarded, digits, state, progress=stopping(2))
    content = state.read_bytes()
    state.write_bytes(content[: int(length * len(content)) if 0 < length < 1 else int(length)])
    with pytest.raises(StoreError, match=r"torn\.safetensors"):
        run(guarded, digits, state)


@pytest.mark.parametrize("content", [b"another kind of file", b"\xff" * 500])
def test_a_foreign_file_in_the_states_place_is_a_store_error(
    guarded: Guarded, digits: Dataset, tmp_path: Path, content: bytes
) -> None:
    state = tmp_path / "foreign"
    state.write_bytes(content)
    with pytest.raises(StoreError, match="foreign"):
        run(guarded, digits, state)
    assert state.read_bytes() == content


# -- leaving no trace --------------------------------------------------------------------------------------------------


def used(model: nn.Module) -> nn.Module:
    """A network in the middle of something: mixed modes, some gradients there, one parameter frozen."""
    model = copy.deepcopy(model).train()
    model.body[1].eval()
    model.zero_grad(set_to_none=True)
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model


@pytest.mark.parametrize("kind", ["itself", "copy", "misleading copy"])
@pytest.mark.parametrize("stops", [False, True], ids=["returns", "raises"])
def test_parameter_gradients_are_left_as_they_were(toy: ToyNet, digits: Dataset, kind: str, stops: bool) -> None:
    model, (x, y) = used(toy), some(digits)
    before = {name: None if p.grad is None else (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    asking = {name: p.requires_grad for name, p in model.named_parameters()}
    assert len(set(asking.values())) == 2
    folded = {"itself": same(model), "copy": fold(model, x), "misleading copy": Folded(model, Shifted(model))}[kind]
    if stops:
        with pytest.raises(Stopped):
            autoattack(folded, x, y, **HOW, attacks=("fab-t", "square"), progress=stopping(1))
    else:
        autoattack(folded, x, y, **HOW)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == asking[name], name
        expected = before[name]
        if expected is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is expected[0] and torch.equal(parameter.grad, expected[1]), name


@pytest.mark.parametrize("kind", ["itself", "copy"])
@pytest.mark.parametrize("stops", [False, True], ids=["returns", "raises"])
def test_modes_buffers_and_weights_are_left_as_they_were(toy: ToyNet, digits: Dataset, kind: str, stops: bool) -> None:
    model, (x, y) = used(toy), some(digits)
    modes, before = [module.training for module in model.modules()], copy.deepcopy(model)
    assert len(set(modes)) == 2
    seen: list[bool] = []
    given = same(model) if kind == "itself" else fold(model, x)
    model.register_forward_pre_hook(lambda module, args: seen.append(any(m.training for m in module.modules())))
    if stops:
        with pytest.raises(Stopped):
            autoattack(given, x, y, **HOW, progress=stopping(1))
    else:
        autoattack(given, x, y, **HOW)
    assert seen and not any(seen)  # it was asked in evaluation mode
    assert [module.training for module in model.modules()] == modes
    assert same_state(model, before)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]


@pytest.mark.parametrize("stops", [False, True], ids=["returns", "raises"])
def test_chance_outside_is_left_alone_and_decides_nothing(guarded: Guarded, digits: Dataset, stops: bool) -> None:
    x, y = some(digits)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        if stops:
            with pytest.raises(Stopped):
                autoattack(same(guarded), x, y, **HOW, progress=stopping(2))
        else:
            found.append(autoattack(same(guarded), x, y, **HOW))
        assert torch.equal(torch.get_rng_state(), before)
    if not stops:
        assert torch.equal(found[0].fooled_by, found[1].fooled_by)
        assert torch.equal(found[0].images, found[1].images)


def test_images_are_not_changed_and_results_carry_no_graph(toy: ToyNet, digits: Dataset) -> None:
    x, y = some(digits)
    given = x.clone().requires_grad_()
    labels = y.clone()
    with torch.no_grad():
        done = autoattack(same(toy), given, labels, **HOW)
        assert not torch.is_grad_enabled()
    assert torch.equal(given, x) and given.grad is None
    assert torch.equal(labels, y)
    assert not done.images.requires_grad
    assert torch.equal(done.fooled_by, autoattack(same(toy), x, y, **HOW).fooled_by)


# -- few classes -------------------------------------------------------------------------------------------------------


def wide(classes: int) -> tuple[Linear, Tensor, Tensor]:
    """A linear model of 8x8 images and images it gets right."""
    torch.manual_seed(classes)
    model, x = Linear(torch.randn(classes, 64)), torch.rand(30, 1, 8, 8)
    return model, x, model(x).argmax(dim=1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("attacks", [STANDARD, ("apgd-t",)])
def test_fewer_than_four_classes_are_refused(classes: int, attacks: tuple[str, ...]) -> None:
    model, x, y = wide(classes)
    with pytest.raises(InputError, match=rf"4 classes or more, the model has {classes}"):
        autoattack(model, x, y, **HOW, attacks=attacks)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("attack", ["apgd-ce", "fab-t", "square"])
def test_attacks_without_the_targeted_loss_do_with_fewer_classes(classes: int, attack: str) -> None:
    model, x, y = wide(classes)
    done = autoattack(model, x, y, eps=0.05, **CUT, attacks=(attack,))
    assert set(done.fooled_by.tolist()) == {SURVIVED, 0}
    assert torch.equal(misclassified(model, done.images, y), done.fooled)


@pytest.mark.parametrize("classes", [4, 5, 9, 10, 12])
def test_no_more_classes_are_targeted_than_there_are(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    targets: dict[str, int] = {}

    def watched(kind: Any) -> Callable[..., Tensor]:
        plain = kind.perturb

        def perturb(self: Any, x: Tensor, y: Tensor) -> Tensor:
            targets[type(self).__name__] = self.n_target_classes
            return plain(self, x, y)

        return perturb

    for kind in (APGDAttack_targeted, FABAttack):
        monkeypatch.setattr(kind, "perturb", watched(kind))
    model, x, y = wide(classes)
    done = autoattack(model, x, y, eps=0.03, **CUT)
    assert targets == {"APGDAttack_targeted": min(9, classes - 1), "FABAttack_PT": min(9, classes - 1)}
    assert torch.equal(misclassified(model, done.images, y), done.fooled)
    assert {SURVIVED, 0} <= set(done.fooled_by.tolist())


@pytest.mark.parametrize(
    ("attack", "sure"), [("apgd-ce", 0.8), ("apgd-t", 0.95), ("fab-t", 0.9), ("square", 0.05)], ids=STANDARD
)
def test_on_a_linear_model_the_images_that_fall_are_those_near_another_class(attack: str, sure: float) -> None:
    model, x, _ = wide(5)
    x = 0.2 + 0.6 * x  # nothing to clip
    y = model(x).argmax(dim=1)
    weight, logits = model.weight.detach(), model(x).detach()
    # The L-infinity distance to class c is (z_y - z_c) / |w_y - w_c|_1.
    gaps = (logits.gather(1, y[:, None]) - logits) / (weight[y][:, None] - weight[None]).abs().sum(dim=2)
    distance = gaps.masked_fill(nn.functional.one_hot(y, 5).bool(), torch.inf).amin(dim=1)
    eps = float(distance.quantile(0.9 if attack == "square" else 0.6))
    done = autoattack(model, x, y, eps=eps, iterations=15, queries=100, attacks=(attack,))
    assert not done.fooled[distance > eps * 1.0001].any()
    assert done.fooled[distance < eps * sure].all()
    assert 5 < int(done.fooled.sum()) < 28


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("eps", 8, "8/255"),
        ("eps", "8", "8/255"),
        ("eps", -0.1, "eps"),
        ("eps", float("nan"), "eps"),
        ("eps", None, "eps"),
        ("batch_size", 0, "batch_size"),
        ("batch_size", 2.5, "batch_size"),
        ("iterations", 0, "iterations"),
        ("iterations", True, "iterations"),
        ("queries", -1, "queries"),
        ("queries", "50", "queries"),
        ("attacks", ("apgd-ce", "apgd-dlr"), r"unknown 'apgd-dlr'; known: apgd-ce, apgd-t, fab-t, square"),
        ("x", torch.full((6, 1, 8, 8), 255, dtype=torch.uint8), "divide bytes"),
        ("x", torch.full((6, 1, 8, 8), 2.0), "images"),
        ("x", torch.zeros(6, 64), "shape"),
        ("y", torch.zeros(5, dtype=torch.int64), "labels"),
        ("y", torch.zeros(6), "labels"),
        ("y", torch.full((6,), 10), "labels"),
    ],
)
def test_a_bad_setting_is_one_input_error_that_names_it(
    toy: ToyNet, digits: Dataset, setting: str, value: object, word: str
) -> None:
    x, y = some(digits, 6)
    given: dict[str, Any] = {"x": x, "y": y, **HOW, setting: value}
    with pytest.raises(InputError, match=word):
        autoattack(toy, **given)


class Broken(nn.Module):
    """A network whose answers break on all images, or on all but those it was shown."""

    def __init__(self, model: nn.Module, value: float, but: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.value, self.but = model, value, but

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        if self.but is None:
            return logits * self.value
        known = (x.unsqueeze(1) == self.but).flatten(2).all(dim=2).any(dim=1)
        return torch.where(known.unsqueeze(1), logits, logits * self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("folding", [False, True])
def test_a_broken_answer_is_an_error(toy: ToyNet, digits: Dataset, value: float, folding: bool) -> None:
    model = Broken(toy, value)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        autoattack(model if folding else same(model), *some(digits), **HOW)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("attacks", [STANDARD, ("square",)])
def test_an_answer_that_breaks_on_the_way_is_an_error_and_no_outcome(
    toy: ToyNet, digits: Dataset, value: float, attacks: tuple[str, ...]
) -> None:
    x, y = some(digits)
    model = Broken(toy, value, but=x)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        autoattack(same(model), x, y, **HOW, attacks=attacks)


def test_without_the_library_the_error_says_how_to_get_it(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(PaperlibError, match="pip install pyautoattack"):
        autoattack(toy, *some(digits), **HOW)


# -- as an evaluation --------------------------------------------------------------------------------------------------


def test_an_evaluation_says_which_attack_won(guarded: Guarded, digits: Dataset, tmp_path: Path) -> None:
    spec = autoattack_spec(EPS, **CUT)
    found = evaluate(same(guarded), digits.test, spec, seed=2**31 + 4, batch_size=40, state=tmp_path / "state")
    x, y = digits.test.images, digits.test.labels
    done = autoattack(same(guarded), x, y, **HOW, seed=4, batch_size=40)  # numpy's and torch's seeds end there
    assert torch.equal(found.correct, ~done.fooled)
    expected = {SURVIVED: NEVER, MISCLASSIFIED: 0, 0: 1, 1: 2, 2: 3, 3: 4}
    assert found.first_success.tolist() == [expected[fooled_by] for fooled_by in done.fooled_by.tolist()]
    assert {NEVER, 0, 1, 2, 4} <= set(found.first_success.tolist())
    assert found.first_success.dtype == torch.int16
    assert found.passes == done.passes / 80
    assert found.batch_size == 40
    assert found.record()["correct"] == counts(done)[SURVIVED]
    again = evaluate(same(guarded), digits.test, spec, seed=2**31 + 4, batch_size=40, state=tmp_path / "state")
    assert torch.equal(again.first_success, found.first_success)
    assert again.passes == 0


def test_an_evaluation_under_square_alone(toy: ToyNet, digits: Dataset) -> None:
    found = evaluate(same(toy), digits.test, square_spec(EPS, 200), seed=4, batch_size=40)
    x, y = digits.test.images, digits.test.labels
    done = autoattack(same(toy), x, y, eps=EPS, queries=200, seed=4, attacks=("square",), batch_size=40)
    assert torch.equal(found.correct, ~done.fooled)
    assert set(found.first_success.tolist()) == {NEVER, 0, 1}
    assert torch.equal(found.first_success == 0, misclassified(toy, x, y))
    assert torch.equal(found.first_success == 1, done.fooled_by == 0)


def test_names_and_tables_tell_what_was_cut() -> None:
    assert autoattack_spec("0.1").name == "autoattack@0.1"
    assert autoattack_spec(8 / 255).name == "autoattack@8/255"
    assert autoattack_spec("0.1", iterations=2, queries=10).name == "autoattack-2-10@0.1"
    assert autoattack_spec("0.1", iterations=99).name == "autoattack-99-5000@0.1"
    assert autoattack_spec("0.1", queries=4999).name == "autoattack-100-4999@0.1"
    assert square_spec("0.1", 10).name == "square-10@0.1"
    assert square_spec("0.1").steps == QUERIES == 5000
    assert autoattack_spec("0.1").standard
    assert not autoattack_spec("0.1", iterations=2).standard
    told = autoattack_spec("8/255", 2, 10).table()
    assert (told["kind"], told["eps"], told["steps"], told["queries"]) == ("autoattack", "8/255", 2, 10)
    others = [square_spec("0.1"), pgd_spec("0.1", 5, "0.02"), noise_spec("0.1", 5), AttackSpec("clean")]
    assert not any("queries" in spec.table() for spec in others)
    assert replace(autoattack_spec("0.1"), eps=Fraction(1, 5)).name == "autoattack@0.2"
