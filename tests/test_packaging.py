"""pip, conda and the lock file agree, and the library imports no notebook or plotting package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
VERBS = {"help", "reproduce", "lab", "check", "test", "bench", "clean"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[Requirement]:
    extras = project()["optional-dependencies"]
    return [Requirement(line) for line in [*project()["dependencies"], *extras["notebooks"], *extras["test"]]]


def identity(requirement: Requirement) -> tuple[object, ...]:
    """Equal for requirements that mean the same."""
    return (
        canonicalize_name(requirement.name),
        frozenset(requirement.extras),
        requirement.specifier,
        str(requirement.marker or ""),
    )


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def lock() -> dict[str, Version]:
    pairs = [line.split("==") for line in lock_lines()]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def environment() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def environment_pip_lines() -> list[str]:
    (section,) = (entry["pip"] for entry in environment()["dependencies"] if isinstance(entry, dict))
    return section


def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def test_conda_and_pip_ask_for_the_same_packages() -> None:
    listed = [Requirement(line) for line in environment_pip_lines() if not line.startswith("-")]
    pip, conda = {identity(r) for r in requirements()}, {identity(r) for r in listed}
    assert pip - conda == set(), "in pyproject.toml but not in environment.yml"
    assert conda - pip == set(), "in environment.yml but not in pyproject.toml"
    assert len(listed) == len(conda), "environment.yml names a package twice"


def test_conda_installs_this_checkout_at_the_locked_versions() -> None:
    options = [line for line in environment_pip_lines() if line.startswith("-")]
    assert options == ["-c requirements.lock", "-e ."]


def test_conda_installs_a_supported_python() -> None:
    dependencies = environment()["dependencies"]
    (python,) = (entry for entry in dependencies if isinstance(entry, str) and entry.startswith("python="))
    supported = Requirement("python" + project()["requires-python"]).specifier
    assert supported.contains(python.removeprefix("python="))
    assert "pip" in dependencies, "without it, conda warns and may use another pip"


def test_the_lock_satisfies_all_requirements() -> None:
    locked = lock()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in locked, f"requirements.lock has no line for {requirement.name}"
        assert requirement.specifier.contains(locked[name]), f"requirements.lock has {locked[name]}, not {requirement}"


def test_the_lock_holds_all_packages_that_they_need() -> None:
    locked, pending, seen = lock(), [canonicalize_name(r.name) for r in requirements()], set()
    while pending:
        name = pending.pop()
        if name in seen or name in ("setuptools", "pip"):
            continue
        seen.add(name)
        assert name in locked, f"requirements.lock has no line for {name}"
        for needed in map(Requirement, metadata.requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                pending.append(canonicalize_name(needed.name))


def test_lock_holds_exact_versions_and_nothing_else() -> None:
    exact = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.+!-]*")
    odd = [line for line in lock_lines() if not exact.fullmatch(line)]
    assert odd == [], "not of the form name==version"
    assert len(lock()) == len(lock_lines()), "a package is locked twice"
    assert "paperlib" not in lock()


def test_lock_names_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert "index-url" not in text
    assert "find-links" not in text
    assert not re.search(r"\b[\w-]+\.(org|com|net|io|dev|local)\b", text)


def test_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["version"] == project()["version"]
    assert citation["license"] == project()["license"]
    paper = citation["preferred-citation"]
    assert paper["title"] == "Defending against adversarial attacks using mixture of experts"
    assert [author["family-names"] for author in paper["authors"]] == ["Meymani", "Razavi-Far"]
    assert paper["year"] == 2025
    assert "arXiv:2512.20821" in [identifier["value"] for identifier in paper["identifiers"]]


def test_the_version_is_that_of_pyproject() -> None:
    import paperlib

    assert paperlib.__version__ == project()["version"]


def test_makefile_has_its_verbs() -> None:
    rules = set(re.findall(r"^([a-z]+):", makefile(), flags=re.MULTILINE))
    assert rules == VERBS | {"style"}
    (phony,) = re.findall(r"^\.PHONY:(.*)$", makefile(), flags=re.MULTILINE)
    assert set(phony.split()) == rules


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_every_verb() -> None:
    # Without the flags that an outer `make test` leaves in the environment.
    process = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        env={"PATH": str(Path(shutil.which("make") or "").parent) + ":/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    listed = set(re.findall(r"^  make ([a-z]+) +\S", process.stdout, flags=re.MULTILINE))
    assert listed == VERBS


def test_clean_keeps_data_and_figures() -> None:
    (recipe,) = re.findall(r"^clean:.*\n((?:\t.*\n)+)", makefile(), flags=re.MULTILINE)
    assert not re.search(r"\b(data|figures)\b", recipe)


PROBE = """
import json, sys
import numpy, pandas, pydantic, safetensors.torch, torch, torchvision
before = set(sys.modules)
import paperlib
print(json.dumps([paperlib.__file__, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
"""
HEAVY = {
    "IPython",
    "foolbox",
    "ipykernel",
    "ipywidgets",
    "jupyter_client",
    "jupyter_core",
    "jupyterlab",
    "math_core",
    "matplotlib",
    "nbclient",
    "nbconvert",
    "nbformat",
    "papermill",
    "scipy",
    "seaborn",
    "sklearn",
    "traitlets",
}


def test_import_pulls_in_no_notebook_or_plotting_package() -> None:
    # PROBE imports the core dependencies first, so that only the imports of paperlib itself count.
    process = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert process.returncode == 0, process.stderr
    origin, added = json.loads(process.stdout.splitlines()[-1])
    assert Path(origin).resolve().is_relative_to(ROOT), "another copy of paperlib was imported"
    assert HEAVY.isdisjoint(added), sorted(HEAVY & set(added))
