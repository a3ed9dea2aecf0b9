"""The audit: it detects every planted fault, believes sound networks, and accepts any module without changing it."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.models.resnet import BasicBlock
from toys import Linear, ToyNet, same_state

from paperlib import Dataset
from paperlib.attacks import NEVER, pgd
from paperlib.config.budgets import budget_text
from paperlib.data import Split
from paperlib.errors import InputError
from paperlib.evaluation import AuditBudget, Finding, Report, audit, evaluate
from paperlib.evaluation.auditing import planted_faults
from paperlib.evaluation.auditing.checks import CHECKS
from paperlib.evaluation.auditing.checks.check import FAILS, NOT_APPLICABLE, NOT_RUN, NOTED, PASSES
from paperlib.evaluation.auditing.checks.mixture import _Variant
from paperlib.evaluation.auditing.context import CURVE, AuditContext
from paperlib.evaluation.auditing.planted_faults import (
    Control,
    Ground,
    Neighbours,
    Probabilities,
    Random,
    Scaled,
    controls,
    overfitted,
)
from paperlib.evaluation.auditing.report import REQUIRED
from paperlib.evaluation.specs import autoattack_spec
from paperlib.log import progress
from paperlib.models import Gate, Mixture, MixtureOutput, UniformGate
from paperlib.pipeline.stages.audit import PLANTED

EPS = Fraction(3, 20)
SMALL = AuditBudget(steps=5, restarts=1, draws=5, iterations=2, queries=5)
NO_AUTOATTACK = replace(SMALL, autoattack=False)
BY_NAME = {check.name: check for check in CHECKS}
# Every control with a planted fault, and the check that must detect it.
FAULTS = {
    "nan-gate": "finite",
    "logits-x1000": "gradients",
    "probabilities": "logits",
    "wrong-target": "target",
    "overfitted": "one-step",
    "quantised": "gradients",
    "random": "steady",
    "batch": "alone",
    "peeking": "alone",
    "test-selection": "selection",
}
SOUND = ("undefended", "defended")


class Wrapped(nn.Module):
    """A function of a network and of images."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.model, x)


