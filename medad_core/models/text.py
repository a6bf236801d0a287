"""Frozen text encoders and prompt ensembles: sentences in, unit vectors out.

One decision: text is encoded once a run and handed on as arrays; nothing below the stage that starts a run reads a
sentence.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from medad_core.config import ModelSettings
from medad_core.errors import WeightsError
from medad_core.models.loading import config_values, load_tokenizer, load_tower, read_config
from medad_core.models.resolve import LOCAL, model_folder, model_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Sentences(BaseModel):
    """The method's sentences: the two prompt ensembles, and the medical knowledge for the converter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normal: tuple[str, ...] = Field(min_length=1)
    abnormal: tuple[str, ...] = Field(min_length=1)
    knowledge: tuple[str, ...] = Field(min_length=1)

    @property
    def sha256(self) -> str:
        """Hash of all sentences."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def load_sentences() -> Sentences:
    """The project's own sentences."""
    text = (files("medad_core.models") / "sentences.yaml").read_text(encoding="utf-8")
    return Sentences.model_validate(yaml.safe_load(text))


class TextEncoder(Protocol):
    """A frozen text encoder."""

    width: int

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Sentences to L2-normalised embeddings (n, width), float32."""


class MiniLMTextEncoder:
    """Mean-pooled BERT sentence embeddings (sentence-transformers' recipe) of a local `transformers` folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.model = load_tower("BertModel", folder, add_pooling_layer=False).eval().requires_grad_(False)
        self.width = self.model.config.hidden_size

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`."""
        tokens = self.tokenizer(list(sentences), padding=True, return_tensors="pt")
        hidden = self.model(**tokens).last_hidden_state
        weight = tokens["attention_mask"].unsqueeze(-1)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1).clone()


class CLIPTextEncoder:
    """CLIP's text tower: the state of the end token, normalised and projected into the joint space with the images."""

    def __init__(self, folder: Path) -> None:
        whole = read_config(folder)
        config = getattr(whole, "text_config", whole)
        config.projection_dim = whole.projection_dim  # the tower's own is a default where both towers lie in one folder
        self.tokenizer = load_tokenizer(folder)
        self.model = load_tower("CLIPTextModelWithProjection", folder, config).eval().requires_grad_(False)
        self.width = config.projection_dim
        self.context = config.max_position_embeddings

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`. What lies beyond the 77 tokens of CLIP is cut off, with a warning."""
        tokens = _tokens(self.tokenizer, sentences, self.context, padding=True)
        states = self.model.text_model(input_ids=tokens).last_hidden_state
        # Older configurations name a wrong end token, for which `transformers` takes the greatest id. So the end is
        # looked up here. Padding comes after it.
        ends = (tokens == self.tokenizer.eos_token_id).int().argmax(dim=1)
        return F.normalize(self.model.text_projection(states[torch.arange(len(states)), ends]), dim=-1).clone()


class SigLIPTextEncoder:
    """SigLIP's and SigLIP2's text tower: its own pooler, in the joint space with the images."""

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        config = getattr(config, "text_config", config)
        self.tokenizer = load_tokenizer(folder)
        architecture = "Siglip2TextModel" if config.model_type.startswith("siglip2") else "SiglipTextModel"
        self.model = load_tower(architecture, folder, config).eval().requires_grad_(False)
        self.width = config.projection_size
        self.context = config.max_position_embeddings

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """See `TextEncoder.encode`.

        In lower case and padded to the full length without a mask, as SigLIP was trained.
        """
        lower = [sentence.lower() for sentence in sentences]
        tokens = _tokens(self.tokenizer, lower, self.context, padding="max_length")
        return F.normalize(self.model(input_ids=tokens).pooler_output, dim=-1).clone()


def _tokens(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], context: int, padding: bool | str) -> Tensor:
    """Token ids (n, L), L ≤ context. A longer sentence is cut before its end token, with a warning."""
    whole = tokenizer(list(sentences))["input_ids"]
    long = [sentence for sentence, ids in zip(sentences, whole, strict=True) if len(ids) > context]
    if long:
        log.warning(
            "%d sentences are longer than the %d tokens of the text encoder and are cut, the first: %s",
            len(long),
            context,
            long[0],
        )
    cut = tokenizer(list(sentences), padding=padding, truncation=True, max_length=context, return_tensors="pt")
    return cut["input_ids"]


def text_features(encoder: TextEncoder, sentences: Sentences) -> Tensor:
    """Unit vectors (2, width), 0 normal and 1 abnormal: mean of each ensemble, normalised again.

    Source: medad_core/README.md, "Texts".
    """
    means = [encoder.encode(ensemble).mean(0) for ensemble in (sentences.normal, sentences.abnormal)]
    return F.normalize(torch.stack(means), dim=-1)


TEXT_FAMILIES = {
    "bert": MiniLMTextEncoder,
    **dict.fromkeys(("clip", "clip_text_model"), CLIPTextEncoder),
    **dict.fromkeys(("siglip", "siglip_text_model", "siglip2", "siglip2_text_model"), SigLIPTextEncoder),
}


def text_encoder_folder(name: str, *, where: ModelSettings = LOCAL) -> Path:
    """The folder of a text encoder: packaged, preset, or the local `transformers` folder that is named.

    Raises UsageError or WeightsError where there is none.
    """
    return model_folder(name, "text encoder", where).folder


def text_encoder_fingerprint(name: str, *, where: ModelSettings = LOCAL) -> dict[str, str]:
    """What determines text features, the sentences aside; loads no model.

    Raises UsageError or WeightsError where there is no such encoder.
    """
    model = model_folder(name, "text encoder", where)
    _family(model.folder)
    return {"text_encoder": model.label, "text_encoder_sha256": model_sha256(model, tokenizer=True)}


def load_text_encoder(name: str, *, where: ModelSettings = LOCAL) -> TextEncoder:
    """A text encoder by name (packaged or preset), or BERT, CLIP's or SigLIP's from a local `transformers` folder.

    Raises UsageError or WeightsError where there is none, or it cannot be read.
    """
    folder = text_encoder_folder(name, where=where)
    return _family(folder)(folder)


def _family(folder: Path) -> type[TextEncoder]:
    (kind,) = config_values(folder, "model_type")
    if kind not in TEXT_FAMILIES:
        raise WeightsError(
            f"text encoder {folder.name}: architecture {kind!r} is not supported; known: {', '.join(TEXT_FAMILIES)}"
        )
    return TEXT_FAMILIES[kind]
