"""Numbers of the literature on CIFAR-10, with protocol and source; they are never mixed with ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import pandas as pd


@dataclass(frozen=True)
class Reported:
    """A result that others report: accuracies in percent, L-infinity 8/255 unless the protocol names another eps."""

    compare_with: str  # our system that comes closest
    method: str
    network: str
    clean: float
    robust: float
    protocol: str  # the attack, and which checkpoint
    source: str
    origin: str  # "log" or "table" of a public repository, or "third party", not checked by us


REPORTED = (
    Reported(
        "pgd-at",
        "PGD-AT, early stopped",
        "PreActResNet-18",
        81.31,
        53.27,
        "PGD-10, checkpoint by validation",
        "locuslab/robust_overfitting",
        "log",
    ),
    Reported(
        "pgd-at",
        "PGD-AT, last epoch",
        "PreActResNet-18",
        84.93,
        45.59,
        "PGD-10, last epoch",
        "locuslab/robust_overfitting",
        "log",
    ),
    Reported(
        "pgd-at", "PGD-AT", "PreActResNet-18", 81.70, 52.79, "PGD-20, checkpoint by test", "csdongxian/AWP", "log"
    ),
    Reported(
        "trades",
        "TRADES, last of 100 epochs",
        "ResNet-18",
        82.02,
        53.3,
        "TRADES' PGD script",
        "locuslab/robust_overfitting",
        "log",
    ),
    Reported(
        "fgsm-rs",
        "FGSM-AT with random start",
        "PreActResNet-18",
        86.37,
        46.30,
        "PGD-10, checkpoint by test",
        "locuslab/robust_overfitting",
        "log",
    ),
    Reported("fgsm-rs", "Fast AT (Wong et al. 2020)", "ResNet-18", 83.34, 43.21, "AutoAttack", "RobustBench", "table"),
    Reported(
        "pgd-at-wrn28-10",
        "PGD-AT (Rice et al. 2020)",
        "WideResNet-34-20",
        85.34,
        53.42,
        "AutoAttack",
        "RobustBench",
        "table",
    ),
    Reported(
        "pgd-at-wrn28-10",
        "TRADES (Zhang et al. 2019)",
        "WideResNet-34-10",
        84.92,
        53.08,
        "AutoAttack, eps 0.031",
        "RobustBench",
        "table",
    ),
    Reported(
        "dwf",
        "best single ResNet-18, no extra data (Addepalli et al. 2022)",
        "ResNet-18",
        85.71,
        52.48,
        "AutoAttack",
        "RobustBench",
        "table",
    ),
    Reported(
        "dwf",
        "best single ResNet-18, 100M generated images (Gowal et al. 2021)",
        "PreActResNet-18",
        87.35,
        58.63,
        "AutoAttack",
        "RobustBench",
        "table",
    ),
    Reported(
        "frozen",
        "clean and robust network mixed (MixedNUTS)",
        "ResNet-152 and WRN-70-16",
        95.19,
        70.08,
        "AutoAttack (69.71 under an adaptive attack)",
        "RobustBench",
        "table",
    ),
    Reported(
        "frozen",
        "its robust network alone (Wang et al. 2023)",
        "WRN-70-16",
        93.25,
        70.69,
        "AutoAttack",
        "RobustBench",
        "table",
    ),
    Reported(
        "advmoe-own",
        "ADVMoE, official code, NaN router",
        "ResNet-18, 2 pathways",
        93.88,
        90.59,
        "its own 10-step attack, last epoch",
        "Kaijie-liu/ACT",
        "third party",
    ),
    Reported(
        "advmoe-own",
        "ADVMoE, changed to stay finite",
        "ResNet-18, 2 pathways",
        85.67,
        61.14,
        "its own 10-step attack, last epoch",
        "Kaijie-liu/ACT",
        "third party",
    ),
)


def literature(*systems: str) -> pd.DataFrame:
    """The results to compare with ``systems``, by default all."""
    rows = [asdict(row) for row in REPORTED if row.compare_with in systems or not systems]
    return pd.DataFrame(rows, columns=[f.name for f in fields(Reported)]).set_index(["compare_with", "method"])
