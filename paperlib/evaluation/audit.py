"""The audit: every known way a robust accuracy goes wrong, asked of any network, and a sentence on what to believe."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from types import NoneType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import as_images, as_labels, check_settings, check_shape, check_type, check_whole, outside_graph
from paperlib.attacks.early_stopping import misclassified
from paperlib.attacks.inputs import adapt, check_module, look, no_gradient
from paperlib.config.budgets import Budget, as_fraction, budget_text
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.evaluation.case import Case, Effort, interval, share
from paperlib.evaluation.checklist import PITFALLS, Pitfall
from paperlib.evaluation.pitfalls import FIRES, NOT_RUN, Answer
from paperlib.models.adapters import ZeroGradient
from paperlib.models.modes import float32_by_default, has_modes, outside_inference_mode
from paperlib.progress import Say, meter, say, silent
from paperlib.seeds import hash_seed

REQUIRED = ("autoattack",)  # a number that has not faced it is not believed yet


@dataclass(frozen=True)
class Finding:
    """One check: what it asks, what it allows, its verdict, the numbers behind it, and, unless it passed, why."""

    row: int
    name: str
    asks: str
    threshold: str
    verdict: str
    value: str
    why: str


@dataclass(frozen=True)
class Report:
    """What an audit found."""

    label: str
    n: int
    eps: str
    seed: int
    effort: dict[str, Any]
    claimed: float | None  # accuracy under attack, as a fraction; None where nothing can be measured
    claim: str  # what it rests on
    attacks: dict[str, int]  # images right under each attack at this eps
    worst: int | None  # images right under all of them; None where nothing can be measured
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def fired(self) -> tuple[str, ...]:
        """The names of the checks that speak against the number."""
        return tuple(finding.name for finding in self.findings if finding.verdict == FIRES)

    @property
    def missing(self) -> tuple[str, ...]:
        """Required checks that were not run."""
        return tuple(f.name for f in self.findings if f.verdict == NOT_RUN and f.name in REQUIRED)

    @property
    def believed(self) -> bool:
        """Whether nothing speaks against the accuracy claimed, and what must be asked has been asked."""
        return not self.fired and not self.missing and self.worst is not None

    @property
    def sentence(self) -> str:
        """Whether the accuracy can be believed, and why not."""
        whys = "; ".join(f"{f.name}: {f.why}" for f in self.findings if f.verdict == FIRES)
        if self.worst is None:
            return f"Not to be believed: no accuracy of {self.label} can be measured. {whys}."
        left, claimed = self._left, f"{100 * (self.claimed or 0):.1f} % for {self.label} ({self.claim})"
        if self.fired:
            return f"Not to be believed: {claimed}. {left}. {whys}."
        if self.missing:
            return f"Not to be believed yet: {claimed}. {left}. Not run: {', '.join(self.missing)}."
        smoke = ", as far as fewer than 1,000 images tell" if self.n < 1000 else ""
        return f"Believed{smoke}: {claimed}. {left}, and no check speaks against it."

    @property
    def _left(self) -> str:
        assert self.worst is not None
        low, high = interval(torch.arange(self.n) < self.worst)
        share = f"{100 * self.worst / self.n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        return f"The worst case of {len(self.attacks)} attacks at eps {self.eps} leaves {share} of n = {self.n}"

    def table(self) -> pd.DataFrame:
        """One row per check, in the order of the checklist."""
        frame = pd.DataFrame([asdict(finding) for finding in self.findings])
        return frame.rename(columns={"name": "check"}).set_index("check")[
            ["row", "asks", "threshold", "value", "verdict"]
        ]

    def json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        told: dict[str, Any] = {"believed": self.believed, "sentence": self.sentence, **asdict(self)}
        return {**told, "findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Report:
        """The report that `json` was made of."""
        told = {key: value for key, value in table.items() if key not in ("believed", "sentence")}
        return cls(**{**told, "findings": tuple(Finding(**finding) for finding in told["findings"])})

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = [f"{f.verdict:<14} {f.name:<{width}}  {f.value or f.why}" for f in self.findings]
        return "\n".join([*lines, self.sentence])


@outside_inference_mode()
@float32_by_default()
@tensor_float32(False)
def audit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Budget,
    *,
    claimed: float | Tensor | None = None,
    adversarial: Tensor | None = None,
    transfer_from: Mapping[str, nn.Module] | nn.Module | None = None,
    selected_on: Tensor | None = None,
    benign: int | None = None,
    effort: Effort = Effort(),  # noqa: B008 - frozen
    seed: int = 0,
    batch_size: int = 250,
    known: Mapping[str, Tensor] | None = None,
    won_by: Tensor | None = None,
    label: str = "the model",
    say: Say = say,
) -> Report:
    """Ask every check of `paperlib.evaluation.pitfalls` of a network, and say whether its robustness can be believed.

    Nothing is computed in TensorFloat-32. Where memory does not suffice, fewer images are asked at once than
    ``batch_size``.

    Args:
        model: any module from pixels (N, C, H, W) in [0, 1] to logits (N, classes), in evaluation mode. Nothing in it
            changes. A mixture with a method ``evidence`` (see `paperlib.attacks.mixture`) is also attacked from inside.
            See `paperlib.attacks.inputs` for what is taken and what is refused; that logits have no gradient is a
            finding here.
        images, labels: what it is judged on; (N, C, H, W) in [0, 1] of any float dtype and (N,) int64.
        eps: L-infinity budget, a float or text such as ``"8/255"``.
        claimed: the accuracy claimed under attack, as a fraction or a tensor of one; by default what PGD leaves.
        adversarial: the adversarial images behind the claim, of any float dtype, if it is not our own PGD. Of half
            precision, what rounding moved out of the ball or of [0, 1] is moved back.
        transfer_from: other networks of the same classes to craft examples on, by name, or a single one.
        selected_on: the images that chose the checkpoint.
        benign: which expert of a mixture was trained on clean images alone.
        effort: how hard to try.
        known, won_by: outcomes (N,) already there, by the name of the attack, and which part of AutoAttack won.

    Raises:
        InputError: images, labels or settings out of range; a model in training mode, or one that wants other pixels.
    """
    started = time.monotonic()
    batch_size = check_whole("batch_size", batch_size)
    budget = as_fraction(eps)
    check_settings(seed=seed, say=say)
    check_type("effort", effort, Effort, "an Effort")
    check_type("benign", benign, (Integral, NoneType), "the number of an expert or None")
    check_type("known", known, (Mapping, NoneType), "outcomes by the name of the attack")
    seed = int(seed)
    images = as_images(images).float().contiguous().clone()  # no model ever sees the caller's own
    split = Split(images, as_labels(labels, images))
    if len(images) == 0 or budget == 0:
        raise InputError("audit: needs at least one image and an eps above 0")
    claimed = _as_claim(claimed)
    adversarial = _as_adversarial(adversarial, split, float(budget))
    _check_claims(split, selected_on, known or {}, won_by)
    with torch.random.fork_rng():  # the model may draw numbers of its own, the same ones in every audit of this seed
        torch.manual_seed(hash_seed(seed, "before the checks"))
        model, classes = _admitted(model, split, label, batch_size)
        surrogates = _surrogates(transfer_from, images, classes)
        case = Case(
            model, split, budget, effort, claimed, adversarial, surrogates, selected_on, benign,
            {name: kept.bool().to(images.device) for name, kept in (known or {}).items()}, won_by, seed, batch_size,
            label, silent,
        )  # fmt: skip
        if benign is not None and case.mixture and not 0 <= benign < case.evidence("scores", case.x[:1]).shape[1]:
            raise InputError(f"benign={benign}: the mixture has no such expert")
        return _report(case, started, say)


def _report(case: Case, started: float, say: Say) -> Report:
    """Ask everything, and gather the answers."""
    claim = "as claimed"
    if case.claimed is None and case.adversarial is not None:
        right = case.logits(case.adversarial).argmax(dim=1) == case.y
        case.claimed, claim = share(right), "on the adversarial images handed in"
    findings: list[Finding] = []
    with meter(len(PITFALLS), f"audit of {case.label}", say, unit="checks") as reached:
        for pitfall in PITFALLS:
            if any(f.name == "finite" and f.verdict == FIRES for f in findings):
                answer = Answer(NOT_RUN, "", "nothing can be measured")
            else:
                answer, case = _asked(pitfall, case)
            findings.append(_finding(pitfall, answer))
            reached(len(findings))
    whole = findings[0].verdict != FIRES
    if whole and case.claimed is None:
        claim = f"under PGD-{case.effort.steps}"
        try:
            case.claimed = case.accuracy(case.pgd)
        except NotFiniteError:  # told by the checks that met it
            whole = False
    return Report(
        label=case.label,
        n=case.n,
        eps=budget_text(case.eps),
        seed=case.seed,
        effort=asdict(case.effort),
        claimed=case.claimed,
        claim=claim,
        attacks={name: int(case.known[name].sum()) for name in case.attacks()} if whole else {},
        worst=int(case.standing().sum()) if whole else None,
        findings=tuple(sorted(findings, key=lambda finding: finding.row)),
        seconds=round(time.monotonic() - started, 3),
    )


def _asked(pitfall: Pitfall, case: Case) -> tuple[Answer, Case]:
    """The answer of one check, and the case to go on with: logits in place of probabilities."""
    torch.manual_seed(hash_seed(case.seed, pitfall.name))  # whatever the checks before it made the model draw
    try:
        answer = pitfall.check(case)
    except NotFiniteError as error:  # weights and clean answers are finite, but an attack met NaN on its way
        return Answer(FIRES, "", str(error)), case
    if pitfall.name == "logits" and answer.verdict == FIRES:
        case = replace(case, model=Logarithm(case.model), known={}, won_by=None)
    return answer, case


def _finding(pitfall: Pitfall, answer: Answer) -> Finding:
    return Finding(pitfall.row, pitfall.name, pitfall.asks, pitfall.threshold, answer.verdict, answer.value, answer.why)


class Logarithm(nn.Module):
    """A model of probabilities as one of logits: log(p)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.model(x)
        return probabilities.clamp_min(1e-12).log()


