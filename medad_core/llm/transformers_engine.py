"""Greedy generation with Transformers: the reference, and the engine where vLLM is not installed.

One decision: the prefix that all prompts of a call share is computed once, and its keys and values are expanded over
the batch, as vLLM's prefix cache does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medad_core import stopping
from medad_core.environment import installed_version
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation
from medad_core.llm.structured import AllowedTokens
from medad_core.models.loading import load_tower

if TYPE_CHECKING:
    from transformers import Cache, LogitsProcessor


def load_llm(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A frozen causal LM from a local folder, on the CPU.

    Raises WeightsError where a weight is missing or a file is damaged.
    """
    return load_tower("AutoModelForCausalLM", folder, dtype=dtype, trust_remote_code=False).eval().requires_grad_(False)


def prefix_cache(model: torch.nn.Module, prefix: Tensor, batch: int) -> Cache:
    """Keys and values of a prefix (P, width), expanded to `batch` rows; gradients flow back into the prefix."""
    from transformers import DynamicCache

    cache = model.base_model(
        inputs_embeds=prefix.unsqueeze(0), past_key_values=DynamicCache(config=model.config), use_cache=True
    ).past_key_values
    for layer in cache.layers:
        layer.keys = layer.keys.expand(batch, -1, -1, -1)
        layer.values = layer.values.expand(batch, -1, -1, -1)
    return cache


def shared_prefix(prompts: np.ndarray) -> int:
    """How many leading positions are the same in all prompts (n, L, width); at most L - 1, so that one is computed."""
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
        model: torch.nn.Module,
        structured: bool = False,
    ) -> None:
        """`model` is the causal LM of the prompt's folder, on its device; `structured` holds answers to the grammar."""
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.model = model
        self.structured = structured
        self.constraints: dict[tuple[str, ...], LogitsProcessor] = {}

    @property
    def made_with(self) -> dict[str, str]:
        """See `Engine.made_with`."""
        version = installed_version("transformers") or ""
        return {"engine": self.name, "version": version, "max_num_seqs": str(self.batch_size)}

    def generate(self, prompts: np.ndarray, sentences: Sequence[str] = ()) -> list[Generation]:
        """See `Engine.generate`. Raises Stopped where the process was asked to stop."""
        starts = range(0, len(prompts), self.batch_size)
        batches = (prompts[start : start + self.batch_size] for start in starts)
        constraint = self._constraint(tuple(sentences)) if self.structured else None
        return [answer for batch in batches for answer in self._answer(batch, constraint)]

    def _constraint(self, sentences: tuple[str, ...]) -> LogitsProcessor:
        if sentences not in self.constraints:  # it reads the whole vocabulary
            self.constraints[sentences] = _constraint(self.prompt, sentences)
        return self.constraints[sentences]

    @torch.inference_mode()
    def _answer(self, prompts: np.ndarray, constraint: LogitsProcessor | None) -> list[Generation]:
        """Answers to one batch of prompts."""
        embeddings = torch.from_numpy(prompts).to(self.model.device, self.model.dtype)
        shared = shared_prefix(prompts)
        cache = prefix_cache(self.model, embeddings[0, :shared], len(prompts)) if shared else None
        inputs = {"inputs_embeds": embeddings[:, shared:]}
        ends = torch.tensor(self.prompt.end_tokens, device=self.model.device)
        # The first column stands for the prompt, which has no token ids.
        tokens = ends[-1].expand(len(prompts), 1)
        p_yes: list[float] = []
        while tokens.shape[1] <= self.max_new_tokens and not torch.isin(tokens[:, 1:], ends).any(1).all():
            stopping.check()
            out = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            logits = out.logits[:, -1].float()
            p_yes = p_yes or self._p_yes(logits)
            if constraint is not None:
                logits = constraint(tokens, logits)
            chosen = logits.argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, chosen], dim=1)
            inputs = {"input_ids": chosen}
        return [self._generation(row, p) for row, p in zip(tokens[:, 1:].tolist(), p_yes, strict=True)]

    def _p_yes(self, logits: Tensor) -> list[float]:
        """P("Yes") / (P("Yes") + P("No")) from the first token's logits (n, vocabulary)."""
        return (logits[:, self.prompt.yes_token] - logits[:, self.prompt.no_token]).sigmoid().tolist()

    def _generation(self, tokens: list[int], p_yes: float) -> Generation:
        text, ended, count = self.prompt.read_answer(tokens)
        return Generation(text, p_yes, "stop" if ended else "length", count)

    def close(self) -> None:
        """See `Engine.close`."""
        del self.model


def _constraint(prompt: Prompt, sentences: Sequence[str]) -> LogitsProcessor:
    """Allows an answer only the tokens that continue one of the sentences, of the template if none are given."""
    from transformers import PrefixConstrainedLogitsProcessor

    return PrefixConstrainedLogitsProcessor(AllowedTokens(prompt, sentences), num_beams=1)
