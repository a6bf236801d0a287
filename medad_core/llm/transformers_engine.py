"""Greedy generation with Transformers: the reference, and the engine where vLLM cannot be had.

One decision: the prefix that all prompts of a call share is computed once and its keys and values are expanded over the
batch, as vLLM's prefix cache does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medad_core import stopping
from medad_core.llm.engine import Generation
from medad_core.llm.prompt import Prompt
from medad_core.llm.structured import Choice
from medad_core.models.loading import load_tower


def load_llm(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A frozen causal LM from a local folder. Raises WeightsError where a weight is missing or a file is damaged."""
    return load_tower("AutoModelForCausalLM", folder, dtype=dtype, trust_remote_code=False).eval().requires_grad_(False)


def prefix_cache(model: torch.nn.Module, prefix: Tensor, batch: int):
    """Keys and values of a prefix (P, width), expanded to `batch` rows; gradients flow back into the prefix."""
    from transformers import DynamicCache

    cache = model.base_model(
        inputs_embeds=prefix.unsqueeze(0), past_key_values=DynamicCache(config=model.config), use_cache=True
    ).past_key_values
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.expand(batch, -1, -1, -1), layer.values.expand(batch, -1, -1, -1)
    return cache


def shared_prefix(prompts: np.ndarray) -> int:
    """How many leading positions are the same in all prompts (n, L, width); at least one position is left to compute."""
    same = (prompts == prompts[:1]).all(axis=(0, 2))
    return min(int(np.argmin(same)) if not same.all() else len(same), prompts.shape[1] - 1)


class TransformersEngine:
    """See `Engine`."""

    name = "transformers"

    def __init__(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        batch_size: int,
        model: torch.nn.Module | None = None,
        structured: bool = False,
    ) -> None:
        self.prompt, self.max_new_tokens, self.batch_size = prompt, max_new_tokens, batch_size
        self.model = model or load_llm(prompt.folder)
        self.choice = Choice(prompt) if structured else None

    def generate(self, prompts: np.ndarray) -> list[Generation]:
        """See `Engine.generate`."""
        batches = range(0, len(prompts), self.batch_size)
        return [answer for start in batches for answer in self._batch(prompts[start : start + self.batch_size])]

    @torch.inference_mode()
    def _batch(self, prompts: np.ndarray) -> list[Generation]:
        shared = shared_prefix(prompts)
        device = self.model.device
        embeddings = torch.from_numpy(prompts).to(device, self.model.dtype)
        cache = prefix_cache(self.model, embeddings[0, :shared], len(prompts)) if shared else None
        inputs, tokens, finished = (
            {"inputs_embeds": embeddings[:, shared:]},
            [],
            torch.zeros(len(prompts), dtype=torch.bool, device=device),
        )
        ends = torch.tensor(self.prompt.end_tokens, device=device)
        for step in range(self.max_new_tokens):
            stopping.check()
            out = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = out.past_key_values, out.logits[:, -1].float()
            if step == 0:
                p_yes = (logits[:, self.prompt.yes_token] - logits[:, self.prompt.no_token]).sigmoid()
            if self.choice is not None:
                logits += self.choice.bias(
                    torch.stack(tokens, dim=1).tolist() if tokens else [[]] * len(prompts), logits
                )
            tokens.append(logits.argmax(-1))
            finished |= torch.isin(tokens[-1], ends)
            if finished.all():
                break
            inputs = {"input_ids": tokens[-1].unsqueeze(1)}
        return [
            self._generation(row, float(p)) for row, p in zip(torch.stack(tokens, dim=1).tolist(), p_yes, strict=True)
        ]

    def _generation(self, tokens: list[int], p_yes: float) -> Generation:
        text, ended, count = self.prompt.read_answer(tokens)
        return Generation(text, p_yes, "stop" if ended else "length", count)

    def close(self) -> None:
        """See `Engine.close`."""
        del self.model
