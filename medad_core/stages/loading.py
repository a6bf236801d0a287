"""Loads the models of a run: encoder and decoder, converter, prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medad_core.config import Settings
from medad_core.llm.engine import llm_folder
from medad_core.llm.prompt import Prompt
from medad_core.models.blocks import cast_products
from medad_core.models.decoder import Decoder
from medad_core.models.device import device_of, precision_of, settle_torch
from medad_core.models.encoder import VisionTransformerEncoder, load_encoder
from medad_core.models.weights import AnyConverter, load_converter, load_decoder, weights_folder
from medad_core.run.fingerprints import converter_surroundings, joint_of, maps_fingerprint, view_of, wording


@dataclass(frozen=True)
class MapModels:
    """Encoder and decoder on one device; `embeds` if the weights need embeddings in the joint space."""

    encoder: VisionTransformerEncoder
    decoder: Decoder
    embeds: bool = False

    def encode(self, images: np.ndarray | Tensor) -> tuple[Tensor, Tensor | None]:
        """Patch features of slices, uint8 (B, H, W), and their embeddings if the weights need them."""
        return self.encoder.encode_with_embedding(images) if self.embeds else (self.encoder.encode(images), None)

    @property
    def device(self) -> torch.device:
        """The device of both."""
        return self.decoder.text.device


def load_map_models(settings: Settings, device: str | None = None, precision: str | None = None) -> MapModels:
    """Load encoder and decoder. `device` and `precision` replace those of the settings."""
    settle_torch(settings)
    device = device or device_of(settings)
    precision = precision or precision_of(settings)
    decoder = load_decoder(weights_folder(settings.models.weights), maps_fingerprint(settings))
    decoder = cast_products(decoder, precision).to(device)
    pixels = view_of(settings).image_pixels
    encoder = load_encoder(settings.models.encoder, device, precision, pixels, where=settings.models)
    if settings.models.compile:
        encoder.compile_blocks()
    return MapModels(encoder, decoder, joint_of(settings) is not None)


def load_converter_of(settings: Settings) -> AnyConverter:
    """The converter of the weights, on the CPU. Raises WeightsError if it does not fit the other models."""
    settle_torch(settings)
    return load_converter(weights_folder(settings.models.weights), converter_surroundings(settings))


def load_prompt_of(settings: Settings) -> Prompt:
    """The prompt in the template of the settings, or in the one that the converter was trained with.

    Raises WeightsError if the template does not work with the LLM.
    """
    return Prompt(llm_folder(settings.llm.model, settings.llm.lora, where=settings.models), *wording(settings))
