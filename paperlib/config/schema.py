"""The fields of a profile: one frozen configuration for each scale, checked strictly when it is created.

Unknown keys, wrong types and values out of range raise a ProfileError that names the key and what is allowed. Budgets
such as eps are fractions, written ``"8/255"`` or ``"0.03"``. `paperlib.config.load` reads the TOML files.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic import WithJsonSchema as JsonSchema
from pydantic.dataclasses import dataclass
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from paperlib.config.plugins import load_extension
from paperlib.errors import ProfileError, did_you_mean

C = TypeVar("C")
T = TypeVar("T")

DATASETS = ("digits", "cifar10", "cifar100", "svhn", "mnist", "fashion-mnist", "images")


def _refused(message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message})


def _pixel_budget(value: Any) -> Fraction:
    if isinstance(value, int | float | str | Fraction) and not isinstance(value, bool):
        try:
            exact = Fraction(str(value))  # by its decimal text, so that the float 0.1 becomes 1/10
        except (ValueError, ZeroDivisionError):
            pass
        else:
            if not 0 <= exact <= 1:
                raise _refused(f"{value} must be in [0, 1]" + (f"; did you mean {value}/255?" if exact > 1 else ""))
            return exact
    raise _refused(f'expected a fraction such as "8/255", got {value!r}')


_FRACTION = {"type": "string", "pattern": r"^[0-9]*\.?[0-9]+(/[0-9]+)?$"}

# L-infinity, pixels in [0, 1]
Budget = Annotated[
    Fraction,
    PlainValidator(_pixel_budget),
    JsonSchema({"anyOf": [_FRACTION, {"type": "number", "minimum": 0, "maximum": 1}]}),
]
AtLeastZero = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
NonEmpty = Annotated[tuple[T, ...], Field(min_length=1)]


@dataclass_transform(frozen_default=True)
def _configuration(cls: type[C]) -> type[C]:
    """A frozen dataclass whose constructor checks every field. It raises ProfileError, never pydantic's error."""
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    checked: Any = dataclass(frozen=True, config=config)(cls)
    initialise = checked.__init__

    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **fields: Any) -> None:
        try:
            initialise(self, *args, **fields)
        except ValidationError as error:
            raise _profile_error(error, cls) from None

    checked.__init__ = __init__
    return checked


@_configuration
class DataConfig:
    """Which images, how they are split and augmented."""

    name: Annotated[str, Field(examples=list(DATASETS))]
    """The data set: one of DATASETS, or one of the extension's."""
    train: AtLeastZero
    """Number of training images, stratified by class; 0: all that remain."""
    validation: AtLeastOne
    """Number of images held out of the training images to select checkpoints."""
    test: AtLeastZero
    """Number of test images; 0: all."""
    split_seed: AtLeastZero
    """Seed of the splits."""
    crop: AtLeastZero
    """Padding of the random crop in training, in pixels; 0: no crop."""
    flip: bool = False
    """Random horizontal flip in training."""


@_configuration
class ModelConfig:
    """Sizes of the experts and of the gate."""

    width: AtLeastOne
    """Channels of the first stage of an expert; 64 in the paper's ResNet-18."""
    gate_width: AtLeastOne
    """Channels of the first stage of the gate."""
    gate_blocks: AtLeastOne
    """Residual blocks in each of the gate's three stages."""
    mixing: Literal["probabilities", "logits"]
    """What the gate's weights mix."""


@_configuration
class ThreatConfig:
    """The attacks of training: the random sets of the paper (section 1.1 of its outline) and our PGD budget."""

    fgsm_eps: NonEmpty[Budget]
    """The set from which each FGSM batch draws its eps."""
    pgd_eps: Budget
    """Eps of PGD in training."""
    pgd_step: Budget
    """Step size of PGD in training."""
    pgd_steps: NonEmpty[AtLeastOne]
    """The set from which each PGD batch draws its number of iterations."""
    random_start: bool = True
    """PGD in training starts at a random point of the eps ball."""


