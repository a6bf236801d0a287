"""Whose fault an error is, and what the supervisor does about it; each rule on a real stage, without Prefect."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd
import pytest
import torch
from prefect_harness import WORDS, break_case, write_case
from stores import FINGERPRINT, cases

from medad_core.config import load_settings
from medad_core.errors import (
    ConfigError,
    EngineError,
    InputError,
    MedadError,
    PartError,
    RowsError,
    StoreError,
)
from medad_core.faults.classify import Fault, can_heal, classify
from medad_core.faults.supervisor import Failure, OnFailure, Range, Supervisor
from medad_core.faults.suspect import Suspect, accuse
from medad_core.faults.travel import pack, unpack
from medad_core.faults.trial import Trial
from medad_core.run.rejected import QUARANTINED
from medad_core.stages import slices
from medad_core.stages.screen import screen
from medad_core.store import MAPS, Stage, stage_of


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


# --- whose fault an error is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        caused(StoreError("cannot write"), OSError(errno.ENOSPC, "No space left on device")),
        caused(PartError("maps part 1", "OSError"), OSError(errno.EROFS, "Read-only file system")),
        caused(PartError("maps part 1", "ImportError"), ImportError("no such package")),
        StoreError("the file is damaged"),
        ConfigError("a wrong key"),
        ConnectionResetError(),
        RuntimeError("while models were loaded"),
    ],
)
def test_what_is_not_a_parts_own_fault_stops_the_run(error):
    assert classify(error) is Fault.RUN and accuse(error, attempts=1) is error


@pytest.mark.parametrize(
    ("error", "unsure"),
    [
        (caused(PartError("maps part 1", "ValueError: odd"), ValueError("odd")), False),
        (RowsError("column p_yes has 1 nulls"), False),
        (caused(PartError("maps part 1", "OutOfMemoryError"), torch.OutOfMemoryError()), True),
        (
            caused(PartError("maps part 1", "RuntimeError"), RuntimeError("CUDA error: unspecified launch failure")),
            True,
        ),
        (caused(PartError("maps part 1", "MemoryError"), MemoryError()), True),
        (InputError("a volume that would not be read"), True),
        (EngineError("the engine broke down"), True),
    ],
)
def test_a_parts_own_fault_makes_it_suspect_and_a_full_machine_or_a_broken_engine_only_perhaps(error, unsure):
    suspect = accuse(error, attempts=2)
    assert (
        isinstance(suspect, Suspect)
        and suspect.unsure is unsure
        and suspect.attempts == 2
        and str(suspect) == str(error)
    )


def test_a_full_gpu_may_heal_and_an_engine_that_was_started_anew_already_may_not():
    assert can_heal(caused(PartError("maps part 1", "OutOfMemoryError"), torch.OutOfMemoryError()))
    assert not can_heal(caused(EngineError("broke down again"), OSError(errno.EIO, "Input/output error")))


def suspect(unsure: bool = False) -> Suspect:
    return Suspect("maps part 1: ValueError: odd", "ValueError: odd", unsure, 1)


# --- when the machine is in doubt ------------------------------------------------------------------------------------


def test_a_part_that_fails_among_others_is_quarantined():
    for unsure in (False, True):
        trial = Trial()
        trial.give_up(2, 2, suspect(unsure), made=2)
        (part,) = trial.verdict(made=3)
        assert (part.number, part.attempts, part.suspect.reason) == (2, 2, "ValueError: odd")


def test_the_only_part_is_quarantined_where_it_is_surely_at_fault():
    trial = Trial()
    trial.give_up(0, 2, suspect(), made=0)
    assert [part.number for part in trial.verdict(made=0)] == [0]
    trial = Trial()
    trial.give_up(0, 2, suspect(unsure=True), made=0)
    with pytest.raises(Suspect):
        trial.verdict(made=0)


def test_where_every_part_fails_none_is_quarantined():
    trial = Trial()
    for number in range(3):
        trial.give_up(number, 2, suspect(), made=0)
    with pytest.raises(Suspect):
        trial.verdict(made=0)


def test_where_the_machine_worked_a_moment_ago_every_part_of_a_stage_may_be_to_blame():
    trial = Trial(machine_is_well=True)
    for number in range(12):
        assert not trial.give_up(number, 2, suspect(unsure=True), made=0)
    assert len(trial.verdict(made=0)) == 12


def test_after_failures_in_a_row_the_machine_is_looked_at():
    trial = Trial()
    assert [trial.give_up(number, 2, suspect(unsure=True), made=7) for number in (7, 8, 9)] == [False, False, True]
    trial.trust()
    assert not trial.give_up(10, 2, suspect(unsure=True), made=7)


def test_failures_with_successes_between_them_are_the_parts_own():
    trial = Trial()
    assert not any(trial.give_up(number, 2, suspect(unsure=True), made=number // 2 + 1) for number in range(0, 60, 2))
    assert len(trial.verdict(made=31)) == 30 and not trial.in_doubt(made=31)


def test_the_machine_is_in_doubt_where_nothing_was_made_after_a_failure():
    trial = Trial()
    assert not trial.in_doubt(made=3)
    trial.give_up(3, 2, suspect(), made=3)
    assert trial.in_doubt(made=3) and not trial.in_doubt(made=4)
    trial.trust()
    assert not trial.in_doubt(made=3)


# --- what the supervisor does ----------------------------------------------------------------------------------------

PARTS = [(name,) for name in "abcdefgh"]


class Workshop:
    """An executor that writes real parts, and fails on purpose: `faults` has the errors of a part, one an attempt."""

    is_own_process = False

    def __init__(self, stage: Stage, faults: dict[int, Sequence[Exception | None]]) -> None:
        self.stage = stage
        self.faults = {number: list(errors) for number, errors in faults.items()}
        self.made: list[tuple[str, int]] = []  # how, and which, also where it failed

    def make(self, ranges: Sequence[Range], on_failure: OnFailure) -> list[Failure]:
        failures = []
        for numbers in ranges:
            error = next((error for number in numbers if (error := self._make("beside", number))), None)
            if error is not None:
                failures.append(Failure(numbers, error))
                on_failure(failures[-1])
        return failures

    def make_alone(self, number: int) -> Failure | None:
        error = self._make("alone", number)
        return None if error is None else Failure([number], error)

    def make_apart(self, number: int) -> Failure | None:
        error = self._make("apart", number)
        return None if error is None else Failure([number], error)

    def _make(self, how: str, number: int) -> Exception | None:
        self.made.append((how, number))
        errors = self.faults.get(number)
        error = errors.pop(0) if errors else None
        if error is None:
            self.stage.write_part(number, cases(*PARTS[number]))
        return error


@pytest.fixture
def stage(tmp_path) -> Stage:
    stage = Stage(str(tmp_path), "maps", MAPS)
    stage.prepare(FINGERPRINT, PARTS)
    return stage


def supervised(
    stage: Stage, faults: dict, ranges: Sequence[Range] = ([0, 1, 2, 3], [4, 5, 6, 7]), **options
) -> Workshop:
    workshop = Workshop(stage, faults)
    Supervisor(stage, workshop, **options).make(ranges)
    return workshop


def quarantined(stage: Stage) -> dict[int, str]:
    return {number: record.failed[0].reason for number, record in stage.records().items() if record.failed}


ODD = suspect()
MEMORY = suspect(unsure=True)
ALWAYS = 99


def test_parts_without_faults_are_made_once_and_in_ranges(stage):
    assert supervised(stage, {}).made == [("beside", number) for number in range(8)]
    assert stage.finish().done == 8


def test_a_part_that_went_wrong_by_chance_is_tried_alone_and_the_rest_of_its_range_is_made(stage):
    workshop = supervised(stage, {1: [ODD]})
    assert workshop.made.count(("alone", 1)) == 1 and quarantined(stage) == {}
    assert stage.finish().done == 8


def test_a_part_that_goes_wrong_always_is_quarantined_with_its_attempts_and_the_rest_is_made(stage):
    workshop = supervised(stage, {2: [ODD] * ALWAYS}, tries_alone=2)
    assert workshop.made.count(("alone", 2)) == 2
    assert quarantined(stage) == {2: f"{QUARANTINED}3 attempts: ValueError: odd"}
    assert stage.finish().done == 7


def test_an_error_of_the_run_stops_it_at_once_and_what_has_not_begun_is_left(stage):
    with pytest.raises(ConfigError):
        supervised(stage, {0: [ConfigError("a wrong key")]})
    assert stage.pending() == list(range(8)) and quarantined(stage) == {}


def test_an_error_of_the_run_while_a_part_is_tried_alone_stops_it_too(stage):
    with pytest.raises(StoreError):
        supervised(stage, {0: [ODD, StoreError("no space left")]}, tries_alone=3)
    assert quarantined(stage) == {}


def test_a_worker_that_dies_once_costs_nothing_but_making_its_parts_again(stage):
    workshop = supervised(stage, {1: [BrokenProcessPool()]})
    assert "alone" not in {how for how, _ in workshop.made}
    assert stage.finish().done == 8


def test_a_part_that_kills_its_worker_twice_is_tried_alone_and_quarantined(stage):
    supervised(stage, {1: [BrokenProcessPool()] * ALWAYS})
    assert quarantined(stage) == {1: f"{QUARANTINED}3 attempts: its worker process died"}
    assert stage.finish().done == 7


def test_a_part_that_ended_this_process_before_is_made_apart_first(stage):
    stage.begin(5)
    workshop = Workshop(stage, {})
    workshop.is_own_process = True
    Supervisor(stage, workshop).make([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert workshop.made[0] == ("apart", 5) and ("beside", 5) not in workshop.made
    assert stage.finish().done == 8


def test_a_machine_that_breaks_down_is_found_out_by_a_part_that_went_well_before(stage):
    # All is well until part 3; from then on the machine fails, whatever is made.
    broken = {number: [MEMORY] * ALWAYS for number in range(3, 8)} | {2: [None, *[MEMORY] * ALWAYS]}
    with pytest.raises(Suspect):
        supervised(stage, broken, [[number] for number in range(8)])
    assert quarantined(stage) == {}


def test_the_last_part_is_quarantined_once_a_good_one_was_made_again(stage):
    workshop = supervised(stage, {7: [MEMORY] * ALWAYS})
    assert ("alone", 6) in workshop.made and list(quarantined(stage)) == [7]
    assert stage.finish().done == 7


def test_a_fault_of_every_part_stops_the_run_and_quarantines_nothing(stage):
    with pytest.raises(Suspect):
        supervised(stage, {number: [ODD] * ALWAYS for number in range(8)})
    assert quarantined(stage) == {}


# --- the plain loop --------------------------------------------------------------------------------------------------


def test_a_plain_loop_quarantines_as_a_flow_does(tmp_path, monkeypatch):
    data = tmp_path / "data"
    for number in range(4):
        write_case(data, f"BraTS2021_{number:05d}", seed=number)
    break_case(data, "BraTS2021_00002")
    read_slices = slices.read_slices

    def read_or_fail(case, settings):
        if case.case_id == "BraTS2021_00001":
            raise RuntimeError("poisoned")
        return read_slices(case, settings)

    monkeypatch.setattr(slices, "read_slices", read_or_fail)
    results = screen(str(data), str(tmp_path / "run"), load_settings(None, WORDS))
    reasons = {case_id: reason for case_id, _, reason in results.rejected}
    assert reasons["BraTS2021_00001"] == f"{QUARANTINED}2 attempts: RuntimeError: poisoned"
    assert "truncated" in reasons["BraTS2021_00002"]
    assert set(pd.read_parquet(results.predictions)["case_id"]) == {"BraTS2021_00000", "BraTS2021_00003"}
    assert not list(Path(tmp_path / "run").rglob("*.begun"))
    monkeypatch.undo()
    (tmp_path / "run" / "slices" / "_parts" / "00001.json").unlink()
    results = screen(str(data), str(tmp_path / "run"), load_settings(None, WORDS))
    assert [case_id for case_id, _, _ in results.rejected] == ["BraTS2021_00002"]
    assert stage_of(str(tmp_path / "run"), "slices").finish().done == 3, "the part is tried again, and is well now"


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_keeps_its_causes_on_its_way_to_another_process():
    disk = StoreError("cannot write")
    disk.__cause__ = OSError(5, "Input/output error")
    arrived = unpack(pack(disk))
    assert type(arrived) is StoreError and can_heal(arrived) and str(arrived.__cause__) == str(disk.__cause__)
    suspect = unpack(pack(accuse(PartError("maps part 1", "odd"), attempts=2)))
    assert (suspect.reason, suspect.unsure, suspect.attempts) == ("odd", False, 2)
    odd = unpack(pack(Odd(1, 2)))  # pickle would fail where it arrives
    assert type(odd) is MedadError and str(odd) == "Odd: 1 and 2"
