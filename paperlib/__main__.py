"""The command line: ``python -m paperlib VERB``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from paperlib.errors import PaperlibError
from paperlib.profiles import load_profile, profile_names
from paperlib.progress import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 1 with one clear line on an error, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.verb(options)
    except PaperlibError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run the same command to go on", file=sys.stderr)
        return 130
    return 0


def reproduce(options: argparse.Namespace) -> None:
    """Compute every stage, execute the notebooks by papermill, draw the figures, bind the reading copy."""
    from paperlib.reproduce import reproduce as run

    run(options.profile, seed=options.seed, only=_listed(options.only), fresh=options.fresh)


def run(options: argparse.Namespace) -> None:
    """The same computations without notebooks or Jupyter."""
    from paperlib.study import Study

    profile = load_profile(options.profile)
    for seed in _seeds(options.seeds, profile.run.seeds[:1]):
        study = Study(options.profile, seed, replay=False)
        names = study.matching(*options.stage)
        if options.list:
            for name in names:
                say(f"{'done   ' if study.find(name) else 'missing'} {name}")
            continue
        if options.fresh:
            study.forget(names)
        study.compute(names)
        say(f"seed {seed}: {len(names)} stages are there")


def evaluate(options: argparse.Namespace) -> None:
    """One system under one attack, on the command line's terms."""
    from paperlib.attacks.autoattack import QUERIES
    from paperlib.evaluation import CLEAN, autoattack_spec, evaluate, fgsm_spec, pgd_spec, square_spec
    from paperlib.profiles import budget_text
    from paperlib.report.tables import percent
    from paperlib.seeds import hash_seed
    from paperlib.study import Study, load_system

    profile = load_profile(options.profile)
    eps = _budget(options.eps, profile.evaluation.eps)
    step = _budget(options.step_size, eps * profile.evaluation.step / profile.evaluation.eps)
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
    split = study.data.test.first(images).to(study.device)
    seed = hash_seed(options.seed, "evaluate", spec.name)
    outcome = evaluate(model, split, spec, seed=seed, batch_size=profile.evaluation.batch_size, label=options.system)
    row = outcome.record()
    how = f"{spec.steps} steps of {budget_text(spec.step)}, {spec.restarts} restart(s)"
    how = {"square": f"{spec.steps} queries", "autoattack": "standard version"}.get(spec.kind, how)
    say(
        f"{options.system} on {study.data.label}, {spec.kind} eps {budget_text(spec.eps)}, {how}, seed {options.seed}: "
        f"{percent(row['accuracy'], row['interval'])} ({row['correct']} of n = {row['n']})"
    )


def audit(options: argparse.Namespace) -> None:
    """Ask every check of the robustness audit of a system; a record of it is replayed unless settings are given."""
    from paperlib.evaluation import Report
    from paperlib.evaluation import audit as ask
    from paperlib.files import write_json
    from paperlib.stress import benign_of, effort_of
    from paperlib.study import Study, load_system
    from paperlib.training.recipes import recipe_for

    profile = load_profile(options.profile)
    study, eps = Study(options.profile, options.seed), _budget(options.eps, profile.evaluation.eps)
    recipe, stage = recipe_for(options.system, profile), f"audit:{options.system}"
    asked = options.eps or options.images or options.claimed is not None or options.fresh
    found = study.find(stage) if stage in study.stages and not asked else None
    if found is not None:
        report = Report.from_json(found.record["result"])
        say(f"the record of {found.record['provenance']['created']} ({found.source}); --fresh asks again")
    else:
        model = load_system(options.system, options.profile, options.seed)
        split = study.data.test.first(options.images or profile.stress.images).to(study.device)
        how = {"effort": effort_of(profile), "seed": options.seed, "label": options.system}
        how |= {"claimed": options.claimed, "benign": benign_of(recipe), "selected_on": study.data.validation.images}
        report = ask(model, split.images, split.labels, eps, **how)
    say(report.table().drop(columns=["asks", "threshold"]).to_string())
    say(report.sentence)
    if options.json:
        write_json(Path(options.json), report.json())
        say(f"written to {options.json}")


def publish(options: argparse.Namespace) -> None:
    """Copy this machine's records into data/published/PROFILE."""
    from paperlib.study import publish as write

    profile = load_profile(options.profile)
    write(options.profile, _seeds(options.seeds, profile.run.seeds))


def doctor(options: argparse.Namespace) -> None:
    """What is there, what is missing, what to do."""
    from paperlib.doctor import examine

    examine(load_profile(options.profile))


def refresh(options: argparse.Namespace) -> None:
    """Execute the committed notebooks in replay mode and store their outputs, normalised."""
    from paperlib.series import refresh as write

    write(load_profile(options.profile).name, only=_listed(options.only))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m paperlib", description="The executable companion of arXiv 2512.20821.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: object, *, seed: bool = False, seeds: bool = False) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").strip()
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--profile", default="digits", help=f"one of {', '.join(profile_names())}, or a TOML file")
        if seed:
            sub.add_argument("--seed", type=int, default=0)
        if seeds:
            sub.add_argument("--seeds", default="", metavar="0,1,2")
        sub.set_defaults(verb=function)
        return sub

    sub = verb("reproduce", reproduce, seed=True)
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
    sub.add_argument("--steps", type=int, default=0, help="iterations of PGD, queries of Square")
    sub.add_argument("--restarts", type=int, default=1)
    sub.add_argument("--images", type=int, default=0)
    sub = verb("audit", audit, seed=True)
    sub.add_argument("system")
    sub.add_argument("--eps", default="", help='such as "8/255"; the profile\'s by default')
    sub.add_argument(
        "--images", type=int, default=0, help="how many of the first test images; the profile's by default"
    )
    sub.add_argument("--claimed", type=float, default=None, help="the accuracy claimed, as a fraction")
    sub.add_argument("--json", default="", metavar="FILE", help="write the report there too")
    sub.add_argument("--fresh", action="store_true", help="ask again though there is a record")
    verb("publish", publish, seeds=True)
    verb("doctor", doctor)
    sub = verb("refresh", refresh)
    sub.add_argument("--only", default="", metavar="03,06")
    return parser


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str, default: Sequence[int]) -> list[int]:
    try:
        return [int(part) for part in _listed(text)] or list(default)
    except ValueError as error:
        raise PaperlibError(f"--seeds {text}: expected whole numbers such as 0,1,2") from error


def _budget(text: str, default: Fraction) -> Fraction:
    from paperlib.checks import as_budget

    if not text:
        return default
    as_budget(text)
    return Fraction(text)


if __name__ == "__main__":
    sys.exit(main())
