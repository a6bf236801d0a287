"""Whether the files of a cohort, or of a run, are those that were written: `medad status FOLDER --verify`."""

from __future__ import annotations

from collections.abc import Iterator

from medad_core.errors import StoreError
from medad_core.inbox.batch import PREDICTIONS
from medad_core.inbox.folder import COMMIT, CohortFolder
from medad_core.inbox.records import PRUNED, is_cohort
from medad_core.inbox.view import is_current
from medad_core.run.info import has_run_info
from medad_core.run.verify import verify_run
from medad_core.store import join, sha256_file
from medad_core.store.listing import size_of


def verify_folder(folder: str) -> Iterator[str]:
    """A line for each file of a run or cohort that is damaged or missing, with the way out.

    Raises StoreError for a folder that is neither, and for damage that says itself what to do.
    """
    if is_cohort(folder):
        return verify_cohort(folder)
    if not has_run_info(folder):
        raise StoreError(f"{folder}: neither a run nor a cohort, so nothing was verified; check its name")
    return verify_run(folder)


def verify_cohort(folder: str) -> Iterator[str]:
    """A line for each file that is damaged or missing, with the way out.

    Raises StoreError for a commit that is damaged or missing, which says itself what to do.
    """
    cohort = CohortFolder(folder)
    batches = cohort.batches()
    for batch in batches:
        run = cohort.run_of(batch.number)
        predictions = join(run, PREDICTIONS)
        if size_of(predictions) is None or sha256_file(predictions) != batch.predictions_sha256:
            yield (
                f"{predictions} is not the file that was committed; `medad evaluate {run}` makes it again "
                "where nothing was pruned, else bring it back from a backup"
            )
        if size_of(join(run, PRUNED)) is None:
            yield from _verify_batch(run)
    view = join(folder, PREDICTIONS)
    if not batches and size_of(view) is not None:
        yield f"{view} has rows of batches whose commits ({folder}/batches/*/{COMMIT}) are gone; bring them back"
    if batches and not is_current(view, tuple(batch.number for batch in batches)):
        yield f"{view} is not up to date, or damaged; the next `medad screen INBOX --cohort {folder}` makes it again"


def _verify_batch(run: str) -> Iterator[str]:
    """As `verify_run`. A batch that was committed is never screened again, so nothing of it can be made again."""
    way_out = "bring it back from a backup; the predictions do not need it"
    try:
        yield from verify_run(run, way_out)
    except StoreError as error:
        yield f"{str(error).partition(';')[0]}; {way_out}"
