"""The key of a stage changes if, and only if, a setting changes that its computation uses.

A computation is a plain function of its context and its configuration, so it uses no other setting. Tables list, for
every field of a profile and of a recipe, the stages whose configuration contains it. ``test_study.py`` checks that
every computation reads all fields of its configuration.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import micro_numbers
import pytest
from toys import changed, micro_table

from paperlib import Profile, Study
from paperlib.config.schema import parse_profile
from paperlib.evaluation import headline
from paperlib.pipeline.keys import as_json
from paperlib.pipeline.stage import Stage
from paperlib.pipeline.stages import evaluation, stages, train
from paperlib.systems.recipe import Network, Recipe
from paperlib.systems.registry import recipes

Table = dict[str, list[str]]

# -- which stages contain a field of the profile ---------------------------------------------------------------------

ALL = ["*"]
NINE, REST = "expert-*", ["pgd-at-[0-8]", "benign-*", "fgsm-[1-5]", "pgd-[1-5]", "fixed-*", "more-expert-*"]
FGSM_NETS = ["expert-[1-4]", "fgsm-[1-5]", "fixed-expert-[1-4]"]
PGD_NETS = ["expert-[5-8]", "pgd-[1-5]", "fixed-expert-[5-8]"]
PGD_AT = ["pgd-at", "pgd-at-*"]
SINGLE = ["plain", "plain-*", "pgd-at", "trades", "fgsm-at", "fgsm-rs", "pgd-at-w*"]
BOTH_PHASES = [*SINGLE, "joint-scratch", "soe-own", "soe-moe", "advmoe", "advmoe-own"]
PHASE1 = [NINE, *REST, *BOTH_PHASES]
ABLATIONS = ["ablation-*"]
PHASE2 = ["frozen", "dwf", "soe", "more", "more-own", *ABLATIONS]
# Phase 2 as in DWF: clean, FGSM or PGD batches.
MIXED = ["frozen", "joint-scratch", "dwf", "more", "ablation-base", "ablation-[135]", "ablation-benign"]
MIXED += ["ablation-fgsm", "ablation-pgd", "ablation-fixed", "ablation-mixing", "ablation-gate"]
SMALL = ["soe-own", "soe-moe"]  # of networks without a width
LEARNED = ["frozen", "joint-scratch", "dwf", "more", *ABLATIONS]  # mixtures with a learned gate
GATES = [*LEARNED, *SMALL, "advmoe", "advmoe-own"]  # systems with a gate, a router or a small network
TRAINED: Table = {"train": ALL, "control": ALL}
PGD = ["*:*:pgd-*"]

# field -> (another value, the stages whose configuration contains the field, as patterns by kind)
FIELDS: dict[str, tuple[Any, Table]] = {
    "summary": ("other words", {}),
    "name": ("other", {}),
    "data.train": (50, {}),  # these four change the fingerprint of the data
    "data.validation": (21, {}),
    "data.test": (41, {}),
    "data.split_seed": (1, {}),
    "data.crop": (2, TRAINED),
    "data.flip": (True, TRAINED),
    "model.width": (3, {kind: ["!soe-own", "!soe-moe"] for kind in ("evaluate", "gate")}
        | {kind: ALL for kind in ("train", "trace", "gallery", "control", "stress", "autoattack", "audit")}),
    "model.gate_width": (3, {kind: GATES for kind in
        ("train", "evaluate", "trace", "gate", "gallery", "stress", "autoattack", "audit")} | {"control": ALL}),
    "model.gate_blocks": (2, {kind: GATES for kind in
        ("train", "evaluate", "trace", "gate", "gallery", "stress", "autoattack", "audit")} | {"control": ALL}),
    # The uniform mixture averages probabilities for every value of this field.
    "model.mixing": ("logits", {kind: LEARNED for kind in
        ("train", "evaluate", "trace", "gate", "gallery", "stress", "autoattack", "audit")}),
    "threat.fgsm_eps": (["0.02"], {"train": [*FGSM_NETS, *MIXED, "ablation-no-pgd-batches"]}),
    "threat.pgd_eps": ("0.09", {"train": [*PGD_NETS, *PGD_AT, "trades", "fgsm-at", "fgsm-rs", *MIXED, "soe*", "advmoe*",
        "more-own", "more-expert-*", "ablation-pgd-batches"], "control": ALL}),
    "threat.pgd_step": ("0.045", {"train": [*PGD_NETS, *PGD_AT, "trades", *MIXED, "soe", "more-own",
        "more-expert-[34]", "ablation-pgd-batches"]}),
    "threat.pgd_steps": ([1], {"train": [*PGD_NETS, *MIXED, "ablation-pgd-batches"]}),
    "threat.random_start": (False, {"train": [*PGD_NETS, *PGD_AT, *MIXED, "soe*", "more-own", "more-expert-[34]",
        "ablation-pgd-batches"]}),
    "phase1.epochs": (2, {"train": PHASE1}),
    **{f"phase1.{name}": (value, {"train": PHASE1, "control": ALL}) for name, value in
        {"batch_size": 21, "lr": 0.01, "momentum": 0.5, "weight_decay": 1e-4, "schedule": "cosine",
         "validation_steps": 2}.items()},
    "phase2.epochs": (2, {"train": [*BOTH_PHASES, "frozen", "dwf", "soe", "more", "more-own"]}),
    **{f"phase2.{name}": (value, {"train": PHASE2}) for name, value in
        {"batch_size": 31, "lr": 0.01, "momentum": 0.5, "weight_decay": 1e-4, "schedule": "cosine"}.items()},
    "phase2.validation_steps": (2, {"train": PHASE2, "gate": ALL, "gallery": ALL}),
    "ablation.phase2_epochs": (2, {"train": ABLATIONS}),
    "evaluation.images": (31, {kind: ALL for kind in ("evaluate", "trace", "gate", "control")}),
    "evaluation.eps": ("0.09", {"train": ALL, "evaluate": PGD, "gate": ["!frozen", "!dwf"]}
        | {kind: ALL for kind in ("trace", "gallery", "control", "stress", "autoattack", "audit")}),
    "evaluation.step": ("0.02", {"evaluate": PGD, "trace": ALL, "stress": ALL}),
    "evaluation.steps": (3, {kind: ALL for kind in ("trace", "stress", "audit")}),
    "evaluation.restarts": (2, {kind: ALL for kind in ("trace", "stress", "audit")}),
    "evaluation.eps_sweep": (["0.1"], {"gate": ["frozen", "dwf"]}),
    "evaluation.steps_sweep": ([1], {}),  # one run of the longest attack gives all of them
    "evaluation.batch_size": (21, {"evaluate": ALL, "stress": ALL}),
    "stress.images": (7, {kind: ALL for kind in ("stress", "autoattack", "audit")}),
    "stress.autoattack": ("all", {}),  # adds stages
    "stress.iterations": (2, {"autoattack": ALL, "audit": ALL}),
    "stress.queries": (3, {"autoattack": ALL, "audit": ALL}),
    "stress.draws": (3, {"stress": ALL, "audit": ALL}),
    "stress.restarts": (2, {"stress": ALL, "audit": ALL}),
    "run.seeds": ([1], {}),
    "run.threads": (2, {kind: ALL for kind in
        ("train", "evaluate", "trace", "gate", "gallery", "control", "stress", "autoattack", "audit")}),
    "run.bf16": (True, TRAINED),
    "run.tf32": (True, TRAINED),
    "run.channels_last": (True, TRAINED),
}  # fmt: skip
# Fields that name another data set, the stages or a file; they are tested elsewhere.
TESTED_ELSEWHERE = {"data.name", "study.systems", "study.extension", "base"}
DATA = ("data.train", "data.validation", "data.test", "data.split_seed")


def listed(table: Table, name: str) -> bool:
    """Whether the table lists a stage; patterns that begin with ``!`` exclude names."""
    kind, _, rest = name.partition(":")
    system = rest.split(":")[0]
    patterns = table.get(kind, [])
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    included = [pattern for pattern in patterns if not pattern.startswith("!")] or (ALL if excluded else [])
    matches = [p for p in included if fnmatch.fnmatch(f"{kind}:{rest}" if p.startswith("*:") else system, p)]
    return bool(matches) and not any(fnmatch.fnmatch(system, pattern) for pattern in excluded)


def parts(stage: Stage) -> Any:
    """The parts of a key except data, seed and the keys of the inputs."""
    return stage.version, as_json(stage.config), stage.threads, stage.inputs


def all_systems() -> dict[str, Any]:
    """The micro profile with every system."""
    return changed(micro_table(), "study.systems", ["*"])


def parts_by_stage(table: dict[str, Any]) -> dict[str, Any]:
    return {name: parts(stage) for name, stage in stages(parse_profile(table)).items()}


@pytest.fixture(scope="module")
def unchanged() -> dict[str, Any]:
    return parts_by_stage(all_systems())


def changed_and_common(field: str, before: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The stages whose part of the key changes with the field, and all stages that exist before and after."""
    after = parts_by_stage(changed(all_systems(), field, FIELDS[field][0]))
    common = before.keys() & after.keys()
    return {name for name in common if before[name] != after[name]}, common


