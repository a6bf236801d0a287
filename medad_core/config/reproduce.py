"""Settings of `medad reproduce`: which rows, on which folds and seeds, with which budget."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from medad_core.config.base import Section

RowName = Literal[
    "autoencoder",
    "masked-autoencoder",
    "memory-autoencoder",
    "proposed",
    "patchcore",
    "anomaly-dino",
    "brightness",
    "majority",
    "without-knowledge",
    "without-llm",
    "shuffled",
]
ThresholdRule = Literal["max_recall", "youden", "f1"]


class BaselineTraining(Section):
    """The budget that the three reconstruction baselines share."""

    image_size: int = Field(64, ge=32, le=512, multiple_of=16, description="pixels a side")
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    memory_slots: int = Field(500, ge=2, description="of the memory autoencoder")
    coreset: int = Field(2000, ge=1, description="patches that PatchCore keeps")


class ReproduceSettings(Section):
    """What the table compares, and how it is measured."""

    rows: tuple[RowName, ...] = Field(get_args(RowName), min_length=1)
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="each trains everything anew; the table gives mean and standard deviation"
    )
    llm_seeds: int | None = Field(
        None, ge=1, description="so many of the seeds for rows that train through the LLM, which cost most; null: all"
    )
    folds: int = Field(
        1,
        ge=1,
        description="1: one test split, by the shares of data.split; k: patients dealt to k tests, each tested once",
    )
    rule: ThresholdRule = Field(
        "max_recall", description="threshold rule of the table's main decisions; all three are in it"
    )
    patient_slices: int = Field(3, ge=1, description="k of the patient rule k of n")
    lesion_area_mm2: tuple[float, ...] = Field(
        (100.0, 500.0, 2000.0), description="edges of the bins of sensitivity by lesion size"
    )
    gallery: int = Field(4, ge=0, description="worst false positives, and as many false negatives, a row")
    baselines: BaselineTraining = BaselineTraining()

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.folds == 2:
            raise ValueError(
                "folds (2) leaves no patients to validate on beside those trained on; choose 1, or 3 and more"
            )
        if "shuffled" in self.rows and "proposed" not in self.rows:
            raise ValueError("rows: shuffled takes the answers of proposed; name both")
        for name, values in (("rows", self.rows), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names one twice")
        edges = self.lesion_area_mm2
        if any(edge <= 0 for edge in edges) or list(edges) != sorted(set(edges)):
            raise ValueError("lesion_area_mm2 must rise, from above 0")
        return self
