"""What a night costs a cohort that has many cases already, and what a run in a bucket costs beside its work.

    python tests/measure_scale.py night 100000 50          # so many cases, screened 50 a night
    python tests/measure_scale.py bucket 1251 100000       # runs of so many cases in a real S3 server on this machine

One decision: models are left out, and what they would have written is made up: 41 rows a case. What is timed is what
`medad screen` calls. The S3 server is moto, in Python and with one thread: times in a bucket are those of this server.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure_cohort import known_rows, make_batch

from medad_core.inbox.folder import COMMIT, CohortFolder
from medad_core.inbox.records import Stamp, StoredFile, Study
from medad_core.inbox.scan import InboxScan
from medad_core.inbox.screening import outcome_of
from medad_core.stages.followup import Followed, write_followed
from medad_core.store import PREDICTIONS, sha256_file, write_table
from medad_core.store.listing import AT_ONCE

SLICES = 41
ONE_BY_ONE = 300


@contextmanager
def timed(name: str) -> Iterator[None]:
    started, busy = time.perf_counter(), time.process_time()
    yield
    seconds = f"{time.perf_counter() - started:.1f} s ({time.process_time() - busy:.1f} s of the processor)"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name}: {seconds}, peak so far {peak:.0f} MB", flush=True)


def predictions_of(names: list[str]) -> pa.Table:
    """Rows as a batch has them, of no meaning."""
    rows = len(names) * SLICES
    generator = np.random.default_rng(rows)
    columns = {}
    for field in PREDICTIONS:
        if field.name in {"case_id", "patient"}:
            columns[field.name] = pa.array(np.repeat(names, SLICES))
        elif field.name == "slice_index":
            columns[field.name] = pa.array(np.tile(np.arange(60, 60 + SLICES, dtype=np.int32), len(names)))
        elif pa.types.is_floating(field.type):
            columns[field.name] = pa.array(generator.random(rows), field.type)
        elif pa.types.is_boolean(field.type):
            columns[field.name] = pa.array(generator.random(rows) < 0.5)
        elif pa.types.is_integer(field.type):
            columns[field.name] = pa.array(generator.integers(0, 2, rows), field.type)
        else:
            text = "Yes, there is an anomaly at the bottom of the image."
            columns[field.name] = pa.array([text] * rows).cast(field.type)
    return pa.table(columns, schema=PREDICTIONS)


def study_of(name: str) -> Study:
    """What a scan says of a case of which it read nothing again."""
    stamp = Stamp(size=2_000_000, mtime_ns=1, ctime_ns=1, inode=1)
    files = [
        StoredFile(
            path=f"{name}/{name}_{role}.nii.gz", channel=None, stamp=stamp, sha256=sha256(name.encode()).hexdigest()
        )
        for role in ("flair", "seg")
    ]
    return Study(case_id=name, volume=files[0], mask=files[1], patient=name, layout="made up")


def make_night(cohort: CohortFolder, number: int, size: int, nights: int) -> list[Study]:
    """A committed batch: all its files but the stages. Returns its studies."""
    batch = make_batch(Path(cohort.uri) / "batches", number, size, nights)
    run = cohort.run_of(number)
    studies = [study_of(screening.case_id) for screening in batch.screenings]
    write_table(f"{run}/predictions.parquet", predictions_of([study.case_id for study in studies]), PREDICTIONS)
    batch = batch.replace(
        predictions_sha256=sha256_file(f"{run}/predictions.parquet"),
        screenings=tuple(
            screening.replace(content=study.content) for screening, study in zip(batch.screenings, studies, strict=True)
        ),
    )
    (Path(run) / COMMIT).write_bytes(batch.to_json())
    return studies


def look(cohort: CohortFolder, studies: Sequence[Study]) -> InboxScan:
    """What a command does before its batch, but the scan itself."""
    cohort.reconcile()
    cohort.known_files()
    scan = InboxScan(tuple(studies), {}, {})
    cohort.write_ledger("inbox", scan)
    cohort.pending(scan, attempts=2)
    return scan


def night(cases: int, size: int) -> None:
    """Time what the command does on a cohort of `cases` beside scan and stages: on no new case, and on `size` ones."""
    nights = cases // size
    with tempfile.TemporaryDirectory(prefix="medad-") as scratch:
        cohort = CohortFolder(scratch)
        studies = [study for number in range(1, nights + 1) for study in make_night(cohort, number, size, nights)]
        write_followed(scratch, Followed(known_rows(size, nights)))
        with timed(f"{cases:,} cases, the first view"):
            cohort.reconcile()
        cohort.write_ledger("inbox", InboxScan(tuple(studies), {}, {}))
        with timed("nothing new"):
            outcome_of(cohort, (), look(cohort, studies))
        new = [study_of(f"case-{nights + 1:05d}-{at:05d}") for at in range(size)]
        with timed(f"a night of {size} more, until its batch"):
            scan = look(cohort, [*studies, *new])
        make_night(cohort, nights + 1, size, nights)
        with timed("and after it: view, worklist, follow-up, ledger"):
            cohort.write_view()
            cohort.write_ledger("inbox", scan)
            outcome_of(cohort, (), scan)


def bucket(cases: int) -> None:
    """Time a finished run of `cases` in a bucket: plan, records, what is pending, the manifest."""
    from buckets import BUCKET, client_of, proxy_to, s3_server, variables

    from medad_core.store import MAPS, Item, Stage, objects

    with s3_server() as port, proxy_to(port) as proxy:
        os.environ.update(variables(f"http://127.0.0.1:{port}"))
        client_of(port).create_bucket(Bucket=BUCKET)
        objects.forget_stores()
        names = [f"case-{number:06d}" for number in range(cases)]
        parts = [tuple(names[at : at + 4]) for at in range(0, cases, 4)]
        uri = f"s3://{BUCKET}/run"
        stage = Stage(uri, "maps", MAPS)
        with timed(f"{cases:,} cases in a bucket, plan"):
            stage.prepare({"model": "none"}, parts)

        def write(number: int) -> None:
            stage.write_part(number, [], failed=[Item(key=key, reason="made up") for key in parts[number]])

        few = min(ONE_BY_ONE, len(parts))
        with timed(f"{few} parts of no rows, written one after another"):
            for number in range(few):
                write(number)
        with timed(f"the other parts, {AT_ONCE} at a time"), ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(write, range(few, len(parts))))
        os.environ["AWS_ENDPOINT_URL"] = proxy.url  # counts the requests from here on
        objects.forget_stores()
        for what, look in (("finish", stage.finish), ("pending", Stage(uri, "maps", MAPS).pending)):
            before = len(proxy.asked)
            with timed(what):
                look()
            print(f"  {len(proxy.asked) - before} requests")


if __name__ == "__main__":
    kind, *numbers = sys.argv[1:]
    if kind == "night":
        night(int(numbers[0]), int(numbers[1]))
    else:
        for count in numbers:
            bucket(int(count))