def leaves(table: dict[str, Any], above: str = "") -> set[str]:
    names = set()
    for name, value in table.items():
        names |= leaves(value, f"{above}{name}.") if isinstance(value, dict) else {above + name}
    return names


def test_the_table_lists_every_field_of_a_profile() -> None:
    assert set(FIELDS) | TESTED_ELSEWHERE == leaves(micro_table())


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_changes_the_keys_of_the_stages_that_use_it_and_no_others(
    field: str, unchanged: dict[str, Any]
) -> None:
    different, common = changed_and_common(field, unchanged)
    assert different == {name for name in common if listed(FIELDS[field][1], name)}


def test_a_field_that_is_missing_in_a_configuration_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = train.configuration

    def without_precision(recipe: Recipe, profile: Profile) -> train.TrainConfiguration:
        config = original(recipe, profile)
        return dataclasses.replace(config, run=config.run and dataclasses.replace(config.run, bf16=False))

    monkeypatch.setattr(train, "configuration", without_precision)
    assert changed_and_common("run.bf16", parts_by_stage(all_systems()))[0] == {
        "control:advmoe-unsafe"
    }  # it imported the original function


def test_a_field_that_a_configuration_must_not_contain_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original = train.configuration
    monkeypatch.setattr(
        train,
        "configuration",
        lambda recipe, profile: dataclasses.replace(original(recipe, profile), seed_group=profile.summary),
    )
    assert "train:dwf" in changed_and_common("summary", parts_by_stage(all_systems()))[0]


