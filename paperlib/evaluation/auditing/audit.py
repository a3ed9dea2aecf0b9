"""The audit: every known way a robust accuracy goes wrong, asked of any network, and a sentence on what to believe."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from numbers import Integral
from types import NoneType

import torch
from torch import Tensor, nn

from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import as_images, as_labels, check_settings, check_type, check_whole
from paperlib.config.budgets import Budget, as_fraction, budget_text
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.evaluation.auditing.checks import CHECKS
from paperlib.evaluation.auditing.checks.check import FAILS, NOT_RUN, Check, CheckResult
from paperlib.evaluation.auditing.context import AuditBudget, AuditContext, share
from paperlib.evaluation.auditing.inputs import (
    as_adversarial,
    as_audited_model,
    as_claim,
    as_surrogates,
    check_outcomes,
)
from paperlib.evaluation.auditing.report import Finding, Report
from paperlib.log import progress
from paperlib.models.modes import float32_by_default, outside_inference_mode
from paperlib.seeds import hash_seed


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
    audit_budget: AuditBudget = AuditBudget(),  # noqa: B008 - frozen
    seed: int = 0,
    batch_size: int = 250,
    outcomes: Mapping[str, Tensor] | None = None,
    won_by: Tensor | None = None,
    label: str = "the model",
) -> Report:
    """Run every check of `paperlib.evaluation.auditing.checks` on a network, and say whether to believe its robustness.

    Nothing is computed in TensorFloat-32. Where memory does not suffice, fewer images are asked at once than
    ``batch_size``.

    Args:
        model: any module from pixels (N, C, H, W) in [0, 1] to logits (N, classes), in evaluation mode. Nothing in it
            changes. The experts and the gate of a mixture with a method ``forward_with_experts`` (see
            `paperlib.attacks.mixture`) are attacked too. `paperlib.attacks.inputs` says which models are accepted; that
            logits have no gradient is a finding here.
        images, labels: what it is judged on; (N, C, H, W) in [0, 1] of any float dtype and (N,) int64.
        eps: L-infinity budget, a float or text such as ``"8/255"``.
        claimed: the accuracy claimed under attack, as a fraction or a tensor of one; by default what PGD leaves.
        adversarial: the adversarial images behind the claim, of any float dtype, if it is not our own PGD. Of half
            precision, what rounding moved out of the ball or of [0, 1] is moved back.
        transfer_from: other networks of the same classes to craft examples on, by name, or a single one.
        selected_on: the images that chose the checkpoint.
        benign: which expert of a mixture was trained on clean images alone.
        audit_budget: how many steps, draws and queries the attacks of the audit get.
        known, won_by: outcomes (N,) already there, by the name of the attack, and which part of AutoAttack won.

    Raises:
        InputError: images, labels or settings out of range; a model in training mode, or one that wants other pixels.
    """
    started = time.monotonic()
    batch_size = check_whole("batch_size", batch_size)
    budget = as_fraction(eps)
    check_settings(seed=seed)
    check_type("audit_budget", audit_budget, AuditBudget, "an AuditBudget")
    check_type("benign", benign, (Integral, NoneType), "the number of an expert or None")
    check_type("outcomes", outcomes, (Mapping, NoneType), "outcomes by the name of the attack")
    seed = int(seed)
    images = as_images(images).float().contiguous().clone()  # no model ever sees the caller's own
    split = Split(images, as_labels(labels, images))
    if len(images) == 0 or budget == 0:
        raise InputError("audit: needs at least one image and an eps above 0")
    claim = as_claim(claimed)
    adversarial = as_adversarial(adversarial, split, float(budget))
    check_outcomes(split, selected_on, outcomes or {}, won_by)
    with torch.random.fork_rng():  # the model may draw numbers of its own, the same ones in every audit of this seed
        torch.manual_seed(hash_seed(seed, "before the checks"))
        model, classes = as_audited_model(model, split, label, batch_size)
        surrogates = as_surrogates(transfer_from, images, classes)
        context = AuditContext(
            model=model,
            split=split,
            eps=budget,
            audit_budget=audit_budget,
            claimed=claim,
            adversarial=adversarial,
            transfer_from=surrogates,
            selected_on=selected_on,
            benign=benign,
            outcomes={name: correct.bool().to(images.device) for name, correct in (outcomes or {}).items()},
            won_by=won_by,
            seed=seed,
            batch_size=batch_size,
            label=label,
        )
        if benign is not None and context.mixture and not 0 <= benign < context.experts:
            raise InputError(f"benign={benign}: the mixture has no such expert")
        return _report(context, started)


def _report(context: AuditContext, started: float) -> Report:
    """Run every check, and collect the results."""
    claim = "as claimed"
    if context.claimed is None and context.adversarial is not None:
        correct = context.logits(context.adversarial).argmax(dim=1) == context.y
        context.claimed, claim = share(correct), "on the adversarial images handed in"
    findings: list[Finding] = []
    with progress(len(CHECKS), f"audit of {context.label}", unit="checks") as report_progress:
        for check in CHECKS:
            if any(f.name == "finite" and f.verdict == FAILS for f in findings):
                result = CheckResult(NOT_RUN, "", "nothing can be measured")
            else:
                result, context = _run(check, context)
            findings.append(
                Finding(
                    check.row, check.name, check.question, check.threshold, result.verdict, result.value, result.why
                )
            )
            report_progress(len(findings))
    measurable = findings[0].verdict != FAILS
    if measurable and context.claimed is None:
        claim = f"under PGD-{context.audit_budget.steps}"
        try:
            context.claimed = context.accuracy(context.pgd)
        except NotFiniteError:  # reported by the checks that met it
            measurable = False
    return Report(
        label=context.label,
        n=context.n,
        eps=budget_text(context.eps),
        seed=context.seed,
        audit_budget=asdict(context.audit_budget),
        claimed=context.claimed,
        claim=claim,
        attacks={name: int(context.outcomes[name].sum()) for name in context.attacks()} if measurable else {},
        worst=int(context.surviving().sum()) if measurable else None,
        findings=tuple(sorted(findings, key=lambda finding: finding.row)),
        seconds=round(time.monotonic() - started, 3),
    )


def _run(check: Check, context: AuditContext) -> tuple[CheckResult, AuditContext]:
    """The result of one check, and the context for the next one.

    Of a model that returns probabilities, the later checks get the logarithm.
    """
    torch.manual_seed(hash_seed(context.seed, check.name))  # whatever the checks before it made the model draw
    try:
        result = check(context)
    except NotFiniteError as error:  # weights and clean logits are finite, but an attack met NaN
        return CheckResult(FAILS, "", str(error)), context
    if check.name == "logits" and result.verdict == FAILS:
        context = replace(context, model=Logarithm(context.model), outcomes={}, won_by=None)
    return result, context


class Logarithm(nn.Module):
    """A model of probabilities as one of logits: log(p)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.model(x)
        return probabilities.clamp_min(1e-12).log()
