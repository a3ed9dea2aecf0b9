"""Tables as files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paperlib.atomic_files import replacing
from paperlib.paths import figures_dir


def save_table(frame: pd.DataFrame, name: str, profile: str) -> list[Path]:
    """Write ``name.csv`` and ``name.md`` into the profile's figures folder; returns both paths."""
    folder = figures_dir(profile)
    paths = [folder / f"{name}.csv", folder / f"{name}.md"]
    for path, text in zip(paths, (frame.to_csv(), markdown(frame)), strict=True):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a GitHub table, its index first."""
    frame = frame.reset_index()
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
