"""Follow-up of a real brain: its tumour is taken out of a copy of the volume, and comes back in another."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medad_core.config import load_settings
from medad_core.facts.followup_rows import ON_GRID, signed_text
from medad_core.run.run import Run
from medad_core.stages.facts import CASES_FILE
from medad_core.stages.followup import read_followups
from medad_core.stages.screen import screen
from medad_core.store import join, read_table

TUMOUR = "BraTS2021_01485"  # whose tumour lies on one side
WORDS = (
    "data.first_slice=76",
    "data.last_slice=79",
    "models.threads=1",
    "llm.engine=transformers",
    "evaluate.bootstrap=20",
)


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory) -> Run:
    """A real case three times: as it is, with its tumour replaced by the other side of the brain, and as it is."""
    data = tmp_path_factory.mktemp("visits")
    folder = shared_data / "brats2021" / TUMOUR
    flair, mask = (nib.load(folder / f"{TUMOUR}_{kind}.nii.gz") for kind in ("flair", "seg"))
    volume = np.asarray(flair.dataobj)
    wide = ndimage.binary_dilation(np.asarray(mask.dataobj) > 0, iterations=8)
    for visit, array in enumerate((volume, np.where(wide, volume[::-1], volume), volume)):
        case_id = f"BraTS-GLI-90001-10{visit}"
        (data / case_id).mkdir()
        nib.save(nib.Nifti1Image(array, flair.affine, flair.header), data / case_id / f"{case_id}-t2f.nii.gz")
    out = str(tmp_path_factory.mktemp("screened") / "run")
    screen(str(data), out, load_settings(None, WORDS))
    return Run.reopen(out)


def test_a_tumour_that_was_taken_out_vanishes_and_comes_back(real):
    gone, back = read_followups(real.uri)
    assert [row.compared for row in (gone, back)] == [ON_GRID, ON_GRID] and gone.ordered_by == "visit"
    assert (gone.first_slice, gone.last_slice) == (76, 79)
    assert gone.volume_ml_earlier > 1 and gone.change_percent < -50
    assert back.change_ml == -gone.change_ml and (back.new, back.vanished) == (gone.vanished, gone.new)
    facts = {row["case_id"]: row["volume_ml"] for row in read_table(join(real.uri, CASES_FILE)).to_pylist()}
    for row in (gone, back):
        assert (row.volume_ml_earlier, row.volume_ml_later) == (facts[row.earlier], facts[row.later])


def test_the_page_shows_the_numbers_of_the_table_and_says_what_they_are_not(real):
    page = (Path(real.uri) / "report.html").read_text(encoding="utf-8")
    for row in read_followups(real.uri):
        assert f"{row.volume_ml_earlier:.2f} → " in page and f">{signed_text(row.change_ml, 2)}<" in page
    assert "Examined more than once" in page and "It is no measure of a disease" in page
