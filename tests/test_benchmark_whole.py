"""Benchmarks of answers, whole screenings and start-up: peers have medad's values, commands are really started."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prefect_harness import WORDS, write_case

from medad_core.benchmark import start_up
from medad_core.benchmark.duel import require_equal
from medad_core.benchmark.peers.end_to_end import END_TO_END, _values
from medad_core.benchmark.peers.generate import GENERATE, benchmark_generate
from medad_core.benchmark.peers.scripts import VALUES, loop, make_results, make_stage
from medad_core.benchmark.start_up import benchmark_start_up
from medad_core.config import load_settings
from medad_core.errors import MedadError, UsageError
from medad_core.stages.screen import screen
from medad_core.store import PART_STAGES

pytest_plugins = ("prefect_harness",)
SETTINGS = load_settings(None, WORDS)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")
    write_case(root, "BraTS2021_00000", seed=0)
    return str(root)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("screened") / "run")
    screen(data, folder, SETTINGS)
    return folder


def test_transformers_generate_gives_the_answers_of_the_engine(run):
    report = benchmark_generate(run, ["transformers"], pairs=1, slices=2)
    (pairing,) = report.pairings
    assert set(pairing.differences) == {"answers", "p_yes"} and pairing.differences["answers"] == 0
    assert {fact.name for fact in report.facts} == {"prompts", "prompts a second"}
    assert [peer.name for peer in GENERATE.peers] == ["one-at-a-time", "transformers", "vllm-defaults"]
    with pytest.raises(UsageError, match="--against ollama: peers of generate are one-at-a-time"):
        benchmark_generate(run, ["ollama"])


def test_one_slice_at_a_time_and_plain_scripts_give_the_values_of_a_screening(data, run, tmp_path):
    ours = _values(f"{run}/predictions.parquet")
    assert ours["p_yes"].shape == (3,) and len(np.unique(ours["anomaly_score"])) > 1
    alone, staged = str(tmp_path / "alone"), str(tmp_path / "staged")
    loop(data, alone, SETTINGS)
    require_equal("the loop", ours, _values(f"{alone}/{VALUES}"), END_TO_END.tolerance)
    for name in PART_STAGES:
        make_stage(name, data, staged, SETTINGS)
    make_results(data, staged, SETTINGS)
    require_equal("the scripts", ours, _values(f"{staged}/predictions.parquet"), END_TO_END.tolerance)


def test_start_up_is_that_of_commands_that_end_well(run, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(start_up, "_in_turns", lambda works, *_: {name: [work()] for name, work in works.items()})
    report = benchmark_start_up(run)
    assert report.cases == 1 and len(report.seconds) == 4
    assert all(0 < spread.median < 600 for spread in report.seconds.values())
    with pytest.raises(UsageError, match="has no ledger"):
        benchmark_start_up(run, cohort=str(Path(run).parent))
    with pytest.raises(MedadError, match=r"medad status failed: medad: .*is not a run"):
        start_up._run(["status", str(Path(run).parent)])
