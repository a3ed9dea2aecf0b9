"""The same seed gives the same results on the CPU and on another (simulated) device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from simulated_device import SimulatedTensor, simulated_device
from torch import Tensor, nn
from toys import Linear, ToyNet

from paperlib import Dataset, Profile
from paperlib.acceleration import Folded
from paperlib.attacks import (
    OBJECTIVES,
    attack,
    autoattack,
    fgsm,
    misclassified,
    mixture_objectives,
    pgd,
    random_noise,
    transfer_objective,
)
from paperlib.attacks.early_stopping import SYNC_EVERY
from paperlib.data import Split, augment
from paperlib.evaluation import (
    CLEAN,
    AttackSpec,
    AuditBudget,
    audit,
    autoattack_spec,
    evaluate,
    fgsm_spec,
    noise_spec,
    pgd_spec,
    square_spec,
    worst_case,
)
from paperlib.models import ADVMoE, Mixture
from paperlib.seeds import cpu_generator, hash_seed
from paperlib.systems.registry import recipes
from paperlib.training.trainer import train
from paperlib.training.validation import Validation

EPS, STEP = "0.1", "0.03"
PGD: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 4}


@pytest.fixture
def device() -> Iterator[torch.device]:
    with simulated_device() as simulated:
        yield simulated


# -- the simulated device ----------------------------------------------------------------------------------------------


def test_tensors_created_on_the_device_or_moved_to_it_belong_to_it(device: torch.device) -> None:
    x = torch.rand(4, 3).to(device)
    tensors = [x + 1, x[1:], x.new_zeros(2), torch.zeros_like(x), torch.arange(3, device=device), x > 0.5, x.double()]
    tensors += [
        torch.tensor([1.0, 2.0], device=x.device),
        torch.zeros((), device=device),
        torch.randperm(3, device=device),
    ]
    assert all(type(tensor) is SimulatedTensor and tensor.device == device for tensor in tensors)
    assert type(x.cpu()) is Tensor and type(x.to("cpu")) is Tensor
    assert float(x.sum()) == float(x.cpu().sum()) and x.tolist() == x.cpu().tolist()


REFUSED: dict[str, Callable[[Tensor, Tensor], object]] = {  # of a tensor on the device and one on the CPU
    "add": lambda gpu, cpu: gpu + cpu,
    "matmul": lambda gpu, cpu: cpu @ gpu,
    "where": lambda gpu, cpu: torch.where(gpu > 0, gpu, cpu),
    "cat": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "add_": lambda gpu, cpu: gpu.add_(cpu),
    "add_ to the CPU's": lambda gpu, cpu: cpu.add_(gpu),
    "index_put_": lambda gpu, cpu: gpu.index_put_((torch.arange(2),), cpu[:2]),
    "generator of the CPU": lambda gpu, cpu: torch.rand(3, generator=torch.Generator(), device=gpu.device),
    "generator of the CPU, in place": lambda gpu, cpu: gpu.uniform_(generator=torch.Generator()),
    "numpy()": lambda gpu, cpu: gpu.numpy(),
    "np.asarray": lambda gpu, cpu: np.asarray(gpu),
}


def test_operations_that_fail_on_a_gpu_raise(device: torch.device) -> None:
    cpu = torch.rand(3, 3)
    for call in REFUSED.values():
        with pytest.raises((RuntimeError, TypeError), match=r"device|numpy"):
            call(cpu.to(device), cpu)


def test_numbers_and_indices_of_the_cpu_work_as_on_a_gpu(device: torch.device) -> None:
    cpu = torch.rand(3, 3)
    gpu = cpu.to(device)
    assert torch.equal((gpu + torch.tensor(2.0)).cpu(), cpu + 2)
    for index in (torch.tensor([2, 0]), [2, 0], (slice(None), [0, 1]), [True, False, True], (Ellipsis, None), 1):
        assert torch.equal(gpu[index].cpu(), cpu[index])  # type: ignore[index]
    gpu[:, [1]], cpu[:, [1]] = 0.5, 0.5
    assert torch.equal(gpu.cpu(), cpu)
    assert torch.equal(gpu.copy_(cpu + 1).cpu(), cpu + 1) and torch.equal(cpu.copy_(gpu), gpu.cpu())


def test_the_device_has_a_separate_random_stream(device: torch.device) -> None:
    torch.manual_seed(1)
    expected = torch.rand(5)
    torch.manual_seed(1)
    assert not torch.equal(torch.rand(5, device=device).cpu(), expected)
    assert torch.equal(torch.rand(5), expected)  # the CPU's stream does not change
    with pytest.raises(RuntimeError):
        torch.Generator(device)


def test_gradients_and_training_on_the_device_equal_those_of_the_cpu(device: torch.device) -> None:
    first = ToyNet().train()
    second = copy.deepcopy(first).to(device)
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad for p in second.parameters())
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    for model, images, labels in ((first, x, y), (second, x.to(device), y.to(device))):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
    assert equal(first.state_dict(), copy.deepcopy(second).state_dict())


# -- attacks -----------------------------------------------------------------------------------------------------------


def equal(first: Any, second: Any) -> bool:
    """Whether results are equal bit for bit; tensors of ``second`` may be on another device."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.dtype == second.dtype and torch.equal(first, second.cpu())
    if hasattr(first, "__dataclass_fields__"):
        return equal(vars(first), vars(second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first if k != "seconds")
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def without_copy(model: nn.Module) -> Folded:
    """The model without a folded copy, whose rounding on the CPU differs from that on a GPU."""
    return Folded(model, model)


def mixture(toy: ToyNet, **options: Any) -> Mixture:
    """Two different experts and a linear gate with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        other = copy.deepcopy(toy)
        for parameter in other.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        gate = Linear(0.5 * torch.randn(2, 64))
    return Mixture([copy.deepcopy(toy), other], gate, **options).eval()


def same_on(
    device: torch.device, model: nn.Module, split: Split, call: Callable[[nn.Module, Tensor, Tensor], Any]
) -> Any:
    """Require equal results on the CPU and on the device, with the same state of the global generator; returns them."""
    results = []
    for target in (torch.device("cpu"), device):
        torch.manual_seed(7)
        moved = copy.deepcopy(model).to(target)
        results.append(call(moved, split.images.clone().to(target), split.labels.clone().to(target)))
    assert equal(*results)
    return results[0]


ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "fgsm": lambda model, x, y: fgsm(model, x, y, eps=EPS),
    "pgd": lambda model, x, y: pgd(model, x, y, **PGD, generator=cpu_generator(3)),
    "pgd in L2": lambda model, x, y: pgd(model, x, y, **PGD, generator=cpu_generator(3), norm="l2"),
    "pgd with the global generator": lambda model, x, y: pgd(model, x, y, **PGD),
    "attack": lambda model, x, y: attack(model, x, y, **PGD, generator=cpu_generator(3)),
    "attack in batches with restarts": lambda model, x, y: attack(
        model, x, y, **PGD, generator=cpu_generator(3), batch_size=7, restarts=2
    ),
    "attack with the global generator": lambda model, x, y: attack(model, x, y, **PGD, restarts=2),
    "attack with a start": lambda model, x, y: attack(model, x, y, **PGD, start=(x + 0.05).clamp(0, 1)),
    "attack with targets": lambda model, x, y: attack(
        model, x, y, **PGD, generator=cpu_generator(3), objective=OBJECTIVES["cross-entropy"].function, targets=9 - y
    ),
    "transfer attack": lambda model, x, y: attack(
        model, x, y, **PGD, generator=cpu_generator(3), objective=transfer_objective(copy.deepcopy(model))
    ),
    "noise": lambda model, x, y: random_noise(
        without_copy(model), x, y, eps="0.4", draws=4, generator=cpu_generator(3)
    ),
    "noise with the global generator": lambda model, x, y: random_noise(
        without_copy(model), x, y, eps="0.4", draws=4, batch_size=7
    ),
    "misclassified": lambda model, x, y: misclassified(model, x, y, 7),
    "square": lambda model, x, y: autoattack(without_copy(model), x, y, eps=EPS, attacks=("square",), queries=20),
}


@pytest.mark.parametrize("call", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_is_the_same_on_every_device(
    call: Callable[[nn.Module, Tensor, Tensor], Any], toy: ToyNet, digits: Dataset, device: torch.device
) -> None:
    same_on(device, toy, digits.test.first(12), call)


def test_less_frequent_synchronisation_as_on_a_gpu_changes_no_outcome(
    toy: ToyNet, digits: Dataset, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SYNC_EVERY, device.type, SYNC_EVERY["cuda"])

    def outcome(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        done = attack(model, x, y, **PGD, generator=cpu_generator(3), batch_size=7, restarts=2)
        return done.images, done.fooled, done.first_success

    _, fooled, _ = same_on(device, toy, digits.test.first(20), outcome)
    assert 0 < int(fooled.sum()) < 20


@pytest.mark.parametrize("options", [{"mixing": "logits"}, {"top1": True}], ids=["logits", "top 1"])
def test_every_attack_on_a_mixture_is_the_same_on_every_device(
    options: dict[str, Any], toy: ToyNet, digits: Dataset, device: torch.device
) -> None:
    model = mixture(toy, **options)

    def all_objectives(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
        objectives = {name: OBJECTIVES[name] for name in ("margin", "dlr", "divergence")} | mixture_objectives(
            model, x, benign=0
        )
        specs = {objective: pgd_spec(EPS, 1, STEP, objective=objective) for objective in objectives}
        run: dict[str, Any] = {"seed": 4, "objectives": objectives, "batch_size": 4}
        return {objective: evaluate(without_copy(model), Split(x, y), spec, **run) for objective, spec in specs.items()}

    results = same_on(device, model, digits.test.first(6), all_objectives)
    assert len(results) > 12


SPECS = [
    CLEAN,
    fgsm_spec(EPS),
    pgd_spec(EPS, 4, STEP, restarts=2),
    noise_spec("0.4", 3),
    square_spec(EPS, 20),
    autoattack_spec(EPS, 1, 4),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_evaluation_is_the_same_on_every_device(
    spec: AttackSpec, toy: ToyNet, digits: Dataset, device: torch.device
) -> None:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return evaluate(without_copy(model), Split(x, y), spec, seed=4, batch_size=11)

    images = 8 if spec.kind == "autoattack" else 24
    result = same_on(device, toy, digits.test.first(images), run)
    assert result.correct.device.type == "cpu"
    assert int(result.correct.sum()) < images


def test_an_evaluation_through_a_folded_copy_has_the_same_outcomes(
    toy: ToyNet, digits: Dataset, device: torch.device
) -> None:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return worst_case(model, Split(x, y), SPECS[:4], seed=4, batch_size=11).correct

    same_on(device, toy, digits.test.first(20), run)


def test_the_state_of_autoattack_can_be_resumed_on_another_device(
    toy: ToyNet, digits: Dataset, device: torch.device, tmp_path: Path
) -> None:
    x, y = digits.test.images[:20], digits.test.labels[:20]
    options: dict[str, Any] = {"eps": EPS, "iterations": 2, "queries": 10, "state": tmp_path / "state.safetensors"}
    first = autoattack(without_copy(toy), x, y, **options)
    second = autoattack(without_copy(copy.deepcopy(toy).to(device)), x.to(device), y.to(device), **options)
    assert equal(first.fooled_by, second.fooled_by) and second.passes == 0


@pytest.mark.parametrize("kind", ["network", "mixture"])
def test_an_audit_is_the_same_on_every_device(
    kind: str, toy: ToyNet, digits: Dataset, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("auditing.context", "robustness"):
        monkeypatch.setattr(f"paperlib.evaluation.{module}.fold", lambda model, x: without_copy(model))
    budget = AuditBudget(steps=1, restarts=1, draws=1, iterations=1, queries=2, autoattack=kind == "network")

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        more: dict[str, Any] = {"selected_on": digits.validation.images[:20].to(x.device), "audit_budget": budget}
        more |= {"benign": 0} if kind == "mixture" else {"transfer_from": {"twin": copy.deepcopy(model)}}
        return audit(model, x, y, "0.15", **more, batch_size=5, seed=3)

    same_on(device, toy if kind == "network" else mixture(toy), digits.test.first(8), run)


# -- training ----------------------------------------------------------------------------------------------------------


def test_augmentation_is_the_same_on_every_device(digits: Dataset, device: torch.device) -> None:
    x = digits.test.images[:20]
    expected = augment(x, crop=1, flip=True, generator=cpu_generator(3))
    assert equal(expected, augment(x.to(device), crop=1, flip=True, generator=cpu_generator(3)))


SMALL_NETWORKS: dict[str, Callable[[ToyNet], nn.Module]] = {
    "trades": copy.deepcopy,
    "dwf": mixture,
    "advmoe": lambda toy: ADVMoE(10, 2, 2, 2, 1, (0.5,), (0.5,)),
}


@pytest.mark.parametrize("system", SMALL_NETWORKS)
def test_a_recipe_trains_the_same_network_on_every_device(
    system: str, toy: ToyNet, micro: Profile, digits: Dataset, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.training.trainer.fold", lambda model, x: without_copy(model))
    recipe = recipes(micro)[system]
    assert recipe.training is not None
    results = []
    small = Dataset(**{**vars(digits), "train": digits.train.first(20), "validation": digits.validation.first(6)})
    for target in (torch.device("cpu"), device):
        torch.manual_seed(hash_seed(1, system))
        model = SMALL_NETWORKS[system](toy).to(target)
        history = train(
            model,
            small.to(target),
            config=recipe.training,
            augmentation=micro.data,
            update_steps=recipe.update_steps,
            validation=Validation(0.1, 0.025, 1, recipe.select),
            seed=5,
            label=system,
        )
        scores = [(epoch.clean, epoch.fgsm, epoch.pgd, epoch.loss) for epoch in history.epochs]
        results.append((model.state_dict(), scores))
    assert equal(*results)
