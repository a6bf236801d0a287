"""Damaged results are noticed: whatever happens to a file of a run, it is named, or the numbers are the same."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.errors import MedadError, StoreError
from medad_core.run.cohort import Cohort
from medad_core.run.info import RunInfo
from medad_core.run.run import Run
from medad_core.stages.evaluate import evaluate_run
from medad_core.store import PART_STAGES, PartRecord, Plan, StageManifest, files, stage_of

EARLIER = Path(__file__).parent / "versions" / "0.1.0" / "run"
FLIPS = 2  # bits of each file, one at a time
RECORDS = {"cohort": Cohort, "run": RunInfo, "_plan": Plan, "_manifest": StageManifest}  # others are of parts
WRITTEN = ("predictions.parquet", "metrics.md", "report.html", "metrics.parquet", "rejected.csv", "warnings.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run of an earlier version, whose records are written as they are now. Nobody changes it."""
    run = Path(shutil.copytree(EARLIER, tmp_path_factory.mktemp("whole") / "run"))
    for path in run.rglob("*.json"):
        path.write_bytes(RECORDS.get(path.stem, PartRecord).from_json(path.read_bytes()).to_json())
    return run


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def numbers_of(run: Path) -> tuple[str, str]:
    """What a reader of the run sees: its rows and its metrics."""
    results = evaluate_run(Run.reopen(str(run)))
    return pd.read_parquet(results.predictions).to_csv(), pd.read_parquet(run / "metrics.parquet").to_csv()


def progress_of(run: Path) -> list:
    return [stage_of(str(run), name).progress() for name in PART_STAGES]


def files_read() -> list[str]:
    """One file of each kind that a run's results are computed from."""
    files = sorted(str(path.relative_to(EARLIER)) for path in EARLIER.rglob("*") if path.is_file())
    numbered = ("00001", "00002", "00003")
    return [name for name in files if name not in WRITTEN and not any(number in name for number in numbered)]


def damages(run: Path, name: str) -> dict[str, bytes | None]:
    """Contents that the file may have after a fault; None where it is lost. An edited record is still valid JSON."""
    content = (run / name).read_bytes()
    dice = random.Random(name)
    made: dict[str, bytes | None] = {"emptied": b"", "cut": content[: len(content) // 2], "lost": None}
    for number in range(FLIPS):
        flipped = bytearray(content)
        flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        made[f"flip {number}"] = bytes(flipped)
    if name.endswith(".json"):
        digits = [place for place, byte in enumerate(content) if chr(byte) in "2345678"]
        place = dice.choice(digits)
        made["edited"] = content[:place] + bytes([content[place] + 1]) + content[place + 1 :]
    twin = run / name.replace("00000", "00001")
    if twin != run / name and twin.is_file():
        made["swapped"] = twin.read_bytes()
    return made


@pytest.mark.parametrize("name", files_read())
def test_a_damaged_file_is_named_or_changes_no_number(whole, run, name):
    expected = numbers_of(run)
    looks = (progress_of,) if name.startswith("prompts/") else (numbers_of, progress_of)  # no number is from prompts
    for damage, content in damages(whole, name).items():
        path = run / name
        path.unlink() if content is None else path.write_bytes(content)
        for look in looks:
            try:
                found = look(run)
            except MedadError as error:
                assert "\n" not in str(error), f"{name}, {damage}"
            else:
                assert look is progress_of or found == expected, f"{name}, {damage}: other numbers"
        path.write_bytes((whole / name).read_bytes())
    assert numbers_of(run) == expected


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("run.json", "map_threshold: 0.5", "map_threshold: 0.1"),  # other metrics
        ("slices/_manifest.json", '"key": "BraTS2021_00002"', '"key": "BraTS2021_00001"'),  # another patient rejected
        ("cohort.json", '"case_id": "BraTS2021_00003"', '"case_id": "BraTS2021_00007"'),
    ],
)
def test_a_record_that_is_still_valid_and_says_something_else_is_not_believed(run, name, before, after):
    expected = numbers_of(run)
    path = run / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(StoreError) as caught:
        numbers_of(run)
    assert "\n" not in str(caught.value) and ("damaged" in str(caught.value) or "is not finished" in str(caught.value))
    path.write_text(text)
    assert numbers_of(run) == expected


def test_a_record_without_a_seal_is_one_of_an_earlier_version(run):
    expected = numbers_of(run)
    for path in EARLIER.rglob("*.json"):
        shutil.copy(path, run / path.relative_to(EARLIER))
    assert numbers_of(run) == expected


def test_a_flipped_bit_of_a_part_is_refused_with_the_way_out(whole, run):
    part = run / "maps" / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(StoreError, match=r"part-00001.parquet is damaged: .* run `medad screen DATA --out"):
        evaluate_run(Run.reopen(str(run)))
    found = CliRunner().invoke(app, ["status", str(run), "--verify"])
    assert found.exit_code == 1 and "maps part 1 is damaged or missing" in found.output
    shutil.copy(whole / "maps" / "part-00001.parquet", part)
    found = CliRunner().invoke(app, ["status", str(run), "--verify"])
    assert found.exit_code == 0 and "verified: no damaged or missing files" in found.output


def test_the_cohort_of_another_run_is_not_taken_for_this_one(run):
    path = run / "cohort.json"
    cohort = Cohort.from_json(path.read_bytes())
    path.write_bytes(cohort.replace(members=cohort.members[1:]).to_json())
    with pytest.raises(StoreError, match="its cases are not those that the stages were made of"):
        evaluate_run(Run.reopen(str(run)))


def test_a_part_is_hashed_once_however_often_it_is_read(run, monkeypatch):
    stage = stage_of(str(run), "maps")
    hashed = []
    digest = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda uri: hashed.append(uri) or digest(uri))
    monkeypatch.setattr("medad_core.store.intact.TICK_NS", 0)  # the copies are seconds old
    case_ids = stage.done_inputs(0)
    for case_id in [*case_ids, *case_ids]:
        stage.read_case(case_id)
    assert hashed == [str(run / "maps" / "part-00000.parquet")]
