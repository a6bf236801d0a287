"""Answers about patients unseen by decoder and converter: `measure_converters.py DATA WORK [SEED…] [KEY=VALUE…]`.

For every seed, decoders are trained without each fold of patients in turn, and then a converter without each fold, with
the settings of configs/train.yaml (and those that are given), and without choosing a checkpoint, so that no fold has a
say in its own score. The converters of all seeds and folds learn side by side (`side_by_side`). WORK keeps what is
trained; the same command goes on where it stopped. It takes minutes on a GPU and days on two cores. Prints tables in
Markdown.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure_decoders import cross_validated
from side_by_side import Fit, train_side_by_side
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn

from medad_core.config import Settings, load_settings
from medad_core.data.findings import PLACES, find
from medad_core.data.location import true_cell
from medad_core.llm.engine import llm_folder
from medad_core.llm.grammar import parse
from medad_core.llm.prompt import Prompt
from medad_core.llm.questions import PRESENCE, REGION, Question, families
from medad_core.llm.transformers_engine import load_llm
from medad_core.metrics.location import cell_steps
from medad_core.models.converter import Converter
from medad_core.models.decoder import image_scores
from medad_core.models.device import device_of, settle_torch
from medad_core.models.text import load_sentences, load_text_encoder
from medad_core.training.features import TrainingCase, map_tokens
from medad_core.training.fitting import Grids
from medad_core.training.folds import deal_folds
from medad_core.training.loop import arithmetic_of

log = logging.getLogger(__name__)
RANGES = ((60, 100), (20, 130))
AT_ONCE = 512
REPLICATES = 1000
SURE = 0.9
THRESHOLD = 0.5  # of the map, where its own answer stands beside that of the LLM


def main(data: str, work: str, seeds: Sequence[int], words: Sequence[str]) -> None:
    """Train, ask and print."""
    place = Path(work)
    cases: list[TrainingCase] = []
    fits: list[Fit] = []
    for seed in seeds:
        settings = settings_of(seed, words)
        cases, grids = cross_validated(data, place, f"seed-{seed}", settings)
        fits += fits_of(cases, grids, settings)
    settle_torch(settings)
    arithmetic = arithmetic_of(settings.train, device_of(settings))
    knowledge = load_text_encoder(settings.models.text_encoder).encode(load_sentences().knowledge)
    prompt = Prompt(llm_folder(settings.llm.model), settings.llm.template)
    llm = load_llm(prompt.folder, arithmetic.dtype).to(arithmetic.device)
    trained = train_side_by_side(cases, fits, knowledge, prompt, llm, settings, arithmetic, place / "side-by-side.pt")
    plain = load_llm(prompt.folder).to(arithmetic.device)  # float32, as in screening
    asked = ask_all(cases, fits, trained, prompt, plain)
    asked.to_parquet(place / "answers.parquet")
    print_tables(asked)


def settings_of(seed: int, more: Sequence[str] = ()) -> Settings:
    """Those of configs/train.yaml, on all cases."""
    path = Path(__file__).parent.parent / "configs" / "train.yaml"
    return load_settings(path, ["train.hold_out_test=false", f"train.seed={seed}", *more])


def fits_of(cases: Sequence[TrainingCase], grids: Grids, settings: Settings) -> list[Fit]:
    """One for every fold."""
    # Those that the decoders were trained without: the same for all seeds.
    folds = deal_folds(cases, settings.train.folds, settings.data.first_slice, settings.data.last_slice, 0)
    return [Fit(settings.train.seed, tuple(held_out), grids) for held_out in folds]


@dataclass(frozen=True)
class _Asked:
    """A question about a slice, with the map of `shown`, which for the control is another slice."""

    case: TrainingCase
    number: int
    question: Question
    words: str
    how: str
    shown: tuple[TrainingCase, int]


def ask_all(
    cases: Sequence[TrainingCase],
    fits: Sequence[Fit],
    converters: Sequence[Converter],
    prompt: Prompt,
    llm: nn.Module,
) -> pd.DataFrame:
    """One row an answer: seed, patient, slice, question, how it was asked, answer, its value, the true one, p_yes."""
    tables = []
    for fit, converter in zip(fits, converters, strict=True):
        held_out = [case for case in cases if case.case_id in fit.held_out]
        others = [case for case in cases if case.case_id not in fit.held_out]
        asked = list(_questions(held_out, others, fit.seed))
        texts, p_yes = _answer(asked, fit, converter, prompt, llm)
        tables.append(_table(asked, texts, p_yes, fit))
        log.info("seed %d, %s: %d answers", fit.seed, ", ".join(fit.held_out), len(asked))
    return pd.concat(tables, ignore_index=True)


def _questions(cases: Sequence[TrainingCase], others: Sequence[TrainingCase], seed: int) -> Iterator[_Asked]:
    """Presence of every slice; of those within 60–100 all else, also in held-out words and with another's map."""
    rng = np.random.default_rng(seed)
    places = list(PLACES)
    for case in cases:
        narrow = set(case.within(*RANGES[0]).tolist())
        for number in range(len(case.slice_index)):
            own = (case, number)
            other = others[rng.integers(len(others))]
            anothers = (other, int(rng.choice(other.within(*RANGES[0]))))
            yield _Asked(*own, Question(PRESENCE), Question(PRESENCE).worded(), "right", own)
            if number not in narrow:
                continue
            for family, given in families().items():
                place = places[number % len(places)] if family == REGION else None
                question = Question(family, place)
                held_out = question.worded(number % len(given.held_out), held_out=True)
                if family != PRESENCE:
                    yield _Asked(*own, question, question.worded(), "right", own)
                yield _Asked(*own, question, held_out, "unlearned words", own)
                yield _Asked(*own, question, question.worded(), "map of another", anothers)


