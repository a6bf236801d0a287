"""Prompt assembly: constant tokens and soft tokens become one sequence of input embeddings.

One decision: a template is a text with marks where soft tokens go, and `Prompt` cuts it there; nothing else knows the order. What
comes before the first token of a slice is the prefix that a whole cohort shares, so a template puts there all that it may
(METHOD section 5). Only the embedding table of the LLM is read, so prompts are assembled without loading it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medad_core.data.location import CELLS
from medad_core.errors import WeightsError
from medad_core.llm.grammar import ANOMALYGPT_GRAMMAR, GRAMMAR, NO, QUESTION, yes
from medad_core.models.loading import load_tokenizer, open_tensors, read_config
from medad_core.models.resolve import weight_files

SYSTEM = "You are a radiologist."
TODAY = date(2024, 7, 26)  # the date that Llama 3's own template falls back to
# Stand for soft tokens while a template is rendered; control pictures occur in no template.
KNOWLEDGE, IMAGE, MAP = "\u2402knowledge\u2403", "\u2402image\u2403", "\u2402map\u2403"

_SPACES = str.maketrans({"\u2581": " ", "\u0120": " "})  # as SentencePiece and byte-level BPE write them


@dataclass(frozen=True)
class Template:
    """How tokens are spoken. `end` follows an answer ("": the LLM's own end token), `sentences` are the answers it is meant to give."""

    name: str
    starts: bool  # with the tokenizer's token for the start of a text
    end: str
    sentences: tuple[str, ...]

    def render(self, tokenizer, image: bool) -> str:
        """The prompt with marks for soft tokens; `image` where every slice has a token of its joint-space embedding."""
        return (_chat if self.name == "chat" else _anomalygpt)(tokenizer, image)


def _chat(tokenizer, image: bool) -> str:
    """The tokenizer's own chat template: question and knowledge are constant and come first, the map last."""
    if image:
        raise WeightsError(
            "llm.template: chat has no place for the image's embedding, which these weights give; set llm.template=auto"
        )
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{QUESTION}\n{KNOWLEDGE}{MAP}"}]
    # Llama 3's template tells the LLM the date: of today, unless it is given one. A prompt must be the same tomorrow.
    dated = {"date_string": TODAY.strftime("%d %b %Y"), "strftime_now": TODAY.strftime}
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **dated)


def _anomalygpt(tokenizer, image: bool) -> str:
    """Vicuna's first conversation as AnomalyGPT speaks it. It names the image before all else that is constant, so little is shared."""
    return f"### Human: {f'<Img>{IMAGE}</Img> ' if image else ''}{KNOWLEDGE}{MAP}{QUESTION}\n### Assistant:"


TEMPLATES = {
    "chat": Template("chat", False, "", tuple(GRAMMAR)),
    "anomalygpt": Template("anomalygpt", True, "\n###", tuple(GRAMMAR | ANOMALYGPT_GRAMMAR)),
}


def word(folder: Path, template: str, image: bool):
    """The tokenizer of an LLM, the template, and the prompt in it with marks. Raises WeightsError where the template cannot word it."""
    tokenizer = load_tokenizer(folder)
    has_chat = bool(tokenizer.chat_template)
    if template == "chat" and not has_chat:
        raise WeightsError(
            f"llm.template: the tokenizer of {folder.name} has no chat template; set llm.template=anomalygpt, or choose an instruction-tuned model"
        )
    chosen = TEMPLATES[("chat" if has_chat else "anomalygpt") if template == "auto" else template]
    return tokenizer, chosen, chosen.render(tokenizer, image)


def wording_sha256(folder: Path, template: str, image: bool) -> str:
    """Hash of what an LLM is asked and may answer, as its tokenizer spells it."""
    tokenizer, chosen, text = word(folder, template, image)
    spelled = [tokenizer.encode(each, add_special_tokens=False) for each in (text, *chosen.sentences)]
    return hashlib.sha256(
        json.dumps([spelled, chosen.end, tokenizer.bos_token_id, tokenizer.eos_token_id]).encode()
    ).hexdigest()


def check_prompts(folder: Path, template: str, image: bool) -> None:
    """Raise WeightsError where `Prompt` would; reads a tokenizer and headers only."""
    word(folder, template, image)
    find_embeddings(folder)


