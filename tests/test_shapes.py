"""The shapes in signatures are true: the library is imported under jaxtyping's hook, and beartype checks every call."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKED = (
    "attacks.autoattack",
    "attacks.ball",
    "attacks.early_stopping",
    "attacks.input_gradient",
    "attacks.mixture",
    "attacks.noise",
    "attacks.objectives",
    "attacks.pgd",
    "evaluation.robustness",
    "evaluation.statistics",
    "models.advmoe",
    "models.mixture",
    "models.resnet",
    "models.soe",
    "training.losses",
)
IMPORT = f"""
import sys, types
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook
sys.modules["checker"] = types.ModuleType("checker")
sys.modules["checker"].check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy
with install_import_hook({[f"paperlib.{name}" for name in CHECKED]}, "checker.check"):
    import torch
    from paperlib.attacks import attack, autoattack, fgsm, mixture_objectives, pgd, random_noise
    from paperlib.data import Split
    from paperlib.evaluation import accuracy_over_seeds, evaluate, paired_difference, pgd_spec
    from paperlib.models import ADVMoE, Gate, Mixture, SoE, resnet18
    from paperlib.training.losses import CrossEntropyLoss, RouterLoss, SoELoss, TradesLoss
torch.manual_seed(0)
def network(outputs):
    return resnet18(outputs, 2, (0.5,), (0.5,))
mixture = Mixture([network(5) for _ in range(3)], Gate(3, 2, 1, (0.5,), (0.5,)))
"""
EVERYTHING = """
systems = [network(5), mixture, SoE([network(6) for _ in range(2)]), ADVMoE(5, 2, 2, 2, 1, (0.5,), (0.5,))]
budget = {"eps": 0.1, "step_size": 0.05, "steps": 2}
for n in (4, 0):
    x, y = torch.rand(n, 1, 8, 8), torch.arange(n) % 5
    for model in systems:
        model.eval()
        attacked = attack(model, x, y, **budget)
        assert fgsm(model, x, y, eps=0.1).shape == pgd(model, x, y, **budget, norm="l2").shape == attacked.images.shape
        random_noise(model, x, y, eps=0.1, draws=2)
x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
autoattack(mixture, x, y, eps=0.1, iterations=1, queries=1)
results = [evaluate(model, Split(x, y), pgd_spec("0.1", 2, "0.05"), seed=0).correct for model in systems]
paired_difference(results[0], results[1])
accuracy_over_seeds(torch.stack(results[:3]))
for objective in mixture_objectives(mixture, x, 0).values():
    targets = y if objective.targets is None else objective.targets(mixture, x, y)
    logits, values = objective.function(mixture, x.clone().requires_grad_(), targets)
    assert logits.shape == (4, 5) and values.shape == (4,)
losses = [(CrossEntropyLoss(), mixture), (TradesLoss(), mixture), (SoELoss(), systems[2]), (RouterLoss(), systems[3])]
for loss, model in losses:
    assert loss(model, x, x, y).shape == ()
print("checked")
"""
WRONG = {
    "labels of another number": "fgsm(mixture, torch.rand(3, 1, 8, 8), torch.zeros(2, dtype=torch.int64), eps=0.1)",
    "an image without its batch": "mixture.forward_with_experts(torch.rand(1, 8, 8))",
    "outcomes that are no booleans": "paired_difference(torch.ones(3), torch.ones(3))",
}
CATCH = """
for call in CALLS:
    try:
        eval(call)
    except Exception as error:
        print(type(error).__name__)
    else:
        print("no error")
"""


def test_shapes_are_as_stated_and_wrong_ones_are_noticed() -> None:
    script = IMPORT + EVERYTHING + CATCH.replace("CALLS", repr(list(WRONG.values())))
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["checked", *["TypeCheckError"] * len(WRONG)], done.stderr[-3000:]
