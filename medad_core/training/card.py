"""The card that goes with weights: data, seeds, the command that makes them again, and scores on patients held out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medad_core.config import Settings
from medad_core.data.findings import PLACES, find
from medad_core.data.location import true_cell
from medad_core.llm.grammar import parse
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation
from medad_core.llm.questions import PRESENCE, REGION, Question, families
from medad_core.llm.temperature import fit_temperature, tempered
from medad_core.llm.transformers_engine import TransformersEngine
from medad_core.media import markdown_text
from medad_core.metrics import PixelHistogram
from medad_core.metrics.answers import Answers, answer_statistics
from medad_core.metrics.decisions import decision_statistics
from medad_core.metrics.location import cell_steps
from medad_core.metrics.maps import pixel_statistics, pooled_dice
from medad_core.metrics.printed import markdown_table, value_text
from medad_core.metrics.scores import calibration_error, score_statistics
from medad_core.metrics.statistic import COHORT, Statistic
from medad_core.metrics.units import Units
from medad_core.models.converter import Converter
from medad_core.models.decoder import image_scores
from medad_core.models.weights import MASKS
from medad_core.training.features import TrainingCase, map_tokens

Scores = dict[str, float | int | None]  # None where undefined

SURE = 0.9  # of a map's score: a verdict against it contradicts the map
MOST_ASKED = 2000  # slices of a large cohort that further questions are scored on
AT_ONCE = 256  # slices whose prompts lie in memory together


def cross_validated_scores(cases: Sequence[TrainingCase], grids: dict[str, np.ndarray], settings: Settings) -> Scores:
    """Image and pixel scores of maps drawn by decoders that had not seen the patient, slices of the screening range."""
    picks = _picks(cases, settings)
    scores: dict[str, list[float]] = {kind: [] for kind in ("max", "quantile", "mean")}
    pixels = PixelHistogram()
    for case, index in picks:
        mask = case.masks[index]
        rendered = case.render(grids[case.case_id], index)
        pixels.accumulate(rendered[0].numpy(), mask)
        scored = case.scored_map(grids[case.case_id], index)
        for kind, values in scores.items():
            values.append(float(image_scores(scored, kind, settings.models.image_score.quantile)))
    slices = _units(picks)
    card = _counts(slices)
    for kind, values in scores.items():
        auroc, _ = score_statistics(slices, np.array(values), COHORT)
        card[f"image_auroc_{kind}"] = _value(auroc, slices.patients)
    pixel_auroc, *_ = pixel_statistics([pixels])
    card["pixel_auroc"] = _value(pixel_auroc, 1)
    card["dice_at_0.5"] = _value(pooled_dice([pixels], np.array([0.5])), 1)
    return card


@dataclass(frozen=True)
class Spoken:
    """What the LLM answered for slices (case, position) that the converter has not learned from.

    `p_yes` (n,) is as the LLM gives it, `map_score` (n,) the score of the map.
    """

    picks: list[tuple[TrainingCase, int]]
    generations: list[Generation]
    p_yes: np.ndarray
    map_score: np.ndarray

    def take(self, wanted: Sequence[tuple[TrainingCase, int]]) -> Spoken:
        """The same for some of the slices."""
        place = {(case.case_id, index): number for number, (case, index) in enumerate(self.picks)}
        at = [place[case.case_id, index] for case, index in wanted]
        return Spoken(list(wanted), [self.generations[n] for n in at], self.p_yes[at], self.map_score[at])


def speak(speaker: Speaker, cases: Sequence[TrainingCase]) -> Spoken:
    """The answers for all slices of `cases` to the question of presence."""
    picks = [(case, index) for case in cases for index in range(len(case.slice_index))]
    generations = speaker.answer(picks, speaker.prompt)
    score = speaker.settings.models.image_score
    maps = (case.scored_map(speaker.grids[case.case_id], index) for case, index in picks)
    scores = [float(image_scores(one, score.kind, score.quantile)[0]) for one in maps]
    return Spoken(picks, generations, np.array([each.p_yes for each in generations]), np.array(scores))


def find_temperature(spoken: Spoken) -> float:
    """The temperature of p(yes) on these slices."""
    return fit_temperature(spoken.p_yes, np.array([case.masks[index].any() for case, index in spoken.picks], bool))


def verdict_scores(spoken: Spoken, temperature: float, settings: Settings, wide: bool = False) -> Scores:
    """The answers on the patients of fold 0, whose maps the converter has not learned from.

    Slices of the screening range, or with `wide` all that were encoded.
    """
    if not wide:
        spoken = spoken.take(_picks(list({id(case): case for case, _ in spoken.picks}.values()), settings))
    slices = _units(spoken.picks)
    answers = _answers(spoken.picks, spoken.generations)
    p_yes = tempered(spoken.p_yes, temperature)
    statistics = [
        *decision_statistics(slices, answers.decision, COHORT),
        *answer_statistics(slices, answers, np.full(len(p_yes), np.nan), settings.evaluate.map_threshold),
        calibration_error(slices, p_yes, probability=True),
    ]
    by_name = {statistic.metric: statistic for statistic in statistics}
    card = _counts(slices)
    card["unparsed"] = int((~answers.says_yes & ~answers.says_no).sum())
    for name, score in (("p_yes_auroc", p_yes), ("map_auroc", spoken.map_score)):
        card[name] = _value(score_statistics(slices, score, COHORT)[0], slices.patients)
    against = (spoken.map_score > SURE) & answers.says_no | (spoken.map_score < 1 - SURE) & answers.says_yes
    card["verdict_against_sure_map"] = float(against.mean()) if len(against) else None
    for metric in (
        "ece",
        "sensitivity",
        "specificity",
        "balanced_accuracy",
        "location_exact",
        "location_exact_or_neighbour",
    ):
        card[metric] = _value(by_name[metric], slices.patients)
    return card


def question_scores(speaker: Speaker, cases: Sequence[TrainingCase]) -> dict[str, Scores]:
    """Right values of every further family that was learned, on `cases` as in `verdict_scores`.

    At most 2,000 slices. Each in the wording of screening, in wordings that nobody learned, and with the map of another
    patient's slice; beside them the share of the commonest true value. Region is asked for one place a slice, in turn.
    """
    settings = speaker.settings
    picks = _thinned(_picks(cases, settings), settings.train.seed)
    if not picks:  # the patients of fold 0 have no slice in the screening range
        return {}
    others = _of_others(picks, settings.train.seed)
    findings = [find(case.masks[at], case.brain[at], case.pixel_mm2) for case, at in picks]
    scores: dict[str, Scores] = {}
    places = list(PLACES)
    for family in settings.train.converter.questions:
        if family == PRESENCE:
            continue
        asked = [Question(family, places[n % len(places)] if family == REGION else None) for n in range(len(picks))]
        true = [question.truth(finding) for question, finding in zip(asked, findings, strict=True)]
        words = [question.worded() for question in asked]
        held_out = len(families()[family].held_out)
        unlearned = [question.worded(n % held_out, held_out=True) for n, question in enumerate(asked)]
        shuffled = [picks[n] for n in others]
        scores[family] = {
            "right": _right_share(asked, speaker.texts(picks, words), true),
            "right_unlearned_words": _right_share(asked, speaker.texts(picks, unlearned), true),
            "right_map_of_another_slice": _right_share(asked, speaker.texts(shuffled, words), true),
            "commonest_value": max(true.count(value) for value in set(true)) / len(true),
        }
    return scores


def may_be_asked(scores: Mapping[str, Scores], least_right: float) -> list[str]:
    """Presence, and the further questions that runs may ask, of those that `question_scores` scored.

    They are right in a share of at least `least_right`, and more often than the commonest value; with 0, all may be
    asked. Those that are not would be wrong too often to be shown.
    """
    good = (
        family
        for family, score in scores.items()
        if not least_right or (score["right"] >= least_right and score["right"] > score["commonest_value"])
    )
    return [PRESENCE, *good]


def _of_others(picks: Sequence[tuple[TrainingCase, int]], seed: int) -> list[int]:
    """For every slice the number of one of another patient, or of another slice where there is but one patient."""
    rng = np.random.default_rng(seed)
    patients = np.array([case.patient for case, _ in picks], object)
    numbers = np.arange(len(picks))
    chosen = []
    for number in numbers:
        pools = (numbers[patients != patients[number]], numbers[numbers != number], numbers)
        chosen.append(int(rng.choice(next(pool for pool in pools if len(pool)))))
    return chosen


def _thinned(picks: list[tuple[TrainingCase, int]], seed: int) -> list[tuple[TrainingCase, int]]:
    """At most MOST_ASKED of the slices, in their order."""
    if len(picks) <= MOST_ASKED:
        return picks
    keep = np.sort(np.random.default_rng(seed).choice(len(picks), MOST_ASKED, replace=False))
    return [picks[number] for number in keep]


def _right_share(asked: Sequence[Question], texts: Sequence[str], true: Sequence[str]) -> float:
    values = [question.read(text) for question, text in zip(asked, texts, strict=True)]
    return float(np.mean([value == truth for value, truth in zip(values, true, strict=True)]))


@dataclass(frozen=True)
class Speaker:
    """Lets the LLM answer for slices (case, position in its arrays)."""

    grids: dict[str, np.ndarray]
    converter: Converter
    prompt: Prompt
    llm: torch.nn.Module
    settings: Settings

    @torch.inference_mode()
    def answer(self, picks: Sequence[tuple[TrainingCase, int]], prompt: Prompt) -> list[Generation]:
        """The answers to one question, that of `prompt`."""
        engine = TransformersEngine(
            prompt,
            max_new_tokens=self.settings.llm.max_new_tokens,
            batch_size=self.settings.train.converter.batch_size,
            model=self.llm,
        )
        generations: list[Generation] = []
        knowledge = self.converter.knowledge_tokens().numpy()
        for start in range(0, len(picks), AT_ONCE):  # prompts of a whole cohort would fill a machine's memory
            tokens = map_tokens(self.converter, picks[start : start + AT_ONCE], self.grids)
            generations += engine.generate(prompt.assemble(knowledge, tokens))
        return generations

    def texts(self, picks: Sequence[tuple[TrainingCase, int]], worded: Sequence[str]) -> list[str]:
        """The answers of slices to a question each, given in its words."""
        texts = [""] * len(picks)
        for words in dict.fromkeys(worded):
            at = [number for number, own in enumerate(worded) if own == words]
            answers = self.answer([picks[number] for number in at], self.prompt.asking(words))
            for number, generation in zip(at, answers, strict=True):
                texts[number] = generation.text
        return texts


def _answers(picks: Sequence[tuple[TrainingCase, int]], generations: Sequence[Generation]) -> Answers:
    parsed = [parse(generation.text) for generation in generations]
    locations = [None if answer is None else answer.location for answer in parsed]
    return Answers(
        answered=np.ones(len(parsed), bool),
        says_yes=np.array([answer is not None and answer.verdict == "yes" for answer in parsed], bool),
        says_no=np.array([answer is not None and answer.verdict == "no" for answer in parsed], bool),
        names_location=np.array([location is not None for location in locations], bool),
        location_steps=cell_steps(locations, [true_cell(case.masks[index]) for case, index in picks]),
    )


def _picks(cases: Sequence[TrainingCase], settings: Settings) -> list[tuple[TrainingCase, int]]:
    """The slices of the screening range: case and position in its arrays."""
    first = settings.data.first_slice
    last = settings.data.last_slice
    return [(case, int(index)) for case in cases for index in case.within(first, last)]


def _units(picks: Sequence[tuple[TrainingCase, int]]) -> Units:
    # Every slice was scored by one decoder or another of the same recipe, and they are ranked together.
    patient, names = pd.factorize(np.array([case.patient for case, _ in picks], object))
    label = np.array([case.masks[index].any() for case, index in picks], float)
    return Units("image", patient, np.zeros(len(names), int), label)


def _counts(slices: Units) -> Scores:
    return {
        "slices": len(slices.label),
        "tumour_free": int(slices.negative.sum()),
        "patients": slices.patients,
    }


def _value(statistic: Statistic, patients: int) -> float | None:
    """The value of a statistic; None where it is undefined."""
    value = float(statistic.values(np.ones((1, patients)))[0])
    return None if np.isnan(value) else value


def write_card(
    out: Path,
    settings: Settings,
    cases: Sequence[TrainingCase],
    folds: list[list[str]],
    scores: dict[str, Scores],
    curve: list[dict],
    decoder_steps: int,
    licence_and_limits: tuple[str, str],
) -> None:
    """Write card.json (everything) and card.md (for people); the licence is of the data, the limits of the weights."""
    card = {
        "cases": [case.case_id for case in cases],
        "patients": sorted({case.patient for case in cases}),
        "data_licence": licence_and_limits[0],
        "limits": licence_and_limits[1],
        "supervision": MASKS,
        "slices": sum(len(case.slice_index) for case in cases),
        "tumour_free_slices": int(sum((~case.has_tumour).sum() for case in cases)),
        "folds": folds,
        "settings": settings.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "scores": scores,
        "decoder_steps": decoder_steps,
        "last_step": {name: None if np.isnan(value) else value for name, value in curve[-1].items()},
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (out / "card.md").write_text(_markdown(card), encoding="utf-8")


def _markdown(card: dict) -> str:
    settings = card["settings"]
    models = settings["models"]
    train = settings["train"]
    everyone = "" if train["hold_out_test"] else " train.hold_out_test=false"
    made_of = f"{len(card['cases'])} cases, {card['slices']} slices ({card['tumour_free_slices']} tumour-free)"
    facts = [
        f"Trained on {made_of}, axial {train['first_slice']} to {train['last_slice']}: {_names(card['cases'])}.",
        f"Licence of the data: {markdown_text(card['data_licence'])}.",
        f"Supervision: {card['supervision']}.",
        f"Made by `medad train DATA --out WEIGHTS{everyone}` with the settings in `card.json`, seed {train['seed']}.",
        f"The decoder kept is trained on all cases, for {card['decoder_steps']} of {train['decoder']['steps']} steps, "
        "as many as served the patients held out best. "
        f"Its scores are of {len(card['folds'])} decoders, each scored on patients it had not seen.",
        f"The converter learned from maps of all patients but {_names(card['folds'][0])}, who chose its checkpoint. "
        "Its scores are of these patients, so they flatter it a little.",
    ]
    parts = [
        f"# Decoder and converter for {_names((models['encoder'], models['text_encoder']))} and "
        + markdown_text(settings["llm"]["model"]),
        " ".join(["For research. Not a medical device.", markdown_text(card["limits"])]).rstrip(),
        "\n".join(f"* {fact}" for fact in facts),
        "## Maps, held-out patients",
        _score_table(card["scores"]["decoder"]),
        "## Answers of the LLM, held-out patients",
        _score_table(card["scores"]["converter"]),
        f"## The same, slices {train['first_slice']} to {train['last_slice']}",
        _score_table(card["scores"]["converter_wide"]),
    ]
    if questions := card["scores"].get("questions"):
        least_right = train["converter"]["least_right"]
        asked = may_be_asked(questions, least_right)[1:]
        allowed = f"Runs may ask {_names(asked) if asked else 'none of them'}"
        rule = f"{allowed}: right in {least_right:g} of the answers, and more often than the commonest value."
        parts += ["## Further questions, held-out patients", _question_table(questions), rule]
    return "\n\n".join(parts) + "\n"


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(markdown_text, names))


def _score_table(scores: Scores) -> str:
    return markdown_table(["score", "value"], [[name, _score_text(score)] for name, score in scores.items()], "ll")


def _question_table(scores: dict[str, Scores]) -> str:
    heads = ["question", "right", "in unlearned words", "map of another slice", "commonest value"]
    rows = [[family, *(_score_text(value) for value in of_family.values())] for family, of_family in scores.items()]
    return markdown_table(heads, rows, "lrrrr")


def _score_text(score: float | int | None) -> str:
    if score is None:
        return "undefined"
    return value_text(score, digits=4) if isinstance(score, float) else str(score)
