"""On a device that is not the CPU, the same seed gives what it gives on the CPU."""

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
from toys import ToyNet

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
from paperlib.attacks import pgd as gradient_attacks
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
from paperlib.models import Gate, Mixture
from paperlib.seeds import cpu_generator, hash_seed
from paperlib.systems.build import DataFacts, architecture_of, build_network
from paperlib.systems.registry import recipes
from paperlib.training.trainer import train
from paperlib.training.validation import Validation

EPS, STEP = "0.1", "0.03"
HOW: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 4}


@pytest.fixture
def device() -> Iterator[torch.device]:
    with simulated_device() as simulated:
        yield simulated


# -- the device itself -------------------------------------------------------------------------------------------------


def test_what_is_made_on_the_device_or_moved_there_is_of_the_device(device: torch.device) -> None:
    x = torch.rand(4, 3).to(device)
    made = [x + 1, x[1:], x.new_zeros(2), torch.zeros_like(x), torch.arange(3, device=device), x > 0.5, x.double()]
    made += [
        torch.tensor([1.0, 2.0], device=x.device),
        torch.zeros((), device=device),
        torch.randperm(3, device=device),
    ]
    assert all(type(tensor) is SimulatedTensor and tensor.device == device for tensor in made)
    assert type(x.cpu()) is Tensor and type(x.to("cpu")) is Tensor
    assert float(x.sum()) == float(x.cpu().sum()) and x.tolist() == x.cpu().tolist()


REFUSED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "a sum": lambda there, here: there + here,
    "a product": lambda there, here: here @ there,
    "a choice": lambda there, here: torch.where(there > 0, there, here),
    "one behind the other": lambda there, here: torch.cat([there, here]),
    "in place": lambda there, here: there.add_(here),
    "into the CPU's": lambda there, here: here.add_(there),
    "values": lambda there, here: there.index_put_((torch.arange(2),), here[:2]),
    "a generator of the CPU": lambda there, here: torch.rand(3, generator=torch.Generator(), device=there.device),
    "the same in place": lambda there, here: there.uniform_(generator=torch.Generator()),
    "NumPy": lambda there, here: there.numpy(),
    "NumPy by itself": lambda there, here: np.asarray(there),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
def test_what_a_gpu_refuses_is_refused(call: Callable[[Tensor, Tensor], object], device: torch.device) -> None:
    here = torch.rand(3, 3)
    with pytest.raises((RuntimeError, TypeError), match=r"device|numpy"):
        call(here.to(device), here)


def test_what_a_gpu_takes_of_the_cpu_is_taken(device: torch.device) -> None:
    here = torch.rand(3, 3)
    there = here.to(device)
    assert torch.equal((there + torch.tensor(2.0)).cpu(), here + 2)  # numbers
    for index in (torch.tensor([2, 0]), [2, 0], (slice(None), [0, 1]), [True, False, True], (Ellipsis, None), 1):
        assert torch.equal(there[index].cpu(), here[index])  # type: ignore[index]
    there[:, [1]], here[:, [1]] = 0.5, 0.5
    assert torch.equal(there.cpu(), here)
    assert torch.equal(there.copy_(here + 1).cpu(), here + 1) and torch.equal(here.copy_(there), there.cpu())


def test_the_device_has_random_numbers_of_its_own(device: torch.device) -> None:
    torch.manual_seed(1)
    wanted = torch.rand(5)
    torch.manual_seed(1)
    assert not torch.equal(torch.rand(5, device=device).cpu(), wanted)
    assert torch.equal(torch.rand(5), wanted)  # and leaves those of the CPU alone
    with pytest.raises(RuntimeError):
        torch.Generator(device)


def test_gradients_and_training_on_the_device_are_those_of_the_cpu(device: torch.device) -> None:
    here = ToyNet().train()
    there = copy.deepcopy(here).to(device)
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad for p in there.parameters())
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    optimisers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (here, there)]
    for _ in range(3):
        for model, optimiser, images, labels in zip(
            (here, there), optimisers, (x, x.to(device)), (y, y.to(device)), strict=True
        ):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
    assert equal(here.state_dict(), copy.deepcopy(there).state_dict())


# -- attacks -----------------------------------------------------------------------------------------------------------


