"""Deletes the stages' files of older batches.

One decision: only the folders of the stages are deleted. Predictions, metrics, page, rejected.csv and commit of every
batch stay, so the cohort's predictions can always be written again.
"""

from __future__ import annotations

from datetime import UTC, datetime

from medad_core.errors import UsageError
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.records import PRUNED, is_cohort
from medad_core.store import PART_STAGES, join, write_text
from medad_core.store.files import remove_tree, sweep
from medad_core.store.listing import list_names, tree_bytes
from medad_core.store.lock import locked

_NOTE_TEXT = (
    "Slices, maps, prompts and answers were removed by `medad prune` on {date}; "
    "predictions, metrics and page are whole.\n"
)


def prune(cohort: str, keep: int) -> dict[int, int]:
    """Prune all committed batches except the newest `keep`. Returns the bytes freed, by batch number.

    Raises UsageError for a folder that is not a cohort, LockedError if it is in use.
    """
    if not is_cohort(cohort):
        raise UsageError(f"{cohort}: not the folder of a cohort; make one with `medad screen INBOX --cohort {cohort}`")
    folder = CohortFolder(cohort)
    with locked(folder.uri):
        numbers = [batch.number for batch in folder.batches()]
        older = numbers[: max(0, len(numbers) - keep)]
        freed = {number: _prune(folder.run_of(number)) for number in older}
    return {number: size for number, size in freed.items() if size}


def _prune(run: str) -> int:
    sweep(run)  # of a note that a killed command was writing
    stages = [join(run, name) for name in sorted(list_names(run) & set(PART_STAGES))]
    if not stages:
        return 0
    freed = sum(tree_bytes(stage) for stage in stages)
    # The note is written first, so that it is there even if a kill leaves half of the stages.
    write_text(join(run, PRUNED), _NOTE_TEXT.format(date=datetime.now(UTC).date()))
    for stage in stages:
        remove_tree(stage)
    return freed
