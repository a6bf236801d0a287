"""Prompt assembly: constant tokens, knowledge tokens and map tokens become one sequence of input embeddings.

One decision: everything constant comes first (system text, question, knowledge tokens), then the map tokens, then the
assistant header, so a whole cohort shares one prefix (METHOD section 5). Only the embedding table of the LLM is read, so
prompts are assembled without loading it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medad_core.errors import WeightsError
from medad_core.llm.answers import NO, QUESTION, yes
from medad_core.llm.location import CELLS

SYSTEM = "You are a radiologist."
_PLACE = "\u2402map\u2403"  # stands for the soft tokens while the chat template is rendered; occurs in no template


class Prompt:
    """Turns map tokens (n, T, width) into prompt embeddings (n, L, width) for one LLM.

    Attributes: `before`, `after` the token ids around the soft tokens; `yes_token`, `no_token` the first tokens of the two
    kinds of answer, whose probabilities give p_yes; `end_token` the token that ends an answer.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.before, self.after = self._template()
        self.yes_token, self.no_token = self.answer_tokens(yes(CELLS[0]))[0], self.answer_tokens(NO)[0]
        if self.yes_token == self.no_token:
            raise WeightsError(f"{folder.name}: its tokenizer starts both answers with the same token, so p_yes has no meaning; choose another LLM")
        self.embeddings = embedding_table(folder)
        self.width = self.embeddings.shape[1]

    @property
    def end_token(self) -> int:
        return self.tokenizer.eos_token_id

    def _template(self) -> tuple[list[int], list[int]]:
        if not self.tokenizer.chat_template:
            raise WeightsError(f"llm.model: the tokenizer of {self.folder.name} has no chat template; choose an instruction-tuned model")
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{QUESTION}\n{_PLACE}"}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, after = text.split(_PLACE)
        return (self.tokenizer.encode(part, add_special_tokens=False) for part in (before, after))

    def answer_tokens(self, answer: str) -> list[int]:
        """Token ids of an answer with the token that ends it."""
        return [*self.tokenizer.encode(answer, add_special_tokens=False), self.tokenizer.eos_token_id]

    def embed(self, tokens: list[int]) -> Tensor:
        """Token ids to their input embeddings (n, width), float32."""
        return self.embeddings[torch.tensor(tokens)]

    def assemble(self, knowledge: np.ndarray, map_tokens: np.ndarray) -> np.ndarray:
        """knowledge (K, width) and map tokens (n, T, width) to prompt embeddings (n, L, width), float32."""
        count = len(map_tokens)
        prefix = torch.cat([self.embed(self.before), torch.from_numpy(knowledge.astype(np.float32))])
        parts = (prefix.expand(count, -1, -1), torch.from_numpy(map_tokens.astype(np.float32)), self.embed(self.after).expand(count, -1, -1))
        return torch.cat(parts, dim=1).numpy()


def embedding_table(folder: Path) -> Tensor:
    """The input embedding table (vocabulary, width) of a `transformers` folder, float32, read without the other weights."""
    from safetensors import safe_open

    name = "model.embed_tokens.weight"
    index = folder / "model.safetensors.index.json"
    file = folder / (json.loads(index.read_text())["weight_map"].get(name, "") if index.is_file() else "model.safetensors")
    if not file.is_file():
        raise WeightsError(f"{folder}: no model.safetensors here; an LLM is a packaged name or a transformers folder with safetensors")
    with safe_open(file, framework="pt") as tensors:
        if name not in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
            raise WeightsError(f"{folder.name}: no tensor {name}; only Llama-like decoders are supported")
        return tensors.get_tensor(name).float()
