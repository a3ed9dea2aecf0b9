"""The command line: ``python -m paperlib VERB``."""

from __future__ import annotations

import argparse
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
    """Run one verb.

    Returns:
        0 on success, 1 with one clear line on an error, 130 when interrupted, and 141 without a word where the reader
        of the output has gone, as in ``| head -2``.
    """
    try:
        try:
            return _run_verb(arguments)
        finally:
            flush_output()
    except OutputClosed as closed:
        discard_output()
        if not closed.reader_gone:
            _complain(f"error: standard output: cannot write ({closed.reason})")
        return int(closed.code or 1)


def _run_verb(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        set_up(logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO)
        with one_version():
            options.verb(options)
    except ModuleNotFoundError as error:
        _complain(f"error: {error}; {ACTIVATE}")
        return 1
    except (PaperlibError, OSError) as error:
        _complain(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        flush_output()  # another thread interrupts this one when it cannot print
        _complain("interrupted; what was finished is kept, run the same command to go on")
        return 130
    return 0


def _complain(line: str) -> None:
    with suppress(OSError):  # nobody reads it
        print(line, file=sys.stderr)


def reproduce(options: argparse.Namespace) -> None:
    """Compute every stage, execute the notebooks by papermill, draw the figures, bind the reading copy."""
    check_home(write=True)
    from paperlib.series.reproduce import reproduce as run

    run(options.profile, seeds=_seeds(options.seeds, (0,)), only=_listed(options.only), fresh=options.fresh)


def run(options: argparse.Namespace) -> None:
    """The same computations without notebooks or Jupyter."""
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
        print_line(f"seed {study.seed}: {len(available)} of {len(names)} stages are there")

    compute_runs(runs, names, report)


def evaluate(options: argparse.Namespace) -> None:
    """One system under one attack, on the command line's terms."""
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
        _count(getattr(options, option), f"--{option}")
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
    row = outcome.record()
    how = f"{spec.steps} steps of {budget_text(spec.step)}, {spec.restarts} restart(s)"
    how = {"square": f"{spec.steps} queries", "autoattack": "standard version"}.get(spec.kind, how)
    print_line(
        f"{options.system} on {study.data.label}, {spec.kind} eps {budget_text(spec.eps)}, {how}, seed {options.seed}: "
        f"{percent(row['accuracy'], row['interval'])} ({row['correct']} of n = {row['n']})"
    )


def audit(options: argparse.Namespace) -> None:
    """Ask every check of the robustness audit of a system; a record of it is replayed unless settings are given."""
    from paperlib.atomic_files import write_json
    from paperlib.evaluation import Report
    from paperlib.evaluation import audit as ask
    from paperlib.pipeline.stages import audit_budget_of, benign_expert_of
    from paperlib.pipeline.study import Study, load_system
    from paperlib.systems.registry import recipe_for

    profile = load_profile(options.profile)
    check_home(write=False)
    study, eps = Study(options.profile, options.seed), _budget(options.eps, profile.evaluation.eps, "--eps")
    _count(options.images, "--images")
    if options.json:
        make_folder(Path(options.json).absolute().parent)  # not after the work
    recipe, stage = recipe_for(options.system, profile), f"audit:{options.system}"
    asked = options.eps or options.images or options.claimed is not None or options.fresh
    found = study.find(stage) if stage in study.stages and not asked else None
    if found is not None:
        report = Report.from_json(found.record["result"])
        print_line(f"the record of {found.record['provenance']['created']} ({found.source}); --fresh asks again")
    else:
        model = load_system(options.system, options.profile, options.seed)
        split = _first_test_images(study, options.images or profile.stress.images, "--images")
        how = {"audit_budget": audit_budget_of(profile), "seed": options.seed, "label": options.system}
        how |= {
            "claimed": options.claimed,
            "benign": benign_expert_of(recipe),
            "selected_on": study.data.validation.images,
        }
        report = ask(model, split.images, split.labels, eps, **how)
    print_line(report.table().drop(columns=["asks", "threshold"]).to_string())
    print_line(report.sentence)
    if options.json:
        write_json(Path(options.json), report.json())
        print_line(f"written to {options.json}")


def publish(options: argparse.Namespace) -> None:
    """Copy this machine's records of the given seeds into data/published/PROFILE; other seeds there stay."""
    from paperlib.pipeline.publish import publish as write

    profile = load_profile(options.profile)
    check_home(write=False)
    write(options.profile, _seeds(options.seeds, profile.run.seeds), replace=options.replace)


def doctor(options: argparse.Namespace) -> None:
    """What is there, what is missing, what to do."""
    from paperlib.doctor import examine

    examine(load_profile(options.profile))


def refresh(options: argparse.Namespace) -> None:
    """Execute the committed notebooks in replay mode and store their outputs, normalised."""
    check_home(write=True)
    from paperlib.series.refresh import refresh as write

    write(load_profile(options.profile).name, only=_listed(options.only))


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
    sub.add_argument("--fresh", action="store_true", help="forget what this machine has computed and start over")
    sub = verb("run", run, seeds=True)
    sub.add_argument("--stage", nargs="+", default=[], metavar="NAME", help="stages or patterns such as 'train:*'")
    sub.add_argument("--fresh", action="store_true", help="compute again what is there")
    sub.add_argument("--list", action="store_true", help="only say which stages are there")
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
    sub.add_argument("--claimed", type=float, default=None, help="the accuracy claimed, as a fraction")
    sub.add_argument("--json", default="", metavar="FILE", help="write the report there too")
    sub.add_argument("--fresh", action="store_true", help="ask again though there is a record")
    sub = verb("publish", publish, seeds=True)
    sub.add_argument("--replace", action="store_true", help="drop the other seeds that are published")
    verb("doctor", doctor)
    sub = verb("refresh", refresh)
    sub.add_argument("--only", default="", metavar="03,06")
    return parser


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str, default: Sequence[int]) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in _listed(text))) or list(default)
    except ValueError as error:
        raise PaperlibError(f"--seeds {text}: expected whole numbers such as 0,1,2") from error


def _budget(text: str, default: Fraction, option: str) -> Fraction:
    from paperlib.config.budgets import as_fraction

    return as_fraction(text, option) if text else default


def _count(number: int | None, option: str) -> None:
    if number is not None and number < 1:
        raise PaperlibError(f"{option}={number}: expected a whole number, 1 or more")


def _first_test_images(study: Study, number: int, option: str) -> Split:
    if number > len(study.data.test):
        raise PaperlibError(
            f"{option}={number}: the test split of {study.data.label} has {len(study.data.test)} images"
        )
    return study.data.test.first(number).to(study.device)
