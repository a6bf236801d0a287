"""`medad export`: the maps of a run as volumes that viewers open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import OK, SOME_REJECTED, consoles
from flows.cli.options import RunUri, absolute
from medad_core.errors import UsageError

OUT_HELP = "Folder to write to; files that are there are replaced."
FORMAT_HELP = "nifti: CASE_map.nii.gz and CASE_mask.nii.gz. bids: a BIDS derivative."
CASE_HELP = "Only this case; may be given several times."
FORMATS = ("nifti", "bids")


def export(
    run: RunUri,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help=OUT_HELP)],
    kind: Annotated[str, typer.Option("--format", metavar="FORMAT", help=FORMAT_HELP)] = "nifti",
    case: Annotated[list[str] | None, typer.Option("--case", metavar="CASE", help=CASE_HELP)] = None,
) -> int:
    """Write map and mask of every case of RUN as NIfTI, on the grid of the volume that it was made of."""
    from medad_core.export.volumes import export as export_run
    from medad_core.run.run import Run

    if kind not in FORMATS:
        raise UsageError(f"--format {kind}: medad knows {' and '.join(FORMATS)}")
    opened = Run.reopen(absolute(run))
    terminals = consoles(mode=opened.settings.store.mode)
    with terminals.err.status("exporting") as status:
        exported = export_run(
            opened, out, kind, case or (), lambda done, of: status.update(f"exporting: {done} of {of} cases")
        )
    terminals.out.print(f"{exported.cases} cases in {exported.folder}", soft_wrap=True)
    for case_id, reason in exported.skipped.items():
        terminals.err.print(f"medad: {case_id} is not exported: {reason}", soft_wrap=True)
    return SOME_REJECTED if exported.skipped else OK
