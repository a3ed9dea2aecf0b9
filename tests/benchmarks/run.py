"""Run the benchmarks and store their results: `make bench`, or some sections: `make bench ARGS="peers limits"`.

Results are written to data/store/benchmarks, one file for each section, or with `--publish` to
data/published/benchmarks, which notebook 11 reads. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import algorithms
import limits
import torch
import training
from arena import compete
from contenders import CONTENDERS, PACKAGES, version
from subjects import data_label, prepare, profile

from paperlib.acceleration.memory import keep_memory
from paperlib.atomic_files import write_json
from paperlib.config.budgets import as_budget
from paperlib.evaluation import paired_difference, wilson
from paperlib.log import logger, set_up
from paperlib.paths import published_dir, shown, store_dir
from paperlib.pipeline.provenance import provenance

Json = dict[str, Any]
STEPS = 20
# The attacked systems: (data, system, eps). At eps 0.2, the robust accuracy on digits is similar to that on CIFAR-10.
SUBJECTS = [
    ("digits", "plain", "0.15"),
    ("digits", "pgd-at", "0.15"),
    ("digits", "pgd-at", "0.2"),
    ("digits", "dwf", "0.15"),
    ("digits", "dwf", "0.2"),
    ("cifar10", "plain", "8/255"),
    ("cifar10", "pgd-at", "8/255"),
]


def peers(options: argparse.Namespace) -> Json:
    """PGD-20, compared with other libraries."""
    installed = [name for name in CONTENDERS if version(name) is not None]
    rows: list[Json] = []
    notes = [f"{name}: not installed" for name in CONTENDERS if name not in installed]
    for data in ("digits", "cifar10"):
        systems = tuple(dict.fromkeys(s for d, s, _ in SUBJECTS if d == data))
        if reason := prepare(data, systems):
            notes.append(f"{data}: not run ({reason})")
            continue
        label = data_label(data)
        for _, system, eps in (s for s in SUBJECTS if s[0] == data):
            config = profile(data).evaluation
            budget = as_budget(eps)
            settings = {"eps": budget, "step_size": budget / 4, "steps": STEPS, "seed": 0}
            images = min(options.images, config.images)
            logger.info(f"{system} on {data}, PGD-{STEPS}, eps {eps}, {images} images")
            run: dict[str, Any] = {"images": images, "rounds": options.rounds, "threads": options.threads}
            results = compete(data, system, installed, settings, **run)
            reference = torch.tensor(next(row["fooled"] for row in results if row["contender"] == "textbook"))
            for row in results:
                robust = ~torch.tensor(row.pop("fooled"))
                compared = paired_difference(robust, ~reference)
                n = len(robust)
                row |= {"data": label, "system": system, "eps": eps, "n": n, "correct": int(robust.sum())}
                row |= {"interval": list(wilson(row["correct"], n)), "version": version(row["contender"])}
                row |= {"differing_images": compared.only_first + compared.only_second}
                rows.append(row)
                median, low, high = row["ratio"]
                logger.info(
                    f"  {row['contender']:>13}: {statistics.median(row['seconds']):7.2f} s, "
                    f"{median:5.2f}x [{low:.2f}, {high:.2f}], robust accuracy {row['correct'] / n:.1%}, "
                    f"{row['differing_images']} outcomes differ from the textbook loop"
                )
    for note in notes:
        logger.info(note)
    return {"rows": rows, "notes": notes, "steps": STEPS, "rounds": options.rounds}


def nine(options: argparse.Namespace) -> Json:
    """Nine experts and one network, computed by several methods."""
    return {
        "rows": algorithms.run(rounds=options.rounds, compiled=options.compile, log=logger.info),
        "rounds": options.rounds,
    }


def bounds(options: argparse.Namespace) -> Json:
    """A PGD step relative to a pass of the network, growth of the time, memory."""
    return {
        "step": limits.step_against_bare(rounds=2 * options.rounds, log=logger.info),
        "growth": limits.growth(rounds=options.rounds, log=logger.info),
        "memory": limits.memory(logger.info),
        "rounds": options.rounds,
    }


def trained(options: argparse.Namespace) -> Json:
    """Phase 2 and PGD-AT with folded copies, without them and with bfloat16 attacks, on three seeds."""
    rows = training.run("dwf", options.seeds, ("engine", "plain loop"), logger.info)
    rows += training.run("pgd-at", options.seeds, ("engine", "plain loop", "bfloat16"), logger.info)
    return {"rows": rows}


SECTIONS: dict[str, Callable[[argparse.Namespace], Json]] = {
    "limits": bounds,
    "algorithms": nine,
    "peers": peers,
    "training": trained,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; ratios are medians over them")
    parser.add_argument("--images", type=int, default=360, help="images attacked, at most")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of each contender")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--compile", action="store_true", help="try torch.compile too: minutes of compilation")
    parser.add_argument("--publish", action="store_true", help="write the results to data/published/benchmarks")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    set_up()
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = published_dir("benchmarks") if options.publish else store_dir() / "benchmarks"
    for name in options.sections or SECTIONS:
        started = time.monotonic()
        logger.info(f"== {name}: {SECTIONS[name].__doc__}")
        threads = (
            1 if name == "training" else options.threads
        )  # as in training: the number of threads changes the rounding
        torch.set_num_threads(threads)
        facts = provenance(device, threads) | {"cores": os.cpu_count()}
        facts["versions"] |= {c: v for c in PACKAGES if (v := version(c))}
        result = SECTIONS[name](options)
        path = folder / f"{name}.json"
        write_json(path, {"section": name, **result, "provenance": facts})
        logger.info(f"{name}: {time.monotonic() - started:.0f} s, written to {shown(path)}")


if __name__ == "__main__":
    main()
