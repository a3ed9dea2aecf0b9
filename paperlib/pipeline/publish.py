"""Publishing: copy this machine's records of a profile into the folder that is committed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paperlib.config.load import command_name, load_profile
from paperlib.config.schema import Profile
from paperlib.config.serialise import to_table
from paperlib.errors import MissingError
from paperlib.log import logger
from paperlib.paths import location, published_dir
from paperlib.pipeline.published import write_published
from paperlib.pipeline.stages import PUBLISHED_WEIGHTS
from paperlib.pipeline.store import Artefact
from paperlib.pipeline.study import Json, Study


def publish(profile: Profile | str, seeds: Sequence[int] = (), *, replace: bool = False) -> Path:
    """Copy this machine's records of a profile, all stages of ``seeds``, into ``data/published/PROFILE``.

    Other seeds that are published stay if they are of the same configuration, data and code; ``replace`` drops them.

    Raises:
        MissingError: a stage has not been computed here; the message says which command does it.
        StoreError: other seeds are published that stem from another configuration, other data or other code.
    """
    called = command_name(profile)
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    seeds = list(seeds) or list(profile.run.seeds)
    records: dict[int, dict[str, Artefact]] = {}
    weights = {}
    for seed in seeds:
        study = Study(profile, seed, replay=False)
        if missing := study.missing(list(study.stages)):
            raise MissingError(
                f"profile {profile.name}, seed {seed}: {len(missing)} stages are not computed yet ({missing[0]}, ...); "
                f"run: python -m paperlib run --profile {called} --seeds {','.join(map(str, seeds))}"
            )
        records[seed] = {name: study.get(name) for name in study.stages}
        if seed == min(seeds):
            for system in PUBLISHED_WEIGHTS:
                tensors = study.model(system).state_dict()
                halved = {name: v.half() if v.is_floating_point() else v for name, v in tensors.items()}
                if sum(v.numel() * v.element_size() for v in halved.values()) < 10_000_000:
                    weights[f"{system}-seed-{seed}"] = halved
    facts = records[seeds[0]]["data"].record["result"]
    description = {
        "profile": profile.name,
        "configuration": published_configuration(profile),
        "fingerprint": study.fingerprint,
        "data": {name: facts[name] for name in ("label", "classes", "shape", "mean", "std", "counts")},
    }
    folder = published_dir(profile.name)

    def keys(seed: int) -> dict[str, str]:
        other = Study(profile, seed, replay=False)
        return {name: other.key(stage) for name, stage in other.stages.items()}

    held = write_published(folder, description, records, weights, keys=keys, replace=replace)
    logger.info(f"published {len(study.stages)} records for each of seeds {seeds} of profile {profile.name}")
    logger.info(f"{location(folder)} now holds seeds {held}")
    return folder


def published_configuration(profile: Profile) -> Json:
    """A profile's configuration as it is published: where the user's own file lies is nobody's business."""
    table = to_table(profile)
    table["study"]["extension"] = Path(profile.study.extension).name
    return table
