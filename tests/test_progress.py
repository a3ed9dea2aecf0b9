"""Progress is said in lines that carry something: how far, how long still."""

from __future__ import annotations

import pytest

from paperlib import progress


def test_long_work_says_how_far_it_is_and_yields_everything() -> None:
    lines: list[str] = []
    assert list(progress.track(range(4), 4, "work", lines.append, every=0)) == [0, 1, 2, 3]
    assert [line.split(",")[0] for line in lines] == ["work: 1 of 4", "work: 2 of 4", "work: 3 of 4"]  # not the last
    assert all(line.endswith("s left") for line in lines)


def test_short_work_says_nothing() -> None:
    lines: list[str] = []
    assert list(progress.track(range(4), 4, "work", lines.append)) == [0, 1, 2, 3]
    assert lines == []


@pytest.mark.parametrize(
    ("choice", "kernel", "bar"), [("", False, False), ("", True, True), ("lines", True, False), ("bar", False, True)]
)
def test_a_bar_is_for_kernels_unless_told_otherwise(
    choice: str, kernel: bool, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_PROGRESS", choice)
    monkeypatch.delitem(progress.sys.modules, "ipykernel", raising=False)
    if kernel:
        monkeypatch.setitem(progress.sys.modules, "ipykernel", pytest)
    assert progress.wants_bar() is bar
