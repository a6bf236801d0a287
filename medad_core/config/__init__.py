"""Settings: strict, frozen, from YAML and `key=value` words."""

from medad_core.config.load import (
    known_keys,
    load_settings,
    settings_from_yaml,
    settings_to_yaml,
    stored_settings,
    without_retired,
)
from medad_core.config.reproduce import BaselineTraining, ReproduceSettings
from medad_core.config.settings import (
    DataSettings,
    EvaluateSettings,
    FlowSettings,
    ImageScoreSettings,
    Language,
    LLMSettings,
    ModelSettings,
    NotifySettings,
    ReportSettings,
    ScalingSettings,
    Settings,
    SplitSettings,
    StoreSettings,
)
from medad_core.config.train import TrainSettings
from medad_core.config.workers import RayWorkers, WorkerResources

__all__ = [
    "BaselineTraining",
    "DataSettings",
    "EvaluateSettings",
    "FlowSettings",
    "ImageScoreSettings",
    "LLMSettings",
    "Language",
    "ModelSettings",
    "NotifySettings",
    "RayWorkers",
    "ReportSettings",
    "ReproduceSettings",
    "ScalingSettings",
    "Settings",
    "SplitSettings",
    "StoreSettings",
    "TrainSettings",
    "WorkerResources",
    "known_keys",
    "load_settings",
    "settings_from_yaml",
    "settings_to_yaml",
    "stored_settings",
    "without_retired",
]
