"""Numbers of the literature have a protocol, a source, and a system of ours to compare them with."""

from __future__ import annotations

import re
from dataclasses import fields

from paperlib import load_profile
from paperlib.report.tables.literature import REPORTED, Reported, literature
from paperlib.systems.registry import recipes

COLUMNS = [field.name for field in fields(Reported) if field.name not in ("compare_with", "method")]


def test_every_number_has_protocol_source_and_origin() -> None:
    for row in REPORTED:
        assert all(text.strip() for text in (row.method, row.network, row.protocol, row.source))
        assert row.origin in ("log", "table", "third party")
        assert re.fullmatch(r"RobustBench|[\w.-]+/[\w.-]+", row.source)
        assert re.search(r"PGD|AutoAttack|attack", row.protocol)
        if "AutoAttack" not in row.protocol:  # the value depends on the selected checkpoint
            assert re.search(r"checkpoint|epoch", row.protocol + row.method)
        assert (row.source == "RobustBench") == row.protocol.startswith("AutoAttack") == (row.origin == "table")
        assert 0 < row.robust <= row.clean < 100 and row.clean > 50  # percent, not a fraction


def test_every_number_belongs_to_a_system_of_ours() -> None:
    assert {row.compare_with for row in REPORTED} <= set(recipes(load_profile("digits")))


def test_all_rows_are_shown_unless_systems_are_selected() -> None:
    frame = literature()
    assert len(frame) == len(REPORTED) and frame.index.is_unique
    assert frame.index.names == ["compare_with", "method"] and list(frame.columns) == COLUMNS
    for row in REPORTED:
        assert tuple(frame.loc[(row.compare_with, row.method)]) == tuple(getattr(row, name) for name in COLUMNS)
    one, both = literature("advmoe-own"), literature("advmoe-own", "trades")
    assert len(one) == 2 and set(one["origin"]) == {"third party"}
    assert set(both.index.get_level_values("compare_with")) == {"advmoe-own", "trades"}
    assert len(both) == len(one) + len(literature("trades"))
    assert len(literature("uniform")) == 0