class Prompt:
    """Turns soft tokens into prompt embeddings for one LLM.

    `template` is a name in `TEMPLATES`, `auto` the chat template of a tokenizer that has one, else `anomalygpt`; `image` says that
    the first token of a slice is that of its joint-space embedding. Attributes: `yes_token`, `no_token` the first tokens of the
    two kinds of answer, whose probabilities give p_yes; `end_tokens` those that end an answer.
    """

    def __init__(self, folder: Path, template: str = "auto", image: bool = False) -> None:
        self.folder, self.image = folder, image
        self.tokenizer, self.template, text = word(folder, template, image)
        self.pieces = self._cut(text)
        self.yes_token, self.no_token = self.answer_tokens(yes(CELLS[0]))[0], self.answer_tokens(NO)[0]
        if self.yes_token == self.no_token:
            raise WeightsError(
                f"{folder.name}: its tokenizer starts both answers with the same token, so p_yes has no meaning; choose another LLM"
            )
        self.end_tokens = self._end_tokens()
        self.embeddings = embedding_table(folder)
        self.width = self.embeddings.shape[1]

    def _cut(self, text: str) -> list[list[int] | str]:
        """Token ids of what is constant, and marks, in order."""
        pieces = re.split(f"({'|'.join((KNOWLEDGE, IMAGE, MAP))})", text)
        cut = [
            piece if piece in (KNOWLEDGE, IMAGE, MAP) else self.tokenizer.encode(piece, add_special_tokens=False)
            for piece in pieces
            if piece
        ]
        start = self.tokenizer.bos_token_id
        return [[start, *cut[0]], *cut[1:]] if self.template.starts and start is not None else cut

    def _end_tokens(self) -> tuple[int, ...]:
        """What the template ends an answer with, as soon as it is sure to have begun, and the LLM's own end."""
        own = self.tokenizer.eos_token_id
        if not self.template.end:
            return (own,)
        mark = self.template.end.strip()[0]
        return (next(token for token in self.answer_tokens(NO) if mark in self.tokenizer.decode([token])), own)

    @property
    def before(self) -> list[int]:
        """The tokens that open a prompt, up to the first soft one."""
        return self.pieces[0]

    @property
    def after(self) -> list[int]:
        """The tokens that close a prompt, from the last soft one on."""
        return self.pieces[-1]

    def answer_tokens(self, answer: str) -> list[int]:
        """Token ids of an answer with what ends it."""
        tokens = self.tokenizer.encode(answer + self.template.end, add_special_tokens=False)
        return tokens if self.template.end else [*tokens, self.tokenizer.eos_token_id]

    def spelled_sentences(self) -> list[str]:
        """The template's sentences as tokens spell them: a tokenizer of words begins a text with a space."""
        spaced = self.token_text(self.no_token).startswith(" ")
        return [f" {sentence}" if spaced else sentence for sentence in self.template.sentences]

    def token_text(self, token: int) -> str:
        """What a token spells, its spaces included. Exact for ASCII, which is all that the sentences have."""
        return self.tokenizer.convert_ids_to_tokens(token).translate(_SPACES)

    def read_answer(self, tokens: list[int]) -> tuple[str, bool, int]:
        """Generated tokens to the answer's text, whether it ended, and how many tokens it took with its end."""
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
        return sum(len(piece) for piece in self.pieces if isinstance(piece, list)) + knowledge + self.image + map_tokens

    def prefix(self, knowledge: Tensor) -> Tensor:
        """What all prompts share before the first token of a slice (P, width); knowledge (K, width)."""
        return torch.cat(
            [
                knowledge if piece == KNOWLEDGE else self.embed(piece).to(knowledge)
                for piece in self.pieces[: self._first()]
            ]
        )

    def rest(self, knowledge: Tensor, soft: Tensor) -> Tensor:
        """Prompts from the first token of a slice on (n, R, width); soft (n, T, width) are a slice's own tokens, the image's first."""
        own = {KNOWLEDGE: knowledge.expand(len(soft), -1, -1), IMAGE: soft[:, :1], MAP: soft[:, int(self.image) :]}
        parts = [
            own[piece] if isinstance(piece, str) else self.embed(piece).to(soft).expand(len(soft), -1, -1)
            for piece in self.pieces[self._first() :]
        ]
        return torch.cat(parts, dim=1)

    def _first(self) -> int:
        return next(place for place, piece in enumerate(self.pieces) if piece in (IMAGE, MAP))

    def assemble(self, knowledge: np.ndarray, soft: np.ndarray) -> np.ndarray:
        """knowledge (K, width) and soft tokens (n, T, width) to prompt embeddings (n, L, width), float32."""
        shared, own = (torch.from_numpy(tokens.astype(np.float32)) for tokens in (knowledge, soft))
        return torch.cat([self.prefix(shared).expand(len(own), -1, -1), self.rest(shared, own)], dim=1).numpy()


def embedding_table(folder: Path) -> Tensor:
    """What a causal LM's input embeddings give for every token (vocabulary, width), float32; none of its other weights is read.

    Raises WeightsError where a folder holds no causal LM, or one whose embeddings lie under another name.
    """
    file, name, scale = find_embeddings(folder)
    with open_tensors(file) as tensors:
        return tensors.get_tensor(name).float() * scale


def find_embeddings(folder: Path) -> tuple[Path, str, float]:
    """File, tensor and factor of a causal LM's input embeddings; reads headers only. Raises WeightsError as `embedding_table` does."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read_config(folder), trust_remote_code=False)
            layer = model.get_input_embeddings()
    except (ValueError, NotImplementedError) as error:
        raise WeightsError(
            f"{folder}: is no causal language model ({str(error).strip().splitlines()[0][:160]}); choose another"
        ) from error
    full = next(name for name, module in model.named_modules() if module is layer) + ".weight"
    names = (full, full.removeprefix(f"{model.base_model_prefix}."))  # a base model is saved without its prefix
    for file in weight_files(folder):
        with open_tensors(file) as tensors:
            here = next((name for name in names if name in tensors.keys()), None)  # noqa: SIM118 (a safetensors handle is no mapping)
        if here is not None:
            # Gemma's kind multiplies what it looks up; whoever gives embeddings has to.
            return file, here, getattr(layer, "scalar_embed_scale", 1.0)
    raise WeightsError(
        f"{folder}: none of its files has a tensor {full}; its embeddings cannot be given from outside, choose another LLM"
    )