@torch.inference_mode()
def _answer(
    asked: Sequence[_Asked], fit: Fit, converter: Converter, prompt: Prompt, llm: nn.Module
) -> tuple[list[str], np.ndarray]:
    """Greedy answers and p(yes). Prompts of other lengths are padded in front, and the padding is masked."""
    knowledge = converter.knowledge_tokens()
    order = sorted(range(len(asked)), key=lambda number: len(prompt.asking(asked[number].words).prefix(knowledge)))
    texts = [""] * len(asked)
    p_yes = np.zeros(len(asked))
    for start in range(0, len(order), AT_ONCE):
        at = order[start : start + AT_ONCE]
        tokens = torch.from_numpy(map_tokens(converter, [asked[number].shown for number in at], fit.grids)).float()
        rows = [
            torch.cat([(one := prompt.asking(asked[number].words)).prefix(knowledge), one.rest(knowledge, own)[0]])
            for number, own in zip(at, tokens.unsqueeze(1), strict=True)
        ]
        answers, p_yes[at] = _greedy(rows, prompt, llm)
        for number, text in zip(at, answers, strict=True):
            texts[number] = text
    return texts, p_yes


def _greedy(rows: Sequence[Tensor], prompt: Prompt, llm: nn.Module, most: int = 24) -> tuple[list[str], np.ndarray]:
    inputs = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side="left").to(llm.device, llm.dtype)
    lengths = torch.tensor([len(row) for row in rows], device=llm.device)
    mask = (torch.arange(inputs.shape[1], device=llm.device) >= inputs.shape[1] - lengths[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ends = torch.tensor(prompt.end_tokens, device=llm.device)
    given = {"inputs_embeds": inputs}
    cache = None
    chosen: list[Tensor] = []
    ended = torch.zeros(len(rows), dtype=torch.bool, device=llm.device)
    while len(chosen) < most and not ended.all():
        out = llm(
            **given,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        logits = out.logits[:, -1].float()
        if not chosen:
            p_yes = (logits[:, prompt.yes_token] - logits[:, prompt.no_token]).sigmoid().cpu().numpy()
        chosen.append(logits.argmax(-1))
        ended |= torch.isin(chosen[-1], ends)
        given = {"input_ids": chosen[-1][:, None]}
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [prompt.read_answer(tokens)[0] for tokens in torch.stack(chosen, dim=1).tolist()], p_yes


def _table(asked: Sequence[_Asked], texts: Sequence[str], p_yes: np.ndarray, fit: Fit) -> pd.DataFrame:
    slices: dict[tuple[str, int], dict[str, object]] = {}
    rows = []
    for one, text, p in zip(asked, texts, p_yes, strict=True):
        key = (one.case.case_id, one.number)
        if key not in slices:
            slices[key] = _slice_facts(one.case, one.number, fit.grids)
        facts = dict(slices[key])
        answer = parse(text) if one.question.family == PRESENCE else None
        rows.append(
            {
                "seed": fit.seed,
                "question": one.question.name,
                "family": one.question.family,
                "how": one.how,
                "answer": text,
                "value": one.question.read(text),
                "value_true": one.question.truth(facts.pop("finding")),
                "value_map": one.question.truth(facts.pop("finding_of_map")),
                "p_yes": float(p),
                "location": None if answer is None else answer.location,
                **facts,
            }
        )
    return pd.DataFrame(rows)


def _slice_facts(case: TrainingCase, number: int, grids: Grids) -> dict[str, object]:
    mask = np.asarray(case.masks[number])
    scored = case.scored_map(grids[case.case_id], number)
    shown = case.render(grids[case.case_id], number)[0]
    return {
        "patient": case.patient,
        "case_id": case.case_id,
        "slice_index": int(case.slice_index[number]),
        "area_mm2": float(mask.sum() * case.pixel_mm2),
        "map_score": float(image_scores(scored, "quantile", 0.999)[0]),
        "location_true": true_cell(mask),
        "finding": find(mask, case.brain[number], case.pixel_mm2),
        "finding_of_map": find(shown.numpy() >= THRESHOLD, case.brain[number], case.pixel_mm2),
    }


def print_tables(asked: pd.DataFrame) -> None:
    """Every value as the mean over seeds, with the range of the seeds and a 95 % interval over patients."""
    print("| questions, slices 60–100 | right | unlearned words | map of another | map alone | commonest value |")
    print("|---|---|---|---|---|---|")
    for family, rows in asked[asked.slice_index.between(*RANGES[0])].groupby("family", sort=False):
        cells = [described(rows[rows.how == how], _right) for how in ("right", "unlearned words", "map of another")]
        own = rows[rows.how == "right"]
        cells.append(described(own.assign(value=own.value_map), _right))
        commonest = own.value_true.value_counts(normalize=True).max()
        print(f"| {family} | {' | '.join(cells)} | {commonest:.3f} |")
    print("\n| answers | 60–100 | 20–130 |\n|---|---|---|")
    verdicts = asked[(asked.family == PRESENCE) & (asked.how == "right")]
    for name, value in VALUES.items():
        cells = [described(verdicts[verdicts.slice_index.between(*limits)], value) for limits in RANGES]
        print(f"| {name} | {' | '.join(cells)} |")


def described(rows: pd.DataFrame, value: Callable[[pd.DataFrame], float]) -> str:
    """Mean over seeds, their range, and the interval of the mean over patients drawn with replacement."""
    of_seeds = [value(own) for _, own in rows.groupby("seed")]
    rng = np.random.default_rng(0)
    of_patient = dict(list(rows.groupby("patient")))
    names = sorted(of_patient)
    drawn = []
    for _ in range(REPLICATES):
        sample = pd.concat([of_patient[name] for name in rng.choice(names, len(names))])
        drawn.append(np.mean([value(own) for _, own in sample.groupby("seed")]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    spread = f" [{min(of_seeds):.3f}–{max(of_seeds):.3f}]" if len(of_seeds) > 1 else ""
    return f"{np.mean(of_seeds):.3f}{spread} ({low:.3f}–{high:.3f})"


def _right(rows: pd.DataFrame) -> float:
    return float((rows.value == rows.value_true).mean())


def _auroc(column: str) -> Callable[[pd.DataFrame], float]:
    def value(rows: pd.DataFrame) -> float:
        truth = rows.area_mm2 > 0
        return float(roc_auc_score(truth, rows[column])) if truth.nunique() > 1 else np.nan

    return value


def _balanced(rows: pd.DataFrame) -> float:
    return float(balanced_accuracy_score(rows.area_mm2 > 0, rows.value == "yes"))


def _against_sure_map(rows: pd.DataFrame) -> float:
    against = (rows.map_score > SURE) & (rows.value == "no") | (rows.map_score < 1 - SURE) & (rows.value == "yes")
    return float(against.mean())


def _location(exact: bool) -> Callable[[pd.DataFrame], float]:
    def value(rows: pd.DataFrame) -> float:
        hits = rows[(rows.area_mm2 > 0) & (rows.value == "yes")]
        steps = cell_steps(hits.location.tolist(), hits.location_true.tolist())
        return float(np.mean(steps <= (0 if exact else 1)))

    return value


VALUES: dict[str, Callable[[pd.DataFrame], float]] = {
    "image AUROC of the map": _auroc("map_score"),
    "image AUROC of p(yes)": _auroc("p_yes"),
    "balanced accuracy of the verdict": _balanced,
    "sensitivity": lambda rows: float((rows.value[rows.area_mm2 > 0] == "yes").mean()),
    "specificity": lambda rows: float((rows.value[rows.area_mm2 == 0] == "no").mean()),
    "verdict against a sure map": _against_sure_map,
    "location exact, of true positives": _location(exact=True),
    "location exact or neighbour": _location(exact=False),
    "unparsed": lambda rows: float(rows.value.isna().mean()),
}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = sys.argv[3:]
    chosen = [int(word) for word in given if "=" not in word]
    main(sys.argv[1], sys.argv[2], chosen or [0, 1, 2], [word for word in given if "=" in word])
