"""`medad screen INBOX --cohort FOLDER` with real models and a real server."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from prefect_harness import AFFINE, SIZE, WORDS, restate, weights_for
from rich.console import Console
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.command import Consoles
from flows.cli.screening import _report_cohort
from flows.screen import screen_cohort
from flows.verify import verify
from medad_core.config import load_settings
from medad_core.errors import StoreError
from medad_core.faults.suspect import Suspect
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.worklist import read_worklist
from medad_core.models.view import ALONE
from medad_core.models.weights import CONVERTER
from medad_core.run.rejected import QUARANTINED
from medad_core.stages import slices
from medad_core.stages.screen import screen
from medad_core.store.lock import locked

pytest_plugins = ("prefect_harness",)
COHORT_WORDS = [*WORDS, "inbox.settle_s=0"]
SETTINGS = load_settings(None, COHORT_WORDS)


def without_brain(root: Path, case_id: str) -> None:
    """A whole file that nothing can be seen in."""
    (root / case_id).mkdir()
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((SIZE,) * 3, np.float32), AFFINE), root / case_id / f"{case_id}_flair.nii.gz"
    )


@pytest.fixture(scope="module")
def nights(server, tiny_cohort, tmp_path_factory):
    """Two nights: two of the good cases; then another, the truncated one, one without brain, and a rest of a copy."""
    inbox, cohort = tmp_path_factory.mktemp("inbox"), tmp_path_factory.mktemp("nights") / "cohort"
    for number in (0, 1):
        shutil.copytree(tiny_cohort / f"BraTS2021_{number:05d}", inbox / f"BraTS2021_{number:05d}")
    first = screen_cohort(str(inbox), str(cohort), SETTINGS)
    for number in (2, 3):
        shutil.copytree(tiny_cohort / f"BraTS2021_{number:05d}", inbox / f"BraTS2021_{number:05d}")
    without_brain(inbox, "BraTS2021_00009")
    second = screen_cohort(str(inbox), str(cohort), SETTINGS)
    return inbox, cohort, first, second


def test_rows_of_a_cohort_are_those_of_one_run_over_all_its_cases(nights, screened):
    _, cohort, first, second = nights
    assert [(batch.screened, batch.rejected) for batch in (*first.batches, *second.batches)] == [(2, 0), (1, 1)]
    assert set(second.waiting) == {"BraTS2021_00002"} and second.cases == 3
    rows, whole = pd.read_parquet(cohort / "predictions.parquet"), pd.read_parquet(screened.outcome.predictions)
    assert rows.groupby("case_id")["batch"].first().to_dict() == {
        "BraTS2021_00000": 1,
        "BraTS2021_00001": 1,
        "BraTS2021_00003": 2,
    }
    # The split is that of a run; the fingerprint is of all its cases together.
    own = ["split", "model_fingerprint"]
    pd.testing.assert_frame_equal(rows.drop(columns=[*own, "revision", "batch"]), whole.drop(columns=own))


def test_the_worklist_of_a_cohort_has_every_screened_case_and_the_night_shows_its_own(nights, untouched):
    _, cohort, first, second = nights
    rows = read_worklist(str(cohort / "worklist.csv"))
    assert {row["case_id"]: row["batch"] for row in rows} == {
        "BraTS2021_00000": "1",
        "BraTS2021_00001": "1",
        "BraTS2021_00003": "2",
    }
    assert [row["place"] for row in rows] == ["1", "2", "3"]
    volumes = {}
    for number in (1, 2):
        facts = pd.read_parquet(cohort / "batches" / f"{number:05d}" / "cases.parquet")
        volumes |= dict(zip(facts["case_id"], facts["volume_ml"], strict=True))
    assert all(row["volume_ml"] == f"{volumes[row['case_id']]:.2f}" for row in rows)
    assert (first.listed, second.listed, second.rejected, second.followed) == (2, 3, 1, 0)
    shown = StringIO()
    _report_cohort(second, Consoles(Console(file=shown, width=200), Console(file=StringIO(), width=200)))
    assert "worklist, 1 of 1 cases" in shown.getvalue() and "BraTS2021_00001" not in shown.getvalue()
    assert "worklist.csv: 3 cases; 1 rejected cases are not in it" in shown.getvalue()


def test_the_verification_of_a_cohort_fails_where_a_bit_of_any_batch_flipped(nights, tmp_path):
    cohort = Path(shutil.copytree(nights[1], tmp_path / "cohort"))
    verify(str(cohort))
    damaged = sorted((cohort / "batches" / "00001" / "maps").rglob("*.parquet"))[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(StoreError, match="damaged or missing files: 1;"):
        verify(str(cohort))
    with pytest.raises(StoreError, match="neither a run nor a cohort"):
        verify(str(tmp_path / "chohort"))


def test_nights_on_which_every_new_case_is_rejected_do_not_block_the_cohort(nights):
    inbox, cohort = nights[:2]
    without_brain(inbox, "BraTS2021_00010")
    before = pd.read_parquet(cohort / "predictions.parquet")
    outcome = screen_cohort(str(inbox), str(cohort), SETTINGS)
    assert [(batch.screened, batch.rejected) for batch in outcome.batches] == [(0, 1)]
    assert not screen_cohort(str(inbox), str(cohort), SETTINGS).batches
    pd.testing.assert_frame_equal(pd.read_parquet(cohort / "predictions.parquet"), before)
    assert "brain" in CohortFolder(cohort).histories()["BraTS2021_00010"][-1].reason


def test_a_batch_asks_all_questions_at_the_temperature_of_its_weights(server, tiny_cohort, tmp_path):
    weights = weights_for(tmp_path / "weights", ALONE)
    restate(weights / CONVERTER, questions=json.dumps(["presence", "side"]), temperature="2.5")
    case = Path(shutil.copytree(tiny_cohort / "BraTS2021_00000", tmp_path / "inbox" / "BraTS2021_00000"))
    words = [*COHORT_WORDS, f"models.weights={weights}", "llm.questions=[presence, side]", "llm.structured=true"]
    settings = load_settings(None, words)
    outcome = screen_cohort(str(case.parent), str(tmp_path / "cohort"), settings)
    batch = Path(CohortFolder(tmp_path / "cohort").run_of(outcome.batches[0].batch))
    screen(str(case.parent), str(tmp_path / "run"), settings)
    for name in ("questions.parquet", "predictions.parquet"):
        of_batch, of_run = (pd.read_parquet(Path(run) / name) for run in (batch, tmp_path / "run"))
        of_cohort = ["split", "model_fingerprint"]
        of_batch, of_run = (rows.drop(columns=of_cohort, errors="ignore") for rows in (of_batch, of_run))
        pd.testing.assert_frame_equal(of_batch, of_run)
    asked = pd.read_parquet(Path(batch) / "questions.parquet")
    assert list(asked["question"]) == ["presence", "side"] * 3 and asked["value"].notna().all()


def medad(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_cohort_in_use_is_refused_before_anything_starts(nights, untouched):
    inbox, cohort = nights[:2]
    with locked(cohort):
        result = medad("screen", inbox, "--cohort", cohort, *COHORT_WORDS)
    assert result.exit_code == 1 and "is in use by process" in result.stderr and "--wait" in result.stderr


def test_other_settings_are_refused_naming_them(nights, untouched):
    inbox, cohort = nights[:2]
    result = medad("screen", inbox, "--cohort", cohort, *COHORT_WORDS, "data.last_slice=63")
    assert result.exit_code == 1 and "data.last_slice (62 there, 63 now)" in result.stderr


@pytest.mark.parametrize("words", [[], ["--out", "a", "--cohort", "b"], ["--out", "a", "--wait"]])
def test_either_a_run_or_a_cohort_is_asked_for(words, tmp_path, untouched):
    result = medad("screen", tmp_path, *words)
    assert result.exit_code == 2 and "--cohort" in result.stderr


def test_status_tells_a_cohort_from_its_files(nights, untouched):
    result = medad("status", nights[1])
    assert result.exit_code == 0
    for words in ("idle", "3 cases with 9 slices", "waits: BraTS2021_00002", "rejected: BraTS2021_00009"):
        assert words in result.stdout, result.stdout


def test_prune_says_what_it_freed(nights, tmp_path, untouched):
    copy = Path(shutil.copytree(nights[1], tmp_path / "cohort"))
    assert "MB freed" in medad("prune", copy, "--keep", 1).stdout
    assert "nothing to prune" in medad("prune", copy, "--keep", 1).stdout
    assert "were removed by `medad prune`" in medad("status", copy / "batches" / "00001").stdout
    refused = medad("prune", tmp_path)
    assert refused.exit_code == 2 and "not the folder of a cohort" in refused.stderr


@pytest.fixture
def poisoned(monkeypatch):
    """Reading of case 0 raises what is put into this."""
    errors, read_slices = [], slices.read_slices

    def read_or_raise(case, settings):
        if case.case_id == "BraTS2021_00000":
            raise errors[0]
        return read_slices(case, settings)

    monkeypatch.setattr(slices, "read_slices", read_or_raise)
    return errors


def screened_and_rejected(outcome) -> list[tuple[int, int]]:
    return [(batch.screened, batch.rejected) for batch in outcome.batches]


def test_a_study_that_cannot_be_told_from_a_broken_machine_does_not_hold_up_those_that_come_after_it(
    server, tiny_cohort, tmp_path, poisoned
):
    poisoned.append(MemoryError())
    inbox, cohort = tmp_path / "inbox", tmp_path / "cohort"
    shutil.copytree(tiny_cohort / "BraTS2021_00000", inbox / "BraTS2021_00000")
    for _ in range(2):  # the second finds the batch of the first
        with pytest.raises(Suspect):
            screen_cohort(str(inbox), str(cohort), SETTINGS)
    assert not CohortFolder(cohort).batches()
    shutil.copytree(tiny_cohort / "BraTS2021_00001", inbox / "BraTS2021_00001")
    assert screened_and_rejected(screen_cohort(str(inbox), str(cohort), SETTINGS)) == [(1, 0), (0, 1)]
    assert QUARANTINED in CohortFolder(cohort).histories()["BraTS2021_00000"][-1].reason
    assert set(pd.read_parquet(cohort / "predictions.parquet")["case_id"]) == {"BraTS2021_00001"}


def test_studies_that_shared_the_part_of_one_that_cannot_be_made_are_screened_the_next_night(
    server, tiny_cohort, tmp_path, poisoned
):
    poisoned.append(ValueError("odd"))
    inbox, cohort = tmp_path / "inbox", tmp_path / "cohort"
    for number in (0, 1, 3):
        shutil.copytree(tiny_cohort / f"BraTS2021_{number:05d}", inbox / f"BraTS2021_{number:05d}")
    settings = load_settings(None, [*COHORT_WORDS, "data.cases_per_part=4"])
    assert screened_and_rejected(screen_cohort(str(inbox), str(cohort), settings)) == [(0, 3)]
    assert screened_and_rejected(screen_cohort(str(inbox), str(cohort), settings)) == [(2, 1)]
    assert set(pd.read_parquet(cohort / "predictions.parquet")["case_id"]) == {"BraTS2021_00001", "BraTS2021_00003"}
