"""Records as tables: tidy frames first, then the tables a reader sees. Every number keeps its n and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from paperlib.atomic_files import replacing
from paperlib.config.budgets import budget_text
from paperlib.evaluation import (
    CLEAN,
    OverSeeds,
    accuracy_by_step,
    battery,
    headline,
    over_runs,
    over_seeds,
    paired,
    sweep,
    wilson,
)
from paperlib.paths import figures_dir
from paperlib.pipeline.study import Study
from paperlib.report.outcomes import (
    ATTACK_LABELS,
    BASIC,
    BEST,
    WORST,
    Systems,
    autoattacked,
    basic,
    basic_worst,
    best_expert,
    called,
    column,
    column_of,
    compared,
    everyone,
    known,
    named,
    outcome_of,
    outcomes,
    stages_of,
    stress_name,
    stress_stages_of,
    stressed,
    worst_case,
)
from paperlib.systems.experts import EXPERT_KINDS, EXPERTS
from paperlib.systems.recipe import Recipe

__all__ = [  # what a notebook asks of this module; the first ones live in `paperlib.report.outcomes`
    "BASIC",
    "BEST",
    "WORST",
    "basic",
    "basic_worst",
    "best_expert",
    "called",
    "compared",
    "everyone",
    "known",
    "named",
    "outcome_of",
    "outcomes",
    "stages_of",
    "stress_name",
    "stress_stages_of",
    "stressed",
    "worst_case",
]


def percent(accuracy: float, interval: Sequence[float]) -> str:
    """Such as ``62.8 [57.7, 67.6]``, in percent."""
    return f"{accuracy:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]".replace("%", "")


def share(value: OverSeeds) -> str:
    """An accuracy over seeds with its interval, in percent."""
    return percent(value.difference, (max(0.0, value.low), value.high))


def points(difference: float, low: float, high: float) -> str:
    """A difference with its interval, in percentage points: ``+3.1 [-0.3, +6.4]``."""
    return f"{signed(difference)} [{signed(low)}, {signed(high)}]"


def signed(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * value:+.1f}"


def so_many(n: int, what: str) -> str:
    """Such as ``1 seed`` or ``3 seeds``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


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


def main_table(study: Study, systems: Sequence[str] | None = None) -> pd.DataFrame:
    """Every system under every basic attack, AutoAttack and the worst case of all, with intervals, size and cost.

    The slow attacks see fewer images; their number stands in the name of the column.
    """
    rows = []
    for system in compared(study) if systems is None else systems:
        row: dict[str, Any] = {"system": system, "what it is": known(study)[system].description}
        for spec, right in basic(study, system).items():
            row[column_of(spec)] = counted(right)
        every = stressed(study, system)
        slow, worst = autoattacked(study, system), worst_case(study, system)
        row |= {BASIC: counted(basic_worst(study, system)), "n": len(next(iter(basic(study, system).values())))}
        row |= {f"AutoAttack, n = {len(worst)}": "" if slow is None else counted(slow)}
        row |= {f"{WORST}, n = {len(worst)}": counted(worst)}
        rows.append(row | {"attacks": len(every), "seed": study.seed, **cost(study, system)})
    frame = pd.DataFrame(rows).set_index("system")
    soft = [name for name in frame.columns if name.endswith("soft")]
    order = [name for name in frame.columns if name not in soft]
    if soft:  # through an argmax: only systems that pick an expert have one
        order.insert(order.index(BASIC), soft[0])
    return frame[order].fillna("")


def counted(right: Tensor) -> str:
    """The accuracy of an outcome (N,) with its Wilson interval, in percent."""
    n, correct = len(right), int(right.sum())
    return percent(correct / n, wilson(correct, n))


def cost(study: Study, system: str) -> dict[str, Any]:
    """Parameters; training cost in clean epochs of one ResNet-18, of everything the system is built from, empty if a
    network came with its weights; and what an answer costs, in operations of one ResNet-18.
    """
    recipe = known(study)[system]
    records = [study.record(f"train:{name}") for name in _training(study, recipe)]
    source = known(study)[recipe.weights_of] if recipe.weights_of else recipe
    own = records[-1:] if source.has_weights else records
    units = [r["training_units"] for r in records]
    return {
        "parameters": sum(r["parameters"] for r in own),
        "training cost": "" if None in units else round(sum(units)),
        "inference cost": round(sum(r["inference_cost"] for r in own), 2),
    }


def _training(study: Study, recipe: Recipe) -> list[str]:
    """The systems trained on the way to one, itself last."""
    if recipe.weights_of:
        return _training(study, known(study)[recipe.weights_of])
    return [*recipe.starts_from, *([recipe.system] if recipe.has_weights else [])]


