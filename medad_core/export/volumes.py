"""`medad export`: the map of every case as NIfTI, plain or as a BIDS derivative.

One decision: a file has the volume's own grid and affine, so that it lies on the volume in any viewer. Its header says
which slices were screened; voxels beyond them are 0 and mean nothing.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from medad_core.data.own_folders import claim_folder, mark_folder
from medad_core.data.place import Place
from medad_core.errors import UsageError
from medad_core.export.space import to_file
from medad_core.facts.case import NO_PLACE
from medad_core.media import file_name
from medad_core.models.decoder import render_map
from medad_core.run.cohort import Member
from medad_core.run.run import Run
from medad_core.stages.facts import places_of
from medad_core.stages.rows import grids_of, windows_of
from medad_core.store import write_bytes, write_text
from medad_core.store.files import make_folder

Format = Literal["nifti", "bids"]
BIDS_VERSION = "1.10.0"
_NOT_A_LABEL = re.compile(r"[^A-Za-z0-9]")


@dataclass(frozen=True)
class Exported:
    """The folder, how many cases were written, and why others were not, by case."""

    folder: Path
    cases: int
    skipped: dict[str, str]


def export(
    run: Run, out: Path, kind: Format, cases: Sequence[str] = (), progress: Callable[[int, int], None] = lambda *_: None
) -> Exported:
    """Write map (float32, 0 to 1) and mask (uint8) of all cases of a run, or of those named, below `out`.

    The mask is the map at `evaluate.map_threshold`. Files that exist are replaced. Raises UsageError for a case that
    the run does not have, and for names that become the same in BIDS, StoreError where maps are not finished or a file
    cannot be written.
    """
    run.stage("maps").require_finished()
    done = [case_id for part in run.stage("maps").finished_inputs() for case_id in part]
    unknown = [case_id for case_id in cases if case_id not in done]
    if unknown:
        raise UsageError(f"{unknown[0]}: the run has no maps of this case; predictions.parquet lists those it has")
    # Of all cases, so that a case has the same name whichever are chosen.
    names = _bids_names(run, done) if kind == "bids" else {case_id: file_name(case_id) for case_id in done}
    wanted = [case_id for case_id in done if not cases or case_id in cases]
    places = places_of(run)
    claim_folder(run.cohort.root, str(out))
    make_folder(str(out))
    mark_folder(str(out))  # medad never takes its own masks for an expert's
    members = {member.case_id: member for member in run.cohort.members}
    if kind == "bids":
        write_text(str(out / "dataset_description.json"), _description(run))
    skipped: dict[str, str] = {}
    for number, case_id in enumerate(wanted, 1):
        place = places.get(case_id)
        if place is None:
            skipped[case_id] = NO_PLACE
        else:
            _write(run, members[case_id], place, out / names[case_id], kind)
        progress(number, len(wanted))
    return Exported(out, len(wanted) - len(skipped), skipped)


def _write(run: Run, member: Member, place: Place, stem: Path, kind: Format) -> None:
    slices = run.stage("slices").read_case(member.case_id)
    maps = run.stage("maps").read_case(member.case_id)
    size = slices["height"][0].as_py(), slices["width"][0].as_py()
    windows = windows_of(maps)
    pictures = np.stack(
        [
            render_map(grid, *size, None if windows is None else windows[at]).astype(np.float32)
            for at, grid in enumerate(grids_of(maps))
        ]
    )
    first = slices["slice_index"][0].as_py()
    threshold = run.settings.evaluate.map_threshold
    mask = to_file((pictures >= threshold).astype(np.float32), first, place) >= 0.5
    ends = [first, first + len(pictures) - 1]
    what = f"{'generated phantom, ' if member.phantom else ''}slices {ends[0]} to {ends[1]} screened"
    map_name = "probseg" if kind == "bids" else "map"
    make_folder(str(stem.parent))
    _save(Path(f"{stem}_{map_name}.nii.gz"), to_file(pictures, first, place), place, f"medad map, {what}")
    _save(Path(f"{stem}_mask.nii.gz"), mask.astype(np.uint8), place, f"medad map >= {threshold:g}, {what}")
    if kind == "bids":
        facts = {
            "Description": f"Anomaly map of medad {version('medad')}. For research, not a medical device.",
            "ScreenedSlices": ends,
            "Threshold": threshold,
            "GeneratedPhantom": member.phantom,
        }
        for name in (map_name, "mask"):
            write_text(f"{stem}_{name}.json", json.dumps(facts, indent=2) + "\n")


def _save(path: Path, array: np.ndarray, place: Place, description: str) -> None:
    """Write a volume, complete or not at all. Raises StoreError."""
    image = nib.Nifti1Image(array, place.stored)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    # The same map always gives the same bytes.
    write_bytes(str(path), gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))


def _bids_names(run: Run, cases: Sequence[str]) -> dict[str, str]:
    """Paths of BIDS below the dataset, without their end.

    A patient with several cases has a session for each, named by the visit or else by the case. Raises UsageError where
    two patients, or two cases of one, would have the same name.
    """
    members = {member.case_id: member for member in run.cohort.members}
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
        name = f"{folder}/{stem}_space-orig_label-lesion_desc-medad"
        if of_name.setdefault(name, case_id) != case_id:
            raise UsageError(_same(case_id, of_name[name], f"sub-{subject} {session}"))
        names[case_id] = name
    return names


def _same(one: str, other: str, name: str) -> str:
    return f"{one} and {other} would both be {name} in BIDS, which has letters and digits only; use --format nifti"


def _label(name: str, prefix: str) -> str:
    return _NOT_A_LABEL.sub("", name.removeprefix(prefix)) or "x"


def _description(run: Run) -> str:
    facts = {
        "Name": f"medad anomaly maps of {Path(run.cohort.root).name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medad", "Version": version("medad")}],
    }
    return json.dumps(facts, indent=2) + "\n"
