"""`medad plan`: what it says of a cohort is what a run of that cohort then takes."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from prefect_harness import WORDS, write_case
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.benchmark_tables import report_json
from medad_core.benchmark.profile import Evaluation, Profile, Roofline, StageCost, load_profile, profile_of
from medad_core.benchmark.sizing import Sizing, size_cohort
from medad_core.benchmark.spread import Spread
from medad_core.benchmark.stages import benchmark_stages
from medad_core.config import Settings, load_settings
from medad_core.errors import UsageError
from medad_core.run.run import Run
from medad_core.stages.screen import screen
from medad_core.store.listing import tree_bytes
from medad_core.store.objects import bytes_read, requests_made

pytestmark = pytest.mark.usefixtures("untouched")
FEW, MANY = 4, 8
TOLERANCE = 0.25


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(None, [*WORDS, "data.first_slice=62"])  # one slice a case


@pytest.fixture(scope="module", autouse=True)
def short_rooflines():
    """What the device can do at most is measured too, and counts for nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medad_core.benchmark.ceilings.LEAST_S", 0.02)
        yield


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> dict[int, Path]:
    """Folders of so many cases; those of the larger are others of the same kind."""
    root = tmp_path_factory.mktemp("cohorts")
    for cases in (FEW, MANY):
        for number in range(cases):
            write_case(root / str(cases), f"BraTS2021_{number:05d}", seed=10 * cases + number)
    return {cases: root / str(cases) for cases in (FEW, MANY)}


@pytest.fixture(scope="module")
def measured(cohorts, settings, tmp_path_factory) -> Profile:
    return benchmark_stages(str(cohorts[FEW]), str(tmp_path_factory.mktemp("bench")), settings, lambda _: None)


@pytest.fixture(scope="module")
def run(cohorts, settings, tmp_path_factory) -> Run:
    folder = str(tmp_path_factory.mktemp("many") / "run")
    screen(str(cohorts[MANY]), folder, settings)
    return Run.reopen(folder)


def near(value: float) -> object:
    return pytest.approx(value, rel=TOLERANCE)


def test_bytes_tokens_and_counts_of_a_run_are_those_that_were_predicted(measured, run):
    sizing = size_cohort(measured, MANY)
    truth = profile_of(run)
    assert (sizing.slices, sizing.parts, sizing.answers) == (truth.slices, MANY, truth.slices) == (MANY, MANY, MANY)
    stored = {stage.stage: stage.stored_bytes for stage in sizing.stages}
    for name, stage in run.stages.items():
        assert stored[name] == near(sum(part.bytes for part in stage.require_finished().parts)), name
    files = [path for case in Path(run.cohort.root).iterdir() if case.is_dir() for path in case.iterdir()]
    assert sizing.volume_bytes == near(sum(path.stat().st_size for path in files))
    assert sizing.prompt_tokens == truth.prompt_tokens * truth.slices
    assert sizing.answer_tokens == near(run.stage("answers").read(["tokens"])["tokens"].to_numpy().sum())
    # What has a fixed size, such as scripts of the page, counts for each case: too much for a larger cohort.
    assert tree_bytes(run.uri) * 0.8 < sizing.stored_bytes < 2.5 * tree_bytes(run.uri)


@pytest.mark.skipif("MEDAD_QUIET" not in os.environ, reason="MEDAD_QUIET=1 says that nothing else runs here")
def test_seconds_are_within_a_quarter_of_those_predicted(cohorts, settings, tmp_path):
    """Of all stages together, and of those that take a tenth of it or more: seconds of the others say nothing here.

    Both sizes in turn, three times; the median counts, because other programs slow some turns down.
    """
    ratios: dict[str, list[float]] = {}
    for turn in range(3):
        profiles = {}
        for cases, data in cohorts.items():
            folder = str(tmp_path / f"{turn}-{cases}")
            screen(str(data), folder, settings)
            profiles[cases] = profile_of(Run.reopen(folder))
        predicted = {stage.stage: stage.busy_hours * 3600 for stage in size_cohort(profiles[FEW], MANY).stages}
        taken = {name: cost.slice_s * profiles[MANY].slices for name, cost in profiles[MANY].stages.items()}
        whole = sum(taken.values())
        for name in [name for name, seconds in taken.items() if seconds > whole / 10]:
            ratios.setdefault(name, []).append(predicted[name] / taken[name])
        ratios.setdefault("all", []).append(sum(predicted.values()) / whole)
    assert {"maps", "answers"} < set(ratios)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    assert medians == {name: near(1) for name in medians}, ratios


def test_a_bucket_sees_as_many_requests_and_bytes_as_predicted(cohorts, settings):
    profile = benchmark_stages(str(cohorts[FEW]), "memory://bench", settings, lambda _: None)
    before, moved = requests_made(), bytes_read()
    screen(str(cohorts[MANY]), "memory://many/run", settings)
    asked = requests_made() - before
    sizing = size_cohort(profile, MANY)
    assert sizing.requests is not None and {"get", "put"} <= set(sizing.requests)
    assert sum(sizing.requests.values()) == near(asked.total())
    assert sizing.bucket_bytes == near(bytes_read() - moved)


