"""medad and its peers have equal results on the same input, and no speed is reported of others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.benchmark.duel import Contender, Contest, UnequalError, duel, require_equal
from medad_core.benchmark.peers import encode
from medad_core.benchmark.peers.encode import ENCODE, benchmark_encoders
from medad_core.benchmark.peers.maps import CACHE, benchmark_maps
from medad_core.benchmark.peers.pixel import PIXEL, benchmark_pixel_metrics
from medad_core.benchmark.peers.read import READ, benchmark_read
from medad_core.config import load_settings
from medad_core.data.phantom import generate_cohort
from medad_core.data.read import read_slices
from medad_core.errors import UsageError
from medad_core.models.decoder import render_map
from medad_core.run.gather import find_cohort
from medad_core.stages.rows import map_rows, rendered_maps, slice_rows
from medad_core.store import MAPS, SLICES, Stage

WORDS = [f"data.{key}={value}" for key, value in {"first_slice": 76, "last_slice": 80}.items()]
WORDS += ["data.scaling.reference_first=76", "data.scaling.reference_last=80"]
SETTINGS = load_settings(None, WORDS)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("phantoms")
    generate_cohort(out, 2, seed=1)
    return str(out)


@pytest.fixture(scope="module")
def run(phantoms, tmp_path_factory) -> str:
    """Slices of the phantoms, and maps that show their tumours, none too well."""
    folder = str(tmp_path_factory.mktemp("run"))
    cohort = find_cohort(phantoms, SETTINGS.data)
    cases = [read_slices(cohort.case(member, "flair"), SETTINGS.data) for member in cohort.members]
    rng = np.random.default_rng(0)
    rows = [slice_rows(case, "screen") for case in cases]
    grids = [(8 * case.masks[:, ::15, ::15] - 5 + 2 * rng.standard_normal((5, 16, 16)))[:, None] for case in cases]
    maps = [
        map_rows(table, grid.astype(np.float16), np.zeros(5), np.zeros((5, 2)))
        for table, grid in zip(rows, grids, strict=True)
    ]
    for name, schema, tables in (("slices", SLICES, rows), ("maps", MAPS, maps)):
        stage = Stage(folder, name, schema)
        stage.prepare({"made": "up"}, [[case.case_id for case in cases]])
        stage.write_part(0, tables)
        stage.finish()
    return folder


def installed(contest: Contest) -> list[str]:
    return [peer.name for peer in contest.peers if not peer.missing]


def check(report, contest: Contest) -> None:
    """All installed peers and floors were measured as often as asked, and their results are equal."""
    names = [*installed(contest), *(floor.name for floor in contest.floors)]
    assert [pairing.name for pairing in report.pairings] == names
    for pairing in report.pairings:
        assert pairing.ours_s.n == pairing.theirs_s.n == pairing.ratios.n == 2
        assert pairing.ratios.low <= pairing.ratio * 1.0001 and pairing.ratio <= pairing.ratios.high * 1.0001
        assert pairing.is_floor or pairing.differences
        assert all(value <= contest.tolerance[name] for name, value in pairing.differences.items())
    missing = [peer.name for peer in contest.peers if peer.missing]
    assert [hint.split()[0] for hint in report.missing] == missing


def test_reading_gives_the_pictures_and_masks_of_nibabel_and_of_every_peer_that_is_installed(phantoms):
    report = benchmark_read(phantoms, SETTINGS, pairs=2)
    check(report, READ)
    assert {"nibabel", "nibabel-slices"} <= set(installed(READ))
    assert all(set(pairing.differences) == {"images", "masks"} for pairing in report.pairings if not pairing.is_floor)


def test_reading_other_slices_than_the_reference_is_refused(phantoms):
    with pytest.raises(UsageError, match=r"data\.scaling\.reference_first=60"):
        benchmark_read(phantoms, load_settings(None, WORDS[2:]))


def test_encoding_gives_the_scores_of_a_loop_and_of_transformers(monkeypatch):
    monkeypatch.setattr(encode, "SLICES", 3)
    monkeypatch.setattr(encode, "_GEMM_S", 0.1)
    report = benchmark_encoders(load_settings(), pairs=2, cases=1)
    check(report, ENCODE)
    assert {"one-at-a-time", "transformers"} <= set(installed(ENCODE))


def test_maps_come_back_as_those_that_were_stored_as_pixels(run):
    report = benchmark_maps(run, pairs=2, slices=90)
    check(report, CACHE)
    facts = {fact.name: fact.value for fact in report.facts}
    assert facts["npy, times as large"] > facts["float16-parquet, times as large"] > 1


def test_pixel_metrics_are_those_of_scikit_learn_and_of_the_definition(run):
    report = benchmark_pixel_metrics(run, pairs=2, maps=12)
    check(report, PIXEL)
    compared = {pairing.name: set(pairing.differences) for pairing in report.pairings}
    assert compared["scikit-learn"] == {"auroc", "ap"} and compared["anomalib"] == {"aupro"}


def test_drawing_maps_together_changes_no_pixel(run):
    stage = Stage(run, "maps", MAPS)
    stage.prepare({"made": "up"}, [part.inputs for part in stage.find_plan().parts])
    table = stage.read()
    grids = [np.frombuffer(row["grid"], np.float16).reshape(1, 16, 16) for row in table.to_pylist()]
    assert len(grids) == 10, "fewer would be drawn at once"
    np.testing.assert_array_equal(rendered_maps(table, 240, 200), [render_map(grid, 240, 200) for grid in grids])


def summing(name: str, error: float = 0.0, packages: tuple[str, ...] = ()) -> Contender[np.ndarray]:
    def open_(given: np.ndarray):
        return lambda: lambda: {"sums": given.sum(axis=1) + error}

    return Contender(name, "a sum", open_, packages)


CONTEST = Contest(
    "sum", summing("medad"), (summing("alike", 1e-9), summing("absent", packages=("no-such-thing",))), {"sums": 1e-6}
)


def test_a_speed_of_unequal_results_is_refused_with_the_largest_difference():
    wrong = replace(CONTEST, peers=(summing("alike"), summing("wrong", 0.25)))
    with pytest.raises(UnequalError, match=r"wrong has other results: sums differ by up to 0\.25.*no speed"):
        duel(wrong, np.ones((3, 4)), "ones")


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"sums": np.ones(2)}, r"shape \(2,\)"),
        ({"sums": np.array([1.0, np.nan, 1.0])}, "nan"),
        ({"means": np.ones(3)}, "none of the results"),
    ],
    ids=["shape", "nan", "name"],
)
def test_results_that_cannot_be_compared_are_not_equal(theirs, message):
    with pytest.raises(UnequalError, match=message):
        require_equal("it", {"sums": np.ones(3)}, theirs, {"sums": 1.0})


def test_a_peer_that_is_not_installed_is_named_with_the_way_to_install_it():
    report = duel(CONTEST, np.ones((3, 4)), "ones", pairs=1)
    assert [pairing.name for pairing in report.pairings] == ["alike"]
    (hint,) = report.missing
    assert hint.startswith("absent needs") and "pip install no-such-thing" in hint
    with pytest.raises(UsageError, match="pip install no-such-thing"):
        CONTEST.chosen(["absent"])
    with pytest.raises(UsageError, match="peers of sum are alike, absent"):
        CONTEST.chosen(["other"])


def test_turns_alternate_after_one_of_each():
    order: list[str] = []

    def noting(name: str) -> Contender[None]:
        def open_(_given: None):
            def act():
                order.append(name)
                return lambda: {"sums": np.ones(1)}

            return act

        return Contender(name, "", open_)

    duel(Contest("note", noting("a"), (noting("b"), noting("c")), {"sums": 0.0}), None, "", pairs=2)
    assert "".join(order) == "abc" + "abab" + "acac"


def test_the_command_writes_json_and_the_table_is_made_of_it(run, tmp_path, untouched):
    file = tmp_path / "pixel.json"
    words = ["benchmark", "pixel-metrics", run, "--slices", "12", "--pairs", "1", "--against", "scikit-learn"]
    result = CliRunner().invoke(app, [*words, "--json", str(file)])
    assert result.exit_code == 0, result.output
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert stored["work"] == "pixel-metrics" and stored["commit"] and stored["date"] and stored["device"]
    table = CliRunner().invoke(app, ["benchmark", "table", str(file)])
    assert table.exit_code == 0, table.output
    (row,) = [line for line in table.output.splitlines() if line.startswith("| pixel-metrics")]
    assert f"{stored['pairings'][0]['ratio']:.2f} (" in row and "scikit-learn" in row
    Path(file).write_text('{"work": "read"}', encoding="utf-8")
    other = CliRunner().invoke(app, ["benchmark", "table", str(file)])
    assert other.exit_code == 2 and "no report of a measurement with peers" in other.output


def test_an_unknown_peer_is_refused_before_anything_is_read(tmp_path, untouched):
    result = CliRunner().invoke(app, ["benchmark", "maps", str(tmp_path), "--against", "nobody"])
    assert result.exit_code == 2 and "peers of maps are float16-parquet, npy" in result.output
