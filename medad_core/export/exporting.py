"""`medad export`: the maps of all cases of a run, or of those named, in one format.

One decision: a case that cannot be written is recorded with its reason in `not_exported.csv`, and the others go on.
Only what concerns all of them stops the command, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medad_core.data.own_folders import claim_folder, is_medad_folder, mark_folder
from medad_core.data.table import dataset_root
from medad_core.errors import CaseError, UsageError
from medad_core.export.bids import NOT_EXPORTED, BidsDataset
from medad_core.export.case_map import read_case_map
from medad_core.export.nifti import NiftiFiles
from medad_core.export.niivue import NiivueDocuments
from medad_core.export.protocol import Format, Writer
from medad_core.export.sources import Source, sources_of
from medad_core.facts.case import NO_PLACE
from medad_core.media import read_csv, write_csv
from medad_core.run.cohort import Member
from medad_core.run.info import read_run_info
from medad_core.run.rejected import rejected_cases
from medad_core.run.run import Run
from medad_core.stages.facts import thresholds_of
from medad_core.store import write_text
from medad_core.store.files import make_folder, read_bytes, remove
from medad_core.store.objects import is_object


@dataclass
class Exported:
    """The folder, how many cases were written, why others were not, and what is remarkable of those that were."""

    folder: Path
    cases: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


def export(
    run: Run,
    out: Path,
    kind: Format,
    cases: Sequence[str] = (),
    reference: Path | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Exported:
    """Write map (float32, 0 to 1) and mask (uint8) of all cases of a run, or of those named, below `out`.

    The mask is the map at the threshold of the results, or of the settings where there are none yet. Files that exist
    are replaced, and removed where the case cannot be written any more. `reference` is the folder of DICOM series, for
    "dicom-seg" only. Raises UsageError for a case that the run does not have, for names that become the same in BIDS,
    for a folder that holds something else, and for data in a bucket; StoreError where maps are not finished or a file
    cannot be written.
    """
    run.stage("maps").require_finished()
    done = [case_id for part in run.stage("maps").finished_inputs() for case_id in part]
    if is_object(run.cohort.root):
        raise UsageError(
            f"medad export puts maps on the grids of volumes on a disk, and these are in {run.cohort.root}; copy them, "
            f"and run `medad screen COPY --out {run.uri}`, which makes nothing again and knows the new place"
        )
    unknown = [case_id for case_id in cases if case_id not in done]
    if unknown:
        raise UsageError(f"{unknown[0]}: the run has no maps of this case; predictions.parquet lists those it has")
    writer = _writer(run, out, kind, done, reference)
    sources = sources_of(run)
    _claim(run, out)
    writer.begin()
    members = {member.case_id: member for member in run.cohort.members}
    exported = Exported(out)
    if not cases:
        exported.skipped |= _rejected(run, done)
    thresholds = thresholds_of(run)
    wanted = [case_id for case_id in done if not cases or case_id in cases]
    for number, case_id in enumerate(wanted, 1):
        try:
            threshold = thresholds.get(case_id, run.settings.evaluate.map_threshold)
            remark = _write(run, members[case_id], sources.get(case_id), threshold, writer)
        except CaseError as error:
            exported.skipped[case_id] = error.reason
        else:
            exported.cases += 1
            if remark:
                exported.remarks[case_id] = remark
        progress(number, len(wanted))
    _record(exported, writer, members.keys() - wanted if cases else ())
    return exported


def _record(exported: Exported, writer: Writer, others: Collection[str]) -> None:
    """Write `not_exported.csv`, which keeps what it says of `others`, and remove what earlier exports wrote."""
    for case_id in exported.skipped:
        for file in writer.files(case_id):  # on what the case is now it may lie anywhere
            remove(str(file))
    listed = str(exported.folder / NOT_EXPORTED)
    before = {row["case_id"]: row["reason"] for row in read_csv((read_bytes(listed) or b"").decode("utf-8"))}
    kept = {case_id: reason for case_id, reason in before.items() if case_id in others}
    write_text(listed, write_csv(("case_id", "reason"), sorted((kept | exported.skipped).items())))


def _claim(run: Run, out: Path) -> None:
    """Make and mark the folder, so that medad never takes its own masks for an expert's. Raises UsageError."""
    claim_folder(dataset_root(read_run_info(run.uri).data_root), str(out))
    make_folder(str(out))
    mark_folder(str(out))
    if not is_medad_folder(out):
        raise UsageError(f"--out {out}: holds other files; choose a new folder")


def _writer(run: Run, out: Path, kind: Format, done: Sequence[str], reference: Path | None) -> Writer:
    """The writer of a format. Raises UsageError where it cannot write this run."""
    if (kind == "dicom-seg") != (reference is not None):
        raise UsageError(
            "--format dicom-seg needs --reference FOLDER, with the DICOM series of each case in FOLDER/CASE; "
            "no other format has --reference"
        )
    if reference is not None:
        from medad_core.export.dicom import DicomObjects

        return DicomObjects.of(out, reference, run.settings.data)
    if kind == "bids":
        return BidsDataset.of(out, run.cohort, done)
    return NiivueDocuments(out) if kind == "niivue" else NiftiFiles(out)


def _rejected(run: Run, done: Sequence[str]) -> dict[str, str]:
    """Why the run has no map of a case, for all those that it has none of. Raises StoreError."""
    have_maps = set(done)
    return {
        case_id: f"the run rejected it in stage {stage}: {reason}"
        for case_id, stage, reason in rejected_cases(run.stages.values())
        if case_id not in have_maps
    }


def _write(run: Run, member: Member, source: Source | None, threshold: float, writer: Writer) -> str:
    """Write one case; returns what is remarkable of it. Raises CaseError where it cannot be written, and StoreError."""
    if source is None:
        raise CaseError(member.case_id, NO_PLACE)
    root = run.cohort.root
    state = source.state(root)
    path = f"{root}/{member.volume.path}" if member.volume is not None else root
    if state == "changed":
        raise CaseError(
            member.case_id,
            f"{path} has other content than the run read; "
            f"`medad screen DATA --out {run.uri} --refresh` makes its map again",
        )
    if state == "missing" and writer.needs_volume:
        raise CaseError(
            member.case_id,
            f"{path} is not there any more, and this format holds it; bring it back, or use --format nifti",
        )
    writer.write(read_case_map(run, member, source.place, threshold))
    return f"{path} is not there any more; the files lie where it lay" if state == "missing" else ""
