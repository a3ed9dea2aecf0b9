"""Configurations are parsed strictly: what is wrong is named, and nothing is guessed."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import changed, micro_table, toml_text

from paperlib.config.budgets import budget_text
from paperlib.config.load import load_profile, profile_names
from paperlib.config.schema import parse_profile
from paperlib.config.serialise import canonical, to_table
from paperlib.errors import ProfileError
from paperlib.pipeline.keys import artefact_key

FGSM_EPS = [Fraction(i, 100) for i in range(1, 10)]
PGD_STEPS = [10, 20, 30, 40, 50]


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profile_round_trips_through_json(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert parse_profile(json.loads(json.dumps(to_table(profile)))) == profile


@pytest.mark.parametrize("name", [name for name in profile_names() if name != "smoke"])
def test_random_sets_are_the_papers(name: str) -> None:
    threat = load_profile(name).threat
    assert list(threat.fgsm_eps) == FGSM_EPS
    assert list(threat.pgd_steps) == PGD_STEPS


def test_smoke_says_that_its_sets_are_not_the_papers() -> None:
    assert list(load_profile("smoke").threat.pgd_steps) != PGD_STEPS
    assert "tests only" in load_profile("smoke").summary


BAD = [
    ("evaluation.eps", "(8, 255)"),  # what papermill makes of a tuple given as text
    ("evaluation.eps", "8"),
    ("evaluation.eps", 8),
    ("evaluation.eps", "8/0"),
    ("evaluation.eps", "-1/255"),
    ("evaluation.eps", ""),
    ("evaluation.eps", float("nan")),
    ("evaluation.eps", float("inf")),
    ("evaluation.eps", True),
    ("evaluation.eps", None),
    ("evaluation.eps", ["8/255"]),
    ("evaluation.eps", 0),  # the sweep scales the step with it
    ("evaluation.steps", True),
    ("evaluation.steps", "5"),
    ("evaluation.steps", 5.0),
    ("evaluation.steps", 0),
    ("evaluation.restarts", 0),
    ("evaluation.steps_sweep", []),
    ("evaluation.steps_sweep", [2, 1]),
    ("evaluation.steps_sweep", [1, 1]),
    ("evaluation.steps_sweep", [1, 6]),  # smoke takes 5 steps
    ("evaluation.steps_sweep", 5),
    ("evaluation.eps_sweep", []),
    ("evaluation.eps_sweep", "(0.1, 0.2)"),
    ("evaluation.eps_sweep", ["0.2", "0.1"]),
    ("evaluation.eps_sweep", ["0.1", "8"]),
    ("threat.pgd_steps", [10, "20"]),
    ("threat.random_start", 1),
    ("threat.random_start", "true"),
    ("phase1.lr", float("nan")),
    ("phase1.lr", float("inf")),
    ("phase1.lr", "0.1"),
    ("phase1.lr", -0.1),
    ("phase1.momentum", 1.5),
    ("phase1.schedule", "linear"),
    ("phase1", 3),
    ("data.name", "imagenet"),
    ("data.name", 7),
    ("data.validation", 0),
    ("model.mixing", "logit"),
    ("run.seeds", []),
    ("run.seeds", [-1]),
    ("name", 3),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{path}={value!r}" for path, value in BAD])
def test_a_bad_value_is_one_line_that_names_its_key(path: str, value: object) -> None:
    table = changed(to_table(load_profile("smoke")), path, value)
    with pytest.raises(ProfileError, match=re.escape(path)) as caught:
        parse_profile(table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["8", 8])
def test_an_eps_of_eight_gets_a_hint(value: object) -> None:
    with pytest.raises(ProfileError, match=r"did you mean 8/255\?"):
        parse_profile(changed(to_table(load_profile("smoke")), "evaluation.eps", value))


@pytest.mark.parametrize("path", ["phase1.epoch", "evalution", "run.bf61"])
def test_an_unknown_key_is_refused_with_a_suggestion(path: str) -> None:
    with pytest.raises(ProfileError, match=f"unknown key {re.escape(path)}; did you mean"):
        parse_profile(changed(to_table(load_profile("smoke")), path, 1))


@pytest.mark.parametrize("path", ["phase2.epochs", "summary", "threat"])
def test_a_missing_key_is_named(path: str) -> None:
    table = to_table(load_profile("smoke"))
    *sections, key = path.split(".")
    del (table[sections[0]] if sections else table)[key]
    with pytest.raises(ProfileError, match=f"missing key {re.escape(path)}"):
        parse_profile(table)


def test_an_unknown_profile_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ProfileError, match="unknown profile 'digit'; did you mean 'digits'"):
        load_profile("digit")


@pytest.mark.parametrize("name", [8, None, True, b"smoke"])
def test_a_profile_is_a_name(name: object) -> None:
    with pytest.raises(ProfileError, match="expected a name"):
        load_profile(name)  # type: ignore[arg-type]


def test_a_profile_may_be_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "micro.toml"
    path.write_text(toml_text(micro_table()), encoding="utf-8")
    assert load_profile(str(path)) == parse_profile(micro_table())


TEXT = toml_text(micro_table())


@pytest.mark.parametrize("content", [TEXT.encode("utf-8-sig"), TEXT.replace("\n", "\r\n").encode()])
def test_a_profile_is_read_as_editors_save_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "micro.toml"
    path.write_bytes(content)
    assert load_profile(str(path)) == parse_profile(micro_table())


UNREADABLE = {
    "damaged": (b"[data", "not readable as TOML"),
    "nested without end": (b"a = " + b"[" * 100_000, "not readable as TOML"),
    "UTF-16": (TEXT.encode("utf-16"), "is written in UTF-16, or no text at all; save it as UTF-8"),
    "UTF-16 without mark": (TEXT.encode("utf-16-le"), "is written in UTF-16"),
    "mark alone": (b"\xff\xfe", "is written in UTF-16"),
    "Latin-1": (b'base = "digits"\nsummary = "gr\xf6\xdfer"\n', r"is not written in UTF-8 \(line 2\); save it as"),
    "empty": (b"", 'is empty; begin it with base = "digits"'),
    "blank": ("\ufeff \n".encode(), "is empty"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_profile_is_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    content, words = UNREADABLE[kind]
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=rf"mine\.toml: {words}") as caught:
        load_profile(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", ["here", "as base"])
def test_a_file_that_is_not_there_is_no_unknown_profile(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "lost.toml").symlink_to("nowhere.toml")
    for name, words in (("none.toml", "no such file"), ("lost.toml", "no such file"), ("folder.toml", "is a folder")):
        (tmp_path / "mine.toml").write_text(f'base = "{name}"\n', encoding="utf-8")
        with pytest.raises(ProfileError, match=f"^profile {name}: {words}"):
            load_profile(name if named == "here" else "mine.toml")


def test_a_smaller_test_split_is_evaluated_whole(tmp_path: Path) -> None:
    def counts(more: str) -> tuple[int, int]:
        path = tmp_path / "mine.toml"
        path.write_text(f'base = "digits"\n{more}', encoding="utf-8")
        profile = load_profile(str(path))
        return profile.evaluation.images, profile.stress.images

    assert counts("") == (360, 36)
    assert counts("[data]\ntest = 30\n") == (30, 30)
    assert counts("[data]\ntest = 100\n[evaluation]\nsteps = 60\n") == (100, 36)
    assert counts("[data]\ntest = 30\n[evaluation]\nimages = 50\n[stress]\nimages = 40\n") == (50, 40)  # as stated
    assert counts("[data]\ntest = 0\n") == (360, 36)  # all there are


@pytest.mark.parametrize("path", ["evaluation.eps", "threat.pgd_step", "evaluation.step"])
@pytest.mark.parametrize("text", ["1/7", "1/510", "1/100003", "0.1234567", "0.12345678"])
def test_an_unusual_fraction_keeps_its_exact_value(path: str, text: str) -> None:
    profile = parse_profile(changed(to_table(load_profile("smoke")), path, text))
    section, key = path.split(".")
    assert getattr(getattr(profile, section), key) == Fraction(text)
    assert parse_profile(to_table(profile)) == profile


@given(st.fractions(0, 1))
def test_budget_text_loses_nothing(value: Fraction) -> None:
    assert Fraction(budget_text(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(8, 255), "8/255"),
        (8 / 255, "8/255"),
        (Fraction("0.15"), "0.15"),
        (0.15, "0.15"),
        (Fraction("0.0375"), "0.0375"),
        (Fraction(1, 5), "0.2"),
        (Fraction(0), "0"),
        (Fraction(1), "1"),
    ],
)
def test_budget_text_writes_what_the_field_writes(value: Fraction | float, text: str) -> None:
    assert budget_text(value) == text


def test_hash_does_not_depend_on_the_order_of_keys() -> None:
    table = to_table(load_profile("smoke"))
    turned = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(table.items())
    }
    assert list(turned) != list(table)
    assert canonical(turned) == canonical(table)
    assert artefact_key(turned) == artefact_key(table)
    assert artefact_key(turned) != artefact_key(changed(table, "phase1.lr", 0.101))
