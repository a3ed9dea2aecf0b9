"""The audit: it finds every planted fault, believes honest networks, and takes any module as it is."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from toys import Linear, ToyNet, same_state

from paperlib import Dataset
from paperlib.attacks import pgd
from paperlib.config.budgets import budget_text
from paperlib.data import Split
from paperlib.errors import InputError
from paperlib.evaluation import AuditBudget, Report, audit
from paperlib.evaluation.auditing.checks import CHECKS
from paperlib.evaluation.auditing.checks.check import FAILS, NOT_APPLICABLE, NOT_RUN, NOTED, PASSES
from paperlib.evaluation.auditing.checks.mixture import _Other
from paperlib.evaluation.auditing.context import CURVE, AuditContext
from paperlib.evaluation.auditing.planted_faults import (
    Control,
    Ground,
    Neighbours,
    Probabilities,
    Quantised,
    Random,
    Scaled,
    controls,
)
from paperlib.evaluation.auditing.report import REQUIRED
from paperlib.evaluation.specs import autoattack_spec
from paperlib.log import progress
from paperlib.models import Gate, Mixture, MixtureOutput, UniformGate
from paperlib.pipeline.stages.audit import PLANTED

EPS = Fraction(3, 20)
TINY = AuditBudget(steps=5, restarts=1, draws=5, iterations=2, queries=5)
BRIEF = replace(TINY, autoattack=False)
RUN = {check.name: check for check in CHECKS}
# Every control with a planted fault, and the check that must find it.
PLANTS = {
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
HONEST = ("undefended", "defended")


class Through(nn.Module):
    """A network seen through a function of it and of the images."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.model, x)