def growth(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """How cost grows with the number of experts: training units (all, and per epoch of phase 2), and an answer's."""
    rows = []
    for system in systems:
        recipe = known(study)[system]
        own, history = study.record(f"train:{system}"), study.record(f"train:{system}")["history"]
        rows.append(
            {
                "system": system,
                "experts": recipe.network.experts,
                **cost(study, system),
                "phase 2, units an epoch": own["training_units"] / len(history["epochs"]),
            }
        )
    return pd.DataFrame(rows).set_index("system")


def battery_frame(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """`results` of the battery with a ``column`` that names the attack, AutoAttack and both worst cases among them.

    The best expert goes under that name.
    """
    frame = results(study, systems)
    frame["column"] = [column(kind, steps) for kind, steps in zip(frame["attack"], frame["steps"], strict=True)]
    frame["system"] = [called(name) for name in frame["system"]]
    further = []
    for system in systems:
        slow = {"AutoAttack": autoattacked(study, system), WORST: worst_case(study, system)}
        for name, right in {BASIC: basic_worst(study, system), **slow}.items():
            if right is None:
                continue
            low, high = wilson(int(right.sum()), len(right))
            shown = f"{name}, n = {len(right)}" if name in slow else name
            row = {"system": called(system), "attack": name, "column": shown, "n": len(right)}
            row |= {"correct": int(right.sum()), "accuracy": float(right.float().mean()), "low": low, "high": high}
            further.append(row | {"seed": study.seed})
    return pd.concat([frame, pd.DataFrame(further)], ignore_index=True)


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


def runs_frame(studies: Sequence[Study], systems: Systems = compared) -> pd.DataFrame:
    """`battery_frame` of several runs, one below the other."""
    return pd.concat([battery_frame(study, systems(study)) for study in studies], ignore_index=True)


def seeds_of(studies: Sequence[Study]) -> str:
    """Such as ``seed 0`` or ``seeds 0, 1, 2``."""
    return f"seed{'' if len(studies) == 1 else 's'} {', '.join(str(study.seed) for study in studies)}"


def seeds_table(studies: Sequence[Study], systems: Systems = compared) -> pd.DataFrame:
    """Mean over seeds with the lowest and highest seed, per system and attack, in percent; and what it costs.

    The best expert may be another one with each seed; it is listed under one name.
    """
    together = runs_frame(studies, systems)
    groups = together.groupby(["system", "column"], sort=False)["accuracy"]
    text = groups.apply(lambda a: f"{a.mean():.1%} ({a.min():.1%} to {a.max():.1%})".replace("%", ""))
    columns, rows = (list(dict.fromkeys(together[name])) for name in ("column", "system"))
    columns.sort(key=lambda name: name.startswith(WORST))  # the headline last
    table = text.unstack("column")[columns].reindex(rows).fillna("")
    costs = pd.DataFrame({called(name): cost(studies[0], name) for name in systems(studies[0])}).T
    whole = costs[["parameters", "training cost"]].map(lambda value: value if value == "" else int(value))
    return table.join(whole).join(costs["inference cost"].map("{:.1f}".format))


def differences(studies: Sequence[Study], systems: Systems, against: str, shown: str = BASIC) -> pd.DataFrame:
    """``against`` minus every other system over all seeds, with intervals that know of images and of runs."""
    rows = []
    ours = outcomes(studies, against, shown)
    for system in dict.fromkeys(called(name) for name in systems(studies[0])):
        if system == against:
            continue
        value = over_seeds(ours, outcomes(studies, system, shown))
        row = {"system": system, "difference": value.difference, "low": value.low, "high": value.high}
        rows.append(row | {"seeds": value.seeds, "n": value.n})
    return pd.DataFrame(rows).set_index("system")


def worst_differences(
    studies: Sequence[Study], systems: Systems, against: str, attacks: Sequence[str] = (WORST, BASIC)
) -> pd.DataFrame:
    """``against`` minus every other system, a column per attack: by default both worst cases, of all and of basic."""
    columns = {}
    for shown in attacks:
        frame = differences(studies, systems, against, shown)
        columns[f"{shown}, n = {frame['n'].iloc[0]}"] = with_points(frame)["points"]
    return pd.DataFrame(columns)


def ablations(studies: Sequence[Study]) -> pd.DataFrame:
    """Every variant of `ablation-base`, in the order of its question: accuracy over seeds and variant minus base."""
    systems = [r.system for r in known(studies[0]).values() if r.family == "ablation"]
    apart = differences(studies, lambda study: systems, "ablation-base")
    rows = []
    for system in systems:
        recipe = known(studies[0])[system]
        clean, worst = (over_runs(outcomes(studies, system, shown)) for shown in ("clean", BASIC))
        row: dict[str, Any] = {"system": system, "what it is": recipe.description}
        row |= {"clean": share(clean), BASIC: share(worst)}
        if system in apart.index:
            found = apart.loc[system]
            row |= {"difference": -found["difference"], "low": -found["high"], "high": -found["low"]}
        row |= {"seeds": len(studies), "n": worst.n, **cost(studies[0], system)}
        rows.append(row)
    return pd.DataFrame(rows).set_index("system")


def with_points(table: pd.DataFrame) -> pd.DataFrame:
    """A frame with ``difference``, ``low`` and ``high`` as one column of text, ``points``, or empty."""
    texts = [
        points(d, low, high) if d == d else ""
        for d, low, high in zip(table["difference"], table["low"], table["high"], strict=True)
    ]
    frame = table.drop(columns=["low", "high"]).rename(columns={"difference": "points"})
    return frame.assign(points=texts)


def settings(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """How each system is trained: of what, from what, against what, for how long."""
    rows = []
    for system in systems:
        recipe = known(study)[system]
        network, config = recipe.network, recipe.training
        own = network.member if network.kind == "own" else "ResNet-18"
        member = "small ResNet" if network.member == "small" else own
        width = f" of width x {network.width:g}" if network.width != 1 else ""
        rows.append(
            {
                "system": system,
                "setting": "its own paper's" if recipe.as_published else "DWF's budget",
                "built of": f"{network.experts} {member}{width}",
                "starts from": "trained experts" if recipe.starts_from else "scratch",
                "learns": ", then ".join(update_step.trainable for update_step in recipe.update_steps),
                "loss": ", then ".join(type(update_step.loss).__name__ for update_step in recipe.update_steps),
                "mean attack steps": ", ".join(
                    f"{update_step.attack.mean_steps():.1f}" for update_step in recipe.update_steps
                ),
                "epochs": config.epochs if config else "",
            }
        )
    return pd.DataFrame(rows).set_index("system")


def routes(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """Mean gate weight, or share of images, of each expert on clean and attacked images; one row each."""
    rows = []
    for system in systems:
        for row in study.record(f"gate:{system}")["rows"]:
            label = "clean" if row["kind"] == "clean" else f"{row['kind'].upper()}, eps {row['eps']}"
            for expert, weight in enumerate(row["mean_weights"]):
                rows.append({"system": system, "attack": label, "expert": expert, "weight": weight})
    return pd.DataFrame(rows)


def paired_table(study: Study, against: str = "dwf", systems: Systems = compared) -> pd.DataFrame:
    """``against`` minus every other system under the headline attack, on the same images, with McNemar's p-value."""
    spec = headline(study.profile.evaluation)
    ours = study.outcome(against, spec).arrays["correct"].bool()
    rows = []
    for system in systems(study):
        if system == against:
            continue
        pair = paired(ours, study.outcome(system, spec).arrays["correct"].bool())
        rows.append(
            {
                "comparison": f"{against} - {system}",
                "points": points(pair.difference, pair.low, pair.high),
                f"only {against} right": pair.only_first,
                "only the other": pair.only_second,
                "n": pair.n,
                "McNemar p": f"{pair.p_value:.2g}",
                "seed": study.seed,
            }
        )
    return pd.DataFrame(rows).set_index("comparison")


def paired_seeds(studies: Sequence[Study], against: str = "dwf", systems: Systems = compared) -> pd.DataFrame:
    """`paired_table`'s differences with their intervals, a column per seed, all on the same images.

    The last column is the mean over seeds; its interval knows of the images and of the training runs.
    """
    columns = {}
    for study in studies:
        pairs = paired_table(study, against, systems)["points"]
        columns[f"seed {study.seed}"] = pairs.rename({f"{against} - {best_expert(study)}": f"{against} - {BEST}"})
    attack = column_of(headline(studies[0].profile.evaluation))
    together = with_points(differences(studies, systems, against, attack))["points"]
    columns["all seeds"] = together.rename(lambda name: f"{against} - {name}")
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


def arithmetic(study: Study, experts: int) -> float:
    """Clean epochs of one ResNet-18 that an epoch of phase 2 costs by the recipe, the gate left out.

    A step of an attack costs one, the update one: n * (1 + 2 + (1 + mean iterations)) / 3.
    """
    steps = study.profile.threat.pgd_steps
    return experts * (1 + 2 + 1 + sum(steps) / len(steps)) / 3


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
                "favourite": max(range(len(row["mean_weights"])), key=row["mean_weights"].__getitem__),
                "leads on": f"{row['favourite_share']:.1%}",
                "n": artefact.record["result"]["n"],
            }
        )
    return pd.DataFrame(rows)


def provenance_table(*studies: Study) -> pd.DataFrame:
    """Every artefact these studies have handed out: where from, when, with what; one row each."""
    rows = []
    for name, artefact in sorted((item for study in studies for item in study.used.items()), key=lambda item: item[0]):
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


def provenance_line(*studies: Study) -> str:
    """The same in three lines, for the end of a notebook."""
    table = provenance_table(*studies)
    if table.empty:
        return "no records used"
    sources = ", ".join(f"{n} {source}" for source, n in table["source"].value_counts().items())

    def distinct(name: str) -> str:
        return ", ".join(sorted({str(value) for value in table[name]}))

    return (
        f"{len(table)} records of profile {studies[0].profile.name}, seed {distinct('seed')}: {sources}; "
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
