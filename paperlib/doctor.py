"""``python -m paperlib doctor``: checks packages, device, disk, data and results, and advises what to do."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from paperlib.atomic_files import check_home
from paperlib.config.schema import Profile
from paperlib.errors import PaperlibError, StoreError
from paperlib.output import write_line as print_line
from paperlib.paths import data_source, home, location
from paperlib.pipeline.provenance import commit, device_name, versions
from paperlib.pipeline.study import Study

NOTEBOOK_TOOLS = ("jupyterlab", "papermill", "nbval", "seaborn", "ipywidgets", "nbconvert", "sklearn")
SPACE_NEEDED = 2_000_000_000  # bytes, mainly for weights and decoded images


def examine(profile: Profile) -> None:
    """Print one line for each result of a check; nothing is changed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    print_line(f"code      {commit()}; {packages}")
    print_line(f"device    {device_name(device)}; {os.cpu_count()} cores")
    if device.type == "cpu" and profile.run.bf16:
        print_line(
            f"          profile {profile.name} is meant for a GPU; here it would take days. Try cifar10_lite or digits."
        )
    absent = [name for name in NOTEBOOK_TOOLS if importlib.util.find_spec(name) is None]
    print_line(
        f"notebooks {'all tools installed' if not absent else 'missing: ' + ', '.join(absent) + '; run: make lab'}"
    )
    _disk()
    _data(profile)
    published = Study(profile).published  # of the profile, or of its base
    seeds = published.seeds
    study = Study(profile, profile.run.seeds[0], replay=bool(seeds))
    print_line(f"published {location(published.folder)}: {f'seeds {seeds}' if seeds else 'no records of this profile'}")
    try:
        missing = study.missing(list(study.stages))
    except PaperlibError:
        return
    available = len(study.stages) - len(missing)
    advice = "" if not missing else f"; compute the rest: python -m paperlib run --profile {study.command_name}"
    print_line(
        f"records   {available} of {len(study.stages)} stages computed or published for seed {study.seed}{advice}"
    )


def _disk() -> None:
    try:
        check_home(write=False)
    except StoreError as error:
        print_line(f"disk      {error}")
        return
    existing = next(folder for folder in (home(), *home().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    print_line(f"disk      {free / 1e9:.0f} GB free" + ("" if free > SPACE_NEEDED else "; 2 GB are needed"))


def _data(profile: Profile) -> None:
    try:
        data = Study(profile, replay=False).data
    except PaperlibError as error:
        print_line(f"data      {error}")
        return
    sizes = f"{len(data.train)} / {len(data.validation)} / {len(data.test)}"
    origin = "scikit-learn" if profile.data.name == "digits" else location(data_source())
    print_line(f"data      {data.label} from {origin}: {sizes} train / validation / test, {data.fingerprint}")
