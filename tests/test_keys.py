"""A stage's key changes if, and only if, the stage can see the change.

Two halves. A computation is a plain function of its context and its configuration, so it sees nothing else; and a
table says for every leaf of a profile and every field of a recipe which configurations hold it. That the
configurations hold nothing that is not read is checked where all stages are computed, in ``test_study.py``.
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

import pytest
from toys import changed, micro_table

from paperlib import Profile, Study
from paperlib.config.schema import parse_profile
from paperlib.pipeline.keys import as_json
from paperlib.pipeline.stage import Stage
from paperlib.pipeline.stages import evaluation, stages, train
from paperlib.systems.recipe import Network, Recipe
from paperlib.systems.registry import recipes

Table = dict[str, list[str]]

# -- which stages hold what ------------------------------------------------------------------------------------------

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
GATES = [*LEARNED, *SMALL, "advmoe", "advmoe-own"]  # all that has a gate, a router or a small network
TRAINED: Table = {"train": ALL, "control": ALL}
PGD = ["*:*:pgd-*"]

HOLDS: dict[str, tuple[Any, Table]] = {
    "summary": ("other words", {}),
    "name": ("other", {}),
    "data.train": (50, {}),  # these four act by the fingerprint of the data
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
    # The uniform average is one of probabilities, whatever DWF mixes.
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
    "evaluation.steps_sweep": ([1], {}),  # all are read off one run
    "evaluation.batch_size": (21, {"evaluate": ALL, "stress": ALL}),
    "stress.images": (7, {kind: ALL for kind in ("stress", "autoattack", "audit")}),
    "stress.autoattack": ("all", {}),  # which systems face it
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
# Which other images, which stages there are, where a file lies: no leaf of these can be set to another value here.
ELSEWHERE = {"data.name", "study.systems", "study.extension", "base"}
DATA = ("data.train", "data.validation", "data.test", "data.split_seed")


def held(table: Table, name: str) -> bool:
    """Whether the table lists a stage; patterns that begin with ``!`` take names out again."""
    kind, _, rest = name.partition(":")
    system = rest.split(":")[0]
    patterns = table.get(kind, [])
    out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    given = [pattern for pattern in patterns if not pattern.startswith("!")] or (ALL if out else [])
    names = [p for p in given if fnmatch.fnmatch(f"{kind}:{rest}" if p.startswith("*:") else system, p)]
    return bool(names) and not any(fnmatch.fnmatch(system, pattern) for pattern in out)


def own(stage: Stage) -> Any:
    """What of a key is the stage's own: all but data, seed and the results of its inputs."""
    return stage.version, as_json(stage.config), stage.threads, stage.inputs


def differing(leaf: str, build: Callable[[Profile], dict[str, Stage]] = stages) -> tuple[set[str], set[str]]:
    """The stages whose own part of the key differs once a leaf is set to the table's value, and those to compare."""
    value, _ = HOLDS[leaf]
    before = build(parse_profile(micro_table()))
    after = build(parse_profile(changed(micro_table(), leaf, value)))
    both = before.keys() & after.keys()
    return {name for name in both if own(before[name]) != own(after[name])}, both


def leaves(table: dict[str, Any], above: str = "") -> set[str]:
    found = set()
    for name, value in table.items():
        found |= leaves(value, f"{above}{name}.") if isinstance(value, dict) else {above + name}
    return found


def test_the_table_lists_every_leaf_of_a_profile() -> None:
    assert set(HOLDS) | ELSEWHERE == leaves(micro_table())


@pytest.mark.parametrize("leaf", HOLDS)
def test_a_leaf_reaches_the_keys_of_the_stages_that_see_it_and_no_others(leaf: str) -> None:
    found, both = differing(leaf)
    expected = {name for name in both if held(HOLDS[leaf][1], name)}
    assert found == expected


def test_a_leaf_that_a_configuration_leaves_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.configuration

    def without_precision(recipe: Recipe, profile: Profile) -> train.TrainConfiguration:
        config = whole(recipe, profile)
        return dataclasses.replace(config, run=config.run and dataclasses.replace(config.run, bf16=False))

    monkeypatch.setattr(train, "configuration", without_precision)
    with pytest.raises(AssertionError):
        test_a_leaf_reaches_the_keys_of_the_stages_that_see_it_and_no_others("run.bf16")


def test_a_leaf_that_a_configuration_should_not_hold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.configuration
    monkeypatch.setattr(
        train,
        "configuration",
        lambda recipe, profile: dataclasses.replace(whole(recipe, profile), seed_group=profile.summary),
    )
    with pytest.raises(AssertionError):
        test_a_leaf_reaches_the_keys_of_the_stages_that_see_it_and_no_others("summary")


