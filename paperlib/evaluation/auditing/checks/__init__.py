"""All checks of the audit, in the order in which they run.

The checks of the model itself come first, those that need the outcomes of all attacks last. To add a check, write a
function with the decorator `check.check` in one of the modules below, and add it to `CHECKS`.

Sources of the checks: Carlini et al. 2019 (arXiv 1902.06705), Athalye et al. 2018 (1802.00420), Croce and Hein 2020
(2003.01690) with its flags, Pintor et al. 2022 (2106.09947), He et al. 2017 (1706.04701), Tramer et al. 2020
(2002.08347), and errors in published mixtures of experts (ADVMoE, MoRE).
"""

from paperlib.evaluation.auditing.checks import mixture, reporting, strength, validity
from paperlib.evaluation.auditing.checks.check import Check

CHECKS: tuple[Check, ...] = (
    validity.finite,
    validity.steady,
    validity.alone,
    validity.logits,
    validity.gradients,
    strength.iterations,
    strength.falls,
    strength.converged,
    strength.one_step,
    strength.target,
    strength.budget,
    strength.any_iterate,
    validity.smooth,
    strength.noise,
    strength.loss,
    strength.transfer,
    mixture.experts,
    mixture.gate,
    mixture.past_gate,
    mixture.choice,
    mixture.collapse,
    mixture.weak_link,
    mixture.compared,
    strength.autoattack,
    strength.black_box,
    strength.worst_case,
    reporting.selection,
    reporting.sample,
    reporting.too_good,
)
