"""Scripts that people write around the same models, each a process of its own.

    python -m medad_core.benchmark.peers.scripts stage NAME DATA RUN < settings    # one stage, in a plain loop
    python -m medad_core.benchmark.peers.scripts results DATA RUN < settings       # predictions, metrics and page
    python -m medad_core.benchmark.peers.scripts loop DATA RUN < settings          # AnomalyGPT's loop, re-stated

One decision: they use medad's reader, models and weights, so that their values must be medad's. The loop takes one
picture at a time through every model: it encodes all sentences again for each, and lets Transformers answer one prompt.
It writes `values.parquet`, with a row a slice, and nothing else: no metrics, no page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from medad_core.benchmark.peers.generate import greedy
from medad_core.config import Settings, settings_from_yaml
from medad_core.llm.protocol import share_of_yes
from medad_core.llm.questions import PRESENCE, Question
from medad_core.llm.temperature import tempered
from medad_core.llm.transformers_engine import load_llm
from medad_core.models.decoder import image_scores, peaks, render_maps
from medad_core.models.text import load_sentences, load_text_encoder, text_features
from medad_core.models.weights import AnyConverter
from medad_core.run.cohort import settle_cohort
from medad_core.run.fingerprints import view_of
from medad_core.run.gather import find_cohort
from medad_core.run.run import Run
from medad_core.stages.answers import Asking
from medad_core.stages.batches import CaseImages, read_cases
from medad_core.stages.complete import complete_stage, plan_stage
from medad_core.stages.evaluate import evaluate_run
from medad_core.stages.loading import MapModels, load_converter_of, load_map_models
from medad_core.stages.rows import embeddings_of, grids_of, map_frames, map_rows
from medad_core.stages.screen import LoopExecutor
from medad_core.store import join, write_table

VALUES = "values.parquet"
Speak = Callable[[Tensor], tuple[str, float]]  # soft tokens (1, T, width) to an answer and its p(yes)


def make_stage(name: str, data: str, uri: str, settings: Settings) -> None:
    """One stage of the run in the folder `uri`, whose cohort the script of the first stage writes."""
    if name == "slices":
        settle_cohort(uri, find_cohort(data, settings.data))
    run = Run.reopen(uri, settings)
    plan_stage(run, name)
    complete_stage(run, name, LoopExecutor(run, name))


def make_results(data: str, uri: str, settings: Settings) -> None:
    """Predictions, metrics and page of a run whose stages are made."""
    run = Run.reopen(uri, settings)
    run.note(data)
    evaluate_run(run)


def loop(data: str, uri: str, settings: Settings) -> None:
    """Read all slices, then take them through the models one at a time."""
    make_stage("slices", data, uri, settings)
    run = Run.reopen(uri, settings)
    models = load_map_models(settings)
    text = partial(text_features, load_text_encoder(settings.models.text_encoder), load_sentences())
    converter = load_converter_of(settings)
    speak = _speaker(settings)
    rows = []
    for case in read_cases(run.stage("slices"), _case_ids(run), view_of(settings)):
        for at, row in enumerate(_map_rows(case, models, text, settings)):
            answer, p_yes = speak(_tokens(converter, row))
            score = row["anomaly_score"][0].as_py()
            rows.append((case.case_id, case.keys["slice_index"][at].as_py(), score, p_yes, answer))
    names = ["case_id", "slice_index", "anomaly_score", "p_yes", "answer"]
    write_table(join(uri, VALUES), pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))))


def _case_ids(run: Run) -> list[str]:
    return [case_id for part in run.stage("slices").finished_inputs() for case_id in part]


@torch.inference_mode()
def _map_rows(
    case: CaseImages, models: MapModels, text: Callable[[], Tensor], settings: Settings
) -> Iterator[pa.Table]:
    """A row of MAPS for every picture of a case."""
    score = settings.models.image_score
    for at, image in enumerate(case.images):
        models.decoder.text.copy_(text())
        grid = models.decoder(models.encoder.encode(np.ascontiguousarray(image[None]))).half()
        rendered = render_maps(grid, *image.shape[-2:])
        scores = image_scores(rendered, score.kind, score.quantile).numpy()
        window = None if case.windows is None else case.windows[at : at + 1]
        yield map_rows(case.keys.slice(at, 1), grid.numpy(), scores, peaks(rendered).numpy(), None, window)


@torch.inference_mode()
def _tokens(converter: AnyConverter, row: pa.Table) -> Tensor:
    """The soft tokens (1, T, width) of a row of MAPS, rounded as they are stored."""
    arrays = (grids_of(row), map_frames(row), embeddings_of(row))
    pictured = [None if array is None else torch.from_numpy(array) for array in arrays]
    return converter(*pictured).half().float()


def _speaker(settings: Settings) -> Speak:
    asking = Asking.of(settings, [Question(PRESENCE)])
    prompt = asking.prompts[0]
    model: Any = load_llm(prompt.folder)
    options = greedy(prompt, settings.llm.max_new_tokens)

    @torch.inference_mode()
    def speak(soft: Tensor) -> tuple[str, float]:
        made = model.generate(
            inputs_embeds=torch.from_numpy(prompt.assemble(asking.knowledge, soft.numpy())), **options
        )
        yes, no = made.logits[0][0, [prompt.yes_token, prompt.no_token]].float().tolist()
        text, _, _ = prompt.read_answer(made.sequences[0].tolist())
        return text, float(tempered(np.array([share_of_yes(yes, no)]), asking.temperature)[0])

    return speak


if __name__ == "__main__":
    script, *arguments = sys.argv[1:]
    {"stage": make_stage, "results": make_results, "loop": loop}[script](
        *arguments, settings_from_yaml(sys.stdin.read())
    )
