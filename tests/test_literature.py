"""Numbers of others stand with protocol and source, and beside a system of ours."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from paperlib import load_profile
from paperlib.report.tables.literature import REPORTED, Reported, literature
from paperlib.systems.registry import recipes

COLUMNS = [field.name for field in fields(Reported) if field.name not in ("beside", "method")]
rows = pytest.mark.parametrize("row", REPORTED, ids=lambda row: f"{row.beside} {row.method}")


@rows
def test_a_number_has_protocol_source_and_how_we_know(row: Reported) -> None:
    assert all(text.strip() for text in (row.method, row.network, row.protocol, row.source))
    assert row.read in ("log", "table", "third party")
    assert re.fullmatch(r"RobustBench|[\w.-]+/[\w.-]+", row.source)
    assert re.search(r"PGD|AutoAttack|attack", row.protocol)
    if "AutoAttack" not in row.protocol:  # the value of the other protocols depends on which checkpoint was kept
        assert re.search(r"checkpoint|epoch", row.protocol + row.method)


@rows
def test_a_number_is_a_percentage_that_attack_does_not_raise(row: Reported) -> None:
    assert 0 < row.robust <= row.clean < 100
    assert row.clean > 50  # percent, not a fraction


@rows
def test_a_number_stands_beside_a_system_of_ours(row: Reported) -> None:
    assert row.beside in recipes(load_profile("digits"))


def test_robustbench_is_read_as_a_table_under_autoattack() -> None:
    for row in REPORTED:
        assert (row.source == "RobustBench") == (row.protocol.startswith("AutoAttack")) == (row.read == "table")


def test_all_is_shown_unless_systems_are_named() -> None:
    frame = literature()
    assert len(frame) == len(REPORTED)
    assert frame.index.is_unique
    assert frame.index.names == ["beside", "method"]
    assert list(frame.columns) == COLUMNS
    for row in REPORTED:
        assert tuple(frame.loc[(row.beside, row.method)]) == tuple(getattr(row, name) for name in COLUMNS)


def test_naming_systems_leaves_out_the_others() -> None:
    frame = literature("advmoe-own")
    assert set(frame.index.get_level_values("beside")) == {"advmoe-own"}
    assert len(frame) == sum(row.beside == "advmoe-own" for row in REPORTED) == 2
    assert set(frame["read"]) == {"third party"}
    both = literature("advmoe-own", "trades")
    assert set(both.index.get_level_values("beside")) == {"advmoe-own", "trades"}
    assert len(both) == len(frame) + len(literature("trades"))


def test_a_system_nobody_reports_leaves_nothing() -> None:
    assert len(literature("uniform")) == 0