class ConstantGate(nn.Module):
    """A gate with the same logits for every image."""

    def __init__(self, *gate_logits: float) -> None:
        super().__init__()
        self.gate_logits = nn.Parameter(torch.tensor(gate_logits, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def hardened(digits: Dataset) -> ToyNet:
    """A small adversarially trained network. Treat as read-only."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ToyNet(width=16)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            for index in torch.randperm(len(digits.train)).split(60):
                x, y = digits.train.images[index], digits.train.labels[index]
                loss = nn.functional.cross_entropy(model(pgd(model, x, y, eps=0.2, step_size=0.08, steps=4)), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return model.eval()


def first_images(digits: Dataset, n: int = 20) -> tuple[Tensor, Tensor]:
    split = digits.test.first(n)
    return split.images.clone(), split.labels.clone()


def without_seconds(report: Report) -> dict[str, Any]:
    return {key: value for key, value in report.json().items() if key != "seconds"}


def finding(report: Report, name: str) -> Finding:
    return next(one for one in report.findings if one.name == name)


@pytest.fixture(scope="module")
def small_report(toy: ToyNet, digits: Dataset) -> Report:
    """The audit of the toy network with a small budget and a shortened AutoAttack."""
    return audit(toy, *first_images(digits), EPS, audit_budget=SMALL, label="toy")


@pytest.fixture(scope="module")
def report(toy: ToyNet, digits: Dataset) -> Report:
    """The audit of the toy network with a small budget and without AutoAttack."""
    return audit(toy, *first_images(digits), EPS, audit_budget=NO_AUTOATTACK, label="toy")


# -- planted faults and sound networks ---------------------------------------------------------------------------------

Audited = Mapping[str, tuple[Control, Report]]


@pytest.fixture(scope="module")
def audited(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> Audited:
    """Each control audited once: planted faults with a small budget, the sound networks with the default one.

    The outcome of AutoAttack on the sound networks is that of a shortened run, to save time.
    """
    test = digits.test.first(40)
    ground = Ground(toy, hardened, digits.train, digits.validation, test, 0.15)
    budget = replace(PLANTED, steps=20, draws=20, queries=50)
    reports = {}
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():
        patched.setattr(planted_faults, "overfitted", functools.partial(overfitted, epochs=80, width=16))
        for control in controls(ground):
            settings: dict[str, Any] = {"audit_budget": budget}
            if not control.expected:
                outcome = evaluate(control.arguments["model"], test, autoattack_spec(EPS, 5, 50), seed=0)
                stored = {"outcomes": {"autoattack@0.15": outcome.correct}, "won_by": outcome.first_success}
                settings = {"audit_budget": AuditBudget(), **stored}
            result = audit(images=test.images, labels=test.labels, **control.arguments, **settings, label=control.name)
            reports[control.name] = control, result
    return reports


def test_every_planted_fault_is_detected_by_its_check(audited: Audited) -> None:
    assert {name: control.expected for name, (control, _) in audited.items()} == FAULTS | dict.fromkeys(SOUND, "")
    for name, check in FAULTS.items():
        report = audited[name][1]
        assert check in report.failed, name
        assert not report.believed
        assert report.sentence.startswith("Not to be believed:")
        assert f"{check}: {finding(report, check).why}" in report.sentence


def test_sound_networks_are_believed_with_the_default_budget(audited: Audited) -> None:
    for name in SOUND:
        report = audited[name][1]
        assert report.failed == () and report.missing == () and report.believed
        assert report.audit_budget == asdict(AuditBudget())
        assert report.sentence.startswith("Believed")
        assert report.claimed is not None and report.claimed == pytest.approx(report.attacks["pgd-50@0.15"] / 40)
        assert {finding(report, check).verdict for check in FAULTS.values()} == {PASSES}
    undefended, defended = (audited[name][1] for name in SOUND)
    assert undefended.claimed is not None and undefended.claimed < 0.05
    attacks = {"fgsm@0.15", "pgd-50@0.15", "pgd-100x5@0.15", "noise-1000@0.15", "pgd-50-margin@0.15", "autoattack@0.15"}
    assert attacks <= defended.attacks.keys()
    assert defended.worst is not None and 0.4 * 40 < defended.worst <= min(defended.attacks.values())


def test_no_accuracy_of_a_network_with_nan_weights_is_reported(audited: Audited) -> None:
    report = audited["nan-gate"][1]
    assert (report.claimed, report.worst, report.attacks) == (None, None, {})
    assert {one.verdict for one in report.findings if one.name != "finite"} == {NOT_RUN}
    assert "no accuracy of nan-gate can be measured" in report.sentence


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_checks_are_numbered_from_1_to_29() -> None:
    assert sorted(check.row for check in CHECKS) == list(range(1, 30))
    assert len(BY_NAME) == 29
    assert all(check.question.endswith("?") and check.threshold for check in CHECKS)
    assert set(REQUIRED) <= BY_NAME.keys()


def test_the_table_has_a_row_for_each_check_in_order(report: Report) -> None:
    table = report.table()
    assert table["row"].tolist() == list(range(1, 30))
    assert table.columns.tolist() == ["row", "question", "threshold", "value", "verdict"]
    rows = {check.name: (check.row, check.question, check.threshold) for check in CHECKS}
    assert {name: tuple(row) for name, *row in table.iloc[:, :3].itertuples()} == rows
    assert table.loc["finite", "verdict"] == PASSES and table.loc["sample", "verdict"] == NOTED


def test_a_report_is_equal_after_json_and_prints_its_sentence_last(report: Report, audited: Audited) -> None:
    for original in (report, *(result for _, result in audited.values())):
        copied = Report.from_json(json.loads(json.dumps(original.json(), allow_nan=False)))
        assert copied == original
        assert (copied.sentence, copied.believed, copied.failed) == (
            original.sentence,
            original.believed,
            original.failed,
        )
        *lines, last = str(original).split("\n")
        assert last == original.sentence
        assert [line[15:].split()[0] for line in lines] == [one.name for one in original.findings]


def test_without_the_standard_autoattack_nothing_is_believed_yet(report: Report, small_report: Report) -> None:
    for result in (report, small_report):
        assert result.failed == ()
        assert finding(result, "autoattack").verdict == NOT_RUN
        assert result.missing == ("autoattack",) and not result.believed
        assert "not to be believed yet" in result.sentence.lower()
    assert "autoattack-2-5@0.15" in small_report.attacks


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_eps_may_be_text_and_the_seed_determines_the_result(report: Report, toy: ToyNet, digits: Dataset) -> None:
    equal, other = (
        audit(toy, *first_images(digits), eps, audit_budget=NO_AUTOATTACK, label="toy", seed=seed)
        for eps, seed in (("0.15", 0), (0.15, 4))
    )
    assert without_seconds(equal) == without_seconds(report)
    assert (report.eps, other.eps, report.seed, other.seed) == ("0.15", "0.15", 0, 4)
    values = [finding(one, "one-step").value + finding(one, "smooth").value for one in (report, other)]
    assert values[0] != values[1]


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "eps of bytes": ({"eps": 8}, "8/255"),
    "eps of zero": ({"eps": 0}, "eps above 0"),
    "no images": ({"images": torch.zeros(0, 1, 8, 8), "labels": torch.zeros(0, dtype=torch.int64)}, "one image"),
    "a class too many": ({"labels": torch.full((20,), 10)}, "labels: 10 to 10 are out of range"),
    "per cent": ({"claimed": 63}, "fraction from 0 to 1.*63/100"),
    "not a number": ({"claimed": math.nan}, "fraction from 0 to 1"),
    "adversarial": ({"adversarial": torch.zeros(19, 1, 8, 8), "claimed": 0.5}, "adversarial: expected images of shape"),
    "selected_on": ({"selected_on": torch.zeros(5, 3, 32, 32)}, "selected_on"),
    "outcomes": ({"outcomes": {"pgd-5@0.15": torch.ones(5, dtype=torch.bool)}}, "outcome 'pgd-5@0.15'"),
    "won_by": ({"won_by": torch.ones(5)}, "outcome 'won_by'"),
    "benign": ({"benign": 2}, "benign=2: the mixture has no such expert"),
}


@pytest.mark.parametrize(("arguments", "message"), INVALID.values(), ids=INVALID.keys())
def test_invalid_arguments_are_refused_before_any_attack(
    arguments: dict[str, Any], message: str, toy: ToyNet, digits: Dataset
) -> None:
    images, labels = first_images(digits)
    model = Mixture([copy.deepcopy(toy), toy], UniformGate(2)).eval()
    batches: list[int] = []
    model.experts.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    arguments = {"images": images, "labels": labels, "eps": EPS} | arguments
    with pytest.raises(InputError, match=message) as error:
        audit(model, **arguments, audit_budget=NO_AUTOATTACK)
    assert "\n" not in str(error.value)
    assert len(batches) < 6


class Uncopyable(ToyNet):
    """A network that cannot be copied."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no\ncopy")


def test_models_that_cannot_be_audited_are_refused(toy: ToyNet, digits: Dataset) -> None:
    models: dict[str, Any] = {
        r"mine: is in training mode.*eval\(\)": copy.deepcopy(toy).train(),
        r"mine: .*expects 0\.\.255": Wrapped(toy, lambda model, x: model((x / 255).round(decimals=2))),
        r"mine: cannot be copied \(TypeError: no copy\)": Uncopyable().eval(),
        "mine: expected a torch.nn.Module, got a method": toy.forward,
    }
    for message, model in models.items():
        with pytest.raises(InputError, match=message) as error:
            audit(model, *first_images(digits), EPS, audit_budget=NO_AUTOATTACK, label="mine")
        assert "\n" not in str(error.value)


def test_the_audit_of_probabilities_continues_with_their_logarithm(
    report: Report, toy: ToyNet, digits: Dataset
) -> None:
    result = audit(Probabilities(toy).eval(), *first_images(digits), EPS, audit_budget=NO_AUTOATTACK)
    assert "logits" in result.failed and "logits" not in report.failed
    assert "probabilities where attacks expect logits" in result.sentence
    assert result.attacks == report.attacks and len(result.attacks) > 5
    assert (result.claimed, result.worst) == (report.claimed, report.worst)
    names = [check.name for check in CHECKS]
    for name in names[names.index("logits") + 1 :]:
        assert finding(result, name) == finding(report, name)


def test_stored_outcomes_replace_attacks(toy: ToyNet, digits: Dataset) -> None:
    correct = torch.arange(20) < 17
    stored = {name: correct for name in ("pgd-5-margin@0.15", "noise-5@0.15", "fgsm@0.15", "fgsm@16/255")}
    stored |= {"pgd-5@128/255": torch.ones(20, dtype=torch.bool), "theirs@0.15": (torch.arange(20) >= 19).float()}
    before = {name: outcome.clone() for name, outcome in stored.items()}
    report = audit(toy, *first_images(digits), EPS, audit_budget=NO_AUTOATTACK, outcomes=stored)
    names = ("pgd-5-margin@0.15", "noise-5@0.15", "fgsm@0.15", "theirs@0.15")
    assert [report.attacks[name] for name in names] == [17, 17, 17, 1]
    assert report.attacks["pgd-5@0.15"] < 10  # not stored, so it was run
    assert report.worst == 0  # no image is correct under both fgsm and theirs
    assert "worst of 5 draws 85.0 %" in finding(report, "noise").value
    assert "128/255: 100.0 %" in finding(report, "falls").value and "falls" in report.failed
    assert stored.keys() == before.keys() and all(torch.equal(stored[name], before[name]) for name in stored)


def test_a_stored_autoattack_is_not_run_again(hardened: ToyNet, digits: Dataset) -> None:
    stored = {"autoattack-2-5@0.15": torch.zeros(20, dtype=torch.bool)}
    report = audit(hardened, *first_images(digits), EPS, audit_budget=SMALL, outcomes=stored)
    assert report.attacks["autoattack-2-5@0.15"] == 0


def test_images_crafted_on_this_model_are_on_target(toy: ToyNet, digits: Dataset) -> None:
    x, y = first_images(digits)
    crafted = pgd(toy, x, y, eps=EPS, step_size=EPS / 4, steps=20)
    report = audit(toy, x, y, EPS, adversarial=crafted, audit_budget=NO_AUTOATTACK)
    assert report.claim == "on the adversarial images handed in"
    assert {finding(report, name).verdict for name in ("target", "budget")} == {PASSES}


def test_an_audit_logs_its_progress_and_keeps_to_the_batch_size(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    monkeypatch.setattr("paperlib.evaluation.auditing.audit.progress", functools.partial(progress, every=0))
    batches: list[int] = []
    model = copy.deepcopy(toy)
    model.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    audit(model, *first_images(digits), EPS, batch_size=16, audit_budget=NO_AUTOATTACK, label="mine")
    assert max(batches) <= 16
    assert len(log_lines) == 28 and all(line.startswith("audit of mine: ") for line in log_lines)


# -- nothing that is passed in changes ---------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A network that normalises its input by buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3]).view(1, 1, 1, 1))
        self.register_buffer("number", torch.tensor(7))
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(144, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net((x - self.mean) / 0.2))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], AuditBudget]] = {
    "residual": (lambda: nn.Sequential(BasicBlock(3, 3), nn.Flatten(), nn.Linear(108, 10)), (4, 3, 6, 6), SMALL),
    "linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 6)),
        (9, 1, 4, 4),
        SMALL,
    ),
    "subclass": (Normalised, (9, 1, 8, 8), NO_AUTOATTACK),
}


