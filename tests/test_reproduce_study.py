"""`medad reproduce`: one whole study of tiny volumes, with real models and a real Prefect server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prefect_harness import write_case
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.config import load_settings
from medad_core.data.location import CELLS
from medad_core.errors import MedadError
from medad_core.reproduce.experiment import open_experiment
from medad_core.reproduce.schema import ROWS
from medad_core.reproduce.units import Unit, read_unit
from medad_core.training.decoder import train_decoder

pytest_plugins = ("prefect_harness",)

TINY = (
    "data.first_slice=48",
    "data.last_slice=59",
    "data.scaling.reference_first=40",
    "data.scaling.reference_last=60",
    "train.first_slice=46",
    "train.last_slice=61",
    "models.threads=2",
    "llm.engine=transformers",
    "evaluate.bootstrap=30",
    "flow.retry_delay_s=0",
    "train.folds=2",
    "train.decoder.steps=30",
    "train.decoder.batch_size=8",
    "train.converter.questions=[presence]",
    "train.converter.warm_up_steps=10",
    "train.converter.synthetic_steps=1",
    "train.converter.real_steps=2",
    "train.converter.batch_size=2",
    "train.converter.validation_maps=4",
    "reproduce.baselines.image_size=32",
    "reproduce.baselines.epochs=1",
    "reproduce.baselines.memory_slots=20",
    "reproduce.baselines.coreset=50",
    "reproduce.gallery=2",
    "data.split={train: 0.5, validation: 0.25, test: 0.25}",
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    """Six balls with a lesion in the upper half of the range, one without a segmentation."""
    root = tmp_path_factory.mktemp("labelled")
    for number in range(7):
        write_case(root, f"BraTS2021_{number:05d}", seed=number, tumour=range(53 + number % 3, 64))
    (root / "BraTS2021_00006" / "BraTS2021_00006_seg.nii.gz").unlink()
    return root


@pytest.fixture(scope="module")
def reproduced(server, cases, tmp_path_factory):
    from flows.reproduce import reproduce

    out = tmp_path_factory.mktemp("reproduced")
    return out, reproduce(str(cases), str(out), load_settings(None, TINY))


def test_every_row_of_the_table_has_its_numbers(reproduced):
    _, made = reproduced
    assert made.failed == ()
    lines = pd.read_parquet(made.table)
    assert set(lines["row"]) == set(ROWS)
    auroc = lines[(lines["level"] == "image") & (lines["metric"] == "auroc")].set_index("row")
    assert auroc["value"].between(0, 1).all() and (auroc["n"] == 12).all()
    assert auroc.loc["majority", "value"] == 0.5
    assert auroc.loc["without-llm", "value"] > 0.8
    assert {(row, reason) for row, reason in made.rejected} == {("BraTS2021_00006", made.rejected[0][1])}
    assert "no segmentation" in made.rejected[0][1]


def test_every_row_is_scored_on_the_very_same_slices(reproduced):
    out, _ = reproduced
    keys = {
        row: [
            tuple(key)
            for key in read_unit(str(out), Unit(row, 0, 0))
            .frame.query("split == 'test'")[["case_id", "slice_index", "label"]]
            .to_numpy()
        ]
        for row in ROWS
    }
    assert all(slices == keys["proposed"] for slices in keys.values())


def test_shuffled_answers_are_those_of_other_slices(reproduced):
    out, _ = reproduced
    own, moved = (read_unit(str(out), Unit(row, 0, 0)).frame for row in ("proposed", "shuffled"))
    assert sorted(own["score"]) == sorted(moved["score"])
    assert (own["score"].to_numpy() != moved["score"].to_numpy()).mean() > 0.9
    assert own["label"].tolist() == moved["label"].tolist()


def test_answers_of_a_shuffled_slice_are_what_the_llm_says_to_that_map(reproduced):
    """The claim behind the row `shuffled`: to another slice's prompt the LLM would say what it said there."""
    from medad_core.reproduce.answers import speaking
    from medad_core.reproduce.proposed import grids_of, load_tokens

    out, _ = reproduced
    chosen, unit = load_settings(None, TINY), Unit("proposed", 0, 0)
    own, moved = (read_unit(str(out), Unit(row, 0, 0)).frame for row in ("proposed", "shuffled"))
    place = {score: at for at, score in enumerate(own["score"])}
    some = [0, 5, 11]
    grids, converter = grids_of(str(out), 0, 0), load_tokens(str(out), unit)
    import torch

    sources = own.iloc[[place[moved["score"].iloc[at]] for at in some]]
    picked = np.stack([grids[row.case_id][row.slice_index - 46] for row in sources.itertuples()])
    with torch.inference_mode():
        tokens = converter(torch.from_numpy(picked).float()).half().numpy()
    with speaking(chosen) as (engine, prompt):
        generations = engine.generate(prompt.assemble(converter.knowledge_tokens().numpy(), tokens))
    assert [answer.text for answer in generations] == moved["answer"].iloc[some].tolist()
    assert [answer.p_yes for answer in generations] == pytest.approx(moved["score"].iloc[some].tolist(), abs=1e-3)


