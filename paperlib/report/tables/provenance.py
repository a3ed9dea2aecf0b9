"""The origin of the numbers of a notebook."""

from __future__ import annotations

import pandas as pd

from paperlib.pipeline.study import Study


def provenance_table(*studies: Study) -> pd.DataFrame:
    """One row for each artefact that these studies have used, with its source, time, seed, data, machine and key."""
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
    """A summary of `provenance_table` in three lines, for the end of a notebook."""
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