def test_a_measurement_is_of_nothing_that_was_made_before(cohorts, settings, tmp_path):
    with pytest.raises(UsageError, match="is not empty; a measurement needs a new folder"):
        benchmark_stages(str(cohorts[FEW]), str(cohorts[MANY]), settings, lambda _: None)
    shutil.copytree(cohorts[FEW] / "BraTS2021_00000", tmp_path / "one" / "BraTS2021_00000")
    with pytest.raises(UsageError, match="has 1 usable cases; a measurement needs two"):
        benchmark_stages(str(tmp_path / "one"), str(tmp_path / "out"), settings, lambda _: None)


def by_hand(**changes: object) -> Profile:
    """Ten cases of 40 slices; a slice takes 0.1 s in slices, 1 s in maps, 0.01 s in prompts, 0.5 s in answers."""
    seconds = {"slices": 0.1, "maps": 1.0, "prompts": 0.01, "answers": 0.5}
    costs = {name: StageCost(each, Spread.of([each]), 1000.0, start_s=36.0) for name, each in seconds.items()}
    costs["maps"] = replace(costs["maps"], roofline=Roofline(2e9, 1e10, 1e6, 1e9))
    costs["answers"] = replace(costs["answers"], gpus=2)
    profile = Profile(
        device="NVIDIA H100",
        cores=16,
        measured="2026-01-31",
        cases=10,
        slices=400,
        cases_per_part=4,
        volume_bytes=2e6,
        result_bytes=1e4,
        questions=2,
        prompt_tokens=50,
        answer_tokens=10,
        stages=costs,
        evaluation=Evaluation(case_s=0.36, fixed_s=36.0),
    )
    return replace(profile, **changes)


def test_hours_by_hand():
    """1,000 cases, 40,000 slices, 250 parts of 160 slices; 8 GPUs, 2 workers of slices."""
    sizing = size_cohort(by_hand(), 1000, gpus=8, workers=2)
    hours = {stage.stage: stage.hours for stage in sizing.stages}
    assert hours == {
        "slices": pytest.approx((40000 * 0.1 / 2 + 36) / 3600),
        "maps": pytest.approx((160 * 1.0 * 32 + 36) / 3600),  # 250 parts on 8 GPUs: 32 rounds
        "prompts": pytest.approx((160 * 0.01 * 32 + 36) / 3600),
        "answers": pytest.approx((160 * 0.5 * 63 + 36) / 3600),  # a copy of the LLM takes 2 GPUs
        "evaluate": pytest.approx((36 + 360) / 3600),
    }
    maps = sizing.stages[1]
    assert (maps.roofline_hours, maps.roofline_share) == (pytest.approx(40000 * 0.2 / 8 / 3600), pytest.approx(0.2))
    assert sizing.binds == "maps" and sizing.hours == pytest.approx(sum(hours.values()))
    assert sizing.gpu_hours == pytest.approx(8 * sizing.hours)
    assert (sizing.answers, sizing.prompt_tokens, sizing.answer_tokens) == (80_000, 4_000_000, 800_000)
    assert sizing.stored_bytes == pytest.approx(4 * 40000 * 1000 + 1000 * 1e4)


def test_no_more_work_at_once_than_there_are_parts():
    assert [stage.workers for stage in size_cohort(by_hand(), 8, gpus=64).stages] == [2, 2, 2, 2, 1]


def test_a_profile_says_nothing_that_it_does_not_know():
    run = by_hand(device=None, evaluation=None)
    sizing = size_cohort(run, 1000, gpus=8)
    assert "evaluate" not in [stage.stage for stage in sizing.stages]
    assert [text for text in sizing.not_included if "the evaluation, and how long models load" in text]
    with pytest.raises(UsageError, match="measured on cpu, and says nothing of GPUs"):
        size_cohort(by_hand(device="cpu"), 1000, gpus=8)


def plan(*words: object):
    return CliRunner().invoke(app, ["plan", "--cases", "1000000", *map(str, words)])


def test_the_command_prints_a_plan_from_a_profile_and_from_a_run(measured, run, tmp_path):
    profile = tmp_path / "rates.json"
    profile.write_text(report_json(measured))
    assert load_profile(str(profile)) == measured
    shown = plan("--workers", 64, "--profile", profile, "--json", tmp_path / "plan.json")
    assert shown.exit_code == 0 and "1,000,000 cases, 1,000,000 slices" in shown.output and "binds" in shown.output
    written = json.loads((tmp_path / "plan.json").read_text())
    assert set(written) == set(Sizing.__dataclass_fields__) and written["binds"] in shown.output
    of_run = plan("--gpus", 64, "--profile", run.uri)
    assert of_run.exit_code == 0 and f"measured with {MANY} cases of a run" in " ".join(of_run.output.split())


def test_without_a_profile_one_line_says_how_to_measure_one(measured, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"model": "vit-s-14"}')
    texts = {
        (): "medad benchmark stages DATA --json",
        ("--profile", other): "is no profile (Object missing required field `device`",
        ("--profile", tmp_path / "nothing"): "neither a finished RUN nor a profile",
        ("--profile", tmp_path): "neither a finished RUN nor a profile",
    }
    for words, text in texts.items():
        result = plan(*words)
        assert result.exit_code == 2 and text in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1
