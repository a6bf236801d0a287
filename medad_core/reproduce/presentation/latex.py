"""`table.tex`: the main numbers for a paper, to be read in with `\\input`.

One decision: it needs `booktabs` and nothing else, and is plain ASCII, so it sets in any class with any engine. The
interval stands below the value and words below words, because side by side they fit no page; as it is, it fits the text
of an A4 article. pandas writes neither rows of two lines nor headings between rows, so the lines are written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from medad_core.media import visible
from medad_core.metrics.printed import interval_text, value_text
from medad_core.reproduce.presentation.facts import GroupFacts
from medad_core.reproduce.presentation.sheet import HEADLINE, Column, Sheet
from medad_core.reproduce.presentation.words import GENERATED, KINDS, PAPER, RULES
from medad_core.reproduce.schema import PHANTOMS, Row

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_SPECIAL |= {character: f"\\{character}" for character in "&%$#_"}
_BEYOND_ASCII = {
    "–": "--",
    "—": "---",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "²": r"$^2$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "…": r"\dots{}",
}


def render_latex(sheet: Sheet) -> str:
    """The text of `table.tex`: one `table` a group, rows by kind."""
    tables = [_table(sheet, group) for group in sheet.groups]
    return "\n\n".join(["% Needs \\usepackage{booktabs}.", *tables]) + "\n"


def escaped(text: str) -> str:
    """`text` on one line as LaTeX prints it; a character that plain LaTeX lacks becomes a question mark."""
    commands = _SPECIAL | _BEYOND_ASCII
    special = "|".join(map(re.escape, commands))
    replaced = re.sub(special, lambda match: commands[match[0]], visible(" ".join(text.split())))
    return replaced.encode("ascii", "replace").decode()


def _table(sheet: Sheet, group: GroupFacts) -> str:
    columns = len(HEADLINE) + 1 + _has_paper(group)
    titles = ["Row", *(column.title[0].upper() + column.title[1:] for column in HEADLINE), "Paper AUC/acc."][:columns]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{2pt}",
            rf"\caption{{{_caption(sheet, group)}}}\smallskip",
            rf"\begin{{tabular}}{{@{{}}l{'c' * (columns - 1)}@{{}}}}",
            r"\toprule",
            _line([escaped(title.rpartition(" ")[0]) for title in titles]),
            _line([escaped(title.rpartition(" ")[2]) for title in titles]),
            *_body(sheet, group, columns),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _caption(sheet: Sheet, group: GroupFacts) -> str:
    counted = f"{group.tested_patients} {group.name}, {group.slices} slices, {group.tumour_free} tumour-free"
    if group.name == PHANTOMS:
        sentences = [f"Generated phantoms, not patients: {counted}.", GENERATED]
    else:
        sentences = [f"{sheet.facts.data}: {counted}."]
    sentences += [
        "Mean over seeds ± standard deviation where there are several; "
        "below, 95 % intervals by bootstrap over patients.",
        f"Thresholds from validation patients (rule: {RULES[sheet.facts.rule]}) where the LLM does not answer itself.",
    ]
    if _has_paper(group):
        sentences.append(
            "Last column: the paper's own AUC, below it its accuracy, in %, from other patients and another split."
        )
    return escaped(" ".join(sentences))


def _has_paper(group: GroupFacts) -> bool:
    """The paper measured no phantoms."""
    return group.name != PHANTOMS


def _body(sheet: Sheet, group: GroupFacts, columns: int) -> Iterator[str]:
    for kind, title in KINDS.items():
        rows = [row for row in sheet.rows if row.kind == kind]
        if rows:
            yield r"\midrule"
            yield rf"\multicolumn{{{columns}}}{{@{{}}l}}{{\textit{{{escaped(title)}}}}} \\"
        for row in rows:
            papers = [f"{value:.2f}" for value in PAPER[row.name]] if row.name in PAPER else ["", ""]
            for line, paper in zip(_of_row(sheet, group.name, row), papers, strict=True):
                cells = [*line, paper] if _has_paper(group) else line
                if any(cells):
                    yield _line(cells)
            yield r"\addlinespace[2pt]"


def _of_row(sheet: Sheet, group: str, row: Row) -> Iterator[list[str]]:
    """Values, then intervals: two lines of cells."""
    reason = sheet.failed(row.name)
    if reason:
        yield [
            escaped(row.title),
            rf"\multicolumn{{{len(HEADLINE)}}}{{p{{0.55\linewidth}}}}{{failed: {escaped(reason)}}}",
        ]
        yield [""] * (len(HEADLINE) + 1)
        return
    yield [escaped(row.title), *(_value(sheet, group, row, column) for column in HEADLINE)]
    yield ["", *(_interval(sheet, group, row, column) for column in HEADLINE)]


def _value(sheet: Sheet, group: str, row: Row, column: Column) -> str:
    line = sheet.find(group, row.name, column)
    if line is None or line.value is None:
        return "--"
    text = escaped(value_text(line.value))
    if round(line.value, 3) == sheet.best(group, column):
        text = rf"\textbf{{{text}}}"
    return text if line.sd is None else rf"{text}{{\tiny$\pm${value_text(line.sd)}}}"


def _interval(sheet: Sheet, group: str, row: Row, column: Column) -> str:
    line = sheet.find(group, row.name, column)
    if line is None or line.value is None or line.ci_low is None or line.ci_high is None:
        return ""
    return rf"{{\scriptsize {escaped(interval_text(line.ci_low, line.ci_high, between='–'))}}}"


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
