"""The models of a run: what each stage loads, and the fingerprints that say so before anything is loaded.

One decision: compatibility is settled from fingerprints when a stage is planned, so a decoder of another encoder is refused
before the first forward pass. The precision of maps is settled there too: whichever machine goes on with a run keeps to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medad_core.config import Settings
from medad_core.errors import UsageError, WeightsError
from medad_core.llm.engine import llm_fingerprint, llm_folder
from medad_core.llm.lora import check_lora
from medad_core.llm.prompt import Prompt, check_prompts
from medad_core.llm.sizing import resolved_dtype
from medad_core.llm.template import wording_sha256
from medad_core.models.blocks import cast_products
from medad_core.models.decoder import Decoder
from medad_core.models.encoder import NO_JOINT, VisionTransformerEncoder, encoder_fingerprint, joint_width, load_encoder
from medad_core.models.resolve import model_folder
from medad_core.models.text import load_sentences, text_encoder_fingerprint
from medad_core.models.weights import (
    CONVERTER,
    DECODER,
    AnyConverter,
    check_fit,
    converter_facts,
    load_converter,
    load_decoder,
    weights_fingerprint,
    weights_folder,
)
from medad_core.stages.common import settings_fingerprint

BATCH = {"cuda": 256, "mps": 32, "cpu": 16}


def scaling_key(settings: Settings) -> str:
    """What of modality and intensity scaling a decoder depends on."""
    return json.dumps({"modality": settings.data.modality, **settings.data.scaling.model_dump()}, sort_keys=True)


def shared_fingerprint(settings: Settings) -> dict[str, str]:
    """Fields that both decoder and converter were made for."""
    text = text_encoder_fingerprint(settings.models.text_encoder, where=settings.models)
    return {**text, "sentences_sha256": load_sentences().sha256, "scaling": scaling_key(settings)}


def maps_fingerprint(settings: Settings, there: Mapping[str, str] | None = None) -> dict[str, str]:
    """What determines maps: encoder, texts, decoder, score, and a precision other than float32.

    `there` is the fingerprint of maps that a run already has; `auto` keeps to their precision. Raises WeightsError where decoder
    and encoder do not fit.
    """
    folder = weights_folder(settings.models.weights)
    present = {**encoder_fingerprint(settings.models.encoder, where=settings.models), **shared_fingerprint(settings)}
    check_fit(folder / DECODER, present)
    joint = _joint_of(settings)
    carried = {} if joint is None else {"embedding": f"joint space, {joint} wide"}
    precision = (
        settled_precision(there)
        if there is not None and settings.models.precision == "auto"
        else precision_of(settings)
    )
    rounded = {} if precision == "float32" else {"precision": precision}
    return {
        **present,
        **weights_fingerprint(folder, DECODER),
        "image_score": settings.models.image_score.model_dump_json(),
        **carried,
        **rounded,
    }


def settled_precision(fingerprint: Mapping[str, str]) -> str:
    """The precision in which the maps of a fingerprint are made; float32 is not written, so that maps older than the setting keep theirs."""
    return fingerprint.get("precision", "float32")


def _joint_of(settings: Settings) -> int | None:
    """Width of the image embedding that the converter asks for. Raises WeightsError where the encoder cannot give it."""
    asked = converter_facts(weights_folder(settings.models.weights)).joint
    if asked is None:
        return None
    given = joint_width(settings.models.encoder, where=settings.models)
    if asked != given:
        raise WeightsError(
            NO_JOINT.format(name=settings.models.encoder)
            if given is None
            else f"models.encoder: its joint space is {given} wide, the converter wants {asked}"
        )
    return asked


def prompts_fingerprint(settings: Settings) -> dict[str, str]:
    """What determines map tokens: the converter. Raises WeightsError where it was made for another LLM."""
    folder = weights_folder(settings.models.weights)
    check_fit(folder / CONVERTER, _beside_converter(settings))
    return weights_fingerprint(folder, CONVERTER)


def _beside_converter(settings: Settings) -> dict[str, str]:
    """What a converter has to fit."""
    return {
        **llm_fingerprint(settings.llm.model, settings.llm.lora, where=settings.models),
        **shared_fingerprint(settings),
    }


def answers_fingerprint(settings: Settings) -> dict[str, str]:
    """What determines answers: how the LLM speaks, a template other than that of the weights, and how an LLM of the user's own spells it."""
    weights, asked = converter_facts(weights_folder(settings.models.weights)).template, settings.llm.template
    found = model_folder(settings.llm.model, "language model", settings.models)
    spelled = {} if found.packaged else {"wording": wording_sha256(found.folder, *_wording(settings))}
    return {**speech_fingerprint(settings), **spelled, **({} if asked in ("auto", weights) else {"template": asked})}


def run_fingerprint(settings: Settings, there: Mapping[str, str] | None = None) -> dict[str, str]:
    """All that determines the predictions of a case, its files aside; `there` as in `maps_fingerprint`."""
    pictures = settings_fingerprint(settings, "data.modality", "data.first_slice", "data.last_slice", "data.scaling")
    return {
        **pictures,
        **maps_fingerprint(settings, there),
        **prompts_fingerprint(settings),
        **answers_fingerprint(settings),
    }


