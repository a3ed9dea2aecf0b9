"""Records as tables: tidy frames first, then the tables a reader sees. Every number keeps its n and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.evaluation import CLEAN, accuracy_by_step, battery, headline, paired, sweep, wilson
from paperlib.files import replacing
from paperlib.paths import figures_dir
from paperlib.profiles import budget_text
from paperlib.stages import COMPARED
from paperlib.study import Study
from paperlib.training.recipes import EXPERT_KINDS, EXPERTS, recipes

ATTACK_LABELS = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD"}


def percent(accuracy: float, interval: Sequence[float]) -> str:
    """Such as ``62.8 [57.7, 67.6]``, in percent."""
    return f"{accuracy:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]".replace("%", "")


def signed(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def results(study: Study, systems: Sequence[str], *, swept: bool = False) -> pd.DataFrame:
    """One row per system and attack: eps, n, correct, accuracy, interval, seed, and where the number is from."""
    config = study.profile.evaluation
    specs = [CLEAN, *sweep(config)] if swept else battery(config)
    rows = []
    for system in systems:
        for spec in specs:
            artefact = study.outcome(system, spec)
            result = artefact.record["result"]
            rows.append(
                {
                    "system": system,
                    "attack": spec.kind,
                    "eps": float(spec.eps),
                    "steps": spec.steps,
                    "n": result["n"],
                    "correct": result["correct"],
                    "accuracy": result["accuracy"],
                    "low": result["interval"][0],
                    "high": result["interval"][1],
                    "seed": study.seed,
                    "source": artefact.source,
                    "key": artefact.key,
                }
            )
    return pd.DataFrame(rows)


def best_expert(study: Study) -> str:
    """The expert with the highest PGD accuracy on the *validation* split; the test split has no say in it."""

    def score(system: str) -> float:
        history = study.record(f"train:{system}")["history"]
        value: float = history["epochs"][history["best"]]["pgd"]
        return value

    return max(EXPERTS, key=score)


def compared(study: Study) -> list[str]:
    """The systems of the main table, with the best single expert in its place."""
    first, rest = COMPARED[:2], COMPARED[2:]
    return [*first, best_expert(study), *rest]


def worst_case(study: Study, system: str) -> Tensor:
    """Per image (N,): right under every attack of the battery, the clean image included."""
    outcomes = [study.outcome(system, spec).arrays["correct"].bool() for spec in battery(study.profile.evaluation)]
    return torch.stack(outcomes).all(dim=0)


def main_table(study: Study) -> pd.DataFrame:
    """Every system under every attack of the battery, with worst case, n, intervals, size and training cost."""
    known = recipes(study.profile)
    rows = []
    for system in compared(study):
        row: dict[str, Any] = {"system": system, "what it is": known[system].story}
        for spec in battery(study.profile.evaluation):
            result = study.outcome(system, spec).record["result"]
            row[column(spec.kind, spec.steps)] = percent(result["accuracy"], result["interval"])
        worst = worst_case(study, system)
        right, n = int(worst.sum()), len(worst)
        row |= {"worst case": percent(right / n, wilson(right, n)), "n": n, "seed": study.seed}
        row |= cost(study, system)
        rows.append(row)
    return pd.DataFrame(rows).set_index("system")


def column(kind: str, steps: int) -> str:
    """How a table names an attack: clean, FGSM, PGD-50."""
    return f"PGD-{steps}" if kind == "pgd" else ATTACK_LABELS[kind]


def cost(study: Study, system: str) -> dict[str, Any]:
    """Parameters, and training cost in clean epochs of one network, of everything the system is built from."""
    recipe = recipes(study.profile)[system]
    trained = [system] if recipe.training else []
    records = [study.record(f"train:{name}") for name in [*recipe.starts_from, *trained]]
    own = records[-1:] if trained else records
    return {
        "parameters": sum(r["parameters"] for r in own),
        "training cost": round(sum(r["training_units"] for r in records)),
        "inference cost": own[0]["networks"] if trained else len(own),
    }


def battery_frame(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """`results` of the battery with a ``column`` that names the attack, and the best expert under that name."""
    frame = results(study, systems)
    frame["column"] = [column(kind, steps) for kind, steps in zip(frame["attack"], frame["steps"], strict=True)]
    frame["system"] = [name if name in COMPARED else "best expert" for name in frame["system"]]
    return frame


def expert_table(study: Study) -> pd.DataFrame:
    """Every expert alone: clean, FGSM, and the headline attack after 5, 10, ... iterations; one row per cell."""
    frame = results(study, EXPERTS).query("attack != 'pgd'")
    frame["column"] = [ATTACK_LABELS[kind] for kind in frame["attack"]]
    longer = by_steps(study, EXPERTS)
    longer["column"] = [f"PGD-{k}" for k in longer["steps"]]
    together = pd.concat([frame, longer[longer["steps"] >= 5]], ignore_index=True)
    together["kind"] = [EXPERT_KINDS[EXPERTS.index(name)] for name in together["system"]]
    return together[["system", "kind", "column", "accuracy", "n"]]


def headline_name(study: Study) -> str:
    """Such as ``PGD-50 at eps 8/255``."""
    spec = headline(study.profile.evaluation)
    return f"{column(spec.kind, spec.steps)} at eps {budget_text(spec.eps)}"


def published_studies(study: Study) -> list[Study]:
    """A study of published records alone for each published seed of the same configuration; empty without any."""
    others = [Study(study.profile, seed, local=False, say=study.say) for seed in study.published.seeds]
    return [other for other in others if not other.missing([f"train:{name}" for name in EXPERTS])]


def published_frame(studies: Sequence[Study]) -> pd.DataFrame | None:
    """`battery_frame` of all published seeds, or None."""
    frames = [battery_frame(study, compared(study)) for study in studies]
    return pd.concat(frames, ignore_index=True) if frames else None


def seeds_table(studies: Sequence[Study]) -> pd.DataFrame:
    """Mean over seeds with the lowest and highest seed, per system and attack, in percent.

    The best expert may be another one with each seed; it is listed under one name. Empty without studies.
    """
    together = published_frame(studies)
    if together is None:
        return pd.DataFrame()
    groups = together.groupby(["system", "column"], sort=False)["accuracy"]
    text = groups.apply(lambda a: f"{a.mean():.1%} ({a.min():.1%} to {a.max():.1%})".replace("%", ""))
    return text.unstack("column")[list(dict.fromkeys(together["column"]))].reindex(
        list(dict.fromkeys(together["system"]))
    )


def paired_table(study: Study, against: str = "dwf") -> pd.DataFrame:
    """``against`` minus every other system under the headline attack, on the same images, with McNemar's p-value."""
    spec = headline(study.profile.evaluation)
    ours = study.outcome(against, spec).arrays["correct"].bool()
    rows = []
    for system in compared(study):
        if system == against:
            continue
        pair = paired(ours, study.outcome(system, spec).arrays["correct"].bool())
        rows.append(
            {
                "comparison": f"{against} - {system}",
                "points": f"{signed(pair.difference)} [{signed(pair.low)}, {signed(pair.high)}]",
                f"only {against} right": pair.only_first,
                "only the other": pair.only_second,
                "n": pair.n,
                "McNemar p": f"{pair.p_value:.2g}",
                "seed": study.seed,
            }
        )
    return pd.DataFrame(rows).set_index("comparison")


