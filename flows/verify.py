"""Whether the files of a run or cohort are those that were written, as a flow: what `medad status --verify` does."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.cancellation import cancellable
from flows.outcome import outcome_reported
from flows.parameters import DEFAULTS, SettingsParameter
from medad_core.errors import StoreError
from medad_core.inbox.verify import verify_folder
from medad_core.store.files import name_parts

log = logging.getLogger(__name__)


def _run_name() -> str:
    return f"verify-{Path(flow_run.parameters['folder']).name}"


@flow(
    name="verify",
    description="Compares every file of a cohort, or of a run, with its recorded hash.",
    persist_result=False,
    flow_run_name=_run_name,
)
def verify(folder: str, settings: SettingsParameter = DEFAULTS) -> None:
    """Compare every file of the run or cohort `folder` with its hash, and tell the webhook how it ended.

    Nothing is changed. Raises StoreError where a file is damaged or missing; each is logged with its way out.
    """

    def work() -> None:
        with outcome_reported("verify", name_parts(folder)[0], settings) as report:
            damaged = list(verify_folder(folder))
            for line in damaged:
                log.error("%s", line)
            report.counts = {"files_damaged": len(damaged)}
            if damaged:
                raise StoreError(
                    f"{folder}: damaged or missing files: {len(damaged)}; `medad status {folder} --verify` names them"
                )

    cancellable(work)
