"""Progress is said in lines that carry something: how far, how long still."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from paperlib import log


def test_long_work_says_how_far_it_is_and_yields_everything(log_lines: list[str]) -> None:
    assert list(log.track(range(4), 4, "work", every=0)) == [0, 1, 2, 3]
    assert [line.split(",")[0] for line in log_lines] == [
        "work: 1 of 4",
        "work: 2 of 4",
        "work: 3 of 4",
    ]  # not the last
    assert all(line.endswith("s left") for line in log_lines)


def test_short_work_says_nothing(log_lines: list[str]) -> None:
    assert list(log.track(range(4), 4, "work")) == [0, 1, 2, 3]
    assert log_lines == []


def test_a_share_is_said_in_percent_and_how_long_the_rest_will_take(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: clock[0])
    with log.progress(100, "attack", every=5, unit="%") as update:
        for second, share in enumerate([0, 1, 2, 3, 4, 10, 20, 30, 40, 50, 50, 100]):
            clock[0] = 100.0 + second
            update(share)
    # After 5 s at 10 %, 45 s are left; after 10 s at 50 %, 10 s; what is done needs no line.
    assert log_lines == ["attack: 10 %, about 45 s left", "attack: 50 %, about 10 s left"]


def test_other_work_is_said_in_its_unit_and_nothing_before_it_begins(log_lines: list[str]) -> None:
    with log.progress(4, "work", every=0, unit="images") as update:
        for done in range(5):
            update(done)
    assert [line.split(",")[0] for line in log_lines] == [f"work: {done} of 4 images" for done in (1, 2, 3)]


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with log.progress(100, "attack", unit="%") as update:
        for share in range(101):
            update(share)
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
    with log.progress(100, "attack", unit="%") as update:
        (bar,) = bars
        assert bar.open
        shown = [(update(share), bar.n)[1] for share in (0, 3, 10, 10, 100)]
    assert shown == [0, 3, 10, 10, 100]
    assert not bar.open
    assert (bar.how["total"], bar.how["desc"], bar.how["unit"]) == (100, "attack", "%")
    assert list(log.track("abc", 3, "letters")) == ["a", "b", "c"]
    assert bars[1].n == 3


def test_a_bar_is_closed_when_the_work_fails(bars: list[Bar]) -> None:
    with pytest.raises(KeyError), log.progress(3, "work"):
        raise KeyError
    assert not bars[0].open


def test_silenced_work_shows_neither_bar_nor_line(bars: list[Bar], capsys: pytest.CaptureFixture[str]) -> None:
    with log.progress(3, "work", every=0, visible=False) as update:
        update(1)
    log.logger.setLevel("WARNING")
    try:
        assert list(log.track("abc", 3, "letters", every=0)) == ["a", "b", "c"]
    finally:
        log.logger.setLevel("INFO")
    assert bars == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("choice", "kernel", "bar"), [("", False, False), ("", True, True), ("lines", True, False), ("bar", False, True)]
)
def test_a_bar_is_for_kernels_unless_told_otherwise(
    choice: str, kernel: bool, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_PROGRESS", choice)
    monkeypatch.delitem(log.sys.modules, "ipykernel", raising=False)
    if kernel:
        monkeypatch.setitem(log.sys.modules, "ipykernel", pytest)
    assert log.wants_bar() is bar
