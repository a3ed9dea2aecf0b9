"""A profile may build on another and name a file of the user's own; what cannot be used is told by name and line."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from torch import nn
from toys import micro_table, toml_text

from paperlib import Profile, Study, load_dataset, load_profile
from paperlib.cli import main
from paperlib.config.plugins import MARK, one_version
from paperlib.config.serialise import to_table
from paperlib.errors import DataError, ProfileError
from paperlib.pipeline.publish import published_configuration
from paperlib.pipeline.stages import autoattack_systems, stages
from paperlib.series.child import MARK as MARK_OF_A_NOTEBOOK
from paperlib.systems.registry import recipes

SYSTEM = """
from paperlib.systems.registry import Network, Recipe
from paperlib.training.adversaries import Clean
from paperlib.training.trainer import UpdateStep
def systems(profile):
    steps = (UpdateStep(NoAttack()),)
    return [Recipe({name!r}, "mine", {family!r}, {network}, update_steps=steps, training={training})]
"""


def written(folder: Path, code: str, *more: str) -> str:
    """A profile in ``folder`` that builds on the micro profile and names a file with ``code``."""
    (folder / "micro.toml").write_text(toml_text(micro_table()), encoding="utf-8")
    (folder / "mine.py").write_text(code, encoding="utf-8")
    lines = ['base = "micro.toml"', "[study]", 'extension = "mine.py"', *more]
    (folder / "mine.toml").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "mine.toml")


def system(
    name: str = "mine", family: str = "defence", network: str = "Network()", training: str = "profile.phase1"
) -> str:
    return SYSTEM.format(name=name, family=family, network=network, training=training)


def test_a_profile_says_only_what_it_changes(tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text('base = "digits"\n[model]\nwidth = 20\n', encoding="utf-8")
    (tmp_path / "wider.toml").write_text('base = "wide.toml"\n[model]\ngate_width = 21\n', encoding="utf-8")
    found, base = to_table(load_profile(str(tmp_path / "wider.toml"))), to_table(load_profile("digits"))
    assert found.pop("name") == "wider" and found.pop("base") == "digits"
    assert found["model"] == base["model"] | {"width": 20, "gate_width": 21}
    assert {k: v for k, v in found.items() if k != "model"} == {
        k: v for k, v in base.items() if k not in ("name", "base", "model")
    }


def test_other_images_share_no_results(tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text('base = "digits"\n[data]\ntrain = 100\n', encoding="utf-8")
    assert load_profile(str(tmp_path / "few.toml")).base == ""


@pytest.mark.parametrize("base", ['"mine.toml"', "3", '"none.toml"', '"digit"'])
def test_a_base_that_is_none_is_an_error(tmp_path: Path, base: str) -> None:
    (tmp_path / "mine.toml").write_text(f"base = {base}\n", encoding="utf-8")
    with pytest.raises(ProfileError, match=r"must name another profile|unknown profile|no such file"):
        load_profile(str(tmp_path / "mine.toml"))


def test_what_is_not_changed_is_not_computed_again(home: Path) -> None:
    profile = load_profile(written(home, system()))
    base = Study(load_profile(str(home / "micro.toml")), replay=False, workers=1)
    base.compute(["evaluate:plain:clean"])
    own = Study(profile, replay=False, workers=1)
    assert own.find("evaluate:plain:clean") is not None
    assert own.missing(["evaluate:mine:clean"]) == ["train:mine", "evaluate:mine:clean"]
    own.compute(["evaluate:mine:clean"])
    assert own.find("evaluate:mine:clean") is not None
    # once the file changes, its numbers are others
    (home / "mine.py").write_text(system() + "\n# another version\n", encoding="utf-8")
    changed = Study(load_profile(str(home / "mine.toml")), replay=False, workers=1)
    assert changed.find("evaluate:mine:clean") is None and changed.find("evaluate:plain:clean") is not None


def test_the_systems_of_the_file_join_every_comparison(tmp_path: Path, micro: Profile) -> None:
    profile = load_profile(written(tmp_path, system()))
    assert [*recipes(profile)] == [*recipes(micro), "mine"]
    assert "mine" in autoattack_systems(profile)
    names = {name for name in stages(profile) if ":mine" in name}
    assert {"train:mine", "evaluate:mine:clean", "stress:mine", "autoattack:mine"} <= names


def test_shipped_systems_keep_their_keys(tmp_path: Path, micro: Profile) -> None:
    ours, theirs = stages(load_profile(written(tmp_path, system()))), stages(micro)
    for name, stage in theirs.items():
        assert ours[name].config == stage.config and ours[name].inputs == stage.inputs, name


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1", "defines neither systems nor DATASETS"),
        ("systems = 3", "systems must be a function"),
        ("NETWORKS = {'a': 1}", "NETWORKS must hold functions"),
        ("def systems(profile:\n", r"mine.py, line 1: SyntaxError"),
        ("\n\n1 / 0", r"mine.py, line 3: ZeroDivisionError"),
        ("DATASETS = {'digits': print}", "digits is the name of a data set"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, code: str, told: str) -> None:
    with pytest.raises(ProfileError, match=told):
        load_profile(written(tmp_path, code))


def test_a_missing_file_is_told_by_name(tmp_path: Path) -> None:
    profile = written(tmp_path, system())
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ProfileError, match=r"study.extension: mine.py cannot be read"):
        load_profile(profile)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (system("dwf"), "may not take the name of another system"),
        (system("My system"), "named in lower case"),
        (system(family="best"), "family 'best' is not one of"),
        (system(training="None"), "needs training"),
        (system(network='Network("own", "none")'), "no network 'none'"),
        ("def systems(profile):\n    return profile.nothing", "mine.py, line 2: AttributeError"),
        ("def systems(profile):\n    return ['mine']", "must list recipes"),
    ],
)
def test_a_system_that_cannot_be_used_is_told(tmp_path: Path, code: str, told: str) -> None:
    profile = load_profile(written(tmp_path, code))
    with pytest.raises(ProfileError, match=told):
        recipes(profile)


def test_a_network_of_the_file_must_be_one(home: Path) -> None:
    code = system(network='Network("own", "net")') + "NETWORKS = {'net': lambda classes, shape, mean, std: shape}\n"
    study = Study(load_profile(written(home, code)), replay=False, workers=1)
    with pytest.raises(ProfileError, match=r"net: expected a torch.nn.Module, got \(1, 8, 8\)"):
        study.build(study.networks.system("mine").architecture)


def test_a_network_of_the_file_is_told_the_shape_of_the_data(home: Path) -> None:
    code = "import torch\n" + system(network='Network("own", "net")')
    code += "def net(classes, shape, mean, std):\n"
    code += "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[1] * shape[2], classes))\n"
    code += "NETWORKS = {'net': net}\n"
    study = Study(load_profile(written(home, code)), replay=False, workers=1)
    layer = list(study.build(study.networks.system("mine").architecture).children())[1]
    assert isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (64, 10)


def test_a_study_keeps_the_version_of_the_file_it_was_opened_with(home: Path) -> None:
    code = "import torch\n" + system(network='Network("own", "net")')
    code += "def net(classes, shape, mean, std):\n"
    code += "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    code += "NETWORKS = {'net': net}\n"
    path = written(home, code)
    study = Study(load_profile(path), replay=False, workers=1)
    before = study.networks.system("mine").architecture
    extension = Path(load_profile(path).study.extension)
    extension.write_text(extension.read_text().replace("Linear(64, 10)", "Linear(64, 10, bias=False)"))
    newer = Study(load_profile(path), replay=False, workers=1)
    assert len(list(study.build(before).parameters())) == 2
    assert len(list(newer.build(newer.networks.system("mine").architecture).parameters())) == 1
    for other, architecture in ((study, newer.networks.system("mine").architecture), (newer, before)):
        with pytest.raises(ProfileError, match="has changed since this study was opened"):
            other.build(architecture)


def test_an_unknown_data_set_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, system(), "[data]", 'name = "faces"')
    with pytest.raises(ProfileError, match=r"data.name: 'faces' is not one of digits, cifar10, cifar100, svhn"):
        load_profile(path)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("3", "expected a Source"),
        (
            "Source('s', ('a', 'b'), Arrays(np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.int64)))",
            "expected train images",
        ),
        ("Source('s', ('a', 'b'), Arrays(np.zeros((4, 1, 8, 8)), np.zeros(4, np.int64)))", "expected train images"),
        (
            "Source('s', ('a', 'b'), Arrays(np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4)))",
            "expected train labels int64",
        ),
    ],
)
def test_images_of_the_wrong_kind_are_told(tmp_path: Path, returned: str, told: str) -> None:
    code = (
        f"import numpy as np\nfrom paperlib.data import Arrays, Source\nDATASETS = {{'s': lambda source: {returned}}}\n"
    )
    profile = load_profile(written(tmp_path, code, "[data]", 'name = "s"'))
    with pytest.raises(DataError, match=told):
        load_dataset(profile)


def test_a_published_profile_keeps_the_place_of_the_file_to_itself(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, system()))
    published = published_configuration(profile)
    assert str(tmp_path) in json.dumps(to_table(profile)) and str(tmp_path) not in json.dumps(published)
    assert published["study"]["extension"] == "mine.py"


# -- one version of the file in one run ------------------------------------------------------------------------------


def edit(folder: Path) -> None:
    (folder / "mine.py").write_text(system("other"), encoding="utf-8")


def test_a_loaded_profile_keeps_its_version_and_loading_again_takes_the_new_one(home: Path) -> None:
    path = written(home, system())
    profile = load_profile(path)
    edit(home)
    assert "mine" in recipes(profile)
    assert Study(profile, replay=False).missing(["train:mine"]) == ["train:mine"]
    assert "other" in recipes(load_profile(path))


def test_a_command_reads_the_file_once_and_the_next_command_again(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(home, system())
    with one_version():
        load_profile(path)
        edit(home)
        assert "mine" in recipes(load_profile(path))
    assert main(["run", "--profile", path, "--list"]) == 0
    assert "train:other" in capsys.readouterr().out


LOADS = "import sys, paperlib; paperlib.load_profile(sys.argv[1])"


def load_in_a_worker(path: str) -> str:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return str(pool.submit(load_profile, path).exception())


def load_in_a_notebook(path: str) -> str:
    environment = os.environ | {MARK: "run"}
    done = subprocess.run([sys.executable, "-c", LOADS, path], env=environment, capture_output=True, text=True)
    return done.stderr


@pytest.mark.parametrize("load", [load_in_a_worker, load_in_a_notebook])
def test_a_process_of_a_run_refuses_another_version(home: Path, load: object) -> None:
    path = written(home, system())
    load_profile(path)
    edit(home)
    assert "mine.py has changed since this run read it" in load(path)  # type: ignore[operator]
    load_profile(path)
    assert "has changed" not in load(path)  # type: ignore[operator]


def test_a_command_of_its_own_reads_what_is_there(home: Path) -> None:
    path = written(home, system())
    load_profile(path)  # as in a session from which a command is started
    edit(home)
    command = [sys.executable, "-m", "paperlib", "run", "--profile", path, "--list"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train:other" in done.stdout


def test_the_kernels_of_a_run_are_recognised_by_the_mark_that_is_set_there() -> None:
    assert MARK == MARK_OF_A_NOTEBOOK
