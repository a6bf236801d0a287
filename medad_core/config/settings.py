"""Every setting of a run, in one frozen tree.

One decision: every section refuses unknown keys and values of the wrong kind. A misspelt key stops the command before
any work, and nothing downstream asks whether a setting is sane. `configs/default.yaml` is this tree written out; a test
holds the two together.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, SecretStr, field_validator, model_validator

from medad_core.config.base import Section
from medad_core.config.reproduce import ReproduceSettings
from medad_core.config.train import TrainSettings
from medad_core.config.workers import RayWorkers

Modality = Literal["flair", "t1", "t1ce", "t2"]
Language = Literal["en", "de", "ko"]  # of reports of cases


class ScalingSettings(Section):
    """Intensity scaling of a volume by landmarks inside the brain of the reference slices.

    The reference range is a setting of its own: a slice's pixels do not depend on the range that is screened.
    """

    kind: Literal["percentile", "median"] = "median"
    low: float = Field(0.5, ge=0, le=100, description="percentile that becomes 0")
    high: float = Field(99.5, ge=0, le=100, description="percentile that becomes 255 (kind percentile)")
    k: float = Field(3.0, gt=0, description="multiple of median - low that becomes 255 (kind median)")
    reference_first: int = Field(60, ge=0, description="first slice of the reference range, inclusive")
    reference_last: int = Field(100, ge=0, description="last slice of the reference range, inclusive")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.reference_first > self.reference_last:
            raise ValueError(
                f"reference_first ({self.reference_first}) must not be after reference_last ({self.reference_last})"
            )
        return self


class SplitSettings(Section):
    """Shares of the patients; slices of one patient never cross splits."""

    seed: int = 0
    train: float = Field(0.7, ge=0, le=1)
    validation: float = Field(0.2, ge=0, le=1)
    test: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test must be 1, not {total:g}")
        return self


class DataSettings(Section):
    """Which slices of which volumes, and how they are scaled and split."""

    modality: Modality = "flair"
    first_slice: int = Field(60, ge=0, description="axial, 0-based, counted from inferior, inclusive")
    last_slice: int = Field(100, ge=0, description="inclusive")
    scaling: ScalingSettings = ScalingSettings()
    split: SplitSettings = SplitSettings()
    patients: str | None = Field(
        None, description="CSV or TSV with case_id and patient, where neither names nor layout say the patient"
    )
    pseudonyms: str | None = Field(
        None, description="a key file of `medad pseudonyms --new`: cases, patients and files have pseudonyms everywhere"
    )
    levels: Literal["auto", "index", "brain"] = Field(
        "auto",
        description="how slices are counted: index as the volume has them, brain as the same levels of the brain as on "
        "SRI24; auto is index on SRI24, brain elsewhere",
    )
    checks: Literal["refuse", "warn"] = Field(
        "refuse", description="what follows where the content of a volume or mask is surely wrong; warn screens it"
    )
    tumour_labels: tuple[PositiveInt, ...] | None = Field(
        None, description="values of a mask that mean tumour; without it, those of the dataset's layout"
    )
    context_mm: float | None = Field(
        None,
        ge=0,
        le=30,
        description="how far below and above a slice the pictures lie that the encoder sees beside it; 0: none; "
        "null: as the weights were trained",
    )
    max_gib: float = Field(
        4.0, gt=0, description="a file whose header speaks of more is refused before it is read; changes no row"
    )
    cases_per_part: int = Field(4, ge=1, description="unit of work and of resume; does not change any row")

    @field_validator("patients", "pseudonyms")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        """A deployment runs in another folder than the command that made it."""
        return None if path is None else os.path.abspath(path)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first_slice > self.last_slice:
            raise ValueError(f"first_slice ({self.first_slice}) must not be after last_slice ({self.last_slice})")
        return self


class ImageScoreSettings(Section):
    """How an anomaly map becomes one number; chosen on validation patients, never on test."""

    kind: Literal["max", "quantile", "mean"] = "quantile"
    quantile: float = Field(0.999, gt=0, le=1, description="used by kind quantile")


class ModelSettings(Section):
    """Encoders, the weights of decoder and converter, and how they run."""

    encoder: str = Field("dinov2-small", min_length=1, description="a name that `medad models` lists")
    text_encoder: str = Field("minilm", min_length=1, description="a name that `medad models` lists")
    weights: str = Field("embedded", min_length=1, description="'embedded' or a folder that `medad train` wrote")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = Field(False, description="let torch.compile fuse the encoder; pays from some thousand slices on")
    batch_size: int | str = Field("auto", description="auto, or slices a forward pass; changes no map")
    image_score: ImageScoreSettings = ImageScoreSettings()
    threads: int | None = Field(
        None,
        ge=1,
        description="of torch, a batch of maps each on a CPU, and readers of volumes; null: torch's choice",
    )
    folder: str | None = Field(
        None, min_length=1, description="where presets are looked for, one folder a name; null: $MEDAD_MODELS"
    )
    offline: bool = Field(True, description="false lets a preset that is not here be downloaded from its hub")

    @field_validator("batch_size", mode="before")
    @classmethod
    def _auto_or_count(cls, value: object) -> object:
        # One sentence instead of the two that a union of types would give.
        if value == "auto" or (type(value) is int and value >= 1):
            return value
        raise ValueError(f"should be auto or a whole number from 1, not {value!r}")


class LLMSettings(Section):
    """The language model and its engine."""

    model: str = Field("smollm2-135m", min_length=1, description="a name that `medad models` lists, or a local folder")
    lora: str | None = Field(None, min_length=1, description="folder of a LoRA adapter that is merged into the model")
    template: Literal["auto", "chat", "anomalygpt"] = Field(
        "auto", description="auto: that of the weights; in training the tokenizer's chat template, where it has one"
    )
    questions: tuple[str, ...] = Field(
        ("presence",),
        description="what is asked of every slice: presence first, then location, side, size, number, and region "
        "(each half) or 'region: PLACE'",
    )
    engine: Literal["auto", "vllm", "transformers", "vllm-server"] = Field(
        "auto",
        description="auto: vllm where it can be imported, otherwise transformers; vllm-server: `endpoints` answer",
    )
    endpoints: tuple[str, ...] = Field(
        (),
        description="addresses of servers with the same model, engine vllm-server; their key: $MEDAD_LLM_API_KEY",
    )
    request_timeout_s: float = Field(120.0, gt=0, description="after which a server's answer is asked for again")
    patience_s: float = Field(
        600.0,
        gt=0,
        description="a run stops where no server has answered for so long; they may be started anew meanwhile",
    )
    max_new_tokens: int = Field(24, ge=1)
    structured: bool = Field(
        False,
        description="let the LLM say nothing but the sentences of the grammar; once one is left, as after No, "
        "the rest is not generated",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 up to a billion parameters, 16 bits above"
    )
    batch_size: int = Field(64, ge=1, description="prompts at once, engine transformers")
    max_sequences: int | None = Field(
        None,
        ge=1,
        description="prompts at once, engine vllm, or at each server (null: 64); null: by the size of the model",
    )
    gpu_memory_share: float | None = Field(
        None, gt=0, le=1, description="of each GPU, engine vllm; null: what model and cache need"
    )
    prefix_caching: bool = Field(True, description="engine vllm computes what prompts share once")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share one copy of the model, engine vllm")
    data_parallel_size: int = Field(
        1, ge=1, description="copies of the model, each in a process and on GPUs of its own"
    )

    @field_validator("endpoints", mode="before")
    @classmethod
    def _addresses(cls, value: object) -> object:
        """One address alone is a list of one. The message quotes none: an address may hold a password."""
        listed = (value,) if isinstance(value, str) else value
        if not isinstance(listed, list | tuple):
            return value
        for number, address in enumerate(listed, 1):
            if not (isinstance(address, str) and _is_endpoint(address)):
                raise ValueError(
                    f"number {number} should be http:// or https://, a host, a port and perhaps a path, such as "
                    "http://gpu1:8000; a key is read from MEDAD_LLM_API_KEY and never part of it"
                )
        addresses = tuple(address.rstrip("/").removesuffix("/v1") for address in listed)
        if len(set(addresses)) < len(addresses):
            raise ValueError("names a server twice")
        return addresses

    @model_validator(mode="after")
    def _served(self) -> Self:
        if (self.engine == "vllm-server") != bool(self.endpoints):
            raise ValueError("endpoints and engine=vllm-server belong together; set both or neither")
        return self

    @field_validator("questions", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """One question alone is a list of one; `region: left half` without quotation marks is a mapping to YAML."""
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple):
            return value
        return tuple(
            ": ".join(map(str, next(iter(each.items())))) if type(each) is dict and len(each) == 1 else each
            for each in value
        )


class EvaluateSettings(Section):
    """Metrics and their intervals."""

    bootstrap: int = Field(1000, ge=0, description="replicates over patients; 0 gives no intervals")
    seed: int = 0
    map_threshold: float = Field(0.5, ge=0, le=1, description="for Dice, and for the lesions of cases")
    smallest_lesion_ml: float = Field(
        0.05, ge=0, description="smaller ones count in no case; 50 voxels of 1 mm, as in BraTS 2023"
    )


class ReportSettings(Section):
    """Reports of cases (`medad report RUN`); changes no result."""

    language: Language = Field(
        "en", description="of what is computed; the language model's words stay as it spoke them"
    )


class FlowSettings(Section):
    """How Prefect runs the work; changes no row."""

    runner: Literal["thread", "process", "ray"] = "thread"
    max_workers: int = Field(1, ge=1)
    retries: int = Field(1, ge=0)
    retry_delay_s: float = Field(1.0, ge=0)
    ray_address: str | None = Field(None, description="HOST:PORT of a Ray cluster; null starts Ray on this machine")
    ray_workers: RayWorkers = RayWorkers()
    ray_runtime_env: dict[str, Any] | None = Field(
        None, description="code and packages that Ray brings to its nodes; null: medad is installed on every node"
    )


class StoreSettings(Section):
    """How results are stored; changes no row."""

    mode: Literal["private", "group", "umask"] = Field(
        "private", description="who may read them: you alone, your group, or as the umask says"
    )


class InboxSettings(Section):
    """How an inbox is scanned (`medad screen INBOX --cohort FOLDER`); changes no row."""

    settle_s: float = Field(
        10.0, ge=0, description="a file written to within the last `settle_s` seconds is checked again after them"
    )
    attempts: int = Field(3, ge=1, description="batches that try a case again after its part was quarantined")


class NotifySettings(Section):
    """Where the outcome of a screening is reported (medad_core.notify); changes no row.

    The address of the webhook may hold a token. It is read, but is in no dump, text or message of the settings.
    """

    webhook: SecretStr | None = Field(
        None,
        exclude=True,
        description="address that may hold a token: read, but never written down; null: $MEDAD_WEBHOOK",
    )
    timeout_s: float = Field(5.0, gt=0, le=60)

    @field_validator("webhook", mode="before")
    @classmethod
    def _address(cls, value: object) -> object:
        # The message must not quote the address.
        if value is None or (isinstance(value, str) and _is_web_address(value)):
            return value
        raise ValueError("should start with http:// or https:// and a host, or be null")


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
        return parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable() and " " not in text
    except ValueError:  # half a bracket, or a port that is no number
        return False


def _is_endpoint(text: str) -> bool:
    """Whether it is the address of a server, and nothing but that."""
    return _is_web_address(text) and not any(mark in text for mark in "@?#")


class Settings(Section):
    """All settings of a run. `model_dump_json` and `model_validate_json` give equal settings back, less the webhook."""

    data: DataSettings = DataSettings()
    models: ModelSettings = ModelSettings()
    llm: LLMSettings = LLMSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    flow: FlowSettings = FlowSettings()
    store: StoreSettings = StoreSettings()
    inbox: InboxSettings = InboxSettings()
    notify: NotifySettings = NotifySettings()
    train: TrainSettings = TrainSettings()
    reproduce: ReproduceSettings = ReproduceSettings()
