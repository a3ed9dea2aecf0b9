"""A study reads or computes results: each once, under its own key, and with the origin of its numbers."""

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
from toys import changed, die, fail, fail_plain, fields_of, live_in, logged, recorded, same_state

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
from paperlib.pipeline.published import Published
from paperlib.pipeline.stage import Stage
from paperlib.pipeline.stages import BEST_EXPERT, stages
from paperlib.systems.experts import EXPERTS
from paperlib.systems.registry import COMPARED

EXPERT_STAGES = [f"train:{name}" for name in EXPERTS]


def new_study(profile: Profile, **settings: Any) -> Study:
    return Study(profile, **({"workers": 1} | settings))


@pytest.fixture(scope="session")
def micro() -> Profile:
    """The profile of ``micro_numbers.json``."""
    return parse_profile(micro_numbers.table())


@pytest.fixture(scope="session")
def reads() -> dict[str, set[str]]:
    """By stage, the fields of its configuration that its computation read; filled by `computed`."""
    return {}


@pytest.fixture(scope="session")
def computed(micro: Profile, reads: dict[str, set[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage of the micro profile has been computed and published. Copy before use."""
    folder = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patched:
        live_in(folder, patched)
        study = new_study(micro)
        for name, stage in study.stages.items():
            study.stages[name] = recording(stage, reads.setdefault(name, set()))
        study.compute()
        publish(micro)
    return folder


def recording(stage: Stage, reads: set[str]) -> Stage:
    """The stage; its computation adds the fields of its configuration that it reads to ``reads``."""
    compute = stage.compute
    return dataclasses.replace(stage, compute=lambda context, config: compute(context, recorded(config, reads)))


@pytest.fixture
def shared(computed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The home in which everything was computed and published, for tests that only read."""
    live_in(computed, monkeypatch)


@pytest.fixture
def full(computed: Path, home: Path) -> Path:
    """A copy of this home for tests that change it."""
    shutil.copytree(computed, home, dirs_exist_ok=True)
    return home


@pytest.fixture
def replayed(computed: Path, home: Path) -> Path:
    """A home of this test with the published records only."""
    shutil.copytree(computed / "published", home / "published")
    return home


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise DataError("no data")

    monkeypatch.setattr("paperlib.pipeline.study_data.load_dataset", refuse)


# -- reading and computing -------------------------------------------------------------------------------------------


def test_a_result_is_computed_with_its_inputs_and_only_once(micro: Profile, home: Path, log_lines: list[str]) -> None:
    first = new_study(micro).get("evaluate:plain:clean")
    assert [line for line in log_lines if line.startswith("[")] == ["[1/2] train:plain", "[2/2] evaluate:plain:clean"]
    assert first.source == "computed"
    log_lines.clear()
    again = new_study(micro).get("evaluate:plain:clean")
    assert log_lines == []
    assert again.record == first.record
    assert {name: value.tolist() for name, value in again.arrays.items()} == {
        name: value.tolist() for name, value in first.arrays.items()
    }


def test_missing_lists_inputs_before_the_stages_that_need_them(micro: Profile, home: Path) -> None:
    missing = new_study(micro).missing(["evaluate:dwf:clean"])
    assert missing == [*EXPERT_STAGES, "train:dwf", "evaluate:dwf:clean"]


def test_missing_lists_no_stage_that_has_a_result(micro: Profile, full: Path) -> None:
    study = new_study(micro, replay=False)
    assert study.missing(list(study.stages)) == []
    study.forget(["train:dwf", "evaluate:dwf:clean", "train:expert-4"])
    assert study.missing(["evaluate:dwf:clean"]) == ["train:expert-4", "train:dwf", "evaluate:dwf:clean"]
    assert study.missing(["evaluate:dwf:fgsm@0.1"]) == []  # its record exists, so no weights are needed


def test_a_new_computation_needs_weights_and_not_only_published_records(micro: Profile, replayed: Path) -> None:
    study = new_study(parse_profile(changed(micro_numbers.table(), "evaluation.step", "0.05")))
    assert study.missing(["train:plain", "evaluate:plain:fgsm@0.1"]) == []
    assert study.missing(["evaluate:plain:pgd-2@0.1"]) == ["train:plain", "evaluate:plain:pgd-2@0.1"]


def test_a_result_that_another_process_computed_meanwhile_is_used(
    micro: Profile, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(context: object, config: object) -> None:
        raise AssertionError("computed again")

    study = new_study(micro)
    study.stages["data"] = dataclasses.replace(study.stages["data"], compute=refuse)  # type: ignore[arg-type]
    monkeypatch.setattr(study, "missing", lambda names, **kw: names)  # as before the other process ended
    study.compute(["data"])
    study.forget(["data"])
    with pytest.raises(AssertionError, match="computed again"):
        study.compute(["data"])


def test_the_inputs_of_a_stage_come_before_it(micro: Profile) -> None:
    order = {name: position for position, name in enumerate(stages(micro))}
    assert len(order) > 60
    for name, stage in stages(micro).items():
        assert name == stage.name
        assert all(order[needed] < order[name] for needed in stage.inputs)


def test_a_seed_changes_every_key(home: Path, micro: Profile) -> None:
    one, other = new_study(micro), new_study(micro, seed=1)
    assert all(one.key(one.stages[name]) != other.key(other.stages[name]) for name in one.stages)


def test_two_workers_compute_the_same_results_as_one(
    micro: Profile, home: Path, computed: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    names = ["evaluate:plain:fgsm@0.1", "evaluate:pgd-at:pgd-2@0.1"]
    study = new_study(micro, workers=2, replay=False)
    study.compute(names)
    assert "computing 4 stages of micro, seed 0, in 2 process(es)" in log_lines
    assert any("epoch" in line for line in log_lines)  # logged by the workers
    names.append("train:plain")
    artefacts = [study.find(name) for name in names]
    monkeypatch.setenv("PAPERLIB_HOME", str(computed / "home"))
    one = new_study(micro)
    for artefact, name in zip(artefacts, names, strict=True):
        expected = one.find(name)
        assert artefact is not None
        assert expected is not None
        assert artefact.key == expected.key
        assert artefact.arrays.keys() == expected.arrays.keys()
        assert all(torch.equal(artefact.arrays[a], expected.arrays[a]) for a in expected.arrays)
        assert without_times(artefact.record) == without_times(expected.record)


def without_times(value: Any) -> Any:
    """A record without the fields that differ between two computations."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "created", "commit")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def test_a_killed_worker_is_reported_as_one_error(micro: Profile, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperlib.pipeline.compute._work", die)
    with pytest.raises(PaperlibError, match=r"worker process died while computing train:pgd-at, train:plain;"):
        new_study(micro, workers=2).compute(["train:plain", "train:pgd-at"])


def test_workers_end_with_the_process_that_started_them(home: Path) -> None:
    script = (
        "import micro_numbers, paperlib, toys, paperlib.pipeline.compute\n"
        "paperlib.pipeline.compute._work = toys.linger\n"
        "profile = paperlib.pipeline.compute.parse_profile(micro_numbers.table())\n"
        "if __name__ == '__main__':\n"
        "    paperlib.Study(profile, workers=2).compute(['train:plain', 'train:pgd-at'])\n"
    )
    signs = [home / "home" / "train-plain", home / "home" / "train-pgd-at"]
    signs[0].parent.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300  # far more than a busy machine needs
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


def test_an_interrupted_training_continues_from_its_checkpoint(
    micro: Profile, home: Path, computed: Path, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    def stop(line: str) -> None:
        if "epoch   1/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), logged(stop):
        new_study(micro).compute(["train:plain"])
    study = new_study(micro)
    assert study.checkpoint("train:plain").exists()
    resumed = study.get("train:plain")
    assert "plain: going on after epoch 1 of 2" in log_lines
    assert not study.checkpoint("train:plain").exists()
    monkeypatch.setenv("PAPERLIB_HOME", str(computed / "home"))
    expected = new_study(micro).get("train:plain")
    assert without_times(resumed.record) == without_times(expected.record)
    assert resumed.weights is not None
    assert expected.weights is not None
    assert resumed.weights.read_bytes() == expected.weights.read_bytes()


# -- deleting results ------------------------------------------------------------------------------------------------


def test_forget_deletes_the_results_of_the_given_stages(micro: Profile, full: Path) -> None:
    study = new_study(micro, replay=False)
    assert study.forget([]) == 0
    assert study.missing(list(study.stages)) == []
    assert study.forget(["train:dwf", "data"]) == 2
    assert study.forget(["train:dwf", "data"]) == 0
    assert study.find("train:dwf") is None
    assert study.find("train:frozen") is not None
    assert study.forget() == len(study.stages) - 2
    assert study.missing(["train:plain"]) == ["train:plain"]


def test_forget_deletes_the_checkpoint_of_a_training(micro: Profile, home: Path) -> None:
    study = new_study(micro)
    unfinished = study.checkpoint("train:plain")
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"checkpoint")
    study.forget(["train:plain"])
    assert not unfinished.exists()


# -- published records -----------------------------------------------------------------------------------------------


def test_results_computed_here_come_before_published_ones(micro: Profile, full: Path) -> None:
    study = new_study(micro)
    assert study.get("evaluate:dwf:clean").source == "computed"
    study.forget(["evaluate:dwf:clean"])
    assert study.get("evaluate:dwf:clean").source == "published"
    assert new_study(micro, replay=False).find("evaluate:dwf:clean") is None
    assert set(study.used) == {"evaluate:dwf:clean"}


def test_replay_needs_no_data_no_weights_and_no_computation(
    micro: Profile, replayed: Path, computed: Path, no_data: None, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    study = new_study(micro)
    artefacts = {name: study.get(name) for name in study.stages}
    assert log_lines == []
    assert not store_dir().exists()
    monkeypatch.setenv("PAPERLIB_HOME", str(computed / "home"))
    source = Study(micro, replay=True)
    for name, artefact in artefacts.items():
        original = source.get(name)
        assert (artefact.source, original.source) == ("published", "computed")
        assert artefact.weights is None
        assert artefact.record == original.record
        assert artefact.arrays.keys() == original.arrays.keys()
        for array, value in original.arrays.items():
            assert artefact.arrays[array].dtype == value.dtype
            assert torch.equal(artefact.arrays[array], value)


def test_without_replay_no_published_file_is_opened(micro: Profile, replayed: Path) -> None:
    study = new_study(micro, replay=False)
    assert study.missing(list(study.stages)) == list(study.stages)
    index = published_dir("micro") / "index.json"
    index.write_text("damaged")
    assert study.find("data") is None


def test_local_false_leaves_only_published_records(micro: Profile, shared: None) -> None:
    study = new_study(micro, local=False)
    assert study.get("evaluate:dwf:clean").source == "published"
    with pytest.raises(MissingError, match="not among the published records of seed 1"):
        new_study(micro, seed=1, local=False).get("evaluate:dwf:clean")


def test_records_of_another_configuration_or_seed_are_not_replayed(micro: Profile, replayed: Path) -> None:
    other = parse_profile(changed(micro_numbers.table(), "phase1.lr", 0.123))
    assert new_study(other).find("evaluate:dwf:clean") is None
    assert new_study(other).find("data") is not None
    assert new_study(micro, seed=1).find("evaluate:dwf:clean") is None


def test_a_result_beside_published_records_computes_the_weights_that_it_needs(micro: Profile, replayed: Path) -> None:
    study = new_study(micro)
    assert study.missing(["evaluate:plain:clean"]) == []
    spec = fgsm_spec(Fraction("0.07"))
    assert study.outcome("plain", spec).source == "computed"
    assert study.find("train:plain").source == "computed"  # type: ignore[union-attr]
    assert study.find("train:expert-0").source == "published"  # type: ignore[union-attr]


def test_weights_are_computed_with_the_weights_that_they_start_from(micro: Profile, replayed: Path) -> None:
    study = new_study(micro)
    study.compute(["train:frozen", "evaluate:plain:clean"], weights=True)
    assert study.find("train:frozen", weights=True) is not None
    assert study.find("evaluate:plain:clean").source == "published"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name", ["records-seed-0.jsonl", "arrays-seed-0.safetensors", "weights-dwf-seed-0.safetensors"]
)
def test_a_changed_or_missing_published_file_is_named_in_the_error(micro: Profile, replayed: Path, name: str) -> None:
    path = published_dir("micro") / name
    content = path.read_bytes()
    message = rf"{name}: missing or changed since it was published; restore it from git"
    for damaged in (content[:-2] + bytes([content[-2] ^ 1]) + content[-1:], None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(StoreError, match=message):
            load_system("dwf", micro) if name.startswith("weights") else new_study(micro).get("evaluate:dwf:clean")


def test_a_damaged_index_is_named_in_the_error(micro: Profile, replayed: Path) -> None:
    for content in ("", "{", "[]", "null", "{}", '{"seeds": [0]}', '{"fingerprint": "x", "seeds": 0}'):
        (published_dir("micro") / "index.json").write_text(content)
        with pytest.raises(StoreError, match=r"index\.json"):
            new_study(micro).get("evaluate:dwf:clean")


def test_data_other_than_the_published_ones_are_refused(micro: Profile, replayed: Path) -> None:
    other = parse_profile(changed(micro_numbers.table(), "data.split_seed", 5))
    with pytest.raises(DataError, match="are not those of the published records"):
        _ = new_study(other).data
    assert new_study(other, replay=False).data.label == "digits"


def test_publishing_needs_every_stage(micro: Profile, full: Path) -> None:
    before = read_json(published_dir("micro") / "index.json")
    new_study(micro, replay=False).forget(["trace:dwf"])
    with pytest.raises(MissingError, match=r"trace:dwf.*python -m paperlib run --profile micro --seeds 0"):
        publish(micro)
    assert read_json(published_dir("micro") / "index.json") == before


def test_publishing_twice_gives_the_same_files(micro: Profile, full: Path) -> None:
    folder = published_dir("micro")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    publish(micro)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir() if not path.name.startswith(".")] == ["micro"]


def test_published_files_are_small_and_contain_no_path_host_or_user(micro: Profile, replayed: Path) -> None:
    folder = published_dir("micro")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jsonl", ".safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    published = Published(folder)
    texts = [*strings(published.index), *strings(published.records(0))]
    assert len(texts) > 1000
    private = re.compile(
        rf"^[/~\\]|^[A-Za-z]:\\|/home/|\b{getpass.getuser()}@|{re.escape(str(ROOT))}|\b{re.escape(socket.gethostname())}\b"
    )
    assert [text for text in texts if private.search(text)] == []


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, names of fields included."""
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


def test_the_error_for_missing_weights_contains_the_command_that_computes_them(micro: Profile, home: Path) -> None:
    command = r"python -m paperlib run --profile micro --seeds 3 --stage train:plain"
    with pytest.raises(MissingError, match=command):
        load_system("plain", micro, seed=3)
    with pytest.raises(MissingError, match="train:expert-0"):
        load_system("uniform", micro)


def test_a_loaded_system_is_a_classifier_in_evaluation_mode(micro: Profile, shared: None) -> None:
    for system, kind in (("plain", ResNet), ("expert-8", ResNet), ("uniform", Mixture), ("dwf", Mixture)):
        model = load_system(system, micro)
        assert isinstance(model, kind)
        assert not any(module.training for module in model.modules())
        assert model(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_published_half_precision_weights_give_nearly_the_same_logits(micro: Profile, full: Path) -> None:
    images = new_study(micro).data.test.images
    computed = load_system("dwf", micro)
    new_study(micro).forget()
    shutil.rmtree(store_dir())
    halved = load_system("dwf", micro)
    assert {p.dtype for p in halved.parameters()} == {torch.float32}
    assert not halved.training
    logits, halved_logits = (model(images) for model in (computed, halved))
    assert torch.allclose(logits, halved_logits, atol=0.05)
    assert (logits.argmax(dim=1) == halved_logits.argmax(dim=1)).float().mean() > 0.95
    assert not same_state(computed, halved)  # the published weights are rounded
    with pytest.raises(MissingError, match="train:plain"):
        load_system("plain", micro)


def test_published_weights_of_another_configuration_or_seed_are_not_loaded(micro: Profile, replayed: Path) -> None:
    other = parse_profile(changed(micro_numbers.table(), "phase2.lr", 0.123))
    with pytest.raises(MissingError, match="train:dwf"):
        load_system("dwf", other)
    with pytest.raises(MissingError, match="train:dwf"):
        load_system("dwf", micro, seed=1)


def test_frozen_keeps_the_weights_of_its_experts_and_dwf_changes_them(micro: Profile, shared: None) -> None:
    experts = [load_system(name, micro) for name in EXPERTS]
    frozen, joint, uniform = (load_system(name, micro) for name in ("frozen", "dwf", "uniform"))
    for i, expert in enumerate(experts):
        assert same_state(frozen.get_submodule(f"experts.{i}"), expert)
        assert same_state(uniform.get_submodule(f"experts.{i}"), expert)
        assert not same_state(joint.get_submodule(f"experts.{i}"), expert)
        assert not any(same_state(expert, other) for other in experts[:i])  # each is trained separately


def test_an_unknown_stage_is_refused(micro: Profile, home: Path) -> None:
    study = new_study(micro)
    for call in (study.stage, study.get, lambda name: study.compute([name])):
        with pytest.raises(MissingError, match="unknown stage 'train:dfw'"):
            call("train:dfw")


def test_an_unknown_system_is_refused(micro: Profile, home: Path) -> None:
    with pytest.raises(MissingError, match=r"unknown system 'dfw'.*dwf"):
        load_system("dfw", micro)
    with pytest.raises(MissingError, match=r"unknown system 'dfw'.*dwf"):
        new_study(micro).outcome("dfw", CLEAN)


def test_settings_of_another_type_are_refused(micro: Profile, home: Path) -> None:
    invalid: list[tuple[str, Any]] = [(name, value) for name in ("seed", "replay") for value in (-1, "0", 1.0)]
    for name, value in [*invalid, ("seed", True), ("replay", 0)]:
        with pytest.raises(PaperlibError, match=f"{name}="):
            Study(micro, **{name: value})


def test_an_invalid_profile_is_refused(home: Path) -> None:
    invalid: list[Any] = [8, None, "digit", True]
    for profile in invalid:
        with pytest.raises(ProfileError):
            Study(profile)
        with pytest.raises(ProfileError):
            load_system("dwf", profile)


def test_a_profile_may_be_given_by_name(home: Path) -> None:
    assert Study("smoke").profile == load_profile("smoke")


def test_an_invalid_number_of_workers_is_refused(micro: Profile, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_WORKERS", "3")
    assert Study(micro).workers == 3
    monkeypatch.setenv("PAPERLIB_WORKERS", "two")
    with pytest.raises(PaperlibError, match="PAPERLIB_WORKERS=two"):
        Study(micro)


# -- attacks outside the series --------------------------------------------------------------------------------------


def test_the_result_of_an_attack_of_the_series_is_read_and_not_computed_again(
    micro: Profile, shared: None, log_lines: list[str]
) -> None:
    study = new_study(micro)
    artefact = study.outcome("dwf", headline(micro.evaluation))
    assert artefact.key == study.key(study.stage("evaluate:dwf:pgd-2@0.1"))
    assert log_lines == []


def test_an_attack_with_another_step_size_is_another_result(micro: Profile, full: Path) -> None:
    study = new_study(micro)
    usual = headline(micro.evaluation)
    other = pgd_spec(usual.eps, usual.steps, usual.step / 10)
    no_start = dataclasses.replace(usual, random_start=False)
    assert usual.name == other.name == no_start.name
    results = [study.outcome("plain", spec) for spec in (usual, other, no_start)]
    assert len({result.key for result in results}) == 3
    assert [result.record["result"]["attack"] for result in results] == [s.table() for s in (usual, other, no_start)]
    assert new_study(micro).outcome("plain", other).key == results[1].key  # stored like any other


def test_an_attack_outside_the_series_is_computed_with_two_workers(micro: Profile, home: Path) -> None:
    study = new_study(micro, workers=2)
    result = study.outcome("plain", fgsm_spec(Fraction("0.03"))).record["result"]
    assert (result["attack"]["eps"], result["n"]) == ("0.03", 12)


# -- contents of the records -----------------------------------------------------------------------------------------


def test_a_record_contains_result_and_provenance(micro: Profile, shared: None) -> None:
    study = new_study(micro, replay=False)
    artefact = study.get("evaluate:dwf:pgd-2@0.1")
    result, facts = artefact.record["result"], artefact.record["provenance"]
    assert result["system"] == "dwf"
    assert result["attack"] == {
        "kind": "pgd",
        "eps": "0.1",
        "step": "0.025",
        "steps": 2,
        "restarts": 1,
        "random_start": True,
        "objective": "cross-entropy",
    }
    correct = artefact.arrays["correct"]
    assert (result["n"], result["correct"]) == (12, int(correct.sum()))
    assert result["interval"] == list(wilson(result["correct"], 12))
    assert result["passes_per_image"] >= 1
    assert result["seconds"] > 0
    assert (facts["seed"], facts["profile"], facts["stage"]) == (0, "micro", "evaluate:dwf:pgd-2@0.1")
    assert facts["key"] == artefact.key == study.key(study.stage("evaluate:dwf:pgd-2@0.1"))
    assert facts["inputs"] == {"train:dwf": study.get("train:dwf").key}
    assert facts["data"] == study.data.fingerprint
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
    study = new_study(micro)
    fields = {frozenset(study.get(name).record["provenance"]) for name in study.stages}
    assert len(fields) == 1


def test_every_compared_system_is_evaluated_under_every_attack_of_the_sweep(micro: Profile) -> None:
    listed = stages(micro)
    for system in COMPARED:
        for attack in ("clean", "fgsm@0.1", "pgd-2@0.1", "fgsm@0.2", "pgd-2@0.2"):
            assert f"evaluate:{system}:{attack}" in listed
    for expert in EXPERTS:
        assert f"evaluate:{expert}:pgd-2@0.1" in listed


def test_recorded_accuracy_is_that_of_the_loaded_system(micro: Profile, shared: None) -> None:
    study = new_study(micro)
    split = study.data.test.first(12)
    for system in ("plain", "uniform", "dwf"):
        correct = load_system(system, micro)(split.images).argmax(dim=1) == split.labels
        assert torch.equal(study.get(f"evaluate:{system}:clean").arrays["correct"], correct)


def test_no_image_misclassified_without_attack_is_correct_under_fgsm(micro: Profile, replayed: Path) -> None:
    study = new_study(micro)
    for system in COMPARED:
        clean, fgsm = (study.get(f"evaluate:{system}:{name}").arrays for name in ("clean", "fgsm@0.1"))
        assert not (fgsm["correct"] & ~clean["correct"]).any()
        assert torch.equal(fgsm["first_success"] == NEVER, fgsm["correct"])
        assert torch.equal(fgsm["first_success"] == 0, ~clean["correct"])


def test_the_data_record_describes_the_data(micro: Profile, shared: None) -> None:
    study = new_study(micro)
    record = study.record("data")
    data = study.data
    assert (record["label"], record["classes"], record["shape"]) == ("digits", list(data.classes), [1, 8, 8])
    assert [sum(record["counts"][split]) for split in ("train", "validation", "test")] == [20, 10, 20]
    arrays = study.get("data").arrays
    assert arrays["labels"].tolist() == list(range(10))
    assert all(any(torch.equal(image, other) for other in data.test.images) for image in arrays["images"])


def test_a_training_record_contains_history_and_cost(micro: Profile, replayed: Path) -> None:
    study = new_study(micro)
    record = study.record("train:expert-0")
    assert record["history"]["best"] == 0
    assert len(record["history"]["epochs"]) == micro.phase1.epochs
    assert (record["inference_cost"], record["training_units"]) == (
        1,
        micro.phase1.epochs,
    )  # clean images: one pass for each epoch
    at = study.record("train:pgd-at")
    assert at["training_units"] == (micro.phase1.epochs + micro.phase2.epochs) * 11
    dwf = study.record("train:dwf")
    gate = dwf["inference_cost"] - 9
    assert 0 < gate < 2  # at width 2 the gate is about as large as an expert
    passes = dwf["history"]["passes"] / 20
    assert dwf["training_units"] == pytest.approx(passes * (9 + gate))
    # TRADES: the clean logits, ten steps, and two passes of the update
    assert study.record("train:trades")["training_units"] == (micro.phase1.epochs + micro.phase2.epochs) * 13
    assert study.record("train:dwf")["parameters"] > 9 * record["parameters"]


def test_a_trace_contains_loss_and_accuracy_of_every_iterate(micro: Profile, replayed: Path) -> None:
    record = new_study(micro).record("trace:pgd-at")
    assert len(record["loss"]) == len(record["accuracy_at_iterate"]) == micro.evaluation.steps + 1
    assert record["loss"][-1] > record["loss"][0]
    assert all(0 <= accuracy <= 1 for accuracy in record["accuracy_at_iterate"])


def test_gate_weights_of_each_image_are_a_distribution_over_the_experts(micro: Profile, replayed: Path) -> None:
    artefact = new_study(micro).get("gate:dwf")
    rows = artefact.record["result"]["rows"]
    assert [row["attack"] for row in rows] == ["clean", "fgsm@0.1", "fgsm@0.2", "pgd@0.1", "pgd@0.2"]
    for row in rows:
        weights = artefact.arrays[row["attack"]].float()
        assert weights.shape == (12, 9)
        assert torch.allclose(weights.sum(dim=1), torch.ones(12), atol=1e-2)
        assert row["mean_weights"] == pytest.approx(weights.mean(dim=0).tolist(), abs=1e-3)
        assert 0 <= row["entropy"] <= 2.1973  # log 9
        assert 1 / 9 <= row["favourite_share"] <= 1


def test_the_gallery_contains_one_image_of_each_class_with_the_outputs_of_the_mixture(
    micro: Profile, shared: None
) -> None:
    study = new_study(micro)
    arrays = study.get("gallery:dwf").arrays
    model = load_system("dwf", micro)
    assert arrays["labels"].tolist() == list(range(10))
    for kind in ("clean", "fgsm", "pgd"):
        images = arrays[f"{kind}/images"]
        assert float((images - arrays["clean/images"]).abs().max()) <= float(micro.evaluation.eps) + 1e-6
        assert torch.allclose(model(images), arrays[f"{kind}/logits"], atol=1e-5)
        output = model.forward_with_experts(images)  # type: ignore[operator]
        assert torch.allclose(output.gate_weights, arrays[f"{kind}/gate_weights"], atol=1e-5)
        assert torch.allclose(output.expert_logits, arrays[f"{kind}/expert_logits"], atol=1e-5)
    assert not torch.equal(arrays["fgsm/images"], arrays["clean/images"])


# -- the numbers of this code ----------------------------------------------------------------------------------------


def test_this_code_computes_the_committed_numbers(micro: Profile, shared: None) -> None:
    study, committed = new_study(micro, replay=False), read_json(micro_numbers.FILE)
    exact = committed["machine"] == micro_numbers.machine()
    assert committed["stages"].keys() == study.stages.keys(), "renew the file: python tests/micro_numbers.py"
    differences = [
        f"{name}: {difference}"
        for name, stage in study.stages.items()
        for difference in micro_numbers.differences(
            micro_numbers.numbers_of(study.get(name), stage.version), committed["stages"][name], exact=exact
        )
    ]
    assert differences == []


def test_other_numbers_under_the_same_version_are_detected(micro: Profile, shared: None) -> None:
    artefact = new_study(micro, replay=False).get("train:plain")
    before = micro_numbers.numbers_of(artefact, 3)
    assert list(micro_numbers.differences(before, before, exact=True)) == []
    artefact.record["result"]["history"]["epochs"][0]["loss"] *= 1 + 1e-7
    (difference,) = micro_numbers.differences(micro_numbers.numbers_of(artefact, 3), before, exact=True)
    assert "raise" in difference
    assert list(micro_numbers.differences(micro_numbers.numbers_of(artefact, 3), before, exact=False)) == []
    (difference,) = micro_numbers.differences(micro_numbers.numbers_of(artefact, 4), before, exact=True)
    assert difference == "version 3 is now 4: renew the file"


def test_on_another_machine_only_large_changes_are_detected(micro: Profile, shared: None) -> None:
    before = micro_numbers.numbers_of(new_study(micro, replay=False).get("train:dwf"), 3)
    for factor, count in ((1.005, 0), (1.1, 1)):
        after = before | {"digest": "other", "values": [factor * value for value in before["values"]]}
        assert len(list(micro_numbers.differences(after, before, exact=False))) == count


# Fields that a configuration contains although this computation does not read them.
UNREAD = (
    r"(.*\.)?name",  # a label
    r".*schedule\.validation_steps",  # `Validation` contains it too
    r"run\.update_steps\.\d+\.attack\.attacks\..*",  # drawn at random: with few batches, some attacks are not drawn
    r"unsafe\.(reference_width|run\.validation\..*)",  # this training stops before its first validation
)


def test_a_computation_reads_every_field_of_its_configuration(
    micro: Profile, computed: Path, reads: dict[str, set[str]]
) -> None:
    """A field that is not read must have its default value: it does not concern this network or attack."""
    unread = {
        (name.split(":")[0], path)
        for name, stage in stages(micro).items()
        for path, default in fields_of(stage.config)
        if path not in reads[name] and not default and not any(re.fullmatch(p, path) for p in UNREAD)
        if not (name.endswith(BEST_EXPERT) and path.startswith("candidates."))  # one of nine experts is loaded
    }
    assert unread == set()
    assert sum(len(fields) for fields in reads.values()) > 2000


# -- stages that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_stage_stops_only_the_stages_that_need_it(
    micro: Profile, home: Path, workers: int, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    monkeypatch.setattr("paperlib.pipeline.compute._work", fail_plain)
    study = new_study(micro, workers=workers, replay=False)
    if workers == 1:
        compute = compute_stage

        def one_fails(study: Study, name: str) -> None:
            fail(name) if name == "train:plain" else compute(study, name)

        monkeypatch.setattr("paperlib.pipeline.compute.compute_stage", one_fails)
    with pytest.raises(NotFiniteError, match=r"^train:plain: the loss is nan$"):
        study.compute(["evaluate:plain:clean", "evaluate:plain:fgsm@0.1", "evaluate:pgd-at:clean"])
    assert study.find("evaluate:pgd-at:clean") is not None
    assert study.find("evaluate:plain:clean") is None
    (message,) = [line for line in log_lines if line.startswith("FAILED")]
    assert message == (
        "FAILED train:plain: train:plain: the loss is nan; "
        "not computed without it: evaluate:plain:clean, evaluate:plain:fgsm@0.1"
    )


def test_several_failures_are_reported_together(micro: Profile, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = new_study(micro, replay=False)
    monkeypatch.setattr("paperlib.pipeline.compute.compute_stage", lambda study, name: fail(name))
    with pytest.raises(PaperlibError) as caught:
        study.compute(["evaluate:plain:clean", "train:pgd-at"])
    assert str(caught.value).splitlines() == [
        "2 stages failed, 1 that need them were not computed:",
        "  train:pgd-at: train:pgd-at: the loss is nan",
        "  train:plain: train:plain: the loss is nan",
    ]


# -- several runs ----------------------------------------------------------------------------------------------------


def test_in_replay_the_runs_are_the_published_ones(micro: Profile, shared: None) -> None:
    study = new_study(micro)
    (run,) = study.runs
    assert run.get("train:plain").source == "published" and study.get("train:plain").source == "computed"
    other = new_study(parse_profile(changed(micro_numbers.table(), "phase1.lr", 0.123)))
    assert other.runs == [other]  # what is published is of another configuration


def test_without_replay_the_runs_are_those_of_the_given_seeds(micro: Profile, full: Path) -> None:
    alone = new_study(micro, replay=False)
    assert alone.runs == [alone]
    study = new_study(micro, replay=False, seeds=[0, 3])
    assert [(run.seed, run.replay) for run in study.runs] == [(0, False), (3, False)]
    study.prepare("data")  # of every run
    assert [run.missing(["data"]) for run in study.runs] == [[], []]


def test_without_replay_published_weights_are_not_loaded(micro: Profile, replayed: Path) -> None:
    assert isinstance(new_study(micro).load("dwf"), Mixture)
    with pytest.raises(MissingError, match="train:dwf"):
        new_study(micro, replay=False).load("dwf")


def test_with_local_false_weights_of_this_machine_are_not_loaded(micro: Profile, shared: None) -> None:
    assert isinstance(new_study(micro).load("plain"), ResNet)
    with pytest.raises(MissingError, match="train:plain"):  # no weights of this system are published
        new_study(micro, local=False).load("plain")


@pytest.mark.parametrize("source", ["computed", "published"])
def test_records_of_other_code_are_counted_in_the_log(
    micro: Profile, shared: None, source: str, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    study = new_study(micro, local=source == "computed")
    study.prepare("data", "train:plain")
    assert log_lines == [f"2 records of profile micro, seed 0: 2 {source}"]
    monkeypatch.setattr("paperlib.pipeline.study.source_digest", lambda: "other")
    study.prepare("data", "train:plain")
    assert log_lines[-1].startswith(f"note: 2 of 2 {source} records were made by other code (commit")
