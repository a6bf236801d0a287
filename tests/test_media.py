"""Names and reasons from outside in what medad writes: they are text in every medium, whatever they spell."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from prefect_harness import write_case
from rich.text import Text
from test_cli import medad

from flows.cli import screening
from flows.cli.command import Consoles
from flows.cli.progress import Board
from flows.cli.quiet import _handler
from flows.cli.tables import plain_table
from flows.cli.terminal import Terminal
from medad_core.inbox.screening import CohortOutcome
from medad_core.media import visible

ROOT = Path(__file__).parents[1]
MARKUP = ["[/]", "[bold]x", ":smile:", "[link=https://example.org]x[/link]"]
CONTROLS = {"a\x1b[2Jb": r"a\x1b[2Jb", "a\rb\nc": r"a\rb\nc", "a\u202eb": r"a\u202eb", "a\x9bm": r"a\x9bm"}


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def console(request) -> Terminal:
    return Terminal(file=io.StringIO(), force_terminal=request.param, width=200)


def shown(console: Terminal) -> str:
    return Text.from_ansi(console.file.getvalue()).plain


@pytest.mark.parametrize(("name", "seen"), [*zip(MARKUP, MARKUP, strict=True), *CONTROLS.items()])
def test_a_console_prints_a_name_as_it_is_spelt_whichever_way_it_gets_there(console, name, seen):
    console.print(f"printed {name}")
    table = plain_table("head " + name)
    table.add_row("cell " + name)
    console.print(table)
    with console.status(f"begins {name}") as status:
        status.update(f"goes on {name}")
    board = Board(console)
    with board.progress:
        board.show(f"step {name}", 1, 2, f"note {name}")
    log = logging.Logger("media")
    log.addHandler(_handler(console, debug=True))
    log.warning("logged %s", name)
    output = shown(console)
    for way in ("printed", "head", "cell", "step", "note", "logged", *(["goes on"] if console.is_terminal else [])):
        assert f"{way} {seen}" in output, (way, output)
    assert name == seen or name not in console.file.getvalue()


def test_no_other_module_makes_a_console_or_reads_markup():
    sources = {path.name: path.read_text() for path in (ROOT / "flows").rglob("*.py")}
    assert not [name for name, text in sources.items() if re.search(r"\bConsole\(", text)]
    assert not [name for name, text in sources.items() if "from_markup" in text or "markup=True" in text]


def test_inspect_and_status_print_names_as_they_are_spelt(tmp_path):
    data = tmp_path / "[bold]data"
    for name in MARKUP[:3]:
        write_case(data, name.replace("/", "-"), seed=1)
    (data / "[-]" / "[-]_flair.nii.gz").write_bytes(b"no volume")
    result = medad("inspect", data, "--out", tmp_path / "[red]cases.csv", "data.first_slice=60", "data.last_slice=61")
    assert result.exit_code == 3, result.output
    for text in ("refuse: [-]:", f"table: {tmp_path}/[red]cases.csv"):
        assert text in result.stdout, result.stdout
    (tmp_path / "cohort").mkdir()
    missing = medad("status", f"{tmp_path}/[/]\x1b[2J")
    assert missing.exit_code == 1 and r"[/]\x1b[2J" in missing.stderr and "\x1b" not in missing.stderr


def test_the_end_of_a_screening_names_cases_as_they_are_spelt(console):
    names = {name: f"reason {name}" for name in (*MARKUP, *CONTROLS)}
    outcome = CohortOutcome(
        batches=[], waiting=names, unusable=names, cases=0, slices=0, predictions="/x/[/]/predictions.parquet"
    )
    screening._report_cohort(outcome, Consoles(console, console))
    for name in names:
        assert f"medad: {visible(name)} waits: reason {visible(name)}" in shown(console)
        assert f"medad: {visible(name)} cannot be used: reason {visible(name)}" in shown(console)
