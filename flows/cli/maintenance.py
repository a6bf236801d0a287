"""Commands that need no server: phantoms, status, prune, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import FAILED, OK, consoles
from flows.cli.options import absolute

KEEP_HELP = "How many batches, counted from the newest, keep slices, maps, prompts and answers."


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
    from medad_core.inbox.folder import is_cohort
    from medad_core.inbox.verify import verify_cohort
    from medad_core.run.verify import verify_run

    for part in cohort_status(run) if is_cohort(run) else run_status(run):
        terminal().print(part, soft_wrap=isinstance(part, str))
    if not verify:
        return OK
    damaged = list(verify_cohort(run) if is_cohort(run) else verify_run(run))
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