def equal(here: Any, there: Any) -> bool:
    """The same results, bit for bit; tensors of the second lie where they may."""
    if isinstance(here, Tensor):
        return isinstance(there, Tensor) and here.dtype == there.dtype and torch.equal(here, there.cpu())
    if hasattr(here, "__dataclass_fields__"):
        return equal(vars(here), vars(there))
    if isinstance(here, dict):
        return here.keys() == there.keys() and all(equal(here[k], there[k]) for k in here if k != "seconds")
    if isinstance(here, list | tuple):
        return len(here) == len(there) and all(map(equal, here, there))
    return bool(here == there)


def alone(model: nn.Module) -> Folded:
    """No copy: the CPU folds otherwise than a GPU, and so rounds otherwise."""
    return Folded(model, model)


def mixture(toy: ToyNet, **how: Any) -> Mixture:
    """Two different experts and a gate that has learnt nothing yet but is not even."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        other = copy.deepcopy(toy)
        for parameter in other.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        gate = Gate(2, 2, 1, (0.5,), (0.5,))
        nn.init.normal_(gate.head.weight)
    return Mixture([copy.deepcopy(toy), other], gate, **how).eval()


def same_on(
    device: torch.device, model: nn.Module, split: Split, call: Callable[[nn.Module, Tensor, Tensor], Any]
) -> Any:
    """Run on the CPU and on the device, with a global generator in the same state, and compare."""
    found = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(7)
        moved = copy.deepcopy(model).to(where)
        found.append(call(moved, split.images.clone().to(where), split.labels.clone().to(where)))
    assert equal(*found)
    return found[0]


ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "fgsm": lambda model, x, y: fgsm(model, x, y, eps=EPS),
    "pgd": lambda model, x, y: pgd(model, x, y, **HOW, generator=cpu_generator(3)),
    "pgd in L2": lambda model, x, y: pgd(model, x, y, **HOW, generator=cpu_generator(3), norm="l2"),
    "pgd by the global generator": lambda model, x, y: pgd(model, x, y, **HOW),
    "attack": lambda model, x, y: attack(model, x, y, **HOW, generator=cpu_generator(3)),
    "attack in batches, again": lambda model, x, y: attack(
        model, x, y, **HOW, generator=cpu_generator(3), batch_size=7, restarts=3
    ),
    "attack by the global generator": lambda model, x, y: attack(model, x, y, **HOW, restarts=2),
    "attack from elsewhere": lambda model, x, y: attack(model, x, y, **HOW, start=(x + 0.05).clamp(0, 1)),
    "attack with targets": lambda model, x, y: attack(
        model, x, y, **HOW, generator=cpu_generator(3), objective=OBJECTIVES["cross-entropy"].objective, targets=9 - y
    ),
    "attack on another network": lambda model, x, y: attack(
        model, x, y, **HOW, generator=cpu_generator(3), objective=transfer_objective(copy.deepcopy(model))
    ),
    "noise": lambda model, x, y: random_noise(alone(model), x, y, eps="0.4", draws=4, generator=cpu_generator(3)),
    "noise by the global generator": lambda model, x, y: random_noise(
        alone(model), x, y, eps="0.4", draws=4, batch_size=7
    ),
    "misclassified": lambda model, x, y: misclassified(model, x, y, 7),
    "square": lambda model, x, y: autoattack(alone(model), x, y, eps=EPS, attacks=("square",), queries=20),
}


@pytest.mark.parametrize("call", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_is_the_same_on_every_device(
    call: Callable[[nn.Module, Tensor, Tensor], Any], toy: ToyNet, digits: Dataset, device: torch.device
) -> None:
    same_on(device, toy, digits.test.first(30), call)


def test_looking_less_often_as_on_a_gpu_changes_no_outcome(
    toy: ToyNet, digits: Dataset, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gradient_attacks.LOOK_EVERY, device.type, gradient_attacks.LOOK_EVERY["cuda"])

    def outcome(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        found = attack(model, x, y, **HOW, generator=cpu_generator(3), batch_size=7, restarts=2)
        return found.images, found.fooled, found.first_success

    _, fooled, _ = same_on(device, toy, digits.test.first(30), outcome)
    assert 0 < int(fooled.sum()) < 30


@pytest.mark.parametrize("how", [{"mixing": "logits"}, {"top1": True}], ids=["logits", "top 1"])
def test_every_attack_on_a_mixture_is_the_same_on_every_device(
    how: dict[str, Any], toy: ToyNet, digits: Dataset, device: torch.device
) -> None:
    model = mixture(toy, **how)

    def all_aims(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
        objectives = {name: OBJECTIVES[name] for name in ("margin", "dlr", "divergence")} | mixture_objectives(
            model, x, benign=0
        )
        specs = {objective: pgd_spec(EPS, 1, STEP, objective=objective) for objective in objectives}
        run: dict[str, Any] = {"seed": 4, "aims": objectives, "batch_size": 6}
        return {objective: evaluate(alone(model), Split(x, y), spec, **run) for objective, spec in specs.items()}

    found = same_on(device, model, digits.test.first(10), all_aims)
    assert len(found) > 12


SPECS = [
    CLEAN,
    fgsm_spec(EPS),
    pgd_spec(EPS, 4, STEP, restarts=2),
    noise_spec("0.4", 4),
    square_spec(EPS, 20),
    autoattack_spec(EPS, 2, 10),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_an_evaluation_is_the_same_on_every_device(
    spec: AttackSpec, toy: ToyNet, digits: Dataset, device: torch.device
) -> None:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return evaluate(alone(model), Split(x, y), spec, seed=4, batch_size=11)

    found = same_on(device, toy, digits.test.first(30), run)
    assert 0 < int(found.correct.sum()) < 30 and found.correct.device.type == "cpu"


def test_an_evaluation_through_a_folded_copy_counts_the_same_images(
    toy: ToyNet, digits: Dataset, device: torch.device
) -> None:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        return worst_case(model, Split(x, y), SPECS[:4], seed=4, batch_size=11).correct

    same_on(device, toy, digits.test.first(30), run)


def test_a_stopped_autoattack_goes_on_elsewhere(
    toy: ToyNet, digits: Dataset, device: torch.device, tmp_path: Path
) -> None:
    x, y = digits.test.images[:20], digits.test.labels[:20]
    how: dict[str, Any] = {"eps": EPS, "iterations": 3, "queries": 20, "state": tmp_path / "state.safetensors"}
    here = autoattack(alone(toy), x, y, **how)
    there = autoattack(alone(copy.deepcopy(toy).to(device)), x.to(device), y.to(device), **how)
    assert equal(here.by, there.by) and there.passes == 0


@pytest.mark.parametrize("kind", ["network", "mixture"])
def test_an_audit_is_the_same_on_every_device(
    kind: str, toy: ToyNet, digits: Dataset, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("case", "robustness"):
        monkeypatch.setattr(f"paperlib.evaluation.{module}.fold", lambda model, x: alone(model))
    effort = AuditBudget(steps=2, restarts=1, draws=2, iterations=2, queries=3, autoattack=kind == "network")

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        more: dict[str, Any] = {"selected_on": digits.validation.images.to(x.device), "audit_budget": effort}
        more |= {"benign": 0} if kind == "mixture" else {"transfer_from": {"twin": copy.deepcopy(model)}}
        return audit(model, x, y, "0.15", **more, batch_size=15, seed=3)

    same_on(device, toy if kind == "network" else mixture(toy), digits.test.first(20), run)


# -- training ----------------------------------------------------------------------------------------------------------


def test_augmentation_is_the_same_on_every_device(digits: Dataset, device: torch.device) -> None:
    x = digits.test.images[:20]
    here = augment(x, crop=1, flip=True, generator=cpu_generator(3))
    assert equal(here, augment(x.to(device), crop=1, flip=True, generator=cpu_generator(3)))


@pytest.mark.parametrize("system", ["trades", "dwf", "advmoe"])
def test_a_recipe_trains_the_same_network_on_every_device(
    system: str, micro: Profile, digits: Dataset, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.training.trainer.fold", lambda model, x: alone(model))
    recipe = recipes(micro)[system]
    assert recipe.training is not None
    found = []
    small = Dataset(**{**vars(digits), "train": digits.train.first(20), "validation": digits.validation.first(6)})
    for where in (torch.device("cpu"), device):
        torch.manual_seed(hash_seed(1, system))
        model = build_network(architecture_of(recipe, micro.model), DataFacts.of(small)).to(where)
        history = train(
            model,
            small.to(where),
            config=recipe.training,
            augmentation=micro.data,
            update_steps=recipe.update_steps,
            validation=Validation(0.1, 0.025, 1, recipe.select),
            seed=5,
            label=system,
        )
        found.append(
            (model.state_dict(), [(epoch.clean, epoch.fgsm, epoch.pgd, epoch.loss) for epoch in history.epochs])
        )
    assert equal(*found)
