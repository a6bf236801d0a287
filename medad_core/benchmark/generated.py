"""What a benchmark runs on: encoders of the true sizes without weights, and a run of generated slices.

One decision: speed does not depend on the values of weights, so random ones of the true sizes stand for those that need
a download.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.config import ModelSettings
from medad_core.data.read import CaseSlices
from medad_core.models.blocks import PRECISIONS, cast_products
from medad_core.models.decoder import Decoder
from medad_core.models.encoder import VisionTransformerEncoder, load_encoder
from medad_core.models.resolve import LOCAL
from medad_core.models.text import load_sentences, text_encoder_folder
from medad_core.models.view import CONTEXT_MM, USUAL_PIXELS, WINDOW_MM, View
from medad_core.models.vision import FAMILIES
from medad_core.run.fingerprints import view_of
from medad_core.run.run import Run
from medad_core.stages.batches import columns_of
from medad_core.stages.loading import MapModels
from medad_core.stages.parts import plan_after
from medad_core.stages.rows import slice_rows
from medad_core.store import Stage

SIDE = 240  # pixels of a BraTS slice
CASES_PER_PART = 4  # as data.cases_per_part
TEXT_TOKENS = 77  # CLIP's context
MINILM_WIDTH = 384


@dataclass(frozen=True)
class Size:
    """A vision transformer of `family` at patch 14.

    `text` are width, depth and heads of the CLIP text tower beside it; None is MiniLM.
    """

    family: str
    width: int
    depth: int
    heads: int
    text: tuple[int, int, int] | None = None


# DINOv2 (Oquab et al. 2023) up to L; H is OpenCLIP ViT-H/14, from which ImageBind-Huge was initialised.
SIZES = {
    "vit-s-14": Size("dinov2", 384, 12, 6),
    "vit-b-14": Size("dinov2", 768, 12, 12),
    "vit-l-14": Size("dinov2", 1024, 24, 16),
    "vit-h-14": Size("clip_vision_model", 1280, 32, 16, text=(1024, 24, 16)),
}


def models_of(
    name: str, device: str, precision: str, where: ModelSettings = LOCAL, image_pixels: int = USUAL_PIXELS
) -> MapModels:
    """Encoder `name`, and a decoder with random weights for its texts.

    `name` is one of `SIZES`, with random weights, or whatever `models.encoder` takes. Raises WeightsError for others.
    """
    if name in SIZES:
        encoder = random_encoder(SIZES[name], device, precision, image_pixels)
    else:
        encoder = load_encoder(name, device, precision, image_pixels, where=where)
    tower = _clip_tower(name)
    width = MINILM_WIDTH if tower is None else tower[0]
    text = F.normalize(torch.randn(2, width), dim=-1)
    decoder = Decoder(encoder.taps, encoder.width, text).eval().requires_grad_(False)
    return MapModels(encoder, cast_products(decoder, precision).to(device))


def _clip_tower(name: str) -> tuple[int, int, int] | None:
    """Width, depth and heads of the text tower of one of `SIZES`; None where the text encoder is MiniLM."""
    return SIZES[name].text if name in SIZES else None


def random_encoder(
    size: Size, device: str, precision: str, image_pixels: int = USUAL_PIXELS
) -> VisionTransformerEncoder:
    """An encoder without weights, made on the device itself."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

    sizes = {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "image_size": image_pixels,
        "patch_size": 14,
    }
    with torch.device(device):
        if size.family == "clip_vision_model":
            config = CLIPVisionConfig(**sizes, intermediate_size=4 * size.width, hidden_act="gelu")
            model = CLIPVisionModel(config)
        else:
            model = Dinov2Model(Dinov2Config(**sizes))
    return VisionTransformerEncoder(model, FAMILIES[size.family], image_pixels, precision).to(device)


def text_of(name: str, device: str, precision: str) -> Callable[[], Tensor]:
    """A function that encodes all sentences, normal and abnormal, to unit vectors (2, width).

    A loop that does so for every image would call it for every image.
    """
    sentences = load_sentences()
    texts = [*sentences.normal, *sentences.abnormal]
    size = _clip_tower(name)
    tower, tokens = _minilm(texts) if size is None else _clip_text(size, len(texts), device)
    tower = tower.to(device, PRECISIONS[precision]).eval()

    @torch.inference_mode()
    def encode() -> Tensor:
        inputs = {key: value.to(device) for key, value in tokens().items()}
        embeddings = F.normalize(tower(**inputs).last_hidden_state.float().mean(1), dim=-1)
        normal, abnormal = embeddings.tensor_split([len(sentences.normal)])
        return F.normalize(torch.stack([normal.mean(0), abnormal.mean(0)]), dim=-1)

    return encode


def _clip_text(
    size: tuple[int, int, int], count: int, device: str
) -> tuple[nn.Module, Callable[[], dict[str, Tensor]]]:
    from transformers import CLIPTextConfig, CLIPTextModel

    width, depth, heads = size
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        hidden_act="gelu",
    )
    with torch.device(device):
        tower = CLIPTextModel(config)
    # There is no tokenizer without weights; its time is left out.
    ids = torch.randint(1, config.vocab_size, (count, TEXT_TOKENS))
    return tower, lambda: {"input_ids": ids}


def _minilm(texts: list[str]) -> tuple[nn.Module, Callable[[], dict[str, Tensor]]]:
    from transformers import AutoTokenizer, BertModel

    folder = text_encoder_folder("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tower = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
    return tower, lambda: dict(tokenizer(texts, padding=True, return_tensors="pt"))


def write_run(run: Run, cases: int, slices: int) -> int:
    """Fill a new run: its stage `slices` is finished, and its maps are planned; returns the number of its parts.

    Each case has `slices` slices of noise inside a disc: as hard to compress as pictures come.
    """
    names = [f"Generated_{number:05d}" for number in range(cases)]
    parts = [names[start : start + CASES_PER_PART] for start in range(0, cases, CASES_PER_PART)]
    stage = run.stage("slices")
    rng = np.random.default_rng(0)
    view = view_of(run.settings)
    facts = view.facts
    context = {CONTEXT_MM: facts[CONTEXT_MM]} if CONTEXT_MM in facts else {}
    window = {WINDOW_MM: facts[WINDOW_MM]} if WINDOW_MM in facts else {}
    stage.prepare({"generated": "noise in a disc", **context}, parts)
    for number, part in enumerate(parts):
        stage.write_part(number, (slice_rows(_generated(name, slices, view, rng), "screen") for name in part))
    stage.finish()
    plan_after(run, "slices", "maps", {"generated": "random decoder", **window})
    return len(parts)


def _generated(name: str, slices: int, view: View, rng: np.random.Generator) -> CaseSlices:
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    brain = np.broadcast_to(x**2 + y**2 < 0.6, (slices, SIDE, SIDE))
    images = rng.integers(0, 256, brain.shape, np.uint8) * brain
    spacing = (1.0, 1.0, 1.0)
    step = round(view.context_mm) if view.context_mm else None
    index = np.arange(60, 60 + slices)
    return CaseSlices(name, index, images, brain, None, spacing, "LPS", spacing, around=images, step=step)


def bytes_per_slice(slices: Stage, view: View) -> float:
    """Bytes of the columns that the maps stage reads, as they lie in Parquet, a slice."""
    total = 0
    rows = 0
    for part in slices.plan().parts:
        metadata = pq.ParquetFile(f"{slices.uri}/part-{part.number:05d}.parquet").metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(metadata.num_columns)]
        total += sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema in columns_of(view))
        rows += metadata.num_rows
    return total / rows
