"""Profiles are checked strictly: every error is one line that names the key."""

from __future__ import annotations

import datetime
import json
import tomllib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import changed, micro_table, toml_text

from paperlib.config.budgets import budget_text
from paperlib.config.load import FOLDER, load_profile, profile_names
from paperlib.config.schema import ModelConfig, parse_profile, profile_schema
from paperlib.config.serialise import canonical, to_table
from paperlib.errors import ProfileError
from paperlib.paths import ROOT
from paperlib.pipeline.keys import artefact_key

FGSM_EPS = [Fraction(i, 100) for i in range(1, 10)]
PGD_STEPS = [10, 20, 30, 40, 50]
SCHEMA = ROOT / "docs" / "profile.schema.json"


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_survives_json_and_has_the_random_sets_of_the_paper(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert parse_profile(json.loads(json.dumps(to_table(profile)))) == profile
    assert list(profile.threat.fgsm_eps) == FGSM_EPS
    assert (list(profile.threat.pgd_steps) == PGD_STEPS) == (name != "smoke")


INVALID: dict[str, list[object]] = {
    # "(8, 255)": papermill passes a tuple in this form
    "evaluation.eps": ["(8, 255)", "8", 8, "8/0", "-1/255", "", float("nan"), float("inf"), True, None, ["8/255"], 0],
    "evaluation.step": [-0.1, "256/255"],
    "evaluation.steps": [True, "5", 5.0, 0, None],
    "evaluation.restarts": [0],
    "evaluation.steps_sweep": [[], [2, 1], [1, 1], [1, 6], 5, [0, 1]],  # 6: more than evaluation.steps
    "evaluation.eps_sweep": [[], "(0.1, 0.2)", ["0.2", "0.1"], ["0.1", "8"]],
    "threat.pgd_steps": [[10, "20"], [0]],
    "threat.fgsm_eps": [[], ["-0.1"]],
    "threat.random_start": [1, "true"],
    "phase1.lr": [float("nan"), float("inf"), "0.1", -0.1, True],
    "phase1.momentum": [1.5, -0.1],
    "phase1.weight_decay": [-1e-9],
    "phase1.schedule": ["linear", 1],
    "phase1": [3, []],
    "data.name": ["imagenet", 7],
    "data.validation": [0],
    "data.crop": [-1],
    "model.mixing": ["logit"],
    "stress.autoattack": ["none"],
    "study.systems": [[], "dwf", [1]],
    "run.seeds": [[], [-1]],
    "run.threads": [-1],
    "summary": [3, datetime.date(2025, 1, 1)],
}


def parse_error(table: dict[str, Any]) -> str:
    with pytest.raises(ProfileError) as caught:
        parse_profile(table)
    return str(caught.value)


@pytest.mark.parametrize(
    "section", ["data", "evaluation", "model", "phase1", "run", "stress", "study", "summary", "threat"]
)
def test_an_invalid_value_is_one_line_that_names_its_key(section: str) -> None:
    table = to_table(load_profile("smoke"))
    for path in (path for path in INVALID if path.split(".")[0] == section):
        for value in INVALID[path]:
            message = parse_error(changed(table, path, value))
            assert message.startswith(f"{path}: ") and "\n" not in message, value


def test_errors_state_what_is_allowed() -> None:
    table = to_table(load_profile("smoke"))
    for path, value, message in [
        ("evaluation.eps", 8, "evaluation.eps: 8 must be in [0, 1]; did you mean 8/255?"),
        ("evaluation.eps", "-1/255", "evaluation.eps: -1/255 must be in [0, 1]"),
        ("evaluation.eps", 0, "evaluation.eps: 0 must be above 0"),
        ("evaluation.eps", True, 'evaluation.eps: expected a fraction such as "8/255", got True'),
        ("evaluation.steps_sweep", [1, 6], "evaluation.steps_sweep: no value may exceed evaluation.steps=5"),
        ("evaluation.eps_sweep", ["0.2", "0.1"], "evaluation.eps_sweep: values must rise, got 1/5, 1/10"),
        ("run.seeds", [], "run.seeds: expected a list with at least one value, got []"),
        ("phase1.momentum", 1.5, "phase1.momentum: 1.5 must be at most 1.0"),
        ("phase1.epochs", 0, "phase1.epochs: 0 must be at least 1"),
        ("phase1.epochs", 1.0, "phase1.epochs: expected a whole number, got 1.0"),
        ("phase1.lr", float("inf"), "phase1.lr: inf is not a finite number"),
        ("phase1", 3, "phase1: expected a table, got 3"),
        ("model.mixing", "logit", "model.mixing: 'logit' is not one of 'probabilities' or 'logits'"),
        ("run.bf16", 1, "run.bf16: expected true or false, got 1"),
        ("phase1.epoch", 1, "unknown key phase1.epoch; did you mean 'epochs'?"),
        ("evalution", 1, "unknown key evalution; did you mean 'evaluation'?"),
        ("x", 1, "unknown key x; allowed: name, summary, study, data, model, threat, phase1, phase2, ablation, "
         "evaluation, stress, run, base"),
    ]:  # fmt: skip
        assert parse_error(changed(table, path, value)) == message


def test_a_missing_key_is_named_after_an_unknown_one() -> None:
    table = micro_table()
    epochs = table["phase2"].pop("epochs")
    assert parse_error(table) == "missing key phase2.epochs"
    table["phase2"]["epoch"] = epochs
    assert parse_error(table) == "unknown key phase2.epoch; did you mean 'epochs'?"
    del table["threat"], table["phase2"]["epoch"]
    assert parse_error(table) == "missing key threat"


def test_constructors_are_checked_too() -> None:
    with pytest.raises(ProfileError, match=r"^steps_sweep: no value may exceed evaluation.steps=4$"):
        replace(load_profile("smoke").evaluation, steps=4)
    with pytest.raises(ProfileError, match=r"^gate_width: 0 must be at least 1$"):
        ModelConfig(1, 0, 1, "logits")


def test_whole_numbers_are_accepted_as_floats_and_lists_become_tuples() -> None:
    profile = parse_profile(changed(to_table(load_profile("smoke")), "phase1.lr", 1))
    assert isinstance(profile.phase1.lr, float) and profile.threat.pgd_steps == (1, 2, 3)
    assert hash(profile) == hash(parse_profile(to_table(profile)))


def test_the_name_of_a_profile_is_checked() -> None:
    with pytest.raises(ProfileError, match="unknown profile 'digit'; did you mean 'digits'"):
        load_profile("digit")
    for name in (8, None, b"smoke"):
        with pytest.raises(ProfileError, match="expected a name"):
            load_profile(name)  # type: ignore[arg-type]


# JSON schema ----------------------------------------------------------------------------------------------------------


def test_the_committed_schema_is_current_and_describes_the_shipped_profiles() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert schema == profile_schema(), "run: python -m paperlib schema > docs/profile.schema.json"
    for path in FOLDER.glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        first = text.splitlines()[0]
        assert first.startswith("#:schema ") and (FOLDER / first.removeprefix("#:schema ")).resolve() == SCHEMA
        jsonschema.validate(tomllib.loads(text), schema)
    jsonschema.validate({"base": "digits", "evaluation": {"eps": "8/255", "step": 0.01}}, schema)


def test_the_schema_refuses_what_the_parser_refuses() -> None:
    validator = jsonschema.Draft202012Validator(profile_schema())
    table = micro_table()
    del table["name"], table["base"]
    assert validator.is_valid(table)
    for path, value in [("phase1.epoch", 1), ("evaluation.eps", 8), ("run.seeds", []), ("model.mixing", "x")]:
        assert not validator.is_valid(changed(table, path, value)), path
    assert not validator.is_valid(changed(table, "evaluation.eps", "x"))
    del table["phase2"]["epochs"]
    assert not validator.is_valid(table) and validator.is_valid(table | {"base": "digits"})


# Files ----------------------------------------------------------------------------------------------------------------

TEXT = toml_text(micro_table())


def test_a_profile_is_read_in_the_encodings_of_editors(tmp_path: Path) -> None:
    path = tmp_path / "micro.toml"
    for content in (TEXT.encode(), TEXT.encode("utf-8-sig"), TEXT.replace("\n", "\r\n").encode()):
        path.write_bytes(content)
        assert load_profile(str(path)) == parse_profile(micro_table())


UNREADABLE = {
    "damaged": (b"[data", "not readable as TOML"),
    "nested too deeply": (b"a = " + b"[" * 100_000, "not readable as TOML"),
    "UTF-16": (TEXT.encode("utf-16"), "is written in UTF-16, or no text at all; save it as UTF-8"),
    "UTF-16 without mark": (TEXT.encode("utf-16-le"), "is written in UTF-16"),
    "Latin-1": (b'base = "digits"\nsummary = "gr\xf6\xdfer"\n', r"is not written in UTF-8 \(line 2\); save it as"),
    "blank": ("\ufeff \n".encode(), 'is empty; begin it with base = "digits"'),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_profile_is_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    content, message = UNREADABLE[kind]
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=rf"mine\.toml: {message}") as caught:
        load_profile(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("as_base", [False, True])
def test_a_missing_file_is_named(as_base: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "lost.toml").symlink_to("nowhere.toml")
    for name, message in (("none.toml", "no such file"), ("lost.toml", "no such file"), ("folder.toml", "is a folder")):
        (tmp_path / "mine.toml").write_text(f'base = "{name}"\n', encoding="utf-8")
        with pytest.raises(ProfileError, match=f"^profile {name}: {message}"):
            load_profile("mine.toml" if as_base else name)


def test_a_smaller_test_split_reduces_the_numbers_of_images(tmp_path: Path) -> None:
    def counts(changes: str) -> tuple[int, int]:
        path = tmp_path / "mine.toml"
        path.write_text(f'base = "digits"\n{changes}', encoding="utf-8")
        profile = load_profile(str(path))
        return profile.evaluation.images, profile.stress.images

    assert counts("") == (360, 36)
    assert counts("[data]\ntest = 30\n") == (30, 30)
    assert counts("[data]\ntest = 100\n[evaluation]\nsteps = 60\n") == (100, 36)
    assert counts("[data]\ntest = 30\n[evaluation]\nimages = 50\n[stress]\nimages = 40\n") == (50, 40)  # as stated
    assert counts("[data]\ntest = 0\n") == (360, 36)  # 0: all test images


# Budgets and hashes ---------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.fractions(0, 1))
def test_budgets_keep_their_exact_value(value: Fraction) -> None:
    assert Fraction(budget_text(value)) == value
    table = changed(micro_table(), "threat.pgd_step", str(value))
    profile = parse_profile(table)
    assert profile.threat.pgd_step == value and parse_profile(to_table(profile)) == profile


@settings(max_examples=40)
@given(st.decimals(0, 1, places=8))
def test_a_float_budget_is_read_as_its_decimal_text(value: object) -> None:
    profile = parse_profile(changed(micro_table(), "threat.pgd_step", float(str(value))))
    assert profile.threat.pgd_step == Fraction(str(value))


def test_budget_text_is_a_short_decimal_or_a_multiple_of_1_255() -> None:
    for value, text in [
        (Fraction(8, 255), "8/255"),
        (8 / 255, "8/255"),
        (0.15, "0.15"),
        (Fraction("0.0375"), "0.0375"),
        (Fraction(1, 510), "1/510"),
        (Fraction(0), "0"),
        (Fraction(1), "1"),
    ]:
        assert budget_text(value) == text


def test_hash_does_not_depend_on_the_order_of_keys() -> None:
    table = to_table(load_profile("smoke"))
    reordered = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(table.items())
    }
    assert list(reordered) != list(table)
    assert canonical(reordered) == canonical(table)
    assert artefact_key(reordered) == artefact_key(table)
    assert artefact_key(reordered) != artefact_key(changed(table, "phase1.lr", 0.101))
