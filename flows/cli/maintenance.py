"""Commands that need no server: phantoms, status, prune, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import FAILED, OK, consoles
from flows.cli.options import Config, Words, absolute
from medad_core.errors import UsageError

KEEP_HELP = "How many batches, counted from the newest, keep slices, maps, prompts and answers."

NAMES_HELP = "Write the names there, and not to the terminal; its mode is 0600."


def phantom(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the cohort.")],
    cases: Annotated[int, typer.Option("--cases", min=1, help="How many cases.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same cohort.")] = 0,
) -> None:
    """Generate a cohort of phantoms (no patients) in BraTS 2021 layout."""
    from medad_core.store import check_writable

    terminals = consoles()
    check_writable(out)
    with terminals.err.status(f"drawing {cases} phantoms"):
        from medad_core.data.phantom import generate_cohort

        generate_cohort(Path(out), cases, seed)
    terminals.out.print(f"{cases} phantoms, not patients: {out}", soft_wrap=True)


def status(
    run: Annotated[str, typer.Argument(metavar="RUN|COHORT", help="Folder or URI of a run, or folder of a cohort.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its recorded hash.")] = False,
) -> int:
    """Say how far a run or a cohort is, from its files alone."""
    from flows.cli.status import cohort_status, run_status
    from flows.cli.terminal import terminal
    from medad_core.inbox.records import is_cohort

    for part in cohort_status(run) if is_cohort(run) else run_status(run):
        terminal().print(part, soft_wrap=isinstance(part, str))
    if not verify:
        return OK
    from medad_core.inbox.verify import verify_folder  # what reads volumes takes a second

    damaged = list(verify_folder(run))
    for line in damaged:
        terminal().print(line, markup=False, soft_wrap=True)
    terminal().print(f"verified: {len(damaged) or 'no'} damaged or missing files", markup=False)
    return FAILED if damaged else OK


def prune(
    cohort: Annotated[str, typer.Argument(metavar="COHORT", help="Folder of a cohort.")],
    keep: Annotated[int, typer.Option("--keep", min=0, help=KEEP_HELP)] = 3,
) -> None:
    """Remove what lies between volumes and predictions from older batches.

    Predictions, pages, metrics and records stay.
    """
    from medad_core.inbox.prune import prune as prune_cohort

    terminals = consoles()
    pruned = prune_cohort(absolute(cohort), keep)
    freed = f"{len(pruned)} batches pruned, {sum(pruned.values()) / 1e6:.1f} MB freed"
    terminals.out.print(freed if pruned else "nothing to prune")


def pseudonyms(
    key: Annotated[Path, typer.Argument(metavar="KEYFILE", help="The file with the key of the pseudonyms.")],
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="Show whom the pseudonyms of DATA mean.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Make KEYFILE, for data.pseudonyms=KEYFILE.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="NAMES.CSV", help=NAMES_HELP)] = None,
    words: Words = None,
    config: Config = None,
) -> None:
    """Make a key for pseudonyms, or show which names the pseudonyms of DATA stand for."""
    from medad_core.config import load_settings
    from medad_core.data.pseudonyms import NAMES, Pseudonyms, make_key, names_of
    from medad_core.data.source import find_named_cases
    from medad_core.media import write_csv
    from medad_core.permissions import set_mode
    from medad_core.store import write_text

    if new == (data is not None):
        raise UsageError("give KEYFILE --new to make a key, or KEYFILE DATA to show names")
    set_mode("private")
    if data is None:
        make_key(key)
        consoles().out.print(f"{key}: keep it apart from the results; without it, no pseudonym leads to a name")
        return
    settings = load_settings(config, words or []).data
    rows = names_of(find_named_cases(absolute(data), settings, may_be_empty=True), Pseudonyms.read(key))
    table = write_csv(NAMES, ([row.get(name, "") for name in NAMES] for row in rows))
    if out is None:
        typer.echo(table, nl=False)
    else:
        write_text(str(out), table)
        consoles().out.print(f"names of {len(rows)}: {out}", soft_wrap=True)


def doctor() -> int:
    """Say what is there, what is missing and what to do."""
    terminals = consoles()
    from flows.cli.doctor import examine, findings_table

    with terminals.err.status("looking"):
        findings = list(examine())
    terminals.out.print(findings_table(findings))
    faults = sum(finding.state == "fault" for finding in findings)
    verdict = f"screening cannot run: {faults} things are missing" if faults else "screening can run"
    terminals.out.print(verdict)
    return FAILED if faults else OK
