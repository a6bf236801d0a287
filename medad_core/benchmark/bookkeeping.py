"""What a run costs beside its work, by the number of its cases: `medad benchmark bookkeeping`.

One decision: the run is made up, with the plans, records, manifests and cohort of a finished one and parts of a few
bytes, so that nothing but bookkeeping is measured; each measurement is a process of its own, because memory is its
peak. The very functions are timed that `medad status`, a resumed `medad screen` and the stages call. Models are left
out: their files are the same however many cases there are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from medad_core.benchmark.memory import peak_mb
from medad_core.benchmark.spread import Spread
from medad_core.config import Settings
from medad_core.data.discovery import discover
from medad_core.data.reads import FileRead, stamp_of
from medad_core.errors import MedadError
from medad_core.run.cohort import Cohort, File, Member, find_stored, write_cohort
from medad_core.run.gather import open_cohort
from medad_core.run.info import RunInfo, write_run_info
from medad_core.run.inputs import FOLDER, Inputs, PartInputs
from medad_core.run.rejected import write_rejected
from medad_core.run.staleness import compare_inputs
from medad_core.store import MAPS, PART_STAGES, PartRecord, Plan, Stage, open_stages, sha256_file, stage_of, write_table
from medad_core.store.bookkeeping import MANIFEST, PARTS, PLAN
from medad_core.store.planning import make_plan
from medad_core.store.records import manifest_of, part_name, record_name
from medad_core.surroundings.processes import piped_environment, python_command

CASES = (1_000, 10_000, 100_000)
CASES_PER_PART = 4
SLICES = 41
READ = 200  # cases that are read one by one
READABLE = 50  # parts with rows in them
FINGERPRINT = {"model": "none"}


@dataclass(frozen=True)
class Measured:
    """One process. Seconds; milliseconds of reading one case; MB of peak memory."""

    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class BookkeepingSize:
    """What a run of so many cases costs.

    Seconds (`read_case_ms`: milliseconds), `status_mb` the peak memory of `status`.

    `discover_s` is the walk through DATA, `open_s` everything else before a finished run is found to be finished,
    `hash_s` of it the hash of every part.
    """

    cases: int
    parts: int
    status_s: Spread
    status_mb: Spread
    discover_s: Spread
    open_s: Spread
    hash_s: Spread
    read_case_ms: Spread


@dataclass(frozen=True)
class BookkeepingReport:
    """`growth`: by measurement, time a case at the largest size over that at the smallest; 1 is linear."""

    sizes: tuple[BookkeepingSize, ...]
    growth: dict[str, float]


def benchmark_bookkeeping(
    cases: Sequence[int] = CASES, turns: int = 3, progress: Callable[[str], None] = print
) -> BookkeepingReport:
    """Make up a run of each size and measure it `turns` times. Raises MedadError where a process fails."""
    sizes = []
    for count in cases:
        with tempfile.TemporaryDirectory(prefix="medad-") as scratch:
            progress(f"making up a run of {count:,} cases")
            make_up(Path(scratch), count)
            sizes.append(_measure_size(Path(scratch), count, turns, progress))
    return BookkeepingReport(tuple(sizes), _growth(sizes))


def _measure_size(scratch: Path, cases: int, turns: int, progress: Callable[[str], None]) -> BookkeepingSize:
    measured: dict[str, list[Measured]] = {name: [] for name in MEASUREMENTS}
    for turn in range(turns):
        for name, results in measured.items():
            progress(f"{cases:,} cases, {name}, turn {turn + 1} of {turns}")
            results.append(_in_process(name, scratch))

    def seconds(name: str, scale: float = 1.0) -> Spread:
        return Spread.of([scale * result.seconds for result in measured[name]])

    return BookkeepingSize(
        cases=cases,
        parts=-(-cases // CASES_PER_PART),
        status_s=seconds("status"),
        status_mb=Spread.of([result.peak_mb for result in measured["status"]]),
        discover_s=seconds("discover"),
        open_s=seconds("open"),
        hash_s=seconds("hash"),
        read_case_ms=seconds("read", 1000.0),
    )


def _growth(sizes: Sequence[BookkeepingSize]) -> dict[str, float]:
    first = sizes[0]
    last = sizes[-1]
    ratio = last.cases / first.cases
    return {
        "status": last.status_s.median / first.status_s.median / ratio,
        "discover": last.discover_s.median / first.discover_s.median / ratio,
        "open": last.open_s.median / first.open_s.median / ratio,
    }


# --- the run ---------------------------------------------------------------------------------------------------------


def make_up(scratch: Path, cases: int) -> None:
    """Make up `scratch/data` with empty volumes and masks, and `scratch/run`, a finished run of them."""
    case_ids = [f"BraTS2021_{number:06d}" for number in range(cases)]
    members = [_make_case(scratch / "data", case_id) for case_id in case_ids]
    run = str(scratch / "run")
    write_cohort(run, Cohort(root=str((scratch / "data").resolve()), members=tuple(members)))
    write_run_info(run, RunInfo.of(Settings(), str(scratch / "data"), {}))
    parts = [case_ids[start : start + CASES_PER_PART] for start in range(0, cases, CASES_PER_PART)]
    upstream: dict[str, str] = {}
    for name, schema in PART_STAGES.items():
        plan = make_plan(name, {**FINGERPRINT, **upstream}, schema, parts)
        _make_stage(Path(run) / name, plan)
        if name == "slices":
            _make_inputs(scratch, members, plan)
        upstream = {name: plan.fingerprint_sha256}


def _make_case(data: Path, case_id: str) -> Member:
    folder = data / case_id
    folder.mkdir(parents=True)
    files = []
    for kind in ("flair", "seg"):
        name = f"{case_id}_{kind}.nii.gz"
        (folder / name).touch()
        files.append(File(path=f"{case_id}/{name}", channel=None))
    return Member(case_id=case_id, split="train", volume=files[0], mask=files[1])


def _make_stage(folder: Path, plan: Plan) -> None:
    """Files as the store writes them, without its fsyncs."""
    (folder / PARTS).mkdir(parents=True)
    (folder / PLAN).write_bytes(plan.to_json())
    readable = set(_readable(len(plan.parts))) if plan.stage == "maps" else set()
    records = []
    for part in plan.parts:
        file = folder / part_name(part.number)
        if part.number in readable:
            write_table(str(file), _rows(part.inputs))
        else:
            file.write_bytes(part.number.to_bytes(8, "little"))
        record = PartRecord(
            number=part.number,
            rows=SLICES * len(part.inputs),
            bytes=file.stat().st_size,
            sha256=sha256_file(str(file)),
            seconds=1.0,
            requested=len(part.inputs),
            done=len(part.inputs),
            skipped=(),
            failed=(),
            plan_sha256=plan.sha256,
        )
        (folder / PARTS / f"{part.number:05d}.json").write_bytes(record.to_json())
        records.append(record)
    time.sleep(0.05)  # a manifest is written after its records, by the clock of the filesystem too
    (folder / MANIFEST).write_bytes(manifest_of(plan, records).to_json())


def _make_inputs(scratch: Path, members: Sequence[Member], plan: Plan) -> None:
    """Inputs as the stage `slices` writes them, with the stamps of the made-up files."""
    folder = scratch / "run" / plan.stage / FOLDER
    folder.mkdir()
    by_case = {member.case_id: member for member in members}
    for part in plan.parts:
        cases = {case_id: _reads_of(scratch / "data", by_case[case_id]) for case_id in part.inputs}
        inputs = PartInputs(plan_sha256=plan.sha256, cases=cases)
        (folder / record_name(part.number)).write_bytes(inputs.to_json())


def _reads_of(data: Path, member: Member) -> tuple[FileRead, ...]:
    files = [file.path for file in (member.volume, member.mask) if file is not None]
    stats = [(data / path).stat() for path in files]
    return tuple(
        FileRead(path=path, size=facts.st_size, stamp=stamp_of(facts), read=0, sha256="0" * 64)
        for path, facts in zip(files, stats, strict=True)
    )


def _readable(parts: int) -> list[int]:
    return list(range(0, parts, max(1, parts // READABLE)))


def _rows(case_ids: Sequence[str]) -> pa.Table:
    """Rows of maps, of 2 kB each."""
    count = SLICES * len(case_ids)
    grid = np.zeros((4, 16, 16), np.float16).tobytes()
    columns = {
        "case_id": np.repeat(list(case_ids), SLICES),
        "slice_index": np.tile(np.arange(60, 60 + SLICES), len(case_ids)),
        "taps": [4] * count,
        "grid_height": [16] * count,
        "grid_width": [16] * count,
        "grid": [grid] * count,
        "anomaly_score": [0.5] * count,
        "peak_y": [0.0] * count,
        "peak_x": [0.0] * count,
        "embedding": pa.nulls(count, pa.binary()),
    }
    return pa.table(columns).cast(MAPS)


# --- what is measured ------------------------------------------------------------------------------------------------


def _status(scratch: Path) -> float:
    started = time.perf_counter()
    for name in PART_STAGES:
        if not stage_of(str(scratch / "run"), name).progress().finished:
            raise MedadError(f"the made-up stage {name} is not finished")
    return time.perf_counter() - started


def _discover(scratch: Path) -> float:
    started = time.perf_counter()
    discover(scratch / "data")
    return time.perf_counter() - started


def _open(scratch: Path) -> float:
    """What a resumed run does until every stage has said that nothing is pending, its models aside."""
    run = str(scratch / "run")
    discovery = discover(scratch / "data")
    started = time.perf_counter()
    root = (scratch / "data").resolve()
    cohort = open_cohort(run, find_stored(run), root, discovery, Settings().data, is_dealt=True)
    stages = open_stages(run)
    compared = compare_inputs(Inputs(run), stages, cohort.root)
    if compared.changed or compared.renewed or compared.unknown:
        raise MedadError("the made-up files are not those of the made-up run")
    upstream: dict[str, str] = {}
    parts: Sequence[Sequence[str]] = _parts_of(cohort)
    cohort.content.encode()  # the plan of slices has it
    for name, stage in stages.items():
        plan = stage.prepare({**FINGERPRINT, **upstream}, parts)
        if stage.pending() or stage.manifest() is None:
            raise MedadError(f"the made-up stage {name} is not finished")
        write_rejected(run, stages.values())
        stage.progress()
        parts = stage.finished_inputs()
        upstream = {name: plan.fingerprint_sha256}
    return time.perf_counter() - started


def _parts_of(cohort: Cohort) -> list[list[str]]:
    case_ids = [member.case_id for member in cohort.members]
    return [case_ids[start : start + CASES_PER_PART] for start in range(0, len(case_ids), CASES_PER_PART)]


def _hash(scratch: Path) -> float:
    """Seconds of hashing every part once, which opening a finished run does."""
    started = time.perf_counter()
    for name in PART_STAGES:
        for file in (scratch / "run" / name).glob("part-*.parquet"):
            sha256_file(str(file))
    return time.perf_counter() - started


def _read(scratch: Path) -> float:
    """Seconds of reading one case, of a stage that is open."""
    stage: Stage = stage_of(str(scratch / "run"), "maps")
    parts = stage.plan().parts
    case_ids = [case_id for number in _readable(len(parts)) for case_id in parts[number].inputs]
    stage.read_case(case_ids[0])  # opens the books
    chosen = np.random.default_rng(0).choice(case_ids, READ)
    started = time.perf_counter()
    for case_id in chosen:
        if len(stage.read_case(str(case_id))) != SLICES:
            raise MedadError(f"{case_id} has other rows than were made up")
    return (time.perf_counter() - started) / READ


MEASUREMENTS = {"status": _status, "discover": _discover, "open": _open, "hash": _hash, "read": _read}


def _in_process(name: str, scratch: Path) -> Measured:
    command = python_command("-m", "medad_core.benchmark.bookkeeping", name, str(scratch))
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=piped_environment(), check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise MedadError(f"measuring {name} failed: {lines[-1]}")
    return Measured(**json.loads(done.stdout))


if __name__ == "__main__":
    result = Measured(MEASUREMENTS[sys.argv[1]](Path(sys.argv[2])), peak_mb())
    sys.stdout.write(json.dumps(asdict(result)) + "\n")
