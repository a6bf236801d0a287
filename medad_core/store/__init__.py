"""The storage of stages: atomic files, Arrow schemas, plan, part records and manifest."""

from medad_core.store.files import check_writable, join, sha256_file, write_bytes, write_text
from medad_core.store.records import Item, PartPlan, PartRecord, Plan, StageManifest, StageProgress, fingerprint_of
from medad_core.store.schemas import (
    ANSWERS,
    CASES,
    COHORT_PREDICTIONS,
    FOLLOWUP_LESIONS,
    FOLLOWUPS,
    LESIONS,
    MAPS,
    PART_STAGES,
    PREDICTIONS,
    PROMPTS,
    QUESTIONS,
    SLICES,
)
from medad_core.store.stage import Stage, open_stages, stage_of
from medad_core.store.tables import read_table, write_table

__all__ = [
    "ANSWERS",
    "CASES",
    "COHORT_PREDICTIONS",
    "FOLLOWUPS",
    "FOLLOWUP_LESIONS",
    "LESIONS",
    "MAPS",
    "PART_STAGES",
    "PREDICTIONS",
    "PROMPTS",
    "QUESTIONS",
    "SLICES",
    "Item",
    "PartPlan",
    "PartRecord",
    "Plan",
    "Stage",
    "StageManifest",
    "StageProgress",
    "check_writable",
    "fingerprint_of",
    "join",
    "open_stages",
    "read_table",
    "sha256_file",
    "stage_of",
    "write_bytes",
    "write_table",
    "write_text",
]
