"""`medad ask`: a question in free words about one slice of a run.

One decision: the slice is an option. As a word between CASE and QUESTION that may be left out, it could be taken for
either.
"""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.command import OK, WRONG_USAGE, consoles
from flows.cli.options import Json, RunUri, absolute

CASE_HELP = "Name of a case, as in worklist.csv."
QUESTION_HELP = 'In English and in quotation marks: "Is there any anomaly in the image?"'
SLICE_HELP = "Index of a slice, as in predictions.parquet; left out, the slice that worklist.csv says to look at."


def ask(
    run: RunUri,
    case: Annotated[str, typer.Argument(metavar="CASE", help=CASE_HELP)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help=QUESTION_HELP)],
    slice_index: Annotated[int | None, typer.Option("--slice", metavar="SLICE", help=SLICE_HELP)] = None,
    json: Json = None,
) -> int:
    """Ask about a slice in free words; the answer says which question was answered. 2 where it is declined."""
    from medad_core.run.run import Run

    opened = Run.reopen(absolute(run))
    terminals = consoles(mode=opened.settings.store.mode)
    with terminals.err.status("asking"):
        from medad_core.stages.ask import ask as ask_run

        reply = ask_run(opened, case, question, slice_index)
    for line in reply.lines():
        terminals.out.print(line, soft_wrap=True)
    if json is not None:
        from medad_core.store import write_text

        write_text(str(json), reply.to_json())
    return WRONG_USAGE if reply.declined else OK
