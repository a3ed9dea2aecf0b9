"""Tables of gate weights."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from paperlib.pipeline.study import Study


def routes(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """Mean gate weight of each expert on clean and attacked images, with hard routing its share of the images."""
    rows = []
    for system in systems:
        for row in study.record(f"gate:{system}")["rows"]:
            label = "clean" if row["kind"] == "clean" else f"{row['kind'].upper()}, eps {row['eps']}"
            for expert, weight in enumerate(row["mean_weights"]):
                rows.append({"system": system, "attack": label, "expert": expert, "weight": weight})
    return pd.DataFrame(rows)


def gate_rows(study: Study, system: str) -> pd.DataFrame:
    """Mean gate weight by attack, eps and expert, with the number of PGD iterations."""
    result = study.record(f"gate:{system}")
    rows = [
        {"attack": row["kind"], "eps": row["eps"], "expert": i, "weight": weight, "steps": result["pgd_steps"]}
        for row in result["rows"]
        for i, weight in enumerate(row["mean_weights"])
    ]
    return pd.DataFrame(rows)


def gate_health(study: Study, system: str) -> pd.DataFrame:
    """One row for each attack: the gate's mean entropy, its variation over images, and its most weighted expert.

    Entropy in nats; the variation is the largest standard deviation of an expert's weight.
    """
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
                "std over images": round(float(spread), 3),
                "top expert": max(range(len(row["mean_weights"])), key=row["mean_weights"].__getitem__),
                "top on": f"{row['favourite_share']:.1%}",
                "n": artefact.record["result"]["n"],
            }
        )
    return pd.DataFrame(rows)
