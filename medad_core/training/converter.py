"""Converter training: the language-model loss of the right answer, through the frozen LLM, into the soft tokens.

One decision: step s draws its batch from a generator seeded by (seed, s) alone, and the checkpoint holds weights, optimiser
and curve, so a killed run that is started again ends with the same converter as one that was never killed.
Source: METHOD section 4. The constant prefix runs through the LLM once a step and is expanded over the batch, gradients and all.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.config.train import ConverterTraining
from medad_core.llm.answers import GRAMMAR, answer_to
from medad_core.llm.prompt import Prompt
from medad_core.llm.transformers_engine import prefix_cache
from medad_core.models.weights import AnyConverter
from medad_core.training.maps import LabelledMaps, cell_at, draw, move

log = logging.getLogger(__name__)
IGNORE = -100


@dataclass(frozen=True)
class Validation:
    """Teacher-forced scores on held-out maps: loss a token, share of right verdicts (tumour and normal weighing the same), share of exact answers."""

    loss: float
    balanced_accuracy: float
    exact: float


class ConverterTrainer:
    """Trains `converter` for `llm` (a frozen causal LM) on maps; see the module for how it resumes."""

    def __init__(self, converter: AnyConverter, llm: torch.nn.Module, prompt: Prompt, settings: ConverterTraining, seed: int) -> None:
        self.converter, self.llm, self.prompt, self.settings, self.seed = converter, llm, prompt, settings, seed
        self.steps = settings.synthetic_steps + settings.real_steps
        self.optimizer = torch.optim.AdamW(converter.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, settings.learning_rate, total_steps=self.steps, pct_start=0.08)
        self.curve: list[dict[str, float]] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None

    def fit(self, train: LabelledMaps, validation: LabelledMaps, checkpoint: Path, progress: Callable[[int, int], None] | None = None) -> AnyConverter:
        """Train to the end, from `checkpoint` where there is one; the converter of the lowest validation loss is returned."""
        start = self._resume(checkpoint)
        if start == 0:
            self._warm_up(train)
        for step in range(start, self.steps):
            loss = self._step(*self._batch(train, step))
            self.curve.append({"step": step, "loss": loss})
            if (step + 1) % self.settings.checkpoint_every == 0 or step + 1 == self.steps:
                if step + 1 > self.settings.synthetic_steps:
                    self._validate(validation)
                self._save(checkpoint, step + 1)
                log.info("converter step %d of %d, loss %.4f%s", step + 1, self.steps, loss, self._last_validation())
            if progress:
                progress(step + 1, self.steps)
        self.converter.load_state_dict(self.best[1])
        return self.converter.eval().requires_grad_(False)

    def _warm_up(self, maps: LabelledMaps) -> None:
        """Teach the convolutions to tell the ten answers apart through a linear head that is thrown away.

        It costs seconds; the LLM's loss then has to teach the language of the tokens only, and no longer what a lesion is.
        """
        torch.manual_seed(self.seed)
        with torch.no_grad():
            seen = self.converter.cells(torch.from_numpy(maps.grids[:1])).numel()
        head = torch.nn.Linear(seen, len(GRAMMAR))
        optimizer = torch.optim.AdamW([*self.converter.trunk(), *head.parameters()], lr=1e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max(1, self.settings.warm_up_steps))
        answers = list(GRAMMAR)
        for step in range(self.settings.warm_up_steps):
            rng = np.random.default_rng([self.seed, step, 1])
            grids, said = self._examples(maps, 32, 1.0 if step < self.settings.warm_up_steps // 3 else 0.25, rng)
            loss = F.cross_entropy(head(self.converter.cells(grids).flatten(1)), torch.tensor([answers.index(answer) for answer in said]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % 250 == 0:
                log.info("converter warm-up step %d of %d, loss %.4f", step + 1, self.settings.warm_up_steps, loss.item())

    def _batch(self, maps: LabelledMaps, step: int) -> tuple[Tensor, list[str]]:
        """Drawn maps at first, then three real ones in four."""
        drawn_share = 1.0 if step < self.settings.synthetic_steps else 0.25
        return self._examples(maps, self.settings.batch_size, drawn_share, np.random.default_rng([self.seed, step]))

    def _examples(self, maps: LabelledMaps, count: int, drawn_share: float, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Grids (count, taps, gh, gw) and the right answers."""
        share = count * self.settings.normal_share
        normals = int(share) + (rng.random() < share % 1) if share % 1 else int(share)
        tumour, normal = np.flatnonzero(maps.has_tumour), np.flatnonzero(~maps.has_tumour)
        examples = []
        for index in range(count):
            wants_tumour = index >= normals
            if rng.random() < drawn_share:
                examples.append(draw(maps.grids[rng.choice(normal)], wants_tumour, rng))
            else:
                pick = rng.choice(tumour if wants_tumour else normal)
                examples.append(move(maps.grids[pick], maps.centroids[pick], rng))
        grids = torch.from_numpy(np.stack([grid for grid, _ in examples]).astype(np.float32))
        return grids, [answer_to(cell_at(centroid)) for _, centroid in examples]

    def _step(self, grids: Tensor, answers: list[str]) -> float:
        self.converter.train()
        logits, targets = self.answer_logits(grids, answers)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum") / len(answers)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.converter.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def answer_logits(self, grids: Tensor, answers: list[str]) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits (B, A, vocabulary) of the answers' tokens, and the tokens (B, A), padded with -100."""
        targets = self._targets(answers)
        tokens = self.converter(grids)
        knowledge = self.converter.knowledge_tokens()
        asked = self.prompt.rest(knowledge, tokens)
        spoken = self.prompt.embeddings[targets[:, :-1].clamp(min=0)]
        inputs = torch.cat([asked, spoken], dim=1)
        cache = prefix_cache(self.llm, self.prompt.prefix(knowledge), len(answers))
        hidden = self.llm.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state
        first = asked.shape[1] - 1  # the position before an answer token predicts it
        return self.llm.lm_head(hidden[:, first:]), targets

    def _targets(self, answers: list[str]) -> Tensor:
        rows = [torch.tensor(self.prompt.answer_tokens(answer)) for answer in answers]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE)

    @torch.no_grad()
    def evaluate(self, maps: LabelledMaps) -> Validation:
        """Teacher-forced scores on maps as they are, unmoved."""
        self.converter.eval()
        losses, verdicts, exact, size = [], [], [], self.settings.batch_size
        for start in range(0, len(maps.grids), size):
            grids = torch.from_numpy(maps.grids[start : start + size].astype(np.float32))
            logits, targets = self.answer_logits(grids, [answer_to(cell_at(centroid)) for centroid in maps.centroids[start : start + size]])
            losses += F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none").sum(1).tolist()
            right = (logits.argmax(-1) == targets) | (targets == IGNORE)
            verdicts += right[:, 0].tolist()
            exact += right.all(1).tolist()
        verdicts, tumour = np.array(verdicts), maps.has_tumour
        return Validation(float(np.mean(losses)), float((verdicts[tumour].mean() + verdicts[~tumour].mean()) / 2), float(np.mean(exact)))

    def _validate(self, maps: LabelledMaps) -> None:
        scores = self.evaluate(maps)
        self.curve[-1] |= {"validation_loss": scores.loss, "validation_balanced_accuracy": scores.balanced_accuracy, "validation_exact": scores.exact}
        if self.best is None or scores.loss < self.best[0]:
            self.best = (scores.loss, {name: value.clone() for name, value in self.converter.state_dict().items()})

    def _last_validation(self) -> str:
        last = self.curve[-1]
        if "validation_loss" not in last:
            return ""
        return f"; validation loss {last['validation_loss']:.4f}, balanced accuracy {last['validation_balanced_accuracy']:.3f}, exact {last['validation_exact']:.3f}"

    def _save(self, checkpoint: Path, step: int) -> None:
        state = {
            "step": step,
            "seed": self.seed,
            "settings": self.settings.model_dump_json(),
            "curve": json.dumps(self.curve),
            "converter": self.converter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
        }
        scratch = checkpoint.with_suffix(".tmp")
        torch.save(state, scratch)
        os.replace(scratch, checkpoint)

    def _resume(self, checkpoint: Path) -> int:
        if not checkpoint.is_file():
            return 0
        state = torch.load(checkpoint, weights_only=True)
        if (state["seed"], state["settings"]) != (self.seed, self.settings.model_dump_json()):
            log.warning("%s is of other settings; the converter starts anew", checkpoint)
            return 0
        self.converter.load_state_dict(state["converter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.curve, self.best = json.loads(state["curve"]), state["best"]
        return state["step"]


def thin_out(maps: LabelledMaps, count: int, seed: int) -> LabelledMaps:
    """At most `count` maps, half of them with tumour where there are enough, for a validation that costs little."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(maps.has_tumour), np.flatnonzero(~maps.has_tumour)]
    keep = np.sort(np.concatenate([rng.choice(group, min(len(group), count // 2), replace=False) for group in groups]))
    return LabelledMaps(maps.grids[keep], maps.centroids[keep])
