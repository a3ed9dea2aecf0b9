"""Attack distributions, recipes and the trainer: samples, updates, checkpoints, and runs continued after a stop."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from toys import Linear, ToyNet, logged, same_state

from paperlib import Dataset, Profile, load_profile
from paperlib.acceleration import Folded
from paperlib.acceleration.precision import tensor_float32
from paperlib.atomic_files import read_tensors, write_tensors
from paperlib.attacks import fgsm
from paperlib.config.schema import StudyConfig, TrainConfig
from paperlib.data import Split
from paperlib.errors import InputError, MissingError, NotFiniteError, ProfileError, StoreError
from paperlib.models import ADVMoE, Gate, Mixture, ResNet, SoE, UniformGate, parameters, resnet18
from paperlib.models.modes import eval_mode
from paperlib.pipeline.stages import stages
from paperlib.seeds import hash_seed
from paperlib.systems import registry
from paperlib.systems.build import DataFacts, architecture_of, build_network, load_experts
from paperlib.systems.defences import IMAGE_VALUES
from paperlib.systems.experts import EXPERT_KINDS, EXPERTS
from paperlib.systems.recipe import Network, Recipe
from paperlib.systems.registry import COMPARED, recipe_for, recipes
from paperlib.systems.singles import BACKBONES
from paperlib.training import trainer
from paperlib.training.adversaries import AttackDistribution, NoAttack, OneOf, RandomFGSM, RandomPGD, SampledAttack
from paperlib.training.history import Epoch, History
from paperlib.training.losses import CrossEntropyLoss, RouterLoss, SoELoss, TradesLoss, TrainingLoss
from paperlib.training.trainer import Augmentation, schedule, train
from paperlib.training.update import TRAINABLE, UpdateStep
from paperlib.training.validation import Validation, validate

CONFIG = TrainConfig(
    epochs=3, batch_size=30, lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="one-cycle", validation_steps=2
)
ONE_EPOCH = replace(CONFIG, epochs=1)
AUGMENTATION = Augmentation(crop=1, flip=False)
VALIDATION = Validation(eps=0.1, step_size=0.025, steps=2, select="pgd")
FGSM = RandomFGSM((0.02, 0.05, 0.08))
PGD = RandomPGD(0.1, 0.05, (1, 2), random_start=True)
PHASE2 = OneOf((NoAttack(), FGSM, PGD))


@pytest.fixture(scope="session")
def few(digits: Dataset) -> Dataset:
    """The first 120 training digits (four batches) and 30 validation digits."""
    return replace(digits, train=digits.train.first(120), validation=digits.validation.first(30))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(seed: int = 0) -> ToyNet:
    torch.manual_seed(seed)
    return ToyNet(width=4)


def run(model: nn.Module, data: Dataset, **changes: Any) -> History:
    settings: dict[str, Any] = {
        "config": CONFIG,
        "augmentation": AUGMENTATION,
        "update_steps": [UpdateStep(PHASE2)],
        "validation": VALIDATION,
        "seed": 5,
    }
    return train(model, data, **(settings | changes))


def without_times(history: History) -> list[dict[str, Any]]:
    return [{name: value for name, value in vars(e).items() if name != "seconds"} for e in history.epochs]


# -- attack distributions --------------------------------------------------------------------------------------------


def test_random_fgsm_draws_each_eps_of_its_set_equally_often() -> None:
    distribution, generator = RandomFGSM((0.01, 0.02, 0.09)), rng()
    attacks = [distribution.sample(generator) for _ in range(1500)]
    counts = Counter(attack.eps for attack in attacks)
    assert set(counts) == set(distribution.eps)
    assert all(abs(count - 500) < 100 for count in counts.values())  # five standard deviations
    assert all(a.steps == 1 and a.step_size == a.eps and not a.random_start for a in attacks)


def test_random_pgd_draws_each_number_of_iterations_equally_often() -> None:
    distribution, generator = RandomPGD(0.1, 0.025, (10, 20, 50)), rng()
    attacks = [distribution.sample(generator) for _ in range(1500)]
    counts = Counter(attack.steps for attack in attacks)
    assert set(counts) == set(distribution.steps)
    assert all(abs(count - 500) < 100 for count in counts.values())
    assert {(a.eps, a.step_size, a.random_start) for a in attacks} == {(0.1, 0.025, True)}


def test_one_of_draws_all_its_distributions_equally_often_and_from_the_generator_only() -> None:
    attacks, again, other = ([PHASE2.sample(g) for g in [rng(seed)] for _ in range(1500)] for seed in (1, 1, 2))
    assert attacks == again and attacks != other
    kinds = Counter("clean" if a.steps == 0 else "pgd" if a.random_start else "fgsm" for a in attacks)
    assert set(kinds) == {"clean", "fgsm", "pgd"}
    assert all(abs(count - 500) < 100 for count in kinds.values())


def test_the_mean_steps_are_the_expected_number_of_iterations() -> None:
    assert (NoAttack().mean_steps(), FGSM.mean_steps(), PGD.mean_steps()) == (0, 1, 1.5)
    assert PHASE2.mean_steps() == pytest.approx(2.5 / 3)


def test_a_sampled_fgsm_attack_is_fgsm(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.train.images[:50], digits.train.labels[:50]
    sampled = FGSM.sample(rng())
    assert torch.equal(sampled.perturb(toy, x, y, rng()), fgsm(toy, x, y, eps=sampled.eps))


def test_a_sampled_pgd_attack_starts_at_random_and_takes_its_steps(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.train.images[:50], digits.train.labels[:50]
    sampled = SampledAttack(0.1, 0.05, steps=3, random_start=True)
    passes = []
    hook = toy.register_forward_hook(lambda *arguments: passes.append(1))
    first, again, other = (sampled.perturb(toy, x, y, rng(seed)) for seed in (1, 1, 2))
    hook.remove()
    assert len(passes) == 9
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_an_attack_the_images_are_unchanged(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.train.images, digits.train.labels
    assert NoAttack().sample(rng()).perturb(toy, x, y, rng()) is x


# -- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("one-cycle", {0: 0, 0.15: 0.5, 0.3: 1, 0.65: 0.5, 1: 0}),
        ("cosine", {0: 1, 0.5: 0.5, 1: 0}),
        ("constant", {0: 1, 0.5: 1, 1: 1}),
    ],
)
def test_the_schedule_of_the_learning_rate(name: str, values: dict[float, float]) -> None:
    assert {progress: schedule(name, progress) for progress in values} == pytest.approx(values)


# -- training --------------------------------------------------------------------------------------------------------


def test_adversarial_training_learns_and_is_more_robust_than_clean_training(digits: Dataset) -> None:
    settings = {"config": replace(CONFIG, batch_size=60, epochs=15), "validation": replace(VALIDATION, steps=5)}
    last: list[Epoch] = []
    for attack in (NoAttack(), RandomPGD(0.1, 0.05, (3,))):
        model = net()
        history = run(model, digits, update_steps=[UpdateStep(attack)], **settings)
        last.append(history.epochs[-1])
        assert last[-1].loss < 0.9 * history.epochs[0].loss
        assert not model.training
        correct = model(digits.validation.images).argmax(dim=1) == digits.validation.labels
        assert correct.float().mean() > 0.5  # chance is 0.1
    clean, robust = last
    assert robust.pgd > clean.pgd + 0.1


def test_the_attack_runs_in_evaluation_mode_and_the_update_in_training_mode(few: Dataset) -> None:
    modes: list[str] = []

    class Marked(NoAttack):
        def sample(self, generator: torch.Generator) -> SampledAttack:
            modes.append("|")
            return SampledAttack(0.1, 0.1, steps=2)

    model = net()
    hook = model.register_forward_hook(lambda module, *arguments: modes.append("t" if module.body[1].training else "e"))
    run(model, few, update_steps=[UpdateStep(Marked())], config=ONE_EPOCH)
    hook.remove()
    batches = "".join(modes).split("|")[1:]
    assert len(batches) == 4
    assert [batch[:3] for batch in batches] == ["eet"] * 4


class Calls:
    """Records the model and the TF32 setting of each attack and each validation of a training run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attacked: list[Folded] = []
        self.validated: list[Folded] = []
        self.differences: list[float] = []  # between the logits of the folded copy and those of the model
        self.tf32: set[tuple[str, bool]] = set()
        perturb = SampledAttack.perturb

        def recorded_perturb(sampled: SampledAttack, model: Folded, *arguments: Any) -> Tensor:
            self.attacked.append(model)
            with eval_mode(model.model), torch.no_grad():
                x = arguments[0]
                self.differences.append(float((model.network(x).float() - model.model(x).float()).abs().max()))
            self.tf32.add(("attack", torch.backends.cudnn.allow_tf32))
            return perturb(sampled, model, *arguments)

        def recorded_validate(model: Folded, *arguments: Any, **settings: Any) -> Any:
            self.validated.append(model)
            self.tf32.add(("validation", torch.backends.cudnn.allow_tf32))
            return validate(model, *arguments, **settings)

        monkeypatch.setattr(SampledAttack, "perturb", recorded_perturb)
        monkeypatch.setattr(trainer, "validate", recorded_validate)


