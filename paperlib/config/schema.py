"""One frozen, strictly parsed configuration per scale.

A profile is a TOML file in ``paperlib/profiles/``. Unknown keys, wrong types and values out of range are errors that
name the key and what is allowed. Budgets such as eps are fractions, written ``"8/255"`` or ``"0.03"``. A profile with
``base = "digits"`` states only what it changes; one that asks for a smaller test split (``data.test``) also evaluates
no more images than that, unless it says so itself. The file is UTF-8, with or without a byte-order mark.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from paperlib.config.plugins import load_extension
from paperlib.config.serialise import to_table
from paperlib.errors import ProfileError, hint

C = TypeVar("C")


DATASETS = ("digits", "cifar10", "cifar100", "svhn", "mnist", "fashion-mnist", "images")


def _limits(low: float | None = None, high: float | None = None, choices: tuple[str, ...] = (), **kw: Any) -> Any:
    return field(metadata={"low": low, "high": high, "choices": choices}, **kw)


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split and augmented."""

    name: str  # one of DATASETS, or one of the extension's
    train: int = _limits(low=0)  # images to train on, stratified; 0 means all that are left
    validation: int = _limits(low=1)  # held out of the training images, for model selection
    test: int = _limits(low=0)  # images of the test split; 0 means all
    split_seed: int = _limits(low=0)
    crop: int = _limits(low=0)  # padding of the random crop, in pixels; 0 means none
    flip: bool = False  # random horizontal flip


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the experts and of the gate."""

    width: int = _limits(low=1)  # channels of the first stage; the paper's ResNet-18 has 64
    gate_width: int = _limits(low=1)
    gate_blocks: int = _limits(low=1)  # residual blocks in each of the gate's three stages
    mixing: str = _limits(choices=("probabilities", "logits"))


@dataclass(frozen=True)
class ThreatConfig:
    """The random sets of the paper (section 1.1 of its outline) and our choice of PGD budget."""

    fgsm_eps: tuple[Fraction, ...] = _limits(low=0, high=1)  # L-infinity, pixels in [0, 1]: 8 for 8/255 must not pass
    pgd_eps: Fraction = _limits(low=0, high=1)
    pgd_step: Fraction = _limits(low=0, high=1)
    pgd_steps: tuple[int, ...] = _limits(low=1)
    random_start: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """One training run: stochastic gradient descent with Nesterov momentum."""

    epochs: int = _limits(low=1)
    batch_size: int = _limits(low=1)
    lr: float = _limits(low=0)
    momentum: float = _limits(low=0, high=1)
    weight_decay: float = _limits(low=0)
    schedule: str = _limits(choices=("one-cycle", "cosine", "constant"))
    validation_steps: int = _limits(low=1)  # PGD iterations of the attack that picks the checkpoint


@dataclass(frozen=True)
class AblationConfig:
    """The ablations repeat phase 2 many times, so with fewer epochs; all else as in phase 2."""

    phase2_epochs: int = _limits(low=1)


@dataclass(frozen=True)
class StudyConfig:
    """Which systems are compared at this scale; claims about the others say that they were not run."""

    systems: tuple[str, ...] = _limits()  # names or patterns; what they are built from comes along
    extension: str = ""  # a Python file of your own with further systems or data, beside the profile


@dataclass(frozen=True)
class EvaluationConfig:
    """The headline attack, the sweeps, and how many test images they see."""

    images: int = _limits(low=1)
    eps: Fraction = _limits(low=0, high=1)
    step: Fraction = _limits(low=0, high=1)  # step size at the headline eps; sweeps scale it with eps
    steps: int = _limits(low=1)
    restarts: int = _limits(low=1)
    eps_sweep: tuple[Fraction, ...] = _limits(low=0, high=1)
    steps_sweep: tuple[int, ...] = _limits(low=1)
    batch_size: int = _limits(low=1)


@dataclass(frozen=True)
class StressConfig:
    """The slow attacks and the audit: how many of the first test images they see, and how hard they try."""

    images: int = _limits(low=1)
    autoattack: str = _limits(choices=("all", "compared"))  # which systems face it; every one faces all the rest
    iterations: int = _limits(low=1)  # of AutoAttack's gradient attacks; its standard version has 100
    queries: int = _limits(low=1)  # of Square; 5,000 in the standard version
    draws: int = _limits(low=1)  # of random noise, per image
    restarts: int = _limits(low=1)  # of the longer PGD that asks whether the headline attack had converged


@dataclass(frozen=True)
class RunConfig:
    """How the machine is used; nothing here changes what is computed, but for rounding."""

    seeds: tuple[int, ...] = _limits(low=0)  # the seeds of the published records
    threads: int = _limits(low=0)  # CPU threads of one computation; 0 leaves torch's choice
    bf16: bool = False  # attack and update in bfloat16 while training; evaluation is always float32
    tf32: bool = False  # TensorFloat-32 while training, on GPUs that have it; evaluation is always exact float32
    channels_last: bool = False


@dataclass(frozen=True)
class Profile:
    """A scale at which the whole series runs. See the TOML file of the same name for the reasons behind its values."""

    name: str
    summary: str
    study: StudyConfig
    data: DataConfig
    model: ModelConfig
    threat: ThreatConfig
    phase1: TrainConfig
    phase2: TrainConfig
    ablation: AblationConfig
    evaluation: EvaluationConfig
    stress: StressConfig
    run: RunConfig
    base: str = ""  # the profile it builds on, if on the same images; it shares that one's results


def parse_profile(table: Mapping[str, Any]) -> Profile:
    """Build a profile from nested tables; the inverse of `to_table`. Raises ProfileError by key."""
    profile = _parse(Profile, table, "")
    known = [*DATASETS, *load_extension(profile.study.extension).datasets]
    if profile.data.name not in known:
        raise ProfileError(f"data.name: {profile.data.name!r} is not one of {', '.join(known)}")
    if taken := {*known[len(DATASETS) :]} & {*DATASETS}:
        raise ProfileError(f"study.extension: {', '.join(taken)} is the name of a data set of this companion")
    for key in ("eps_sweep", "steps_sweep"):
        values = getattr(profile.evaluation, key)
        if list(values) != sorted(set(values)):
            raise ProfileError(f"evaluation.{key}: values must rise, got {to_table(profile.evaluation)[key]}")
    if profile.evaluation.eps == 0:
        raise ProfileError("evaluation.eps: must be above 0; the sweep scales the step with it")
    if max(profile.evaluation.steps_sweep) > profile.evaluation.steps:
        raise ProfileError(f"evaluation.steps_sweep: no value may exceed evaluation.steps={profile.evaluation.steps}")
    return profile


def _parse(cls: type[C], table: Any, where: str) -> C:
    if not isinstance(table, Mapping):
        raise ProfileError(f"{where or 'profile'}: expected a table, got {table!r}")
    hints, fields = get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for key in table:
        if key not in fields:
            raise ProfileError(f"unknown key {prefix}{key}{hint(key, list(fields))}")
    for key, f in fields.items():
        if key not in table and f.default is dataclasses.MISSING:
            raise ProfileError(f"missing key {prefix}{key}")
    return cls(**{key: _value(hints[key], value, f"{prefix}{key}", fields[key]) for key, value in table.items()})


def _value(kind: Any, value: Any, where: str, f: dataclasses.Field[Any]) -> Any:
    if dataclasses.is_dataclass(kind):
        return _parse(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise ProfileError(f"{where}: expected a list with at least one value, got {value!r}")
        return tuple(_value(get_args(kind)[0], item, where, f) for item in value)
    return _in_range(_scalar(kind, value, where), where, f.metadata)


def _scalar(kind: type, value: Any, where: str) -> Any:
    is_number = isinstance(value, int | float | Fraction) and not isinstance(value, bool)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and is_number:
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is Fraction and (is_number or isinstance(value, str)):
        try:
            return Fraction(value) if isinstance(value, str | Fraction) else Fraction(str(value))
        except (ValueError, ZeroDivisionError):
            pass
    wanted = 'a fraction such as "8/255"' if kind is Fraction else f"a value of type {kind.__name__}"
    raise ProfileError(f"{where}: expected {wanted}, got {value!r}")


def _in_range(value: Any, where: str, limits: Mapping[str, Any] | types.MappingProxyType[Any, Any]) -> Any:
    low, high, choices = limits.get("low"), limits.get("high"), limits.get("choices")
    if choices and value not in choices:
        raise ProfileError(f"{where}: {value!r} is not one of {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ProfileError(f"{where}: {value} is not a number to compute with")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
        hint = f"; did you mean {value}/255?" if isinstance(value, Fraction) and high == 1 and value > 1 else ""
        raise ProfileError(f"{where}: {value} must be {bounds}{hint}")
    return value