@pytest.mark.parametrize("name", MODULES)
def test_any_module_is_audited_and_left_unchanged(name: str) -> None:
    build, shape, budget = MODULES[name]
    model, x = build().eval(), torch.rand(shape)
    frozen, with_gradient, *others = parameters = list(model.parameters())
    frozen.requires_grad_(False)
    with_gradient.grad = torch.ones_like(with_gradient)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    before, images, labels = copy.deepcopy(model), x.clone(), y.clone()
    state = torch.get_rng_state()
    report = audit(model, x, y, "8/255", audit_budget=budget)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(model, before)
    assert not any(module.training for module in model.modules())
    assert [p.requires_grad for p in parameters] == [p is not frozen for p in parameters]
    assert torch.equal(with_gradient.grad, torch.ones_like(with_gradient)) and all(p.grad is None for p in others)
    assert torch.equal(x, images) and torch.equal(y, labels)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "clean 100.0 %" in finding(report, "one-step").value
    assert {"finite", "steady", "alone", "logits", "gradients"}.isdisjoint(report.failed)


def _strict_and_in_place(model: nn.Module, x: Tensor) -> Tensor:
    if bool((x > 1).any()):
        raise ValueError("pixels above 1")
    return model(x.mul_(0.5).mul_(2))


def test_a_network_may_refuse_other_pixels_and_edit_its_input(report: Report, toy: ToyNet, digits: Dataset) -> None:
    x, y = first_images(digits)
    result = audit(Wrapped(toy, _strict_and_in_place), x, y, EPS, audit_budget=NO_AUTOATTACK)
    assert torch.equal(x, first_images(digits)[0])
    assert result.attacks == report.attacks


