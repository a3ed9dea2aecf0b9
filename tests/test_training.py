"""Threats, recipes and the trainer: what is drawn, what is learnt, what is kept, and going on after an interruption."""

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
from paperlib.config.schema import DataConfig, StudyConfig, TrainConfig
from paperlib.data import Split
from paperlib.errors import InputError, MissingError, NotFiniteError, ProfileError, StoreError
from paperlib.models import ADVMoE, Gate, Mixture, ResNet, SoE, UniformGate, parameters, resnet18
from paperlib.models.modes import eval_mode
from paperlib.pipeline.stages import stages
from paperlib.systems import registry as recipes_module
from paperlib.systems.build import DataFacts, architecture_of, build_network, load_experts
from paperlib.systems.experts import EXPERT_KINDS, EXPERTS
from paperlib.systems.recipe import Network, Recipe
from paperlib.systems.registry import COMPARED, recipe_for, recipes
from paperlib.systems.singles import BACKBONES
from paperlib.training import trainer
from paperlib.training.adversaries import AttackDistribution, NoAttack, OneOf, RandomFGSM, RandomPGD, SampledAttack
from paperlib.training.history import Epoch, History
from paperlib.training.losses import CrossEntropyLoss, RouterLoss, SoELoss, TradesLoss, TrainingLoss
from paperlib.training.trainer import hash_seed, schedule, train
from paperlib.training.update import TRAINABLE, UpdateStep
from paperlib.training.validation import Validation, validate

CONFIG = TrainConfig(
    epochs=3, batch_size=60, lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="one-cycle", validation_steps=2
)
AUGMENTATION = DataConfig("digits", train=240, validation=50, test=80, split_seed=0, crop=1)
VALIDATION = Validation(eps=0.1, step_size=0.025, steps=2, select="pgd")
FGSM = RandomFGSM((0.02, 0.05, 0.08))
PGD = RandomPGD(0.1, 0.05, (1, 2), random_start=True)
PHASE2 = OneOf((NoAttack(), FGSM, PGD))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(seed: int = 0) -> ToyNet:
    torch.manual_seed(seed)
    return ToyNet(width=4)


def run(model: nn.Module, data: Dataset, **changes: Any) -> History:
    settings: dict[str, Any] = {
        "config": CONFIG,
        "augmentation": AUGMENTATION,
        "turns": [UpdateStep(PHASE2)],
        "validation": VALIDATION,
        "seed": 5,
    }
    return train(model, data, **(settings | changes))


def without_times(history: History) -> list[dict[str, Any]]:
    return [{name: value for name, value in vars(e).items() if name != "seconds"} for e in history.epochs]


# -- threats ---------------------------------------------------------------------------------------------------------


def test_random_fgsm_draws_each_eps_of_its_set_equally_often() -> None:
    threat, generator = RandomFGSM(tuple(i / 100 for i in range(1, 10))), rng()
    attack_generator = [threat.sample(generator) for _ in range(4500)]
    counts = Counter(sampled.eps for sampled in attack_generator)
    assert set(counts) == set(threat.eps)
    assert all(abs(count - 500) < 110 for count in counts.values())  # five standard deviations
    assert all(s.steps == 1 and s.step_size == s.eps and not s.random_start for s in attack_generator)


def test_random_pgd_draws_each_number_of_iterations_equally_often() -> None:
    threat, generator = RandomPGD(0.1, 0.025, (10, 20, 30, 40, 50)), rng()
    attack_generator = [threat.sample(generator) for _ in range(2500)]
    counts = Counter(sampled.steps for sampled in attack_generator)
    assert set(counts) == set(threat.steps)
    assert all(abs(count - 500) < 100 for count in counts.values())
    assert {(s.eps, s.step_size, s.random_start) for s in attack_generator} == {(0.1, 0.025, True)}


def test_a_mixed_threat_draws_all_members_equally_often() -> None:
    generator = rng()
    attack_generator = [PHASE2.sample(generator) for _ in range(3000)]
    kinds = Counter("clean" if s.steps == 0 else "pgd" if s.random_start else "fgsm" for s in attack_generator)
    assert set(kinds) == {"clean", "fgsm", "pgd"}
    assert all(abs(count - 1000) < 130 for count in kinds.values())


def test_a_draw_follows_from_the_generator_alone() -> None:
    first, again, other = ([PHASE2.sample(g) for _ in range(30)] for g in (rng(1), rng(1), rng(2)))
    assert first == again
    assert first != other


def test_the_expected_steps_are_the_mean_of_what_is_drawn() -> None:
    assert (NoAttack().mean_steps(), FGSM.mean_steps(), PGD.mean_steps()) == (0, 1, 1.5)
    assert PHASE2.mean_steps() == pytest.approx(2.5 / 3)
    generator = rng()
    drawn = sum(PHASE2.sample(generator).steps for _ in range(3000)) / 3000
    assert drawn == pytest.approx(PHASE2.mean_steps(), abs=0.07)


