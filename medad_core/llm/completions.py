"""What is said to a server of vLLM: the body of `POST /v1/completions`, and what its answer must contain.

One decision: only finished embeddings are sent, a prompt as one tensor and no mask or text beside it: vLLM 0.32 hashes
the embeddings and not the mask in its prefix cache (vLLM #56655). Token ids come back, not text, so that an answer is
read here as every engine's is.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import msgspec
import numpy as np
import torch

from medad_core.llm.held import Held
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation, share_of_yes

STOPS = 4  # texts to stop at that a server takes, where VLLM_MAX_STOP_STRINGS does not say otherwise


class _Logprobs(msgspec.Struct):
    top_logprobs: list[dict[str, float]]


class _Choice(msgspec.Struct):
    index: int
    token_ids: list[int]
    logprobs: _Logprobs


class _Completion(msgspec.Struct):
    choices: list[_Choice]


def body_of(
    prompt: Prompt, model: str, prompts: np.ndarray, dtype: torch.dtype, tokens: int, held: Held | None
) -> bytes:
    """The request for greedy answers of at most `tokens` tokens to prompts (n, L, width), as JSON.

    `model` is the server's name of the LLM, `held` has what answers are held to, None for nothing.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt_embeds": [_tensor(one, dtype) for one in prompts],
        "max_tokens": tokens,
        "temperature": 0.0,
        # A server's generation_config.json would say otherwise, where these are left out.
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 2,
        "logprob_token_ids": [prompt.yes_token, prompt.no_token],
        "stop_token_ids": list(prompt.end_tokens),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    if held is not None:
        body["structured_outputs"] = {"choice": prompt.spelled(held.sentences)}
        body["stop"] = sorted(held.beginnings, key=len)[:STOPS]  # those that come first save most
    return msgspec.json.encode(body)


def _tensor(one: np.ndarray, dtype: torch.dtype) -> str:
    """A prompt (L, width) as base64 of what `torch.save` writes, which the server loads with `weights_only`."""
    stream = io.BytesIO()
    torch.save(torch.tensor(one, dtype=dtype), stream)
    return base64.b64encode(stream.getvalue()).decode()


def generations_of(prompt: Prompt, content: bytes, count: int, held: Held | None) -> list[Generation]:
    """The answers in the server's response to `count` prompts, in order.

    Raises ValueError where it is not what was asked for.
    """
    try:
        choices = sorted(msgspec.json.decode(content, type=_Completion).choices, key=lambda choice: choice.index)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    if [choice.index for choice in choices] != list(range(count)):
        raise ValueError(f"{len(choices)} answers to {count} prompts")
    return [_generation(prompt, choice, held) for choice in choices]


def _generation(prompt: Prompt, choice: _Choice, held: Held | None) -> Generation:
    if not choice.token_ids or not choice.logprobs.top_logprobs:
        raise ValueError("an answer without a token")
    first = choice.logprobs.top_logprobs[0]
    try:
        yes, no = (first[f"token_id:{token}"] for token in (prompt.yes_token, prompt.no_token))
    except KeyError as error:
        raise ValueError(f"an answer without the probability of {error}") from error
    text, ended, count = (held or prompt).read_answer(choice.token_ids)
    return Generation(text, share_of_yes(yes, no), "stop" if ended else "length", count)
