"""A BIDS derivative: `sub-X/anat/sub-X_space-orig_label-lesion_{mask,probseg}.nii.gz` with what BIDS asks for beside.

One decision: a label of BIDS has letters and digits only, so other characters are left out of names; two names that
become one are refused and not numbered. The sidecars name the source file by a BIDS URI, which is how BIDS says what
"orig" is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medad_core.errors import UsageError
from medad_core.export.case_map import RESEARCH, CaseMap, made_by
from medad_core.export.nifti import write_map, write_mask
from medad_core.media import visible
from medad_core.run.cohort import Cohort
from medad_core.store import write_text
from medad_core.store.files import make_folder

BIDS_VERSION = "1.10.0"
NOT_EXPORTED = "not_exported.csv"
_NOT_A_LABEL = re.compile(r"[^A-Za-z0-9]")
_README = f"""# Anomaly maps of medad

{RESEARCH}

Every case has two images on the grid of the volume that they were made of (`space-orig`): `probseg` is the anomaly
map, from 0 to 1, and `mask` is where it reaches the threshold. The values are not calibrated probabilities. The JSON
file of an image says which axial slices were screened; outside of them, both are 0 and mean nothing.
Where `GeneratedPhantom` is true, the case was drawn by a program, and nobody is the patient.
`{NOT_EXPORTED}` lists the cases that have no images, with the reason.
"""


@dataclass(frozen=True)
class BidsDataset:
    """The dataset in the folder `out`. `names` are the paths of cases below it, without their end."""

    out: Path
    root: str
    names: dict[str, str]
    needs_volume: bool = False

    @classmethod
    def of(cls, out: Path, cohort: Cohort, cases: Sequence[str]) -> BidsDataset:
        """The dataset of all `cases` of a run: a case has the same name whichever of them are written.

        Raises UsageError where two patients, or two cases of one, would have the same name.
        """
        return cls(out, cohort.root, bids_names(cohort, cases))

    def begin(self) -> None:
        """Write the description of the dataset. Raises StoreError."""
        write_text(str(self.out / "dataset_description.json"), _json(_description(self.root)))
        write_text(str(self.out / "README.md"), _README)
        write_text(str(self.out / ".bidsignore"), f"{NOT_EXPORTED}\n")

    def write(self, case: CaseMap) -> None:
        """Write both images with their sidecars. Raises StoreError."""
        stem = self.out / self.names[case.case_id]
        make_folder(str(stem.parent))
        write_map(Path(f"{stem}_probseg.nii.gz"), case)
        write_mask(Path(f"{stem}_mask.nii.gz"), case)
        facts = self._facts(case)
        write_text(f"{stem}_probseg.json", _json({"Description": f"Anomaly map of {made_by()}. {RESEARCH}"} | facts))
        mask = {
            "Description": f"Anomaly map of {made_by()} at the threshold or above. {RESEARCH}",
            "Type": "Lesion",
            "Threshold": case.threshold,
        }
        write_text(f"{stem}_mask.json", _json(mask | facts))

    def files(self, case_id: str) -> tuple[Path, ...]:
        """See `Writer.files`; none of a case that the run has no map of, which has no name."""
        stem = self.names.get(case_id)
        ends = () if stem is None else ("_probseg.nii.gz", "_mask.nii.gz", "_probseg.json", "_mask.json")
        return tuple(self.out / f"{stem}{end}" for end in ends)

    def _facts(self, case: CaseMap) -> dict[str, Any]:
        """What both sidecars say."""
        assert case.member.volume is not None, f"{case.case_id} has a map and no volume"
        source = f"bids:source:{quote(case.member.volume.path)}"
        return {
            "Sources": [source],
            "SpatialReference": source,
            "ScreenedSlices": case.slices,
            "GeneratedPhantom": case.member.phantom,
        }


def bids_names(cohort: Cohort, cases: Sequence[str]) -> dict[str, str]:
    """Paths of BIDS below the dataset, without their end.

    A patient with several cases has a session for each, named by the visit or else by the case. Raises UsageError where
    two patients, or two cases of one, would have the same name.
    """
    members = {member.case_id: member for member in cohort.members}
    visits = Counter(members[case_id].patient_id for case_id in cases)
    of_label: dict[str, str] = {}
    of_name: dict[str, str] = {}
    names = {}
    for case_id in cases:
        member = members[case_id]
        subject = _label(member.patient_id, "sub-")
        if of_label.setdefault(subject, member.patient_id) != member.patient_id:
            raise UsageError(_same(member.patient_id, of_label[subject], f"sub-{subject}"))
        session = ""
        if visits[member.patient_id] > 1 or member.visit:
            session = f"ses-{_label(member.visit or case_id, 'ses-')}"
        folder = "/".join(part for part in (f"sub-{subject}", session, "anat") if part)
        stem = "_".join(part for part in (f"sub-{subject}", session) if part)
        name = f"{folder}/{stem}_space-orig_label-lesion"
        if of_name.setdefault(name, case_id) != case_id:
            raise UsageError(_same(case_id, of_name[name], f"sub-{subject} {session}"))
        names[case_id] = name
    return names


def _same(one: str, other: str, name: str) -> str:
    return f"{one} and {other} would both be {name} in BIDS, which has letters and digits only; use --format nifti"


def _label(name: str, prefix: str) -> str:
    return _NOT_A_LABEL.sub("", name.removeprefix(prefix)) or "x"


def _description(root: str) -> dict[str, Any]:
    uri = Path(root).absolute().as_uri()
    return {
        "Name": f"Anomaly maps of medad of {visible(Path(root).name)}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medad", "Version": version("medad"), "Description": f"medad export. {RESEARCH}"}],
        "SourceDatasets": [{"URL": uri}],
        "DatasetLinks": {"source": uri},
    }


def _json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"
