"""`report/index.html`: the metrics of a run, and its worklist as a table that is sorted and filtered in the page.

One decision: the table is made by the page's script from `worklist.js`, which the pages of the cases read too. So the
page of a case knows its neighbours in the list that its reader chose, and is not written again when the list changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from medad_core.facts.worklist import FINDINGS
from medad_core.metrics import MetricRow
from medad_core.metrics.markdown import split_title
from medad_core.metrics.printed import interval_text, value_text
from medad_core.report.curves import Curves, sensitivity_by_size
from medad_core.report.environment import page_environment
from medad_core.report.html import headlines
from medad_core.report.reliability import Bin, radii
from medad_core.report.scripts import script_of
from medad_core.report.summary import RunSummary, main_split
from medad_core.report.worklist_rows import REJECTED, PageRow, row_values


def render_index(
    summary: RunSummary, metrics: Sequence[MetricRow], rows: Sequence[PageRow], curves: Curves, bins: Sequence[Bin]
) -> str:
    """The page as a string, UTF-8. `metrics` are all rows of `metrics.parquet`; `curves` and `bins` of the main split.

    Where nothing is labelled, it says so in place of metrics.
    """
    split = main_split(metrics)
    sizes = sensitivity_by_size([row for row in metrics if row.split == split])
    screened = [row for row in rows if row.finding != REJECTED]
    return (
        page_environment(number=value_text, interval=interval_text, split=split_title)
        .get_template("index.html.j2")
        .render(
            summary=summary,
            split=split,
            headlines=headlines(metrics, split),
            cases=len(screened),
            slices=sum(row.slices or 0 for row in screened),
            rejected=len(rows) - len(screened),
            findings=[(name, sum(row.finding == name for row in rows)) for name in (*FINDINGS, REJECTED)],
            curves=curves,
            bins=list(zip(bins, radii(bins), strict=True)),
            size_rows=sizes,
            sizes_shown=any(row.value is not None for row in sizes),
        )
    )


def worklist_script(rows: Sequence[PageRow]) -> str:
    """The script with the rows of the worklist."""
    return script_of("worklistRows", [row_values(row) for row in rows])
