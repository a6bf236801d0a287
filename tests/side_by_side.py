"""Trains converters of several folds and seeds side by side, with the batches and the loss of `medad train`.

One decision: the LLM is frozen and the same for all, so one pass of it serves every converter.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.config import Settings
from medad_core.llm.prompt import Prompt
from medad_core.models.converter import Converter, new_converter
from medad_core.training.converter import IGNORE, Batch, ConverterTrainer
from medad_core.training.features import TrainingCase
from medad_core.training.fitting import Grids, labelled
from medad_core.training.loop import Arithmetic
from medad_core.training.maps import LabelledMaps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """A converter that has not learned from the cases `held_out`, and the maps of all cases (by decoders unseen)."""

    seed: int
    held_out: tuple[str, ...]
    grids: Grids


class Batches(torch.utils.data.Dataset):
    """Batch n of every trainer, drawn on the CPU."""

    def __init__(self, trainers: Sequence[ConverterTrainer], maps: Sequence[LabelledMaps]) -> None:
        self.trainers = trainers
        self.maps = maps

    def __getitem__(self, number: int) -> list[Batch]:
        torch.set_num_threads(1)
        return [trainer._batch(maps, number) for trainer, maps in zip(self.trainers, self.maps, strict=True)]


class WarmedUp(Batches):
    """The state of converter n after the warm-up of its convolutions, on the CPU."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        torch.set_num_threads(1)
        torch.cuda.is_available = lambda: False  # an optimiser asks the GPU whether it records, and a fork may not
        self.trainers[number]._warm_up(self.maps[number])
        return self.trainers[number].converter.state_dict()


def in_processes(made: Batches, numbers: range, workers: int) -> Iterator:
    """`made[n]` for all numbers in order, made by so many forked processes; 0: by this one."""
    ahead = 4 if workers else None
    return iter(
        torch.utils.data.DataLoader(
            made, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=ahead, collate_fn=lambda x: x
        )
    )


def train_side_by_side(
    cases: Sequence[TrainingCase],
    fits: Sequence[Fit],
    knowledge: Tensor,
    prompt: Prompt,
    llm: nn.Module,
    settings: Settings,
    arithmetic: Arithmetic,
    checkpoint: Path,
    workers: int = os.cpu_count() or 1,
) -> list[Converter]:
    """The converter of every fit after the last step, on the CPU."""
    drawers = [trainer_of(fit, knowledge, prompt, llm, settings, Arithmetic()) for fit in fits]
    trainers = [trainer_of(fit, knowledge, prompt, llm, settings, arithmetic) for fit in fits]
    maps = [labelled([case for case in cases if case.case_id not in fit.held_out], fit.grids) for fit in fits]
    of_all = nn.ModuleList(trainer.converter for trainer in trainers)
    training = settings.train.converter
    optimizer = torch.optim.AdamW(
        of_all.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )  # every parameter is a converter's own, so one optimiser does what as many would
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, total_steps=training.total_steps, pct_start=0.08
    )
    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        of_all.load_state_dict(state["converters"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    else:
        warmed = in_processes(WarmedUp(drawers, maps), range(len(fits)), min(workers, len(fits)))
        for trainer, state in zip(trainers, warmed, strict=True):
            trainer.converter.load_state_dict(state)
        log.info("the convolutions are warmed up")
    batches = in_processes(Batches(drawers, maps), range(first, training.total_steps), workers)
    for step, batch in enumerate(batches, first):
        of_all.train()
        optimizer.zero_grad()
        with arithmetic.products():
            losses = losses_of(trainers, batch, llm)
        losses.sum().backward()
        for trainer in trainers:
            nn.utils.clip_grad_norm_(trainer.converter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done = step + 1
        if done % 50 == 0 or done == training.total_steps:
            log.info("step %d of %d: loss %.4f", done, training.total_steps, losses.mean().item())
        if done % 300 == 0 or done == training.total_steps:
            parts = {"converters": of_all, "optimizer": optimizer, "schedule": schedule}
            torch.save({"step": done} | {name: part.state_dict() for name, part in parts.items()}, checkpoint)
    return [trainer.converter.cpu().eval().requires_grad_(False) for trainer in trainers]


def trainer_of(
    fit: Fit, knowledge: Tensor, prompt: Prompt, llm: nn.Module, settings: Settings, arithmetic: Arithmetic
) -> ConverterTrainer:
    """What trains the converter of a fit, begun as `medad train` begins it."""
    torch.manual_seed(fit.seed)
    training = settings.train.converter
    converter = new_converter(training.architecture, knowledge, prompt.width, float(prompt.embeddings.std()))
    return ConverterTrainer(converter, llm, prompt, training, fit.seed, arithmetic)


def losses_of(trainers: Sequence[ConverterTrainer], batches: Sequence[Batch], llm: nn.Module) -> Tensor:
    """The loss of every trainer on its batch (n,), through one pass of the LLM.

    Whole prompts with their answers are padded at the end, which no token of theirs sees.
    """
    rows: list[Tensor] = []
    answers: list[Tensor] = []
    for trainer, batch in zip(trainers, batches, strict=True):
        tokens = trainer.converter(batch.grids.to(trainer.device), batch.frames.to(trainer.device))
        knowledge = trainer.converter.knowledge_tokens()
        for words in dict.fromkeys(words for words, _ in batch.asked):
            prompt = trainer.prompt.asking(words)
            right = [answer for asked, answer in batch.asked if asked == words]
            own = tokens[[place for place, (asked, _) in enumerate(batch.asked) if asked == words]]
            shared = prompt.prefix(knowledge)
            for one, answer in zip(prompt.rest(knowledge, own), right, strict=True):
                target = torch.tensor(prompt.answer_tokens(answer))
                rows.append(torch.cat([shared, one, prompt.embeddings[target[:-1]].to(one)]))
                answers.append(target)
    inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden = llm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    # The position before an answer token predicts it.
    spans = [slice(len(row) - len(target), len(row)) for row, target in zip(rows, answers, strict=True)]
    states = torch.cat([one[span] for one, span in zip(hidden, spans, strict=True)])
    logits = llm.get_output_embeddings()(states).float()
    losses = F.cross_entropy(logits, torch.cat(answers).to(logits.device), ignore_index=IGNORE, reduction="none")
    owner = torch.repeat_interleave(
        torch.repeat_interleave(torch.arange(len(trainers)), torch.tensor([len(batch.asked) for batch in batches])),
        torch.tensor([len(target) for target in answers]),
    ).to(losses.device)
    sums = torch.zeros(len(trainers), device=losses.device).index_add(0, owner, losses)
    return sums / torch.tensor([len(batch.asked) for batch in batches], device=losses.device)
