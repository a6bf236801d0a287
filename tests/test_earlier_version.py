"""A run and a cohort that an earlier version made go on without remaking anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from medad_core.config import Settings
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.screening import screen_inbox
from medad_core.run.info import read_run_info
from medad_core.stages.screen import screen
from medad_core.store import PART_STAGES, stage_of

EARLIER = Path(__file__).parent / "versions" / "0.1.0"


@pytest.fixture
def earlier(tmp_path) -> Path:
    """Copies that a test may change. The weights that they were made with came with medad at that time."""
    for name in ("data", "run", "cohort"):
        shutil.copytree(EARLIER / name, tmp_path / name)
    return tmp_path


def settings_of(run: Path) -> Settings:
    """Those of an earlier run, with the weights of its time."""
    settings = read_run_info(str(run)).parsed_settings()
    models = settings.models.model_copy(update={"weights": str(EARLIER / "weights")})
    return settings.model_copy(update={"models": models})


def parts_of(run: Path) -> dict[str, tuple[int, bytes]]:
    """Every part file with its time and bytes."""
    files = (file for name in PART_STAGES for file in (run / name).glob("*.parquet"))
    return {str(file.relative_to(run)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_a_run_of_an_earlier_version_resumes_without_remaking_a_part_or_opening_a_volume(earlier):
    run = earlier / "run"
    expected = pd.read_parquet(run / "predictions.parquet")
    (run / "answers" / "_manifest.json").unlink()
    (run / "answers" / "_parts" / "00001.json").unlink()
    for volume in (earlier / "data").rglob("*.nii.gz"):
        volume.write_bytes(bytes(volume.stat().st_size))  # nobody can read it any more
    before = parts_of(run)
    results = screen(str(earlier / "data"), str(run), settings_of(run))
    after = parts_of(run)
    remade = [name for name in before if before[name][0] != after[name][0]]
    assert remade == ["answers/part-00001.parquet"]
    assert after["answers/part-00001.parquet"][1] == before["answers/part-00001.parquet"][1]
    predictions = pd.read_parquet(results.predictions)
    assert predictions.pop("patient").tolist() == expected["case_id"].tolist(), "a column that came with 0.2.0"
    assert not predictions.pop("unstable").any(), "another one"
    pd.testing.assert_frame_equal(predictions, expected)


def test_a_finished_run_of_an_earlier_version_is_finished(earlier):
    for name in PART_STAGES:
        stage = stage_of(str(earlier / "run"), name)
        assert stage.pending() == [] and stage.require_finished().done == 3
        assert stage.prepare(_own_fingerprint(stage), [part.inputs for part in stage.plan().parts]) == stage.plan()


def _own_fingerprint(stage) -> dict[str, str]:
    """What a planner gives: the plan's fingerprint without what the store adds."""
    fields = stage.plan().fingerprint
    return {key: value for key, value in fields.items() if key not in ("schema", "inputs")}


def test_a_cohort_of_an_earlier_version_has_nothing_new(earlier):
    folder = CohortFolder(earlier / "cohort", earlier / "data")
    before = (earlier / "cohort" / "predictions.parquet").read_bytes()
    settings = settings_of(folder.run_of(1))
    settings = settings.model_copy(update={"inbox": settings.inbox.model_copy(update={"settle_s": 0.0})})
    outcome = screen_inbox(folder, str(earlier / "data"), settings, lambda *_: pytest.fail("nothing is to be screened"))
    assert outcome.batches == () and (outcome.cases, outcome.slices) == (3, 6)
    assert (earlier / "cohort" / "predictions.parquet").read_bytes() == before
