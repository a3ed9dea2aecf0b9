"""The main job: compute everything, execute the notebooks, bind the reading copy, and say where it all lies."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from paperlib import paths
from paperlib.atomic_files import make_folder
from paperlib.log import logger
from paperlib.pipeline.compute import compute_runs
from paperlib.pipeline.study import Study
from paperlib.series.catalogue import discover, select
from paperlib.series.runner import run_series
from paperlib.series.site import write_site


def reproduce(
    profile: str,
    *,
    seeds: Sequence[int] = (0,),
    only: Sequence[str] = (),
    fresh: bool = False,
    timeout: float = 86_400,
) -> Path:
    """Compute, execute, draw, bind: the whole series at ``profile`` without published records; returns the first page.

    Without ``only`` all stages are computed before the first notebook starts: together they fill the cores better than
    notebook by notebook. With it, each chosen notebook computes what it needs.

    Args:
        seeds: the runs. The first is shown in detail, all stand in the tables over seeds.

    Raises:
        SeriesError: as `run_series`.
    """
    started = time.monotonic()
    select(discover(paths.notebooks_dir()), only)  # an unknown notebook is told at once, not after the computing
    for folder in (paths.figures_dir(profile), paths.build_dir(profile) / "notebooks"):
        make_folder(folder)  # one that cannot be written is told before the computing too
    runs = Study(profile, seeds[0], replay=False, seeds=seeds).runs
    for run in runs if fresh else ():
        logger.info(f"forgot {run.forget()} results of profile {profile}, seed {run.seed}")
    if not only:
        compute_runs(runs)
    computed = time.monotonic()
    run_series(
        profile,
        seed=seeds[0],
        seeds=seeds,
        only=only,
        timeout=timeout,
        jobs=1 if only else os.cpu_count() or 1,
    )
    page = write_site(profile)
    figures = paths.location(paths.figures_dir(profile))
    logger.info(f"figures and tables   {figures}/ (the main table: {figures}/main_table.md and .csv)")
    logger.info(f"executed notebooks   {paths.location(paths.build_dir(profile) / 'notebooks')}/")
    logger.info(f"reading copy         {paths.location(page)} (open it in a browser; it needs no network)")
    logger.info(f"computing {computed - started:.0f} s, notebooks {time.monotonic() - computed:.0f} s")
    return page