def test_other_networks_and_their_modes_are_left_unchanged(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    other = copy.deepcopy(hardened).train()
    audit(toy, *first_images(digits), EPS, transfer_from={"other": other}, audit_budget=NO_AUTOATTACK)
    assert all(module.training for module in other.modules())
    assert same_state(other, hardened)


def _partly_in_training_mode(toy: ToyNet) -> nn.Module:
    model = copy.deepcopy(toy)
    model.body[1].train()
    return model


def test_a_part_in_training_mode_is_left_unchanged(toy: ToyNet, digits: Dataset) -> None:
    part = _partly_in_training_mode(toy)
    model = Probabilities(part)
    model.training = False
    audit(model, *first_images(digits), EPS, audit_budget=NO_AUTOATTACK)
    assert part.get_submodule("body.1").training
    assert same_state(part, toy)


def test_noise_of_a_network_does_not_advance_the_global_generator() -> None:
    state = torch.get_rng_state()
    model = Random(Linear(torch.eye(4)), 0.04).eval()
    audit(model, torch.full((5, 1, 2, 2), 0.5), torch.zeros(5, dtype=torch.int64), EPS, audit_budget=NO_AUTOATTACK)
    assert torch.equal(torch.get_rng_state(), state)


# -- checks of the model -----------------------------------------------------------------------------------------------


def on(model: nn.Module, digits: Dataset, n: int = 80, **settings: Any) -> AuditContext:
    return AuditContext(model, digits.test.first(n), EPS, **{"audit_budget": SMALL} | settings)


def verdict(check: str, context: AuditContext) -> str:
    return BY_NAME[check](context).verdict


def _with_nan(toy: ToyNet, name: str) -> nn.Module:
    model = copy.deepcopy(toy)
    model.state_dict()[name].view(-1)[0] = math.nan
    return model


def test_nan_in_weights_logits_and_gradients_is_detected(toy: ToyNet, digits: Dataset) -> None:
    models = {
        "head.weight holds NaN": _with_nan(toy, "head.weight"),
        "body.1.running_mean holds NaN": _with_nan(toy, "body.1.running_mean"),
        "its logits and ": Wrapped(toy, lambda model, x: model(x) / 0),
        "gate logits": Mixture([toy, toy], Wrapped(UniformGate(2), lambda gate, x: gate(x) / 0)).eval(),
        "its input gradients hold": Wrapped(toy, lambda model, x: model(x) + (x - x).sum().sqrt()),
    }
    for reason, model in models.items():
        result = BY_NAME["finite"](on(model, digits, 10))
        assert result.verdict == FAILS and reason in result.why
    assert verdict("finite", on(toy, digits, 10)) == PASSES


def test_random_logits_are_detected(toy: ToyNet, digits: Dataset) -> None:
    dropout = Wrapped(toy, lambda model, x: model(nn.functional.dropout(x, 0.1)))
    assert verdict("steady", on(dropout, digits)) == FAILS
    assert verdict("steady", on(toy, digits)) == PASSES


class Reading(nn.Module):
    """A network that scales its logits in training mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * (0.9 if self.training else 1)


def test_logits_that_depend_on_more_than_their_image_are_detected(toy: ToyNet, digits: Dataset) -> None:
    models = {
        "rest of the batch": Neighbours(toy).eval(),
        "body.1 is in training mode: call eval()": _partly_in_training_mode(toy),
        "reads the training flag": Reading(toy).eval(),
        "detects attacks": Wrapped(toy, lambda model, x: model(x).flip(1) if x.requires_grad else model(x)),
    }
    for reason, model in models.items():
        result = BY_NAME["alone"](on(model, digits))
        assert result.verdict == FAILS and reason in result.why


class BatchNormSubclass(nn.BatchNorm2d):
    """Batch norm whose class is not one of torch's."""


def test_layers_that_change_in_training_mode_pass_and_keep_their_state(toy: ToyNet, digits: Dataset) -> None:
    models = {
        "batch norm and dropout": nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1), toy),
        "mixture": Mixture([toy, toy], Gate(2, 4, 1, (0.5,), (0.5,))),
        "spectral norm": nn.Sequential(spectral_norm(nn.Conv2d(1, 4, 3)), nn.Flatten(), nn.Linear(144, 10)),
        "subclass": nn.Sequential(nn.Conv2d(1, 4, 3), BatchNormSubclass(4), nn.Flatten(), nn.Linear(144, 10)),
    }
    for name, model in models.items():
        before = copy.deepcopy(model.eval().state_dict())
        assert verdict("alone", on(model, digits)) == PASSES, name
        assert not any(module.training for module in model.modules())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), name


