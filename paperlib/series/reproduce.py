"""The main job: compute all stages, execute the notebooks, write the HTML site, and print the places of the results."""

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
    """Run the whole series at ``profile`` without published records; returns the contents page of the HTML site.

    Without ``only``, all stages are computed before the first notebook starts, because this uses the cores better. With
    ``only``, each selected notebook computes the stages that it needs.

    Args:
        seeds: training seeds. The notebooks show the first in detail; the tables over seeds contain all.
        only: numbers or names of notebooks; all if empty.
        fresh: remove the results that this machine has computed for these seeds first.
        timeout: seconds for each notebook.

    Raises:
        SeriesError: as `run_series`.
        StoreError: the folder of the figures or of the notebooks cannot be written.
    """
    started = time.monotonic()
    select(discover(paths.notebooks_dir()), only)  # raises for an unknown notebook before the computation
    for folder in (paths.figures_dir(profile), paths.build_dir(profile) / "notebooks"):
        make_folder(folder)  # raises before the computation if it cannot be written
    runs = Study(profile, seeds[0], replay=False, seeds=seeds).runs
    for run in runs if fresh else ():
        logger.info(f"removed {run.forget()} results of profile {profile}, seed {run.seed}")
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
    logger.info(f"HTML site            {paths.location(page)} (open it in a browser; it needs no network)")
    logger.info(f"computing {computed - started:.0f} s, notebooks {time.monotonic() - computed:.0f} s")
    return page
