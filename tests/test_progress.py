"""Progress lines and bars: amount of finished work and remaining time."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from paperlib import log


def test_long_work_logs_its_progress_and_yields_all_items(log_lines: list[str]) -> None:
    assert list(log.track(range(4), 4, "work", every=0)) == [0, 1, 2, 3]
    amounts = [line.split(",")[0] for line in log_lines]
    assert amounts == ["work: 1 of 4", "work: 2 of 4", "work: 3 of 4"]  # no line for finished work
    assert all(line.endswith("s left") for line in log_lines)


def test_short_work_logs_nothing(log_lines: list[str]) -> None:
    assert list(log.track(range(4), 4, "work")) == [0, 1, 2, 3]
    assert log_lines == []


def test_percentages_are_logged_with_the_remaining_time(monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: clock[0])
    with log.progress(100, "attack", every=5, unit="%") as update:
        for second, share in enumerate([0, 1, 2, 3, 4, 10, 20, 30, 40, 50, 50, 100]):
            clock[0] = 100.0 + second
            update(share)
    # After 5 s at 10 %, 45 s remain; after 10 s at 50 %, 10 s remain.
    assert log_lines == ["attack: 10 %, about 45 s left", "attack: 50 %, about 10 s left"]


def test_a_unit_follows_the_amount_and_zero_is_not_logged(log_lines: list[str]) -> None:
    with log.progress(4, "work", every=0, unit="images") as update:
        for done in range(5):
            update(done)
    assert [line.split(",")[0] for line in log_lines] == [f"work: {done} of 4 images" for done in (1, 2, 3)]


class Bar:
    """Replaces tqdm's bar and records its arguments."""

    created: ClassVar[list[Bar]] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.n, self.open = options, 0, False
        Bar.created.append(self)

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
    monkeypatch.setattr(Bar, "created", [])
    return Bar.created


def test_a_bar_shows_the_amount_of_finished_work(bars: list[Bar]) -> None:
    with log.progress(100, "attack", unit="%") as update:
        (bar,) = bars
        assert bar.open
        shown = [(update(share), bar.n)[1] for share in (0, 3, 10, 10, 100)]
    assert shown == [0, 3, 10, 10, 100]
    assert not bar.open
    assert (bar.options["total"], bar.options["desc"], bar.options["unit"]) == (100, "attack", "%")
    assert list(log.track("abc", 3, "letters")) == ["a", "b", "c"]
    assert bars[1].n == 3


def test_a_bar_is_closed_when_the_work_fails(bars: list[Bar]) -> None:
    with pytest.raises(KeyError), log.progress(3, "work"):
        raise KeyError
    assert not bars[0].open


def test_silent_work_shows_neither_bar_nor_line(bars: list[Bar], capsys: pytest.CaptureFixture[str]) -> None:
    with log.progress(3, "work", every=0, visible=False) as update:
        update(1)
    log.logger.setLevel("WARNING")
    try:
        assert list(log.track("abc", 3, "letters", every=0)) == ["a", "b", "c"]
    finally:
        log.logger.setLevel("INFO")
    assert bars == []
    assert capsys.readouterr() == ("", "")


def test_kernels_show_bars_unless_the_variable_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel, bars in ((False, {"": False, "bar": True}), (True, {"": True, "lines": False})):
        monkeypatch.delitem(log.sys.modules, "ipykernel", raising=False)
        if kernel:
            monkeypatch.setitem(log.sys.modules, "ipykernel", pytest)
        for setting, bar in bars.items():
            monkeypatch.setenv("PAPERLIB_PROGRESS", setting)
            assert log.wants_bar() is bar
