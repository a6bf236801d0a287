"""`medad benchmark growth`: the same cases several times, each size measured in a process of its own."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
from PIL import Image
from prefect_harness import WORDS, write_case

from flows.cli.benchmark_tables import growth_table, report_json
from medad_core.benchmark.growth import EVALUATION, benchmark_growth, growth_png
from medad_core.config import load_settings
from medad_core.errors import UsageError
from medad_core.store import PART_STAGES


def test_sizes_are_of_the_same_cases_and_are_measured_apart(tmp_path):
    for number in range(2):
        write_case(tmp_path / "data", f"BraTS2021_{number:05d}", seed=number)
    report = benchmark_growth(str(tmp_path / "data"), load_settings(None, [*WORDS, "data.first_slice=62"]), (2, 1))
    one, two = report.sizes
    assert (one.times, one.cases, one.slices) == (1, 2, 2)
    assert (two.times, two.cases, two.slices) == (2, 4, 4)
    for size in report.sizes:
        assert set(size.slice_ms) == {*PART_STAGES, EVALUATION}
        assert min(size.slice_ms.values()) > 0
        assert size.peak_mb > 200  # of a process that has loaded models
    assert report.time_growth == pytest.approx(two.all_ms / one.all_ms)
    assert json.loads(report_json(report))["sizes"][1]["slices"] == 4
    assert growth_table(report).row_count == len(one.slice_ms) + 3
    width, height = Image.open(BytesIO(growth_png(report))).size
    assert width > height > 300


def test_a_cohort_without_a_usable_case_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no usable case"):
        (tmp_path / "data" / "BraTS2021_00001").mkdir(parents=True)
        (tmp_path / "data" / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz").write_bytes(b"")
        benchmark_growth(str(tmp_path / "data"), load_settings(None, WORDS))
