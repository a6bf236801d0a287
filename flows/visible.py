"""What a run shows of itself: progress and a summary on a Prefect server, names and tags, and the webhook at the end.

One decision: all of it is a courtesy. It is read from the run's own files, sent by threads that nothing waits for long, and only to a server
that is configured: the temporary one of a single command ends with it, and nobody looks there. What fails is a warning.
"""

from __future__ import annotations

import contextvars
import csv
import io
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prefect import get_client, tags
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TagsContext

from flows.runner import server_url
from medad_core.config import Settings
from medad_core.metrics.names import MAIN_METRICS, metric_name
from medad_core.metrics.printed import interval_text, markdown_table, value_text
from medad_core.notify import ATTEMPTS, Notification, notify
from medad_core.store import Progress, Stage, join, read_table
from medad_core.store.files import read_bytes

log = logging.getLogger(__name__)
LOOK_S = 5.0  # between two looks at a stage's files
PATIENCE_S = 3.0  # that a run waits for a server to take what it shows
HURRY_S = 1.0  # that a run which was told to end waits for its webhook
SHOWN = 20  # rejected cases that are named; rejected.csv has them all


@dataclass
class Telling:
    """What a flow has to tell when it ends: numbers, and the finished runs that the server shows a summary of."""

    counts: dict[str, int] = field(default_factory=dict)
    runs: tuple[str, ...] = ()


def words_of(run: str) -> tuple[str, ...]:
    """The last word of a run's folder; of a cohort's batch, cohort and number."""
    words = run.rstrip("/").split("/")
    return (words[-3], words[-1]) if words[-2:-1] == ["batches"] and len(words) > 2 else (words[-1],)


@contextmanager
def told(kind: str, name: str, settings: Settings) -> Iterator[Telling]:
    """Tag the flow run with its cohort while the block runs; tell webhook and server how it ended. Errors pass through."""
    telling, begun, marks = Telling(), time.monotonic(), ("medad", f"cohort:{name}")
    _let_core_speak()
    _courteously(_tag, marks)
    try:
        with tags(*marks):
            yield telling
    except BaseException as error:
        hurry = not isinstance(error, Exception)  # a signal: the process has seconds left
        limits = settings.notify.model_copy(update={"timeout_s": HURRY_S}) if hurry else settings.notify
        notify(
            Notification(event="failed", kind=kind, name=name, seconds=_since(begun), counts=telling.counts),
            limits,
            1 if hurry else ATTEMPTS,
        )
        raise
    _courteously(_publish, name, telling)
    notify(
        Notification(event="finished", kind=kind, name=name, seconds=_since(begun), counts=telling.counts),
        settings.notify,
    )


@contextmanager
def untagged() -> Iterator[None]:
    """For tasks: Prefect asks its server for a slot of every tag of a task run, and a run that is not given one, because the server is busy, fails."""
    with TagsContext(current_tags=set()):
        yield


@contextmanager
def progress_shown(stage: Stage) -> Iterator[None]:
    """Keep a progress artifact of the flow run in step with a stage's files while the block runs."""
    if server_url() is None:
        yield
        return
    stop, shown = threading.Event(), _Shown(stage)
    thread = _in_background(shown.follow, stop)
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)


