"""`medad inspect`: what medad takes every file for, before anything is screened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import OK, SOME_REJECTED, consoles
from flows.cli.options import Config, Words, absolute
from medad_core.errors import UsageError

OUT_HELP = "Write the table there, a line for each file; corrected, it may be given to `medad screen` in place of DATA."
SHEET_HELP = "Draw a sheet of thumbnails (.png or .pdf), those with a warning first."
SHOWN = 20


def inspect(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of cases, or a table of files (.csv).")],
    out: Annotated[Path | None, typer.Option("--out", metavar="CASES.CSV", help=OUT_HELP)] = None,
    sheet: Annotated[Path | None, typer.Option("--sheet", metavar="FILE", help=SHEET_HELP)] = None,
    words: Words = None,
    config: Config = None,
) -> int:
    """Show what every file below DATA is taken for, by which layout, and what is wrong with it."""
    from medad_core.config import load_settings
    from medad_core.data.inspection import check_case, inspect_cases
    from medad_core.data.source import files_root, find_cases
    from medad_core.data.summary import summarise
    from medad_core.data.table import write_case_table

    _check_targets(out, sheet)
    loaded = load_settings(config, words or [])
    settings = loaded.data
    terminals = consoles(mode=loaded.store.mode)
    data = absolute(data)
    discovery = find_cases(data, settings)
    for line in summarise(discovery, settings.modality):
        terminals.out.print(line, soft_wrap=True)
    with terminals.err.status("reading the volumes") as status:
        rows = inspect_cases(
            discovery,
            settings,
            str(files_root(data, settings)),
            check_case,
            lambda done, of: status.update(f"reading the volumes: {done} of {of} cases"),
        )
    verdicts = {row["case_id"]: row["verdict"] for row in rows if row.get("verdict") and row["role"] == "volume"}
    # What is refused by its name is in the summary already.
    odd = [row for row in rows if row["role"] == "volume" and row["verdict"] in ("warn", "refuse")]
    for row in odd[:SHOWN]:
        terminals.out.print(f"{row['verdict']}: {row['case_id']}: {row['reason']}", soft_wrap=True)
    if len(odd) > SHOWN:
        terminals.out.print(f"and {len(odd) - SHOWN} more, all of them in the table (--out)")
    counts = Counter(verdicts.values())
    refused = counts["refuse"] + len(discovery.rejected)
    terminals.out.print(
        f"{counts['use'] + counts['warn']} to use ({counts['warn']} of them with a warning), {refused} refused"
    )
    if out is not None:
        write_case_table(out, rows, files_root(data, settings))
        terminals.out.print(f"table: {out}", soft_wrap=True)
    if sheet is not None:
        from medad_core.report.sheet import write_sheet

        drawn = write_sheet(sheet, discovery.cases, verdicts, settings)
        terminals.out.print(f"sheet of {drawn} cases: {sheet}", soft_wrap=True)
    return SOME_REJECTED if refused else OK


def _check_targets(out: Path | None, sheet: Path | None) -> None:
    """Raise UsageError, before anything is read, where one of them cannot be written."""
    for path in (out, sheet):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
        if path is not None and path.exists() and not path.is_file():
            raise UsageError(f"{path}: is no file; give the name of a new one")
    if sheet is not None and sheet.suffix.lower() not in (".png", ".pdf"):
        raise UsageError(f"--sheet {sheet}: give a name that ends in .png or .pdf")