def test_attacks_use_a_folded_copy_with_the_current_weights(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    model = net()
    run(model, few, update_steps=[UpdateStep(PGD)], config=replace(CONFIG, epochs=2))
    assert len(calls.attacked) == 8
    assert all(folded.model is model and folded.network is not model for folded in calls.attacked)
    assert max(calls.differences) < 1e-4
    assert [folded.network is not model for folded in calls.validated] == [True] * 2


def test_with_bfloat16_the_attacks_use_bfloat16_and_the_validation_float32(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    run(net(), few, update_steps=[UpdateStep(PGD)], bf16=True)
    # In the first epoch the network may be too little trained for a copy in bfloat16.
    assert {layer.dtype for folded in calls.attacked for layer in folded.layers} == {torch.bfloat16}
    assert {layer.dtype for folded in calls.validated for layer in folded.layers} == {torch.float32}


@pytest.mark.parametrize("tf32", [False, True])
def test_tensor_float32_is_used_in_training_only(few: Dataset, monkeypatch: pytest.MonkeyPatch, tf32: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    calls = Calls(monkeypatch)
    run(net(), few, update_steps=[UpdateStep(PGD)], tf32=tf32, config=ONE_EPOCH)
    assert calls.tf32 == {("attack", tf32), ("validation", False)}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_the_precision_is_restored_after_an_error() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def fail(allowed: bool) -> None:
        with tensor_float32(allowed):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
            raise RuntimeError("stop")

    for allowed in (True, False):
        with pytest.raises(RuntimeError, match="stop"):
            fail(allowed)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_training_with_a_folded_copy_is_training_without_it_up_to_rounding(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, plain = net(), net()
    settings = {"update_steps": [UpdateStep(RandomFGSM((0.1,)))], "config": ONE_EPOCH}
    run(folded, few, **settings)
    monkeypatch.setattr(trainer, "fold", lambda model, example, **settings: Folded(model, model))
    run(plain, few, **settings)
    for a, b in zip(folded.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_the_same_seed_gives_the_same_network_and_another_seed_another(few: Dataset) -> None:
    models = [net() for _ in range(3)]
    histories = [run(model, few, seed=seed) for model, seed in zip(models, (1, 1, 2), strict=True)]
    assert same_state(models[0], models[1])
    assert without_times(histories[0]) == without_times(histories[1])
    assert not same_state(models[0], models[2])


class Untouchable:
    """A split that raises when it is used."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"the test split was used: {name}")

    def __len__(self) -> int:
        raise AssertionError("the test split was used: its length")


def test_the_test_split_is_not_used(few: Dataset) -> None:
    run(net(), replace(few, test=Untouchable()), config=ONE_EPOCH)  # type: ignore[arg-type]


@pytest.mark.parametrize(("select", "expected"), [("pgd", 2), ("clean", 1)])
def test_the_final_weights_are_those_of_the_last_of_the_best_epochs(
    few: Dataset, monkeypatch: pytest.MonkeyPatch, select: str, expected: int
) -> None:
    scripted = iter([(0.3, 0.9, 0.2, False), (0.8, 0.9, 0.4, False), (0.5, 0.9, 0.4, False), (0.7, 0.9, 0.1, True)])
    monkeypatch.setattr(trainer, "validate", lambda *args, **settings: next(scripted))
    model, after_epoch = net(), []
    with logged(lambda line: after_epoch.append(copy.deepcopy(model))):
        history = run(
            model,
            few,
            config=replace(CONFIG, epochs=4),
            validation=replace(VALIDATION, select=select),
        )
    assert history.best == expected
    assert [same_state(model, state) for state in after_epoch] == [epoch == expected for epoch in range(4)]


def test_validating_the_final_weights_reproduces_the_recorded_accuracies(few: Dataset) -> None:
    model = net()
    history = run(model, few, config=replace(CONFIG, epochs=4, lr=0.5, schedule="constant"))
    best = history.epochs[history.best]
    again = validate(model, few.validation, VALIDATION, seed=hash_seed(5, history.best, "validation"))
    assert again == (best.clean, best.fgsm, best.pgd, best.collapsed)
    assert best.pgd == max(e.pgd for e in history.epochs)


# -- update steps ----------------------------------------------------------------------------------------------------

ROUTED = RandomPGD(0.1, 0.0625, (2,), random_start=False, noise=0.001, objective="routed divergence")
ALTERNATING = [UpdateStep(ROUTED, TradesLoss(), "pathways"), UpdateStep(ROUTED, RouterLoss(), "router")]


def routed(seed: int = 0) -> ADVMoE:
    torch.manual_seed(seed)
    return ADVMoE(10, 2, 2, 2, 1, (0.3,), (0.4,))


@dataclasses.dataclass(frozen=True)
class Observed:
    """A loss that calls ``look`` with the model before it is computed."""

    loss: TrainingLoss
    look: Callable[[nn.Module], object]

    @property
    def passes(self) -> int:
        return self.loss.passes

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        self.look(model)
        return self.loss(model, clean, attacked, y)


def test_two_update_steps_alternate_and_each_changes_only_its_part(few: Dataset) -> None:
    states: list[tuple[str, dict[str, Tensor]]] = []
    modes: dict[str, set[tuple[bool, bool]]] = {"pathways": set(), "router": set()}

    def observed(update_step: UpdateStep) -> UpdateStep:
        def look(model: nn.Module) -> None:
            states.append((update_step.trainable, {name: value.clone() for name, value in model.state_dict().items()}))
            modes[update_step.trainable].add((model.network.stem[1].training, model.router.stem[1].training))

        return replace(update_step, loss=Observed(update_step.loss, look))

    config = replace(CONFIG, epochs=1, batch_size=60, schedule="constant")
    run(routed(), few, update_steps=[observed(update_step) for update_step in ALTERNATING], config=config)
    assert [name for name, _ in states] == ["pathways", "router"] * 2
    assert modes == {"pathways": {(True, False)}, "router": {(False, True)}}
    for (trainable, before), (_, after) in itertools.pairwise(states):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        part, other = ("network.", "router.") if trainable == "pathways" else ("router.", "network.")
        assert {f"{part}head.weight", f"{part}stem.0.weight", f"{part}stem.1.running_mean"} <= changed
        assert not any(name.startswith(other) for name in changed)


class Block(nn.Module):
    """A linear layer and modules without parameters."""

    def __init__(self, inputs: int, outputs: int, rate: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, affine=False), nn.ReLU(), nn.Dropout(rate)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class Expert(nn.Module):
    """A body and a last layer named ``head``, with a norm that has no parameters between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = Block(64, 16), nn.BatchNorm1d(16, affine=False), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


def mixture_of_blocks() -> Mixture:
    torch.manual_seed(0)
    return Mixture([Expert(), Expert()], Block(64, 2))


GATE = {"gate", "gate.layers", *(f"gate.layers.{i}" for i in range(4))}


@pytest.mark.parametrize(
    ("trainable", "learning"),
    [
        ("all", {name for name, _ in mixture_of_blocks().named_modules()}),
        ("gate", GATE),
        ("heads", GATE | {"experts.0.head", "experts.1.head"}),
    ],
    ids=["all", "gate", "heads"],
)
def test_only_the_trained_part_is_in_training_mode_and_changes(
    few: Dataset, trainable: str, learning: set[str]
) -> None:
    model, modes = mixture_of_blocks(), list[set[str]]()

    def look(model: nn.Module) -> None:
        modes.append({name for name, module in model.named_modules() if module.training})

    before = copy.deepcopy(model.state_dict())
    update_step = UpdateStep(PHASE2, Observed(CrossEntropyLoss(), look), trainable)
    run(model, few, update_steps=[update_step], config=replace(CONFIG, epochs=1, schedule="constant"))
    assert modes == [learning] * 4
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.rpartition(".")[0] in learning}
    assert {name for name, p in model.named_parameters() if p.grad is not None} <= changed


def test_a_module_without_trainable_parameters_is_frozen_and_the_others_learn(few: Dataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(64, 16), nn.Dropout(0.5), nn.BatchNorm1d(16, affine=False), nn.Linear(16, 10))
    model[0].requires_grad_(False)
    before, modes = copy.deepcopy(model), list[list[bool]]()

    def look(model: nn.Module) -> None:
        modes.append([module.training for module in model.children()])

    run(
        model,
        few,
        update_steps=[UpdateStep(FGSM, Observed(CrossEntropyLoss(), look))],
        config=ONE_EPOCH,
    )
    assert modes == [[False, True, True, True]] * 4
    assert same_state(model[0], before[0])
    assert not torch.equal(model[2].running_var, before[2].running_var)
    assert not torch.equal(model[3].bias, before[3].bias)


def test_an_update_step_without_trainable_parameters_is_an_error(few: Dataset) -> None:
    with pytest.raises(InputError, match=r"trainable='all'.*requires gradients"):
        run(net().requires_grad_(False), few)


class Functional(Block):
    """Dropout as a function that depends on the network's attribute ``training``."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize(
    "build", [lambda: Block(64, 10), lambda: Functional(64, 10, rate=0)], ids=["module", "function"]
)
def test_dropout_is_active_in_training_with_the_same_draws_in_every_run(
    build: Callable[[], nn.Module], few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(model: nn.Module, global_seed: int = 0, **settings: Any) -> nn.Module:
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        run(model, few, update_steps=[UpdateStep(FGSM)], config=replace(CONFIG, epochs=2), **settings)
        assert torch.equal(torch.get_rng_state(), state)  # the global generator is restored
        return model

    torch.manual_seed(0)
    initial = build()
    without = Block(64, 10, rate=0)
    without.load_state_dict(initial.state_dict())
    uninterrupted = trained(copy.deepcopy(initial))
    assert not same_state(uninterrupted, trained(without))
    assert same_state(uninterrupted, trained(copy.deepcopy(initial), global_seed=1))

    # Interrupted in the second epoch, a run continues from its checkpoint with the same draws.
    stops, real, checkpoint = iter([False, True]), validate, tmp_path / "state.safetensors"

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        if next(stops):
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(copy.deepcopy(initial), checkpoint=checkpoint)
    assert same_state(uninterrupted, trained(copy.deepcopy(initial), global_seed=2, checkpoint=checkpoint))


@dataclasses.dataclass(frozen=True)
class ConstantGradient:
    """A loss whose gradient is ``gradient`` for any images."""

    gradient: float
    passes = 1

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        return self.gradient * model.get_parameter("scale")


def test_each_update_step_has_its_own_momentum(few: Dataset) -> None:
    split = Split(torch.full((80, 1, 8, 8), 0.5), torch.zeros(80, dtype=torch.int64))
    data = replace(few, train=split, validation=split)
    scales: list[float] = []

    def look(model: nn.Module) -> None:
        scales.append(float(model.get_parameter("scale").detach()))

    update_steps = [
        UpdateStep(NoAttack(), Observed(ConstantGradient(1.0), look)),
        UpdateStep(NoAttack(), Observed(ConstantGradient(0.0), look)),
    ]
    config = TrainConfig(1, 20, lr=0.1, momentum=0.9, weight_decay=0, schedule="constant", validation_steps=1)
    run(Collapsed(), data, update_steps=update_steps, config=config)
    scale, momentum, expected = 1.0, 0.0, []
    for _ in range(4):
        momentum = 0.9 * momentum + 1
        after = scale - 0.1 * (1 + 0.9 * momentum)  # Nesterov
        expected += [scale, after]  # the second update has no gradient, hence no momentum, and changes nothing
        scale = after
    assert scales == pytest.approx(expected)


def test_each_update_step_samples_its_own_attack(few: Dataset) -> None:
    sampled: list[SampledAttack] = []

    class Recorded(RandomFGSM):
        def sample(self, generator: torch.Generator) -> SampledAttack:
            sampled.append(super().sample(generator))
            return sampled[-1]

    update_steps = [UpdateStep(Recorded(FGSM.eps)), UpdateStep(Recorded(FGSM.eps))]
    history = run(net(), few, update_steps=update_steps, config=replace(ONE_EPOCH, batch_size=10))
    assert len(sampled) == 24
    assert sampled[::2] != sampled[1::2]
    assert history.epochs[0].steps == 1  # per update


@pytest.mark.parametrize(
    ("update_steps", "passes"),
    [
        ([UpdateStep(RandomPGD(0.1, 0.05, (3,)), CrossEntropyLoss(clean=True))], 3 + 2),
        ([UpdateStep(RandomPGD(0.1, 0.05, (3,), False, 0.001, "divergence"), TradesLoss())], 3 + 1 + 2),
        ([UpdateStep(NoAttack()), UpdateStep(RandomPGD(0.1, 0.05, (2,)), TradesLoss())], 1 + 2 + 2),
    ],
)
def test_the_history_counts_the_passes_of_attacks_and_losses(
    few: Dataset, monkeypatch: pytest.MonkeyPatch, update_steps: list[UpdateStep], passes: int
) -> None:
    monkeypatch.setattr(trainer, "fold", lambda model, example, **settings: Folded(model, model))
    monkeypatch.setattr(trainer, "validate", lambda *args, **settings: (0.0, 0.0, 0.0, False))
    model, images = net(), []
    model.register_forward_hook(lambda module, args, output: images.append(len(args[0])))
    history = run(model, few, update_steps=update_steps, config=replace(CONFIG, epochs=2))
    assert history.passes == sum(images) == 2 * 120 * passes
    steps = sum(update_step.attack.mean_steps() for update_step in update_steps) / len(update_steps)
    assert [e.steps for e in history.epochs] == [steps] * 2


def test_soe_learns(few: Dataset) -> None:
    torch.manual_seed(0)
    model = SoE(ToyNet(width=4, classes=11) for _ in range(2))
    update_steps = [UpdateStep(RandomPGD(0.05, 0.025, (2,)), SoELoss())]
    history = run(model, few, update_steps=update_steps, config=replace(CONFIG, epochs=8))
    assert history.epochs[-1].loss < 0.9 * history.epochs[0].loss
    assert history.epochs[history.best].clean > 0.4  # chance is 0.1


# -- interrupted runs ------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def stop_after(epoch: int) -> Callable[[str], None]:
    def watch(line: str) -> None:
        if f"epoch {epoch:>3}/" in line:
            raise Interrupted

    return watch


def test_a_run_interrupted_after_every_epoch_ends_bit_for_bit_the_same(few: Dataset, tmp_path: Path) -> None:
    uninterrupted = net()
    expected = run(uninterrupted, few)
    checkpoint = tmp_path / "state.safetensors"
    for epoch, model in ((1, net()), (2, net(seed=7)), (3, net(seed=8))):  # the weights come from the file only
        with pytest.raises(Interrupted), logged(stop_after(epoch)):
            run(model, few, checkpoint=checkpoint)
    model = net(seed=9)
    lines: list[str] = []
    with logged(lines.append):
        history = run(model, few, checkpoint=checkpoint)
    assert lines == ["training: going on after epoch 3 of 3"]
    assert same_state(model, uninterrupted)
    assert without_times(history) == without_times(expected)
    assert (history.best, history.passes) == (expected.best, expected.passes)
    assert not model.training


def test_a_run_interrupted_within_an_epoch_ends_bit_for_bit_the_same(few: Dataset, tmp_path: Path) -> None:
    class Faulty(OneOf):
        samples = 0

        def sample(self, generator: torch.Generator) -> SampledAttack:
            Faulty.samples += 1
            if Faulty.samples == 6:  # the second batch of the second epoch
                raise Interrupted
            return super().sample(generator)

    uninterrupted, model = net(), net()
    expected = run(uninterrupted, few)
    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        run(model, few, update_steps=[UpdateStep(Faulty(PHASE2.attacks))], checkpoint=checkpoint)
    model = net()
    history = run(model, few, update_steps=[UpdateStep(PHASE2)], checkpoint=checkpoint)
    assert same_state(model, uninterrupted)
    assert (without_times(history), history.passes) == (without_times(expected), expected.passes)


class TwoParts(nn.Module):
    """A network and a router that is not used for the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.router = ToyNet(width=2), nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_an_interrupted_run_of_two_update_steps_ends_bit_for_bit_the_same(few: Dataset, tmp_path: Path) -> None:
    uninterrupted, checkpoint = TwoParts(), tmp_path / "state.safetensors"
    initial = copy.deepcopy(uninterrupted)
    update_steps = [UpdateStep(PHASE2, trainable="pathways"), UpdateStep(PHASE2, RouterLoss(), "router")]
    alternating = {"update_steps": update_steps, "config": replace(CONFIG, epochs=2)}
    expected = run(uninterrupted, few, **alternating)
    with pytest.raises(Interrupted), logged(stop_after(1)):
        run(initial, few, **alternating, checkpoint=checkpoint)
    saved, _ = read_tensors(checkpoint)
    last_parameter = sum(1 for _ in uninterrupted.parameters()) - 1  # of the second optimiser
    assert {"momentum/0", f"momentum/{last_parameter}"} <= set(saved)
    model = TwoParts()  # its weights come from the file only
    history = run(model, few, **alternating, checkpoint=checkpoint)
    assert same_state(model, uninterrupted)
    assert without_times(history) == without_times(expected)
    assert (history.best, history.passes) == (expected.best, expected.passes)


def corruptions() -> dict[str, Callable[[Path], object]]:
    def rewritten(change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            tensors, notes = read_tensors(path)
            change(tensors, notes)
            write_tensors(path, tensors, notes)

        return write

    return {
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
        "foreign": lambda path: save_file({"x": torch.zeros(2)}, path),
        "no history": rewritten(lambda tensors, notes: notes.clear()),
        "other history": rewritten(lambda tensors, notes: notes.update(history="[1]")),
        "older epochs": rewritten(
            lambda tensors, notes: notes.update(history='{"epochs": [{"epoch": 0}], "best": 0, "passes": 1}')
        ),
        "lost tensor": rewritten(lambda tensors, notes: tensors.pop("model/head.weight")),
        "lost best": rewritten(lambda tensors, notes: tensors.pop("best/head.weight")),
        "other shape": rewritten(lambda tensors, notes: tensors.update({"model/head.bias": torch.zeros(7)})),
    }


def test_a_corrupt_checkpoint_is_an_error_that_names_the_file(few: Dataset, tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted), logged(stop_after(1)):
        run(net(), few, checkpoint=checkpoint)
    intact = checkpoint.read_bytes()
    for corrupt in corruptions().values():
        checkpoint.write_bytes(intact)
        corrupt(checkpoint)
        with pytest.raises(StoreError, match=r"state\.safetensors.*delete it to start over"):
            run(net(), few, checkpoint=checkpoint)


# -- errors and warnings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [NoAttack(), PGD], ids=["clean", "pgd"])
def test_a_loss_that_is_not_finite_stops_the_training(few: Dataset, attack: AttackDistribution) -> None:
    config = replace(CONFIG, lr=1e30, schedule="constant")
    with pytest.raises(NotFiniteError, match=r"epoch 1\b"):
        run(net(), few, config=config, update_steps=[UpdateStep(attack)], label="mine")


class UnusedParameter(ToyNet):
    """A network with a parameter that does not affect its logits."""

    def __init__(self) -> None:
        super().__init__(width=4)
        self.spare = nn.Parameter(torch.zeros(3))


@dataclasses.dataclass(frozen=True)
class NanGradient:
    """Cross-entropy plus a zero whose gradient is NaN: 0 * sqrt(0)."""

    passes = 1

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        loss = CrossEntropyLoss()(model, clean, attacked, y)
        return loss + (model.get_parameter("spare").sqrt() * 0).sum()


def test_weights_that_turn_nan_stop_the_training_even_if_loss_and_logits_are_finite(few: Dataset) -> None:
    model = UnusedParameter()
    config = replace(CONFIG, epochs=1, batch_size=120, schedule="constant")
    with pytest.raises(NotFiniteError, match="mine: spare holds NaN"):
        run(model, few, config=config, update_steps=[UpdateStep(NoAttack(), NanGradient())], label="mine")
    assert torch.isfinite(model(few.test.images)).all()


class Collapsed(nn.Module):
    """Misclassifies only images whose mean pixel has changed by about eps / 2, which a full FGSM step overshoots."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        v = x.flatten(1).mean(dim=1, keepdim=True)
        return self.scale * torch.cat([(v - 0.55).abs(), torch.full_like(v, 0.03)], dim=1)


def test_a_network_robust_to_fgsm_but_not_to_pgd_is_collapsed() -> None:
    split = Split(torch.full((30, 1, 4, 4), 0.5), torch.zeros(30, dtype=torch.int64))
    settings = Validation(eps=0.1, step_size=0.025, steps=10, select="pgd")
    assert validate(Collapsed(), split, settings, seed=0) == (1, 1, 0, True)


def test_a_network_without_gradient_masking_is_not_collapsed(toy: ToyNet, digits: Dataset) -> None:
    settings = Validation(eps=0.05, step_size=0.0125, steps=10, select="pgd")
    clean, one_step, many_steps, collapsed = validate(toy, digits.validation, settings, seed=0)
    assert clean > one_step >= many_steps > 0
    assert not collapsed
    w = torch.tensor([1.0] + [0.0] * 15)
    split = Split(torch.rand(30, 1, 4, 4), torch.zeros(30, dtype=torch.int64))
    linear = Linear(torch.stack([w, -w]))
    assert validate(linear, split, VALIDATION, seed=0)[3] is False


def test_only_single_step_training_is_checked_for_collapse(digits: Dataset, log_lines: list[str]) -> None:
    split = Split(torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.int64))
    data = replace(digits, train=split, validation=split)
    settings = {"config": replace(ONE_EPOCH, lr=0.0), "validation": replace(VALIDATION, steps=10)}
    history = run(Collapsed(), data, update_steps=[UpdateStep(RandomFGSM((0.0,)))], **settings)
    assert history.epochs[0].collapsed
    assert "catastrophic overfitting" in log_lines[-1]
    history = run(Collapsed(), data, update_steps=[UpdateStep(RandomPGD(0.0, 0.0, (2,)))], **settings)
    assert not history.epochs[0].collapsed
    assert "catastrophic overfitting" not in log_lines[-1]


def test_validation_returns_clean_and_fgsm_accuracy(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.validation.images, digits.validation.labels
    clean, one_step, _, _ = validate(toy, digits.validation, VALIDATION, seed=0)
    correct = toy(x).argmax(dim=1) == y
    assert clean == pytest.approx(float(correct.float().mean()))
    both = correct & (toy(fgsm(toy, x, y, eps=0.1)).argmax(dim=1) == y)
    assert one_step == pytest.approx(float(both.float().mean()))


def test_validation_does_not_depend_on_the_batch_size(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = validate(toy, digits.validation, VALIDATION, seed=3)
    monkeypatch.setattr("paperlib.training.validation.VALIDATION_BATCH", 20)
    sizes = set()
    hook = toy.register_forward_hook(lambda module, args, out: sizes.add(len(args[0])))
    assert validate(toy, digits.validation, VALIDATION, seed=3) == expected
    hook.remove()
    assert max(sizes) == 20


def test_a_history_is_restored_from_its_table() -> None:
    history = History([Epoch(0, 1.5, 2.0, 0.9, 0.5, 0.4, False, 1.25)], best=0, passes=70)
    assert History.from_table(history.table()) == history


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_profile() -> Profile:
    return load_profile("digits")


def attack_of(recipe: Recipe) -> AttackDistribution:
    """The attack distribution of a recipe whose only update step trains the whole network by cross-entropy."""
    (update_step,) = recipe.update_steps
    assert (update_step.loss, update_step.trainable) == (CrossEntropyLoss(), "all")
    return update_step.attack


def test_the_nine_experts_train_on_clean_images_or_the_attack_sets_of_the_paper(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    fgsm_set = RandomFGSM(tuple(i / 100 for i in range(1, 10)))
    pgd_set = RandomPGD(0.1, 0.025, (10, 20, 30, 40, 50), random_start=True)
    assert list(EXPERTS) == [f"expert-{i}" for i in range(9)]
    assert [attack_of(known[name]) for name in EXPERTS] == [NoAttack()] + [fgsm_set] * 4 + [pgd_set] * 4
    assert EXPERT_KINDS == ("benign",) + ("FGSM",) * 4 + ("PGD",) * 4
    assert all(known[name].network == Network() and not known[name].starts_from for name in EXPERTS)
    assert Network() == Network("single", member="resnet18", width=1, experts=1)
    dwf = known["dwf"]
    assert dwf.starts_from == EXPERTS
    assert dwf.network == Network("mixture", experts=9, gate="learned")
    assert dwf.training == digits_profile.phase2
    assert attack_of(dwf) == OneOf((NoAttack(), fgsm_set, pgd_set))


def test_frozen_differs_from_dwf_only_in_the_trained_part(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    frozen, dwf = (replace(known[name], system="", description="") for name in ("frozen", "dwf"))
    (update_step,) = frozen.update_steps
    assert update_step.trainable == "gate"
    assert replace(frozen, update_steps=(replace(update_step, trainable="all"),)) == dwf


def test_the_uniform_average_is_not_trained(digits_profile: Profile) -> None:
    uniform = recipes(digits_profile)["uniform"]
    assert (uniform.network.gate, uniform.training, uniform.update_steps) == ("uniform", None, ())
    assert uniform.starts_from == EXPERTS


def test_the_checkpoint_is_selected_by_clean_accuracy_only_after_clean_training(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    attacks = {name: {update_step.attack for update_step in recipe.update_steps} for name, recipe in known.items()}
    clean = {name for name in known if attacks[name] == {NoAttack()}}
    assert {name for name, recipe in known.items() if recipe.select == "clean"} == clean
    assert {"plain", "expert-0", *(f"plain-{name}" for name in BACKBONES)} <= clean
    assert clean.isdisjoint({"pgd-at", "dwf", "frozen", *EXPERTS[1:]})


def test_single_networks_train_for_the_epochs_of_both_phases(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    both = digits_profile.phase1.epochs + digits_profile.phase2.epochs
    assert [known[name].training.epochs for name in ("plain", "pgd-at")] == [both, both]  # type: ignore[union-attr]


def test_no_two_systems_share_a_name(digits_profile: Profile) -> None:
    groups = (
        registry.single_systems,
        registry.expert_systems,
        registry.mixture_systems,
        registry.defence_systems,
        registry.ablation_systems,
    )
    names = [recipe.system for group in groups for recipe in group(digits_profile)]
    assert names == list(recipes(digits_profile)) == [recipe.system for recipe in recipes(digits_profile).values()]


def test_the_systems_whose_weights_a_recipe_uses_exist_and_fit(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    for name, recipe in known.items():
        assert recipe.family in {"single", "expert", "member", "mixture", "defence", "ablation"}, name
        assert len(recipe.starts_from) in (0, recipe.network.experts), name
        for start in recipe.starts_from:
            assert known[start].update_steps, (name, start)  # its weights are trained
            assert known[start].network == Network(member=recipe.network.member), (name, start)
        if recipe.weights_of:
            source = known[recipe.weights_of]
            assert source.update_steps and not recipe.update_steps, name
            assert replace(recipe.network, top1=False) == source.network, name
        assert (recipe.training is None) == (not recipe.update_steps), name
        assert {update_step.trainable for update_step in recipe.update_steps} <= set(TRAINABLE), name
        assert recipe.update_steps or recipe.starts_from or recipe.weights_of, name


def build(recipe: Recipe, profile: Profile, data: Dataset) -> nn.Module:
    """The untrained network of a recipe."""
    return build_network(architecture_of(recipe, profile.model), DataFacts.of(data))


def test_the_network_of_every_recipe_is_built_and_returns_logits(micro: Profile, digits: Dataset) -> None:
    x = digits.test.images[:3]
    systems: dict[Network, str] = {}  # one system for each network
    for name, recipe in recipes(micro).items():
        systems.setdefault(recipe.network, name)
    assert len(systems) > 15
    for name in systems.values():
        model = build(recipe_for(name, micro), micro, digits).eval()
        with torch.no_grad():
            logits = model(x)
        assert logits.shape == (3, 10), name
        assert torch.isfinite(logits).all(), name


@pytest.mark.parametrize(("name", "side", "channels"), [("digits", 8, 1), ("cifar10", 32, 3)])
def test_pgd_at_wide_has_about_as_many_parameters_as_dwf(name: str, side: int, channels: int) -> None:
    profile = load_profile(name)
    facts = DataFacts(10, (channels, side, side), (0.5,) * channels, (0.25,) * channels)
    with torch.device("meta"):
        wide, dwf = (
            parameters(build_network(architecture_of(recipe_for(system, profile), profile.model), facts))
            for system in ("pgd-at-wide", "dwf")
        )
    assert wide == pytest.approx(dwf, rel=0.05)


def test_soe_starts_with_the_weights_of_its_experts_and_confidence_logits_of_zero(
    micro: Profile, digits: Dataset
) -> None:
    experts = [build(recipe_for(name, micro), micro, digits).eval() for name in EXPERTS]
    soe = build(recipe_for("soe", micro), micro, digits).eval()
    assert isinstance(soe, SoE)
    load_experts(soe, [expert.state_dict() for expert in experts])
    for sub_model, expert in zip(soe.experts, experts, strict=True):
        loaded, trained = sub_model.state_dict(), expert.state_dict()
        for name in ("head.weight", "head.bias"):
            rows = loaded.pop(name)
            assert torch.equal(rows[:-1], trained.pop(name))
            assert torch.equal(rows[-1], torch.zeros_like(rows[-1]))
        assert all(torch.equal(loaded[name], trained[name]) for name in loaded.keys() | trained.keys())
    with torch.no_grad():
        assert soe.forward_sub_models(digits.test.images[:20]).confidence_logits.abs().max() == 0


L2_RADII = {"more-expert-1": 60, "more-expert-2": 80}  # of 255, on CIFAR-10


@pytest.mark.parametrize(
    ("profile", "scale"),
    [
        ("cifar10", 1.0),
        ("svhn", 1.0),
        # 64 pixels instead of 3072 values, and an L-infinity eps of 0.1 instead of 8/255
        ("digits", 0.1 / (8 / 255) * (64 / 3072) ** 0.5),
    ],
)
def test_the_l2_budgets_of_more_are_the_published_ones_on_cifar10_and_scaled_elsewhere(
    profile: str, scale: float
) -> None:
    known = recipes(comparing(load_profile(profile), *COMPARED, "more-own"))
    for system, radius in L2_RADII.items():
        attack = attack_of(known[system])
        assert isinstance(attack, RandomPGD) and attack.norm == "l2" and attack.step_size == attack.eps / 4
        assert attack.eps == pytest.approx(radius / 255 * scale)


def test_the_listed_image_sizes_are_those_of_the_data(digits: Dataset) -> None:
    expected = {"digits": digits.train.images[0].numel(), "cifar10": 3072, "svhn": 3072}
    assert expected == IMAGE_VALUES


@pytest.mark.parametrize("system", ["more-expert-1", "more-own"])
def test_the_l2_budgets_of_more_follow_the_size_of_the_users_images(
    system: str, digits_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr("paperlib.training.adversaries.pgd", lambda model, x, y, **settings: calls.append(settings))
    users_profile = replace(digits_profile, data=replace(digits_profile.data, name="mine"))
    attack, generator = recipes(users_profile)[system].update_steps[0].attack, rng()
    images = torch.zeros(2, 3, 20, 30)
    for sampled in [attack.sample(generator) for _ in range(30)]:
        sampled.perturb(nn.Identity(), images, torch.zeros(2, dtype=torch.int64), generator)
    l2 = [settings for settings in calls if settings["norm"] == "l2"]
    assert l2 and all(settings["random_start"] and settings["steps"] == 10 for settings in l2)
    expected = L2_RADII.get(system, 80) / 255 * 0.1 / (8 / 255) * (1800 / 3072) ** 0.5
    assert {settings["eps"] for settings in l2} == {expected}
    assert {settings["step_size"] for settings in l2} == {expected / 4}
    assert attack.mean_steps() == recipes(digits_profile)[system].update_steps[0].attack.mean_steps()


def comparing(profile: Profile, *systems: str) -> Profile:
    return replace(profile, study=StudyConfig(systems))


def test_a_profile_compares_the_named_systems_and_those_whose_weights_they_use(digits_profile: Profile) -> None:
    known = recipes(comparing(digits_profile, *COMPARED, "ablation-3", "plain-*"))
    names = {name for name in known if not name.startswith("expert-")}
    assert names == {*COMPARED, "ablation-3", "plain-resnet50", "plain-vgg16", "plain-densenet121", "plain-wrn28-10"}
    assert set(EXPERTS) <= set(known)
    assert "ablation-base" in recipes(comparing(digits_profile, *COMPARED, "ablation-top1"))
    complete = recipes(digits_profile)
    assert [name for name in complete if name in known] == list(known)  # in the same order
    assert all(complete[name] == recipe for name, recipe in known.items())


def test_a_profile_of_fewer_systems_has_the_same_stages_for_them(digits_profile: Profile) -> None:
    few = stages(comparing(digits_profile, *COMPARED, "advmoe"))
    complete = stages(digits_profile)
    assert few.keys() < complete.keys() and all(name in few for stage in few.values() for name in stage.inputs)
    assert {"gate:advmoe", "audit:advmoe", "stress:advmoe", "autoattack:best-expert", "audit:controls"} <= few.keys()
    differing = {name for name, stage in few.items() if stage.config != complete[name].config}
    # The surrogate for transfer attacks on pgd-at is another network if pgd-at-0 to pgd-at-8 are left out.
    assert differing == {"stress:pgd-at"}
    assert few["stress:pgd-at"].config.surrogate.name == "expert-8"


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (("*", "dfw"), r"study.systems: no system 'dfw'; did you mean 'dwf'"),
        (("*", "more-expert-[5-9]"), r"study.systems: no system 'more-expert-\[5-9\]'"),
        (("plain", "dwf", "uniform"), r"study.systems: pgd-at, frozen must be among them"),
    ],
)
def test_a_wrong_list_of_systems_is_an_error(digits_profile: Profile, systems: tuple[str, ...], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        recipes(comparing(digits_profile, *systems))


def test_the_error_for_a_system_left_out_names_the_profile(digits_profile: Profile) -> None:
    with pytest.raises(MissingError, match=r"more: left out of profile digits; name it in study.systems"):
        recipe_for("more", comparing(digits_profile, *COMPARED))


def test_the_error_for_an_unknown_system_lists_the_known_ones(digits_profile: Profile) -> None:
    with pytest.raises(MissingError, match=r"unknown system 'dfw'; known: .*dwf"):
        recipe_for("dfw", digits_profile)


def test_networks_are_built_as_their_recipes_describe(micro: Profile, digits: Dataset) -> None:
    single = build(recipe_for("expert-3", micro), micro, digits)
    assert isinstance(single, ResNet)
    reference = resnet18(10, micro.model.width, digits.mean, digits.std)
    assert {k: v.shape for k, v in single.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }
    assert single.normalize.mean.flatten().tolist() == pytest.approx(list(digits.mean))
    dwf, uniform = (build(recipe_for(name, micro), micro, digits) for name in ("dwf", "uniform"))
    assert isinstance(dwf, Mixture)
    assert isinstance(uniform, Mixture)
    assert len(dwf.experts) == len(uniform.experts) == 9
    assert isinstance(dwf.gate, Gate)
    assert isinstance(uniform.gate, UniformGate)
    assert dwf.mixing == micro.model.mixing


def test_the_trainable_parts_contain_the_parameters_of_their_names(micro: Profile, digits: Dataset) -> None:
    def ids(parameters: Iterator[nn.Parameter]) -> set[int]:
        return {id(p) for p in parameters}

    dwf = build(recipe_for("dwf", micro), micro, digits)
    assert ids(TRAINABLE["all"](dwf)) == ids(dwf.parameters())
    assert ids(TRAINABLE["gate"](dwf)) == ids(dwf.get_submodule("gate").parameters()) != set()
    heads = [expert.get_submodule("head") for expert in dwf.get_submodule("experts").children()]
    assert len(heads) == 9
    last_layers = set().union(*(ids(head.parameters()) for head in heads))
    assert ids(TRAINABLE["heads"](dwf)) == last_layers | ids(dwf.get_submodule("gate").parameters())
    advmoe = build(recipe_for("advmoe-own", micro), micro, digits)
    pathways, router = (ids(TRAINABLE[name](advmoe)) for name in ("pathways", "router"))
    assert router == ids(advmoe.get_submodule("router").parameters()) != set()
    assert pathways.isdisjoint(router)
    assert pathways | router == ids(advmoe.parameters())


def test_training_in_bfloat16_and_channels_last_learns_and_keeps_float32_weights(few: Dataset) -> None:
    model = net()
    history = run(model, few, bf16=True, channels_last=True, update_steps=[UpdateStep(RandomPGD(0.05, 0.02, (2,)))])
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert {p.dtype for p in model.parameters()} == {torch.float32}