@_configuration
class TrainConfig:
    """One training run: stochastic gradient descent with Nesterov momentum."""

    epochs: AtLeastOne
    batch_size: AtLeastOne
    lr: Annotated[float, Field(ge=0)]
    """Learning rate; the peak of the schedule."""
    momentum: Annotated[float, Field(ge=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["one-cycle", "cosine", "constant"]
    validation_steps: AtLeastOne
    """PGD iterations of the attack that selects the checkpoint."""


@_configuration
class AblationConfig:
    """The ablations repeat phase 2 many times, so with fewer epochs; all else is as in phase 2."""

    phase2_epochs: AtLeastOne


@_configuration
class StudyConfig:
    """Which systems are compared at this scale. Claims about the other systems read "not run"."""

    systems: NonEmpty[str]
    """Names or patterns such as "plain-*"; the systems that they are built from are included."""
    extension: str = ""
    """A Python file of the user's with further systems, networks or data sets; relative to the profile."""


@_configuration
class EvaluationConfig:
    """The headline attack, the sweeps, and the number of test images."""

    images: AtLeastOne
    """Number of test images that FGSM and PGD attack."""
    eps: Annotated[Budget, Field(gt=0)]
    """The headline eps; above 0, because the sweep scales the step size with it."""
    step: Budget
    """Step size of PGD at the headline eps; sweeps scale it with eps."""
    steps: AtLeastOne
    """Iterations of PGD."""
    restarts: AtLeastOne
    """Random restarts of PGD."""
    eps_sweep: NonEmpty[Budget]
    """Eps values of the sweep, in rising order."""
    steps_sweep: NonEmpty[AtLeastOne]
    """Numbers of iterations of the sweep, in rising order, at most `steps`."""
    batch_size: AtLeastOne

    @field_validator("eps_sweep", "steps_sweep")
    @classmethod
    def _rise(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if list(values) != sorted(set(values)):
            raise _refused(f"values must rise, got {', '.join(map(str, values))}")
        return values

    @field_validator("steps_sweep")
    @classmethod
    def _stay_within_steps(cls, values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if max(values) > info.data.get("steps", max(values)):
            raise _refused(f"no value may exceed evaluation.steps={info.data['steps']}")
        return values


@_configuration
class StressConfig:
    """The slow attacks and the audit: how many of the first test images they attack, and with which budget."""

    images: AtLeastOne
    """Number of first test images that the slow attacks and the audit attack."""
    autoattack: Literal["all", "compared"]
    """Which systems AutoAttack attacks; all other attacks are run on every system."""
    iterations: AtLeastOne
    """Iterations of AutoAttack's gradient attacks; 100 in its standard version."""
    queries: AtLeastOne
    """Queries of the Square attack; 5,000 in the standard version."""
    draws: AtLeastOne
    """Draws of random noise for each image."""
    restarts: AtLeastOne
    """Restarts of the longer PGD that tests whether the headline attack has converged."""


@_configuration
class RunConfig:
    """How the machine is used. Nothing here changes what is computed, except for rounding."""

    seeds: NonEmpty[AtLeastZero]
    """The seeds of the published records."""
    threads: AtLeastZero
    """CPU threads of one computation; 0: torch's choice."""
    bf16: bool = False
    """Training attacks and updates in bfloat16; evaluation always uses float32."""
    tf32: bool = False
    """TensorFloat-32 in training, on GPUs that have it; evaluation always uses exact float32."""
    channels_last: bool = False
    """Channels-last memory format."""


@_configuration
class Profile:
    """A scale at which the whole series runs. The TOML file of the same name gives the reasons for its values."""

    name: str
    summary: str
    """One line that describes the scale."""
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
    base: str = ""
    """The profile that this one builds on. If both use the same images, they share results."""


def parse_profile(table: Mapping[str, Any]) -> Profile:
    """Build a profile from nested tables; the inverse of `to_table`. Raises ProfileError by key."""
    try:
        # Through JSON, in which strict parsing reads lists as tuples and tables as dataclasses.
        profile = TypeAdapter(Profile).validate_json(json.dumps(table, default=lambda value: {"": repr(value)}))
    except ValidationError as error:
        raise _profile_error(error, Profile) from None
    added = [*load_extension(profile.study.extension).datasets]
    if profile.data.name not in (*DATASETS, *added):
        raise ProfileError(f"data.name: {profile.data.name!r} is not one of {', '.join((*DATASETS, *added))}")
    if taken := {*added} & {*DATASETS}:
        raise ProfileError(f"study.extension: {', '.join(taken)} is the name of a data set of this companion")
    return profile


def profile_schema() -> dict[str, Any]:
    """The JSON schema of a profile's TOML file. Only a profile without ``base`` must state every field."""

    class WithoutTitles(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    schema = TypeAdapter(Profile).json_schema(schema_generator=WithoutTitles)
    fields = schema["properties"]
    del fields["name"]  # the name of the file
    schema["required"].remove("name")
    required = {section: kind.pop("required") for section, kind in schema["$defs"].items()}
    complete: dict[str, Any] = {"required": schema.pop("required"), "properties": {}}
    for name, field in fields.items():
        if "$ref" in field:
            complete["properties"][name] = {"required": required[field["$ref"].rpartition("/")[2]]}
    return {**schema, "if": {"not": {"required": ["base"]}}, "then": complete}


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dataclass_type": "a table",
    "tuple_type": "a list with at least one value",
    "too_short": "a list with at least one value",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("above", "gt"),
}


def _profile_error(error: ValidationError, kind: Any) -> ProfileError:
    """The first of pydantic's errors as one line; an unknown key comes first, because it often explains the others."""
    order = {"unexpected_keyword_argument": 0, "missing": 1}
    return ProfileError(_line(min(error.errors(), key=lambda detail: order.get(detail["type"], 2)), kind))


def _line(detail: ErrorDetails, kind: Any) -> str:
    value, error, path = detail["input"], detail["type"], list(detail["loc"])
    if path and isinstance(path[0], int):  # a positional argument
        path[0] = dataclasses.fields(kind)[path[0]].name
    names = [part for part in path if isinstance(part, str)]  # without the index in a list
    where = ".".join(names) or "profile"
    if error == "unexpected_keyword_argument":
        for name in names[:-1]:
            kind = get_type_hints(kind)[name]
        return f"unknown key {where}{did_you_mean(names[-1], [f.name for f in dataclasses.fields(kind)])}"
    if error == "missing":
        return f"missing key {where}"
    if error in _EXPECTED:
        return f"{where}: expected {_EXPECTED[error]}, got {value!r}"
    if error in _BOUNDS:
        relation, limit = _BOUNDS[error]
        return f"{where}: {value} must be {relation} {detail['ctx'][limit]}"
    if error == "literal_error":
        return f"{where}: {value!r} is not one of {detail['ctx']['expected']}"
    if error == "finite_number":
        return f"{where}: {value} is not a finite number"
    return f"{where}: {detail['msg']}"
