"""Prompt assembly: constant tokens and soft tokens become one sequence of input embeddings.

One decision: `Prompt` cuts a template at its marks, and nothing else knows the order of its pieces. Only the embedding
table of the LLM is read, so prompts are assembled without loading the LLM.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medad_core.data.location import CELLS
from medad_core.errors import WeightsError
from medad_core.llm.embeddings import embedding_table, find_embeddings
from medad_core.llm.grammar import NO, yes
from medad_core.llm.template import IMAGE, KNOWLEDGE, MAP, MARKS, word

_SPACES = str.maketrans({"\u2581": " ", "\u0120": " "})  # as SentencePiece and byte-level BPE write them


def check_prompts(folder: Path, template: str, image: bool) -> None:
    """Raise WeightsError where `Prompt` would; reads a tokenizer and headers only."""
    word(folder, template, image)
    find_embeddings(folder)


class Prompt:
    """Turns soft tokens into prompt embeddings for one LLM.

    `template` is a name in `TEMPLATES`; `auto` is the chat template of a tokenizer that has one, else `anomalygpt`.
    `image` says that the first token of a slice is that of its joint-space embedding. `yes_token` and `no_token` are
    the first tokens of the two kinds of answer, whose probabilities give p_yes. `end_tokens` end an answer; the last of
    them is the LLM's own.
    """

    def __init__(self, folder: Path, template: str = "auto", image: bool = False) -> None:
        """Raises WeightsError where the LLM has no usable tokenizer, template or embedding table."""
        wording = word(folder, template, image)
        self.folder = folder
        self.image = image
        self.tokenizer = wording.tokenizer
        self.template = wording.template
        self.pieces = self._cut(wording.text)
        self._others: dict[str, Prompt] = {}
        self.yes_token = self.answer_tokens(yes(CELLS[0]))[0]
        self.no_token = self.answer_tokens(NO)[0]
        if self.yes_token == self.no_token:
            raise WeightsError(
                f"{folder.name}: its tokenizer starts both answers with the same token, so p_yes has no meaning; "
                "choose another LLM"
            )
        self.end_tokens = self._end_tokens()
        self.embeddings = embedding_table(folder)
        self.width = self.embeddings.shape[1]

    def asking(self, question: str) -> Prompt:
        """The same prompt with the words of another question."""
        if question not in self._others:
            other = copy(self)
            other.pieces = self._cut(self.template.render(self.tokenizer, self.image, question))
            self._others[question] = other
        return self._others[question]

    def _cut(self, text: str) -> list[list[int] | str]:
        """Token ids of what is constant, and marks, in order."""
        pieces = [piece for piece in re.split(f"({'|'.join(MARKS)})", text) if piece]
        cut = [piece if piece in MARKS else self.tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]
        start = self.tokenizer.bos_token_id
        return [[start, *cut[0]], *cut[1:]] if self.template.starts and start is not None else cut

    def _end_tokens(self) -> tuple[int, ...]:
        """The first token that only the template's end has, and the LLM's own end token."""
        own = self.tokenizer.eos_token_id
        if not self.template.end:
            return (own,)
        mark = self.template.end.strip()[0]
        first = next(token for token in self.answer_tokens(NO) if mark in self.tokenizer.decode([token]))
        return (first, own)

    def answer_tokens(self, answer: str) -> list[int]:
        """Token ids of an answer with what ends it."""
        tokens = self.tokenizer.encode(answer + self.template.end, add_special_tokens=False)
        return tokens if self.template.end else [*tokens, self.tokenizer.eos_token_id]

    def spelled(self, sentences: Sequence[str] = ()) -> list[str]:
        """Sentences, or the template's, as tokens spell them: a tokenizer of words begins a text with a space."""
        spaced = self.token_text(self.no_token).startswith(" ")
        return [f" {sentence}" if spaced else sentence for sentence in sentences or self.template.sentences]

    def token_text(self, token: int) -> str:
        """The text of a token, its spaces included. Exact for ASCII, which is all that the sentences have."""
        return self.tokenizer.convert_ids_to_tokens(token).translate(_SPACES)

    def read_answer(self, tokens: list[int]) -> tuple[str, bool, int]:
        """Generated tokens to the answer's text, whether it ended, and its number of tokens with the end token."""
        last = next((place for place, token in enumerate(tokens) if token in self.end_tokens), None)
        text = self.tokenizer.decode(tokens[:last], skip_special_tokens=True)
        if last is None:
            return text, False, len(tokens)
        return text.removesuffix(self.template.end[:1]), True, last + 1

    def embed(self, tokens: list[int]) -> Tensor:
        """Token ids to their input embeddings (n, width), float32."""
        return self.embeddings[torch.tensor(tokens)]

    def length(self, knowledge: int, map_tokens: int) -> int:
        """Positions of a prompt with so many knowledge tokens, and so many map tokens a slice."""
        constant = sum(len(piece) for piece in self.pieces if isinstance(piece, list))
        return constant + knowledge + self.image + map_tokens

    def prefix(self, knowledge: Tensor) -> Tensor:
        """What all prompts share before the first token of a slice (P, width); knowledge (K, width)."""
        shared = self.pieces[: self._first()]
        return torch.cat([knowledge if piece == KNOWLEDGE else self.embed(piece).to(knowledge) for piece in shared])

    def rest(self, knowledge: Tensor, soft: Tensor) -> Tensor:
        """Prompts from the first token of a slice on (n, R, width).

        `soft` (n, T, width) are the tokens of a slice, that of its embedding first; `knowledge` is (K, width).
        """
        own = {KNOWLEDGE: knowledge.expand(len(soft), -1, -1), IMAGE: soft[:, :1], MAP: soft[:, int(self.image) :]}
        parts = [
            own[piece] if isinstance(piece, str) else self.embed(piece).to(soft).expand(len(soft), -1, -1)
            for piece in self.pieces[self._first() :]
        ]
        return torch.cat(parts, dim=1)

    def _first(self) -> int:
        """Number of the first piece that is a slice's own."""
        return next(number for number, piece in enumerate(self.pieces) if piece in (IMAGE, MAP))

    def assemble(self, knowledge: np.ndarray, soft: np.ndarray) -> np.ndarray:
        """knowledge (K, width) and soft tokens (n, T, width) to prompt embeddings (n, L, width), float32."""
        shared = torch.from_numpy(knowledge.astype(np.float32))
        own = torch.from_numpy(soft.astype(np.float32))
        return torch.cat([self.prefix(shared).expand(len(own), -1, -1), self.rest(shared, own)], dim=1).numpy()
