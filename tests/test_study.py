"""A study finds, replays or computes: nothing twice, nothing from elsewhere, and every number with its origin."""

from __future__ import annotations

import dataclasses
import getpass
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import micro_numbers
import pytest
import torch
from filelock import FileLock, Timeout
from toys import changed, die, fail, fail_plain, fields_of, live_in, logged, micro_table, recorded, same_state

from paperlib import Profile, Study, load_profile, load_system
from paperlib.atomic_files import read_json
from paperlib.attacks import NEVER
from paperlib.config.schema import parse_profile
from paperlib.errors import DataError, MissingError, NotFiniteError, PaperlibError, ProfileError, StoreError
from paperlib.evaluation import CLEAN, fgsm_spec, headline, pgd_spec, wilson
from paperlib.models import Mixture, ResNet
from paperlib.paths import ROOT, published_dir, store_dir
from paperlib.pipeline.compute import compute_stage
from paperlib.pipeline.publish import publish
from paperlib.pipeline.stage import Stage
from paperlib.pipeline.stages import BEST_EXPERT, stages
from paperlib.systems.experts import EXPERTS
from paperlib.systems.registry import COMPARED

EXPERT_STAGES = [f"train:{name}" for name in EXPERTS]


def study(profile: Profile, **settings: Any) -> Study:
    return Study(profile, **({"workers": 1} | settings))


@pytest.fixture(scope="session")
def reads() -> dict[str, set[str]]:
    """Which fields of its configuration each stage read while it was computed; `computed` fills it."""
    return {}


