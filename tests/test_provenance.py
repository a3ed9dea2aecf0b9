"""The commit of a record is that of this copy of the code, or ``unknown``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from paperlib.pipeline import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def copy_of_the_code(folder: Path) -> Path:
    (folder / "paperlib").mkdir(parents=True)
    (folder / "paperlib" / "__init__.py").write_text("")
    (folder / "paperlib" / "seeds.py").write_text("")  # changes numbers
    (folder / "pyproject.toml").write_text("")
    return folder


def repository(folder: Path, *, tracked: bool = True) -> str:
    """Make ``folder`` a repository; returns its commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", "." if tracked else "--intent-to-add")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    return git(folder, "rev-parse", "--short=12", "HEAD")


@pytest.fixture(autouse=True)
def plain_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Git without the user's configuration, and without a repository that contains the temporary folder."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Returns the commit that a copy of the code in a folder reports."""

    def of_copy(folder: Path) -> str:
        monkeypatch.setattr(provenance, "ROOT", folder)
        return provenance.commit.__wrapped__()

    return of_copy


def test_a_clone_has_its_commit_with_a_plus_after_a_change_of_numerical_code(
    tmp_path: Path, commit: Callable[[Path], str]
) -> None:
    clone = copy_of_the_code(tmp_path / "clone")
    first = repository(clone)
    assert commit(clone) == first
    (clone / "notes.txt").write_text("")
    assert commit(clone) == first
    (clone / "paperlib" / "seeds.py").write_text("changed")
    assert commit(clone) == f"{first}+"


def test_a_worktree_has_its_own_commit(tmp_path: Path, commit: Callable[[Path], str]) -> None:
    repository(copy_of_the_code(tmp_path / "clone"))
    git(tmp_path / "clone", "worktree", "add", "--quiet", "../worktree")
    assert (tmp_path / "worktree" / ".git").is_file()
    git(tmp_path / "worktree", "commit", "--quiet", "--allow-empty", "--message", "second")
    assert commit(tmp_path / "worktree") == git(tmp_path / "worktree", "rev-parse", "--short=12", "HEAD")
    assert commit(tmp_path / "worktree") != commit(tmp_path / "clone")


def inside_another(folder: Path) -> Path:
    folder.mkdir()
    repository(folder)
    return copy_of_the_code(folder / "copy")


def tracked_inside_another(folder: Path) -> Path:
    copy = copy_of_the_code(folder / "copy")
    repository(folder)
    return copy


def unpacked_over_another(folder: Path) -> Path:
    copy_of_the_code(folder)
    repository(folder, tracked=False)
    return folder


def without_a_repository(folder: Path) -> Path:
    return copy_of_the_code(folder)


@pytest.mark.parametrize("make", [inside_another, tracked_inside_another, unpacked_over_another, without_a_repository])
def test_the_commit_of_a_copy_that_is_not_a_clone_is_unknown(
    tmp_path: Path, commit: Callable[[Path], str], make: Callable[[Path], Path]
) -> None:
    assert commit(make(tmp_path / "folder")) == "unknown"


def test_environment_variables_that_name_another_repository_have_no_effect(
    tmp_path: Path, commit: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone, other = copy_of_the_code(tmp_path / "clone"), copy_of_the_code(tmp_path / "other")
    copy = copy_of_the_code(tmp_path / "copy")
    first = repository(clone)
    (other / "more.txt").write_text("")
    assert repository(other) != first
    values = {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_INDEX_FILE": other / ".git" / "index"}
    for names in (("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE"), ("GIT_DIR", "GIT_INDEX_FILE")):
        with monkeypatch.context() as patched:
            for name in names:
                patched.setenv(name, str(values[name]))
            assert commit(copy) == "unknown"
            assert commit(clone) == first


def test_the_commit_is_unknown_without_git(
    tmp_path: Path, commit: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = copy_of_the_code(tmp_path / "clone")
    repository(clone)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(clone) == "unknown"


def test_the_commit_is_unknown_if_git_refuses_the_repository(
    tmp_path: Path, commit: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = copy_of_the_code(tmp_path / "clone")
    repository(clone)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch to test safe.directory
    assert commit(clone) == "unknown"
