"""Converter training: the language-model loss of the right answer, through the frozen LLM, into the soft tokens.

One decision: batch n is drawn from a generator seeded by (seed, n) alone, so a run that resumes goes on with the
batches it would have had. A question's constant prefix runs through the LLM once a step and is expanded over the
examples that it is asked for, gradients and all. Source: medad_core/README.md, "The converter".
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.config.train import ConverterTraining
from medad_core.data.findings import PLACES
from medad_core.llm.prompt import Prompt
from medad_core.llm.questions import PRESENCE, REGION, Question, families
from medad_core.llm.transformers_engine import prefix_cache
from medad_core.models.weights import AnyConverter
from medad_core.training.loop import CPU, Arithmetic, Loop
from medad_core.training.maps import Example, LabelledMaps, draw, move

log = logging.getLogger(__name__)
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Grids (B, taps, gh, gw), frames (B, 3), and for each the words of a question with the right answer."""

    grids: Tensor
    frames: Tensor
    asked: list[tuple[str, str]]


@dataclass(frozen=True)
class Validation:
    """Teacher-forced scores on held-out maps.

    Mean loss of an answer; share of right verdicts, tumour and normal weighing the same; share of exact answers.
    """

    loss: float
    balanced_accuracy: float
    exact: float


class ConverterTrainer:
    """Trains `converter` for `llm` (a frozen causal LM) on maps; see the module for how it resumes."""

    def __init__(
        self,
        converter: AnyConverter,
        llm: torch.nn.Module,
        prompt: Prompt,
        settings: ConverterTraining,
        seed: int,
        arithmetic: Arithmetic = CPU,
    ) -> None:
        self.converter = converter
        self.llm = llm
        self.prompt = prompt
        self.settings = settings
        self.seed = seed
        self.device = arithmetic.device
        self.families = settings.questions
        self.loop = Loop(converter, settings, seed, arithmetic, rise=0.08, clip=1.0)

    def fit(
        self,
        train: LabelledMaps,
        validation: LabelledMaps,
        checkpoint: Path,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> AnyConverter:
        """Train to the end, from `checkpoint` where there is one; gives the converter of the lowest validation loss.

        `progress` gets the steps done, and of how many.
        """
        self.loop.resume(checkpoint)
        if self.loop.step == 0:
            self._warm_up(train)

        def validate(steps: int) -> dict[str, float] | None:
            if steps <= self.settings.synthetic_steps:
                return None
            scores = asdict(self.evaluate(validation))
            return {f"validation_{name}": value for name, value in scores.items()}

        self.loop.run(
            lambda first: (self._batch(train, number) for number in itertools.count(first)),
            self._loss,
            checkpoint,
            validate,
            progress,
        )
        self.converter.load_state_dict(self.loop.best[1])
        return self.converter.eval().requires_grad_(False)

    def _warm_up(self, maps: LabelledMaps) -> None:
        """Teach the convolutions to tell the answers apart through linear heads that are thrown away.

        It costs seconds. The LLM's loss then has to teach the language of the tokens only, and no longer what a lesion
        is.
        """
        heads = _heads(self.families)
        torch.manual_seed(self.seed)
        with torch.no_grad():
            features = self.converter.features(torch.from_numpy(maps.grids[:1]).to(self.device)).numel()
        head = torch.nn.Linear(features, sum(len(values) for _, values in heads)).to(self.device)
        steps = self.settings.warm_up_steps
        optimizer = torch.optim.AdamW([*self.converter.trunk(), *head.parameters()], lr=1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max(1, steps))
        for step in range(steps):
            rng = np.random.default_rng([self.seed, step, 1])
            examples = self._examples(maps, 32, 1.0 if step < steps // 3 else 0.25, rng)
            logits = head(self.converter.features(*self._maps_of(examples)))
            losses = []
            for (question, values), some in zip(heads, logits.split([len(v) for _, v in heads], dim=1), strict=True):
                classes = [values.index(question.answer(example.finding)) for example in examples]
                losses.append(F.cross_entropy(some, torch.tensor(classes, device=self.device)))
            # The verdict weighs as much as all else: the others rest on it.
            loss = losses[0] + (torch.stack(losses[1:]).mean() if len(losses) > 1 else 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % 250 == 0:
                log.info("converter warm-up step %d of %d, loss %.4f", step + 1, steps, loss.item())

    def _batch(self, maps: LabelledMaps, number: int) -> Batch:
        """Drawn maps at first, then three real ones in four.

        Half of a batch is asked for presence, the other half one more question; the families take turns.
        """
        drawn_share = 1.0 if number < self.settings.synthetic_steps * self.settings.accumulate else 0.25
        rng = np.random.default_rng([self.seed, number])
        examples = self._examples(maps, self.settings.batch_size, drawn_share, rng)
        others = [family for family in self.families if family != PRESENCE]
        presence = self._worded(PRESENCE, rng)
        other = self._worded(others[number // 2 % len(others)], rng) if others else presence
        asked = [(presence, other)[(place + number) % 2] for place in range(len(examples))]  # also in batches of one
        return self._asked(examples, asked)

    def _worded(self, family: str, rng: np.random.Generator) -> tuple[Question, str]:
        """A question of a family, in the wording of screening in every second batch, else in any that is learned."""
        question = Question(family, rng.choice(list(PLACES)) if family == REGION else None)
        learned = min(self.settings.wordings, len(families()[family].wordings))
        return question, question.worded(int(rng.integers(learned)) if rng.random() < 0.5 else 0)

    def _asked(self, examples: Sequence[Example], asked: Sequence[tuple[Question, str]]) -> Batch:
        pairs = [
            (words, question.answer(example.finding))
            for example, (question, words) in zip(examples, asked, strict=True)
        ]
        return Batch(*self._maps_of(examples), pairs)

    def _maps_of(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Grids (B, taps, gh, gw) and frames (B, 3) of examples, on the device."""
        grids = np.stack([example.grid for example in examples])
        frames = np.stack([example.frame for example in examples]).astype(np.float32)
        return torch.from_numpy(grids).to(self.device), torch.from_numpy(frames).to(self.device)

    def _examples(self, maps: LabelledMaps, count: int, drawn_share: float, rng: np.random.Generator) -> list[Example]:
        """Maps to learn from in any order, `normal_share` of them tumour-free."""
        share = count * self.settings.normal_share
        normals = int(share)
        if share % 1:
            normals += rng.random() < share % 1
        tumour = np.flatnonzero(maps.has_tumour)
        normal = np.flatnonzero(~maps.has_tumour)
        examples = []
        for index in range(count):
            wants_tumour = index >= normals
            if rng.random() < drawn_share:
                examples.append(draw(maps.example(rng.choice(normal)), wants_tumour, rng))
            else:
                examples.append(move(maps.example(rng.choice(tumour if wants_tumour else normal)), rng))
        order = rng.permutation(count)  # both halves of a batch, by question, have both kinds
        return [examples[place] for place in order]

    def _loss(self, batch: Batch) -> Tensor:
        losses = [
            F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
            for _, logits, targets in self.answer_logits(batch)
        ]
        return torch.stack(losses).sum() / len(batch.asked)

    def answer_logits(self, batch: Batch) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """For every question of a batch: its examples, their teacher-forced logits, and the tokens of their answers.

        Logits are (n, A, vocabulary), tokens (n, A), padded with -100.
        """
        tokens = self.converter(batch.grids, batch.frames)
        knowledge = self.converter.knowledge_tokens()
        for words in dict.fromkeys(words for words, _ in batch.asked):
            places = [place for place, (asked, _) in enumerate(batch.asked) if asked == words]
            targets = self._targets([batch.asked[place][1] for place in places])
            prompt = self.prompt.asking(words)
            question = prompt.rest(knowledge, tokens[places])
            answer = prompt.embeddings[targets[:, :-1].clamp(min=0)].to(question)
            inputs = torch.cat([question, answer], dim=1)
            cache = prefix_cache(self.llm, prompt.prefix(knowledge), len(places))
            # The position before an answer token predicts it.
            logits = self.llm(
                inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=targets.shape[1]
            ).logits
            yield places, logits.float(), targets.to(self.device)

    def _targets(self, answers: list[str]) -> Tensor:
        rows = [torch.tensor(self.prompt.answer_tokens(answer)) for answer in answers]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE)

    @torch.no_grad()
    def evaluate(self, maps: LabelledMaps) -> Validation:
        """Teacher-forced scores on maps as they are, unmoved.

        All are asked for presence, and a share of them each further family, which counts in the loss.
        """
        self.converter.eval()
        count = len(maps.grids)
        presence = Question(PRESENCE)
        loss, verdict, exact = self._scored(maps, range(count), [presence] * count)
        others = [family for family in self.families if family != PRESENCE]
        mean_loss = [float(loss.mean())]
        for number, family in enumerate(others):
            picks = range(number % count, count, min(len(others), count))
            places = list(PLACES)
            asked = [Question(family, places[pick % len(places)] if family == REGION else None) for pick in picks]
            mean_loss.append(float(self._scored(maps, picks, asked)[0].mean()))
        tumour = maps.has_tumour
        balanced = (verdict[tumour].mean() + verdict[~tumour].mean()) / 2
        # As in training: presence is half of the loss.
        value = mean_loss[0] if not others else (mean_loss[0] + np.mean(mean_loss[1:])) / 2
        return Validation(float(value), float(balanced), float(exact.mean()))

    def _scored(
        self, maps: LabelledMaps, picks: Sequence[int], asked: Sequence[Question]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss of each pick's answer, whether its first token is right, and whether all are; (n,) each."""
        losses = np.zeros(len(picks))
        first = np.zeros(len(picks), bool)
        exact = np.zeros(len(picks), bool)
        size = self.settings.batch_size
        for start in range(0, len(picks), size):
            examples = [maps.example(pick) for pick in picks[start : start + size]]
            pairs = [(question, question.worded()) for question in asked[start : start + size]]
            with self.loop.arithmetic.products():
                for places, logits, targets in self.answer_logits(self._asked(examples, pairs)):
                    at = start + np.array(places)
                    loss = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
                    right = (logits.argmax(-1) == targets) | (targets == IGNORE)
                    losses[at] = loss.sum(1).cpu()
                    first[at] = right[:, 0].cpu()
                    exact[at] = right.all(1).cpu()
        return losses, first, exact


def _heads(names: Sequence[str]) -> list[tuple[Question, list[str]]]:
    """The questions that the warm-up's heads answer, presence first, and the sentences of each."""
    questions = [Question(PRESENCE)]
    questions += [Question(name) for name in names if name not in (PRESENCE, REGION, "location")]
    questions += [Question(REGION, place) for place in PLACES if REGION in names]
    return [(question, list(question.answers)) for question in questions]


def thin_out(maps: LabelledMaps, count: int, seed: int) -> LabelledMaps:
    """At most `count` maps, half of them with tumour where there are enough, for a validation that costs little."""
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(maps.has_tumour), np.flatnonzero(~maps.has_tumour)]
    chosen = [rng.choice(kind, min(len(kind), count // 2), replace=False) for kind in kinds]
    keep = np.sort(np.concatenate(chosen))
    return maps.take(keep)
