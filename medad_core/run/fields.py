"""Fields of fingerprints that come from the settings alone; read without any model library."""

from __future__ import annotations

from medad_core.config import Settings
from medad_core.data.pseudonyms import Pseudonyms

Fields = dict[str, str]
PICTURE = ("data.modality", "data.first_slice", "data.last_slice", "data.scaling")
SPLIT = ("data.split",)
DEALT_BY = ("data.split", "data.first_slice", "data.last_slice")  # tumour-free slices are looked for within the range


# Keys that came later: they are in the fingerprint where they are set, so that runs of earlier versions resume.
_WHERE_SET = {"data.tumour_labels": None, "data.levels": "auto", "data.checks": "refuse"}


def declared_fields(settings: Settings) -> Fields:
    """What the user declared about the cases, where it is not the default."""
    data = settings.data.model_dump(mode="json")
    values = {key: data[key.removeprefix("data.")] for key in _WHERE_SET}
    fields = {key: str(value) for key, value in values.items() if value != _WHERE_SET[key]}
    if settings.data.pseudonyms is not None:  # which key, not where it lies
        fields["data.pseudonyms"] = Pseudonyms.read(settings.data.pseudonyms).fingerprint
    return fields


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
