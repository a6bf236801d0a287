"""Whether the files of a run are those that were recorded.

One decision: every byte is hashed, whatever its stamp says, because a disk that fails changes no stamp.
"""

from __future__ import annotations

from collections.abc import Iterator

from medad_core.run.cohort import find_stored
from medad_core.store import Stage, join, open_stages
from medad_core.store.listing import size_of

PREDICTIONS_FILE = "predictions.parquet"


def verify_run(run: str, way_out: str | None = None) -> Iterator[str]:
    """A line for each file of the run in the folder `run` that is damaged or missing, with the way out.

    `way_out` is what to do about a part, where the run is not one of its own. Raises StoreError for a damaged plan or
    cohort, which says itself what to do.
    """
    # With predictions, every stage was finished once: then nothing of it may be missing.
    was_finished = size_of(join(run, PREDICTIONS_FILE)) is not None
    for stage in open_stages(run).values():
        plan = stage.find_plan()
        if plan is not None:
            if "cohort" in plan.fingerprint:
                yield from _verify_cohort(run, plan.fingerprint["cohort"])
            yield from _verify_parts(stage, was_finished, way_out or f"`medad screen DATA --out {run}` makes it again")
        elif was_finished:
            yield f"{stage.uri}/_plan.json is missing; bring it back from a backup"


def _verify_cohort(run: str, content: str) -> Iterator[str]:
    stored = find_stored(run)
    if stored is None or stored.content != content:
        yield f"{run}/cohort.json is not the one that the stages were made of; bring it back from a backup"


def _verify_parts(stage: Stage, was_finished: bool, way_out: str) -> Iterator[str]:
    pending = set(stage.pending())
    for number in sorted(pending if was_finished else pending & set(stage.records())):
        yield f"{stage.name} part {number} is damaged or missing; {way_out}"
    if was_finished and not pending and stage.manifest() is None:
        yield f"{stage.uri}/_manifest.json is damaged or missing; {way_out}"