def keys_of(**fields: Any) -> dict[str, str]:
    """The key of every stage of a small profile with other values of some fields."""
    table = micro_numbers.table()
    for field, value in fields.items():
        table = changed(table, field.replace("__", "."), value)
    study = Study(parse_profile(table), workers=1)
    return {name: study.key(stage) for name, stage in study.stages.items()}


def test_other_images_change_every_key(home: Path) -> None:
    before = keys_of()
    for field in DATA:
        after = keys_of(**{field: FIELDS[field][0]})
        assert all(before[name] != after[name] for name in before), field


def test_a_changed_input_changes_the_keys_of_the_stages_that_need_it(home: Path) -> None:
    before, after = keys_of(), keys_of(phase1__lr=0.01)
    assert {name for name in before if before[name] == after[name]} == {"data"}  # all others need a trained network


def test_mixing_retrains_only_the_mixtures_whose_mixing_is_that_of_the_profile(home: Path) -> None:
    before = keys_of(study__systems=["*"])
    after = keys_of(study__systems=["*"], model__mixing="logits")
    names = [name for name in before if name.startswith("train:")]
    retrained = {name for name in names if before[name] != after[name]}
    systems = recipes(parse_profile(all_systems())).values()
    mixtures = {recipe.system for recipe in systems if recipe.network.kind == "mixture" and recipe.update_steps}
    assert retrained == {f"train:{system}" for system in mixtures - {"soe-moe", "more-own"}}  # these always mix logits
    assert (len(retrained), len(names)) == (16, 81)


