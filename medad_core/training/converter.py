"""Converter training: the language-model loss of the right answer, through the frozen LLM, into the soft tokens.

One decision: batch n is drawn from a generator seeded by (seed, n) alone, so a run that resumes goes on with the
batches it would have had. The constant prefix runs through the LLM once a step and is expanded over the batch,
gradients and all. Source: medad_core/README.md, "The converter".
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.config.train import ConverterTraining
from medad_core.llm.grammar import GRAMMAR, answer_to
from medad_core.llm.prompt import Prompt
from medad_core.llm.transformers_engine import prefix_cache
from medad_core.models.weights import AnyConverter
from medad_core.training.loop import CPU, Arithmetic, Loop
from medad_core.training.maps import LabelledMaps, cell_at, draw, move

log = logging.getLogger(__name__)
Batch = tuple[Tensor, Tensor, list[str]]  # grids, frames and the right answers
IGNORE = -100


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
        """Teach the convolutions to tell the ten answers apart through a linear head that is thrown away.

        It costs seconds. The LLM's loss then has to teach the language of the tokens only, and no longer what a lesion
        is.
        """
        torch.manual_seed(self.seed)
        with torch.no_grad():
            features = self.converter.features(torch.from_numpy(maps.grids[:1]).to(self.device)).numel()
        head = torch.nn.Linear(features, len(GRAMMAR)).to(self.device)
        steps = self.settings.warm_up_steps
        optimizer = torch.optim.AdamW([*self.converter.trunk(), *head.parameters()], lr=1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max(1, steps))
        classes = {answer: number for number, answer in enumerate(GRAMMAR)}
        for step in range(steps):
            rng = np.random.default_rng([self.seed, step, 1])
            grids, frames, answers = self._examples(maps, 32, 1.0 if step < steps // 3 else 0.25, rng)
            targets = torch.tensor([classes[answer] for answer in answers], device=self.device)
            loss = F.cross_entropy(head(self.converter.features(grids, frames)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % 250 == 0:
                log.info("converter warm-up step %d of %d, loss %.4f", step + 1, steps, loss.item())

    def _batch(self, maps: LabelledMaps, number: int) -> Batch:
        """Drawn maps at first, then three real ones in four."""
        drawn_share = 1.0 if number < self.settings.synthetic_steps * self.settings.accumulate else 0.25
        return self._examples(maps, self.settings.batch_size, drawn_share, np.random.default_rng([self.seed, number]))

    def _examples(self, maps: LabelledMaps, count: int, drawn_share: float, rng: np.random.Generator) -> Batch:
        """Grids (count, taps, gh, gw), their frames (count, 3) and the right answers."""
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
        grids, frames = (
            torch.from_numpy(np.stack([getattr(example, name) for example in examples])).to(self.device)
            for name in ("grid", "frame")
        )
        return grids, frames, [answer_to(cell_at(example.centroid)) for example in examples]

    def _loss(self, batch: Batch) -> Tensor:
        logits, targets = self.answer_logits(*batch)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return loss / len(targets)

    def answer_logits(self, grids: Tensor, frames: Tensor | None, answers: list[str]) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits (B, A, vocabulary) of the answers' tokens, and the tokens (B, A), padded with -100."""
        targets = self._targets(answers)
        tokens = self.converter(grids, frames)
        knowledge = self.converter.knowledge_tokens()
        question = self.prompt.rest(knowledge, tokens)
        answer = self.prompt.embeddings[targets[:, :-1].clamp(min=0)].to(question)
        inputs = torch.cat([question, answer], dim=1)
        cache = prefix_cache(self.llm, self.prompt.prefix(knowledge), len(answers))
        # The position before an answer token predicts it.
        logits = self.llm(
            inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=targets.shape[1]
        ).logits
        return logits.float(), targets.to(self.device)

    def _targets(self, answers: list[str]) -> Tensor:
        rows = [torch.tensor(self.prompt.answer_tokens(answer)) for answer in answers]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE)

    @torch.no_grad()
    def evaluate(self, maps: LabelledMaps) -> Validation:
        """Teacher-forced scores on maps as they are, unmoved."""
        self.converter.eval()
        losses: list[float] = []
        verdicts: list[bool] = []
        exact: list[bool] = []
        size = self.settings.batch_size
        for start in range(0, len(maps.grids), size):
            some = slice(start, start + size)
            grids = torch.from_numpy(maps.grids[some].astype(np.float32)).to(self.device)
            frames = torch.from_numpy(maps.frames[some]).to(self.device)
            answers = [answer_to(cell_at(centroid)) for centroid in maps.centroids[some]]
            with self.loop.arithmetic.products():
                logits, targets = self.answer_logits(grids, frames, answers)
            loss = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
            losses += loss.sum(1).tolist()
            right = (logits.argmax(-1) == targets) | (targets == IGNORE)
            verdicts += right[:, 0].tolist()
            exact += right.all(1).tolist()
        right_verdicts = np.array(verdicts)
        tumour = maps.has_tumour
        balanced = (right_verdicts[tumour].mean() + right_verdicts[~tumour].mean()) / 2
        return Validation(float(np.mean(losses)), float(balanced), float(np.mean(exact)))


def thin_out(maps: LabelledMaps, count: int, seed: int) -> LabelledMaps:
    """At most `count` maps, half of them with tumour where there are enough, for a validation that costs little."""
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(maps.has_tumour), np.flatnonzero(~maps.has_tumour)]
    chosen = [rng.choice(kind, min(len(kind), count // 2), replace=False) for kind in kinds]
    keep = np.sort(np.concatenate(chosen))
    return maps.take(keep)