def test_a_drawn_fgsm_attack_is_fgsm(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.train.images[:50], digits.train.labels[:50]
    sampled = FGSM.sample(rng())
    assert torch.equal(sampled.perturb(toy, x, y, rng()), fgsm(toy, x, y, eps=sampled.eps))


def test_a_drawn_pgd_attack_starts_at_random_and_takes_its_steps(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.train.images[:50], digits.train.labels[:50]
    sampled = SampledAttack(0.1, 0.05, steps=3, random_start=True)
    passes = []
    hook = toy.register_forward_hook(lambda *seen: passes.append(1))
    first, again, other = (sampled.perturb(toy, x, y, rng(seed)) for seed in (1, 1, 2))
    hook.remove()
    assert len(passes) == 9
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_clean_attack_gives_the_images_themselves(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.train.images, digits.train.labels
    assert NoAttack().sample(rng()).perturb(toy, x, y, rng()) is x


# -- schedule and seeds ----------------------------------------------------------------------------------------------


def test_one_cycle_rises_from_zero_to_its_peak_and_falls_to_zero() -> None:
    assert schedule("one-cycle", 0) == 0
    assert schedule("one-cycle", 0.15) == pytest.approx(0.5)
    assert schedule("one-cycle", 0.3) == pytest.approx(1)
    assert schedule("one-cycle", 0.65) == pytest.approx(0.5)
    assert schedule("one-cycle", 1) == 0


def test_cosine_falls_from_its_peak_to_zero() -> None:
    assert [schedule("cosine", t) for t in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_constant_stays() -> None:
    assert {schedule("constant", t) for t in (0, 0.5, 1)} == {1}


def test_seeds_of_neighbours_differ_and_fit_a_generator() -> None:
    seeds = [hash_seed(seed, epoch, *word) for seed in range(5) for epoch in range(5) for word in ((), ("validation",))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert hash_seed(1, 2) == hash_seed(1, 2)
    assert hash_seed(1, 12) != hash_seed(11, 2)


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [NoAttack(), FGSM, PGD], ids=["clean", "fgsm", "pgd"])
def test_training_lowers_the_loss_and_beats_chance(digits: Dataset, threat: AttackDistribution) -> None:
    model = net()
    history = run(model, digits, update_steps=[UpdateStep(threat)], config=dataclasses.replace(CONFIG, epochs=20))
    assert history.epochs[-1].loss < 0.9 * history.epochs[0].loss
    assert not model.training
    right = model(digits.validation.images).argmax(dim=1) == digits.validation.labels
    assert right.float().mean() > 0.5  # chance is 0.1


def test_adversarial_training_is_more_robust_than_clean_training(digits: Dataset) -> None:
    config = dataclasses.replace(CONFIG, epochs=20)
    clean, robust = (
        run(net(), digits, update_steps=[UpdateStep(threat)], config=config).epochs[-1].pgd
        for threat in (NoAttack(), RandomPGD(0.1, 0.05, (3,)))
    )
    assert robust > clean + 0.1


def test_each_batch_is_attacked_in_evaluation_mode_and_learnt_from_in_training_mode(digits: Dataset) -> None:
    modes: list[str] = []

    class Watched(NoAttack):
        def sample(self, generator: torch.Generator) -> SampledAttack:
            modes.append("|")
            return SampledAttack(0.1, 0.1, steps=2)

    model = net()
    hook = model.register_forward_hook(lambda module, *seen: modes.append("t" if module.body[1].training else "e"))
    run(model, digits, update_steps=[UpdateStep(Watched())], config=dataclasses.replace(CONFIG, epochs=1))
    hook.remove()
    batches = "".join(modes).split("|")[1:]
    assert len(batches) == 4
    assert [batch[:3] for batch in batches] == ["eet"] * 4


class Spied:
    """What each attack and each validation of a training run was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attacked: list[Folded] = []
        self.stale: list[float] = []
        self.validated: list[Folded] = []
        self.tf32: list[str] = []
        perturb = SampledAttack.perturb

        def watched(sampled: SampledAttack, model: Folded, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            self.attacked.append(model)
            with eval_mode(model.model), torch.no_grad():
                self.stale.append(float((model.network(x).float() - model.model(x).float()).abs().max()))
            self.tf32.append("attack on" if torch.backends.cudnn.allow_tf32 else "attack off")
            return perturb(sampled, model, x, y, generator)

        def judged(model: Folded, *rest: Any, **settings: Any) -> Any:
            self.validated.append(model)
            self.tf32.append("judged on" if torch.backends.cudnn.allow_tf32 else "judged off")
            return validate(model, *rest, **settings)

        monkeypatch.setattr(SampledAttack, "perturb", watched)
        monkeypatch.setattr(trainer, "validate", judged)


def test_attacks_see_the_weights_of_the_moment_through_a_folded_copy(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = Spied(monkeypatch)
    model = net()
    run(model, digits, update_steps=[UpdateStep(PGD)])
    assert len(spied.attacked) == 12
    assert all(folded.model is model and folded.network is not model for folded in spied.attacked)
    assert max(spied.stale) < 1e-4
    assert [folded.network is not model for folded in spied.validated] == [True] * 3


def test_bfloat16_attacks_a_copy_in_bfloat16_and_judges_in_float32(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    spied = Spied(monkeypatch)
    run(net(), digits, update_steps=[UpdateStep(PGD)], bf16=True)
    assert {layer.dtype for folded in spied.attacked for layer in folded.layers} == {torch.bfloat16}
    assert {layer.dtype for folded in spied.validated for layer in folded.layers} == {torch.float32}


@pytest.mark.parametrize("tf32", [False, True])
def test_tensor_float32_is_for_training_alone(digits: Dataset, monkeypatch: pytest.MonkeyPatch, tf32: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    spied = Spied(monkeypatch)
    run(net(), digits, update_steps=[UpdateStep(PGD)], tf32=tf32)
    assert set(spied.tf32) == {"attack on" if tf32 else "attack off", "judged off"}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_the_choice_of_precision_is_taken_back_after_an_error() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def interrupted(allowed: bool) -> None:
        with tensor_float32(allowed):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
            raise RuntimeError("in the middle")

    for allowed in (True, False):
        with pytest.raises(RuntimeError, match="in the middle"):
            interrupted(allowed)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_training_on_a_folded_copy_is_training_as_it_is(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rounding aside: the same attacks against the same weights.
    folded, plain = net(), net()
    config = dataclasses.replace(CONFIG, epochs=1)
    run(folded, digits, update_steps=[UpdateStep(RandomFGSM((0.1,)))], config=config)
    monkeypatch.setattr(trainer, "fold", lambda model, example, **settings: Folded(model, model))
    run(plain, digits, update_steps=[UpdateStep(RandomFGSM((0.1,)))], config=config)
    for a, b in zip(folded.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_the_same_seed_gives_the_same_network_and_another_seed_another(digits: Dataset) -> None:
    models = [net() for _ in range(3)]
    histories = [run(model, digits, seed=seed) for model, seed in zip(models, (1, 1, 2), strict=True)]
    assert same_state(models[0], models[1])
    assert without_times(histories[0]) == without_times(histories[1])
    assert not same_state(models[0], models[2])


def test_training_leaves_torchs_global_generator_alone(digits: Dataset) -> None:
    model = net()
    before = torch.get_rng_state()
    run(model, digits, config=dataclasses.replace(CONFIG, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_passes_count_every_iterate_and_every_update(digits: Dataset) -> None:
    threat = RandomPGD(0.1, 0.05, (3,))
    history = run(net(), digits, update_steps=[UpdateStep(threat)], config=dataclasses.replace(CONFIG, epochs=2))
    assert history.passes == 2 * 240 * (3 + 1)
    assert [e.steps for e in history.epochs] == [3, 3]


class Untouchable:
    """A split that must not be looked at."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"the test split was touched: {name}")

    def __len__(self) -> int:
        raise AssertionError("the test split was touched: its length")


def test_the_test_split_is_never_looked_at(digits: Dataset) -> None:
    guarded = dataclasses.replace(digits, test=Untouchable())  # type: ignore[arg-type]
    model, same = net(), net()
    run(model, guarded)
    run(same, digits)
    assert same_state(model, same)


@pytest.mark.parametrize(("select", "expected"), [("pgd", 2), ("clean", 1)])
def test_the_kept_weights_are_those_of_the_last_best_epoch(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, select: str, expected: int
) -> None:
    scripted = iter([(0.3, 0.9, 0.2, False), (0.8, 0.9, 0.4, False), (0.5, 0.9, 0.4, False), (0.7, 0.9, 0.1, True)])
    monkeypatch.setattr("paperlib.training.validation.validate", lambda *args, **kw: next(scripted))
    model, seen = net(), []
    with logged(lambda line: seen.append(copy.deepcopy(model))):
        history = run(
            model,
            digits,
            config=dataclasses.replace(CONFIG, epochs=4),
            validation=dataclasses.replace(VALIDATION, select=select),
        )
    assert history.best == expected
    assert [same_state(model, then) for then in seen] == [epoch == expected for epoch in range(4)]


def test_validating_the_kept_weights_reproduces_the_recorded_number(digits: Dataset) -> None:
    model = net()
    history = run(model, digits, config=dataclasses.replace(CONFIG, epochs=6, lr=0.5, schedule="constant"))
    best = history.epochs[history.best]
    again = validate(model, digits.validation, VALIDATION, seed=hash_seed(5, history.best, "validation"))
    assert again == (best.clean, best.fgsm, best.pgd, best.collapsed)
    assert best.pgd == max(e.pgd for e in history.epochs)


def two_experts(seed: int = 0) -> Mixture:
    torch.manual_seed(seed)
    return Mixture([ToyNet(width=2), ToyNet(width=2)], Gate(2, 2, 1, (0.3,), (0.4,)))


def test_frozen_modules_keep_their_weights_and_batch_statistics(digits: Dataset) -> None:
    model = two_experts()
    before = copy.deepcopy(model)
    run(
        model,
        digits,
        update_steps=[UpdateStep(PHASE2, trainable="gate")],
        config=dataclasses.replace(CONFIG, schedule="constant"),
    )
    assert same_state(model.experts, before.experts)
    assert all(p.grad is None for p in model.experts.parameters())
    gate, old = model.gate.state_dict(), before.gate.state_dict()
    moved = {name for name in gate if not torch.equal(gate[name], old[name])}
    assert {"head.weight", "stem.0.weight", "stem.1.running_mean"} <= moved
    assert {name for name in gate if name.startswith("normalize")}.isdisjoint(moved)


def test_joint_training_moves_gate_and_experts(digits: Dataset) -> None:
    model = two_experts()
    before = copy.deepcopy(model)
    run(model, digits, config=dataclasses.replace(CONFIG, schedule="constant"))
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before.get_parameter(name)), name


# -- turns -----------------------------------------------------------------------------------------------------------

ROUTED = RandomPGD(0.1, 0.0625, (2,), random_start=False, noise=0.001, objective="routed divergence")
ALTERNATING = [UpdateStep(ROUTED, TradesLoss(), "pathways"), UpdateStep(ROUTED, RouterLoss(), "router")]


def routed(seed: int = 0) -> ADVMoE:
    torch.manual_seed(seed)
    return ADVMoE(10, 2, 2, 2, 1, (0.3,), (0.4,))


@dataclasses.dataclass(frozen=True)
class Seen:
    """A loss that tells ``look`` each time it is asked."""

    loss: TrainingLoss
    look: Callable[[nn.Module], object]

    @property
    def passes(self) -> int:
        return self.loss.passes

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        self.look(model)
        return self.loss(model, clean, attacked, y)


def test_two_turns_alternate_and_each_changes_only_its_part(digits: Dataset) -> None:
    states: list[tuple[str, dict[str, Tensor]]] = []
    modes: dict[str, set[tuple[bool, bool]]] = {"pathways": set(), "router": set()}

    def watching(update_step: UpdateStep) -> UpdateStep:
        def look(model: nn.Module) -> None:
            states.append((update_step.trainable, {name: value.clone() for name, value in model.state_dict().items()}))
            modes[update_step.trainable].add((model.network.stem[1].training, model.router.stem[1].training))

        return dataclasses.replace(update_step, loss=Seen(update_step.loss, look))

    config = dataclasses.replace(CONFIG, epochs=1, schedule="constant")
    run(routed(), digits, update_steps=[watching(update_step) for update_step in ALTERNATING], config=config)
    assert [name for name, _ in states] == ["pathways", "router"] * 4
    assert modes == {"pathways": {(True, False)}, "router": {(False, True)}}
    for (update_step, before), (_, after) in itertools.pairwise(states):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        part, other = ("network.", "router.") if update_step == "pathways" else ("router.", "network.")
        assert {f"{part}head.weight", f"{part}stem.0.weight", f"{part}stem.1.running_mean"} <= changed
        assert not any(name.startswith(other) for name in changed)


class Block(nn.Module):
    """A linear layer among modules without parameters, as a part that learns or is frozen as a whole."""

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


def parts() -> Mixture:
    torch.manual_seed(0)
    return Mixture([Expert(), Expert()], Block(64, 2))


GATE = {"gate", "gate.layers", *(f"gate.layers.{i}" for i in range(4))}


@pytest.mark.parametrize(
    ("trainable", "learning"),
    [
        ("all", {name for name, _ in parts().named_modules()}),
        ("gate", GATE),
        ("heads", GATE | {"experts.0.head", "experts.1.head"}),
    ],
    ids=["all", "gate", "heads"],
)
def test_a_part_that_learns_is_in_training_mode_with_all_it_contains_and_no_other_part_changes(
    digits: Dataset, trainable: str, learning: set[str]
) -> None:
    model, modes = parts(), list[set[str]]()

    def look(model: nn.Module) -> None:
        modes.append({name for name, module in model.named_modules() if module.training})

    before = copy.deepcopy(model.state_dict())
    update_step = UpdateStep(PHASE2, Seen(CrossEntropyLoss(), look), trainable)
    run(model, digits, update_steps=[update_step], config=dataclasses.replace(CONFIG, epochs=1, schedule="constant"))
    assert modes == [learning] * 4
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.rpartition(".")[0] in learning}


def test_a_part_whose_parameters_need_no_gradients_is_frozen_and_what_lies_beside_it_learns(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(64, 16), nn.Dropout(0.5), nn.BatchNorm1d(16, affine=False), nn.Linear(16, 10))
    model[0].requires_grad_(False)
    before, modes = copy.deepcopy(model), list[list[bool]]()

    def look(model: nn.Module) -> None:
        modes.append([module.training for module in model.children()])

    run(
        model,
        digits,
        update_steps=[UpdateStep(FGSM, Seen(CrossEntropyLoss(), look))],
        config=dataclasses.replace(CONFIG, epochs=1),
    )
    assert modes == [[False, True, True, True]] * 4
    assert same_state(model[0], before[0])
    assert not torch.equal(model[2].running_var, before[2].running_var)
    assert not torch.equal(model[3].bias, before[3].bias)


def test_a_turn_that_trains_nothing_is_refused(digits: Dataset) -> None:
    with pytest.raises(InputError, match=r"trainable='all'.*requires gradients"):
        run(net().requires_grad_(False), digits)


class Functional(Block):
    """Dropout as a function that reads the network's own flag."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize(
    "dropping", [lambda: Block(64, 10), lambda: Functional(64, 10, rate=0)], ids=["module", "function"]
)
def test_dropout_acts_in_training_and_draws_the_same_in_every_run(
    dropping: Callable[[], nn.Module], digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(model: nn.Module, global_seed: int = 0, **settings: Any) -> nn.Module:
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        run(model, digits, update_steps=[UpdateStep(FGSM)], **settings)
        assert torch.equal(torch.get_rng_state(), state)
        return model

    torch.manual_seed(0)
    drawn = dropping()
    without = Block(64, 10, rate=0)
    without.load_state_dict(drawn.state_dict())
    whole = trained(copy.deepcopy(drawn))
    assert not same_state(whole, trained(without))
    assert same_state(whole, trained(copy.deepcopy(drawn), global_seed=1))

    # Interrupted in the second epoch, a run goes on from its checkpoint with the same draws.
    stops, real, checkpoint = iter([False, True]), validate, tmp_path / "state.safetensors"

    def interrupted(*given: Any, **settings: Any) -> Any:
        if next(stops):
            raise KeyboardInterrupt
        return real(*given, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(copy.deepcopy(drawn), checkpoint=checkpoint)
    assert same_state(whole, trained(copy.deepcopy(drawn), global_seed=2, checkpoint=checkpoint))


@dataclasses.dataclass(frozen=True)
class Push:
    """A loss whose gradient is ``force``, whatever the images."""

    force: float
    passes = 1

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        return self.force * model.get_parameter("scale")


def test_each_turn_has_the_momentum_of_its_own_gradients(digits: Dataset) -> None:
    split = Split(torch.full((80, 1, 8, 8), 0.5), torch.zeros(80, dtype=torch.int64))
    data = dataclasses.replace(digits, train=split, validation=split)
    scales: list[float] = []

    def look(model: nn.Module) -> None:
        scales.append(float(model.get_parameter("scale").detach()))

    update_steps = [UpdateStep(NoAttack(), Seen(Push(1.0), look)), UpdateStep(NoAttack(), Seen(Push(0.0), look))]
    config = TrainConfig(1, 20, lr=0.1, momentum=0.9, weight_decay=0, schedule="constant", validation_steps=1)
    run(Collapsed(), data, update_steps=update_steps, config=config)
    scale, speed, expected = 1.0, 0.0, []
    for _ in range(4):
        speed = 0.9 * speed + 1
        after = scale - 0.1 * (1 + 0.9 * speed)  # Nesterov
        expected += [scale, after]  # the second turn has no gradient, hence no momentum, and moves nothing
        scale = after
    assert scales == pytest.approx(expected)


def test_each_turn_draws_its_own_attack(digits: Dataset) -> None:
    drawn: list[SampledAttack] = []

    class Watched(RandomFGSM):
        def sample(self, generator: torch.Generator) -> SampledAttack:
            drawn.append(super().sample(generator))
            return drawn[-1]

    update_steps = [UpdateStep(Watched(FGSM.eps)), UpdateStep(Watched(FGSM.eps))]
    history = run(net(), digits, update_steps=update_steps, config=dataclasses.replace(CONFIG, batch_size=20, epochs=1))
    assert len(drawn) == 24
    assert drawn[::2] != drawn[1::2]
    assert history.epochs[0].steps == 1  # per turn


@pytest.mark.parametrize(
    ("update_steps", "each"),
    [
        ([UpdateStep(NoAttack())], 1),
        ([UpdateStep(NoAttack(), CrossEntropyLoss(clean=True))], 2),
        ([UpdateStep(RandomPGD(0.1, 0.05, (3,)), CrossEntropyLoss(clean=True))], 3 + 2),
        ([UpdateStep(RandomPGD(0.1, 0.05, (3,), False, 0.001, "divergence"), TradesLoss())], 3 + 1 + 2),
        ([UpdateStep(NoAttack()), UpdateStep(RandomPGD(0.1, 0.05, (2,)), TradesLoss())], 1 + 2 + 2),
    ],
)
def test_passes_are_those_of_attacks_and_losses(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, update_steps: list[UpdateStep], each: int
) -> None:
    monkeypatch.setattr(trainer, "fold", lambda model, example, **settings: Folded(model, model))
    monkeypatch.setattr(trainer, "validate", lambda *args, **settings: (0.0, 0.0, 0.0, False))
    model, seen = net(), []
    model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    history = run(model, digits, update_steps=update_steps, config=dataclasses.replace(CONFIG, epochs=2))
    assert history.passes == sum(seen) == 2 * 240 * each


def test_passes_of_alternating_turns_are_counted_for_both(digits: Dataset) -> None:
    history = run(routed(), digits, update_steps=ALTERNATING, config=dataclasses.replace(CONFIG, epochs=1))
    # two steps, one look at the clean answers, two passes of the loss; twice
    assert history.passes == 240 * 2 * (2 + 1 + 2)


def test_a_collaboration_learns(digits: Dataset) -> None:
    torch.manual_seed(0)
    model = SoE(ToyNet(width=4, classes=11) for _ in range(2))
    update_steps = [UpdateStep(RandomPGD(0.05, 0.025, (2,)), SoELoss())]
    history = run(model, digits, update_steps=update_steps, config=dataclasses.replace(CONFIG, epochs=8))
    assert history.epochs[-1].loss < 0.9 * history.epochs[0].loss
    assert history.epochs[history.best].clean > 0.4  # chance is 0.1


# -- interruption ----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def stop_after(epoch: int) -> Callable[[str], None]:
    def watch(line: str) -> None:
        if f"epoch {epoch:>3}/" in line:
            raise Interrupted

    return watch


def test_interrupted_after_every_epoch_it_ends_bit_for_bit_the_same(digits: Dataset, tmp_path: Path) -> None:
    straight = net()
    expected = run(straight, digits)
    checkpoint = tmp_path / "state.safetensors"
    for epoch, model in ((1, net()), (2, net(seed=7)), (3, net(seed=8))):  # the file alone says where to go on
        with pytest.raises(Interrupted), logged(stop_after(epoch)):
            run(model, digits, checkpoint=checkpoint)
    model = net(seed=9)
    lines: list[str] = []
    with logged(lines.append):
        history = run(model, digits, checkpoint=checkpoint)
    assert lines == ["training: going on after epoch 3 of 3"]
    assert same_state(model, straight)
    assert without_times(history) == without_times(expected)
    assert (history.best, history.passes) == (expected.best, expected.passes)
    assert not model.training


@pytest.mark.parametrize("batch", [2, 6])
def test_interrupted_within_an_epoch_it_ends_bit_for_bit_the_same(digits: Dataset, tmp_path: Path, batch: int) -> None:
    class Faulty(OneOf):
        drawn = 0

        def sample(self, generator: torch.Generator) -> SampledAttack:
            Faulty.drawn += 1
            if Faulty.drawn == batch:
                raise Interrupted
            return super().sample(generator)

    straight, model = net(), net()
    expected = run(straight, digits)
    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        run(model, digits, update_steps=[UpdateStep(Faulty(PHASE2.threats))], checkpoint=checkpoint)
    model = net()
    history = run(model, digits, update_steps=[UpdateStep(PHASE2)], checkpoint=checkpoint)
    assert same_state(model, straight)
    assert (without_times(history), history.passes) == (without_times(expected), expected.passes)


def test_a_frozen_run_goes_on_bit_for_bit_the_same(digits: Dataset, tmp_path: Path) -> None:
    straight, checkpoint = two_experts(), tmp_path / "state.safetensors"
    gate = {"turns": [UpdateStep(PHASE2, trainable="gate")], "config": dataclasses.replace(CONFIG, epochs=2)}
    run(straight, digits, **gate)
    with pytest.raises(Interrupted), logged(stop_after(1)):
        run(two_experts(), digits, **gate, checkpoint=checkpoint)
    model = two_experts()
    run(model, digits, **gate, checkpoint=checkpoint)
    assert same_state(model, straight)


def test_a_run_of_two_turns_goes_on_bit_for_bit_the_same(digits: Dataset, tmp_path: Path) -> None:
    straight, checkpoint = routed(), tmp_path / "state.safetensors"
    alternating = {"turns": ALTERNATING, "config": dataclasses.replace(CONFIG, batch_size=80)}
    expected = run(straight, digits, **alternating)
    for epoch, model in ((1, routed()), (2, routed(seed=7))):  # the file alone says where to go on
        with pytest.raises(Interrupted), logged(stop_after(epoch)):
            run(model, digits, **alternating, checkpoint=checkpoint)
        saved, _ = read_tensors(checkpoint)
        last = sum(1 for _ in straight.parameters()) - 1  # the router's, and the second optimiser's, are at the end
        assert {"momentum/0", f"momentum/{last}"} <= set(saved)
    model = routed(seed=9)
    history = run(model, digits, **alternating, checkpoint=checkpoint)
    assert same_state(model, straight)
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
        "empty": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
        "noise": lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(range(256))),
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


@pytest.mark.parametrize("kind", corruptions())
def test_a_corrupt_checkpoint_is_one_clear_error(digits: Dataset, tmp_path: Path, kind: str) -> None:
    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted), logged(stop_after(1)):
        run(net(), digits, checkpoint=checkpoint)
    corruptions()[kind](checkpoint)
    with pytest.raises(StoreError, match=r"state\.safetensors.*delete it to start over"):
        run(net(), digits, checkpoint=checkpoint)


# -- alarms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [NoAttack(), PGD], ids=["clean", "pgd"])
def test_a_loss_that_is_not_finite_stops_the_training(digits: Dataset, threat: AttackDistribution) -> None:
    config = dataclasses.replace(CONFIG, lr=1e30, schedule="constant")
    with pytest.raises(NotFiniteError, match=r"epoch 1\b"):
        run(net(), digits, config=config, update_steps=[UpdateStep(threat)], label="mine")


class Spare(ToyNet):
    """Its answers do not depend on one of its parameters."""

    def __init__(self) -> None:
        super().__init__(width=4)
        self.spare = nn.Parameter(torch.zeros(3))


@dataclasses.dataclass(frozen=True)
class Poison:
    """Cross-entropy plus a zero whose gradient is NaN: 0 * sqrt(0)."""

    passes = 1

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        loss = CrossEntropyLoss()(model, clean, attacked, y)
        return loss + (model.get_parameter("spare").sqrt() * 0).sum()


def test_weights_that_turn_nan_stop_the_training_although_loss_and_answers_are_finite(digits: Dataset) -> None:
    model = Spare()
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=240, schedule="constant")
    with pytest.raises(NotFiniteError, match="mine: spare holds NaN"):
        run(model, digits, config=config, update_steps=[UpdateStep(NoAttack(), Poison())], label="mine")
    assert torch.isfinite(model(digits.test.images)).all()


class Collapsed(nn.Module):
    """Wrong only where the mean pixel has moved by about half of eps: a full FGSM step leaps over the hole."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        v = x.flatten(1).mean(dim=1, keepdim=True)
        return self.scale * torch.cat([(v - 0.55).abs(), torch.full_like(v, 0.03)], dim=1)


def test_a_network_that_only_withstands_fgsm_is_called_collapsed() -> None:
    split = Split(torch.full((30, 1, 4, 4), 0.5), torch.zeros(30, dtype=torch.int64))
    how = Validation(eps=0.1, step_size=0.025, steps=10, select="pgd")
    assert validate(Collapsed(), split, how, seed=0) == (1, 1, 0, True)


def test_an_honest_network_is_not_called_collapsed(toy: ToyNet, digits: Dataset) -> None:
    how = Validation(eps=0.05, step_size=0.0125, steps=10, select="pgd")
    clean, one_step, many_steps, collapsed = validate(toy, digits.validation, how, seed=0)
    assert clean > one_step >= many_steps > 0
    assert not collapsed
    w = torch.tensor([1.0] + [0.0] * 15)
    split = Split(torch.rand(30, 1, 4, 4), torch.zeros(30, dtype=torch.int64))
    linear = Linear(torch.stack([w, -w]))
    assert validate(linear, split, VALIDATION, seed=0)[3] is False


def test_the_collapse_is_said_in_the_log(digits: Dataset, log_lines: list[str]) -> None:
    split = Split(torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.int64))
    data = dataclasses.replace(digits, train=split, validation=split)
    lines = log_lines
    config = dataclasses.replace(CONFIG, epochs=1, lr=0.0)
    how = dataclasses.replace(VALIDATION, steps=10)
    history = run(
        Collapsed(),
        data,
        update_steps=[UpdateStep(RandomFGSM((0.0,)))],
        config=config,
        validation=how,
    )
    assert history.epochs[0].collapsed
    assert "collapse" in lines[-1].lower()
    longer = run(
        Collapsed(),
        data,
        update_steps=[UpdateStep(RandomPGD(0.0, 0.0, (2,)))],
        config=config,
        validation=how,
    )
    assert not longer.epochs[0].collapsed


def test_validation_counts_what_it_says(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.validation.images, digits.validation.labels
    clean, one_step, _, _ = validate(toy, digits.validation, VALIDATION, seed=0)
    right = toy(x).argmax(dim=1) == y
    assert clean == pytest.approx(float(right.float().mean()))
    both = right & (toy(fgsm(toy, x, y, eps=0.1)).argmax(dim=1) == y)
    assert one_step == pytest.approx(float(both.float().mean()))


def test_validation_does_not_depend_on_its_batches(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = validate(toy, digits.validation, VALIDATION, seed=3)
    monkeypatch.setattr("paperlib.training.validation.VALIDATION_BATCH", 20)
    sizes = set()
    hook = toy.register_forward_hook(lambda module, args, out: sizes.add(len(args[0])))
    assert validate(toy, digits.validation, VALIDATION, seed=3) == whole
    hook.remove()
    assert max(sizes) == 20


def test_a_history_survives_its_table() -> None:
    history = History([Epoch(0, 1.5, 2.0, 0.9, 0.5, 0.4, False, 1.25)], best=0, passes=70)
    assert History.from_table(history.table()) == history


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_profile() -> Profile:
    return load_profile("digits")


def only_threat(recipe: Recipe) -> AttackDistribution:
    (update_step,) = recipe.update_steps
    assert (update_step.loss, update_step.trainable) == (CrossEntropyLoss(), "all")
    return update_step.attack


def test_there_are_one_benign_four_fgsm_and_four_pgd_experts(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    threats = [only_threat(known[name]) for name in EXPERTS]
    assert list(EXPERTS) == [f"expert-{i}" for i in range(9)]
    assert [type(threat) for threat in threats] == [NoAttack] + [RandomFGSM] * 4 + [RandomPGD] * 4
    assert EXPERT_KINDS == ("benign",) + ("FGSM",) * 4 + ("PGD",) * 4
    assert all(known[name].network == Network() and not known[name].starts_from for name in EXPERTS)
    assert Network() == Network("single", member="resnet18", width=1, experts=1)


def test_the_experts_draw_from_the_papers_sets(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    threat = only_threat(known["expert-1"])
    assert isinstance(threat, RandomFGSM)
    assert threat.eps == tuple(i / 100 for i in range(1, 10))
    threat = only_threat(known["expert-5"])
    assert isinstance(threat, RandomPGD)
    assert threat.steps == (10, 20, 30, 40, 50)
    assert (threat.eps, threat.step_size, threat.random_start) == (0.1, 0.025, True)


def test_phase_two_starts_from_the_nine_experts_under_clean_fgsm_and_pgd(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    dwf = known["dwf"]
    assert dwf.starts_from == EXPERTS
    assert dwf.network == Network("mixture", experts=9, gate="learned")
    assert dwf.training == digits_profile.phase2
    sets = (NoAttack(), only_threat(known["expert-1"]), only_threat(known["expert-5"]))
    assert dwf.update_steps == (UpdateStep(OneOf(sets), CrossEntropyLoss(), "all"),)


def test_frozen_differs_from_dwf_in_what_learns_alone(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    frozen, dwf = (dataclasses.replace(known[name], system="", description="") for name in ("frozen", "dwf"))
    (gate_alone,) = frozen.update_steps
    assert gate_alone.trainable == "gate"
    assert dataclasses.replace(frozen, update_steps=(dataclasses.replace(gate_alone, trainable="all"),)) == dwf


def test_the_uniform_average_learns_nothing(digits_profile: Profile) -> None:
    uniform = recipes(digits_profile)["uniform"]
    assert (uniform.network.gate, uniform.training, uniform.update_steps) == ("uniform", None, ())
    assert uniform.starts_from == EXPERTS


def test_only_networks_that_learn_from_clean_images_are_picked_by_clean_accuracy(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    threats = {name: {update_step.attack for update_step in recipe.update_steps} for name, recipe in known.items()}
    learn_from_clean = {name for name in known if threats[name] == {NoAttack()}}
    assert {name for name, recipe in known.items() if recipe.select == "clean"} == learn_from_clean
    assert {"plain", "expert-0", *(f"plain-{name}" for name in BACKBONES)} <= learn_from_clean
    assert learn_from_clean.isdisjoint({"pgd-at", "dwf", "frozen", *EXPERTS[1:]})


def test_single_networks_see_as_many_epochs_as_an_expert_in_both_phases(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    both = digits_profile.phase1.epochs + digits_profile.phase2.epochs
    assert [known[name].training.epochs for name in ("plain", "pgd-at")] == [both, both]  # type: ignore[union-attr]


def test_the_names_of_the_contract_are_known(digits_profile: Profile) -> None:
    assert {"plain", "pgd-at", *EXPERTS, "uniform", "frozen", "dwf"} <= set(recipes(digits_profile))
    assert all(name == recipe.system for name, recipe in recipes(digits_profile).items())


def test_no_two_systems_share_a_name(digits_profile: Profile) -> None:
    module = recipes_module
    parts = (
        module.single_systems,
        module.expert_systems,
        module.mixture_systems,
        module.defence_systems,
        module.ablation_systems,
    )
    names = [recipe.system for part in parts for recipe in part(digits_profile)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert names == list(recipes(digits_profile))


def test_what_a_recipe_starts_from_exists_and_fits(digits_profile: Profile) -> None:
    known = recipes(digits_profile)
    for name, recipe in known.items():
        assert recipe.family in {"single", "expert", "member", "mixture", "defence", "ablation"}, name
        assert len(recipe.starts_from) in (0, recipe.network.experts), name
        for start in recipe.starts_from:
            assert known[start].update_steps, (name, start)  # its weights were learned, not drawn
            assert known[start].network == Network(member=recipe.network.member), (name, start)
        if recipe.weights_of:
            source = known[recipe.weights_of]
            assert source.update_steps and not recipe.update_steps, name
            assert dataclasses.replace(recipe.network, top1=False) == source.network, name
        assert (recipe.training is None) == (not recipe.update_steps), name
        assert {update_step.trainable for update_step in recipe.update_steps} <= set(TRAINABLE), name
        assert recipe.update_steps or recipe.starts_from or recipe.weights_of, name


def build(recipe: Recipe, profile: Profile, data: Dataset) -> nn.Module:
    """The untrained network of a recipe."""
    return build_network(architecture_of(recipe, profile.model), DataFacts.of(data))


def test_every_recipe_is_built_and_answers(micro: Profile, digits: Dataset) -> None:
    x = digits.test.images[:3]
    different: dict[Network, str] = {}  # what is built follows from the network alone
    for name, recipe in recipes(micro).items():
        different.setdefault(recipe.network, name)
    assert len(different) > 15
    for name in different.values():
        model = build(recipe_for(name, micro), micro, digits).eval()
        with torch.no_grad():
            logits = model(x)
        assert logits.shape == (3, 10), name
        assert torch.isfinite(logits).all(), name


@pytest.mark.parametrize(("name", "side", "channels"), [("digits", 8, 1), ("cifar10", 32, 3)])
def test_the_wide_network_is_as_large_as_dwf(name: str, side: int, channels: int) -> None:
    profile = load_profile(name)
    facts = DataFacts(10, (channels, side, side), (0.5,) * channels, (0.25,) * channels)
    with torch.device("meta"):
        wide, dwf = (
            parameters(build_network(architecture_of(recipe_for(system, profile), profile.model), facts))
            for system in ("pgd-at-wide", "dwf")
        )
    assert wide == pytest.approx(dwf, rel=0.05)


def test_soe_begins_as_its_experts_undecided(micro: Profile, digits: Dataset) -> None:
    torch.manual_seed(0)
    experts = [build(recipe_for(name, micro), micro, digits).eval() for name in EXPERTS]
    soe = build(recipe_for("soe", micro), micro, digits).eval()
    assert isinstance(soe, SoE)
    load_experts(soe, [expert.state_dict() for expert in experts])
    for own, expert in zip(soe.experts, experts, strict=True):
        state, found = own.state_dict(), expert.state_dict()
        for name in ("head.weight", "head.bias"):
            row = state.pop(name)
            assert torch.equal(row[:-1], found.pop(name))
            assert torch.equal(row[-1], torch.zeros_like(row[-1]))
        assert all(torch.equal(state[name], found[name]) for name in state.keys() | found.keys())
    x = digits.test.images[:20]
    with torch.no_grad():
        said = soe.confidence(x)
        assert torch.allclose(said.logits, torch.stack([expert(x) for expert in experts], dim=1), atol=1e-6)
    assert said.heads.abs().max() == 0


L2_RADII = {"more-expert-1": 60, "more-expert-2": 80}  # of 255, on CIFAR-10


@pytest.mark.parametrize(
    ("profile", "share"),
    [
        *((name, 1.0) for name in ("cifar10", "cifar10_h100", "cifar10_lite", "svhn")),
        # 64 pixels instead of 3072, and an L-infinity budget of 0.1 instead of 8/255
        *((name, 0.1 / (8 / 255) * (64 / 3072) ** 0.5) for name in ("digits", "smoke")),
    ],
)
def test_mores_l2_budgets_are_the_published_ones_on_cifar_and_in_proportion_elsewhere(
    profile: str, share: float
) -> None:
    known = recipes(comparing(load_profile(profile), *COMPARED, "more-own"))
    for system, radius in L2_RADII.items():
        threat = only_threat(known[system])
        assert isinstance(threat, RandomPGD) and threat.norm == "l2" and threat.step_size == threat.eps / 4
        assert threat.eps == pytest.approx(radius / 255 * share)


def test_image_sizes_known_before_the_images_are_read_are_those_of_the_data(digits: Dataset) -> None:
    expected = {"digits": digits.train.images[0].numel(), "cifar10": 3072, "svhn": 3072}
    assert expected == recipes_module.IMAGE_VALUES


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 30), (4, 64, 64)])
@pytest.mark.parametrize("system", ["more-expert-1", "more-expert-2", "more-own"])
def test_mores_l2_budgets_follow_the_size_of_any_images(
    system: str, shape: tuple[int, ...], digits_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("paperlib.training.adversaries.pgd", lambda model, x, y, **settings: seen.append(settings))
    own = replace(digits_profile, data=replace(digits_profile.data, name="mine"))
    threat, generator = recipes(own)[system].update_steps[0].attack, rng()
    images = torch.zeros(2, *shape)
    for sampled in [threat.sample(generator) for _ in range(30)]:
        sampled.perturb(nn.Identity(), images, torch.zeros(2, dtype=torch.int64), generator)
    l2 = [settings for settings in seen if settings["norm"] == "l2"]
    assert l2 and all(settings["random_start"] and settings["steps"] == 10 for settings in l2)
    expected = L2_RADII.get(system, 80) / 255 * 0.1 / (8 / 255) * (images[0].numel() / 3072) ** 0.5
    assert {settings["eps"] for settings in l2} == {expected}
    assert {settings["step_size"] for settings in l2} == {expected / 4}
    assert threat.mean_steps() == recipes(digits_profile)[system].update_steps[0].attack.mean_steps()


def comparing(profile: Profile, *systems: str) -> Profile:
    return replace(profile, study=StudyConfig(systems))


def test_a_profile_compares_what_it_names_and_what_that_is_built_from(digits_profile: Profile) -> None:
    known = recipes(comparing(digits_profile, *COMPARED, "ablation-3", "plain-*"))
    names = {name for name in known if not name.startswith("expert-")}
    assert names == {*COMPARED, "ablation-3", "plain-resnet50", "plain-vgg16", "plain-densenet121", "plain-wrn28-10"}
    assert set(EXPERTS) <= set(known)
    assert "ablation-base" in recipes(comparing(digits_profile, *COMPARED, "ablation-top1"))
    every = recipes(digits_profile)
    assert [name for name in every if name in known] == list(known)  # in the order of the series
    assert all(every[name] == recipe for name, recipe in known.items())


def test_stages_of_what_a_profile_compares_are_those_of_the_whole_series(digits_profile: Profile) -> None:
    few = stages(comparing(digits_profile, *COMPARED, "advmoe"))
    every = stages(digits_profile)
    assert few.keys() < every.keys() and all(needed in few for stage in few.values() for needed in stage.inputs)
    assert {"gate:advmoe", "audit:advmoe", "stress:advmoe", "autoattack:best-expert", "audit:controls"} <= few.keys()
    differing = {name for name, stage in few.items() if stage.config != every[name].config}
    # pgd-at is attacked from a network held out, which is another one where its like are left out
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
def test_systems_a_profile_cannot_compare_are_refused(
    digits_profile: Profile, systems: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ProfileError, match=message):
        recipes(comparing(digits_profile, *systems))


def test_a_system_left_out_is_not_called_unknown(digits_profile: Profile) -> None:
    with pytest.raises(MissingError, match=r"more: left out of profile digits; name it in study.systems"):
        recipe_for("more", comparing(digits_profile, *COMPARED))


def test_an_unknown_system_is_refused_with_the_known_ones(digits_profile: Profile) -> None:
    with pytest.raises(MissingError, match=r"unknown system 'dfw'; known: .*dwf"):
        recipe_for("dfw", digits_profile)


def test_recipes_are_built_as_they_say(micro: Profile, digits: Dataset) -> None:
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


def test_what_is_trainable_is_what_its_name_says(micro: Profile, digits: Dataset) -> None:
    def ids(parameters: Iterator[nn.Parameter]) -> set[int]:
        return {id(p) for p in parameters}

    dwf = build(recipe_for("dwf", micro), micro, digits)
    assert ids(TRAINABLE["all"](dwf)) == ids(dwf.parameters())
    assert ids(TRAINABLE["gate"](dwf)) == ids(dwf.get_submodule("gate").parameters()) != set()
    heads = [expert.get_submodule("head") for expert in dwf.get_submodule("experts").children()]
    assert len(heads) == 9
    last = set().union(*(ids(head.parameters()) for head in heads))
    assert ids(TRAINABLE["heads"](dwf)) == last | ids(dwf.get_submodule("gate").parameters())
    advmoe = build(recipe_for("advmoe-own", micro), micro, digits)
    pathways, router = (ids(TRAINABLE[name](advmoe)) for name in ("pathways", "router"))
    assert router == ids(advmoe.get_submodule("router").parameters()) != set()
    assert pathways.isdisjoint(router)
    assert pathways | router == ids(advmoe.parameters())


def test_bfloat16_and_channels_last_learn_as_well_and_leave_float32_weights(digits: Dataset) -> None:
    model = net()
    history = run(model, digits, bf16=True, channels_last=True, update_steps=[UpdateStep(RandomPGD(0.05, 0.02, (2,)))])
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert {p.dtype for p in model.parameters()} == {torch.float32}