def _as_claim(claimed: float | Tensor | None) -> float | None:
    if claimed is None:
        return None
    try:
        if isinstance(claimed, str | bool):
            raise TypeError
        number = float(claimed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"claimed={claimed!r}: expected one number, a fraction from 0 to 1") from error
    if not 0 <= number <= 1:
        raise InputError(f"claimed={number:g}: an accuracy is a fraction from 0 to 1; did you mean {number:g}/100?")
    return number


def _as_adversarial(adversarial: Tensor | None, split: Split, eps: float) -> Tensor | None:
    """The images behind the claim in float32; whether they keep to the ball is for a check to find."""
    if adversarial is None:
        return None
    x = split.images
    given = outside_graph(check_shape("adversarial", adversarial, tuple(x.shape)))
    rounding = torch.finfo(given.dtype).eps / 2  # of a pixel of 1
    exact = given.to(x)
    if given.dtype not in (torch.float16, torch.bfloat16):
        return exact
    inside = torch.minimum(torch.maximum(exact, x - eps), x + eps).clamp(0, 1)
    return torch.where((inside - exact).abs() <= rounding, inside, exact)


def _check_claims(split: Split, selected_on: Tensor | None, known: Mapping[str, Tensor], won_by: Tensor | None) -> None:
    """Require that what is said of the images fits them."""
    if selected_on is not None:
        check_shape("selected_on", selected_on, ("M", *split.images.shape[1:]))
    outcomes = known if won_by is None else {**known, "won_by": won_by}
    for name, kept in outcomes.items():
        if not isinstance(kept, Tensor) or kept.shape != (len(split),):
            raise InputError(f"known outcome {name!r}: expected a tensor ({len(split)},), one value per image")


