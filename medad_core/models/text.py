"""Frozen text encoders and prompt ensembles: sentences in, unit vectors out.

One decision: text is encoded once a run and handed on as arrays; nothing below the stage that starts a run ever sees a sentence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from medad_core.errors import ConfigError, WeightsError
from medad_core.models.cache import sha256_of
from medad_core.models.pack import PACK, packaged


class Sentences(BaseModel):
    """What is said in words: the two prompt ensembles, and the medical knowledge for the converter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    normal: tuple[str, ...] = Field(min_length=1)
    abnormal: tuple[str, ...] = Field(min_length=1)
    knowledge: tuple[str, ...] = Field(min_length=1)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def load_sentences(source: str = "embedded") -> Sentences:
    """The project's own sentences (`embedded`) or those of a YAML file with the lists normal, abnormal and knowledge."""
    try:
        text = (files("medad_core.models") / "sentences.yaml").read_text() if source == "embedded" else Path(source).read_text()
        return Sentences.model_validate(yaml.safe_load(text))
    except OSError as error:
        raise ConfigError(f"models.sentences: cannot read {source} ({error.strerror})") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"models.sentences: {source} must hold the lists normal, abnormal and knowledge: {str(error).splitlines()[0]}") from error


class MiniLMTextEncoder:
    """Mean-pooled BERT sentence embeddings (sentence-transformers' recipe) of a local `transformers` folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, BertModel

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = BertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, add_pooling_layer=False).eval().requires_grad_(False)
        self.width = self.model.config.hidden_size

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Sentences to L2-normalised embeddings (n, width), float32."""
        tokens = self.tokenizer(list(sentences), padding=True, return_tensors="pt")
        hidden = self.model(**tokens).last_hidden_state
        weight = tokens["attention_mask"].unsqueeze(-1)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1).clone()


def text_features(encoder: MiniLMTextEncoder, sentences: Sentences) -> Tensor:
    """(2, width) unit vectors, 0 normal and 1 abnormal: the mean of each ensemble, normalised again (METHOD section 2)."""
    return F.normalize(torch.stack([encoder.encode(ensemble).mean(0) for ensemble in (sentences.normal, sentences.abnormal)]), dim=-1)


def text_encoder_folder(name: str) -> Path:
    """The folder of a packaged text encoder, or the local folder of a BERT sentence encoder that is named."""
    folder = packaged(name).folder if name in PACK else Path(name)
    if not (folder / "config.json").is_file():
        raise WeightsError(f"text encoder {name}: {folder} holds no config.json; name a packaged one (minilm) or a transformers folder")
    if not (folder / "model.safetensors").is_file():
        raise WeightsError(f"text encoder {name}: {folder} holds no model.safetensors; save the model as one safetensors file (pickles are not read)")
    return folder


def text_encoder_fingerprint(name: str) -> dict[str, str]:
    """What determines text features, the sentences aside; loads no model."""
    folder = text_encoder_folder(name)
    return {"text_encoder": name if name in PACK else folder.name, "text_encoder_sha256": sha256_of(folder / "model.safetensors")}


def load_text_encoder(name: str) -> MiniLMTextEncoder:
    """A packaged text encoder by name, or a BERT sentence encoder from a local `transformers` folder."""
    return MiniLMTextEncoder(text_encoder_folder(name))
