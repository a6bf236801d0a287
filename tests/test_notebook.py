"""The notebook is executed on a run, and what it shows is what the files of the run say."""

from __future__ import annotations

import base64
import html
import io
import os
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib import image
from nbclient import NotebookClient
from prefect_harness import WORDS, write_case

from medad_core.config import load_settings
from medad_core.metrics.names import MAIN_METRICS, metric_name
from medad_core.metrics.printed import interval_text, value_text
from medad_core.stages.screen import screen

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "medad_core" / "notebook.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("notebook")
    for number in range(2):
        write_case(folder / "data", f"BraTS2021_{number:05d}", seed=number, tumour=range(60 + number, 64))
    screen(str(folder / "data"), str(folder / "run"), load_settings(None, WORDS))
    return folder / "run"


@pytest.fixture(scope="module")
def cells(run) -> list[nbformat.NotebookNode]:
    """The cells of code after they were executed, in a kernel that starts beside the run; one that fails raises."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    beside = {"metadata": {"path": str(run.parent)}}
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources=beside)
    client.execute(env={**os.environ, "MEDAD_RUN": str(run), "PYTHONPATH": paths, "MPLBACKEND": "inline"})
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cells: list[nbformat.NotebookNode], words: str, kind: str) -> str:
    """What the one cell that holds `words` shows in a form such as text/html."""
    (cell,) = [cell for cell in cells if words in cell.source]
    (found,) = [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]
    return found


def test_it_is_shipped_without_outputs_and_opens_the_demo():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert 'os.environ.get("MEDAD_RUN", "demo/run")' in code[0].source
    assert "Not a medical device" in notebook.cells[0].source


def test_its_numbers_are_those_of_the_metrics(run, cells):
    table = shown(cells, "MAIN_METRICS", "text/html")
    rows = pd.read_parquet(run / "metrics.parquet").astype(object)
    (split,) = {"test", "all"} & set(rows["split"]) if "test" not in set(rows["split"]) else ("test",)
    rows = rows[rows["split"] == split].set_index(["metric", "level"])
    present = [key for key in MAIN_METRICS if key in rows.index]
    assert table.count("<tr>") == len(present) and len(present) >= 6
    for key in present:
        row = rows.loc[key].replace({np.nan: None})
        row = row.iloc[0] if isinstance(row, pd.DataFrame) else row
        texts = (metric_name(key[0]), value_text(row["value"]), interval_text(row["ci_low"], row["ci_high"]))
        for text in texts:
            assert f"<td>{html.escape(text, quote=False)}</td>" in table, text


def test_its_tables_are_those_of_the_files(run, cells):
    cases = pd.read_parquet(run / "cases.parquet").set_index("case_id")
    assert (
        shown(cells, "cases[[", "text/html")
        == cases[["split", "volume_ml", "volume_ml_true", "longest_mm", "side", "is_cut"]]._repr_html_()
    )
    predictions = pl.read_parquet(run / "predictions.parquet")
    counted = shown(cells, "answered_yes", "text/plain")
    for (case_id,), rows in predictions.group_by("case_id"):
        (line,) = [line for line in counted.splitlines() if case_id in line]
        cells_of_line = [cell.strip() for cell in line.split("┆")]
        assert cells_of_line[1:3] == [str(len(rows)), str((rows["verdict"] == "yes").sum())]


def test_it_draws_the_map_of_the_first_case_of_the_worklist(cells):
    png = base64.b64decode(shown(cells, "imshow", "image/png"))
    pixels = image.imread(io.BytesIO(png))[..., :3]
    assert np.ptp(pixels[:, : pixels.shape[1] // 2]) > 0.5  # the slice
    right = pixels[:, pixels.shape[1] // 2 :]
    assert np.abs(right[..., 0] - right[..., 2]).max() > 0.3  # colours of the map


def test_it_writes_one_report_and_asks_one_question(run, cells):
    first = pd.read_csv(run / "worklist.csv").iloc[0]
    names = {path.name for path in (run / "reports").iterdir()}
    assert {f"{first['case_id']}.{form}" for form in ("md", "html", "pdf", "json")} <= names
    assert not any(name.endswith(".json") and not name.startswith(first["case_id"]) for name in names)
    assert first["case_id"] in shown(cells, "case_markdown", "text/markdown")
    (said,) = [output.text for output in cells[-1].outputs if output.get("name") == "stdout"]
    answers = pd.read_parquet(run / "predictions.parquet").set_index(["case_id", "slice_index"])["answer"]
    assert f"“{answers[first['case_id'], first['look_at']]}”" in said