def _surrogates(given: Mapping[str, nn.Module] | nn.Module | None, x: Tensor, classes: int) -> dict[str, nn.Module]:
    """Other networks by name, each of as many classes as the model."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        check_module(given, "transfer_from")
    found: dict[str, nn.Module] = {}
    for name, model in (given if isinstance(given, Mapping) else {"another network": given}).items():
        what = f"transfer_from {name!r}"
        traits = look(check_module(model, what), x, gradient=True, name=what)
        if not traits.has_gradient:
            raise no_gradient(what)
        if traits.classes != classes:
            raise InputError(f"{what}: knows {traits.classes} classes, the model {classes}")
        found[name] = adapt(model, traits)
    return found


def _admitted(model: nn.Module, split: Split, label: str, batch_size: int) -> tuple[nn.Module, int]:
    """A copy to be audited of a model in evaluation mode that wants pixels in [0, 1], and its number of classes."""
    model = _copy_of(check_module(model, label), label)
    traits = look(model, split.images, gradient=True, name=label)
    model = adapt(model, traits)
    if not traits.has_gradient:
        model = ZeroGradient(model)
    x, y = split.images, split.labels
    clean, scaled = _right(model, x, y, batch_size, label), 0.0
    if clean is not None and clean < 0.5:
        with suppress(Exception):  # it may refuse such pixels
            scaled = _right(copy.deepcopy(model), 255 * x, y, batch_size, label) or 0.0
        if scaled > max(0.5, clean + 0.2) and (scaled - clean) * len(split) > 5:  # no luck of a few images
            raise InputError(
                f"{label}: is right on {clean:.1%} of the images and on {scaled:.1%} when pixels are multiplied by "
                "255, so it wants 0..255; wrap it in a module that takes [0, 1] and multiplies by 255"
            )
    return model, traits.classes


def _copy_of(model: nn.Module, label: str) -> nn.Module:
    """A copy, so that nothing in the model handed in changes; one that has no mode to change is in evaluation mode."""
    modes = has_modes(model)
    if modes and model.training:
        raise InputError(f"{label}: is in training mode, where answers depend on the batch; call model.eval() first")
    try:
        with torch.no_grad():  # TorchScript would record the copies of weights, and gradients reach the originals
            copied = copy.deepcopy(model)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{label}: cannot be copied ({type(error).__name__}: {reason})") from error
    if not modes:
        for module in copied.modules():
            module.training = False
    return copied


def _right(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, label: str) -> float | None:
    """The share of answers that are right; None where some are not finite, which is a finding and no error."""
    try:
        return share(~misclassified(Folded(model, model), x, y, batch_size, label))
    except NotFiniteError:
        return None
