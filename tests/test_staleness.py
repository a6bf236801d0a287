"""Volumes and masks that change under a run: noticed, named, and made again on request, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import gzip
import os
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from prefect_harness import WORDS, break_case, write_case
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.config import Settings, load_settings
from medad_core.data import nifti, reads
from medad_core.errors import InputError, StoreError
from medad_core.llm.engine import open_engine
from medad_core.llm.protocol import Engine
from medad_core.run import staleness
from medad_core.run.gather import find_cohort
from medad_core.run.info import read_run_info
from medad_core.run.inputs import Inputs
from medad_core.run.run import Run
from medad_core.stages import answers, maps, prompts, slices
from medad_core.stages.complete import plan_stage
from medad_core.stages.evaluate import evaluate_run
from medad_core.stages.loading import load_converter_of, load_map_models, load_prompt_of
from medad_core.store import PART_STAGES, bookkeeping, stage_of

pytest_plugins = ("prefect_harness",)
CASES = [f"BraTS2021_{number:05d}" for number in range(4)]
# With 16 × 16 patches a map is the same to the bit in batches of any size; with 18 × 18 it may differ in the last one.
WEIGHTS = Path(__file__).parent / "versions" / "0.1.0" / "weights"


def settings_of(cases_per_part: int) -> Settings:
    words = ["data.last_slice=60", f"data.cases_per_part={cases_per_part}", f"models.weights={WEIGHTS}"]
    return load_settings(None, [*WORDS, *words])


ONE, TWO = settings_of(1), settings_of(2)


def make_data(root: Path) -> None:
    """Four cases; the volume of the last one is not compressed."""
    for number, case_id in enumerate(CASES):
        write_case(root, case_id, seed=number, tumour=range(60 + number % 2, 64))
    packed = root / CASES[3] / f"{CASES[3]}_flair.nii.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()


def file_of(data: Path, number: int, kind: str = "flair") -> Path:
    (path,) = (data / CASES[number]).glob(f"*_{kind}.nii*")
    return path


def other_case(folder: Path, number: int, kind: str) -> bytes:
    """Plain bytes of the same length as that of case `number`, of another patient."""
    write_case(folder, CASES[number], seed=90 + number, tumour=range(61, 63))
    return gzip.decompress((folder / CASES[number] / f"{CASES[number]}_{kind}.nii.gz").read_bytes())


def correct(data: Path, number: int, kind: str = "flair") -> None:
    """Replace a file by that of another patient, in place; a plain file keeps its size."""
    path = file_of(data, number, kind)
    plain = other_case(data.parent / f"other-{kind}-{number}", number, kind)
    with path.open("r+b") as stream:
        stream.truncate(0)
        stream.write(gzip.compress(plain) if path.suffix == ".gz" else plain)


@functools.cache
def loaded() -> tuple:
    """The models of every run here, loaded once: encoder and decoder, converter, engine."""
    prompt, converter = load_prompt_of(ONE), load_converter_of(ONE)
    positions = prompt.length(len(converter.knowledge_tokens()), converter.tokens)
    return load_map_models(ONE), converter, open_engine(prompt, ONE.llm, positions, "cpu")


def answer(run: Run, numbers: Sequence[int], engine: Engine) -> None:
    with answers.opened(run, engine) as speaker:
        answers.run_parts(run, numbers, speaker=speaker)


def complete(run: Run, stages: Sequence[str] = tuple(PART_STAGES)) -> None:
    """What `screen` does, up to the evaluation, with loaded models."""
    models, converter, engine = loaded()
    made = {
        "slices": lambda numbers: slices.run_parts(run, numbers),
        "maps": lambda numbers: maps.run_parts(run, numbers, models=models),
        "prompts": lambda numbers: prompts.run_parts(run, numbers, converter=converter),
        "answers": lambda numbers: answer(run, numbers, engine),
    }
    for name in stages:
        plan_stage(run, name)
        made[name](run.stage(name).pending())
        run.stage(name).finish()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Data, a run of one case a part, and one of two cases a part. Tests take copies of them."""
    folder = tmp_path_factory.mktemp("finished")
    make_data(folder / "data")
    complete(opened(folder))
    complete(opened(folder, name="two"))
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    for name in ("data", "one", "two"):
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path


def opened(folder: Path, refresh: bool = False, name: str = "one") -> Run:
    return Run.open(str(folder / "data"), str(folder / name), ONE if name == "one" else TWO, refresh)


