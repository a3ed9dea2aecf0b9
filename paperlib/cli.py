"""The command line: ``python -m paperlib VERB``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from paperlib.atomic_files import check_home, make_folder
from paperlib.config.load import load_profile, profile_names
from paperlib.config.plugins import one_version
from paperlib.errors import ACTIVATE, PaperlibError
from paperlib.log import set_up
from paperlib.output import OutputClosed, discard_output, flush_output
from paperlib.output import write_line as print_line

if TYPE_CHECKING:
    from paperlib.data import Split
    from paperlib.pipeline.study import Study


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status.

    Returns:
        0 on success; 1 after an error, which is printed as one line; 130 after an interruption; 141 without a message
        if the pipe of the output was closed, as by ``| head -2``.
    """
    try:
        try:
            return _run_verb(arguments)
        finally:
            flush_output()
    except OutputClosed as closed:
        discard_output()
        if not closed.reader_gone:
            _print_error(f"error: standard output: cannot write ({closed.reason})")
        return int(closed.code or 1)


def _run_verb(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        set_up(logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO)
        with one_version():
            options.verb(options)
    except ModuleNotFoundError as error:
        _print_error(f"error: {error}; {ACTIVATE}")
        return 1
    except (PaperlibError, OSError) as error:
        _print_error(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        flush_output()  # another thread interrupts this one if it cannot print
        _print_error("interrupted; finished results are kept, run the same command to continue")
        return 130
    return 0


def _print_error(line: str) -> None:
    with suppress(OSError):  # standard error may be closed
        print(line, file=sys.stderr)


def reproduce(options: argparse.Namespace) -> None:
    """Compute all stages, execute the notebooks with papermill, draw the figures, write the HTML site."""
    check_home(write=True)
    from paperlib.series.reproduce import reproduce as run

    run(options.profile, seeds=_seeds(options.seeds, (0,)), only=_split_list(options.only), fresh=options.fresh)


def run(options: argparse.Namespace) -> None:
    """Compute stages without notebooks or Jupyter."""
    from paperlib.pipeline.compute import compute_runs
    from paperlib.pipeline.study import Study
    from paperlib.report.measured import measured

    profile = load_profile(options.profile)
    check_home(write=not options.list)
    runs = [Study(options.profile, seed, replay=False) for seed in _seeds(options.seeds, profile.run.seeds[:1])]
    names = runs[0].graph.matching(*options.stage)
    for study in runs if options.list else ():
        for name in names:
            print_line(f"{'done   ' if study.find(name) else 'missing'} {name}")
    if options.list:
        return
    for study in runs if options.fresh else ():
        study.forget(names)
    missing = {study.seed: study.missing(names) for study in runs}

    def report(study: Study) -> None:
        available = [name for name in names if study.find(name)]
        for line in measured(study, available, missing[study.seed]):
            print_line(line)
        print_line(f"seed {study.seed}: {len(available)} of {len(names)} stages are computed")

    compute_runs(runs, names, report)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate one system under one attack with the settings of the command line."""
    from paperlib.attacks.autoattack import QUERIES
    from paperlib.config.budgets import budget_text
    from paperlib.evaluation import CLEAN, autoattack_spec, evaluate, fgsm_spec, pgd_spec, square_spec
    from paperlib.pipeline.study import Study, load_system
    from paperlib.report.format import percent
    from paperlib.seeds import hash_seed

    profile = load_profile(options.profile)
    check_home(write=False)
    eps = _budget(options.eps, profile.evaluation.eps, "--eps")
    step = _budget(options.step_size, eps * profile.evaluation.step / profile.evaluation.eps, "--step-size")
    for option in ("steps", "restarts", "images"):
        _require_positive(getattr(options, option), f"--{option}")
    steps = options.steps or profile.evaluation.steps
    spec = {
        "clean": CLEAN,
        "fgsm": fgsm_spec(eps),
        "pgd": pgd_spec(eps, steps, step, options.restarts),
        "square": square_spec(eps, options.steps or QUERIES),
        "autoattack": autoattack_spec(eps),
    }[options.attack]
    model = load_system(options.system, options.profile, options.seed)
    study = Study(options.profile, options.seed)
    slow = options.attack in ("square", "autoattack")
    images = options.images or (profile.stress.images if slow else profile.evaluation.images)
    split = _first_test_images(study, images, "--images")
    seed = hash_seed(options.seed, "evaluate", spec.name)
    outcome = evaluate(model, split, spec, seed=seed, batch_size=profile.evaluation.batch_size, label=options.system)
    row, eps_text = outcome.record(), budget_text(spec.eps)
    budget = f"{spec.steps} steps of {budget_text(spec.step)}, {spec.restarts} restart(s)"
    budget = {"square": f"{spec.steps} queries", "autoattack": "standard version"}.get(spec.kind, budget)
    print_line(
        f"{options.system} on {study.data.label}, {spec.kind} eps {eps_text}, {budget}, seed {options.seed}: "
        f"{percent(row['accuracy'], row['interval'])} ({row['correct']} of n = {row['n']})"
    )


def audit(options: argparse.Namespace) -> None:
    """Audit the robustness of a system; without settings, print the record of an audit if there is one."""
    from paperlib.atomic_files import write_json
    from paperlib.evaluation import Report
    from paperlib.evaluation import audit as run_audit
    from paperlib.pipeline.stages import audit_budget_of, benign_expert_of
    from paperlib.pipeline.study import Study, load_system
    from paperlib.systems.registry import recipe_for

    profile = load_profile(options.profile)
    check_home(write=False)
    study, eps = Study(options.profile, options.seed), _budget(options.eps, profile.evaluation.eps, "--eps")
    _require_positive(options.images, "--images")
    if options.json:
        make_folder(Path(options.json).absolute().parent)  # fail before the audit, not after it
    recipe, stage = recipe_for(options.system, profile), f"audit:{options.system}"
    has_settings = options.eps or options.images or options.claimed is not None or options.fresh
    stored = study.find(stage) if stage in study.stages and not has_settings else None
    if stored is not None:
        report = Report.from_json(stored.record["result"])
        print_line(f"the record of {stored.record['provenance']['created']} ({stored.source}); --fresh audits again")
    else:
        model = load_system(options.system, options.profile, options.seed)
        split = _first_test_images(study, options.images or profile.stress.images, "--images")
        report = run_audit(
            model,
            split.images,
            split.labels,
            eps,
            audit_budget=audit_budget_of(profile),
            seed=options.seed,
            label=options.system,
            claimed=options.claimed,
            benign=benign_expert_of(recipe),
            selected_on=study.data.validation.images,
        )
    print_line(report.table()[["row", "value", "verdict"]].to_string())
    print_line(report.sentence)
    if options.json:
        write_json(Path(options.json), report.json())
        print_line(f"written to {options.json}")


def publish(options: argparse.Namespace) -> None:
    """Copy the records of this machine and these seeds into data/published/PROFILE; other seeds there stay."""
    from paperlib.pipeline.publish import publish as write

    profile = load_profile(options.profile)
    check_home(write=False)
    write(options.profile, _seeds(options.seeds, profile.run.seeds), replace=options.replace)


def doctor(options: argparse.Namespace) -> None:
    """Check packages, device, disk, data and results, and advise what to do."""
    from paperlib.doctor import examine

    examine(load_profile(options.profile))


def refresh(options: argparse.Namespace) -> None:
    """Execute the committed notebooks from published records and store their normalised outputs."""
    check_home(write=True)
    from paperlib.series.refresh import refresh as write

    write(load_profile(options.profile).name, only=_split_list(options.only))


def schema(options: argparse.Namespace) -> None:
    """Print the JSON schema of profiles, with which editors check and complete TOML files."""
    from paperlib.config.schema import profile_schema

    print_line(json.dumps(profile_schema(), indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m paperlib", description="The executable companion of arXiv 2512.20821.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: object, *, seed: bool = False, seeds: bool = False) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").strip()
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("-q", "--quiet", action="store_true", help="print results and warnings only")
        sub.add_argument(
            "-v", "--verbose", action="store_true", help="print details too, such as the key of each stage"
        )
        sub.add_argument("--profile", default="digits", help=f"one of {', '.join(profile_names())}, or a TOML file")
        if seed:
            sub.add_argument("--seed", type=int, default=0)
        if seeds:
            sub.add_argument("--seeds", default="", metavar="0,1,2")
        sub.set_defaults(verb=function)
        return sub

    sub = verb("reproduce", reproduce, seeds=True)
    sub.add_argument("--only", default="", metavar="03,06", help="notebooks to execute, by number or name")
    sub.add_argument("--fresh", action="store_true", help="delete the results of this machine and compute all again")
    sub = verb("run", run, seeds=True)
    sub.add_argument("--stage", nargs="+", default=[], metavar="NAME", help="stages or patterns such as 'train:*'")
    sub.add_argument("--fresh", action="store_true", help="compute again, even if there are results")
    sub.add_argument("--list", action="store_true", help="only list which stages are computed")
    sub = verb("evaluate", evaluate, seed=True)
    sub.add_argument("system")
    sub.add_argument("--attack", choices=("clean", "fgsm", "pgd", "square", "autoattack"), default="pgd")
    sub.add_argument("--eps", default="", help='such as "8/255"; the profile\'s by default')
    sub.add_argument("--step-size", default="")
    sub.add_argument("--steps", type=int, default=None, help="iterations of PGD, queries of Square")
    sub.add_argument("--restarts", type=int, default=1)
    sub.add_argument("--images", type=int, default=None)
    sub = verb("audit", audit, seed=True)
    sub.add_argument("system")
    sub.add_argument("--eps", default="", help='such as "8/255"; the profile\'s by default')
    sub.add_argument(
        "--images", type=int, default=None, help="how many of the first test images; the profile's by default"
    )
    sub.add_argument("--claimed", type=float, default=None, help="the claimed robust accuracy, 0 to 1")
    sub.add_argument("--json", default="", metavar="FILE", help="also write the report to this file")
    sub.add_argument("--fresh", action="store_true", help="audit again, even if there is a record")
    sub = verb("publish", publish, seeds=True)
    sub.add_argument("--replace", action="store_true", help="remove the other published seeds")
    verb("doctor", doctor)
    sub = verb("refresh", refresh)
    sub.add_argument("--only", default="", metavar="03,06")
    verb("schema", schema)
    return parser


def _split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str, default: Sequence[int]) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in _split_list(text))) or list(default)
    except ValueError as error:
        raise PaperlibError(f"--seeds {text}: expected whole numbers such as 0,1,2") from error


def _budget(text: str, default: Fraction, option: str) -> Fraction:
    from paperlib.config.budgets import as_fraction

    return as_fraction(text, option) if text else default


def _require_positive(number: int | None, option: str) -> None:
    if number is not None and number < 1:
        raise PaperlibError(f"{option}={number}: expected a whole number, 1 or more")


def _first_test_images(study: Study, number: int, option: str) -> Split:
    if number > len(study.data.test):
        raise PaperlibError(
            f"{option}={number}: the test split of {study.data.label} has {len(study.data.test)} images"
        )
    return study.data.test.first(number).to(study.device)
