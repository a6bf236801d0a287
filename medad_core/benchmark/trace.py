"""When each part of a run was made, as a timeline for Perfetto (ui.perfetto.dev) or chrome://tracing.

One decision: the timeline is read from the run's own files: a part ends when its record is written, and began as long
before as the record says. So any finished run can be drawn, and drawing one costs a run nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from medad_core.errors import StoreError
from medad_core.run.run import Run
from medad_core.store import Stage, join
from medad_core.store.bookkeeping import MANIFEST, PARTS, PLAN
from medad_core.store.listing import FileStamp, list_files
from medad_core.store.records import record_name

_RESULTS = "results"


def trace_of(run: Run) -> bytes:
    """The timeline in the trace event format, times in µs since the run's first plan. Raises StoreError."""
    lanes = {name: _events(stage) for name, stage in run.stages.items()}
    begun = min(event["ts"] for events in lanes.values() for event in events)
    last = max(event["ts"] + event["dur"] for events in lanes.values() for event in events)
    written = [stamp.modified_ns / 1000 for name, stamp in list_files(run.uri).items() if name == "report.html"]
    lanes[_RESULTS] = [_event("evaluate", last, end) for end in written]
    events: list[dict[str, Any]] = []
    for lane, (name, spans) in enumerate(lanes.items(), 1):
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": lane, "args": {"name": name}})
        events += [{**span, "ts": round(span["ts"] - begun), "dur": round(span["dur"]), "tid": lane} for span in spans]
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})


def _events(stage: Stage) -> list[dict[str, Any]]:
    """The stage as a whole, from its plan to its manifest, and its parts within it."""
    own = list_files(stage.uri)
    if not {PLAN, MANIFEST} <= own.keys():
        raise StoreError(f"{stage.uri} is not finished; `medad screen` completes it")
    records = list_files(join(stage.uri, PARTS))
    events = [_event(stage.name, _us(own[PLAN]), _us(own[MANIFEST]))]
    for number, record in stage.records().items():
        end = _us(records[record_name(number)])
        facts = {"cases": record.done, "rows": record.rows, "bytes": record.bytes}
        events.append({**_event(f"part {number}", end - record.seconds * 1e6, end), "args": facts})
    return events


def _us(stamp: FileStamp) -> float:
    return stamp.modified_ns / 1000


def _event(name: str, begin: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "pid": 1, "ts": begin, "dur": end - begin}