# -- a computation uses its arguments only ---------------------------------------------------------------------------


def other_inputs(compute: Callable[..., Any]) -> list[str]:
    """Ways in which a computation could use values other than its arguments."""
    if not inspect.isfunction(compute):
        return ["not a plain function"]
    reasons = ["a closure"] if compute.__closure__ else []
    reasons += ["default values"] if compute.__defaults__ or compute.__kwdefaults__ else []
    module = sys.modules[compute.__module__]
    return reasons + (
        ["not a function of its module"] if getattr(module, compute.__name__, None) is not compute else []
    )


def test_computations_are_functions_of_their_configuration(micro: Profile) -> None:
    kinds = defaultdict(set)
    for name, stage in stages(micro).items():
        assert other_inputs(stage.compute) == []
        assert dataclasses.is_dataclass(stage.config)
        hash(stage.config)  # frozen, with frozen fields
        kinds[stage.compute].add(name.split(":")[0])
    assert len(kinds) == 11


def test_a_computation_with_other_inputs_is_detected(micro: Profile) -> None:
    assert other_inputs(lambda context, config: micro.summary) == ["a closure", "not a function of its module"]


# -- recipes ---------------------------------------------------------------------------------------------------------

# field -> (another value for a trained mixture, whether its training uses the field, whether its evaluation does)
RECIPE: dict[str, tuple[Any, bool, bool]] = {
    "system": ("other", True, True),
    "description": ("other words", False, False),
    "family": ("defence", False, False),
    "network": (Network("mixture", experts=9, gate="uniform"), True, True),
    "starts_from": (("expert-1",) * 9, True, False),
    "weights_of": ("frozen", False, True),
    "update_steps": ((), True, True),  # without training, its weights are those of the experts
    "training": (None, True, False),
    "select": ("clean", True, False),
    "as_published": (True, False, False),
    "seed_group": ("other", True, False),
    "code": ("0123", True, True),
}
NETWORK: dict[str, Any] = {
    "kind": "soe",
    "member": "vgg16",
    "width": 2,
    "experts": 3,
    "gate": "uniform",
    "gate_width": 2,
    "mixing": "logits",
    "top1": True,
}


def test_the_tables_list_every_field() -> None:
    assert set(RECIPE) == {field.name for field in dataclasses.fields(Recipe)}
    assert set(NETWORK) == {field.name for field in dataclasses.fields(Network)}


@pytest.mark.parametrize("name", RECIPE)
def test_a_field_of_a_recipe_changes_the_keys_of_the_stages_that_use_it(name: str, micro: Profile) -> None:
    value, *uses = RECIPE[name]
    before = recipes(micro)["dwf"]
    if name == "training":
        value = dataclasses.replace(micro.phase2, lr=0.01)
    assert training_and_evaluation_differ(before, dataclasses.replace(before, **{name: value}), micro) == uses


def test_every_field_of_a_network_changes_the_keys_of_training_and_evaluation(micro: Profile) -> None:
    before = recipes(micro)["dwf"]
    for name, value in NETWORK.items():
        after = dataclasses.replace(before, network=dataclasses.replace(before.network, **{name: value}))
        assert training_and_evaluation_differ(before, after, micro) == [True, True], name


def test_the_version_of_an_extension_changes_the_evaluation_of_a_system_without_training(micro: Profile) -> None:
    before = dataclasses.replace(recipes(micro)["uniform"], code="first")
    assert training_and_evaluation_differ(before, dataclasses.replace(before, code="second"), micro)[1]


def training_and_evaluation_differ(before: Recipe, after: Recipe, profile: Profile) -> list[bool]:
    spec = headline(profile.evaluation)
    return [
        parts(train.training(before, profile)) != parts(train.training(after, profile)),
        parts(evaluation(before, spec, profile)) != parts(evaluation(after, spec, profile)),
    ]
