"""Reports how a screening ends: tags and a summary on a Prefect server, and the webhook.

One decision: a screening sends its report when its flow ends, with success or not. A failed report never changes the
result of the screening.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from prefect import get_client, tags
from prefect.context import FlowRunContext, TagsContext

from flows.artifacts import publish
from flows.cancellation import stop_if_cancelled
from flows.courtesy import show_on_server
from medad_core.config import Settings
from medad_core.notify import ATTEMPTS, Notification, notify

SHORT_TIMEOUT_S = 1.0  # the time that an ending process waits for its webhook


@dataclass
class Report:
    """What a flow reports when it ends: numbers, and the finished runs for the summary on the server."""

    counts: dict[str, int] = field(default_factory=dict)
    runs: tuple[str, ...] = ()


@contextmanager
def outcome_reported(kind: str, name: str, settings: Settings) -> Iterator[Report]:
    """Tag the flow run with its cohort while the block runs; report the end to webhook and server.

    `kind` is screen or screen-cohort. Errors pass through. Raises CancelledRun where the flow run was cancelled.
    """
    report = Report()
    begun = time.monotonic()
    marks = ("medad", f"cohort:{name}")
    _log_the_core()
    show_on_server(_tag, marks)

    def notification(event: str) -> Notification:
        seconds = round(time.monotonic() - begun, 1)
        return Notification(event=event, kind=kind, name=name, seconds=seconds, counts=report.counts)

    try:
        with tags(*marks):
            yield report
        stop_if_cancelled()
    except Exception:
        notify(notification("failed"), settings.notify)
        raise
    except BaseException:  # a signal: the process has seconds left
        short = settings.notify.model_copy(update={"timeout_s": SHORT_TIMEOUT_S})
        notify(notification("failed"), short, attempts=1)
        raise
    show_on_server(publish, name, report.counts, report.runs)
    notify(notification("finished"), settings.notify, ATTEMPTS)


@contextmanager
def untagged() -> Iterator[None]:
    """Remove the tags for tasks, because Prefect requests a slot for every tag of a task run.

    If the server is busy and gives no slot, the task run fails.
    """
    with TagsContext(current_tags=set()):
        yield


def _tag(marks: Sequence[str]) -> None:
    run = FlowRunContext.get().flow_run
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, tags={*run.tags, *marks})


def _log_the_core() -> None:
    """Set the level of `medad_core` to INFO: by default, Prefect sends only its warnings to the server."""
    core = logging.getLogger("medad_core")
    if core.level == logging.NOTSET:
        core.setLevel(logging.INFO)