def test_probabilities_are_distinguished_from_logits(toy: ToyNet, digits: Dataset) -> None:
    assert verdict("logits", on(Probabilities(toy), digits)) == FAILS
    for function in (
        lambda model, x: torch.sigmoid(model(x)),  # in [0, 1], but the sum is not 1
        lambda model, x: model(x) - model(x).mean(dim=1, keepdim=True) + 0.1,  # the sum is 1, but not in [0, 1]
        lambda model, x: model(x),
        lambda model, x: model(x).log_softmax(dim=1),
    ):
        assert verdict("logits", on(Wrapped(toy, function), digits)) == PASSES


def test_missing_gradients_are_detected(toy: ToyNet, digits: Dataset) -> None:
    detached_input = Wrapped(toy, lambda model, x: model(x.detach()))
    assert verdict("gradients", on(detached_input, digits)) == FAILS
    assert verdict("gradients", on(toy, digits)) == PASSES
    detached_logits = Wrapped(toy, lambda model, x: model(x).detach())
    report = audit(detached_logits, *first_images(digits), EPS, audit_budget=NO_AUTOATTACK)
    assert "gradients" in report.failed


def test_a_rough_loss_is_detected(toy: ToyNet, digits: Dataset) -> None:
    def ripples(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) * (1 + torch.sin(1e5 * x.flatten(1).sum(dim=1, keepdim=True)))

    assert verdict("smooth", on(Wrapped(toy, ripples), digits)) == FAILS
    assert verdict("smooth", on(toy, digits)) == PASSES


# -- checks of the attack ----------------------------------------------------------------------------------------------


def test_an_attack_with_too_few_steps_has_not_converged(hardened: ToyNet, digits: Dataset) -> None:
    for steps, expected in ((2, FAILS), (50, PASSES)):
        assert verdict("converged", on(hardened, digits, audit_budget=replace(SMALL, steps=steps))) == expected


def test_the_images_of_the_attack_are_those_that_are_counted(hardened: ToyNet, digits: Dataset) -> None:
    contexts = [on(hardened, digits, seed=seed, audit_budget=replace(SMALL, steps=1)) for seed in range(4)]
    counted = [~context.correct(context.pgd) for context in contexts]
    fooled = [context.pgd_result.fooled for context in contexts]
    assert all(torch.equal(one, other) for one, other in zip(counted, fooled, strict=True))
    assert any(not torch.equal(one, fooled[0]) for one in fooled)


