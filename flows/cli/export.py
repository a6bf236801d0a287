"""`medad export`: the maps of a run as volumes that viewers open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import OK, SOME_REJECTED, complain, consoles
from flows.cli.options import RunUri, absolute
from medad_core.errors import UsageError

OUT_HELP = "Folder to write to; files that are there are replaced."
FORMAT_HELP = (
    "nifti: CASE_map.nii.gz and CASE_mask.nii.gz. bids: a BIDS derivative. dicom-seg: Segmentation and Parametric Map "
    "beside the DICOM series of each case (--reference). niivue: CASE.nvd with volume, map and mask, for NiiVue."
)
REFERENCE_HELP = "For dicom-seg: the DICOM series of a case is in FOLDER/CASE, on the grid of its volume."
CASE_HELP = "Only this case; may be given several times."
FORMATS = ("nifti", "bids", "dicom-seg", "niivue")


def export(
    run: RunUri,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help=OUT_HELP)],
    kind: Annotated[str, typer.Option("--format", metavar="FORMAT", help=FORMAT_HELP)] = "nifti",
    reference: Annotated[Path | None, typer.Option("--reference", metavar="FOLDER", help=REFERENCE_HELP)] = None,
    case: Annotated[list[str] | None, typer.Option("--case", metavar="CASE", help=CASE_HELP)] = None,
) -> int:
    """Write map and mask of every case of RUN for viewers, on the grid of the volume that they were made of."""
    from medad_core.export.exporting import export as export_run
    from medad_core.run.run import Run

    if kind not in FORMATS:
        raise UsageError(f"--format {kind}: medad knows {', '.join(FORMATS[:-1])} and {FORMATS[-1]}")
    opened = Run.reopen(absolute(run))
    terminals = consoles(mode=opened.settings.store.mode)
    with terminals.err.status("exporting") as status:
        exported = export_run(
            opened, out, kind, case or (), reference, lambda done, of: status.update(f"exporting: {done} of {of} cases")
        )
    terminals.out.print(f"{exported.cases} cases in {exported.folder}", soft_wrap=True)
    for case_id, remark in exported.remarks.items():
        complain(f"{case_id}: {remark}")
    for case_id, reason in exported.skipped.items():
        complain(f"{case_id} is not exported: {reason}")
    return SOME_REJECTED if exported.skipped else OK
