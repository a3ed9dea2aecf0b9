"""Profiles that build on another one, and extensions: errors name the file and the line."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from torch import nn
from toys import micro_table, toml_text

from paperlib import Profile, Study, load_dataset, load_profile
from paperlib.cli import main
from paperlib.config import plugins
from paperlib.config.plugins import MARK, one_version
from paperlib.config.serialise import to_table
from paperlib.errors import DataError, ProfileError
from paperlib.pipeline.publish import published_configuration
from paperlib.pipeline.stages import autoattack_systems, stages
from paperlib.series.child import MARK as MARK_OF_KERNELS
from paperlib.systems.registry import recipes

SYSTEM = """
from paperlib.systems.recipe import Network, Recipe
from paperlib.training.adversaries import NoAttack
from paperlib.training.update import UpdateStep
def systems(profile):
    steps = (UpdateStep(NoAttack()),)
    return [Recipe({name!r}, "mine", {family!r}, {network}, update_steps=steps, training={training})]
"""


def write_profile(folder: Path, code: str, *lines: str) -> str:
    """Write a profile that builds on the micro profile and names an extension with ``code``."""
    (folder / "micro.toml").write_text(toml_text(micro_table()), encoding="utf-8")
    (folder / "mine.py").write_text(code, encoding="utf-8")
    text = "\n".join(['base = "micro.toml"', "[study]", 'extension = "mine.py"', *lines])
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return str(folder / "mine.toml")


def system_code(
    name: str = "mine", family: str = "defence", network: str = "Network()", training: str = "profile.phase1"
) -> str:
    return SYSTEM.format(name=name, family=family, network=network, training=training)


def test_a_profile_states_only_its_changes(tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text('base = "digits"\n[model]\nwidth = 20\n', encoding="utf-8")
    (tmp_path / "wider.toml").write_text('base = "wide.toml"\n[model]\ngate_width = 21\n', encoding="utf-8")
    wider, base = to_table(load_profile(str(tmp_path / "wider.toml"))), to_table(load_profile("digits"))
    assert wider == base | {
        "name": "wider",
        "base": "digits",
        "model": base["model"] | {"width": 20, "gate_width": 21},
    }


def test_profiles_with_other_images_share_no_results(tmp_path: Path) -> None:
    (tmp_path / "few.toml").write_text('base = "digits"\n[data]\ntrain = 100\n', encoding="utf-8")
    assert load_profile(str(tmp_path / "few.toml")).base == ""


def test_a_base_must_be_another_profile(tmp_path: Path) -> None:
    for base, message in (
        ('"mine.toml"', "must name another profile"),
        ("3", "must name another profile"),
        ('"none.toml"', "no such file"),
        ('"digit"', "unknown profile"),
    ):
        (tmp_path / "mine.toml").write_text(f"base = {base}\n", encoding="utf-8")
        with pytest.raises(ProfileError, match=message):
            load_profile(str(tmp_path / "mine.toml"))


def test_unchanged_results_of_the_base_are_reused(home: Path) -> None:
    profile = load_profile(write_profile(home, system_code()))
    base = Study(load_profile(str(home / "micro.toml")), replay=False, workers=1)
    base.compute(["evaluate:plain:clean"])
    extended = Study(profile, replay=False, workers=1)
    assert extended.find("evaluate:plain:clean") is not None
    assert extended.missing(["evaluate:mine:clean"]) == ["train:mine", "evaluate:mine:clean"]
    extended.compute(["evaluate:mine:clean"])
    assert extended.find("evaluate:mine:clean") is not None
    # a change of the file changes the keys of its results
    (home / "mine.py").write_text(system_code() + "\n# another version\n", encoding="utf-8")
    changed = Study(load_profile(str(home / "mine.toml")), replay=False, workers=1)
    assert changed.find("evaluate:mine:clean") is None and changed.find("evaluate:plain:clean") is not None


def test_the_systems_of_the_file_join_every_comparison(tmp_path: Path, micro: Profile) -> None:
    profile = load_profile(write_profile(tmp_path, system_code()))
    assert [*recipes(profile)] == [*recipes(micro), "mine"]
    assert "mine" in autoattack_systems(profile)
    names = {name for name in stages(profile) if ":mine" in name}
    assert {"train:mine", "evaluate:mine:clean", "stress:mine", "autoattack:mine"} <= names


def test_shipped_systems_keep_their_keys(tmp_path: Path, micro: Profile) -> None:
    extended = stages(load_profile(write_profile(tmp_path, system_code())))
    for name, stage in stages(micro).items():
        assert extended[name].config == stage.config and extended[name].inputs == stage.inputs, name


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    for code, message in [
        ("x = 1", "defines neither systems nor DATASETS"),
        ("systems = 3", "systems must be a function"),
        ("NETWORKS = {'a': 1}", "NETWORKS must hold functions"),
        ("def systems(profile:\n", r"mine.py, line 1: SyntaxError"),
        ("\n\n1 / 0", r"mine.py, line 3: ZeroDivisionError"),
        ("DATASETS = {'digits': print}", "digits is the name of a data set"),
    ]:
        with pytest.raises(ProfileError, match=message):
            load_profile(write_profile(tmp_path, code))
    profile = write_profile(tmp_path, system_code())
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ProfileError, match=r"study.extension: mine.py cannot be read"):
        load_profile(profile)


def test_an_unusable_system_is_named(tmp_path: Path) -> None:
    for code, message in [
        (system_code("dwf"), "may not take the name of another system"),
        (system_code("My system"), "named in lower case"),
        (system_code(family="best"), "family 'best' is not one of"),
        (system_code(training="None"), "needs training"),
        (system_code(network='Network("own", "none")'), "no network 'none'"),
        ("def systems(profile):\n    return profile.nothing", "mine.py, line 2: AttributeError"),
        ("def systems(profile):\n    return ['mine']", "must list recipes"),
    ]:
        profile = load_profile(write_profile(tmp_path, code))
        with pytest.raises(ProfileError, match=message):
            recipes(profile)


def test_a_network_of_the_file_must_be_a_module(home: Path) -> None:
    code = (
        system_code(network='Network("own", "net")') + "NETWORKS = {'net': lambda classes, shape, mean, std: shape}\n"
    )
    study = Study(load_profile(write_profile(home, code)), replay=False, workers=1)
    with pytest.raises(ProfileError, match=r"net: expected a torch.nn.Module, got \(1, 8, 8\)"):
        study.build(study.networks.system("mine").architecture)


def test_a_network_of_the_file_receives_the_shape_of_the_data(home: Path) -> None:
    code = "import torch\n" + system_code(network='Network("own", "net")')
    code += "def net(classes, shape, mean, std):\n"
    code += "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[1] * shape[2], classes))\n"
    code += "NETWORKS = {'net': net}\n"
    study = Study(load_profile(write_profile(home, code)), replay=False, workers=1)
    layer = list(study.build(study.networks.system("mine").architecture).children())[1]
    assert isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (64, 10)


def test_a_study_keeps_the_version_of_the_file_it_was_opened_with(home: Path) -> None:
    code = "import torch\n" + system_code(network='Network("own", "net")')
    code += "def net(classes, shape, mean, std):\n"
    code += "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    code += "NETWORKS = {'net': net}\n"
    path = write_profile(home, code)
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


def test_an_unknown_data_set_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    path = write_profile(tmp_path, system_code(), "[data]", 'name = "faces"')
    with pytest.raises(ProfileError, match=r"data.name: 'faces' is not one of digits, cifar10, cifar100, svhn"):
        load_profile(path)


def test_images_of_another_type_are_refused(tmp_path: Path) -> None:
    for returned, message in [
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
    ]:
        code = "import numpy as np\nfrom paperlib.data import Arrays, Source\n"
        code += f"DATASETS = {{'s': lambda source: {returned}}}\n"
        profile = load_profile(write_profile(tmp_path, code, "[data]", 'name = "s"'))
        with pytest.raises(DataError, match=message):
            load_dataset(profile)


def test_a_published_profile_does_not_contain_the_folder_of_the_file(tmp_path: Path) -> None:
    profile = load_profile(write_profile(tmp_path, system_code()))
    assert str(tmp_path) in json.dumps(to_table(profile)) and str(tmp_path) not in json.dumps(
        published_configuration(profile)
    )
    assert published_configuration(profile)["study"]["extension"] == "mine.py"


# One version of the file in a run -------------------------------------------------------------------------------------


def edit(folder: Path) -> None:
    (folder / "mine.py").write_text(system_code("other"), encoding="utf-8")


def test_a_loaded_profile_keeps_its_version_and_loading_again_takes_the_new_one(home: Path) -> None:
    path = write_profile(home, system_code())
    profile = load_profile(path)
    edit(home)
    assert "mine" in recipes(profile)
    assert Study(profile, replay=False).missing(["train:mine"]) == ["train:mine"]
    assert "other" in recipes(load_profile(path))


def test_a_command_reads_the_file_once_and_the_next_command_again(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_profile(home, system_code())
    with one_version():
        load_profile(path)
        edit(home)
        assert "mine" in recipes(load_profile(path))
    assert main(["run", "--profile", path, "--list"]) == 0
    assert "train:other" in capsys.readouterr().out


def load_in_a_worker(path: str) -> str:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return str(pool.submit(load_profile, path).exception())


def test_child_processes_of_a_run_refuse_another_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_profile(home, system_code())
    load_profile(path)
    edit(home)
    assert "mine.py has changed since this run read it" in load_in_a_worker(path)
    plugins._extensions.clear()  # as in a new process
    with monkeypatch.context() as kernel:
        kernel.setenv(MARK, "run")
        with pytest.raises(ProfileError, match=r"mine.py has changed since this run read it"):
            load_profile(path)
    load_profile(path)  # a separate command reads the present file, in spite of the exported version
    with monkeypatch.context() as kernel:
        kernel.setenv(MARK, "run")
        plugins._extensions.clear()
        assert "other" in recipes(load_profile(path))


def test_the_kernels_of_a_run_set_the_variable_that_identifies_them() -> None:
    assert MARK == MARK_OF_KERNELS
