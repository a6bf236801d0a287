"""Fields of fingerprints that come from the settings alone; read without any model library."""

from __future__ import annotations

from medad_core.config import Settings

Fields = dict[str, str]
PICTURE = ("data.modality", "data.first_slice", "data.last_slice", "data.scaling")
SPLIT = ("data.split",)
DEALT_BY = ("data.split", "data.first_slice", "data.last_slice")  # tumour-free slices are looked for within the range


def settings_fields(settings: Settings, *keys: str) -> Fields:
    """The named sections of the settings as fingerprint fields."""
    tree = settings.model_dump(mode="json")
    fields = {}
    for key in keys:
        value = tree
        for name in key.split("."):
            value = value[name]
        fields[key] = str(value)
    return fields