class _Shown:
    """The progress artifact of one stage: made at the first look, changed whenever a part is done."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.key, self.begun = stage, _key(stage.name, words_of(stage.run)[0]), time.monotonic()
        self.artifact, self.first, self.last = None, None, None

    def follow(self, stop: threading.Event) -> None:
        ended = False
        while not ended:
            ended = stop.is_set()  # asked first, so that the last look comes after the last part
            try:
                self._look()
            except Exception as error:  # the server may be away for a while, and a file may be replaced just now
                log.debug("progress of %s is not shown: %s", self.stage.name, error)
            stop.wait(LOOK_S)

    def _look(self) -> None:
        now = self.stage.progress()
        if now == self.last:
            return
        self.first = self.first or now
        said = {
            "progress": 100 * handled(now) / now.requested if now.requested else 100.0,
            "description": progress_line(now, self.first, _since(self.begun)),
        }
        if self.artifact is None:
            self.artifact = create_progress_artifact(key=self.key, **said)
        else:
            update_progress_artifact(self.artifact, **said)
        self.last = now


def handled(now: Progress) -> int:
    """Cases that a stage is through with."""
    return now.done + now.skipped + now.failed


def progress_line(now: Progress, first: Progress, elapsed_s: float) -> str:
    """Counts, and the time left at the pace since the `first` look: "3 of 8 parts, 12 of 32 cases (1 rejected), 492 slices; about 2 min left"."""
    counts = f"{now.parts_done} of {now.parts} parts, {handled(now)} of {now.requested} cases ({now.failed} rejected), {now.rows} slices"
    left, here = now.requested - handled(now), handled(now) - handled(first)
    if left == 0:
        return f"{counts}; done"
    return f"{counts}; about {_duration(elapsed_s / here * left)} left" if here else counts


def summary(name: str, telling: Telling) -> str:
    """Markdown: the counts, then of each run its main metrics, its rejected cases by reason, and where its page is."""
    counts = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in telling.counts.items())
    return "\n\n".join(
        [
            f"# {name}",
            "For research. Not a medical device.",
            counts,
            *(part for run in telling.runs for part in _run_summary(run)),
        ]
    )


def _run_summary(run: str) -> Iterator[str]:
    page = join(run, "report.html")
    yield f"## {' '.join(words_of(run))}"
    yield from _metrics(run)
    yield from _rejected(run)
    yield f"[Page of the run]({_link(page)}): `{page}`"


def kind_of(reason: str) -> str:
    """A reason without what belongs to the one case: file name, numbers, details in brackets and the way out."""
    text = re.sub(r"\s*\(.*?\)", "", reason.split("; ")[0])
    text = re.sub(r"^\S+\.\S+: ", "", text)
    return re.sub(r"\d+(\.\d+)?", "…", text)


def _metrics(run: str) -> Iterator[str]:
    found = {
        (row["metric"], row["level"]): row
        for row in read_table(join(run, "metrics.parquet")).to_pylist()
        if row["split"] == "all"
    }
    rows = [found[key] for key in MAIN_METRICS if key in found and found[key]["value"] is not None]
    if not rows:
        yield "No metrics: they need segmentations."
        return
    lines = [
        [
            metric_name(row["metric"]),
            row["level"],
            value_text(row["value"]),
            interval_text(row["ci_low"], row["ci_high"]),
            str(row["n"]),
        ]
        for row in rows
    ]
    yield markdown_table(["metric", "level", "value", "95 % interval", "n"], lines, "lllll")


def _rejected(run: str) -> Iterator[str]:
    rows = list(csv.DictReader(io.StringIO((read_bytes(join(run, "rejected.csv")) or b"").decode())))
    if not rows:
        yield "No case was rejected."
        return
    kinds = Counter((row["stage"], kind_of(row["reason"])) for row in rows).most_common()
    lines = [f"Rejected cases: {len(rows)}", "", "| cases | at stage | why |", "|---|---|---|"]
    yield "\n".join([*lines, *(f"| {count} | {stage} | {_cell(why)} |" for (stage, why), count in kinds)])
    more = f" and {len(rows) - SHOWN} more, in `rejected.csv`" if len(rows) > SHOWN else ""
    yield ", ".join(f"`{row['case_id']}`" for row in rows[:SHOWN]) + more


def _publish(name: str, telling: Telling) -> None:
    create_markdown_artifact(
        summary(name, telling), key=_key("summary", name), description=f"How the screening of {name} ended"
    )
    for run in telling.runs:
        page = join(run, "report.html")
        create_link_artifact(
            _link(page), link_text=page, key=_key("page", name), description=f"Page of {' '.join(words_of(run))}"
        )


def _tag(marks: tuple[str, ...]) -> None:
    run = FlowRunContext.get().flow_run
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, tags={*run.tags, *marks})


def _let_core_speak() -> None:
    """Prefect sends what `medad_core` logs to the server, but leaves its level at that of the root, which is for warnings."""
    core = logging.getLogger("medad_core")
    if core.level == logging.NOTSET:
        core.setLevel(logging.INFO)


def _courteously(show: Callable, *args) -> None:
    """Call `show` for the server that is configured, wait for PATIENCE_S at most, and warn of what fails."""
    if server_url() is None:
        return

    def try_it() -> None:
        try:
            show(*args)
        except Exception as error:
            log.warning("the Prefect server does not show this: %s: %s", type(error).__name__, error)

    _in_background(try_it).join(PATIENCE_S)


def _in_background(work: Callable, *args) -> threading.Thread:
    # A thread starts without the flow run that it works for; the context has it.
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(work, *args), name="medad-visible", daemon=True
    )
    thread.start()
    return thread


def _key(*words: str) -> str:
    """The key of an artifact: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def _link(uri: str) -> str:
    return uri if "://" in uri else Path(uri).as_uri()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 1)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