@pytest.mark.parametrize("leaf", DATA)
def test_other_images_change_every_key(leaf: str, home: Path) -> None:
    before, after = (
        Study(parse_profile(table), workers=1)
        for table in (micro_table(), changed(micro_table(), leaf, HOLDS[leaf][0]))
    )
    assert all(before.key(before.stages[name]) != after.key(after.stages[name]) for name in before.stages)


def test_what_an_input_depends_on_reaches_the_stages_that_need_it(home: Path) -> None:
    before, after = (
        Study(parse_profile(table), workers=1) for table in (micro_table(), changed(micro_table(), "phase1.lr", 0.01))
    )
    same = {name for name in before.stages if before.key(before.stages[name]) == after.key(after.stages[name])}
    assert same == {"data"}  # everything else rests on a network of phase 1


def test_mixing_retrains_the_mixtures_that_mix_by_the_profile_and_nothing_else(home: Path) -> None:
    before, after = (
        Study(parse_profile(table), workers=1)
        for table in (micro_table(), changed(micro_table(), "model.mixing", "logits"))
    )
    names = [name for name in before.stages if name.startswith("train:")]
    again = {name for name in names if before.key(before.stages[name]) != after.key(after.stages[name])}
    mixtures = {r.system for r in recipes(before.profile).values() if r.network.kind == "mixture" and r.update_steps}
    assert again == {f"train:{system}" for system in mixtures - {"soe-moe", "more-own"}}  # these two always mix logits
    assert (len(again), len(names)) == (16, 81)


# -- a computation sees its configuration and nothing else -----------------------------------------------------------


def hidden(compute: Callable[..., Any]) -> list[str]:
    """By what a computation could see more than its arguments."""
    found = []
    if not inspect.isfunction(compute):
        found.append("not a plain function")
    else:
        found += ["a closure"] if compute.__closure__ else []
        found += ["default values"] if compute.__defaults__ or compute.__kwdefaults__ else []
        module = sys.modules[compute.__module__]
        found += ["not a function of its module"] if getattr(module, compute.__name__, None) is not compute else []
    return found


def test_computations_are_functions_of_their_configuration(micro: Profile) -> None:
    kinds = defaultdict(set)
    for name, stage in stages(micro).items():
        assert hidden(stage.compute) == []
        assert dataclasses.is_dataclass(stage.config)
        hash(stage.config)  # frozen all the way down
        kinds[stage.compute].add(name.split(":")[0])
    assert len(kinds) == 11


def test_a_computation_that_sees_more_is_found(micro: Profile) -> None:
    assert hidden(lambda context, config: micro.summary) == ["a closure", "not a function of its module"]


# -- recipes ---------------------------------------------------------------------------------------------------------

# field -> (another value for a trained mixture, whether its training holds it, whether its evaluation does)
RECIPE: dict[str, tuple[Any, bool, bool]] = {
    "system": ("other", True, True),
    "story": ("other words", False, False),
    "family": ("defence", False, False),
    "network": (Network("mixture", experts=9, gate="uniform"), True, True),
    "starts_from": (("expert-1",) * 9, True, False),
    "weights_of": ("frozen", False, True),
    "turns": ((), True, True),  # without training, the experts' own weights are its weights
    "training": (None, True, False),
    "select": ("clean", True, False),
    "own": (True, False, False),
    "luck": ("other", True, False),
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
def test_a_field_of_a_recipe_reaches_the_stages_that_see_it(name: str, micro: Profile) -> None:
    value, trained, evaluated = RECIPE[name]
    before = recipes(micro)["dwf"]
    if name == "training":
        value = dataclasses.replace(micro.phase2, lr=0.01)
    after = dataclasses.replace(before, **{name: value})
    spec = evaluation_spec(micro)
    assert (own(train.training(before, micro)) != own(train.training(after, micro))) == trained
    assert (own(evaluation(before, spec, micro)) != own(evaluation(after, spec, micro))) == evaluated


@pytest.mark.parametrize("name", NETWORK)
def test_every_part_of_a_network_reaches_training_and_evaluation(name: str, micro: Profile) -> None:
    before = recipes(micro)["dwf"]
    after = dataclasses.replace(before, network=dataclasses.replace(before.network, **{name: NETWORK[name]}))
    spec = evaluation_spec(micro)
    assert own(train.training(before, micro)) != own(train.training(after, micro))
    assert own(evaluation(before, spec, micro)) != own(evaluation(after, spec, micro))


def test_the_version_of_an_extension_reaches_the_evaluation_of_a_system_without_training(micro: Profile) -> None:
    before = dataclasses.replace(recipes(micro)["uniform"], code="first")
    after = dataclasses.replace(before, code="second")
    spec = evaluation_spec(micro)
    assert own(evaluation(before, spec, micro)) != own(evaluation(after, spec, micro))


def evaluation_spec(profile: Profile) -> Any:
    from paperlib.evaluation import headline

    return headline(profile.evaluation)
