"""What a Prefect server shows of a run: progress while it runs, a summary and links when it has ended.

One decision: artifacts are optional. They are read from the run's files, and sent only to a configured server, because
the temporary server of a single command ends with the command. A failure to send causes only a warning.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flows.courtesy import in_background
from flows.orchestrator import server_url
from medad_core.media import markdown_text, read_csv
from medad_core.metrics.names import MAIN_METRICS, metric_name
from medad_core.metrics.printed import interval_text, markdown_table, value_text
from medad_core.store import Stage, StageProgress, join, read_table
from medad_core.store.files import name_parts, read_bytes

log = logging.getLogger(__name__)
LOOK_S = 5.0  # between two looks at a stage's files
PATIENCE_S = 3.0  # the time that a stage waits, at its end, for the last update
SHOWN = 20  # number of rejected cases that are named; rejected.csv has all of them


@contextmanager
def progress_shown(stage: Stage) -> Iterator[None]:
    """Update a progress artifact of the flow run from a stage's files while the block runs."""
    if server_url() is None:
        yield
        return
    stop = threading.Event()
    # A second Stage object, because another thread uses the one of the run.
    shown = _ProgressArtifact(Stage(stage.run, stage.name, stage.schema))
    thread = in_background(shown.follow, stop)
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)


class _ProgressArtifact:
    """The progress artifact of one stage: made at the first look, changed whenever a part is done."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.key = artifact_key(stage.name, name_parts(stage.run)[0])
        self.begun = time.monotonic()
        self.artifact: UUID | None = None
        self.first: StageProgress | None = None
        self.last: StageProgress | None = None

    def follow(self, stop: threading.Event) -> None:
        """Update the artifact until `stop` is set, and once more after that."""
        ended = False
        while not ended:
            ended = stop.is_set()  # read first, so that the last update comes after the last part
            try:
                self._look()
            except Exception as error:  # the server may be down for a while, and a file may be replaced at this moment
                log.debug("progress of %s is not shown: %s", self.stage.name, error)
            stop.wait(LOOK_S)

    def _look(self) -> None:
        current = self.stage.progress()
        if current == self.last:
            return
        self.first = self.first or current
        share = 100 * handled(current) / current.requested if current.requested else 100.0
        description = progress_line(current, self.first, time.monotonic() - self.begun)
        if self.artifact is None:
            self.artifact = create_progress_artifact(key=self.key, progress=share, description=description)
        else:
            update_progress_artifact(self.artifact, progress=share, description=description)
        self.last = current


def handled(progress: StageProgress) -> int:
    """Number of cases that a stage has finished: done, skipped or failed."""
    return progress.done + progress.skipped + progress.failed


def progress_line(current: StageProgress, first: StageProgress, elapsed_s: float) -> str:
    """Counts, and the time left at the speed since the `first` progress.

    Example: "3 of 8 parts, 12 of 32 cases (1 rejected), 492 slices; about 2 min left".
    """
    parts = f"{current.parts_done} of {current.parts} parts"
    cases = f"{handled(current)} of {current.requested} cases ({current.failed} rejected)"
    counts = f"{parts}, {cases}, {current.rows} slices"
    left = current.requested - handled(current)
    since_first = handled(current) - handled(first)
    if left == 0:
        return f"{counts}; done"
    return f"{counts}; about {_duration(elapsed_s / since_first * left)} left" if since_first else counts


def publish(name: str, counts: Mapping[str, int], runs: Sequence[str]) -> None:
    """Create artifacts of the flow run: the summary of `runs`, and a link to the page of each."""
    text = summary(name, counts, runs)
    create_markdown_artifact(
        text, key=artifact_key("summary", name), description=f"How the screening of {markdown_text(name)} ended"
    )
    for run in runs:
        page = join(run, "report.html")
        create_link_artifact(
            _link(page),
            link_text=markdown_text(page),
            key=artifact_key("page", name),
            description=f"Page of {_title(run)}",
        )


def summary(name: str, counts: Mapping[str, int], runs: Sequence[str]) -> str:
    """Markdown: the counts, then for each run its main metrics, its rejected cases by reason, a link to its page."""
    numbers = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in counts.items())
    sections = [section for run in runs for section in _run_summary(run)]
    return "\n\n".join([f"# {markdown_text(name)}", "For research. Not a medical device.", numbers, *sections])


def _run_summary(run: str) -> Iterator[str]:
    page = join(run, "report.html")
    yield f"## {_title(run)}"
    yield from _metrics(run)
    yield from _rejected(run)
    yield f"[Page of the run]({_link(page)}): {markdown_text(page)}"


def kind_of(reason: str) -> str:
    """A reason without the details of a single case: file name, numbers, text in brackets, and the advice."""
    text = re.sub(r"\s*\(.*?\)", "", reason.split("; ", maxsplit=1)[0])
    text = re.sub(r"^\S+\.\S+: ", "", text)
    return re.sub(r"\d+(\.\d+)?", "…", text)


def _metrics(run: str) -> Iterator[str]:
    table = read_table(join(run, "metrics.parquet")).to_pylist()
    by_name = {(row["metric"], row["level"]): row for row in table if row["split"] == "all"}
    rows = [by_name[key] for key in MAIN_METRICS if key in by_name and by_name[key]["value"] is not None]
    if not rows:
        yield "No metrics: they need segmentations."
        return
    header = ["metric", "level", "value", "95 % interval", "n", "supervision"]
    cells = []
    for row in rows:
        interval = interval_text(row["ci_low"], row["ci_high"])
        facts = [metric_name(row["metric"]), row["level"], value_text(row["value"]), interval, str(row["n"])]
        cells.append([*facts, markdown_text(row.get("supervision") or "–")])
    yield markdown_table(header, cells, "llllll")


def _rejected(run: str) -> Iterator[str]:
    text = (read_bytes(join(run, "rejected.csv")) or b"").decode()
    rows = list(read_csv(text))
    if not rows:
        yield "No case was rejected."
        return
    kinds = Counter((row["stage"], kind_of(row["reason"])) for row in rows).most_common()
    cells = [[str(count), stage, markdown_text(why)] for (stage, why), count in kinds]
    table = markdown_table(["cases", "at stage", "why"], cells, "lll")
    yield f"Rejected cases: {len(rows)}\n\n{table}"
    more = f" and {len(rows) - SHOWN} more, in `rejected.csv`" if len(rows) > SHOWN else ""
    yield ", ".join(markdown_text(row["case_id"]) for row in rows[:SHOWN]) + more


def artifact_key(*words: str) -> str:
    """The key of an artifact: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def _link(uri: str) -> str:
    return quote(uri, safe="/:@%") if "://" in uri else Path(uri).as_uri()


def _title(run: str) -> str:
    return markdown_text(" ".join(name_parts(run)))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
