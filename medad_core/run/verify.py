"""Whether the files of a run are those that were recorded.

One decision: every byte is hashed, whatever its stamp says, because a disk that fails changes no stamp.
"""

from __future__ import annotations

from collections.abc import Iterator

from medad_core.run.cohort import find_stored
from medad_core.store import Stage, open_stages


def verify_run(run: str) -> Iterator[str]:
    """A line for each file of the run in the folder `run` that is damaged or missing, with the way out.

    Raises StoreError for a damaged plan or cohort, which says itself what to do.
    """
    for stage in open_stages(run).values():
        plan = stage.find_plan()
        if plan is None:
            continue
        if "cohort" in plan.fingerprint:
            yield from _verify_cohort(run, plan.fingerprint["cohort"])
        yield from _verify_parts(stage)


def _verify_cohort(run: str, content: str) -> Iterator[str]:
    stored = find_stored(run)
    if stored is None or stored.content != content:
        yield f"{run}/cohort.json is not the one that the stages were made of; bring it back from a backup"


def _verify_parts(stage: Stage) -> Iterator[str]:
    damaged = sorted(set(stage.pending()) & set(stage.records()))
    for number in damaged:
        yield f"{stage.name} part {number} is damaged or missing; `medad screen DATA --out {stage.run}` makes it again"
