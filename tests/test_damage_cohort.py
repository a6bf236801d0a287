"""Damaged files of a cohort are named, or made again: whatever happens to one, its predictions are those of before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_damage import RECORDS, damages

from medad_core.errors import MedadError
from medad_core.inbox.folder import CohortFolder
from medad_core.inbox.records import Batch, BatchPlan, Ledger
from medad_core.inbox.verify import verify_cohort
from medad_core.store import PartRecord

EARLIER = Path(__file__).parent / "versions" / "0.1.0" / "cohort"
KINDS = RECORDS | {"ledger": Ledger, "_batch": Batch, "_planned": BatchPlan}
# Made again from the rest, by the next command; and pictures of a moment that nothing is computed from.
DERIVED = ("ledger.json", "_planned.json", "run.json", "rejected.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The cohort of an earlier version, whose records are written as they are now."""
    cohort = Path(shutil.copytree(EARLIER, tmp_path_factory.mktemp("whole") / "cohort"))
    for path in cohort.rglob("*.json"):
        path.write_bytes(KINDS.get(path.stem, PartRecord).from_json(path.read_bytes()).to_json())
    (cohort / "predictions.parquet").unlink()  # has fewer columns than it would have now
    CohortFolder(cohort).reconcile()
    return cohort


def files_of(cohort: Path) -> list[str]:
    files = sorted(str(path.relative_to(cohort)) for path in cohort.rglob("*") if path.is_file())
    return [name for name in files if not any(number in name for number in ("00001.", "00002."))]


@pytest.mark.parametrize("name", files_of(EARLIER))
def test_a_damaged_file_of_a_cohort_is_named_and_changes_no_prediction(whole, tmp_path, name):
    expected = pd.read_parquet(whole / "predictions.parquet")
    cohort = Path(shutil.copytree(whole, tmp_path / "cohort"))
    assert not list(verify_cohort(str(cohort)))
    for damage, content in damages(whole, name).items():
        path = cohort / name
        path.unlink() if content is None else path.write_bytes(content)
        try:
            named = list(verify_cohort(str(cohort)))
        except MedadError as error:
            named = [str(error)]
        assert all("\n" not in line and "medad screen DATA --out" not in line for line in named)
        assert named or name.endswith(DERIVED), f"{name}, {damage}: not noticed"
        try:
            CohortFolder(cohort).reconcile()
        except MedadError as error:
            assert "\n" not in str(error), f"{name}, {damage}"
        else:
            pd.testing.assert_frame_equal(pd.read_parquet(cohort / "predictions.parquet"), expected)
        shutil.rmtree(cohort)
        shutil.copytree(whole, cohort)
