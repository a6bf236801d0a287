"""`RUN/_evaluated.json`: what the results of a run were made of, so that a finished run is not evaluated again.

One decision: it is written after all results and removed before the first of them. Results count as those of the run
only while what they were made of (stages, cohort, settings, this code) and the files themselves are as it says; whoever
rewrites one of them without changing what it says (`rewritten`) says so here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import msgspec

from medad_core.config import settings_to_yaml
from medad_core.environment import code_sha256, package_versions
from medad_core.errors import StoreError
from medad_core.run.cohort import NAME as COHORT
from medad_core.run.info import EVALUATED
from medad_core.run.run import Run
from medad_core.store import join, write_bytes
from medad_core.store.files import read_bytes, remove
from medad_core.store.listing import list_files
from medad_core.store.records import Record

STAGES = ("slices", "maps", "answers")  # that results are computed from


class Evaluated(Record, frozen=True):
    """`made_of` is a hash, `files` has the state of every result by name; the others are counts for who asks again."""

    made_of: str
    files: dict[str, str]
    slices: int
    cases: int
    followed: int


def note_evaluated(run: Run, results: Collection[str], slices: int, cases: int, followed: int) -> None:
    """Record that the results of the run are written: those of the files `results` that are there. Raises StoreError.

    rejected.csv and warnings.csv are none of them: every command writes them.
    """
    files = _states(run.uri, results)
    record = Evaluated(made_of=_made_of(run), files=files, slices=slices, cases=cases, followed=followed)
    write_bytes(join(run.uri, EVALUATED), record.to_json())


def forget_evaluated(run: str) -> None:
    """Say that results of the run in the folder `run` are about to be written. Raises StoreError."""
    remove(join(run, EVALUATED))


def find_evaluated(run: Run) -> Evaluated | None:
    """The record, if the results are those of the finished stages, by these settings and this code; else None.

    No part is read. Raises StoreError if a plan or a record is damaged.
    """
    record = _stored(run.uri)
    stages = [run.stage(name) for name in STAGES]
    if record is None or any(stage.find_plan() is None for stage in stages):
        return None
    is_finished = all(stage.is_finished() for stage in stages)
    return record if is_finished and record.made_of == _made_of(run) and _has_files(run.uri, record) else None


@contextmanager
def rewritten(run: str) -> Iterator[None]:
    """Results of the run in the folder `run` are written again in the block and say the same: they count as before."""
    record = _stored(run)
    is_valid = record is not None and _has_files(run, record)
    yield
    if record is not None and is_valid:
        write_bytes(join(run, EVALUATED), record.replace(files=_states(run, record.files)).to_json())


def _stored(run: str) -> Evaluated | None:
    data = read_bytes(join(run, EVALUATED))
    try:
        return None if data is None else Evaluated.from_json(data)
    except ValueError:
        return None  # damaged: the run is evaluated again


def _made_of(run: Run) -> str:
    manifests = [run.stage(name).require_finished() for name in STAGES]
    inputs = sorted(list_files(run.inputs.uri).items())
    cohort = read_bytes(join(run.uri, COHORT))
    if cohort is None:
        raise StoreError(f"{run.uri} has no {COHORT}; bring it back from a backup, or screen into another folder")
    digest = hashlib.sha256()
    for content in (
        code_sha256().encode(),
        msgspec.json.encode(package_versions()),
        settings_to_yaml(run.settings).encode(),
        cohort,
        msgspec.json.encode(manifests),
        msgspec.json.encode([(name, tuple(stamp)) for name, stamp in inputs]),
    ):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _has_files(run: str, record: Evaluated) -> bool:
    return record.files == _states(run, record.files)


def _states(run: str, names: Collection[str]) -> dict[str, str]:
    return {name: str(tuple(stamp)) for name, stamp in list_files(run).items() if name in names}
