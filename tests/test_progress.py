"""Progress is said in lines that carry something: how far, how long still."""

from __future__ import annotations

from typing import Any, ClassVar

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


def test_a_share_is_said_in_percent_and_how_long_the_rest_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines: list[str] = []
    with progress.meter(100, "attack", lines.append, every=5, unit="%") as reached:
        for second, share in enumerate([0, 1, 2, 3, 4, 10, 20, 30, 40, 50, 50, 100]):
            clock[0] = 100.0 + second
            reached(share)
    # After 5 s at 10 %, 45 s are left; after 10 s at 50 %, 10 s; what is done needs no line.
    assert lines == ["attack: 10 %, about 45 s left", "attack: 50 %, about 10 s left"]


def test_other_work_is_said_in_its_unit_and_nothing_before_it_begins() -> None:
    lines: list[str] = []
    with progress.meter(4, "work", lines.append, every=0, unit="images") as reached:
        for done in range(5):
            reached(done)
    assert [line.split(",")[0] for line in lines] == [f"work: {done} of 4 images" for done in (1, 2, 3)]


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.meter(100, "attack", unit="%") as reached:
        for share in range(101):
            reached(share)
    assert capsys.readouterr() == ("", "")


class Bar:
    """In place of tqdm's: keeps what it was told."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, **how: Any) -> None:
        self.how, self.n, self.open = how, 0, False
        Bar.made.append(self)

    def __enter__(self) -> Bar:
        self.open = True
        return self

    def __exit__(self, *error: object) -> None:
        self.open = False

    def update(self, by: int) -> bool:
        self.n += by
        return True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    monkeypatch.setenv("PAPERLIB_PROGRESS", "bar")
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    return Bar.made


def test_a_bar_follows_how_far_the_work_is(bars: list[Bar]) -> None:
    with progress.meter(100, "attack", unit="%") as reached:
        (bar,) = bars
        assert bar.open
        shown = [(reached(share), bar.n)[1] for share in (0, 3, 10, 10, 100)]
    assert shown == [0, 3, 10, 10, 100]
    assert not bar.open
    assert (bar.how["total"], bar.how["desc"], bar.how["unit"]) == (100, "attack", "%")
    assert list(progress.track("abc", 3, "letters")) == ["a", "b", "c"]
    assert bars[1].n == 3


def test_a_bar_is_closed_when_the_work_fails(bars: list[Bar]) -> None:
    with pytest.raises(KeyError), progress.meter(3, "work"):
        raise KeyError
    assert not bars[0].open


def test_silent_work_shows_neither_bar_nor_line(bars: list[Bar], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track("abc", 3, "letters", progress.silent, every=0)) == ["a", "b", "c"]
    with progress.meter(3, "work", progress.silent, every=0) as reached:
        reached(1)
    assert bars == []
    assert capsys.readouterr() == ("", "")


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
