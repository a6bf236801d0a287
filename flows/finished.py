"""What a command does where nothing is left to do, and where it fails before a flow begins.

One decision: nothing of Prefect is imported here. A finished run, or an inbox without news, begins no flow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from medad_core.config import Settings
from medad_core.errors import UsageError
from medad_core.inbox.screening import CohortOutcome, Inbox
from medad_core.notify import ATTEMPTS, Notification, notify
from medad_core.run.outcome import Outcome, outcome_of
from medad_core.run.run import Run
from medad_core.stages.complete import is_complete
from medad_core.store.files import name_of, name_parts
from medad_core.store.lock import LockedError


def finished_run(run: Run, data: str) -> Outcome | None:
    """The outcome of an opened run that is finished, with the report of a flow; None where something is left to do.

    Loads no model. Raises StoreError where a stage was made with other settings.
    """
    outcome = outcome_of(run) if is_complete(run) else None
    if outcome is not None:
        run.note(data)
        report_finished("screen", name_parts(run.uri)[0], run.settings, outcome.counts())
    return outcome


def unchanged_cohort(inbox: Inbox) -> CohortOutcome | None:
    """The outcome where nothing is new in an inbox, with the report of a flow; None where something is."""
    outcome = inbox.unchanged()
    if outcome is not None:
        report_finished("screen-cohort", name_of(inbox.folder.uri), inbox.settings, outcome.counts())
    return outcome


def report_finished(kind: str, name: str, settings: Settings, counts: dict[str, int]) -> None:
    """Report to the webhook what was finished already, so that no flow begins."""
    notify(Notification(event="finished", kind=kind, name=name, seconds=0.0, counts=counts), settings.notify, ATTEMPTS)


@contextmanager
def failure_reported(kind: str, name: str, settings: Settings) -> Iterator[None]:
    """Report to the webhook what fails before a flow begins; wrong usage concerns only the person who typed it."""
    begun = time.monotonic()
    try:
        yield
    except (UsageError, LockedError):
        raise
    except Exception:
        seconds = round(time.monotonic() - begun, 1)
        notify(Notification(event="failed", kind=kind, name=name, seconds=seconds), settings.notify)
        raise