def test_adversarial_images_outside_the_ball_or_the_range_are_detected(toy: ToyNet, digits: Dataset) -> None:
    x = digits.test.images
    with_nan = x.clone()
    with_nan[3, 0, 2, 2] = math.nan
    images = {
        "inside": ((x + 0.15).clamp(0, 1), PASSES),
        "too far": ((x + 0.16).clamp(0, 1), FAILS),
        "below 0": (x - 0.1, FAILS),
        "above 1": (x + 0.1, FAILS),
        "NaN": (with_nan, FAILS),
    }
    for name, (adversarial, expected) in images.items():
        result = BY_NAME["budget"](on(toy, digits, adversarial=adversarial, claimed=0.5))
        assert result.verdict == expected, name
        assert (expected == FAILS) is ("images of the claim are outside the ball" in result.why)


class Band(nn.Module):
    """Predicts class 0, less confidently for brighter pixels, except for pixels between 0.6 and 0.64."""

    def forward(self, x: Tensor) -> Tensor:
        pixel = x.flatten(1)
        band = (pixel > 0.6) & (pixel < 0.64)
        return torch.cat([3 - pixel - 9 * band, *[0 * pixel] * 3], dim=1)


def test_successes_that_are_lost_at_the_last_step_are_noted(toy: ToyNet, digits: Dataset) -> None:
    grey = Split(torch.full((40, 1, 1, 1), 0.5), torch.zeros(40, dtype=torch.int64))
    result = BY_NAME["any-iterate"](AuditContext(Band(), grey, EPS, replace(SMALL, steps=20)))
    assert result.verdict == NOTED and "last iterates only" in result.why
    assert verdict("any-iterate", on(toy, digits)) == PASSES


def test_examples_of_other_networks_are_tried_if_one_is_passed_in(
    toy: ToyNet, hardened: ToyNet, digits: Dataset
) -> None:
    scaled = Scaled(toy, 1000).eval()
    assert verdict("transfer", on(scaled, digits)) == NOT_RUN
    assert verdict("transfer", on(scaled, digits, transfer_from={"other": hardened, "twin": toy})) == FAILS
    assert verdict("transfer", on(toy, digits, transfer_from={"other": hardened})) == PASSES


@pytest.mark.parametrize("claimed", [0.9, None])
def test_nan_logits_during_an_attack_are_reported(claimed: float | None, toy: ToyNet, digits: Dataset) -> None:
    def nan_off_the_grid(model: nn.Module, x: Tensor) -> Tensor:
        changed = (16 * x).frac().flatten(1).any(dim=1, keepdim=True)  # digits have 17 grey levels
        return torch.where(changed, math.nan, model(x))

    model = Wrapped(toy, nan_off_the_grid)
    report = audit(model, *first_images(digits), EPS, claimed=claimed, audit_budget=SMALL)
    assert finding(report, "finite").verdict == PASSES
    assert {"iterations", "falls", "noise"} <= set(report.failed) and not report.believed
    assert "NaN or infinity" in report.sentence


@pytest.mark.parametrize("classes", [2, 3])
def test_a_network_with_few_classes_is_audited_without_autoattack(
    classes: int, hardened: ToyNet, digits: Dataset
) -> None:
    x, y = digits.test.images, digits.test.labels
    model = Wrapped(hardened, lambda model, x: model(x)[:, :classes])
    report = audit(model, x[y < classes], y[y < classes], EPS, audit_budget=SMALL)
    assert report.worst is not None and finding(report, "autoattack").verdict == NOT_RUN
    assert finding(report, "black-box").verdict == PASSES


# -- checks of numbers of correct images -------------------------------------------------------------------------------


def counted(counts: Mapping[str, int], n: int = 100, **settings: Any) -> AuditContext:
    """A context with stored outcomes: the first ``counts[attack]`` of ``n`` images are correct under each attack."""
    model = Linear(torch.linspace(-1, 1, 10).view(10, 1))
    split = Split(torch.linspace(0, 1, n).view(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64))
    stored = {name: torch.arange(n) < count for name, count in counts.items()}
    return AuditContext(model, split, EPS, **{"audit_budget": SMALL, "outcomes": stored} | settings)


def curve(**changes: int) -> dict[str, int]:
    """Numbers of correct images that fall from 95 to 10, the same for FGSM and PGD; with ``changes`` to attacks."""
    budgets = ["0.15", *(budget_text(eps) for eps in CURVE)]
    falling = dict(zip(budgets, [40, 90, 85, 80, 70, 60, 30, 10], strict=True))
    return {"clean": 95} | {f"{kind}@{eps}": n for kind in ("fgsm", "pgd-5") for eps, n in falling.items()} | changes


