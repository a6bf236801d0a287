"""The one training loop: AdamW, one cycle of the learning rate, summed gradients, mixed precision, checkpoints.

One decision: the content of a batch is a function of its number alone, and the checkpoint holds all else (weights,
optimiser, schedule, curve). So a killed run that is started again ends like one that was never killed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from medad_core.config.train import ConverterTraining, DecoderTraining, TrainSettings
from medad_core.errors import MedadError, first_line
from medad_core.models.blocks import PRECISIONS
from medad_core.store.files import new_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arithmetic:
    """Where training computes, and the dtype of its matrix products; weights, norms, softmax and losses are float32."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def products(self) -> AbstractContextManager:
        """The context of a forward pass."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.split(":")[0], self.dtype)


CPU = Arithmetic()


def arithmetic_of(settings: TrainSettings, device: str) -> Arithmetic:
    """`train.precision` on a device; auto is float32 on a CPU, bfloat16 on CUDA, or float16 where there is none."""
    if settings.precision != "auto":
        return Arithmetic(device, PRECISIONS[settings.precision])
    if not device.startswith("cuda"):
        return Arithmetic(device)
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Arithmetic(device, torch.bfloat16 if has_bfloat16 else torch.float16)


class Loop:
    """Trains `module`; `curve` has step and loss of every step, `best` the lowest validation loss with its weights."""

    def __init__(
        self,
        module: nn.Module,
        settings: DecoderTraining | ConverterTraining,
        seed: int,
        arithmetic: Arithmetic,
        *,
        rise: float,
        clip: float = math.inf,
    ) -> None:
        """`rise` is the share of steps in which the learning rate rises, `clip` the largest norm of the gradients."""
        self.module = module.to(arithmetic.device)
        self.settings = settings
        self.arithmetic = arithmetic
        self.clip = clip
        self.identity = json.dumps([seed, settings.model_dump(mode="json"), str(arithmetic.dtype)])
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        steps = settings.total_steps
        rise = rise if rise * steps != 1 else 1.01 * rise  # OneCycleLR divides by zero where the rise is one step long
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings.learning_rate, total_steps=steps, pct_start=rise
        )
        # Without float16 it passes everything through.
        self.scaler = torch.amp.GradScaler(arithmetic.device.split(":")[0], enabled=arithmetic.dtype == torch.float16)
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None

    def resume(self, checkpoint: Path) -> None:
        """Go on from `checkpoint`, where there is one of the same seed, settings and precision."""
        if not checkpoint.is_file():
            return
        try:
            # Into plain memory: a GPU that is full must not be taken for a file that is damaged.
            state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, UnpicklingError) as error:
            log.warning("%s is damaged (%s); training starts anew", checkpoint, first_line(error))
            return
        if state["identity"] != self.identity:
            log.warning("%s is of other settings; training starts anew", checkpoint)
            return
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        self.curve = json.loads(state["curve"])
        self.best = state["best"]

    def run(
        self,
        batches: Callable[[int], Iterator[Any]],
        loss: Callable[[Any], Tensor],
        checkpoint: Path,
        validate: Callable[[int], dict[str, float] | None],
        progress: Callable[[int, int], None],
        until: int | None = None,
    ) -> None:
        """Train to the end, or to the step `until`.

        `batches(n)` are the batches from number n on. `validate(steps)` is called at every checkpoint and gives
        `validation_loss` and what else goes into the curve, or None. Raises MedadError where the loss is no number any
        more.
        """
        end = until or self.settings.total_steps
        accumulate = self.settings.accumulate
        coming = batches(self.step * accumulate)
        for step in range(self.step, end):
            value = self._step([next(coming) for _ in range(accumulate)], loss)
            self.curve.append({"step": step, "loss": value})
            self.step = step + 1
            if self.step % self.settings.checkpoint_every == 0 or self.step == end:
                self._note(validate(self.step))
                self._save(checkpoint)
                values = [f"{name} {value:.4f}" for name, value in self.curve[-1].items() if name != "step"]
                log.info("step %d of %d: %s", self.step, end, ", ".join(values))
            progress(self.step, end)

    def _step(self, batches: list[Any], loss: Callable[[Any], Tensor]) -> float:
        self.module.train()
        self.optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            with self.arithmetic.products():
                value = loss(batch) / len(batches)
            self.scaler.scale(value).backward()
            total += value.item()
        if not math.isfinite(total):
            raise MedadError(
                f"the training loss is {total} at step {self.step + 1}; "
                "lower learning_rate, or set train.precision=float32"
            )
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return total

    def _note(self, scores: dict[str, float] | None) -> None:
        if scores is None:
            return
        self.curve[-1] |= scores
        loss = scores["validation_loss"]
        if self.best is None or loss < self.best[0]:
            self.best = (loss, {name: value.clone() for name, value in self.module.state_dict().items()})

    def _parts(self) -> dict[str, object]:
        return {"module": self.module, "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}

    def _save(self, checkpoint: Path) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"identity": self.identity, "step": self.step, "curve": json.dumps(self.curve), "best": self.best}
        with new_file(str(checkpoint)) as scratch:
            torch.save(state, scratch)