def bytes_below(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def pending_of(run: Path) -> dict[str, list[int]]:
    return {name: stage_of(str(run), name).pending() for name in PART_STAGES}


def parts_of(run: Path) -> dict[str, tuple[int, int]]:
    """When each part was written."""
    files = (path for name in PART_STAGES for path in (run / name).glob("part-*.parquet"))
    return {str(path.relative_to(run)): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def made_again(before: dict, after: dict) -> set[str]:
    return {name for name in after if before.get(name) != after[name]}


def assert_is_fresh(folder: Path, name: str = "one", stages: Sequence[str] = ("slices", "maps")) -> None:
    """The rows are those of a run that was made of the data as they are now; the splits stay as they were dealt."""
    complete(Run.open(str(folder / "data"), str(folder / "fresh"), ONE if name == "one" else TWO), stages)
    for stage in stages:
        ours, fresh = (stage_of(str(folder / run), stage).read().to_pandas() for run in (name, "fresh"))
        ours, fresh = (rows.drop(columns="split", errors="ignore") for rows in (ours, fresh))
        pd.testing.assert_frame_equal(ours, fresh)


def look(folder: Path, name: str, refresh: bool = False) -> None:
    """What opening a run does about its files, without a look at the models."""
    run = Run.reopen(str(folder / name))
    run.cohort = run.cohort.at(str(folder / "data"))
    run.settle_inputs(refresh)


def assert_refused(folder: Path, *numbers: int, name: str = "one") -> None:
    """The plain command names exactly these cases, and writes nothing."""
    before = bytes_below(folder / name)
    with pytest.raises(StoreError, match="--refresh") as raised:
        opened(folder, name=name)
    message = str(raised.value)
    assert "\n" not in message and "another --out" in message
    assert [case_id for case_id in CASES if case_id in message] == [CASES[number] for number in numbers]
    assert bytes_below(folder / name) == before


@pytest.mark.parametrize(
    ("number", "kind"), [(0, "flair"), (0, "seg"), (3, "flair")], ids=["volume", "mask", "plain, same size"]
)
def test_a_corrected_file_is_refused_by_name_and_only_its_case_is_made_again_on_request(copied, number, kind):
    old = file_of(copied / "data", number, kind).stat().st_size
    correct(copied / "data", number, kind)
    assert (file_of(copied / "data", number, kind).stat().st_size == old) == (number == 3)
    assert_refused(copied, number)
    before = parts_of(copied / "one")
    complete(opened(copied, refresh=True))
    again = made_again(before, parts_of(copied / "one"))
    assert again == {f"{name}/part-{number:05d}.parquet" for name in PART_STAGES}
    assert_is_fresh(copied, stages=tuple(PART_STAGES))
    assert opened(copied).stage("slices").pending() == [], "the new content is the one that is known now"


def test_a_file_that_was_touched_or_replaced_by_its_own_bytes_is_unchanged(copied):
    os.utime(file_of(copied / "data", 0))
    for number in (1, 3):
        path = file_of(copied / "data", number)
        backup = path.read_bytes()
        path.unlink()
        path.write_bytes(backup)
    opened(copied)
    assert not any(pending_of(copied / "one").values())


def test_files_with_their_stamps_are_not_opened(copied, monkeypatch):
    later = time.time_ns() + 10 * reads.TICK_NS
    with monkeypatch.context() as patch:  # the files are old enough to be known by their stamps
        patch.setattr(reads.time, "time_ns", lambda: later)
        opened(copied)
    monkeypatch.setattr(staleness, "read_again", lambda *_: pytest.fail("a file was opened"))
    opened(copied)
    with pytest.raises(pytest.fail.Exception, match="was opened"):
        os.utime(file_of(copied / "data", 2))
        opened(copied)


def test_a_change_within_one_tick_of_the_clock_is_seen_though_the_stamp_is_the_same(copied, monkeypatch):
    path = file_of(copied / "data", 3)
    monkeypatch.setattr(reads, "TICK_NS", 10**13)  # on a busy machine the copy takes longer than a tick
    opened(copied)  # the copy was hashed, and is too young to be known by its stamp
    stamp = reads.stamp_of(path.stat())
    correct(copied / "data", 3)
    monkeypatch.setattr(staleness, "stamp_of", lambda facts: stamp if facts.st_ino == stamp[2] else None)
    assert_refused(copied, 3)


def test_only_parts_that_hold_a_changed_case_are_forgotten(copied):
    correct(copied / "data", 0)
    correct(copied / "data", 1, "seg")
    assert_refused(copied, 0, 1, name="two")
    opened(copied, refresh=True, name="two")
    assert pending_of(copied / "two") == {stage: [0] for stage in PART_STAGES}
    complete(opened(copied, name="two"))
    assert_is_fresh(copied, "two")


def test_many_changed_cases_are_counted_and_five_are_named(tmp_path):
    with pytest.raises(
        StoreError, match=r"^7 cases have volumes .*: a, b, c, d, e and 2 more; add --refresh"
    ) as raised:
        staleness.refuse_changed("RUN", list("abcdefg"))
    assert "f" not in str(raised.value).split(": ")[1].split(" and ")[0]


class Killed(BaseException):
    """No handler of an error catches it."""


def killed_at(step: int, original):
    """`original`, which ends the process at its call number `step`."""
    left = [step]

    def call(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return original(*args)

    return call


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_refresh_that_is_killed_anywhere_never_leaves_parts_that_do_not_fit(copied, monkeypatch, name):
    """Killed at every removal of a record or manifest in turn; then the plain command refuses, or completes it."""
    correct(copied / "data", 0)
    correct(copied / "data", 2, "seg")
    refused = 0
    for step in range(40):
        try:
            with monkeypatch.context() as patch:
                patch.setattr(bookkeeping.files, "remove", killed_at(step, bookkeeping.files.remove))
                look(copied, name, refresh=True)
            break
        except Killed:
            assert_no_stage_is_ahead(copied, name)
        try:
            look(copied, name)
        except StoreError as error:
            assert "--refresh" in str(error)
            refused += 1
    # A kill before the last slices are forgotten is refused; the commands in between have done their part each.
    assert refused and pending_of(copied / name)["slices"]
    complete(opened(copied, name=name))
    assert_is_fresh(copied, name)


@pytest.mark.parametrize("step", range(3))
def test_slices_that_are_killed_while_they_are_made_again_resume_with_the_plain_command(copied, monkeypatch, step):
    correct(copied / "data", 0)
    run = opened(copied, refresh=True)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(bookkeeping.files, "write_bytes", killed_at(step, bookkeeping.files.write_bytes))
        slices.run_parts(run, [0])
    correct(copied / "data", 0, "seg")  # and another correction before the next command
    if step < 2:  # before its note, and before its record
        complete(opened(copied))
    else:
        assert_refused(copied, 0)
        complete(opened(copied, refresh=True))
    assert_is_fresh(copied)


def assert_no_stage_is_ahead(folder: Path, name: str) -> None:
    """No stage has a record of a changed case whose slices are missing or new."""
    held = {stage: stage_of(str(folder / name), stage).records().keys() for stage in PART_STAGES}
    for stage, before in zip(list(PART_STAGES)[1:], PART_STAGES, strict=False):
        assert held[stage] <= held[before], f"{stage} has parts that {before} lacks"


def test_a_rejected_case_that_was_repaired_gets_rows_and_the_others_keep_theirs(tmp_path):
    make_data(tmp_path / "data")
    good = file_of(tmp_path / "data", 1).read_bytes()
    break_case(tmp_path / "data", CASES[1])
    run = opened(tmp_path)
    complete(run)
    assert [row[0] for row in run.write_rejected()] == [CASES[1]]
    opened(tmp_path)
    file_of(tmp_path / "data", 1).write_bytes(good)
    assert_refused(tmp_path, 1)
    before = parts_of(tmp_path / "one")
    run = opened(tmp_path, refresh=True)
    complete(run)
    assert run.write_rejected() == []
    again = made_again(before, parts_of(tmp_path / "one"))
    assert again == {f"{name}/part-00001.parquet" for name in PART_STAGES}
    assert_is_fresh(tmp_path)


def test_a_good_case_that_broke_is_rejected_and_the_others_keep_their_rows(copied):
    break_case(copied / "data", CASES[1])
    before = parts_of(copied / "two")
    run = opened(copied, refresh=True, name="two")
    complete(run)
    assert [row[0] for row in run.write_rejected()] == [CASES[1]]
    again = made_again(before, parts_of(copied / "two"))
    assert again == {f"{name}/part-00000.parquet" for name in PART_STAGES}
    assert_is_fresh(copied, "two")


def test_a_plan_that_follows_its_inputs_survives_a_kill_between_any_two_writes(copied, monkeypatch):
    break_case(copied / "data", CASES[1])
    run = opened(copied, refresh=True)
    slices.run_parts(run, run.stage("slices").pending())
    run.stage("slices").finish()
    attempts = 0
    while attempts < 40:
        attempts += 1
        run = opened(copied)
        try:
            with monkeypatch.context() as patch:  # each attempt does one write more than those before
                patch.setattr(bookkeeping.files, "write_bytes", killed_at(1, bookkeeping.files.write_bytes))
                maps.plan(run)
            break
        except Killed:
            pass
    assert attempts == 3 * (3 + 1), "three stages, with three records that stay and one plan"
    before = parts_of(copied / "one")
    complete(opened(copied))
    again = made_again(before, parts_of(copied / "one"))
    assert again == {f"{name}/part-00001.parquet" for name in PART_STAGES if name != "slices"}
    assert_is_fresh(copied)


def test_read_only_data_are_compared(copied):
    folders = [copied / "data", *(copied / "data").iterdir()]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        opened(copied)
        assert opened(copied).stage("slices").pending() == []
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


def test_data_that_moved_are_the_same_and_a_change_there_is_seen(copied):
    moved = copied / "elsewhere" / "data"
    shutil.copytree(copied / "data", moved)
    shutil.rmtree(copied / "data")
    assert not any(stage.pending() for stage in Run.open(str(moved), str(copied / "one"), ONE).stages.values())
    correct(moved, 3)
    before = bytes_below(copied / "one")
    with pytest.raises(StoreError, match=f"{CASES[3]}; add --refresh"):
        Run.open(str(moved), str(copied / "one"), ONE)
    shutil.move(moved, copied / "data")
    assert_refused(copied, 3)
    assert bytes_below(copied / "one") == before, "a refused command does not even write where the data are"


def test_more_and_fewer_cases_are_other_data_with_refresh_too(copied):
    shutil.rmtree(copied / "data" / CASES[2])
    with pytest.raises(StoreError, match=f"was made of other data: .*{CASES[2]}"):
        opened(copied, refresh=True)
    file_of(copied / "data", 1, "seg").unlink()
    with pytest.raises(StoreError, match=rf"was made of other data: .*{CASES[1]}, {CASES[2]}"):
        opened(copied, refresh=True)


def test_the_splits_stay_as_they_were_dealt_when_a_mask_changes(copied):
    before = opened(copied)
    splits = before.stage("slices").read(["case_id", "split"])
    for number in range(4):
        correct(copied / "data", number, "seg")
    dealt = find_cohort(copied / "data", ONE.data)
    assert {member.split for member in dealt.members} and dealt != before.cohort, "now they would be dealt otherwise"
    complete(opened(copied, refresh=True))
    again = opened(copied)
    assert again.cohort == before.cohort
    assert again.stage("slices").read(["case_id", "split"]).equals(splits)


def test_a_part_that_was_lost_and_is_made_of_other_bytes_takes_later_stages_with_it(copied, caplog):
    """Between the look at the files and the reading of them, one changed."""
    run = opened(copied)
    (copied / "one" / "slices" / "part-00003.parquet").unlink()
    correct(copied / "data", 3)
    slices.run_parts(run, run.stage("slices").pending())
    assert pending_of(copied / "one") == {name: [] if name == "slices" else [3] for name in PART_STAGES}
    assert "maps part 3 is made again" in caplog.text
    complete(opened(copied))
    assert_is_fresh(copied)


def test_a_part_that_was_lost_and_is_made_of_the_same_bytes_leaves_later_stages_alone(copied):
    run = opened(copied)
    (copied / "one" / "slices" / "_parts" / "00001.json").unlink()
    slices.run_parts(run, run.stage("slices").pending())
    assert not any(pending_of(copied / "one").values())


def test_damaged_inputs_are_named_and_their_part_is_made_again(copied):
    path = copied / "one" / "slices" / "_inputs" / "00001.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"_inputs/00001.json is damaged .* delete it and .*/_parts/00001.json"):
        opened(copied)
    path.unlink()
    (copied / "one" / "slices" / "_parts" / "00001.json").unlink()
    run = opened(copied)
    assert run.stage("slices").pending() == [1]
    complete(run)
    assert_is_fresh(copied)


def test_a_part_of_unknown_inputs_that_is_made_again_takes_later_stages_with_it(copied):
    shutil.rmtree(Inputs(str(copied / "one")).uri)
    run = opened(copied)
    (copied / "one" / "slices" / "_parts" / "00001.json").unlink()
    slices.run_parts(run, run.stage("slices").pending())
    assert pending_of(copied / "one") == {name: [] if name == "slices" else [1] for name in PART_STAGES}


def test_a_file_that_changes_while_it_is_read_stops_its_part(copied, monkeypatch):
    path = file_of(copied / "data", 0)
    inflate = nifti.inflate

    def inflate_while_written(*args):
        os.utime(path)
        return inflate(*args)

    monkeypatch.setattr(nifti, "inflate", inflate_while_written)
    run = Run.open(str(copied / "data"), str(copied / "new"), ONE)
    slices.plan(run)
    with pytest.raises(InputError, match=f"{CASES[0]}: .* is still changing; run the same command again"):
        slices.run_parts(run, [0])


def test_bytes_that_no_header_speaks_of_count_by_their_number_only(copied):
    """A plain file with a tail: the tail is never read, so only its length is known."""
    with file_of(copied / "data", 3).open("ab") as stream:
        stream.write(b"tail")
    assert_refused(copied, 3)
    opened(copied, refresh=True)
    complete(opened(copied))
    with file_of(copied / "data", 3).open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"tale")
    opened(copied)
    with file_of(copied / "data", 3).open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"tale")
    assert_refused(copied, 3)


def test_a_file_that_could_not_be_opened_is_changed_once_it_can(copied):
    if os.geteuid() == 0:
        pytest.skip("root opens everything")
    path = file_of(copied / "data", 2)
    path.chmod(0)
    complete(opened(copied, refresh=True))
    opened(copied)
    path.chmod(0o644)
    assert_refused(copied, 2)


def test_records_of_parts_are_as_they_were(copied):
    for name in PART_STAGES:
        assert b"_inputs" not in (copied / "one" / name / "_parts" / "00000.json").read_bytes()
    sha256 = stage_of(str(copied / "one"), "slices").plan().sha256
    recorded = dict(Inputs(str(copied / "one")).read_all([0, 1, 2, 3], sha256))
    assert [file.path for part in recorded.values() for files in part.cases.values() for file in files] == [
        str(file_of(copied / "data", number, kind).relative_to(copied / "data"))
        for number in range(4)
        for kind in ("flair", "seg")
    ]
    assert all(file.sha256 for part in recorded.values() for files in part.cases.values() for file in files)


def test_a_run_of_an_earlier_version_resumes_and_says_that_its_inputs_are_unknown(tmp_path, caplog):
    earlier = Path(__file__).parent / "versions" / "0.1.0"
    for name in ("data", "run"):
        shutil.copytree(earlier / name, tmp_path / name)
    settings = read_run_info(str(tmp_path / "run")).parsed_settings()
    volume = sorted((tmp_path / "data").rglob("*flair.nii.gz"))[0]
    volume.write_bytes(bytes(volume.stat().st_size))
    run = Run.open(str(tmp_path / "data"), str(tmp_path / "run"), settings)
    assert not any(stage.pending() for stage in run.stages.values())
    lines = [record.getMessage() for record in caplog.records if "earlier version" in record.getMessage()]
    assert len(lines) == 1 and "cannot be seen" in lines[0] and "\n" not in lines[0]
    volume.write_bytes(b"longer" * 10**6)
    with pytest.raises(StoreError, match="was made of other data"):  # their sizes are facts of theirs
        Run.open(str(tmp_path / "data"), str(tmp_path / "run"), settings, refresh=True)


def test_status_and_evaluation_do_not_look_at_the_data(copied):
    shutil.rmtree(copied / "data")
    run = Run.reopen(str(copied / "one"))
    assert all(stage.progress().finished for stage in run.stages.values())
    assert evaluate_run(run).cases == 4


def test_the_command_refuses_and_refreshes(server, copied):
    """`medad screen` for real, once: a plain file that was corrected in place and has the same size."""
    correct(copied / "data", 3)
    words = [*WORDS, "data.last_slice=60", "data.cases_per_part=1", f"models.weights={WEIGHTS}"]
    command = ["screen", str(copied / "data"), "--out", str(copied / "one"), *words]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and len(refused.stderr.strip().splitlines()) == 1
    assert f"was made: {CASES[3]}; add --refresh" in refused.stderr
    before = parts_of(copied / "one")
    refreshed = CliRunner().invoke(app, [*command, "--refresh"])
    assert refreshed.exit_code == 0, refreshed.output
    assert made_again(before, parts_of(copied / "one")) == {f"{name}/part-00003.parquet" for name in PART_STAGES}
    rows = pd.read_parquet(copied / "one" / "predictions.parquet")
    maps_now = stage_of(str(copied / "one"), "maps").read(["case_id", "anomaly_score"]).to_pandas()
    assert dict(zip(rows.case_id, rows.anomaly_score, strict=True)) == dict(
        zip(maps_now.case_id, maps_now.anomaly_score, strict=True)
    )
    assert_is_fresh(copied)


def test_refresh_goes_with_a_run_and_not_with_a_cohort():
    result = CliRunner().invoke(app, ["screen", "IN", "--cohort", "OUT", "--refresh"])
    assert result.exit_code == 2 and "--refresh goes with --out" in result.stderr
