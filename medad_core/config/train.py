"""Settings of training: the decoder on cached features, the converter through the frozen LLM."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from medad_core.config.base import Section


class DecoderTraining(Section):
    """Focal and dice loss on cached patch features (medad_core/README.md)."""

    steps: int = Field(400, ge=1)
    batch_size: int = Field(12, ge=1, description="half with tumour, half without; the odd one by a coin")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    accumulate: int = Field(
        1, ge=1, description="batches whose gradients are summed for one step, where memory holds no larger batch"
    )
    checkpoint_every: int = Field(100, ge=1)
    choose_steps: bool = Field(
        True,
        description="stop at the checkpoint with the lowest loss on the patients held out; false: after `steps`",
    )

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.steps


class ConverterTraining(Section):
    """Language-model loss through the frozen LLM, first on synthetic maps, then on real ones (medad_core/README.md)."""

    architecture: Literal["compact", "anomalygpt"] = Field(
        "compact", description="anomalygpt has base tokens in place of knowledge, and 150 times the parameters"
    )
    questions: tuple[Literal["presence", "location", "side", "size", "region", "number"], ...] = Field(
        ("presence", "location", "side", "size", "region", "number"),
        description="families of questions that are learned (medad_core/llm/questions.yaml); presence is the verdict",
    )
    wordings: int = Field(
        12, ge=1, le=12, description="of each question that are learned; 1: only the one that screening uses"
    )
    warm_up_steps: int = Field(
        1500,
        ge=0,
        description="of the convolutions alone, against the answers as classes; no LLM, milliseconds a step",
    )
    synthetic_steps: int = Field(100, ge=0)
    real_steps: int = Field(240, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    accumulate: int = Field(1, ge=1, description="as the decoder's")
    normal_share: float = Field(
        0.5, gt=0, lt=1, description="share of tumour-free maps in a batch: sets the operating point of the verdict"
    )
    checkpoint_every: int = Field(20, ge=1)
    validation_maps: int = Field(192, ge=2, description="held-out maps, half with tumour, that choose the checkpoint")
    least_right: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of right answers on patients held out, above that of the commonest value, that a further "
        "question needs so that runs may ask it; 0: all may be asked",
    )

    @field_validator("questions")
    @classmethod
    def _with_presence(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if "presence" not in names or len(set(names)) < len(names):
            raise ValueError("should hold presence, whose answers are the verdicts, and no family twice")
        return names

    @property
    def total_steps(self) -> int:
        """Steps through the LLM; those of the warm-up are apart."""
        return self.synthetic_steps + self.real_steps


class TrainSettings(Section):
    """How `medad train` makes a decoder and a converter."""

    seed: int = 0
    first_slice: int = Field(
        20, ge=0, description="training reads a wider range than screening: tumour-free slices lie outside it"
    )
    last_slice: int = Field(130, ge=0)
    context_mm: float = Field(
        0.0,
        ge=0,
        le=30,
        description="how far below and above a slice the pictures lie that the encoder sees beside it; 0: none",
    )
    window_mm: float = Field(
        0.0,
        ge=0,
        le=400,
        description="width of the square around the brain that the encoder sees, larger where the brain is; 0: it sees "
        "the whole picture",
    )
    image_pixels: int = Field(
        224, ge=32, le=2048, description="side of the encoder's pictures, a multiple of the side of its patches"
    )
    mirrored: bool = Field(
        False, description="the decoder learns from every slice with left and right exchanged too; encodes twice"
    )
    hold_out_test: bool = Field(
        True,
        description="leave out the patients of the split `test`: screening the cohort then gives honest test numbers",
    )
    folds: int = Field(
        4, ge=2, description="patients are held out in turn, so the converter learns from maps of unseen patients"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of matrix products; auto: bfloat16 on CUDA, float16 where that is all there is, else float32",
    )
    decoder: DecoderTraining = DecoderTraining()
    converter: ConverterTraining = ConverterTraining()

    @model_validator(mode="after")
    def _windowed(self) -> Self:
        if 0 < self.window_mm < 32:
            raise ValueError(f"window_mm ({self.window_mm:g}) must be 0, for none, or at least 32")
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first_slice > self.last_slice:
            raise ValueError(f"first_slice ({self.first_slice}) must not be after last_slice ({self.last_slice})")
        return self
