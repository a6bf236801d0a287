"""`medad figure`: one slice of a run as a figure for print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import OK, consoles
from flows.cli.options import RunUri, absolute
from medad_core.errors import UsageError

OUT_HELP = "File to write: .png (300 dpi), .svg or .pdf."


def figure(
    run: RunUri,
    case: Annotated[str, typer.Argument(metavar="CASE", help="Name of a case, as in worklist.csv.")],
    slice_index: Annotated[int, typer.Argument(metavar="SLICE", help="Index of a slice, as in predictions.parquet.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help=OUT_HELP)],
) -> int:
    """Draw one slice: picture, expert outline, map, question and answer."""
    from medad_core.report.paper import FORMATS
    from medad_core.run.run import Run
    from medad_core.stages.pictures import draw_slice

    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out}: a figure is a file that ends with {', '.join(FORMATS)}")
    opened = Run.reopen(absolute(run))
    draw_slice(opened, case, slice_index, out)
    consoles(mode=opened.settings.store.mode).out.print(f"figure: {out}", soft_wrap=True)
    return OK