class Fixed(nn.Module):
    """A gate that gives every image the same scores."""

    def __init__(self, *gate_logits: float) -> None:
        super().__init__()
        self.gate_logits = nn.Parameter(torch.tensor(gate_logits, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def hardened(digits: Dataset) -> ToyNet:
    """A small network trained adversarially. Treat as read-only."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ToyNet(width=16)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            for index in torch.randperm(len(digits.train)).split(60):
                x, y = digits.train.images[index], digits.train.labels[index]
                loss = nn.functional.cross_entropy(model(pgd(model, x, y, eps=0.2, step_size=0.05, steps=7)), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return model.eval()


def few(digits: Dataset, n: int = 20) -> tuple[Tensor, Tensor]:
    split = digits.test.first(n)
    return split.images.clone(), split.labels.clone()


def told(report: Report) -> dict[str, Any]:
    """Everything a report says, but for the time it took."""
    return {key: value for key, value in report.json().items() if key != "seconds"}


def finding(report: Report, name: str) -> Any:
    return next(found for found in report.findings if found.name == name)


# -- planted faults and honest networks --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> dict[str, tuple[Control, Report]]:
    """Each control audited once: planted faults with the reduced effort, the honest networks with the whole."""
    ground = Ground(toy, hardened, digits.train, digits.validation, digits.test, 0.15)
    found = {}
    for control in controls(ground):
        how: dict[str, Any] = {"audit_budget": PLANTED if control.expected else AuditBudget(), "label": control.name}
        with torch.random.fork_rng():
            torch.manual_seed(0)  # for the control that is random at test time
            report = audit(images=digits.test.images, labels=digits.test.labels, **control.arguments, **how)
        found[control.name] = control, report
    return found


Audited = Mapping[str, tuple[Control, Report]]


def test_every_control_is_known(audited: Audited) -> None:
    assert {name: control.expected for name, (control, _) in audited.items()} == PLANTS | dict.fromkeys(HONEST, "")


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found_by_its_check(name: str, audited: Audited) -> None:
    control, report = audited[name]
    assert control.expected in report.failed
    assert not report.believed
    assert report.sentence.startswith("Not to be believed:")
    assert f"{control.expected}: {finding(report, control.expected).why}" in report.sentence


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_is_believed_at_full_effort(name: str, audited: Audited) -> None:
    _, report = audited[name]
    assert report.failed == () and report.missing == () and report.believed
    assert report.audit_budget == asdict(AuditBudget())
    assert report.sentence.startswith("Believed")
    assert report.claimed is not None and report.claimed == pytest.approx(report.attacks["pgd-50@0.15"] / 80)


def test_an_undefended_network_is_believed_to_have_no_robustness(audited: Audited) -> None:
    report = audited["undefended"][1]
    assert report.claimed is not None and report.claimed < 0.05


def test_the_worst_case_is_no_better_than_any_attack(audited: Audited) -> None:
    report = audited["defended"][1]
    named = {"fgsm@0.15", "pgd-50@0.15", "pgd-100x5@0.15", "noise-1000@0.15", "pgd-50-margin@0.15", "autoattack@0.15"}
    assert named <= report.attacks.keys()
    assert report.worst is not None and 0.4 * 80 < report.worst <= min(report.attacks.values())


@pytest.mark.parametrize("check", sorted(set(PLANTS.values())))
def test_a_check_that_finds_a_fault_finds_none_where_there_is_none(check: str, audited: Audited) -> None:
    verdicts = {name: finding(report, check).verdict for name, (_, report) in audited.items()}
    assert [verdicts[name] for name in HONEST] == [PASSES, PASSES]
    assert FAILS in verdicts.values()


def test_no_check_fires_at_everything(audited: Audited) -> None:
    whole = [report for name, (_, report) in audited.items() if name != "nan-gate"]
    assert not set.intersection(*(set(report.failed) for report in whole))


def test_nothing_can_be_measured_of_a_broken_network(audited: Audited) -> None:
    report = audited["nan-gate"][1]
    assert (report.claimed, report.worst, report.attacks) == (None, None, {})
    assert {found.verdict for found in report.findings if found.name != "finite"} == {NOT_RUN}
    assert "no accuracy of nan-gate can be measured" in report.sentence


# -- the checklist -----------------------------------------------------------------------------------------------------


def test_the_checklist_has_29_rows_each_once() -> None:
    assert sorted(check.row for check in CHECKS) == list(range(1, 30))
    assert len({check.name for check in CHECKS}) == 29
    assert all(check.question.endswith("?") and check.threshold for check in CHECKS)
    assert set(REQUIRED) | set(PLANTS.values()) <= CHECKS.keys()


# -- foreign modules ---------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A network with buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3]).view(1, 1, 1, 1))
        self.register_buffer("asked", torch.tensor(7))
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(144, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net((x - self.mean) / 0.2))


FOREIGN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (4, 3, 32, 32)),
    "sequential": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 6)), (9, 1, 4, 4)),
    "subclass": (Normalised, (9, 1, 8, 8)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_module_is_audited_and_left_as_it_was(name: str) -> None:
    build, shape = FOREIGN[name]
    model, x = build().eval(), torch.rand(shape)
    frozen, *_ = parameters = list(model.parameters())
    frozen.requires_grad_(False)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    before, images, labels = copy.deepcopy(model), x.clone(), y.clone()
    state = torch.get_rng_state()
    report = audit(model, x, y, "8/255", audit_budget=replace(TINY, steps=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(model, before)
    assert not any(module.training for module in model.modules())
    assert [p.requires_grad for p in parameters] == [p is not frozen for p in parameters]
    assert torch.equal(x, images) and torch.equal(y, labels)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "clean 100.0 %" in finding(report, "one-step").value
    assert {"finite", "steady", "alone", "logits", "gradients"}.isdisjoint(report.failed)


@pytest.mark.parametrize(
    ("name", "audit_budget"),
    [("subclass", TINY), ("sequential", BRIEF), ("sequential", TINY)],
    ids=["folded", "without AutoAttack", "with AutoAttack"],
)
def test_gradients_of_parameters_are_left_as_they_were(name: str, audit_budget: AuditBudget) -> None:
    build, shape = FOREIGN[name]
    model, x = build().eval(), torch.rand(shape)
    first, *others = model.parameters()
    first.grad = torch.ones_like(first)
    audit(model, x, model(x).argmax(dim=1), "8/255", audit_budget=audit_budget)
    assert torch.equal(first.grad, torch.ones_like(first)) and all(p.grad is None for p in others)


def test_other_networks_are_left_as_they_were(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    other = copy.deepcopy(hardened).train()
    audit(toy, *few(digits), EPS, transfer_from={"other": other}, audit_budget=BRIEF)
    assert all(module.training for module in other.modules())
    assert same_state(other, hardened)


def test_eps_may_be_written_in_any_way(toy: ToyNet, digits: Dataset) -> None:
    reports = [audit(toy, *few(digits), eps, audit_budget=BRIEF) for eps in (0.15, "0.15", "3/20", EPS)]
    assert [report.eps for report in reports] == ["0.15"] * 4
    assert all(told(report) == told(reports[0]) for report in reports)


# -- one clear sentence ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "eps of bytes": ({"eps": 8}, "8/255"),
    "eps of nothing": ({"eps": 0}, "eps above 0"),
    "images as bytes": ({"images": torch.zeros(20, 1, 8, 8, dtype=torch.uint8)}, "divide bytes by 255"),
    "pixels to 255": ({"images": torch.full((20, 1, 8, 8), 255.0)}, "divide by 255"),
    "normalised pixels": ({"images": torch.full((20, 1, 8, 8), -0.5)}, r"must lie in \[0, 1\]"),
    "images without an axis": ({"images": torch.zeros(20, 8, 8)}, r"\(N, C, H, W\)"),
    "no images": ({"images": torch.zeros(0, 1, 8, 8), "labels": torch.zeros(0, dtype=torch.int64)}, "one image"),
    "labels as numbers": ({"labels": torch.zeros(20)}, "labels: expected an int64"),
    "labels as a list": ({"labels": [0] * 20}, "labels: expected an int64"),
    "too few labels": ({"labels": torch.zeros(19, dtype=torch.int64)}, "labels: shape"),
    "a class too many": ({"labels": torch.full((20,), 10)}, "labels: 10 to 10 are out of range"),
    "per cent": ({"claimed": 63}, "fraction from 0 to 1.*63/100"),
    "not a number": ({"claimed": math.nan}, "fraction from 0 to 1"),
    "adversarial of other images": ({"adversarial": torch.zeros(19, 1, 8, 8)}, "adversarial: expected images of shape"),
    "the same beside a claim": (
        {"adversarial": torch.zeros(19, 1, 8, 8), "claimed": 0.5},
        "adversarial: expected images of shape",
    ),
    "selected on other images": ({"selected_on": torch.zeros(5, 3, 32, 32)}, "selected_on"),
}


@pytest.mark.parametrize(("wrong", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_input_is_refused_in_one_sentence(
    wrong: dict[str, Any], words: str, toy: ToyNet, digits: Dataset
) -> None:
    images, labels = few(digits)
    given = {"images": images, "labels": labels, "eps": EPS} | wrong
    with pytest.raises(InputError, match=words) as error:
        audit(toy, **given, audit_budget=BRIEF)
    assert "\n" not in str(error.value)


UNFIT: dict[str, tuple[Callable[[ToyNet], Any], str]] = {
    "in training mode": (lambda toy: copy.deepcopy(toy).train(), r"mine: .*training mode.*eval\(\)"),
    "of bytes": (lambda toy: Through(toy, lambda model, x: model((x / 255).round(decimals=2))), r"mine: .*0\.\.255"),
    "of a tuple": (lambda toy: Through(toy, lambda model, x: (model(x), x)), "mine: returned a tuple"),
    "of maps": (lambda toy: Through(toy, lambda model, x: model(x)[:, :, None]), r"mine: returned shape \(20, 10, 1\)"),
    "of one row": (lambda toy: Through(toy, lambda model, x: model(x)[:1]), r"mine: returned shape \(1, 10\)"),
    "that is a function": (lambda toy: toy.forward, "mine: expected a torch.nn.Module, got a method"),
}


@pytest.mark.parametrize(("build", "words"), UNFIT.values(), ids=UNFIT.keys())
def test_an_unfit_model_is_refused_in_one_sentence(
    build: Callable[[ToyNet], Any], words: str, toy: ToyNet, digits: Dataset
) -> None:
    with pytest.raises(InputError, match=words) as error:
        audit(build(toy), *few(digits), EPS, audit_budget=BRIEF, label="mine")
    assert "\n" not in str(error.value)


def test_probabilities_are_told_and_the_audit_goes_on_with_their_logarithm(toy: ToyNet, digits: Dataset) -> None:
    plain, soft = (audit(m, *few(digits, 40), EPS, audit_budget=TINY) for m in (toy, Probabilities(toy).eval()))
    assert "logits" in soft.failed and "logits" not in plain.failed
    assert "probabilities where attacks expect logits" in soft.sentence
    assert soft.attacks == plain.attacks and len(soft.attacks) > 5
    assert (soft.claimed, soft.worst) == (plain.claimed, plain.worst)
    names = [check.name for check in CHECKS]
    for name in names[names.index("logits") + 1 :]:
        assert finding(soft, name) == finding(plain, name)


# -- what a report says ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(toy: ToyNet, digits: Dataset) -> Report:
    return audit(toy, *few(digits), EPS, audit_budget=TINY, label="toy")


def test_a_table_has_a_row_for_each_check_in_order(report: Report) -> None:
    table = report.table()
    assert table["row"].tolist() == list(range(1, 30))
    assert table.columns.tolist() == ["row", "asks", "threshold", "value", "verdict"]
    rows = {check.name: (check.row, check.question, check.threshold) for check in CHECKS}
    assert {name: tuple(row) for name, *row in table.iloc[:, :3].itertuples()} == rows
    assert table.loc["finite", "verdict"] == PASSES and table.loc["sample", "verdict"] == NOTED


def test_a_report_comes_back_from_json(report: Report, audited: Audited) -> None:
    for one in (report, *(known for _, known in audited.values())):
        again = Report.from_json(json.loads(json.dumps(one.json(), allow_nan=False)))
        assert again == one
        assert (again.sentence, again.believed, again.failed) == (one.sentence, one.believed, one.failed)


def test_a_printed_report_ends_with_its_sentence(report: Report, audited: Audited) -> None:
    for one in (report, *(known for _, known in audited.values())):
        *lines, last = str(one).split("\n")
        assert last == one.sentence
        assert [line[15:].split()[0] for line in lines] == [found.name for found in one.findings]


@pytest.mark.parametrize("audit_budget", [BRIEF, TINY], ids=["left out", "cut short"])
def test_without_autoattack_nothing_is_believed_yet(audit_budget: AuditBudget, toy: ToyNet, digits: Dataset) -> None:
    report = audit(toy, *few(digits), EPS, audit_budget=audit_budget)
    assert report.failed == ()
    assert finding(report, "autoattack").verdict == NOT_RUN
    assert report.missing == ("autoattack",) and not report.believed
    assert "not to be believed yet" in report.sentence.lower()


def test_a_known_outcome_is_used_in_place_of_an_attack(toy: ToyNet, digits: Dataset) -> None:
    kept = torch.arange(20) < 17
    known = {name: kept for name in ("pgd-5-margin@0.15", "noise-5@0.15", "fgsm@0.15", "fgsm@16/255")}
    known["pgd-5@128/255"] = torch.ones(20, dtype=torch.bool)
    report = audit(toy, *few(digits), EPS, audit_budget=BRIEF, outcomes=known)
    named = ("pgd-5-margin@0.15", "noise-5@0.15", "fgsm@0.15")
    assert [report.attacks[name] for name in named] == [17, 17, 17]
    assert report.attacks["pgd-5@0.15"] < 10  # not known, so it was run
    assert "best of 5 draws 85.0 %" in finding(report, "noise").value
    assert "128/255: 100.0 %" in finding(report, "falls").value and "falls" in report.failed
    assert all(torch.equal(known[name], kept) for name in named) and len(known) == 5


def test_the_worst_case_takes_in_what_is_known(toy: ToyNet, digits: Dataset) -> None:
    known = {"theirs@0.15": torch.zeros(20), "theirs@0.2": torch.zeros(20), "clean": torch.ones(20)}
    x, y = few(digits)
    assert audit(toy, x, y, "2/255", audit_budget=BRIEF, outcomes=known).worst in (18, 19, 20)
    assert audit(toy, x, y, EPS, audit_budget=BRIEF, outcomes=known).worst == 0


def test_a_seed_settles_everything(hardened: ToyNet, digits: Dataset) -> None:
    reports = [audit(hardened, *few(digits, 40), EPS, audit_budget=TINY, seed=seed) for seed in (3, 3, 4)]
    assert told(reports[0]) == told(reports[1])
    assert [report.seed for report in reports] == [3, 3, 4]
    noise = {finding(report, "one-step").value + finding(report, "smooth").value for report in reports}
    assert len(noise) == 2


def test_an_audit_says_how_far_it_is(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    module = importlib.import_module(
        "paperlib.evaluation.auditing.audit"
    )  # the package shows the function of that name
    monkeypatch.setattr(module, "progress", functools.partial(progress, every=0))
    lines = log_lines
    audit(toy, *few(digits), EPS, audit_budget=BRIEF, label="mine")
    assert len(lines) == 28 and all(line.startswith("audit of mine: ") for line in lines)


# -- each check by itself ----------------------------------------------------------------------------------------------


def on(model: nn.Module, digits: Dataset, n: int = 80, **given: Any) -> AuditContext:
    """A case of digits."""
    return AuditContext(model, digits.test.first(n), EPS, **{"audit_budget": TINY} | given)


def verdict(check: str, context: AuditContext) -> str:
    return RUN[check](context).verdict


FAINT: dict[str, tuple[Callable[[ToyNet], nn.Module], str]] = {
    "a weight": (lambda toy: _with_nan(toy, "head.weight"), "head.weight holds NaN"),
    "a buffer": (lambda toy: _with_nan(toy, "body.1.running_mean"), "body.1.running_mean holds NaN"),
    "an answer": (lambda toy: Through(toy, lambda model, x: model(x) / 0), "answers"),
    "a gate's scores": (
        lambda toy: Mixture([toy, toy], Through(UniformGate(2), lambda gate, x: gate(x) / 0)).eval(),
        "gate scores",
    ),
    "a gradient": (lambda toy: Through(toy, lambda model, x: model(x) + (x - x).sum().sqrt()), "input gradients"),
}


def _with_nan(toy: ToyNet, name: str) -> nn.Module:
    model = copy.deepcopy(toy)
    model.state_dict()[name].view(-1)[0] = math.nan
    return model


@pytest.mark.parametrize(("build", "words"), FAINT.values(), ids=FAINT.keys())
def test_nan_anywhere_is_found(build: Callable[[ToyNet], nn.Module], words: str, toy: ToyNet, digits: Dataset) -> None:
    answer = RUN["finite"](on(build(toy), digits))
    assert answer.verdict == FAILS and words in answer.why
    assert verdict("finite", on(toy, digits)) == PASSES


@pytest.mark.parametrize("build", [lambda toy: Random(toy, 0.04), lambda toy: Through(toy, _drops)])
def test_a_random_answer_is_not_steady(build: Callable[[ToyNet], nn.Module], toy: ToyNet, digits: Dataset) -> None:
    assert verdict("steady", on(build(toy).eval(), digits)) == FAILS
    assert verdict("steady", on(toy, digits)) == PASSES


def _drops(model: nn.Module, x: Tensor) -> Tensor:
    return model(nn.functional.dropout(x, 0.1))


class Reading(nn.Module):
    """A network whose own code asks in which mode it is."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * (self.factor if self.training else 1)


class Auxiliary(nn.Module):
    """A network that answers twice while it is trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return (self.model(x), x) if self.training else self.model(x)


def _half_trained(toy: ToyNet) -> nn.Module:
    model = copy.deepcopy(toy)
    model.body[1].train()
    return model


def _watchful(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).flip(1) if x.requires_grad else model(x)


NOT_ALONE: dict[str, tuple[Callable[[ToyNet], nn.Module], str]] = {
    "mean of the batch": (lambda toy: Neighbours(toy).eval(), "images beside it"),
    "a part in training mode": (_half_trained, r"body.1 is in training mode: call eval()"),
    "the mode is read": (lambda toy: Reading(toy, 0.9).eval(), "reads the training flag"),
    "a gradient is noticed": (lambda toy: Through(toy, _watchful), "notices that it is attacked"),
}


@pytest.mark.parametrize(("build", "words"), NOT_ALONE.values(), ids=NOT_ALONE.keys())
def test_an_answer_that_hangs_on_more_than_its_image_is_found(
    build: Callable[[ToyNet], nn.Module], words: str, toy: ToyNet, digits: Dataset
) -> None:
    answer = RUN["alone"](on(build(toy), digits))
    assert answer.verdict == FAILS and words in answer.why


@pytest.mark.parametrize(
    "build",
    [
        lambda toy: toy,
        lambda toy: Reading(toy, 1.0),
        Auxiliary,
        lambda toy: nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1), toy),
        lambda toy: Mixture([toy, toy], Gate(2, 4, 1, (0.5,), (0.5,))),
    ],
    ids=["batch norm", "a mode without effect", "other outputs while trained", "dropout", "mixture"],
)
def test_an_answer_to_its_image_alone_passes(
    build: Callable[[ToyNet], nn.Module], toy: ToyNet, digits: Dataset
) -> None:
    context = on(build(toy).eval(), digits)
    assert verdict("alone", context) == PASSES
    assert not any(module.training for module in context.model.modules())


def test_probabilities_are_told_from_logits(toy: ToyNet, digits: Dataset) -> None:
    def within(model: nn.Module, x: Tensor) -> Tensor:
        return torch.sigmoid(model(x))  # in [0, 1], but no distribution

    def summing_to_one(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) - model(x).mean(dim=1, keepdim=True) + 0.1

    assert verdict("logits", on(Probabilities(toy), digits)) == FAILS
    for function in (within, summing_to_one, lambda model, x: model(x), lambda model, x: model(x).log_softmax(dim=1)):
        assert verdict("logits", on(Through(toy, function), digits)) == PASSES


def _binary(model: nn.Module, x: Tensor) -> Tensor:
    return model((x - 0.5).sign())


@pytest.mark.parametrize(
    "build",
    [Quantised, lambda toy: Through(toy, _binary), lambda toy: Scaled(toy, 1000), lambda toy: Through(toy, _cut)],
    ids=["rounded", "signs", "too sure", "cut off"],
)
def test_vanished_gradients_are_found(build: Callable[[ToyNet], nn.Module], toy: ToyNet, digits: Dataset) -> None:
    assert verdict("gradients", on(build(toy), digits)) == FAILS
    assert verdict("gradients", on(toy, digits)) == PASSES


def _cut(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.detach())


def test_a_rough_loss_is_found(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    def ripples(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) * (1 + torch.sin(1e5 * x.flatten(1).sum(dim=1, keepdim=True)))

    assert verdict("smooth", on(Through(toy, ripples), digits)) == FAILS
    assert [verdict("smooth", on(model, digits)) for model in (toy, hardened)] == [PASSES, PASSES]


def test_too_few_steps_have_not_converged(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    for steps, expected in ((2, FAILS), (50, PASSES)):
        assert verdict("converged", on(hardened, digits, audit_budget=replace(TINY, steps=steps))) == expected


def test_images_made_for_this_very_model_are_on_target(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    for victim, expected in ((toy, PASSES), (hardened, FAILS)):
        made = pgd(victim, x, y, eps=EPS, step_size=EPS / 4, steps=20)
        report = audit(toy, x, y, EPS, adversarial=made, audit_budget=BRIEF)
        assert finding(report, "target").verdict == expected
        assert finding(report, "budget").verdict == PASSES


def test_the_images_that_are_looked_at_are_those_that_are_counted(hardened: ToyNet, digits: Dataset) -> None:
    cases = [on(hardened, digits, seed=seed, audit_budget=replace(TINY, steps=1)) for seed in range(4)]
    lost = [~context.right(context.pgd) for context in cases]
    fooled = [context.headline.fooled for context in cases]
    assert all(torch.equal(one, other) for one, other in zip(lost, fooled, strict=True))
    assert any(not torch.equal(one, fooled[0]) for one in fooled)


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        (lambda x: (x + 0.15).clamp(0, 1), PASSES),
        (lambda x: (x + 0.16).clamp(0, 1), FAILS),
        (lambda x: x - 0.1, FAILS),
        (lambda x: x + 0.1, FAILS),
    ],
    ids=["within", "too far", "below 0", "above 1"],
)
def test_adversarial_images_keep_to_the_ball_and_to_the_range(
    move: Callable[[Tensor], Tensor], expected: str, toy: ToyNet, digits: Dataset
) -> None:
    moved = move(digits.test.images)
    answer = RUN["budget"](on(toy, digits, adversarial=moved, claimed=0.5))
    assert answer.verdict == expected
    assert (expected == FAILS) is ("the images handed in leave the ball" in answer.why)


class Passing(nn.Module):
    """Sure of class 0 for any pixel, less so for brighter ones, and wrong between 0.6 and 0.64."""

    def forward(self, x: Tensor) -> Tensor:
        pixel = x.flatten(1)
        band = (pixel > 0.6) & (pixel < 0.64)
        return torch.cat([3 - pixel - 9 * band, *[0 * pixel] * 3], dim=1)


def test_a_success_lost_at_the_last_step_is_noted(toy: ToyNet, digits: Dataset) -> None:
    grey = Split(torch.full((40, 1, 1, 1), 0.5), torch.zeros(40, dtype=torch.int64))
    answer = RUN["any-iterate"](AuditContext(Passing(), grey, EPS, replace(TINY, steps=20)))
    assert answer.verdict == NOTED and "last iterates alone" in answer.why
    assert verdict("any-iterate", on(toy, digits)) == PASSES


@pytest.mark.parametrize(
    ("shared", "expected"), [(None, NOT_RUN), (0, PASSES), (1, FAILS), (80, FAILS)], ids=lambda value: str(value)
)
def test_a_checkpoint_chosen_on_the_test_images_is_found(
    shared: int | None, expected: str, toy: ToyNet, digits: Dataset
) -> None:
    chosen = None if shared is None else torch.cat([digits.validation.images, digits.test.images[:shared]])
    assert verdict("selection", on(toy, digits, selected_on=chosen)) == expected


def test_one_shared_image_in_a_hundred_is_let_pass() -> None:
    images = torch.arange(200.0).div(200).view(200, 1, 1, 1)
    for shared, expected in ((2, PASSES), (3, FAILS)):
        context = AuditContext(Linear(torch.ones(4, 1)), Split(images, torch.zeros(200, dtype=torch.int64)), EPS)
        assert verdict("selection", replace(context, selected_on=images[:shared])) == expected


# -- checks that count -------------------------------------------------------------------------------------------------

BUDGETS = [budget_text(eps) for eps in CURVE]


def counted(counts: Mapping[str, int], n: int = 100, **given: Any) -> AuditContext:
    """A case whose outcomes are known: how many of ``n`` images are right under each attack, the first ones always."""
    model = Linear(torch.linspace(-1, 1, 10).view(10, 1))
    split = Split(torch.linspace(0, 1, n).view(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64))
    known = {name: torch.arange(n) < count for name, count in counts.items()}
    return AuditContext(model, split, EPS, **{"audit_budget": TINY, "outcomes": known} | given)


def curve() -> dict[str, int]:
    """An accuracy that falls from 95 to 10 images, the same by one step and by many."""
    falling = dict(zip(["0.15", *BUDGETS], [40, 90, 85, 80, 70, 60, 30, 10], strict=True))
    return {"clean": 95} | {f"{kind}@{eps}": n for kind in ("fgsm", "pgd-5") for eps, n in falling.items()}


LONG = {name.replace("pgd-5@", "pgd-50@"): count for name, count in curve().items()}
COUNTS: dict[str, tuple[str, dict[str, int], dict[str, Any], str]] = {
    "many steps as good as one": ("iterations", curve(), {}, PASSES),
    "two images more by one step": ("iterations", curve() | {"fgsm@8/255": 78}, {}, PASSES),
    "three images more by one step": ("iterations", curve() | {"fgsm@8/255": 77}, {}, FAILS),
    "falling": ("falls", curve(), {}, PASSES),
    "nearly to chance": ("falls", curve() | {"pgd-5@128/255": 12}, {}, PASSES),
    "not to chance": ("falls", curve() | {"pgd-5@128/255": 13}, {}, FAILS),
    "rising": ("falls", curve() | {"pgd-5@0.15": 63}, {}, FAILS),
    "rising by luck": ("falls", curve() | {"pgd-5@0.15": 62}, {}, PASSES),
    "more steps win": ("converged", curve() | {"pgd-10@0.15": 0}, {}, FAILS),
    "more steps win nothing": ("converged", curve() | {"pgd-5@0.15": 2, "pgd-10@0.15": 0}, {}, PASSES),
    "the loss still rises": ("converged", curve() | {"pgd-10@0.15": 40}, {}, FAILS),
    "the loss has settled": (
        "converged",
        LONG | {"pgd-100@0.15": 40},
        {"audit_budget": replace(TINY, steps=50)},
        PASSES,
    ),
    "robust to one step alone": ("one-step", curve() | {"fgsm@0.15": 80, "pgd-5@0.15": 5}, {}, FAILS),
    "robust to one step in part": ("one-step", curve() | {"fgsm@0.15": 80, "pgd-5@0.15": 45}, {}, PASSES),
    "undefended": ("one-step", curve() | {"fgsm@0.15": 25, "pgd-5@0.15": 0}, {}, PASSES),
    "one step heals": ("one-step", curve() | {"clean": 37}, {}, FAILS),
    "on target": ("target", curve(), {"claimed": 0.5}, PASSES),
    "off target": ("target", curve(), {"claimed": 0.52}, FAILS),
    "noise worse": ("noise", curve() | {"noise-5@0.15": 60}, {}, PASSES),
    "noise as good": ("noise", curve() | {"noise-5@0.15": 38}, {}, PASSES),
    "noise better": ("noise", curve() | {"noise-5@0.15": 37}, {}, FAILS),
    "margin 5 points better": ("loss", curve() | {"pgd-5-margin@0.15": 35, "pgd-5-dlr@0.15": 40}, {}, PASSES),
    "margin 6 points better": ("loss", curve() | {"pgd-5-margin@0.15": 34, "pgd-5-dlr@0.15": 40}, {}, FAILS),
    "dlr better than the claim": (
        "loss",
        curve() | {"pgd-5-margin@0.15": 40, "pgd-5-dlr@0.15": 38},
        {"claimed": 0.44},
        FAILS,
    ),
    "all attacks together": ("worst-case", curve() | {"square-5@0.15": 31}, {}, PASSES),
    "all attacks together win": ("worst-case", curve() | {"square-5@0.15": 30}, {}, FAILS),
    "a claim above the worst case": ("worst-case", curve(), {"claimed": 0.5}, FAILS),
    "999 images": ("sample", {"clean": 900}, {"n": 999}, NOTED),
    "1000 images": ("sample", {"clean": 900}, {"n": 1000}, PASSES),
}


@pytest.mark.parametrize(("check", "counts", "given", "expected"), COUNTS.values(), ids=COUNTS.keys())
def test_a_check_counts(check: str, counts: dict[str, int], given: dict[str, Any], expected: str) -> None:
    assert verdict(check, counted(counts, **given)) == expected


def test_the_worst_case_is_that_of_each_image() -> None:
    context = counted(curve())
    context.known |= {"even@0.15": torch.arange(100) % 2 == 0, "even@0.2": torch.zeros(100, dtype=torch.bool)}
    assert torch.equal(context.surviving(), (torch.arange(100) < 40) & (torch.arange(100) % 2 == 0))
    assert verdict("worst-case", context) == FAILS


@pytest.mark.parametrize(("left", "expected"), [(40, PASSES), (31, PASSES), (30, FAILS)])
def test_autoattack_is_compared_with_the_claim(left: int, expected: str) -> None:
    won_by = torch.where(torch.arange(100) < left, -1, 1)
    known = curve() | {"autoattack@0.15": left}
    assert verdict("autoattack", counted(known, audit_budget=AuditBudget(), won_by=won_by, claimed=0.4)) == expected


def test_autoattack_cut_short_is_not_autoattack() -> None:
    name = autoattack_spec(EPS, TINY.iterations, TINY.queries).name
    won_by = torch.full((100,), -1)
    answer = RUN["autoattack"](counted(curve() | {name: 90}, won_by=won_by))
    assert answer.verdict == NOT_RUN and "cut short" in answer.why
    assert verdict("autoattack", counted(curve(), audit_budget=BRIEF)) == NOT_RUN


@pytest.mark.parametrize(("by_square", "expected"), [(2, PASSES), (3, FAILS)])
def test_square_counts_where_no_gradient_attack_wins(by_square: int, expected: str) -> None:
    won_by = torch.full((100,), -1)
    won_by[90:] = 4  # lost to the gradient attacks of the claim as well
    won_by[:by_square] = 4
    assert verdict("black-box", counted(curve(), won_by=won_by)) == expected
    alone = counted(curve() | {"square-5@0.15": 100}, audit_budget=BRIEF)
    alone.known["square-5@0.15"] = torch.arange(100) >= by_square
    assert verdict("black-box", alone) == expected


@pytest.mark.parametrize(
    ("shape", "classes", "eps", "left", "expected"),
    [
        ((3, 32, 32), 10, "8/255", 60, FAILS),
        ((3, 32, 32), 10, "8/255", 59, PASSES),
        ((3, 32, 32), 10, "4/255", 60, NOT_APPLICABLE),
        ((3, 32, 32), 9, "8/255", 60, NOT_APPLICABLE),
        ((1, 32, 32), 10, "8/255", 60, NOT_APPLICABLE),
    ],
)
def test_too_good_is_known_for_cifar10_alone(
    shape: tuple[int, ...], classes: int, eps: str, left: int, expected: str
) -> None:
    split = Split(torch.zeros(100, *shape), torch.zeros(100, dtype=torch.int64))
    known = {"clean": torch.ones(100, dtype=torch.bool), f"pgd-5@{eps}": torch.arange(100) < left}
    context = AuditContext(Linear(torch.zeros(classes, math.prod(shape))), split, Fraction(eps), TINY, outcomes=known)
    assert verdict("too-good", context) == expected


# -- networks of experts -----------------------------------------------------------------------------------------------


def test_a_network_without_gate_has_none_of_a_mixtures_faults(toy: ToyNet, digits: Dataset) -> None:
    context = on(toy, digits)
    names = ("experts", "gate", "past-gate", "choice", "collapse", "weak-link", "compared")
    assert [verdict(name, context) for name in names] == [NOT_APPLICABLE] * 7


@pytest.mark.parametrize(
    ("gate_logits", "expected"),
    [((9, 0, 0), FAILS), ((0, 0, -9), NOTED), ((0, 0, 0), PASSES), ((2, 0, 0), PASSES)],
    ids=["one heard", "one unheard", "even", "uneven"],
)
def test_a_collapsed_gate_is_found(gate_logits: tuple[float, ...], expected: str, toy: ToyNet, digits: Dataset) -> None:
    answer = RUN["collapse"](on(Mixture([toy] * 3, Fixed(*gate_logits)).eval(), digits, 10))
    assert answer.verdict == expected
    assert (expected == FAILS) is ("expert 0 answers for all" in answer.why)


def chooser(turns_at: float) -> tuple[Mixture, Split]:
    """An expert that no attack within reach fools and one that is always wrong; the first pixel chooses."""
    sure = Linear(torch.tensor([[0.0, 1.0], *[[0.0, 0.0]] * 3]), torch.tensor([5.0, 0, 0, 0]))
    wrong = Linear(torch.zeros(4, 2), torch.tensor([0.0, 5, 0, 0]))
    gate = Linear(torch.tensor([[0.0, 0.0], [20.0, 0.0]]), torch.tensor([0.0, -20 * turns_at]))
    grey = Split(torch.full((60, 1, 1, 2), 0.5), torch.zeros(60, dtype=torch.int64))
    return Mixture([sure, wrong], gate, top1=True).eval(), grey


@pytest.mark.parametrize(("turns_at", "expected"), [(0.62, FAILS), (0.9, PASSES)])
def test_a_choice_that_hides_a_weak_expert_is_found(turns_at: float, expected: str) -> None:
    model, grey = chooser(turns_at)
    context = AuditContext(model, grey, EPS, TINY)
    assert context.accuracy(context.pgd) > 0.7  # the choice lets no gradient through
    assert verdict("choice", context) == expected
    assert verdict("gate", context) == expected
    model.top1 = False
    assert verdict("choice", AuditContext(model, grey, EPS, TINY)) == NOT_APPLICABLE


class Sure(Mixture):
    """A mixture so sure of its answers that cross-entropy has no gradient left; its experts are not."""

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        seen = super().forward_with_experts(x)
        return replace(seen, logits=1e4 * seen.logits)


@pytest.mark.parametrize(("kind", "expected"), [(Sure, FAILS), (Mixture, PASSES)])
def test_experts_that_fall_where_their_mixture_stands_are_found(
    kind: type[Mixture], expected: str, toy: ToyNet, digits: Dataset
) -> None:
    context = on(kind([toy, toy], UniformGate(2)).eval(), digits)
    assert [verdict(name, context) for name in ("experts", "past-gate", "transfer")] == [expected] * 3


def test_a_weak_benign_expert_is_noted_and_does_not_fire(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    mixture = Mixture([toy, hardened], UniformGate(2)).eval()
    found = [verdict("weak-link", on(mixture, digits, benign=benign)) for benign in (0, 1, None)]
    assert found == [NOTED, PASSES, NOT_APPLICABLE]


def test_a_gate_that_adds_nothing_is_noted_and_does_not_fire(toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    even, wise = (Mixture([toy, hardened], gate).eval() for gate in (UniformGate(2), Fixed(-3.0, 3.0)))
    assert [verdict("compared", on(model, digits)) for model in (even, wise)] == [NOTED, PASSES]


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_a_plain_average_mixes_as_the_model_mixes(mixing: str, toy: ToyNet, hardened: ToyNet, digits: Dataset) -> None:
    x = digits.test.images
    even = Mixture([toy, hardened], UniformGate(2), mixing).eval()
    gated = Mixture([toy, hardened], Fixed(-3.0, 3.0), mixing).eval()
    with torch.no_grad():
        assert torch.equal(_Other(even, None)(x), even(x))
        assert torch.equal(_Other(gated, None)(x), even(x))
        assert torch.allclose(_Other(gated, 0)(x).softmax(dim=1), hardened(x).softmax(dim=1), atol=1e-6)
    value = RUN["compared"](on(even, digits)).value
    ours, average = re.findall(r"([\d.]+) %", value)
    assert ours == average


def test_examples_of_other_networks_are_tried_where_one_is_given(
    toy: ToyNet, hardened: ToyNet, digits: Dataset
) -> None:
    sure = Scaled(toy, 1000).eval()
    assert verdict("transfer", on(sure, digits)) == NOT_RUN
    assert verdict("transfer", on(sure, digits, transfer_from={"other": hardened, "twin": toy})) == FAILS
    assert verdict("transfer", on(toy, digits, transfer_from={"other": hardened})) == PASSES


# -- numbers that go missing on the way --------------------------------------------------------------------------------


def _nan_off_the_grid(model: nn.Module, x: Tensor) -> Tensor:
    moved = (16 * x).frac().flatten(1).any(dim=1, keepdim=True)  # digits have 17 shades of grey
    return torch.where(moved, math.nan, model(x))


@pytest.mark.parametrize("claimed", [0.9, None])
def test_nan_in_the_ball_is_a_finding(claimed: float | None, toy: ToyNet, digits: Dataset) -> None:
    report = audit(Through(toy, _nan_off_the_grid), *few(digits), EPS, claimed=claimed, audit_budget=TINY)
    assert finding(report, "finite").verdict == PASSES
    assert {"iterations", "falls", "noise"} <= set(report.failed) and not report.believed
    assert "NaN or infinity" in report.sentence


def test_nan_among_images_handed_in_is_found(toy: ToyNet, digits: Dataset) -> None:
    handed_in = digits.test.images.clone()
    handed_in[3, 0, 2, 2] = math.nan
    assert verdict("budget", on(toy, digits, adversarial=handed_in, claimed=0.5)) == FAILS


# -- what any module may ask for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("audit_budget", [TINY, BRIEF], ids=["whole", "without AutoAttack"])
def test_a_network_of_few_classes_is_audited(
    audit_budget: AuditBudget, classes: int, hardened: ToyNet, digits: Dataset
) -> None:
    x, y = digits.test.images, digits.test.labels
    model = Through(hardened, lambda model, x: model(x)[:, :classes])
    report = audit(model, x[y < classes], y[y < classes], EPS, audit_budget=audit_budget)
    assert report.worst is not None and finding(report, "autoattack").verdict == NOT_RUN
    assert finding(report, "black-box").verdict == PASSES


@pytest.mark.parametrize("function", [_cut, lambda model, x: model(x).detach()], ids=["from pixels", "from answers"])
def test_a_network_cut_off_from_its_gradients_is_a_finding(
    function: Callable[[nn.Module, Tensor], Tensor], toy: ToyNet, digits: Dataset
) -> None:
    report = audit(Through(toy, function), *few(digits), EPS, audit_budget=BRIEF)
    assert "gradients" in report.failed


def _strict(model: nn.Module, x: Tensor) -> Tensor:
    if bool((x > 1).any()):
        raise ValueError("pixels above 1")
    return model(x)


def test_a_network_that_refuses_other_pixels_is_audited(toy: ToyNet, digits: Dataset) -> None:
    strict, plain = (audit(m, *few(digits), EPS, audit_budget=BRIEF) for m in (Through(toy, _strict), toy))
    assert strict.attacks == plain.attacks


def _in_place(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.mul_(0.5).mul_(2))


def test_a_network_that_normalises_in_place_is_audited_on_the_images_given(toy: ToyNet, digits: Dataset) -> None:
    x, y = few(digits)
    audit(Through(toy, _in_place), x, y, EPS, audit_budget=BRIEF)
    assert torch.equal(x, few(digits)[0])


@pytest.mark.parametrize("wrapped", [lambda toy: toy, lambda toy: Probabilities(toy)], ids=["logits", "probabilities"])
def test_a_part_in_training_mode_is_left_as_it_was(
    wrapped: Callable[[nn.Module], nn.Module], toy: ToyNet, digits: Dataset
) -> None:
    part = _half_trained(toy)
    model = wrapped(part)
    model.training = False
    audit(model, *few(digits), EPS, audit_budget=BRIEF)
    assert part.get_submodule("body.1").training
    assert same_state(part, toy)


class Norm(nn.BatchNorm2d):
    """Batch norm by another name."""


OWN_STATE: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: nn.Sequential(spectral_norm(nn.Conv2d(1, 4, 3)), nn.Flatten(), nn.Linear(144, 10)),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), Norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
}


@pytest.mark.parametrize("build", OWN_STATE.values(), ids=OWN_STATE.keys())
def test_state_that_only_training_moves_is_left_as_it_was(build: Callable[[], nn.Module], digits: Dataset) -> None:
    model = build().eval()
    before = copy.deepcopy(model.state_dict())
    report = audit(model, *few(digits), EPS, audit_budget=BRIEF)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "alone" not in report.failed


def test_noise_of_a_network_leaves_the_global_generator_alone(toy: ToyNet, digits: Dataset) -> None:
    state = torch.get_rng_state()
    audit(Random(toy, 0.04).eval(), *few(digits), EPS, audit_budget=BRIEF)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_images_are_asked_at_once_than_the_batch_size(toy: ToyNet, digits: Dataset) -> None:
    asked: list[int] = []
    model = copy.deepcopy(toy)
    model.register_forward_hook(lambda module, args, output: asked.append(len(args[0])))
    audit(model, *few(digits), EPS, batch_size=16, audit_budget=BRIEF)
    assert max(asked) <= 16


@pytest.mark.parametrize(
    "wrong",
    [
        {"selected_on": torch.zeros(5, 3, 8, 8)},
        {"adversarial": torch.zeros(5, 1, 8, 8), "claimed": 0.5},
        {"known": {"pgd-5@0.15": torch.ones(5, dtype=torch.bool)}},
        {"benign": 2},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_input_is_refused_before_any_attack(wrong: dict[str, Any], toy: ToyNet, digits: Dataset) -> None:
    model = Mixture([copy.deepcopy(toy), toy], UniformGate(2)).eval()
    asked: list[int] = []
    model.experts.register_forward_hook(lambda module, args, output: asked.append(len(args[0])))
    with pytest.raises(InputError):
        audit(model, *few(digits), EPS, **wrong, audit_budget=BRIEF)
    assert len(asked) < 6


def test_a_known_autoattack_is_not_run_again(hardened: ToyNet, digits: Dataset) -> None:
    known = {"autoattack-2-5@0.15": torch.zeros(20, dtype=torch.bool)}
    report = audit(hardened, *few(digits), EPS, audit_budget=TINY, outcomes=known)
    assert report.attacks["autoattack-2-5@0.15"] == 0