def speech_fingerprint(settings: Settings) -> dict[str, str]:
    """The LLM, its limit, its type and whether it is held to the grammar; not the engine: engines give the same greedy answers.

    float32 and free speech are not written, so that answers older than these settings keep their fingerprint.
    """
    llm = settings.llm
    dtype = resolved_dtype(llm_folder(llm.model, where=settings.models), llm.dtype)
    found = {**llm_fingerprint(llm.model, llm.lora, where=settings.models), "max_new_tokens": str(llm.max_new_tokens)}
    return (
        found
        | ({} if dtype == "float32" else {"llm_dtype": dtype})
        | ({"structured": "true"} if llm.structured else {})
    )


def load_prompt_of(settings: Settings) -> Prompt:
    """The prompt in the template of the settings, or in the one that the weights' converter speaks. Raises WeightsError where it cannot be worded."""
    return Prompt(llm_folder(settings.llm.model, settings.llm.lora, where=settings.models), *_wording(settings))


def check_wording(settings: Settings) -> None:
    """Raise WeightsError where `load_prompt_of` would; loads a tokenizer only."""
    check_llm(settings, *_wording(settings))


def check_llm(settings: Settings, template: str, image: bool = False) -> None:
    """Raise WeightsError where an LLM cannot be asked in a template, or its LoRA does not fit it; reads a tokenizer and headers only."""
    folder = llm_folder(settings.llm.model, where=settings.models)
    check_prompts(folder, template, image)
    if settings.llm.lora is not None:
        check_lora(folder, Path(settings.llm.lora).expanduser())


def _wording(settings: Settings) -> tuple[str, bool]:
    """The template, and whether a slice has a token of its embedding."""
    facts = converter_facts(weights_folder(settings.models.weights))
    return facts.template if settings.llm.template == "auto" else settings.llm.template, facts.joint is not None


def device_of(settings: Settings) -> str:
    """`auto` is CUDA where there is one, else the CPU. Raises UsageError for a device that is not there."""
    name = settings.models.device
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"models.device: {name} is not available here; set models.device=cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("models.device: mps is not available here; set models.device=cpu or auto")
    return name


def precision_of(settings: Settings) -> str:
    """`auto` is bfloat16 on CUDA, float16 where a GPU has no bfloat16, and float32 elsewhere."""
    if settings.models.precision != "auto":
        return settings.models.precision
    if not device_of(settings).startswith("cuda"):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def batch_size_of(settings: Settings, device: torch.device) -> int:
    """Slices a forward pass. `auto`: as many as fill a GPU; on a CPU as many as its cache likes."""
    size = settings.models.batch_size
    return BATCH[device.type] if size == "auto" else size


@contextmanager
def worker_device(run: str, device: str, count: int | None = None) -> Iterator[str]:
    """`cuda` as the first `cuda:N` that no other worker of this run holds on this machine, waiting for one; other devices as they are.

    A lock on a file works between threads and between processes, and goes with its holder however that ends. `count` is the
    number of GPUs, where it is not torch's.
    """
    if device != "cuda":
        yield device
        return
    owner = hashlib.sha256(f"{os.getuid()} {run}".encode()).hexdigest()[:16]
    while True:
        for number in range(count or torch.cuda.device_count()):
            with open(Path(tempfile.gettempdir()) / f"medad-{owner}.gpu{number}", "w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield f"cuda:{number}"
                return
        time.sleep(0.2)


def settle_torch(settings: Settings) -> None:
    """Settle how torch computes in this process, for every stage, for training and benchmark alike: a stage that is resumed must not differ from one that ran
    after another in the same process. `models.threads` threads, because the last bits of its sums depend on how many there are; and no TF32, to which cuDNN
    would round float32 convolutions: float32 is to mean the same on every device."""
    torch.backends.cudnn.allow_tf32 = False
    if settings.models.threads:
        torch.set_num_threads(settings.models.threads)


@dataclass(frozen=True)
class MapModels:
    """Encoder and decoder on one device."""

    encoder: VisionTransformerEncoder
    decoder: Decoder
    embeds: bool = False

    def encode(self, images: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Patch features of slices, and their embeddings in the joint space where the weights ask for them."""
        return self.encoder.encode_with_embedding(images) if self.embeds else (self.encoder.encode(images), None)

    @property
    def device(self) -> torch.device:
        return self.decoder.text.device


def load_map_models(settings: Settings, device: str | None = None, precision: str | None = None) -> MapModels:
    """Encoder and decoder; device and precision are those of the settings where a stage has not settled them."""
    settle_torch(settings)
    device, precision = device or device_of(settings), precision or precision_of(settings)
    decoder = cast_products(
        load_decoder(weights_folder(settings.models.weights), maps_fingerprint(settings)), precision
    )
    encoder = load_encoder(settings.models.encoder, device, precision, where=settings.models)
    if settings.models.compile:
        encoder.compile_blocks()
    return MapModels(encoder, decoder.to(device), _joint_of(settings) is not None)


def load_converter_of(settings: Settings) -> AnyConverter:
    settle_torch(settings)
    return load_converter(weights_folder(settings.models.weights), _beside_converter(settings))
