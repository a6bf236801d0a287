"""Settings of training: the decoder on cached features, the converter through the frozen LLM."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DecoderTraining(_Frozen):
    """Focal and dice loss on cached patch features (METHOD section 3)."""

    steps: int = Field(1500, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)


class TrainSettings(_Frozen):
    seed: int = 0
    first_slice: int = Field(20, ge=0, description="training reads a wider range than screening: outside it lie tumour-free slices")
    last_slice: int = Field(130, ge=0)
    folds: int = Field(4, ge=2, description="patients are held out in turn, so the converter learns from maps of unseen patients")
    decoder: DecoderTraining = DecoderTraining()