@pytest.fixture(scope="session")
def computed(micro: Profile, reads: dict[str, set[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage of the micro profile has been computed and published. Copy before use."""
    folder = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patched:
        live_in(folder, patched)
        here = study(micro)
        here.stages = {name: watched(stage, reads.setdefault(name, set())) for name, stage in here.stages.items()}
        here.compute()
        publish(micro)
    return folder


def watched(stage: Stage, reads: set[str]) -> Stage:
    """The stage, with what its computation reads of its configuration noted in ``reads``."""
    compute = stage.compute
    return dataclasses.replace(stage, compute=lambda context, config: compute(context, recorded(config, reads)))


@pytest.fixture
def full(computed: Path, home: Path) -> Path:
    """A home of one's own in which everything is computed and published."""
    shutil.copytree(computed, home, dirs_exist_ok=True)
    return home


@pytest.fixture
def replayed(computed: Path, home: Path) -> Path:
    """A home of one's own that holds published records and nothing else."""
    shutil.copytree(computed / "published", home / "published")
    return home


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise DataError("no data here")

    monkeypatch.setattr("paperlib.pipeline.study_data.load_dataset", refuse)


# -- finding and computing -------------------------------------------------------------------------------------------


def test_a_result_is_computed_with_its_inputs_and_only_once(micro: Profile, home: Path, log_lines: list[str]) -> None:
    lines = log_lines
    first = study(micro).get("evaluate:plain:clean")
    assert [line for line in lines if line.startswith("[")] == ["[1/2] train:plain", "[2/2] evaluate:plain:clean"]
    assert first.source == "computed"
    lines.clear()
    again = study(micro).get("evaluate:plain:clean")
    assert lines == []
    assert again.record == first.record
    assert {name: value.tolist() for name, value in again.arrays.items()} == {
        name: value.tolist() for name, value in first.arrays.items()
    }


def test_missing_names_inputs_before_what_needs_them(micro: Profile, home: Path) -> None:
    found = study(micro).missing(["evaluate:dwf:clean"])
    assert found == [*EXPERT_STAGES, "train:dwf", "evaluate:dwf:clean"]


def test_missing_leaves_out_what_is_there(micro: Profile, full: Path) -> None:
    here = study(micro, replay=False)
    assert here.missing(list(here.stages)) == []
    here.forget(["train:dwf", "evaluate:dwf:clean", "train:expert-4"])
    assert here.missing(["evaluate:dwf:clean"]) == ["train:expert-4", "train:dwf", "evaluate:dwf:clean"]
    assert here.missing(["evaluate:dwf:fgsm@0.1"]) == []  # its record is there, so its weights are not asked for


def test_a_published_record_is_no_input_for_a_new_computation(micro: Profile, replayed: Path) -> None:
    here = study(parse_profile(changed(micro_table(), "evaluation.step", "0.05")))
    assert here.missing(["train:plain", "evaluate:plain:fgsm@0.1"]) == []
    assert here.missing(["evaluate:plain:pgd-2@0.1"]) == ["train:plain", "evaluate:plain:pgd-2@0.1"]


def test_what_another_process_computed_meanwhile_is_taken(
    micro: Profile, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(context: object, config: object) -> None:
        raise AssertionError("computed again")

    here = study(micro)
    here.stages["data"] = dataclasses.replace(here.stages["data"], compute=refuse)  # type: ignore[arg-type]
    monkeypatch.setattr(here, "missing", lambda names, **kw: names)  # as it was when this process looked
    here.compute(["data"])
    here.forget(["data"])
    with pytest.raises(AssertionError, match="computed again"):
        here.compute(["data"])


def test_all_inputs_are_stages_listed_before_what_needs_them(micro: Profile) -> None:
    order = {name: place for place, name in enumerate(stages(micro))}
    assert len(order) > 60
    for name, stage in stages(micro).items():
        assert name == stage.name
        assert all(order[needed] < order[name] for needed in stage.inputs)


def test_a_seed_changes_every_key(home: Path, micro: Profile) -> None:
    one, other = study(micro), study(micro, seed=1)
    assert all(one.key(one.stages[name]) != other.key(other.stages[name]) for name in one.stages)


def test_two_workers_compute_what_one_computes(
    micro: Profile, home: Path, computed: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    lines = log_lines
    wanted = ["evaluate:plain:fgsm@0.1", "evaluate:pgd-at:pgd-2@0.1"]
    here = study(micro, workers=2, replay=False)
    here.compute(wanted)
    assert "computing 4 stages of micro, seed 0, in 2 process(es)" in lines
    assert any("epoch" in line for line in lines)  # what the workers say is heard
    wanted.append("train:plain")
    found = [here.find(name) for name in wanted]
    monkeypatch.setenv("PAPERLIB_HOME", str(computed / "home"))
    one = study(micro)
    for artefact, name in zip(found, wanted, strict=True):
        expected = one.find(name)
        assert artefact is not None
        assert expected is not None
        assert artefact.key == expected.key
        assert artefact.arrays.keys() == expected.arrays.keys()
        assert all(torch.equal(artefact.arrays[a], expected.arrays[a]) for a in expected.arrays)
        assert without_times(artefact.record) == without_times(expected.record)


def without_times(value: Any) -> Any:
    """A record without what differs from one computation to the next."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "created", "commit")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def test_a_worker_that_is_killed_is_one_clear_error(
    micro: Profile, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.pipeline.compute._work", die)
    with pytest.raises(PaperlibError, match=r"worker process died while computing train:pgd-at, train:plain;"):
        study(micro, workers=2).compute(["train:plain", "train:pgd-at"])


def test_an_error_in_a_worker_is_told_as_it_is(micro: Profile, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperlib.pipeline.compute._work", fail_plain)
    with pytest.raises(NotFiniteError, match=r"^train:plain: the loss is nan$"):
        study(micro, workers=2).compute(["train:plain", "train:expert-0"])


def test_workers_do_not_outlive_the_process_that_started_them(home: Path) -> None:
    script = (
        "import paperlib, paperlib.pipeline.compute, toys; paperlib.pipeline.compute._work = toys.linger\n"
        "profile = paperlib.pipeline.compute.parse_profile(toys.micro_table())\n"
        "if __name__ == '__main__':\n"
        "    paperlib.Study(profile, workers=2).compute(['train:plain', 'train:pgd-at'])\n"
    )
    signs = [home / "home" / "train-plain", home / "home" / "train-pgd-at"]
    signs[0].parent.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not all(sign.exists() for sign in signs) and parent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert all(sign.exists() for sign in signs)
        with pytest.raises(Timeout):
            FileLock(signs[0].with_suffix(".lock")).acquire(timeout=0)
    finally:
        parent.kill()
        parent.wait()
    for sign in signs:
        FileLock(sign.with_suffix(".lock")).acquire(timeout=20)


def test_an_interrupted_training_goes_on_where_it_was(
    micro: Profile, home: Path, computed: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    def stop(line: str) -> None:
        if "epoch   1/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), logged(stop):
        study(micro).compute(["train:plain"])
    lines = log_lines
    here = study(micro)
    assert here.checkpoint("train:plain").exists()
    found = here.get("train:plain")
    assert "plain: going on after epoch 1 of 2" in lines
    assert not here.checkpoint("train:plain").exists()
    monkeypatch.setenv("PAPERLIB_HOME", str(computed / "home"))
    expected = study(micro).get("train:plain")
    assert without_times(found.record) == without_times(expected.record)
    assert found.weights is not None
    assert expected.weights is not None
    assert found.weights.read_bytes() == expected.weights.read_bytes()


# -- forgetting ------------------------------------------------------------------------------------------------------


def test_forgetting_deletes_what_is_named(micro: Profile, full: Path) -> None:
    here = study(micro, replay=False)
    assert here.forget(["train:dwf", "data"]) == 2
    assert here.forget(["train:dwf", "data"]) == 0
    assert here.find("train:dwf") is None
    assert here.find("train:frozen") is not None


def test_forgetting_nothing_deletes_nothing(micro: Profile, full: Path) -> None:
    here = study(micro, replay=False)
    assert here.forget([]) == 0
    assert here.missing(list(here.stages)) == []


def test_forgetting_all_leaves_nothing(micro: Profile, full: Path) -> None:
    here = study(micro, replay=False)
    assert here.forget() == len(here.stages)
    assert here.missing(["data"]) == ["data"]


def test_a_forgotten_training_starts_over(micro: Profile, home: Path) -> None:
    here = study(micro)
    unfinished = here.checkpoint("train:plain")
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"of a run that was stopped")
    here.forget(["train:plain"])
    assert not unfinished.exists()


# -- published records -----------------------------------------------------------------------------------------------


def test_what_this_machine_computed_comes_before_what_was_published(micro: Profile, full: Path) -> None:
    here = study(micro)
    assert here.get("evaluate:dwf:clean").source == "computed"
    here.forget(["evaluate:dwf:clean"])
    assert here.get("evaluate:dwf:clean").source == "published"
    assert study(micro, replay=False).find("evaluate:dwf:clean") is None
    assert set(here.used) == {"evaluate:dwf:clean"}


def test_replay_gives_the_published_results_without_data_weights_or_computing(
    micro: Profile, replayed: Path, computed: Path, no_data: None, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    lines = log_lines
    here = study(micro)
    found = {name: here.get(name) for name in here.stages}
    assert lines == []
    assert not store_dir().exists()
    monkeypatch.setenv("PAPERLIB_HOME", str(computed / "home"))
    source = Study(micro, replay=True)
    for name, artefact in found.items():
        original = source.get(name)
        assert (artefact.source, original.source) == ("published", "computed")
        assert artefact.weights is None
        assert artefact.record == original.record
        assert artefact.arrays.keys() == original.arrays.keys()
        for array, value in original.arrays.items():
            assert artefact.arrays[array].dtype == value.dtype
            assert torch.equal(artefact.arrays[array], value)


def test_without_replay_published_records_are_not_read(micro: Profile, replayed: Path) -> None:
    here = study(micro, replay=False)
    assert here.missing(list(here.stages)) == list(here.stages)
    index = published_dir("micro") / "index.json"
    index.write_text("damaged")
    assert here.find("data") is None


def test_published_records_alone_can_be_asked_for(micro: Profile, full: Path) -> None:
    here = study(micro, local=False)
    assert here.get("evaluate:dwf:clean").source == "published"
    with pytest.raises(MissingError, match="not among the published records of seed 1"):
        study(micro, seed=1, local=False).get("evaluate:dwf:clean")


def test_records_of_another_configuration_or_seed_are_not_replayed(micro: Profile, replayed: Path) -> None:
    other = parse_profile(changed(micro_table(), "phase1.lr", 0.123))
    assert study(other).find("evaluate:dwf:clean") is None
    assert study(other).find("data") is not None
    assert study(micro, seed=1).find("evaluate:dwf:clean") is None


def test_a_new_result_on_top_of_published_records_computes_the_weights_it_needs(micro: Profile, replayed: Path) -> None:
    here = study(micro)
    assert here.missing(["evaluate:plain:clean"]) == []
    spec = fgsm_spec(Fraction("0.07"))
    assert here.outcome("plain", spec).source == "computed"
    assert here.find("train:plain").source == "computed"  # type: ignore[union-attr]
    assert here.find("train:expert-0").source == "published"  # type: ignore[union-attr]


def test_weights_are_computed_with_the_weights_they_start_from(micro: Profile, replayed: Path) -> None:
    here = study(micro)
    here.compute(["train:frozen", "evaluate:plain:clean"], weights=True)
    assert here.find("train:frozen", weights=True) is not None
    assert here.find("evaluate:plain:clean").source == "published"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["records-seed-0.json", "arrays-seed-0.safetensors", "weights-dwf-seed-0.safetensors"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_changed_published_file_is_refused_by_name(micro: Profile, replayed: Path, name: str, damage: str) -> None:
    path = published_dir("micro") / name
    content = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(StoreError, match=rf"{name}: missing or changed since it was published; restore it from git"):
        load_system("dwf", micro) if name.startswith("weights") else study(micro).get("evaluate:dwf:clean")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"seeds": [0]}', '{"fingerprint": "x", "seeds": 0}'])
def test_a_damaged_index_is_refused_by_name(micro: Profile, replayed: Path, content: str) -> None:
    (published_dir("micro") / "index.json").write_text(content)
    with pytest.raises(StoreError, match=r"index\.json"):
        study(micro).get("evaluate:dwf:clean")


def test_data_that_are_not_the_published_ones_are_refused(micro: Profile, replayed: Path) -> None:
    other = parse_profile(changed(micro_table(), "data.split_seed", 5))
    with pytest.raises(DataError, match="are not those of the published records"):
        _ = study(other).data
    assert study(other, replay=False).data.label == "digits"


def test_publishing_needs_every_stage(micro: Profile, full: Path) -> None:
    before = read_json(published_dir("micro") / "index.json")
    study(micro, replay=False).forget(["trace:dwf"])
    with pytest.raises(MissingError, match=r"trace:dwf.*python -m paperlib run --profile micro --seeds 0"):
        publish(micro)
    assert read_json(published_dir("micro") / "index.json") == before


def test_publishing_twice_gives_the_same_files(micro: Profile, full: Path) -> None:
    folder = published_dir("micro")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    publish(micro)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir() if not path.name.startswith(".")] == ["micro"]


def test_published_files_are_small_and_hold_no_path_host_or_user(micro: Profile, replayed: Path) -> None:
    folder = published_dir("micro")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    texts = list(strings(read_json(folder / "index.json"))) + list(strings(read_json(folder / "records-seed-0.json")))
    assert len(texts) > 1000
    private = re.compile(
        rf"^[/~\\]|^[A-Za-z]:\\|/home/|\b{getpass.getuser()}@|{re.escape(str(ROOT))}|\b{re.escape(socket.gethostname())}\b"
    )
    assert [text for text in texts if private.search(text)] == []


def strings(value: Any) -> Iterator[str]:
    """Every piece of text in a JSON value, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


# -- systems ---------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_there_are_an_error_with_the_command_that_makes_them(micro: Profile, home: Path) -> None:
    command = r"python -m paperlib run --profile micro --seeds 3 --stage train:plain"
    with pytest.raises(MissingError, match=command):
        load_system("plain", micro, seed=3)
    with pytest.raises(MissingError, match="train:expert-0"):
        load_system("uniform", micro)


def test_a_loaded_system_is_a_classifier_in_evaluation_mode(micro: Profile, full: Path) -> None:
    for system, kind in (("plain", ResNet), ("expert-8", ResNet), ("uniform", Mixture), ("dwf", Mixture)):
        model = load_system(system, micro)
        assert isinstance(model, kind)
        assert not any(module.training for module in model.modules())
        assert model(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_published_half_weights_answer_as_the_computed_model(micro: Profile, full: Path) -> None:
    images = study(micro).data.test.images
    computed = load_system("dwf", micro)
    study(micro).forget()
    shutil.rmtree(store_dir())
    halved = load_system("dwf", micro)
    assert {p.dtype for p in halved.parameters()} == {torch.float32}
    assert not halved.training
    answers = [model(images) for model in (computed, halved)]
    assert torch.allclose(*answers, atol=0.05)
    assert (answers[0].argmax(dim=1) == answers[1].argmax(dim=1)).float().mean() > 0.95
    assert not same_state(computed, halved)  # these were rounded, so they are the published ones
    with pytest.raises(MissingError, match="train:plain"):
        load_system("plain", micro)


def test_published_weights_of_another_configuration_are_not_served(micro: Profile, replayed: Path) -> None:
    other = parse_profile(changed(micro_table(), "phase2.lr", 0.123))
    with pytest.raises(MissingError, match="train:dwf"):
        load_system("dwf", other)
    with pytest.raises(MissingError, match="train:dwf"):
        load_system("dwf", micro, seed=1)


def test_frozen_keeps_the_experts_it_starts_from_and_dwf_moves_them(micro: Profile, full: Path) -> None:
    experts = [load_system(name, micro) for name in EXPERTS]
    frozen, joint, uniform = (load_system(name, micro) for name in ("frozen", "dwf", "uniform"))
    for i, expert in enumerate(experts):
        assert same_state(frozen.get_submodule(f"experts.{i}"), expert)
        assert same_state(uniform.get_submodule(f"experts.{i}"), expert)
        assert not same_state(joint.get_submodule(f"experts.{i}"), expert)
        assert not any(same_state(expert, other) for other in experts[:i])  # each is trained by itself


@pytest.mark.parametrize("call", [lambda s: s.stage("train:dfw"), lambda s: s.get("x"), lambda s: s.compute(["x"])])
def test_an_unknown_stage_is_refused(micro: Profile, home: Path, call: Any) -> None:
    with pytest.raises(MissingError, match="unknown stage"):
        call(study(micro))


def test_an_unknown_system_is_refused(micro: Profile, home: Path) -> None:
    with pytest.raises(MissingError, match=r"unknown system 'dfw'.*dwf"):
        load_system("dfw", micro)
    with pytest.raises(MissingError, match=r"unknown system 'dfw'.*dwf"):
        study(micro).outcome("dfw", CLEAN)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": "0"}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"replay": "False"}, "replay"),
        ({"replay": 0}, "replay"),
    ],
)
def test_settings_of_a_wrong_type_are_refused(micro: Profile, home: Path, settings: Any, word: str) -> None:
    with pytest.raises(PaperlibError, match=f"{word}="):
        Study(micro, **settings)


@pytest.mark.parametrize("profile", [8, None, "digit", True])
def test_a_profile_that_is_none_is_refused(home: Path, profile: Any) -> None:
    with pytest.raises(ProfileError):
        Study(profile)
    with pytest.raises(ProfileError):
        load_system("dwf", profile)


def test_a_profile_may_be_given_by_name(home: Path) -> None:
    assert Study("smoke").profile == load_profile("smoke")


def test_a_number_of_workers_that_is_none_is_refused(
    micro: Profile, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_WORKERS", "3")
    assert Study(micro).workers == 3
    monkeypatch.setenv("PAPERLIB_WORKERS", "two")
    with pytest.raises(PaperlibError, match="PAPERLIB_WORKERS=two"):
        Study(micro)


# -- attacks outside the series --------------------------------------------------------------------------------------


def test_an_attack_of_the_series_is_found_and_not_computed_again(
    micro: Profile, full: Path, log_lines: list[str]
) -> None:
    lines = log_lines
    here = study(micro)
    found = here.outcome("dwf", headline(micro.evaluation))
    assert found.key == here.key(here.stage("evaluate:dwf:pgd-2@0.1"))
    assert lines == []


def test_an_attack_with_another_step_size_is_another_result(micro: Profile, full: Path) -> None:
    here = study(micro)
    usual = headline(micro.evaluation)
    other = pgd_spec(usual.eps, usual.steps, usual.step / 10)
    started = dataclasses.replace(usual, random_start=False)
    assert usual.name == other.name == started.name
    results = [here.outcome("plain", spec) for spec in (usual, other, started)]
    assert len({result.key for result in results}) == 3
    assert [result.record["result"]["attack"] for result in results] == [s.table() for s in (usual, other, started)]
    assert study(micro).outcome("plain", other).key == results[1].key  # kept like any other


def test_an_attack_outside_the_series_is_computed_although_workers_do_not_know_it(micro: Profile, home: Path) -> None:
    here = study(micro, workers=2)
    result = here.outcome("plain", fgsm_spec(Fraction("0.03"))).record["result"]
    assert (result["attack"]["eps"], result["n"]) == ("0.03", 30)


# -- what the records say --------------------------------------------------------------------------------------------


def test_a_record_carries_all_that_was_promised(micro: Profile, full: Path) -> None:
    here = study(micro, replay=False)
    artefact = here.get("evaluate:dwf:pgd-2@0.1")
    result, facts = artefact.record["result"], artefact.record["provenance"]
    assert result["system"] == "dwf"
    assert result["attack"] == {
        "kind": "pgd",
        "eps": "0.1",
        "step": "0.025",
        "steps": 2,
        "restarts": 1,
        "random_start": True,
        "aim": "cross-entropy",
    }
    correct = artefact.arrays["correct"]
    assert (result["n"], result["correct"]) == (30, int(correct.sum()))
    assert result["interval"] == list(wilson(result["correct"], 30))
    assert result["passes_per_image"] >= 1
    assert result["seconds"] > 0
    assert (facts["seed"], facts["profile"], facts["stage"]) == (0, "micro", "evaluate:dwf:pgd-2@0.1")
    assert facts["key"] == artefact.key == here.key(here.stage("evaluate:dwf:pgd-2@0.1"))
    assert facts["inputs"] == {"train:dwf": here.get("train:dwf").key}
    assert facts["data"] == here.data.fingerprint
    assert facts["threads"] == 1
    assert facts["device"].startswith("cpu (")
    assert {"torch", "torchvision", "numpy", "python", "safetensors"} <= set(facts["versions"])
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert re.fullmatch(r"[0-9a-f]{12}\+?|unknown", facts["commit"])
    assert re.fullmatch(r"[0-9a-f]{12}", facts["source"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["created"])
    assert facts["seconds"] > 0
    json.dumps(artefact.record, allow_nan=False)


def test_every_record_has_the_same_provenance_fields(micro: Profile, replayed: Path) -> None:
    here = study(micro)
    fields = {frozenset(here.get(name).record["provenance"]) for name in here.stages}
    assert len(fields) == 1


def test_every_compared_system_meets_every_attack_of_the_sweep(micro: Profile) -> None:
    listed = stages(micro)
    for system in COMPARED:
        for attack in ("clean", "fgsm@0.1", "pgd-2@0.1", "fgsm@0.2", "pgd-2@0.2"):
            assert f"evaluate:{system}:{attack}" in listed
    for expert in EXPERTS:
        assert f"evaluate:{expert}:pgd-2@0.1" in listed


def test_recorded_accuracy_is_that_of_the_loaded_system(micro: Profile, full: Path) -> None:
    here = study(micro)
    split = here.data.test.first(30)
    for system in ("plain", "uniform", "dwf"):
        correct = load_system(system, micro)(split.images).argmax(dim=1) == split.labels
        assert torch.equal(here.get(f"evaluate:{system}:clean").arrays["correct"], correct)


def test_outcomes_of_a_system_get_no_better_with_a_stronger_attack(micro: Profile, replayed: Path) -> None:
    here = study(micro)
    for system in COMPARED:
        clean, one = (here.get(f"evaluate:{system}:{name}").arrays for name in ("clean", "fgsm@0.1"))
        assert not (one["correct"] & ~clean["correct"]).any()
        assert torch.equal(one["first_success"] == NEVER, one["correct"])
        assert torch.equal(one["first_success"] == 0, ~clean["correct"])


def test_the_data_record_describes_the_data(micro: Profile, full: Path) -> None:
    here = study(micro)
    record = here.record("data")
    data = here.data
    assert (record["label"], record["classes"], record["shape"]) == ("digits", list(data.classes), [1, 8, 8])
    assert [sum(record["counts"][split]) for split in ("train", "validation", "test")] == [60, 20, 40]
    arrays = here.get("data").arrays
    assert arrays["labels"].tolist() == list(range(10))
    assert all(any(torch.equal(image, other) for other in data.test.images) for image in arrays["images"])


def test_a_training_record_tells_its_course_and_its_cost(micro: Profile, replayed: Path) -> None:
    here = study(micro)
    record = here.record("train:expert-0")
    assert record["history"]["best"] == 0
    assert len(record["history"]["epochs"]) == micro.phase1.epochs
    assert (record["inference_cost"], record["training_units"]) == (1, micro.phase1.epochs)  # clean: one pass an epoch
    at = here.record("train:pgd-at")
    assert at["training_units"] == (micro.phase1.epochs + micro.phase2.epochs) * 11
    dwf = here.record("train:dwf")
    gate = dwf["inference_cost"] - 9
    assert 0 < gate < 2  # at width 2 the gate is as large as an expert
    passes = dwf["history"]["passes"] / 60
    assert dwf["training_units"] == pytest.approx(passes * (9 + gate))
    # TRADES: the clean answers, ten steps, and two passes of the update
    assert here.record("train:trades")["training_units"] == (micro.phase1.epochs + micro.phase2.epochs) * 13
    assert here.record("train:dwf")["parameters"] > 9 * record["parameters"]


def test_a_trace_holds_loss_and_accuracy_from_the_start_to_the_last_iterate(micro: Profile, replayed: Path) -> None:
    record = study(micro).record("trace:pgd-at")
    assert len(record["loss"]) == len(record["accuracy_at_iterate"]) == micro.evaluation.steps + 1
    assert record["loss"][-1] > record["loss"][0]
    assert all(0 <= accuracy <= 1 for accuracy in record["accuracy_at_iterate"])


def test_gate_records_hold_one_distribution_over_the_experts_for_each_image(micro: Profile, replayed: Path) -> None:
    artefact = study(micro).get("gate:dwf")
    rows = artefact.record["result"]["rows"]
    assert [row["attack"] for row in rows] == ["clean", "fgsm@0.1", "fgsm@0.2", "pgd@0.1", "pgd@0.2"]
    for row in rows:
        weights = artefact.arrays[row["attack"]].float()
        assert weights.shape == (30, 9)
        assert torch.allclose(weights.sum(dim=1), torch.ones(30), atol=1e-2)
        assert row["mean_weights"] == pytest.approx(weights.mean(dim=0).tolist(), abs=1e-3)
        assert 0 <= row["entropy"] <= 2.1973  # log 9
        assert 1 / 9 <= row["favourite_share"] <= 1


def test_the_gallery_shows_one_image_of_each_class_and_what_the_mixture_made_of_it(micro: Profile, full: Path) -> None:
    here = study(micro)
    arrays = here.get("gallery:dwf").arrays
    model = load_system("dwf", micro)
    assert arrays["labels"].tolist() == list(range(10))
    for kind in ("clean", "fgsm", "pgd"):
        images = arrays[f"{kind}/images"]
        assert float((images - arrays["clean/images"]).abs().max()) <= float(micro.evaluation.eps) + 1e-6
        assert torch.allclose(model(images), arrays[f"{kind}/logits"], atol=1e-5)
        evidence = model.evidence(images)  # type: ignore[operator]
        assert torch.allclose(evidence.gate_weights, arrays[f"{kind}/gate_weights"], atol=1e-5)
        assert torch.allclose(evidence.expert_logits, arrays[f"{kind}/expert_logits"], atol=1e-5)
    assert not torch.equal(arrays["fgsm/images"], arrays["clean/images"])


# -- the numbers of this code ----------------------------------------------------------------------------------------


def test_this_code_computes_the_committed_numbers(micro: Profile, full: Path) -> None:
    here, committed = study(micro, replay=False), read_json(micro_numbers.FILE)
    exact = committed["machine"] == micro_numbers.machine()
    assert committed["stages"].keys() == here.stages.keys(), "renew the file: python tests/micro_numbers.py"
    wrong = [
        f"{name}: {difference}"
        for name, stage in here.stages.items()
        for difference in micro_numbers.differences(
            micro_numbers.numbers_of(here.get(name), stage.version), committed["stages"][name], exact=exact
        )
    ]
    assert wrong == []


def test_other_numbers_under_the_same_version_are_found(micro: Profile, full: Path) -> None:
    artefact = study(micro, replay=False).get("train:plain")
    before = micro_numbers.numbers_of(artefact, 3)
    assert list(micro_numbers.differences(before, before, exact=True)) == []
    artefact.record["result"]["history"]["epochs"][0]["loss"] *= 1 + 1e-7
    (found,) = micro_numbers.differences(micro_numbers.numbers_of(artefact, 3), before, exact=True)
    assert "raise" in found
    assert list(micro_numbers.differences(micro_numbers.numbers_of(artefact, 3), before, exact=False)) == []
    (found,) = micro_numbers.differences(micro_numbers.numbers_of(artefact, 4), before, exact=True)
    assert found == "version 3 is now 4: renew the file"


@pytest.mark.parametrize(("factor", "found"), [(1.005, 0), (1.1, 1)])
def test_on_another_machine_gross_changes_are_found(micro: Profile, full: Path, factor: float, found: int) -> None:
    before = micro_numbers.numbers_of(study(micro, replay=False).get("train:dwf"), 3)
    after = before | {"digest": "other", "values": [factor * value for value in before["values"]]}
    assert len(list(micro_numbers.differences(after, before, exact=False))) == found


# Held and not read here, each for a reason.
UNREAD = (
    r"(.*\.)?name",  # a label
    r".*schedule\.validation_steps",  # `Validation` holds it too
    r"run\.update_steps\.\d+\.attack\.attacks\..*",  # drawn at random: with few batches, some attacks never are
    r"unsafe\.(reference_width|run\.validation\..*)",  # this training stops before it has an epoch to judge
)


def test_a_configuration_holds_nothing_that_its_computation_does_not_read(
    micro: Profile, full: Path, reads: dict[str, set[str]]
) -> None:
    """What is never read must have its default value, which says that it plays no part in this network or attack."""
    unread = {
        (name.split(":")[0], path)
        for name, stage in stages(micro).items()
        for path, default in fields_of(stage.config)
        if path not in reads[name] and not default and not any(re.fullmatch(p, path) for p in UNREAD)
        if not (name.endswith(BEST_EXPERT) and path.startswith("candidates."))  # one of nine is loaded
    }
    assert unread == set()
    assert sum(len(found) for found in reads.values()) > 5000


# -- one stage that fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stage_that_fails_ends_only_those_that_need_it(
    micro: Profile, home: Path, workers: int, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    monkeypatch.setattr("paperlib.pipeline.compute._work", fail_plain)
    lines = log_lines
    here = study(micro, workers=workers, replay=False)
    if workers == 1:
        compute = compute_stage

        def one_fails(study: Study, name: str) -> None:
            fail(name) if name == "train:plain" else compute(study, name)

        monkeypatch.setattr("paperlib.pipeline.compute.compute_stage", one_fails)
    with pytest.raises(NotFiniteError, match=r"^train:plain: the loss is nan$"):
        here.compute(["evaluate:plain:clean", "evaluate:plain:fgsm@0.1", "evaluate:pgd-at:clean"])
    assert here.find("evaluate:pgd-at:clean") is not None
    assert here.find("evaluate:plain:clean") is None
    (told,) = [line for line in lines if line.startswith("FAILED")]
    assert told == (
        "FAILED train:plain: train:plain: the loss is nan; "
        "not computed without it: evaluate:plain:clean, evaluate:plain:fgsm@0.1"
    )


def test_several_failures_are_reported_together(micro: Profile, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = study(micro, replay=False)
    monkeypatch.setattr("paperlib.pipeline.compute.compute_stage", lambda study, name: fail(name))
    with pytest.raises(PaperlibError) as caught:
        here.compute(["evaluate:plain:clean", "train:pgd-at"])
    assert str(caught.value).splitlines() == [
        "2 stages failed, 1 that need them were not computed:",
        "  train:plain: train:plain: the loss is nan",
        "  train:pgd-at: train:pgd-at: the loss is nan",
    ]


# -- several runs ----------------------------------------------------------------------------------------------------


def test_in_replay_the_runs_are_the_published_ones(micro: Profile, full: Path) -> None:
    here = study(micro)
    (run,) = here.runs
    assert run.get("train:plain").source == "published" and here.get("train:plain").source == "computed"
    other = study(parse_profile(changed(micro_table(), "phase1.lr", 0.123)))
    assert other.runs == [other]  # what is published is of another configuration


def test_without_replay_the_runs_are_those_asked_for(micro: Profile, full: Path) -> None:
    alone = study(micro, replay=False)
    assert alone.runs == [alone]
    here = study(micro, replay=False, seeds=[0, 3])
    assert [(run.seed, run.replay) for run in here.runs] == [(0, False), (3, False)]
    here.prepare("data")  # of every run
    assert [run.missing(["data"]) for run in here.runs] == [[], []]


def test_without_replay_published_weights_are_not_loaded(micro: Profile, replayed: Path) -> None:
    assert isinstance(study(micro).load("dwf"), Mixture)
    with pytest.raises(MissingError, match="train:dwf"):
        study(micro, replay=False).load("dwf")


def test_without_local_results_weights_of_this_machine_are_not_loaded(micro: Profile, full: Path) -> None:
    assert isinstance(study(micro).load("plain"), ResNet)
    with pytest.raises(MissingError, match="train:plain"):  # of this one, no weights are published
        study(micro, local=False).load("plain")


@pytest.mark.parametrize("source", ["computed", "published"])
def test_records_of_other_code_are_named(
    micro: Profile, full: Path, source: str, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    lines = log_lines
    here = study(micro, local=source == "computed")
    here.prepare("data", "train:plain")
    assert lines == [f"2 records of profile micro, seed 0: 2 {source}"]
    monkeypatch.setattr("paperlib.pipeline.study.source_digest", lambda: "other")
    here.prepare("data", "train:plain")
    assert lines[-1].startswith(f"note: 2 of 2 {source} records were made by other code (commit")