LONG = {name.replace("pgd-5@", "pgd-50@"): count for name, count in curve().items()}
Case = tuple[dict[str, int], dict[str, Any], str]
COUNTS: dict[str, list[Case]] = {
    "iterations": [
        (curve(), {}, PASSES),
        (curve(**{"fgsm@8/255": 78}), {}, PASSES),
        (curve(**{"fgsm@8/255": 77}), {}, FAILS),
    ],
    "falls": [
        (curve(**{"pgd-5@128/255": 12}), {}, PASSES),
        (curve(**{"pgd-5@128/255": 13}), {}, FAILS),  # above chance
        (curve(**{"pgd-5@0.15": 62}), {}, PASSES),
        (curve(**{"pgd-5@0.15": 63}), {}, FAILS),  # rises
    ],
    "converged": [
        (curve(**{"pgd-10@0.15": 0}), {}, FAILS),
        (curve(**{"pgd-5@0.15": 2, "pgd-10@0.15": 0}), {}, PASSES),
        (curve(**{"pgd-10@0.15": 40}), {}, FAILS),  # the loss still rises
        (LONG | {"pgd-100@0.15": 40}, {"audit_budget": replace(SMALL, steps=50)}, PASSES),
    ],
    "one-step": [
        (curve(**{"fgsm@0.15": 80, "pgd-5@0.15": 5}), {}, FAILS),
        (curve(**{"fgsm@0.15": 80, "pgd-5@0.15": 45}), {}, PASSES),
        (curve(**{"fgsm@0.15": 25, "pgd-5@0.15": 0}), {}, PASSES),  # undefended
        (curve(clean=37), {}, FAILS),  # FGSM raises the accuracy
    ],
    "target": [(curve(), {"claimed": 0.5}, PASSES), (curve(), {"claimed": 0.52}, FAILS)],
    "noise": [(curve(**{"noise-5@0.15": 38}), {}, PASSES), (curve(**{"noise-5@0.15": 37}), {}, FAILS)],
    "loss": [
        (curve(**{"pgd-5-margin@0.15": 35, "pgd-5-dlr@0.15": 40}), {}, PASSES),
        (curve(**{"pgd-5-margin@0.15": 34, "pgd-5-dlr@0.15": 40}), {}, FAILS),
        (curve(**{"pgd-5-margin@0.15": 40, "pgd-5-dlr@0.15": 38}), {"claimed": 0.44}, FAILS),
    ],
    "worst-case": [
        (curve(**{"square-5@0.15": 31}), {}, PASSES),
        (curve(**{"square-5@0.15": 30}), {}, FAILS),
        (curve(), {"claimed": 0.5}, FAILS),
    ],
    "sample": [({"clean": 900}, {"n": 999}, NOTED), ({"clean": 900}, {"n": 1000}, PASSES)],
}


@pytest.mark.parametrize("check", COUNTS)
def test_the_threshold_of_a_check(check: str) -> None:
    expected = [case[2] for case in COUNTS[check]]
    assert [verdict(check, counted(counts, **settings)) for counts, settings, _ in COUNTS[check]] == expected


def test_the_worst_case_is_that_of_each_image() -> None:
    context = counted(curve())
    context.outcomes |= {"even@0.15": torch.arange(100) % 2 == 0, "even@0.2": torch.zeros(100, dtype=torch.bool)}
    assert torch.equal(context.surviving(), (torch.arange(100) < 40) & (torch.arange(100) % 2 == 0))
    assert verdict("worst-case", context) == FAILS


def test_the_claim_is_compared_with_autoattack() -> None:
    for correct, expected in ((31, PASSES), (30, FAILS)):
        counts = curve(**{"autoattack@0.15": correct})
        won_by = torch.where(torch.arange(100) < correct, NEVER, 1)
        context = counted(counts, audit_budget=AuditBudget(), won_by=won_by, claimed=0.4)
        assert verdict("autoattack", context) == expected
    name = autoattack_spec(EPS, SMALL.iterations, SMALL.queries).name
    result = BY_NAME["autoattack"](counted(curve(**{name: 90}), won_by=torch.full((100,), NEVER)))
    assert result.verdict == NOT_RUN and "fewer steps or queries" in result.why
    assert verdict("autoattack", counted(curve(), audit_budget=NO_AUTOATTACK)) == NOT_RUN


def test_square_counts_if_no_gradient_attack_succeeds() -> None:
    for by_square, expected in ((2, PASSES), (3, FAILS)):
        won_by = torch.full((100,), NEVER)
        won_by[90:] = 4  # also fooled by gradient attacks
        won_by[:by_square] = 4
        assert verdict("black-box", counted(curve(), won_by=won_by)) == expected
        context = counted(curve(), audit_budget=NO_AUTOATTACK)
        context.outcomes["square-5@0.15"] = torch.arange(100) >= by_square
        assert verdict("black-box", context) == expected


def test_a_checkpoint_selected_on_more_than_1_percent_of_the_test_images_is_detected() -> None:
    images = torch.arange(400.0).div(400).view(400, 1, 1, 1)
    test, other = images[:200], images[200:]
    for shared, expected in ((0, PASSES), (2, PASSES), (3, FAILS), (None, NOT_RUN)):
        selected_on = None if shared is None else torch.cat([other, test[:shared]])
        split = Split(test, torch.zeros(200, dtype=torch.int64))
        context = AuditContext(Linear(torch.ones(4, 1)), split, EPS, selected_on=selected_on)
        assert verdict("selection", context) == expected


