"""Tables of the speed benchmarks."""

from __future__ import annotations

from statistics import median
from typing import Any

import pandas as pd
import torch

from paperlib.evaluation import paired_difference
from paperlib.report.benchmarks import NAMES, ratio
from paperlib.report.format import percent, points


def peers_table(record: dict[str, Any]) -> pd.DataFrame:
    """Every library on every network: seconds, time relative to ours, robust accuracy with its interval."""
    rows = [
        {
            "data": row["data"],
            "system": row["system"],
            "eps": row["eps"],
            "library": NAMES[row["contender"]],
            "seconds": round(median(row["seconds"]), 2),
            "times as long": ratio(row["ratio"]),
            "robust accuracy": percent(row["correct"] / row["n"], row["interval"]),
            "n": row["n"],
            "differs from textbook": row["differing_images"],
        }
        for row in record["rows"]
    ]
    return pd.DataFrame(rows).set_index(["data", "system", "eps", "library"])


def peers_summary(record: dict[str, Any]) -> pd.DataFrame:
    """One row for each network: its robust accuracy, and the time of each library relative to ours."""
    rows: dict[str, dict[str, Any]] = {}
    for row in record["rows"]:
        cells = rows.setdefault(f"{row['system']} on {row['data']}, eps {row['eps']}", {})
        if row["contender"] == "paperlib":
            cells |= {"robust accuracy": percent(row["correct"] / row["n"], row["interval"]), "n": row["n"]}
        elif row["contender"] != "textbook":
            cells[NAMES[row["contender"]]] = ratio(row["ratio"])
    return pd.DataFrame(rows).T.rename_axis("network")


def step_table(record: dict[str, Any]) -> pd.DataFrame:
    """A PGD step against a bare pass of the same network, and its share of the machine's peak for matrix products."""
    rows = [
        {
            "network": f"{r['experts']} x ResNet-18, width {r['width']}",
            "images": f"{r['images']} of {r['side']}x{r['side']}",
            "precision": r["dtype"],
            "step / bare pass": ratio(r["ratio"]),
            "images x steps per second": round(r["images_x_steps_per_second"]),
            "share of matrix peak": f"{r['share_of_peak']:.0%}",
            "peak, GFLOP/s": round(r["matrix_peak_flops"] / 1e9),
        }
        for r in record["step"]
    ]
    return pd.DataFrame(rows).set_index(["network", "images", "precision"])


def growth_table(record: dict[str, Any]) -> pd.DataFrame:
    """The exponent of cost against each axis: 1 is linear."""
    rows = [
        {"cost against": g["axis"], "from": g["points"][0], "to": g["points"][-1], "exponent": f"{g['exponent']:.2f}"}
        for g in record["growth"]
    ]
    return pd.DataFrame(rows).set_index("cost against")


def algorithms_table(record: dict[str, Any]) -> pd.DataFrame:
    """The speed of each algorithm relative to the plain network; slower and failed algorithms are included."""
    rows = [
        {
            "networks": r["networks"],
            "size": f"width {r['width']}, {r['images']} of {r['side']}x{r['side']}",
            "algorithm": r["algorithm"],
            "times faster": ratio(r["ratio"]) if "ratio" in r else f"failed: {r['failed'][:60]}",
        }
        for r in record["rows"]
    ]
    order = list(dict.fromkeys(r["size"] for r in rows))
    frame = pd.DataFrame(rows).pivot(index=["networks", "algorithm"], columns="size", values="times faster")
    return frame[order].fillna("")


def training_table(record: dict[str, Any]) -> pd.DataFrame:
    """Training with the engine, the plain loop and bfloat16, for each seed, compared on the same images."""
    rows = []
    frame = {(r["system"], r["seed"], r["variant"]): r for r in record["rows"]}
    for (system, seed, variant), row in frame.items():
        plain = frame[system, seed, "plain loop"]
        pair = paired_difference(*(torch.tensor([c == "1" for c in r["correct_images"]]) for r in (row, plain)))
        difference = points(pair.difference, pair.low, pair.high)
        rows.append(
            {
                "system": system,
                "seed": seed,
                "variant": variant,
                "seconds": round(row["seconds"], 1),
                "times faster": f"{plain['seconds'] / row['seconds']:.2f}",
                f"accuracy under {row['attack']}": percent(row["accuracy"], row["interval"]),
                "n": row["n"],
                "points against plain loop": "" if row is plain else difference,
            }
        )
    return pd.DataFrame(rows).set_index(["system", "seed", "variant"])