def paired_seeds(studies: Sequence[Study], against: str = "dwf") -> pd.DataFrame:
    """`paired_table`'s differences with their intervals, a column per seed, all on the same images."""
    columns = {}
    for study in studies:
        pairs = paired_table(study, against)["points"]
        columns[f"seed {study.seed}"] = pairs.rename({f"{against} - {best_expert(study)}": f"{against} - best expert"})
    return pd.DataFrame(columns)


def by_steps(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """Accuracy after each number of iterations of the headline attack's first start, with intervals."""
    spec = headline(study.profile.evaluation)
    steps = study.profile.evaluation.steps_sweep
    rows = []
    for system in systems:
        first = study.outcome(system, spec).arrays["first_success"]
        for k, right in zip(steps, accuracy_by_step(first, steps), strict=True):
            low, high = wilson(right, len(first))
            rows.append({"system": system, "steps": k, "accuracy": right / len(first), "low": low, "high": high})
    return pd.DataFrame(rows).assign(n=len(first), seed=study.seed)


def with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """`results` as text: one line per attack and eps, one column per system, each cell with its Wilson interval."""
    cells = [
        percent(a, (low, high)) for a, low, high in zip(frame["accuracy"], frame["low"], frame["high"], strict=True)
    ]
    labels = [column(kind, steps) for kind, steps in zip(frame["attack"], frame["steps"], strict=True)]
    table = frame.assign(cell=cells, attack=labels).pivot(index=["attack", "eps"], columns="system", values="cell")
    return table[list(dict.fromkeys(frame["system"]))]


def histories(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """One row per system and epoch: loss and validation accuracies."""
    frames = []
    for system in systems:
        history = study.record(f"train:{system}")["history"]
        frame = pd.DataFrame(history["epochs"]).assign(system=system, best=history["best"])
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def expert_names() -> dict[str, str]:
    """Such as ``expert-1`` to ``1 FGSM``."""
    return {name: f"{i} {kind}" for i, (name, kind) in enumerate(zip(EXPERTS, EXPERT_KINDS, strict=True))}


def gate_rows(study: Study, system: str) -> pd.DataFrame:
    """Mean gate weight by attack, eps and expert: one row each, with the iterations of its PGD."""
    result = study.record(f"gate:{system}")
    rows = [
        {"attack": row["kind"], "eps": row["eps"], "expert": i, "weight": weight, "steps": result["pgd_steps"]}
        for row in result["rows"]
        for i, weight in enumerate(row["mean_weights"])
    ]
    return pd.DataFrame(rows)


def gate_health(study: Study, system: str) -> pd.DataFrame:
    """One row per attack: how decided the gate is, and how much it looks at the image."""
    artefact = study.get(f"gate:{system}")
    rows = []
    for row in artefact.record["result"]["rows"]:
        spread = artefact.arrays[row["attack"]].float().std(dim=0).max()
        rows.append(
            {
                "attack": row["kind"],
                "eps": row["eps"],
                "entropy": round(row["entropy"], 3),
                "benign expert": round(row["mean_weights"][0], 3),
                "varies by": round(float(spread), 3),
                "favourite": max(range(len(EXPERTS)), key=row["mean_weights"].__getitem__),
                "leads on": f"{row['favourite_share']:.1%}",
                "n": artefact.record["result"]["n"],
            }
        )
    return pd.DataFrame(rows)


def provenance_table(study: Study) -> pd.DataFrame:
    """Every artefact this study has handed out: where from, when, with what; one row each."""
    rows = []
    for name, artefact in sorted(study.used.items()):
        facts = artefact.record["provenance"]
        rows.append(
            {
                "stage": name,
                "source": artefact.source,
                "created": facts["created"],
                "seed": facts["seed"],
                "data": facts["data"],
                "device": facts["device"],
                "threads": facts["threads"],
                "torch": facts["versions"]["torch"],
                "commit": facts["commit"],
                "key": artefact.key,
            }
        )
    return pd.DataFrame(rows)


def provenance_line(study: Study) -> str:
    """The same in three lines, for the end of a notebook."""
    table = provenance_table(study)
    if table.empty:
        return "no records used"
    sources = ", ".join(f"{n} {source}" for source, n in table["source"].value_counts().items())

    def distinct(name: str) -> str:
        return ", ".join(sorted({str(value) for value in table[name]}))

    return (
        f"{len(table)} records of profile {study.profile.name}, seed {study.seed}: {sources}; "
        f"made {table['created'].min()} to {table['created'].max()}\n"
        f"data {distinct('data')}; {distinct('device')}, {distinct('threads')} thread(s), torch {distinct('torch')}\n"
        f"code {distinct('commit')}"
    )


def expect(statement: str, holds: bool) -> None:
    """Print whether an expectation, written before the numbers, holds: a reader must see it when it does not."""
    print(f"{'as expected' if holds else 'NOT AS EXPECTED'}: {statement}")


def save_table(frame: pd.DataFrame, name: str, profile: str) -> list[Path]:
    """Write ``name.csv`` and ``name.md`` into the profile's figures folder; returns both paths."""
    folder = figures_dir(profile)
    paths = [folder / f"{name}.csv", folder / f"{name}.md"]
    for path, text in zip(paths, (frame.to_csv(), markdown(frame)), strict=True):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def markdown(frame: pd.DataFrame) -> str:
    """A GitHub table of a frame, its index first."""
    frame = frame.reset_index()
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
