"""Publishing: copy the records of a profile from this machine into the folder that is committed."""

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

LARGEST_WEIGHTS = 10_000_000  # bytes; larger weights are not published


def publish(profile: Profile | str, seeds: Sequence[int] = (), *, replace: bool = False) -> Path:
    """Copy the records of all stages and ``seeds`` from this machine into ``data/published/PROFILE``.

    Args:
        seeds: by default those of the profile.
        replace: remove seeds published earlier. Otherwise they stay if they have the same configuration, data and code.

    Raises:
        MissingError: a stage has not been computed here; the message contains the command that computes it.
        StoreError: seeds published earlier have another configuration, other data or other code.
    """
    name = command_name(profile)
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    seeds = list(seeds) or list(profile.run.seeds)
    records: dict[int, dict[str, Artefact]] = {}
    weights = {}
    for seed in seeds:
        study = Study(profile, seed, replay=False)
        if missing := study.missing(list(study.stages)):
            raise MissingError(
                f"profile {profile.name}, seed {seed}: {len(missing)} stages are not computed yet ({missing[0]}, ...); "
                f"run: python -m paperlib run --profile {name} --seeds {','.join(map(str, seeds))}"
            )
        records[seed] = {stage: study.get(stage) for stage in study.stages}
        if seed == min(seeds):
            for system in PUBLISHED_WEIGHTS:
                tensors = study.model(system).state_dict()
                halved = {key: v.half() if v.is_floating_point() else v for key, v in tensors.items()}
                if sum(v.numel() * v.element_size() for v in halved.values()) < LARGEST_WEIGHTS:
                    weights[f"{system}-seed-{seed}"] = halved
    facts = records[seeds[0]]["data"].record["result"]
    description = {
        "profile": profile.name,
        "configuration": published_configuration(profile),
        "fingerprint": study.fingerprint,
        "data": {field: facts[field] for field in ("label", "classes", "shape", "mean", "std", "counts")},
    }
    folder = published_dir(profile.name)

    def keys(seed: int) -> dict[str, str]:
        other = Study(profile, seed, replay=False)
        return {name: other.key(stage) for name, stage in other.stages.items()}

    all_seeds = write_published(folder, description, records, weights, keys=keys, replace=replace)
    logger.info(f"published {len(study.stages)} records for each of seeds {seeds} of profile {profile.name}")
    logger.info(f"{location(folder)} now holds seeds {all_seeds}")
    return folder


def published_configuration(profile: Profile) -> Json:
    """The configuration of a profile as it is published: without the folder of the user's extension."""
    table = to_table(profile)
    table["study"]["extension"] = Path(profile.study.extension).name
    return table