def test_a_plausible_maximum_is_known_for_cifar10_only() -> None:
    cases: list[tuple[tuple[int, ...], int, str, int, str]] = [
        ((3, 32, 32), 10, "8/255", 60, FAILS),
        ((3, 32, 32), 10, "8/255", 59, PASSES),
        ((3, 32, 32), 10, "4/255", 60, NOT_APPLICABLE),
        ((3, 32, 32), 9, "8/255", 60, NOT_APPLICABLE),
        ((1, 32, 32), 10, "8/255", 60, NOT_APPLICABLE),
    ]
    for shape, classes, eps, correct, expected in cases:
        split = Split(torch.zeros(100, *shape), torch.zeros(100, dtype=torch.int64))
        stored = {"clean": torch.ones(100, dtype=torch.bool), f"pgd-5@{eps}": torch.arange(100) < correct}
        model = Linear(torch.zeros(classes, math.prod(shape)))
        assert verdict("too-good", AuditContext(model, split, Fraction(eps), SMALL, outcomes=stored)) == expected


# -- checks of mixtures ------------------------------------------------------------------------------------------------


def test_checks_of_mixtures_do_not_apply_to_other_networks(toy: ToyNet, digits: Dataset) -> None:
    context = on(toy, digits)
    names = ("experts", "gate", "past-gate", "choice", "collapse", "weak-link", "compared")
    assert [verdict(name, context) for name in names] == [NOT_APPLICABLE] * 7


def test_a_collapsed_gate_is_detected(toy: ToyNet, digits: Dataset) -> None:
    for gate_logits, expected in (((9, 0, 0), FAILS), ((0, 0, -9), NOTED), ((2, 0, 0), PASSES)):
        result = BY_NAME["collapse"](on(Mixture([toy] * 3, ConstantGate(*gate_logits)).eval(), digits, 10))
        assert result.verdict == expected
        assert (expected == FAILS) is ("expert 0 has nearly all weight" in result.why)


def routed_mixture(threshold: float) -> tuple[Mixture, Split]:
    """A robust expert, and one that is always wrong and is chosen if the first pixel exceeds ``threshold``."""
    robust = Linear(torch.tensor([[0.0, 1.0], *[[0.0, 0.0]] * 3]), torch.tensor([5.0, 0, 0, 0]))
    wrong = Linear(torch.zeros(4, 2), torch.tensor([0.0, 5, 0, 0]))
    gate = Linear(torch.tensor([[0.0, 0.0], [20.0, 0.0]]), torch.tensor([0.0, -20 * threshold]))
    grey = Split(torch.full((60, 1, 1, 2), 0.5), torch.zeros(60, dtype=torch.int64))
    return Mixture([robust, wrong], gate, top1=True).eval(), grey


def test_hard_routing_that_hides_a_weak_expert_is_detected() -> None:
    for threshold, expected in ((0.62, FAILS), (0.9, PASSES)):
        model, grey = routed_mixture(threshold)
        context = AuditContext(model, grey, EPS, SMALL)
        assert context.accuracy(context.pgd) > 0.7  # hard routing has no gradient
        assert verdict("choice", context) == expected
        assert verdict("gate", context) == expected
        model.top1 = False
        assert verdict("choice", AuditContext(model, grey, EPS, SMALL)) == NOT_APPLICABLE


class Overconfident(Mixture):
    """A mixture with logits so large that cross-entropy has no gradient; those of its experts are not changed."""

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        output = super().forward_with_experts(x)
        return replace(output, logits=1e4 * output.logits)


def test_experts_that_are_weaker_than_their_mixture_are_detected(toy: ToyNet, digits: Dataset) -> None:
    for kind, expected in ((Overconfident, FAILS), (Mixture, PASSES)):
        context = on(kind([toy, toy], UniformGate(2)).eval(), digits)
        assert [verdict(name, context) for name in ("experts", "past-gate", "transfer")] == [expected] * 3


def test_a_weak_benign_expert_and_a_useless_gate_are_noted(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    even, uneven = (Mixture([toy, hardened], gate).eval() for gate in (UniformGate(2), ConstantGate(-3.0, 3.0)))
    verdicts = [verdict("weak-link", on(even, digits, benign=benign)) for benign in (0, 1, None)]
    assert verdicts == [NOTED, PASSES, NOT_APPLICABLE]
    assert [verdict("compared", on(model, digits)) for model in (even, uneven)] == [NOTED, PASSES]


def test_a_variant_of_a_mixture_mixes_like_the_mixture(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    x = digits.test.images
    for mixing in ("probabilities", "logits"):
        even = Mixture([toy, hardened], UniformGate(2), mixing).eval()
        uneven = Mixture([toy, hardened], ConstantGate(-3.0, 3.0), mixing).eval()
        with torch.no_grad():
            assert torch.equal(_Variant(even, None)(x), even(x))
            assert torch.equal(_Variant(uneven, None)(x), even(x))
            assert torch.allclose(_Variant(uneven, 0)(x).softmax(dim=1), hardened(x).softmax(dim=1), atol=1e-6)
    gated, average = re.findall(r"([\d.]+) %", BY_NAME["compared"](on(even, digits)).value)
    assert gated == average
