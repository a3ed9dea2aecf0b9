"""The commit of a record is that of this very copy of the code, or unknown."""

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
    (folder / "paperlib" / "checks.py").write_text("")  # decides numbers
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
    """No configuration of the user's, and no repository around the temporary folder."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """The commit of a copy in a folder, found anew."""

    def found(folder: Path) -> str:
        monkeypatch.setattr(provenance, "ROOT", folder)
        return provenance.commit.__wrapped__()

    return found


def test_a_clone_has_its_commit_and_says_when_code_that_decides_numbers_has_changed(
    tmp_path: Path, commit: Callable[[Path], str]
) -> None:
    clone = copy_of_the_code(tmp_path / "clone")
    first = repository(clone)
    assert commit(clone) == first
    (clone / "notes.txt").write_text("")
    assert commit(clone) == first
    (clone / "paperlib" / "checks.py").write_text("changed")
    assert commit(clone) == f"{first}+"


def test_a_worktree_has_its_commit(tmp_path: Path, commit: Callable[[Path], str]) -> None:
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


@pytest.mark.parametrize("place", [inside_another, tracked_inside_another, unpacked_over_another, without_a_repository])
def test_a_copy_that_is_no_clone_has_no_commit(
    tmp_path: Path, commit: Callable[[Path], str], place: Callable[[Path], Path]
) -> None:
    assert commit(place(tmp_path / "folder")) == "unknown"


@pytest.mark.parametrize("names", [("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE"), ("GIT_DIR", "GIT_INDEX_FILE")])
def test_variables_that_point_to_another_repository_change_nothing(
    tmp_path: Path, commit: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    clone, other = copy_of_the_code(tmp_path / "clone"), copy_of_the_code(tmp_path / "other")
    copy = copy_of_the_code(tmp_path / "copy")
    own = repository(clone)
    (other / "more.txt").write_text("")
    assert repository(other) != own
    values = {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_INDEX_FILE": other / ".git" / "index"}
    for name in names:
        monkeypatch.setenv(name, str(values[name]))
    assert commit(copy) == "unknown"
    assert commit(clone) == own


def test_without_git_it_is_unknown(
    tmp_path: Path, commit: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = copy_of_the_code(tmp_path / "clone")
    repository(clone)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(clone) == "unknown"


def test_where_git_refuses_it_is_unknown(
    tmp_path: Path, commit: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = copy_of_the_code(tmp_path / "clone")
    repository(clone)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch to test safe.directory
    assert commit(clone) == "unknown"
