"""Names and reasons from outside in what medad writes: they are text in every medium, whatever they spell."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect_harness import write_case
from rich.text import Text
from test_cli import medad

from flows.cli import screening
from flows.cli.command import Consoles
from flows.cli.progress import Board
from flows.cli.quiet import _handler
from flows.cli.tables import plain_table
from flows.cli.terminal import Terminal
from medad_core.config import DataSettings
from medad_core.data.table import read_case_table, write_case_table
from medad_core.inbox.screening import CohortOutcome
from medad_core.media import csv_cell, csv_value, markdown_text, read_csv, visible, write_csv
from medad_core.report.environment import page_environment
from medad_core.reproduce.presentation.latex import escaped

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


FORMULAS = ["=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "'=1", "''@x", "x;=1+1", "＝1"]
NUMBERS = ["-5", "+1.5", "-.5e-3", "0", "60"]
ODD = st.sampled_from(
    [*MARKUP, *CONTROLS, *FORMULAS, *NUMBERS, "\\u{1b}", "\\u{5c}u{", "\udcff", " a ", '"', ",", "a\\"]
)
TEXTS = ODD | st.text() | st.lists(ODD).map("".join)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1))
def test_a_table_gives_back_exactly_what_was_written_and_holds_no_formula(rows):
    text = write_csv(("case_id", "reason"), rows)
    text.encode()
    assert [tuple(row.values()) for row in read_csv(text)] == rows
    for row in list(csv.reader(io.StringIO(text, newline="")))[1:]:
        for cell in row:
            number = re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", cell, re.IGNORECASE)
            assert number or not re.match(r"\s*[=+@\-]", cell), cell
            assert cell == visible(cell) and not re.search(r";\s*[=+@\-]", cell)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_in_a_table_stays_a_number(number):
    assert csv_cell(number) == number == csv_value(number)
    assert csv_cell(-1.5) == -1.5


def test_what_inspect_writes_is_what_screen_reads(tmp_path):
    names = [*MARKUP, *CONTROLS, *FORMULAS, *NUMBERS, " a ", "\u202e", "a\\u{1b}"]
    rows = [
        {"case_id": name, "patient": f"p{name}", "modality": "flair", "role": "volume", "path": f"{number}/{name}.nii"}
        for number, name in enumerate(names)
    ]
    write_case_table(tmp_path / "cases.csv", rows, tmp_path)
    cases = {case.case_id: case for case in read_case_table(tmp_path / "cases.csv", DataSettings().modality).cases}
    assert sorted(cases) == sorted(names)
    for row in rows:
        case = cases[row["case_id"]]
        assert case.patient == row["patient"]
        assert case.volumes["flair"].path == os.path.normpath(f"{tmp_path}/{row['path']}")


@given(TEXTS)
def test_a_name_in_markdown_html_and_latex_is_text(name):
    markdown, latex = markdown_text(name), escaped(name)
    html = page_environment().from_string("<p>{{ name }}</p>").render(name=name)
    for text in (markdown, latex):
        assert text == visible(text) and "\n" not in text
    assert html == visible(html, keep="\n\t") and "<" not in html[3:-4]
    bare = re.sub(r"\\.", "", markdown)
    assert not re.search(r"[\\<*`|\[]", bare) and not re.match(r"[#>+=-]|\d+[.)]", markdown)
    assert latex.isascii()
