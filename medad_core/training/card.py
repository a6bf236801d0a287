"""The card that goes with weights: data, seeds, the command that makes them again, and scores on patients held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from medad_core.config import Settings
from medad_core.data.location import neighbours, true_cell
from medad_core.data.names import patient_of
from medad_core.llm.grammar import parse
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation
from medad_core.llm.transformers_engine import TransformersEngine
from medad_core.metrics.pixel import PixelHistogram
from medad_core.models.converter import Converter
from medad_core.models.decoder import image_scores, render_maps
from medad_core.training.features import TrainingCase

AT_ONCE = 256  # slices whose prompts lie in memory together


def cross_validated_scores(
    cases: Sequence[TrainingCase], grids: dict[str, np.ndarray], settings: Settings
) -> dict[str, float | int | None]:
    """Image and pixel scores of maps drawn by decoders that had not seen the patient, slices of the screening range."""
    labels, scores, pixels = [], {kind: [] for kind in ("max", "quantile", "mean")}, PixelHistogram()
    for case in cases:
        for index in case.within(settings.data.first_slice, settings.data.last_slice):
            mask = case.masks[index]
            rendered = render_maps(torch.from_numpy(grids[case.case_id][index : index + 1]), *mask.shape)
            pixels.accumulate(rendered[0].numpy(), mask)
            labels.append(bool(mask.any()))
            for kind, values in scores.items():
                values.append(float(image_scores(rendered, kind, settings.models.image_score.quantile)))
    both = 0 < sum(labels) < len(labels)
    result: dict[str, float | int | None] = {
        "slices": len(labels),
        "tumour_free": len(labels) - sum(labels),
        "patients": _patients(cases),
    }
    result |= {
        f"image_auroc_{kind}": float(roc_auc_score(labels, values)) if both else None for kind, values in scores.items()
    }
    return result | {"pixel_auroc": pixels.auroc, "dice_at_0.5": pixels.dice(0.5)}


def _patients(cases: Sequence[TrainingCase]) -> int:
    return len({patient_of(case.case_id) for case in cases})


def verdict_scores(
    cases: Sequence[TrainingCase],
    grids: dict,
    converter: Converter,
    prompt: Prompt,
    llm: torch.nn.Module,
    settings: Settings,
) -> dict[str, float | int | None]:
    """The LLM's answers on the patients of fold 0, whose maps the converter has not learned from, slices of the screening range."""
    engine = TransformersEngine(
        prompt, max_new_tokens=settings.llm.max_new_tokens, batch_size=settings.train.converter.batch_size, model=llm
    )
    picks = [
        (case, index) for case in cases for index in case.within(settings.data.first_slice, settings.data.last_slice)
    ]
    generations: list[Generation] = []
    with torch.inference_mode():
        knowledge = converter.knowledge_tokens().numpy()
        for start in range(0, len(picks), AT_ONCE):  # prompts of a whole cohort would fill a machine's memory
            maps = np.stack([grids[case.case_id][index] for case, index in picks[start : start + AT_ONCE]])
            generations += engine.generate(
                prompt.assemble(knowledge, converter(torch.from_numpy(maps).float()).half().numpy())
            )
    truth = [true_cell(case.masks[index]) for case, index in picks]
    answers = [parse(generation.text) for generation in generations]
    tumour = np.array([cell is not None for cell in truth])
    said_yes = np.array([answer is not None and answer.verdict == "yes" for answer in answers])
    said_no = np.array([answer is not None and answer.verdict == "no" for answer in answers])
    hits = [
        (answer.location, cell)
        for answer, cell in zip(answers, truth, strict=True)
        if answer and answer.location and cell
    ]
    both = 0 < tumour.sum() < len(tumour)
    return {
        "slices": len(truth),
        "tumour_free": int((~tumour).sum()),
        "patients": _patients(cases),
        "unparsed": sum(answer is None for answer in answers),
        "p_yes_auroc": float(roc_auc_score(tumour, [generation.p_yes for generation in generations])) if both else None,
        "sensitivity": float(said_yes[tumour].mean()) if tumour.any() else None,
        "specificity": float(said_no[~tumour].mean()) if not tumour.all() else None,
        "balanced_accuracy": float((said_yes[tumour].mean() + said_no[~tumour].mean()) / 2) if both else None,
        "location_exact": float(np.mean([said == cell for said, cell in hits])) if hits else None,
        "location_exact_or_neighbour": float(np.mean([said == cell or said in neighbours(cell) for said, cell in hits]))
        if hits
        else None,
    }


def write_card(
    out: Path,
    settings: Settings,
    cases: Sequence[TrainingCase],
    folds: list[list[str]],
    scores: dict[str, dict],
    curve: list[dict],
    decoder_steps: int,
    licence: str,
) -> None:
    """Write card.json (everything) and card.md (for people)."""
    card = {
        "cases": [case.case_id for case in cases],
        "data_licence": licence,
        "slices": sum(len(case.slice_index) for case in cases),
        "tumour_free_slices": int(sum((~case.has_tumour).sum() for case in cases)),
        "folds": folds,
        "settings": settings.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "scores": scores,
        "decoder_steps": decoder_steps,
        "last_step": curve[-1],
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (out / "card.md").write_text(_markdown(card))


def _markdown(card: dict) -> str:
    def table(rows: dict) -> str:
        return "\n".join(
            f"| {name} | {'undefined' if value is None else f'{value:.4f}' if isinstance(value, float) else value} |"
            for name, value in rows.items()
        )

    models, train = card["settings"]["models"], card["settings"]["train"]
    return f"""# Decoder and converter for {models["encoder"]}, {models["text_encoder"]} and {card["settings"]["llm"]["model"]}

For research. Not a medical device.

* Trained on {len(card["cases"])} cases, {card["slices"]} slices ({card["tumour_free_slices"]} tumour-free), axial {train["first_slice"]} to {train["last_slice"]}: {", ".join(card["cases"])}.
* Licence of the data: {card["data_licence"]}.
* Made by `medad train DATA --out WEIGHTS{"" if train["hold_out_test"] else " train.hold_out_test=false"}` with the settings in `card.json`, seed {train["seed"]}.
* The decoder kept is trained on all cases, for {card["decoder_steps"]} of {train["decoder"]["steps"]} steps, as many as served the patients held out best. Its scores are of {len(card["folds"])} decoders, each scored on patients it had not seen.
* The converter learned from maps of all patients but {", ".join(card["folds"][0])}, who chose its checkpoint. Its scores are of these
  patients, so they flatter it a little.

## Maps, held-out patients

| score | value |
|---|---|
{table(card["scores"]["decoder"])}

## Answers of the LLM, held-out patients

| score | value |
|---|---|
{table(card["scores"]["converter"])}
"""
