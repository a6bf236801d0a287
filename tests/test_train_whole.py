"""Training from volumes to weights that screen, with the real LLM: few steps, everything that is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from prefect_harness import WORDS, write_case

from flows.cli.command import consoles
from flows.cli.training import _report_trained
from medad_core.config import load_settings
from medad_core.models.weights import converter_facts, decoder_view, limits_of, trained_on
from medad_core.stages.screen import screen
from medad_core.store import read_table
from medad_core.training.pipeline import train
from tasks.whole import Trained

FEW = (
    *WORDS,
    "data.first_slice=61",
    "data.split.train=1",
    "data.split.validation=0",
    "data.split.test=0",
    "train.first_slice=60",
    "train.last_slice=62",
    "train.context_mm=2",
    "train.window_mm=56",
    "train.mirrored=true",
    "train.folds=2",
    "train.decoder.steps=3",
    "train.decoder.checkpoint_every=3",
    "train.converter.questions=[presence, side]",
    "train.converter.warm_up_steps=2",
    "train.converter.synthetic_steps=1",
    "train.converter.real_steps=1",
    "train.converter.batch_size=2",
    "train.converter.checkpoint_every=1",
    "train.converter.validation_maps=2",
    "train.converter.least_right=0",  # nobody learns a side from six slices
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Trained]:
    root = tmp_path_factory.mktemp("train")
    for number in range(2):
        write_case(root / "data", f"BraTS2021_{number:05d}", seed=number)
    done: list[str] = []
    result = train(
        root / "data",
        root / "weights",
        load_settings(None, FEW),
        lambda step, at, of: done.append(f"{step} {at} {of}"),
        licence="CC0",
        limits="Trained on balls.",
    )
    assert done[-1] == "converter 2 2" and "encode 2 2" in done
    rejected = tuple((item.case_id, item.reason) for item in result.rejected)
    return root, Trained(folder=str(result.folder), rejected=rejected, scores=result.scores)


def test_weights_say_what_they_are_and_their_card_what_they_are_worth(trained, capsys):
    root, result = trained
    folder = root / "weights"
    assert decoder_view(folder).facts == {"context_mm": "2.0", "window_mm": "56.0"}
    facts = converter_facts(folder)
    assert facts.questions == ("presence", "side") and 0.5 <= facts.temperature <= 20
    assert len(trained_on(folder)) == 2 and limits_of(folder) == "Trained on balls."
    card = json.loads((folder / "card.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert card["scores"]["converter"]["slices"] == 2 and card["scores"]["converter_wide"]["slices"] == 3
    assert set(card["scores"]["questions"]) == {"side"}
    assert np.isfinite(card["last_step"]["validation_loss"])
    text = (folder / "card.md").read_text()
    for part in (
        "Not a medical device. Trained on balls.",
        "| side |",
        "slices 60 to 62",
        "Licence of the data: CC0",
    ):
        assert part in text
    assert _report_trained(result, consoles(online=False, mode="private")) == 0
    printed = capsys.readouterr().out
    assert "questions, side: right" in printed and "converter: slices 2" in printed


def test_the_weights_screen_and_answer_what_they_have_learned(trained, tmp_path):
    root, _ = trained
    words = [*WORDS, f"models.weights={root / 'weights'}", "llm.questions=[presence, side]"]
    results = screen(str(root / "data"), str(tmp_path / "run"), load_settings(None, words))
    assert results.slices == 6 and "Trained on balls." in Path(results.page).read_text()
    rows = read_table(str(tmp_path / "run" / "questions.parquet")).to_pandas()
    assert sorted(rows["question"].unique()) == ["presence", "side"] and len(rows) == 12
    assert set(rows["value_true"]) >= {"yes", "no", "none"}
