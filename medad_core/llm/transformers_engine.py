"""Greedy generation with Transformers: the reference, and the engine where vLLM is not installed.

Two decisions. The prefix that all prompts of a call share is computed once, and its keys and values are expanded over
the batch, as vLLM's prefix cache does. And the LLM reads several tokens a step where the sentences that it was taught
say how an answer goes on (see `drafts`): a step reads all weights, however few tokens it computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medad_core import stopping
from medad_core.environment import installed_version
from medad_core.llm.drafts import Drafts, can_be_cut, rows_of
from medad_core.llm.held import Held
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation
from medad_core.llm.structured import AllowedTokens
from medad_core.models.loading import load_tower

if TYPE_CHECKING:
    from transformers import Cache, LogitsProcessor


MOST_LOGITS = 2**27  # numbers that a step may give: half a GB


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


@dataclass(frozen=True)
class _Asked:
    """What an engine makes of the sentences of a question.

    `held` and `constraint`, which lets the LLM say nothing else, are there in structured generation only.
    """

    drafts: Drafts
    held: Held | None
    constraint: LogitsProcessor | None


@dataclass
class _Answers:
    """Answers that go on together: rows of the batch (n,), their tokens so far (n, t), and the cache before the last.

    t is the same for all.
    """

    rows: Tensor
    tokens: Tensor
    cache: Cache


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
        self.asked: dict[tuple[str, ...], _Asked] = {}

    @property
    def made_with(self) -> dict[str, str]:
        """See `Engine.made_with`."""
        version = installed_version("transformers") or ""
        return {"engine": self.name, "version": version, "max_num_seqs": str(self.batch_size)}

    def generate(self, prompts: np.ndarray, sentences: Sequence[str] = ()) -> list[Generation]:
        """See `Engine.generate`. Raises Stopped where the process was asked to stop."""
        starts = range(0, len(prompts), self.batch_size)
        batches = (prompts[start : start + self.batch_size] for start in starts)
        asked = self._asked(tuple(sentences))
        return [answer for batch in batches for answer in self._answer(batch, asked)]

    def _asked(self, sentences: tuple[str, ...]) -> _Asked:
        """What engines know of these sentences, made once because it reads the whole vocabulary."""
        if sentences not in self.asked:
            held = Held.to(self.prompt, sentences) if self.structured else None
            constraint = None if held is None else _constraint(self.prompt, sentences)
            self.asked[sentences] = _Asked(Drafts(self.prompt, sentences), held, constraint)
        return self.asked[sentences]

    @torch.inference_mode()
    def _answer(self, prompts: np.ndarray, asked: _Asked) -> list[Generation]:
        """Answers to one batch of prompts."""
        embeddings = torch.from_numpy(prompts).to(self.model.device, self.model.dtype)
        shared = shared_prefix(prompts)
        cache = prefix_cache(self.model, embeddings[0, :shared], len(prompts)) if shared else None
        stopping.check()
        out = self.model(inputs_embeds=embeddings[:, shared:], past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1:].float()
        p_yes = self._p_yes(logits[:, 0])
        rows = torch.arange(len(prompts), device=self.model.device)
        first = self._chosen(logits, rows.new_empty(len(rows), 0), asked)
        answers: dict[int, list[int]] = {}
        waiting = [_Answers(rows, first, out.past_key_values)]
        while waiting:
            stopping.check()
            going = self._without_ended(waiting.pop(), answers, asked)
            if going is not None:
                waiting += self._step(going, asked)
        return [self._generation(answers[row], p, asked) for row, p in enumerate(p_yes)]

    def _without_ended(self, going: _Answers, answers: dict[int, list[int]], asked: _Asked) -> _Answers | None:
        """Put answers that have ended into `answers`; returns the others, None where there is none."""
        ends = torch.tensor(self.prompt.end_tokens, device=going.tokens.device)
        ended = torch.isin(going.tokens, ends).any(1)
        if asked.held is not None:
            decided = [asked.held.decided(tokens) is not None for tokens in going.tokens.tolist()]
            ended |= torch.tensor(decided, device=ended.device)
        if going.tokens.shape[1] >= self.max_new_tokens:
            ended[:] = True
        if not ended.all() and (not ended.any() or not can_be_cut(going.cache)):
            return going  # those that have ended stay where no row can be taken out
        for row, tokens in zip(going.rows[ended].tolist(), going.tokens[ended].tolist(), strict=True):
            answers[row] = tokens
        return None if ended.all() else _taken(going, ~ended, going.tokens, going.cache.get_seq_length())

    def _step(self, going: _Answers, asked: _Asked) -> Iterator[_Answers]:
        """One step of answers of equal length: each by what it accepts of its draft, and one token more."""
        room = self.max_new_tokens - going.tokens.shape[1] - 1  # a step adds one token to its draft
        room = min(room, max(0, MOST_LOGITS // (len(going.rows) * len(self.prompt.embeddings)) - 1))
        drafted = [asked.drafts.after(tuple(tokens))[:room] for tokens in going.tokens.tolist()]
        if not can_be_cut(going.cache):
            drafted = [()] * len(drafted)
        alike = defaultdict(list)
        for place, draft in enumerate(drafted):
            alike[len(draft)].append(place)
        length = going.cache.get_seq_length()
        for width, places in alike.items():
            some = going
            if len(alike) > 1:
                picked = torch.tensor(places, device=going.rows.device)
                some = _taken(going, picked, going.tokens, length)
            draft = some.tokens.new_tensor([drafted[place] for place in places]).reshape(len(places), width)
            out = self.model(
                input_ids=torch.cat([some.tokens[:, -1:], draft], dim=1),
                past_key_values=some.cache,
                use_cache=True,
                logits_to_keep=width + 1,
            )
            said = self._chosen(out.logits.float(), torch.cat([some.tokens, draft], dim=1), asked)
            accepted = (said[:, :-1] == draft).int().cumprod(1).sum(1)
            tokens = torch.cat([some.tokens, said], dim=1)  # up to what was accepted, it is what the draft says
            for count in accepted.unique().tolist():
                until = some.tokens.shape[1] + count + 1
                if count == width and bool((accepted == width).all()):
                    yield _Answers(some.rows, tokens, out.past_key_values)
                else:
                    after = _Answers(some.rows, tokens, out.past_key_values)
                    yield _taken(after, accepted == count, tokens[:, :until], length + count + 1)

    def _chosen(self, logits: Tensor, tokens: Tensor, asked: _Asked) -> Tensor:
        """The tokens (n, k) that the LLM says at the last k of its positions, logits (n, k, vocabulary).

        `tokens` (n, t) are what it had read up to the last of them.
        """
        if (constraint := asked.constraint) is not None:
            start = tokens.new_full((len(tokens), 1), self.prompt.end_tokens[-1])  # the prompt, which has no token ids
            read = torch.cat([start, tokens], dim=1)
            width = logits.shape[1]
            each = [constraint(read[:, : read.shape[1] - width + 1 + k], logits[:, k]) for k in range(width)]
            logits = torch.stack(each, dim=1)
        return logits.argmax(-1)

    def _p_yes(self, logits: Tensor) -> list[float]:
        """P("Yes") / (P("Yes") + P("No")) from the first token's logits (n, vocabulary)."""
        return (logits[:, self.prompt.yes_token] - logits[:, self.prompt.no_token]).sigmoid().tolist()

    def _generation(self, tokens: list[int], p_yes: float, asked: _Asked) -> Generation:
        text, ended, count = (asked.held or self.prompt).read_answer(tokens)
        return Generation(text, p_yes, "stop" if ended else "length", count)

    def close(self) -> None:
        """See `Engine.close`."""
        del self.model


def _taken(answers: _Answers, places: Tensor, tokens: Tensor, length: int) -> _Answers:
    """Some of the answers, with these tokens, and so many positions of the cache."""
    return _Answers(answers.rows[places], tokens[places], rows_of(answers.cache, places, length))


def _constraint(prompt: Prompt, sentences: Sequence[str]) -> LogitsProcessor:
    """Allows an answer only the tokens that continue one of the sentences, of the template if none are given."""
    from transformers import PrefixConstrainedLogitsProcessor

    return PrefixConstrainedLogitsProcessor(AllowedTokens(prompt, sentences), num_beams=1)