def test_without_knowledge_has_no_knowledge_tokens(reproduced):
    from medad_core.reproduce.proposed import load_tokens

    out, _ = reproduced
    assert load_tokens(str(out), Unit("without-knowledge", 0, 0)).knowledge_tokens().shape[0] == 0
    assert load_tokens(str(out), Unit("proposed", 0, 0)).knowledge_tokens().shape[0] > 0


def test_run_again_it_does_nothing_twice_and_more_seeds_add_only_theirs(reproduced, cases, server, monkeypatch):
    from flows.reproduce import reproduce

    out, _ = reproduced
    before = {path: path.stat().st_mtime_ns for path in (out / "rows").rglob("*.parquet")}
    trained: list[int] = []
    monkeypatch.setattr(
        "medad_core.reproduce.proposed.train_decoder",
        lambda *args, **kwargs: trained.append(args[3]) or train_decoder(*args, **kwargs),
    )
    words = [*TINY, "reproduce.seeds=[0, 1]", "reproduce.rows=[brightness, majority, memory-autoencoder, without-llm]"]
    again = reproduce(str(cases), str(out), load_settings(None, words))
    assert again.failed == ()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert trained == [1]
    lines = pd.read_parquet(again.table)
    assert lines.query("row == 'memory-autoencoder' and metric == 'auroc' and level == 'image'")["seeds"].tolist() == [
        2
    ]


def test_everything_that_is_printed_is_there(reproduced):
    out, _ = reproduced
    for name in (
        "table.parquet",
        "table.csv",
        "table.md",
        "table.tex",
        "figure.png",
        "gallery.html",
        "thresholds.csv",
        "study.json",
        "run.json",
        "cohort.json",
    ):
        assert (out / name).stat().st_size > 100, name
    assert len((out / "table.csv").read_text().splitlines()) > 4
    page = (out / "gallery.html").read_text()
    assert ">nan<" not in page.lower() and ">none<" not in page.lower()


def test_a_row_that_fails_is_in_the_table_with_its_reason_the_others_go_on_and_the_command_says_so(
    server, cases, tmp_path
):
    few, out = tmp_path / "few", tmp_path / "out"
    for number in range(3):
        shutil.copytree(cases / f"BraTS2021_{number:05d}", few / f"BraTS2021_{number:05d}")
    words = [
        *TINY,
        "train.first_slice=57",
        "data.first_slice=57",
        "reproduce.rows=[brightness, without-llm, memory-autoencoder]",
    ]
    done = CliRunner().invoke(app, ["reproduce", str(few), "--out", str(out), *words])
    assert done.exit_code == 1, done.output
    assert "medad: row without-llm failed: fold 0, seed 0: no tumour-free slices to train on; add cases" in done.stderr
    assert (
        "row memory-autoencoder failed: fold 0, seed 0: no tumour-free slices to train on; "
        "add cases with some, or widen train.first_slice" in done.stderr
    )
    assert "failed" in (out / "table.md").read_text() and "failed" in done.stdout
    brightness = (
        pd.read_parquet(out / "table.parquet")
        .query("row == 'brightness' and level == 'image' and metric == 'auroc'")
        .iloc[0]
    )
    assert np.isnan(brightness["value"]) and "one class only" in brightness["reason"]


def test_without_segmentations_every_row_says_so(server, tmp_path):
    from flows.reproduce import RowsFailed, reproduce

    write_case(tmp_path / "bare", "BraTS2021_00001", seed=1)
    (tmp_path / "bare" / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz").unlink()
    with pytest.raises(
        RowsFailed, match="rows of the table failed"
    ) as failed:  # so that the run is no success to Prefect
        reproduce(str(tmp_path / "bare"), str(tmp_path / "out"), load_settings(None, TINY))
    made = failed.value.made
    assert set(dict(made.failed)) == set(ROWS)
    assert all(reason == "no case with a segmentation could be used" for _, reason in made.failed)
    assert len(pd.read_parquet(made.table)) == 0


def test_the_same_study_refuses_other_cases(reproduced, cases, server, tmp_path):
    from flows.reproduce import reproduce

    other = tmp_path / "other"
    write_case(other, "BraTS2021_00099", seed=1)
    with pytest.raises(MedadError, match="was made of other data"):
        reproduce(str(other), str(reproduced[0]), load_settings(None, TINY))


def test_study_file_holds_no_path_outside_and_reads_back(reproduced):
    out, _ = reproduced
    experiment = open_experiment(str(out))
    assert all(not Path(case.features).is_absolute() for case in experiment.cases)
    assert json.loads((out / "study.json").read_text())["folds"]
    assert set(experiment.load(out)) == {f"BraTS2021_{number:05d}" for number in range(6)}
    assert set(CELLS) >= set(read_unit(str(out), Unit("proposed", 0, 0)).frame["location_true"].dropna())
