"""Run the benchmarks and keep their results: `make bench`, or some sections: `make bench ARGS="peers limits"`.

Results go to data/store/benchmarks, one file a section; `--publish` puts them into data/published/benchmarks, where
notebook 11 reads them. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import limits
import torch
import training
import ways
from arena import compete
from contenders import CONTENDERS, PACKAGES, version
from subjects import data_label, prepare, profile

from paperlib.acceleration.memory import keep_memory
from paperlib.atomic_files import write_json
from paperlib.config.budgets import as_budget
from paperlib.evaluation import paired_difference, wilson
from paperlib.log import say
from paperlib.paths import published_dir, shown, store_dir
from paperlib.pipeline.provenance import provenance

Json = dict[str, Any]
STEPS = 20
# What is attacked: (data, system, eps). On digits also at 0.2, where about as much is left standing as on CIFAR-10.
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
    """PGD-20 against the field's libraries."""
    here = [name for name in CONTENDERS if version(name) is not None]
    rows: list[Json] = []
    notes = [f"{name}: not installed" for name in CONTENDERS if name not in here]
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
            say(f"{system} on {data}, PGD-{STEPS}, eps {eps}, {images} images")
            found = compete(data, system, here, settings, images=images, rounds=options.rounds, threads=options.threads)
            reference = torch.tensor(next(row["fooled"] for row in found if row["contender"] == "textbook"))
            for row in found:
                right = ~torch.tensor(row.pop("fooled"))
                compared = paired_difference(right, ~reference)
                n = len(right)
                row |= {"data": label, "system": system, "eps": eps, "n": n, "correct": int(right.sum())}
                row |= {"interval": list(wilson(row["correct"], n)), "version": version(row["contender"])}
                row |= {"differing_images": compared.only_first + compared.only_second}
                rows.append(row)
                median, low, high = row["ratio"]
                say(
                    f"  {row['contender']:>13}: {statistics.median(row['seconds']):7.2f} s, "
                    f"{median:5.2f}x [{low:.2f}, {high:.2f}], robust accuracy {row['correct'] / n:.1%}, "
                    f"{row['differing_images']} outcomes unlike the textbook loop's"
                )
    for note in notes:
        say(note)
    return {"rows": rows, "notes": notes, "steps": STEPS, "rounds": options.rounds}


def nine(options: argparse.Namespace) -> Json:
    """Nine experts as one, and one network, several ways."""
    return {"rows": ways.run(rounds=options.rounds, compiled=options.compile, say=say), "rounds": options.rounds}


def bounds(options: argparse.Namespace) -> Json:
    """The step against a bare pass, growth of cost, memory."""
    return {
        "step": limits.step_against_bare(rounds=2 * options.rounds, say=say),
        "growth": limits.growth(rounds=options.rounds, say=say),
        "memory": limits.memory(say),
        "rounds": options.rounds,
    }


def trained(options: argparse.Namespace) -> Json:
    """Phase 2 and PGD-AT with the engine, with the plain loop and with bfloat16 attacks, on three seeds."""
    rows = training.run("dwf", options.seeds, ("engine", "plain loop"), say)
    rows += training.run("pgd-at", options.seeds, ("engine", "plain loop", "bfloat16"), say)
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
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds a ratio is the median of")
    parser.add_argument("--images", type=int, default=360, help="images attacked, at most")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of each contender")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--compile", action="store_true", help="try torch.compile too: minutes of compilation")
    parser.add_argument("--publish", action="store_true", help="keep the results in data/published/benchmarks")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = published_dir("benchmarks") if options.publish else store_dir() / "benchmarks"
    for name in options.sections or SECTIONS:
        started = time.monotonic()
        say(f"== {name}: {SECTIONS[name].__doc__}")
        threads = 1 if name == "training" else options.threads  # as the companion trains: with another, bits differ
        torch.set_num_threads(threads)
        facts = provenance(device, threads) | {"cores": os.cpu_count()}
        facts["versions"] |= {c: v for c in PACKAGES if (v := version(c))}
        found = SECTIONS[name](options)
        path = folder / f"{name}.json"
        write_json(path, {"section": name, **found, "provenance": facts})
        say(f"{name}: {time.monotonic() - started:.0f} s, kept in {shown(path)}")


if __name__ == "__main__":
    main()
