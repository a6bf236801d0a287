"""What worklist and follow-up of a cohort cost each night, by the number of its cases, without a single map.

    python tests/measure_cohort.py 100000 250          # so many cases, in batches of so many

One decision: every tenth patient has two examinations, in two batches, whose comparison is known from an earlier night;
all that a night reads of old batches is there, and nothing else.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from medad_core.config import Settings
from medad_core.facts.followup_rows import ON_GRID, FollowUp
from medad_core.facts.worklist import HEADS
from medad_core.inbox.followup import write_followup
from medad_core.inbox.records import Batch, Screening
from medad_core.inbox.worklist import write_worklist
from medad_core.media import write_csv
from medad_core.run.cohort import Cohort, Member, write_cohort
from medad_core.run.info import RunInfo, write_run_info
from medad_core.stages.followup import Followed, write_followed
from medad_core.store import CASES, write_table


def make_batch(folder: Path, number: int, size: int, batches: int) -> Batch:
    """The files of a batch that the lists of a cohort are made of."""
    run = folder / f"{number:05d}"
    run.mkdir(parents=True)
    names = [f"case-{number:05d}-{at:05d}" for at in range(size)]
    # The first tenth of the second half's batches are second visits of the first half's.
    half = batches // 2
    patients = [f"{(number - half) if at < size // 5 and number > half else number}-{at}" for at in range(size)]
    visit = "2" if number > half else "1"
    members = [
        Member(case_id=name, split="screen", patient=who, visit=visit, layout="made up")
        for name, who in zip(names, patients, strict=True)
    ]
    write_cohort(str(run), Cohort(root=str(folder), members=tuple(members)))
    write_run_info(str(run), RunInfo.of(Settings(), str(folder), {}))
    lines = [
        (at, name, who, "map only", f"{at / 7:.2f}", False, 1, "left", "0.123", "0.456", 0, 41, 77, "")
        for at, (name, who) in enumerate(zip(names, patients, strict=True), 1)
    ]
    (run / "worklist.csv").write_text(write_csv(HEADS, lines), encoding="utf-8")
    empty = {"split": "screen", "first_slice": 60, "last_slice": 100, "threshold": 0.5, "smallest_ml": 0.05}
    found = {"lesions": 1, "volume_ml": 1.0, "is_cut": False}
    rows = [{"case_id": name, "patient": who, **empty, **found} for name, who in zip(names, patients, strict=True)]
    write_table(str(run / "cases.parquet"), pa.Table.from_pylist(rows, schema=CASES))
    screened = {"batch": number, "revision": 1, "attempt": 1, "content": "", "state": "screened", "reason": None}
    return Batch(
        number=number,
        opened="",
        committed="",
        fingerprint={"model": "one"},
        predictions_sha256="",
        screenings=tuple(Screening(case_id=name, slices=41, **screened) for name in names),
        changed=(),
    )


def known_rows(size: int, batches: int) -> list[FollowUp]:
    """The comparisons of all second visits."""
    half = batches // 2
    limits = {"threshold": 0.5, "smallest_ml": 0.05, "ordered_by": "visit", "change_ml": 0.0}
    row = FollowUp("", ON_GRID, None, phantom=False, **limits)
    return [
        replace(
            row,
            patient=f"{number - half}-{at}",
            earlier=f"case-{number - half:05d}-{at:05d}",
            later=f"case-{number:05d}-{at:05d}",
            batch_earlier=number - half,
            batch_later=number,
        )
        for number in range(half + 1, batches + 1)
        for at in range(size // 5)
    ]


def main(cases: int, size: int) -> None:
    """Print the seconds of the processor for both lists: all of them in the first turn, then what a night adds."""
    batches = cases // size
    with tempfile.TemporaryDirectory(prefix="medad-") as scratch:
        folder = Path(scratch)
        committed = [make_batch(folder / "batches", number, size, batches) for number in range(1, batches + 1)]
        write_followed(str(folder), Followed(known_rows(size, batches)))

        def run_of(number: int) -> str:
            return f"{folder}/batches/{number:05d}"

        for turn in range(3):
            known = 0 if turn == 0 else batches - 1  # the first makes all anew, the others what the last night adds
            started = time.process_time()
            write_worklist(
                str(folder / "worklist.csv"), committed, known, lambda number: f"{folder}/batches/{number:05d}"
            )
            listed = time.process_time()
            write_followup(str(folder), committed, known, lambda number: f"{folder}/batches/{number:05d}")
            followed = time.process_time()
            seconds = f"worklist {listed - started:.1f} s, follow-up {followed - listed:.1f} s"
            print(f"turn {turn + 1}: {seconds}", flush=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{cases:,} cases in {batches} batches, peak {peak:.0f} MB")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
